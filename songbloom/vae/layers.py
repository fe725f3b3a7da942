"""The layers of the VAE: Snake activations, weight-normed convolutions, residual units and the blocks that resample.

Source: Evans et al. 2024, *Stable Audio Open*, section 3.1 (the autoencoder); Kumar et al. 2023, *High-Fidelity Audio
Compression with Improved RVQGAN* (its residual units); Ziyin et al. 2020 (Snake) and Lee et al. 2023, *BigVGAN* (its
second parameter); Salimans & Kingma 2016 (weight normalisation).

Tensors are ``[N, C, T]``. Every layer but the activations, which look at one moment, tells by ``reads`` which of its
inputs an interval of its outputs depends on; that is what makes work in pieces exact (:mod:`songbloom.vae.spans`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Interval = tuple[int, int]  # first moment, and one past the last; may reach beyond the signal's ends

SNAKE_FLOOR = 1e-9  # keeps the division finite; part of the published models' definition


def snake_reference(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``x + sin²(e^alpha x) / (e^beta + 1e-9)`` by PyTorch's own derivative; what :class:`Snake` must agree with."""
    frequency, scale = alpha.exp()[:, None], beta.exp()[:, None]
    return x + (frequency * x).sin().square() / (scale + SNAKE_FLOOR)


class _Snake(torch.autograd.Function):
    """:func:`snake_reference` that keeps ``x`` alone for the derivative, where autograd keeps five tensors like it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, beta)
        wave = (alpha.exp()[:, None] * x).sin_().square_()
        return wave.mul_(1 / (beta.exp()[:, None] + SNAKE_FLOOR)).add_(x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, beta = ctx.saved_tensors
        gradient = gradients[0]
        frequency, scale = alpha.exp()[:, None], beta.exp()[:, None]
        height = 1 / (scale + SNAKE_FLOOR)
        angle = 2 * frequency * x
        slope = angle.sin().mul_(frequency * height)  # of the wave, by x
        by_alpha = (slope * x * gradient).sum(dim=(0, 2))
        by_beta = ((angle.cos_() - 1).mul_(0.5 * scale * height * height) * gradient).sum(dim=(0, 2))
        return (slope.add_(1) * gradient).to(x.dtype), by_alpha.to(alpha.dtype), by_beta.to(beta.dtype)


class Snake(nn.Module):
    """``x + sin²(e^alpha x) / (e^beta + 1e-9)``, ``alpha`` and ``beta`` one a channel, zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Snake.apply(x, self.alpha, self.beta))


class WeightNormed(nn.Module):
    """The base of convolutions whose weight is ``magnitude * direction / |direction|``, a norm for each first index.

    Published files store both factors, so both are kept.

    Args:
        shape: of the weight; its first index runs over outputs, or over inputs where the convolution is transposed.
        fan_in: inputs that one output is made of; the first weights are uniform in ±1/sqrt(fan_in).
        bias: of how many outputs, or None without.
    """

    def __init__(self, shape: Sequence[int], fan_in: float, bias: int | None) -> None:
        super().__init__()
        self.fan_in = fan_in
        self.direction = nn.Parameter(torch.empty(*shape))
        self.magnitude = nn.Parameter(torch.empty(shape[0], *[1] * (len(shape) - 1)))
        self.bias = nn.Parameter(torch.empty(bias)) if bias is not None else None
        self.held: Tensor | None = None
        if not self.direction.is_meta:
            self.reset(None)

    def reset(self, generator: torch.Generator | None) -> None:
        """Draw the weights anew, on the CPU, so that they are the same for every device."""
        bound = 1 / math.sqrt(self.fan_in)
        with torch.no_grad():
            for parameter in (self.direction, self.bias):
                if parameter is not None:
                    drawn = torch.rand(parameter.shape, generator=generator, device="cpu")
                    parameter.copy_((drawn * 2 - 1) * bound)
            self.magnitude.copy_(self._norm())

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.direction, dim=tuple(range(1, self.direction.ndim)), keepdim=True)

    def weight(self) -> Tensor:
        """The weight as the convolution uses it."""
        if self.held is not None and not torch.is_grad_enabled():
            return self.held
        # PyTorch's own way of summing the norm: published numbers are met several times as closely as with another.
        return torch._weight_norm(self.direction, self.magnitude, 0)


