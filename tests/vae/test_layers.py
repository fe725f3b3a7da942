"""Layers agree with PyTorch's own, and tell truly what they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from songbloom.vae import layers
from tests.vae.tiny import sound


def test_snake_and_its_derivatives_agree_with_the_reference() -> None:
    def tensors() -> list[torch.Tensor]:
        shapes = ((2, 3, 5), (3,), (3,))
        return [sound(*shape, seed=seed).double().requires_grad_() for seed, shape in enumerate(shapes)]

    ours, reference, direction = tensors(), tensors(), sound(2, 3, 5, seed=9).double()
    made, wanted = layers._Snake.apply(*ours), layers.snake_reference(*reference)
    torch.testing.assert_close(made, wanted)
    (made * direction).sum().backward()
    (wanted * direction).sum().backward()
    for ours_, reference_ in zip(ours, reference, strict=True):
        torch.testing.assert_close(ours_.grad, reference_.grad)
    assert torch.autograd.gradcheck(layers._Snake.apply, tensors())


def test_snake_keeps_the_precision_it_is_given() -> None:
    snake = layers.Snake(3)
    assert snake(sound(1, 3, 4).bfloat16()).dtype == torch.bfloat16


def test_snake_is_the_formula() -> None:
    snake = layers.Snake(1)
    with torch.no_grad():
        snake.alpha.fill_(2.0)
        snake.beta.fill_(-1.0)
    frequency, scale = torch.tensor(2.0).exp(), torch.tensor(-1.0).exp()
    got = snake(torch.tensor([[[0.7]]])).item()
    assert got == pytest.approx(0.7 + float((frequency * 0.7).sin() ** 2 / scale), rel=1e-6)


def _normed(reference: nn.Module, ours: layers.WeightNormed) -> nn.Module:
    reference = nn.utils.parametrizations.weight_norm(reference)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(sound(*parameter.shape, seed=len(name)))
        ours.direction.copy_(reference.parametrizations.weight.original1)
        ours.magnitude.copy_(reference.parametrizations.weight.original0)
        ours.bias.copy_(reference.bias)
    return reference


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(7, 1, 9, 3), (4, 2, 1, 1), (6, 3, 2, 1)])
def test_convolution_is_pytorchs(kernel: int, stride: int, padding: int, dilation: int) -> None:
    ours = layers.Convolution(3, 4, kernel, stride=stride, padding=padding, dilation=dilation)
    reference = _normed(nn.Conv1d(3, 4, kernel, stride, padding, dilation), ours)
    x = sound(2, 3, 30)
    torch.testing.assert_close(ours(x), reference(x))


@pytest.mark.parametrize("stride", [2, 3, 10])
def test_transposed_convolution_is_pytorchs_with_whole_strides(stride: int) -> None:
    ours = layers.TransposedConvolution(3, 4, stride)
    padding = (stride + 1) // 2
    reference = _normed(nn.ConvTranspose1d(3, 4, 2 * stride, stride, padding, stride % 2), ours)
    x = sound(2, 3, 5)
    made = ours(x)
    assert made.shape == (2, 4, 5 * stride)
    torch.testing.assert_close(made, reference(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_its_magnitude_along_its_direction(dtype: torch.dtype) -> None:
    part = layers.Convolution(3, 4, 5).to(dtype)
    with torch.no_grad():
        part.magnitude.copy_(sound(4, 1, 1, seed=2))
    norm = part.direction.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(part.weight(), part.direction * (part.magnitude / norm))


def test_held_weights_are_the_weights_and_end_with_it() -> None:
    unit = layers.ResidualUnit(3, 2)
    x = sound(1, 3, 20)
    with torch.no_grad():
        wanted = unit(x)
        with layers.held_weights(unit):
            assert torch.equal(unit(x), wanted)
            with layers.held_weights(unit):
                pass
            assert unit.dilated.held is not None  # the inner one didn't end the outer one
            unit.dilated.magnitude.mul_(2)
            assert torch.equal(unit(x), wanted)
        assert unit.dilated.held is None
        assert not torch.equal(unit(x), wanted)


def test_held_weights_do_not_stop_gradients() -> None:
    unit = layers.ResidualUnit(3, 1)
    with layers.held_weights(unit):
        unit(sound(1, 3, 20)).sum().backward()
    assert unit.dilated.direction.grad is not None and unit.dilated.direction.grad.abs().sum() > 0


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second = layers.Convolution(2, 3, 5), layers.Convolution(2, 3, 5)
    assert not torch.equal(first.direction, second.direction)
    for part in (first, second):
        part.reset(torch.Generator().manual_seed(3))
    assert torch.equal(first.direction, second.direction)
    torch.testing.assert_close(first.weight(), first.direction)  # a fresh magnitude is the direction's own norm
    assert first.weight().abs().max() <= 10**-0.5


LAYERS = st.one_of(
    st.builds(
        lambda kernel, dilation: layers.Convolution(1, 1, 2 * kernel + 1, padding=kernel * dilation, dilation=dilation),
        st.integers(0, 3),
        st.integers(1, 4),
    ),
    st.builds(
        lambda s: layers.Convolution(1, 1, 2 * s, stride=s, padding=(s + 1) // 2),
        st.integers(2, 5),
    ),
    st.builds(lambda s: layers.TransposedConvolution(1, 1, s), st.integers(2, 5)),
    st.builds(lambda d: layers.ResidualUnit(1, d), st.integers(1, 3)),
    st.builds(lambda s: layers.EncoderBlock(1, 1, s, (1, 3)), st.integers(2, 4)),
    st.builds(lambda s: layers.DecoderBlock(1, 1, s, (1, 3)), st.integers(2, 4)),
)


@settings(deadline=None, max_examples=60)
@given(layer=LAYERS, at=st.floats(0, 1))
def test_reads_are_just_what_outputs_depend_on(layer: Any, at: float) -> None:
    """By derivatives: outside of the interval they are 0, and at both of its ends they aren't."""
    layer = layer.double()
    generator = torch.Generator().manual_seed(0)
    for part in layer.modules():
        if isinstance(part, layers.WeightNormed):
            part.reset(generator)
    time = 240
    x = torch.randn(1, 1, time, dtype=torch.float64, generator=generator).requires_grad_()
    y = layer(x)
    place = y.shape[2] // 3 + int(at * (y.shape[2] // 3))
    first, last = layer.reads((place, place + 1))
    y[0, 0, place].backward()
    assert x.grad is not None
    heard = x.grad[0, 0].nonzero()[:, 0]
    assert (first, last) == (int(heard[0]), int(heard[-1]) + 1)
