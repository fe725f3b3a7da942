"""``jukebox_transformer``: whole stacks, in evaluation, in half precision and in training with gradients."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.published.jukebox.transformer import from_published, to_published
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.decoding import DecodingTransformer
from tests.golden.report import Golden

OUTPUT = {"abs": 2e-5, "rel": 1e-5}
STEPWISE = {"abs": 5e-5, "rel": 1e-5}
GRADIENT = {"abs": 1e-6, "rel": 1e-4}
HALF = {"abs": 2e-2}

# Names of constructor arguments in the files → ours; those that are alike on both sides follow.
NAMES = {"n_in": "width", "n_head": "heads", "n_depth": "depth", "afn": "activation"}
NAMES |= {
    name: name
    for name in (
        *("n_ctx", "attn_order", "blocks", "spread", "m_attn", "m_mlp", "attn_dropout", "resid_dropout", "zero_out"),
        *("res_scale", "init_scale", "mask", "encoder_dims", "prime_len", "c_res", "c_attn", "c_mlp"),
    )
}


def _config(golden: Golden, case: str) -> TransformerConfig:
    settings: dict[str, Any] = {
        NAMES[name]: golden.given(case, "cfg", name) for name in golden.look(case, "cfg") if name in NAMES
    }
    return TransformerConfig(**settings)


def check(golden: Golden) -> None:
    for case in golden.content:
        config = _config(golden, case)
        model = Transformer(config)
        model.load_state_dict(from_published(golden.given(case, "state_dict")))
        golden.expect(case, "attn_funcs", got=[int(function) for function in model.funcs])
        x, encoder_kv = golden.given(case, "x"), golden.given(case, "encoder_kv")

        model.eval()
        with torch.no_grad():
            golden.expect(case, "out", got=model(x, encoder_kv), **OUTPUT)
            half = model(x, encoder_kv, dtype=torch.float16)
            golden.expect(case, "out_fp16", got=half, **HALF)
            if config.mask:
                decoder = DecodingTransformer(model)
                cache = decoder.new_cache(len(x), encoder_kv=encoder_kv)
                steps = [decoder.extend(step, cache) for step in x.split(1, dim=1)]
                golden.expect(case, "out", got=torch.cat(steps, dim=1), **STEPWISE, name=f"{case}.out, step by step")

        model.train()
        leaf = x.clone().requires_grad_()
        out = model(leaf, encoder_kv)
        golden.expect(case, "out_train", got=out, **OUTPUT)
        (out * golden.given(case, "loss_weight")).sum().backward()
        # The absolute part is meant for values near 1; these gradients reach 10 and cancel in places, and two float32
        # computations of them differ (each from float64, too) by that part times their size.
        size = max(1.0, float(golden.look(case, "grad_x").abs().max()))
        golden.expect(case, "grad_x", got=leaf.grad, abs=size * GRADIENT["abs"], rel=GRADIENT["rel"])
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norms = {name: float(gradient.norm()) for name, gradient in to_published(gradients).items()}
        golden.expect(case, "grad_norms", got=norms, **GRADIENT)


CHECKS = {"jukebox_transformer": check}
