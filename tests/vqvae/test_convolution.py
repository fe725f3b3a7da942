"""The fast convolutions and their derivatives against PyTorch's plain one-dimensional ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.vqvae import rows
from songbloom.vqvae.blocks import ResidualStack, downsampling_conv, upsampling_conv
from songbloom.vqvae.convolution import Convolution, upsample_and_project

sizes = st.integers(1, 9)


@pytest.fixture(autouse=True, params=["rows", "rows in small pieces", "images"], scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each way in which convolutions can go, whatever this machine would choose."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "images":
            patch.setattr(rows, "usable", lambda x: False)
        elif request.param == "rows in small pieces":
            patch.setattr(rows, "PIECE_NUMBERS", 16)
            patch.setattr(rows, "SHORTEST_PIECE", 16)  # items up to 15 rows lie end to end
            patch.setattr(rows, "each", lambda work, pieces: [work(piece) for piece in pieces])  # threads: test_workers
        yield


def _agree(module: nn.Module, reference: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values and all gradients of ``module(x)`` and ``reference(x)`` are alike."""
    x = x.requires_grad_()
    parameters = [x, *module.parameters()]
    got, want = module(x), reference(x)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(7))
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), parameters),
        torch.autograd.grad((want * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


def _signal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 3), c=sizes, o=sizes, t=st.integers(1, 70), kernel=st.sampled_from([1, 3]), d=sizes, seed=sizes)
def test_dilated(n: int, c: int, o: int, t: int, kernel: int, d: int, seed: int) -> None:
    conv = Convolution(c, o, kernel, padding=d * (kernel // 2), dilation=d)
    _agree(conv, lambda x: F.conv1d(x, conv.weight, conv.bias, 1, conv.padding, d), _signal(seed, n, c, t))


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 3), c=sizes, o=sizes, t=st.integers(1, 20), stride=st.integers(2, 6), seed=sizes)
def test_strided(n: int, c: int, o: int, t: int, stride: int, seed: int) -> None:
    down = downsampling_conv(c, o, stride)
    reference = lambda x: F.conv1d(x, down.weight, down.bias, stride, down.padding)  # noqa: E731
    _agree(down, reference, _signal(seed, n, c, t * stride))
    assert down(_signal(seed, n, c, t * stride)).shape == (n, o, t)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 3), c=sizes, o=sizes, t=st.integers(1, 20), stride=st.integers(2, 6), seed=sizes)
def test_transposed(n: int, c: int, o: int, t: int, stride: int, seed: int) -> None:
    up = upsampling_conv(c, o, stride)
    reference = lambda x: F.conv_transpose1d(  # noqa: E731
        x, up.weight, up.bias, stride, up.padding, up.output_padding
    )
    _agree(up, reference, _signal(seed, n, c, t))
    assert up(_signal(seed, n, c, t)).shape == (n, o, t * stride)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 2), c=sizes, t=st.integers(1, 60), depth=st.integers(0, 4), growth=st.integers(1, 4),
    reverse=st.booleans(), scaled=st.booleans(), m_conv=st.sampled_from([0.5, 1.0, 2.0]), seed=sizes,
)  # fmt: skip
def test_residual_stacks(
    n: int, c: int, t: int, depth: int, growth: int, reverse: bool, scaled: bool, m_conv: float, seed: int
) -> None:
    stack = ResidualStack(
        2 * c, depth, m_conv=m_conv, dilation_growth_rate=growth, reverse_dilation=reverse, res_scale=scaled
    )

    def reference(x: Tensor) -> Tensor:
        for block in stack.blocks:
            one, two, d = block.dilated, block.pointwise, block.dilated.dilation[0]
            hidden = F.relu(F.conv1d(F.relu(x), one.weight, one.bias, 1, d, d))
            x = x + F.conv1d(hidden, two.weight, two.bias) * (depth**-0.5 if scaled else 1)
        return x

    _agree(stack, reference, _signal(seed, n, 2 * c, t))
    with torch.no_grad():
        x = _signal(seed, n, 2 * c, t)
        torch.testing.assert_close(stack(x), reference(x), atol=1e-5, rtol=1e-5)


class _Composed(nn.Module):
    def __init__(self, up: nn.ConvTranspose1d, out: nn.Conv1d) -> None:
        super().__init__()
        self.up, self.out = up, out

    def forward(self, x: Tensor) -> Tensor:
        return upsample_and_project(x, self.up, self.out)


@settings(deadline=None, max_examples=25)
@given(c=sizes, o=st.integers(1, 2), t=st.integers(1, 12), stride=st.integers(2, 6), bias=st.booleans(), seed=sizes)
def test_upsampling_and_projecting_at_once(c: int, o: int, t: int, stride: int, bias: bool, seed: int) -> None:
    up, out = upsampling_conv(c, 5, stride), nn.Conv1d(5, o, 3, padding=1, bias=bias)
    plain_up = lambda x: F.conv_transpose1d(  # noqa: E731
        x, up.weight, up.bias, stride, up.padding, up.output_padding
    )
    plain = lambda x: F.conv1d(plain_up(x), out.weight, out.bias, padding=1)  # noqa: E731
    _agree(_Composed(up, out), plain, _signal(seed, 2, c, t))


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_memory_layout_of_the_input_is_free(layout: str) -> None:
    conv = Convolution(6, 4, 3, padding=2, dilation=2)
    x = _signal(1, 2, 6, 30)
    if layout == "channels last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias, 1, 2, 2), atol=1e-5, rtol=1e-5)
    assert conv(x).transpose(1, 2).is_contiguous(), "channels of one moment should lie side by side"


def test_half_precision_under_autocast() -> None:
    conv = Convolution(8, 8, 3, padding=1)
    x = _signal(2, 1, 8, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
