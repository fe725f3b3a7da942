from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.published.jukebox.transformer import from_published, to_published
from songbloom.transformer import attention, halves
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.patterns import AttentionFunction
from tests.transformer.strategies import configs, examples, inputs, seeds, transformer

SMALL: dict[str, Any] = {"width": 16, "n_ctx": 24, "heads": 2, "depth": 3, "attn_order": 2, "blocks": 6, "m_attn": 0.5}


@examples(40)
@given(configs(), seeds, st.data())
def test_a_shorter_sequence_gives_the_first_outputs(config: TransformerConfig, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, config.n_ctx))
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    torch.testing.assert_close(model(x[:, :n], encoder_kv), model(x, encoder_kv)[:, :n], rtol=1e-4, atol=2e-5)


@examples(40)
@given(configs(), seeds, st.data())
def test_nothing_depends_on_what_comes_later(config: TransformerConfig, seed: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, config.n_ctx - 1))
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    changed = x.clone()
    changed[:, t] += 1.0
    out, other = model(x, encoder_kv), model(changed, encoder_kv)
    assert torch.equal(out[:, :t], other[:, :t])
    assert not torch.equal(out[:, t], other[:, t])


@examples(40)
@given(configs(), seeds, st.integers(0, 2), st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.0, 0.3]))
def test_recomputing_activations_changes_no_number(
    config: TransformerConfig, seed: int, c_res: int, c_attn: int, c_mlp: int, dropout: float
) -> None:
    x, encoder_kv = inputs(config, seed)
    results = []
    for flags in ({}, {"c_res": c_res, "c_attn": c_attn, "c_mlp": c_mlp}):
        same = {**config.__dict__, "attn_dropout": dropout, "resid_dropout": dropout, **flags}
        model = transformer(TransformerConfig(**same), seed).train()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(seed)
        out = model(leaf, encoder_kv)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_recomputing_saves_memory() -> None:
    def kept(**flags: int) -> int:
        model = Transformer(TransformerConfig(**SMALL, **flags)).train()
        sizes: dict[int, int] = {}
        parameters = {p.data_ptr() for p in model.parameters()}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.data_ptr() not in parameters:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.zeros(1, 24, 16, requires_grad=True))
        return sum(sizes.values())

    plain = kept()
    assert kept(c_res=2) < kept(c_attn=3, c_mlp=1) < kept(c_mlp=1) < plain
    assert kept(c_attn=3) < kept(c_attn=1) < plain


@examples(30)
@given(configs(), seeds)
def test_half_precisions_are_close(config: TransformerConfig, seed: int) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    with torch.no_grad():
        out = model(x, encoder_kv)
        for dtype in (torch.float16, torch.bfloat16):
            half = model(x, encoder_kv, dtype=dtype)
            assert half.dtype == torch.float32
            scale = out.abs().max() * config.depth**0.5
            assert (half - out).abs().max() < 8 * torch.finfo(dtype).eps * scale


def test_bf16_gradients_are_close_and_float32() -> None:
    model = transformer(TransformerConfig(**SMALL), 0).train()
    x, _ = inputs(model.config, 0)
    gradients = []
    for dtype in (None, torch.bfloat16):
        model.zero_grad()
        model(x, dtype=dtype).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, exact in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32
        assert (gradients[1][name] - exact).norm() < 0.05 * exact.norm() + 1e-6, name


def test_residual_scale_and_order_of_the_halves() -> None:
    model = transformer(TransformerConfig(**SMALL, res_scale=True), 0)
    layer, (x, _) = model.stack[0], inputs(model.config, 0)
    a = layer.attention(layer.attention_norm(x))
    m = layer.mlp(layer.mlp_norm(x + a))
    torch.testing.assert_close(layer(x), x + (a + m) / 3)


def test_encoder_layers_start_as_the_identity() -> None:
    config = TransformerConfig(width=8, n_ctx=8, heads=1, depth=4, attn_order=6, blocks=2, encoder_dims=3)
    model = Transformer(config)
    x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.layers[3](x, x[:, :3]), x)
    assert not torch.equal(model.layers[0](x), x)


def test_zero_out_makes_the_identity() -> None:
    model = Transformer(TransformerConfig(**SMALL, zero_out=True))
    x, _ = inputs(model.config, 0)
    assert torch.equal(model(x), x)


@examples(30)
@given(configs(), seeds)
def test_published_names_there_and_back(config: TransformerConfig, seed: int) -> None:
    state = transformer(config, seed).state_dict()
    published = to_published(state)
    assert len(published) == len(state)
    back = from_published(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    with torch.device("meta"):
        ghost = Transformer(config).state_dict()
    assert {k: v.shape for k, v in to_published(ghost).items()} == {k: v.shape for k, v in published.items()}
    assert all(tensor.is_meta for tensor in from_published(to_published(ghost)).values())


def test_strange_names_are_refused() -> None:
    with pytest.raises(UserError, match="layers"):
        to_published({"layers.0.attention.w": torch.zeros(1)})
    for name in ("_attn_mods.0.attn.c_attn.weight", "_attn_mods.x.ln_0.weight", "x_emb.weight"):
        with pytest.raises(UserError, match=name):
            from_published({name: torch.zeros(1)})


@examples(20)
@given(configs(), seeds)
def test_recorded_weights(config: TransformerConfig, seed: int) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    with torch.no_grad(), model.record_attention() as weights:
        recorded = model(x, encoder_kv)
    with torch.no_grad():
        assert torch.equal(recorded, model(x, encoder_kv))
    assert set(weights) == set(range(config.depth))
    for layer, function in enumerate(model.funcs):
        if function != AttentionFunction.PRIME:
            sums = weights[layer].sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums))
        assert model.stack[layer].attention.recorded is None


