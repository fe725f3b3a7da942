"""``jukebox_ops``: activations, layer norm, linear maps, logit filters, and how a prior feeds its transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from songbloom.prior.autoregressive import AutoregressiveModel
from songbloom.prior.filters import filter_logits
from songbloom.transformer.blocks import TransformerConfig
from songbloom.transformer.cache import DecodingCache
from songbloom.transformer.layers import LAYER_NORM_EPS, Linear, gelu, layer_norm, quick_gelu, swish
from tests.golden.report import Golden

OUTPUT = {"abs": 2e-5, "rel": 1e-5}
GRADIENT = {"abs": 1e-6, "rel": 1e-4}
HALF = {"abs": 2e-2}


def _tiny_model(positions: int, bins: int) -> AutoregressiveModel:
    return AutoregressiveModel(TransformerConfig(width=4, n_ctx=positions, heads=1, depth=1), bins=bins).eval()


def _fed_sizes(model: AutoregressiveModel, prompt: int, chunk_size: int) -> list[int]:
    """How many positions each call feeds while a prompt is read."""
    sizes: list[int] = []
    extend = model.transformer.extend

    def counting(x: Tensor, cache: DecodingCache) -> Tensor:
        sizes.append(x.shape[1])
        return extend(x, cache)

    model.transformer.extend = counting  # type: ignore[method-assign]
    tokens = torch.zeros(1, prompt, dtype=torch.int64)
    model.sample(1, prompt=tokens, sample_tokens=prompt + 1, chunk_size=chunk_size, temperature=0, fast=False)
    assert sizes[-1] == 1, "the last call draws"
    return sizes[:-1]


def _fed_tokens(tokens: Tensor, start: int) -> Tensor:
    """What the transformer is fed for ``tokens [n]`` by a model that embeds token i as i and starts with ``start``."""
    model = _tiny_model(len(tokens), int(tokens.max()) + 1)
    fed: list[Tensor] = []
    with torch.no_grad():
        model.positions.zero_()
        model.embedding.weight.copy_(torch.arange(model.bins)[:, None].expand(-1, 4))
        assert model.start is not None
        model.start.fill_(start)
        model.transformer.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
        model(tokens[None])
    return fed[0][0, :, 0]


def check(golden: Golden) -> None:
    x = golden.given("x")
    for name, function in {"quick_gelu": quick_gelu, "gelu": gelu, "swish": swish, "relu": torch.relu}.items():
        if golden.has(name):
            golden.expect(name, got=function(x), **OUTPUT)
    leaf = x.clone().requires_grad_()
    quick_gelu(leaf).sum().backward()
    golden.expect("quick_gelu_grad", got=leaf.grad, **GRADIENT)

    norm = golden.given("ln_weight"), golden.given("ln_bias")
    golden.expect("ln_eps", got=LAYER_NORM_EPS)
    golden.expect("ln_out", got=layer_norm(x, *norm), **OUTPUT)
    golden.expect("ln_out_half", got=layer_norm(x.half(), *norm), **HALF)

    weight, bias = golden.given("conv_w"), golden.given("conv_b")
    linear = Linear(*weight.shape, std=1.0)
    linear.load_state_dict({"weight": weight.t(), "bias": bias})
    golden.expect("conv_out", got=linear(x), **OUTPUT)
    golden.expect("conv_out_half", got=linear(x.half()), **HALF)

    logits = golden.given("logits")
    for key in golden.look("filter"):
        settings: dict[str, Any] = dict(part.split("=") for part in key.split(","))
        got = filter_logits(logits, int(settings["top_k"]), float(settings["top_p"]))
        golden.expect("filter", key, got=got, name="filter")
    for key in golden.look("split_chunks"):
        length, chunk = map(int, key.split(","))
        golden.expect("split_chunks", key, got=_fed_sizes(_tiny_model(length + 1, 1), length, chunk))

    shifted = golden.look("roll")  # every position gets the one before; the first gets the last, or a start
    fed = [_fed_tokens(row.roll(-1), int(row[0])).to(row.dtype) for row in shifted.flatten(1)]
    golden.expect("roll", got=torch.stack(fed).view_as(shifted))


CHECKS = {"jukebox_ops": check}
