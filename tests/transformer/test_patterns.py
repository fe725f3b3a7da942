from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.transformer.attention import Geometry
from songbloom.transformer.cache import mean_seen, slots, step_window
from songbloom.transformer.patterns import (
    ORDERS,
    layer_functions,
    prime_positions,
    reference_attention,
    reference_mask,
    zero_slots,
)
from tests.transformer.strategies import examples, geometries


def mask_of(function: int, geometry: Geometry) -> torch.Tensor:
    names = ("blocks", "spread", "prime_len", "encoder_dims", "causal")
    return reference_mask(function, geometry.n_ctx, **{name: getattr(geometry, name) for name in names})


def test_small_masks_as_drawn_by_hand() -> None:
    def rows(function: int, **settings: int) -> list[str]:
        mask = reference_mask(function, 6, blocks=3, **settings)
        return ["".join("#" if seen else "." for seen in row) for row in mask.tolist()]

    assert rows(0) == ["#.....", "##....", "###...", "####..", "#####.", "######"]
    assert rows(1) == ["#.....", "##....", "..#...", "..##..", "....#.", "....##"]
    assert rows(2) == ["#.....", ".#....", "#.#...", ".#.#..", "#.#.#.", ".#.#.#"]
    assert rows(3) == ["......", "......", "##....", "##....", "..##..", "..##.."]
    assert rows(4) == ["......", ".#....", ".#....", ".#.#..", ".#.#..", ".#.#.."]
    assert rows(5, spread=2) == ["#.....", "##....", "###...", "####..", "####..", "####.."]
    assert rows(6, encoder_dims=2) == ["##"] * 6
    assert rows(7, prime_len=2) == ["#.....", "##....", "###...", "###...", "###...", "###..."]


def test_the_prime_is_rounded_beyond_itself() -> None:
    assert prime_positions(384, 64, 6144) == 448
    assert prime_positions(383, 64, 6144) == 384
    assert prime_positions(40, 8, 42) == 42


def test_cycles_have_their_lengths() -> None:
    for order, length in enumerate([1, 2, 3, 2, 2, 4, 4, 16, 10, 4, 79]):
        twice = layer_functions(order, 2 * length)
        assert twice[:length] == twice[length:]
    assert set(ORDERS) == set(range(13))
    assert layer_functions(12, 48)[15::16] == [7, 7, 0]
    assert layer_functions(11, 48)[15::16] == [6, 6, 0]


@pytest.mark.parametrize("order", [-1, 13])
def test_an_unknown_order_is_named(order: int) -> None:
    with pytest.raises(UserError, match=f"no order {order}"):
        layer_functions(order, 1)


@examples(60)
@given(geometries(causal=True), st.integers(0, 7))
def test_step_windows_agree_with_the_masks(geometry: Geometry, function: int) -> None:
    """Walk the context: the slots a position sees hold just the positions that its row of the mask allows."""
    mask = mask_of(function, geometry)
    empty = zero_slots(function, geometry.spread)
    content = [-1] * slots(function, geometry)
    if function == 6:
        content = list(range(geometry.encoder_dims))
    seen = []
    for t in range(geometry.n_ctx):
        slot, start, stop = step_window(function, geometry, t)
        if slot >= 0:
            content[slot] = t
        window = content[start:stop]
        assert window[:empty] == [-1] * empty
        assert sorted(window[empty:]) == mask[t].nonzero().flatten().tolist()
        seen.append(stop - start)
    assert mean_seen(function, geometry) == pytest.approx(sum(seen) / len(seen))


def test_reference_attention_gives_zeros_where_nothing_is_seen() -> None:
    x = torch.randn(1, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    out = reference_attention(x, x, x, reference_mask(3, 4, blocks=2))
    assert torch.equal(out[:, :, :2], torch.zeros(1, 1, 2, 3))
    assert out[:, :, 2:].abs().min() > 0