@contextmanager
def held_weights(module: nn.Module) -> Iterator[None]:
    """Within it, all convolutions below ``module`` put their weights together once instead of at each call."""
    parts = [part for part in module.modules() if isinstance(part, WeightNormed) and part.held is None]
    try:
        with torch.no_grad():
            for part in parts:
                part.held = part.weight()
        yield
    finally:
        for part in parts:
            part.held = None


class Convolution(WeightNormed):
    """A weight-normed convolution, padded with zeros by ``padding`` at both ends."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__((outputs, inputs, kernel), inputs * kernel, outputs if bias else None)
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)

    def reads(self, interval: Interval) -> Interval:
        first = interval[0] * self.stride - self.padding
        last = (interval[1] - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1)
        return first, last + 1

    def operations(self) -> float:
        """Multiplications and additions an output moment."""
        return 2 * self.direction.numel()


class TransposedConvolution(WeightNormed):
    """A weight-normed transposed convolution that makes ``T * stride`` of ``T`` moments.

    Its kernel is twice the stride and what it makes is cut by half a stride (rounded up) at both ends; after an odd
    stride that is one moment too many, which is given back at the right.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__((inputs, outputs, 2 * stride), inputs * 2, outputs)
        self.kernel, self.stride, self.padding = 2 * stride, stride, math.ceil(stride / 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, self.stride, self.padding, self.stride % 2)

    def reads(self, interval: Interval) -> Interval:
        first = -((self.kernel - 1 - interval[0] - self.padding) // self.stride)  # rounded up
        last = (interval[1] - 1 + self.padding) // self.stride
        return first, last + 1

    def operations(self) -> float:
        """Multiplications and additions an input moment."""
        return 2 * self.direction.numel()


class ResidualUnit(nn.Module):
    """``x + pointwise(snake(dilated(snake(x))))``; the dilated kernel is 7 wide."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first_activation = Snake(width)
        self.dilated = Convolution(width, width, 7, padding=3 * dilation, dilation=dilation)
        self.second_activation = Snake(width)
        self.pointwise = Convolution(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.pointwise(self.second_activation(self.dilated(self.first_activation(x))))
        return x + changed if changed.requires_grad else changed.add_(x)

    def reads(self, interval: Interval) -> Interval:
        return self.dilated.reads(interval)  # no narrower than the interval itself, which the sum reads


class EncoderBlock(nn.Module):
    """Residual units, then a strided convolution: ``[N, inputs, T]`` → ``[N, outputs, T / stride]``."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(inputs, dilation) for dilation in dilations)
        self.activation = Snake(inputs)
        self.resample = Convolution(inputs, outputs, 2 * stride, stride=stride, padding=math.ceil(stride / 2))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return self.resample(self.activation(x))

    def reads(self, interval: Interval) -> Interval:
        return reads_of([*self.units, self.resample], interval)


class DecoderBlock(nn.Module):
    """A transposed convolution, then residual units: ``[N, inputs, T]`` → ``[N, outputs, T * stride]``."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.activation = Snake(inputs)
        self.resample = TransposedConvolution(inputs, outputs, stride)
        self.units = nn.ModuleList(ResidualUnit(outputs, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resample(self.activation(x))
        for unit in self.units:
            x = unit(x)
        return x

    def reads(self, interval: Interval) -> Interval:
        return reads_of([self.resample, *self.units], interval)


def reads_of(layers: Sequence[nn.Module], interval: Interval) -> Interval:
    """Which inputs of ``layers``, one after another, an interval of their outputs depends on."""
    for layer in reversed(layers):
        interval = cast(Any, layer).reads(interval)
    return interval