def test_recording_chosen_layers_only() -> None:
    model = transformer(TransformerConfig(**SMALL), 0)
    with model.record_attention({1}) as weights:
        model(inputs(model.config, 0)[0])
    assert {layer: tuple(w.shape) for layer, w in weights.items()} == {1: (2 * 4, 2, 6, 6)}


@examples(40)
@given(configs(), seeds, st.data())
def test_one_heads_weights_to_the_first_keys(config: TransformerConfig, seed: int, data: st.DataObject) -> None:
    """Against the weights of all heads to all keys, and for any number of rows at a time."""
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    able = [layer for layer, function in enumerate(model.funcs) if function in (0, 6, 7)]
    if not able:
        return
    layers = data.draw(st.lists(st.sampled_from(able), min_size=1, max_size=3))
    wanted = [(layer, data.draw(st.integers(0, config.heads - 1))) for layer in layers]
    first = data.draw(st.integers(config.prime_len or 0, config.n_ctx - 1)) if config.n_ctx > config.prime_len else None
    if first is None:
        return
    keys = config.encoder_dims if set(model.funcs) & {6} else max(1, config.prime_len)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "WEIGHT_ROWS", data.draw(st.integers(1, 60)))
        found = model.head_weights(x, encoder_kv, wanted=wanted, first_query=first, keys=keys)
    with torch.no_grad(), model.record_attention() as weights:
        model(x, encoder_kv)
    assert found.shape == (len(wanted), 2, config.n_ctx - first, keys)
    for place, (layer, head) in enumerate(wanted):
        start = first - (config.prime_len if model.funcs[layer] == AttentionFunction.PRIME else 0)
        want = weights[layer][:, head, start:, :keys]
        torch.testing.assert_close(found[place, ..., : want.shape[-1]], want, rtol=1e-4, atol=1e-6)


def test_weights_of_sparse_functions_are_refused() -> None:
    model = transformer(TransformerConfig(**SMALL), 0)
    with pytest.raises(ValueError, match="function 1 has no weights"):
        model.head_weights(inputs(model.config, 0)[0], wanted=[(0, 0)], keys=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "heads=3"),
        ({"blocks": None}, "blocks"),
        ({"n_ctx": 25}, "n_ctx=25"),
        ({"attn_order": 4}, "spread"),
        ({"attn_order": 4, "spread": 5}, "spread=5"),
        ({"attn_order": 6, "depth": 4}, "encoder_dims"),
        ({"attn_order": 12, "depth": 16}, "prime_len"),
        ({"attn_order": 99}, "no order 99"),
        ({"activation": "sine"}, "sine"),
    ],
)
def test_impossible_shapes_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Transformer(TransformerConfig(**(SMALL | change)))


def test_wrong_inputs_are_named() -> None:
    model = Transformer(TransformerConfig(**SMALL))
    with pytest.raises(UserError, match="25 positions"):
        model(torch.zeros(1, 25, 16))
    unmasked = Transformer(TransformerConfig(**SMALL, mask=False))
    with pytest.raises(UserError, match="23 positions"):
        unmasked(torch.zeros(1, 23, 16))
    crossing = Transformer(TransformerConfig(**(SMALL | {"attn_order": 6, "depth": 4, "encoder_dims": 3})))
    for wrong in (None, torch.zeros(1, 4, 16), torch.zeros(2, 3, 16)):
        with pytest.raises(UserError, match="encoder's output"):
            crossing(torch.zeros(1, 24, 16), wrong)


def test_costs() -> None:
    model = Transformer(TransformerConfig(**SMALL))
    cost = model.cost()
    matrices = 3 * (16 * 24 + 8 * 16 + 2 * 16 * 16)
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    seen = (4 + 1) / 2 + (6 + 1) / 2 + 4 * 5 / 6
    assert cost["operations_per_token"] == pytest.approx(2 * matrices + 4 * 8 * seen)
    assert cost["bytes_per_decoded_token"] == pytest.approx(4 * (cost["parameters"] + 2 * 8 * seen))
    assert cost["cache_bytes"] == model.new_cache(1).nbytes == (4 + 24 + 8) * 2 * 8 * 4
    assert cost["cache_bytes_per_token"] == cost["cache_bytes"] / 24
    assert model.cost(torch.bfloat16)["cache_bytes"] == cost["cache_bytes"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"c_res": 1}, {"c_res": 2}])
def test_dynamo_sees_one_graph(flags: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` finds nothing in a training step that it must leave to Python."""
    monkeypatch.setattr(halves, "available", lambda: False)  # what is compiled is torch's own, rounded in its own way
    model = Transformer(TransformerConfig(**SMALL, **flags)).train()
    x, _ = inputs(model.config, 0)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, dtype=torch.bfloat16), model(x, dtype=torch.bfloat16))
    torch._dynamo.reset()
