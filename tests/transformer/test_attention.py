"""The fast attention functions against plain masked attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from songbloom.transformer.attention import Attention, Geometry, attend, attention_weights, merge_heads, split_heads
from songbloom.transformer.patterns import reference_attention, zero_slots
from tests.transformer.strategies import examples, geometries, seeds
from tests.transformer.test_patterns import mask_of

functions = st.integers(0, 7)


def projections(function: int, geometry: Geometry, seed: int, batch: int) -> list[Tensor]:
    """Queries, keys and values ``[N, positions, 4 * heads]``, as slices of one tensor like a layer makes them."""
    generator = torch.Generator().manual_seed(seed)
    state = 4 * geometry.heads
    if function == 6:
        query = torch.randn(batch, geometry.n_ctx, state, generator=generator)
        both = torch.randn(batch, geometry.encoder_dims, 2 * state, generator=generator)
        return [query, *both.chunk(2, dim=-1)]
    return list(torch.randn(batch, geometry.n_ctx, 3 * state, generator=generator).chunk(3, dim=-1))


def slowly(function: int, geometry: Geometry, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (split_heads(x, geometry.heads) for x in (query, key, value))
    empty = zero_slots(function, geometry.spread)
    return merge_heads(reference_attention(q, k, v, mask_of(function, geometry), empty_slots=empty))


@examples(60)
@given(geometries(), functions, seeds, st.integers(1, 3))
def test_fast_equals_slow(geometry: Geometry, function: int, seed: int, batch: int) -> None:
    qkv = projections(function, geometry, seed, batch)
    got = attend(function, *qkv, geometry)
    torch.testing.assert_close(got, slowly(function, geometry, *qkv), rtol=1e-5, atol=1e-6)


@examples(60)
@given(geometries(), functions, seeds)
def test_gradients_of_fast_equal_those_of_slow(geometry: Geometry, function: int, seed: int) -> None:
    qkv = [x.clone().requires_grad_() for x in projections(function, geometry, seed, 2)]
    weight = torch.randn(qkv[0].shape, generator=torch.Generator().manual_seed(seed))
    fast = torch.autograd.grad((attend(function, *qkv, geometry) * weight).sum(), qkv, allow_unused=True)
    slow = torch.autograd.grad((slowly(function, geometry, *qkv) * weight).sum(), qkv)
    for got, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(torch.zeros_like(want) if got is None else got, want, rtol=1e-4, atol=1e-5)


@examples(60)
@given(geometries(), functions, seeds, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_close(geometry: Geometry, function: int, seed: int, dtype: torch.dtype) -> None:
    qkv = [x.to(dtype) for x in projections(function, geometry, seed, 2)]
    got = attend(function, *qkv, geometry)
    assert got.dtype == dtype
    want = slowly(function, geometry, *(x.float() for x in qkv))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=4 * torch.finfo(dtype).eps * 4)


@examples(60)
@given(geometries(), st.sampled_from([0, 4, 5, 6]), seeds, st.booleans())
def test_weights_are_those_that_were_used(geometry: Geometry, function: int, seed: int, training: bool) -> None:
    query, key, value = projections(function, geometry, seed, 2)
    weights = attention_weights(function, query, key, geometry, training=training)
    if function in (4, 5):
        c, last = geometry.block_ctx, geometry.summary(function)
        ends = [t for t in range(geometry.n_ctx - c) if t % c >= c - last]
        value_seen = torch.cat([torch.zeros(2, last, value.shape[2]), value[:, ends]], dim=1)
    else:
        value_seen = value
    got = merge_heads(weights @ split_heads(value_seen, geometry.heads))
    torch.testing.assert_close(got, attend(function, query, key, value, geometry), rtol=1e-4, atol=1e-5)


def test_attention_dropout_draws_and_keeps_the_mean() -> None:
    geometry = Geometry(n_ctx=8, heads=1, blocks=2)
    query, key, _ = projections(1, geometry, 0, 1)
    value = torch.ones_like(query)
    torch.manual_seed(0)
    mean = torch.stack([attend(1, query, key, value, geometry, 0.5) for _ in range(500)]).mean(0)
    assert not torch.equal(attend(1, query, key, value, geometry, 0.5), value)
    torch.testing.assert_close(mean, value, rtol=0, atol=0.2)


@pytest.mark.parametrize("function", range(8))
def test_no_square_matrix_for_sparse_functions(function: int) -> None:
    """The largest tensor that attention saves or makes stays far below n × n numbers."""
    geometry = Geometry(n_ctx=2048, heads=1, blocks=64, spread=2, prime_len=64, encoder_dims=16)
    layer = Attention(8, 8, function, geometry)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    x = torch.zeros(1, 2048, 8, requires_grad=True)
    with Watch():
        layer(x, torch.zeros(1, 16, 8) if function == 6 else None).sum().backward()
    assert max(sizes) < 2048 * 2048 / 4
