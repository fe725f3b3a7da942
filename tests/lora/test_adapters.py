"""Adapters in place: nothing at first, gradients only where they belong, merging and taking it back bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from songbloom.lora.training import LoRASettings, attach, trained_state, without_gradient
from songbloom.prior.prior import Prior
from songbloom.transformer import layers
from songbloom.transformer.decoding import DecodingTransformer
from songbloom.transformer.layers import Linear
from songbloom.transformer.lora import (
    WHOLE,
    LowRank,
    add_adapter,
    add_rows,
    bake,
    effective_weight,
    has_live_adapters,
    merge,
    merged,
    remove,
    unmerge,
)
from tests.lora.models import (
    SETTINGS,
    adapted,
    codes_for,
    jukebox,
    low_ranks,
    songbloom,
    songbloom_loss,
    stir,
    with_lyrics,
)

EVERYWHERE = LoRASettings(rank=2, alpha=3.0, dropout=0.0, targets=("all-linear",))


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every weight of the base, byte for byte."""
    state = {name: tensor for name, tensor in model.state_dict().items() if ".lora." not in name}
    return {name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


def jukebox_codes(prior: Prior, **settings: Any) -> torch.Tensor:
    """The likeliest codes, which any difference of weights may change."""
    return prior.sample(2, temperature=0, sample_tokens=24, **settings)


def test_fresh_adapters_change_nothing() -> None:
    prior = jukebox()
    codes = codes_for(prior)
    before = prior.logits(codes)
    attach(prior, EVERYWHERE)
    assert torch.equal(prior.logits(codes), before)

    song = songbloom()
    loss = songbloom_loss(song)
    attach(song, EVERYWHERE)
    assert torch.equal(songbloom_loss(song), loss)
    for model in (prior, song):
        assert all(not a.B.any() and a.A.any() for a in low_ranks(model))


def test_an_adapter_adds_its_scaled_product() -> None:
    linear = Linear(5, 7, std=0.5, generator=torch.Generator().manual_seed(0))
    adapter = LowRank(5, 3, rank=2, alpha=8.0, start=2)
    x = torch.randn(4, 5)
    plain = linear(x)
    add_adapter(linear, "middle", adapter)
    nn.init.normal_(adapter.B)
    expected = plain.clone()
    expected[:, 2:5] += 4.0 * (x @ adapter.A.t() @ adapter.B.t())
    torch.testing.assert_close(linear(x), expected)
    weight = linear.weight.clone()
    weight[2:5] += 4.0 * adapter.B @ adapter.A
    torch.testing.assert_close(effective_weight(linear), weight)


@pytest.mark.parametrize("make", [jukebox, with_lyrics, songbloom])
def test_merged_weights_do_what_adapters_do_and_unmerging_restores_every_bit(make: Any) -> None:
    model = make()
    base = bits(model)
    adapted(model, EVERYWHERE)

    def outcome() -> torch.Tensor:
        if make is songbloom:
            return songbloom_loss(model)
        labels = torch.tensor([[40000, 0, 4096, 1, 2, *range(32)]] * 2) if make is with_lyrics else None
        return model(codes_for(model), labels=labels)[0]

    live = outcome()
    with merged(model):
        assert not has_live_adapters(model)
        torch.testing.assert_close(outcome(), live, rtol=1e-4, atol=1e-5)
        assert bits(model) != base
    assert bits(model) == base
    assert torch.equal(outcome(), live)
    bake(model)
    torch.testing.assert_close(outcome(), live, rtol=1e-4, atol=1e-5)
    assert not any(".lora." in name for name in model.state_dict())


def hooked(model: nn.Module) -> list[str]:
    """The names of the modules at which somebody looks."""
    return [name for name, module in model.named_modules() if module._forward_hooks]


@pytest.mark.parametrize("away", [bake, remove])
def test_nothing_looks_at_a_layer_without_adapters(away: Callable[[nn.Module], None]) -> None:
    """Fast paths ask for that; a copy's hooks are its own."""
    song = adapted(songbloom(lyric_vocabulary=330), EVERYWHERE)
    for ids in ([40, 60], [41]):
        add_rows(song.lyrics.tokens, torch.tensor(ids))  # in the place of the first ones
    names = hooked(song)
    assert "lyrics.tokens" in names and len(names) == len(set(names)) > 10
    copied = copy.deepcopy(song)
    away(copied)
    assert hooked(copied) == [] and hooked(song) == names
    away(song)
    assert hooked(song) == []


def test_a_baked_mlp_is_computed_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(layers, "quick_gelu_mlp", lambda x, *weights: asked.append(x))
    mlp = layers.MLP(6, 12).eval()
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    plain = mlp(x)
    add_adapter(mlp.up, WHOLE, LowRank(6, 12, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(1)))
    nn.init.normal_(low_ranks(mlp)[0].B, generator=torch.Generator().manual_seed(2))
    live = mlp(x)
    assert len(asked) == 1 and not torch.allclose(live, plain)  # not while the adapter is between the maps
    bake(mlp)
    torch.testing.assert_close(mlp(x), live)
    assert len(asked) == 2


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_unmerging_is_exact_in_every_precision(seed: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    linear = Linear(6, 8, std=1.0, generator=draw)
    linear.weight.data = linear.weight.data.to(dtype)
    before = linear.weight.detach().clone()
    for name, start in (("low", 0), ("high", 4)):
        adapter = LowRank(6, 4, rank=2, alpha=2.0, start=start, generator=draw)
        nn.init.normal_(adapter.B, std=10.0, generator=draw)
        add_adapter(linear, name, adapter)
    parameter = linear.weight
    for _ in range(3):
        merge(linear)
        merge(linear)  # a second time changes nothing
        assert linear.weight is parameter and linear.weight.dtype == dtype
        assert not torch.equal(linear.weight, before)
        unmerge(linear)
        unmerge(linear)
        assert torch.equal(linear.weight.view(torch.uint8), before.view(torch.uint8))


def test_half_precision_models_train_float32_adapters() -> None:
    song = songbloom().store_matrices(torch.bfloat16)
    adapted(song, SETTINGS)
    assert {p.dtype for p in song.parameters() if p.requires_grad} == {torch.float32}
    loss, _ = song(
        torch.zeros(1, 8, dtype=torch.int64),
        torch.randn(1, 8, 8),
        torch.tensor([8]),
        [[3]],
        generator=torch.Generator().manual_seed(0),
        precision="bf16",
    )
    loss.backward()
    assert without_gradient(song) == []


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("family", ["jukebox", "songbloom"])
def test_gradients_reach_every_adapter_through_checkpointing_and_nothing_else(family: str, recompute: int) -> None:
    """With recomputation the gradients are the same bit by bit."""
    grads = []
    for c_res in (0, recompute):
        model: Any = jukebox(c_res=c_res) if family == "jukebox" else songbloom(c_res=c_res)
        adapted(model, SETTINGS).train()
        loss = model(codes_for(model))[0] if family == "jukebox" else songbloom_loss(model)
        loss.backward()
        assert without_gradient(model) == []
        assert all((p.grad is not None) == (".lora." in name) for name, p in model.named_parameters())
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_layer_that_is_left_out_of_the_graph_is_named() -> None:
    model = adapted(jukebox(), SETTINGS)
    model(codes_for(model))[0].backward()
    last: Any = model.autoregressive.transformer.stack[2].attention.query_key_value
    for adapter in last.lora.values():
        adapter.A.grad = None
        adapter.B.grad = torch.zeros_like(adapter.B)
    found = without_gradient(model)
    assert len(found) == 4 and all("layers.2.attention.query_key_value.lora." in name for name in found)


def test_dropout_of_an_adapter_only_while_training() -> None:
    prior = adapted(jukebox(), LoRASettings(rank=3, alpha=6.0, dropout=0.5))
    codes = codes_for(prior)
    assert torch.equal(prior.logits(codes), prior.logits(codes))
    prior.train()
    assert not torch.equal(prior.logits(codes), prior.logits(codes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_codes_drawn_with_live_adapters_are_those_of_merged_weights(precision: str) -> None:
    """The decoding steps copy weights: they must see what adapters add, and see it again when they have changed."""
    prior = jukebox()
    draw = partial(jukebox_codes, precision=precision)
    plain = draw(prior)
    adapted(prior, EVERYWHERE)
    for seed in (1, 2):
        stir(prior, seed)
        live = {fast: draw(prior, fast=fast) for fast in (True, False)}
        with merged(prior):
            whole = draw(prior)
        baked = copy.deepcopy(prior)
        bake(baked)
        assert torch.equal(live[True], whole)
        assert torch.equal(draw(baked), whole)
        if precision == "fp32":
            assert torch.equal(live[False], whole)
        assert not torch.equal(whole, plain)
    remove(prior)
    assert torch.equal(draw(prior), plain)


def test_a_decoding_transformer_made_of_an_adapted_model_has_its_adapters() -> None:
    prior = adapted(jukebox(), EVERYWHERE)
    transformer: Any = prior.autoregressive.transformer
    x = torch.randn(1, 5, 32)
    for packed in (False, True):
        decoder = DecodingTransformer(transformer, packed=packed)
        expected = transformer.extend(x, transformer.new_cache(1))
        torch.testing.assert_close(decoder.extend(x, decoder.new_cache(1)), expected, rtol=1e-4, atol=1e-5)


def test_own_rows_of_an_embedding_are_the_only_ones_that_learn() -> None:
    song = songbloom(lyric_vocabulary=330)
    before = songbloom_loss(song)
    rows = add_rows(song.lyrics.tokens, torch.tensor([40, 60, 99]))
    assert torch.equal(songbloom_loss(song), before)
    songbloom_loss(song).backward()
    assert rows.values.grad is not None
    assert rows.values.grad[:2].any(1).all() and not rows.values.grad[2].any()  # row 99 is not in the words
    assert song.lyrics.tokens.weight.grad is None
    with torch.no_grad():
        rows.values.add_(1)
    changed = songbloom_loss(song)
    with merged(song):
        assert torch.equal(songbloom_loss(song), changed)
    table = song.lyrics.tokens.weight
    assert not torch.equal(changed, before)
    remove(song)
    assert torch.equal(songbloom_loss(song), before) and table is song.lyrics.tokens.weight


def test_train_all_freezes_only_the_matrices_beside_adapters() -> None:
    song = songbloom()
    attach(song, LoRASettings(rank=2, alpha=2.0, targets=("q_proj", "v_proj"), train_all=True))
    frozen = {name for name, p in song.named_parameters() if not p.requires_grad}
    expected = {f"language_model.layers.{i}.query_key_value.weight" for i in (0, 1)} | {"lyrics.blank"}
    assert frozen == expected
    assert set(trained_state(song)) == set(song.state_dict()) - expected - {
        name for name, _ in song.named_buffers(remove_duplicate=False)
    }
