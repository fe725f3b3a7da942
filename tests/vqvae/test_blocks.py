"""Geometry, residual stacks and their settings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.vqvae.blocks import (
    DownsamplingBlock,
    ResidualBlock,
    ResidualStack,
    UpsamplingBlock,
    operations,
    reset_convolutions,
)


@settings(deadline=None, max_examples=30)
@given(stride=st.integers(2, 7), down=st.integers(1, 2), frames=st.integers(1, 5), batch=st.integers(1, 2))
def test_any_stride_gives_exact_lengths_both_ways(stride: int, down: int, frames: int, batch: int) -> None:
    sizes = {"down_t": down, "stride_t": stride, "width": 3, "depth": 1}
    encode, decode = DownsamplingBlock(1, 4, **sizes), UpsamplingBlock(4, 2, **sizes)
    with torch.no_grad():
        codes = encode(torch.randn(batch, 1, frames * stride**down))
        assert codes.shape == (batch, 4, frames)
        assert decode(codes).shape == (batch, 2, frames * stride**down)


@pytest.mark.parametrize("block", [DownsamplingBlock, UpsamplingBlock])
@pytest.mark.parametrize(("down", "stride", "word"), [(0, 2, "down_t is 0"), (1, 1, "stride_t is 1")])
def test_what_does_not_downsample_is_refused(block: type, down: int, stride: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        block(1, 4, down_t=down, stride_t=stride, width=3, depth=1)


def _dilations(stack: ResidualStack) -> list[int]:
    return [block.dilated.dilation[0] for block in stack.blocks]


def test_dilations() -> None:
    assert _dilations(ResidualStack(2, 4, dilation_growth_rate=3)) == [1, 3, 9, 27]
    assert _dilations(ResidualStack(2, 5, dilation_growth_rate=3, dilation_cycle=2)) == [1, 3, 1, 3, 1]
    assert _dilations(ResidualStack(2, 3, dilation_growth_rate=3, reverse_dilation=True)) == [9, 3, 1]
    assert _dilations(ResidualStack(2, 3)) == [1, 1, 1]


def test_residual_block_follows_its_formula() -> None:
    block = ResidualBlock(4, 6, dilation=2, scale=0.3)
    x = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0))
    hidden = F.conv1d(F.relu(x), block.dilated.weight, block.dilated.bias, padding=2, dilation=2)
    branch = F.conv1d(F.relu(hidden), block.pointwise.weight, block.pointwise.bias)
    torch.testing.assert_close(block(x), x + 0.3 * branch, atol=1e-6, rtol=1e-5)


def test_hidden_width_and_scale() -> None:
    stack = ResidualStack(8, 4, m_conv=0.5, res_scale=True)
    assert all(block.dilated.out_channels == 4 and block.scale == 0.5 for block in stack.blocks)


def test_zero_out_starts_as_the_identity() -> None:
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ResidualStack(4, 3, zero_out=True)(x), x, atol=0, rtol=0)


def test_checkpointing_changes_no_gradient() -> None:
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpoint in (False, True):
        stack = ResidualStack(4, 3, dilation_growth_rate=2, checkpoint=checkpoint)
        reset_convolutions(stack, torch.Generator().manual_seed(3))
        stack(x).square().sum().backward()
        gradients.append([p.grad for p in stack.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_weights_come_from_the_generator_within_their_bound() -> None:
    first, second = (DownsamplingBlock(1, 4, down_t=2, stride_t=2, width=8, depth=2) for _ in range(2))
    for block in (first, second):
        reset_convolutions(block, torch.Generator().manual_seed(5))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    bound = (8 * 3) ** -0.5
    weight = first.project.weight
    assert 0.8 * bound < weight.abs().max() <= bound
    assert nn.Conv1d(8, 4, 3).weight.abs().max() <= bound  # as PyTorch's own


def test_operations_are_counted_at_each_rate() -> None:
    block = DownsamplingBlock(1, 4, down_t=1, stride_t=2, width=8, depth=1)
    total, rate = operations(block, 1.0)
    assert rate == 0.5
    assert total == 2 * 0.5 * (1 * 8 * 4 + 8 * 8 * 3 + 8 * 8 + 8 * 4 * 3)
    up = UpsamplingBlock(4, 2, down_t=1, stride_t=2, width=8, depth=1)
    assert operations(up, 0.5)[0] == 2 * 0.5 * (4 * 8 * 3 + 8 * 8 * 3 + 8 * 8 + 8 * 2 * 4)
