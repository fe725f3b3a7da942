"""Convolutional blocks of the hierarchical VQ-VAE, on ``[batch, channels, time]``.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, appendix B.1 (encoders and decoders of strided
convolutions, each followed or preceded by a stack of dilated residual blocks in the manner of WaveNet).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from songbloom.errors import UserError
from songbloom.vqvae.convolution import Convolution, TransposedConvolution, residual, upsample_and_project


def _check_geometry(down_t: int, stride_t: int) -> None:
    if down_t < 1:
        raise UserError(
            f"down_t is {down_t}: a level must downsample at least once, so set each of downs_t to 1 or more"
        )
    if stride_t < 2:
        raise UserError(
            f"stride_t is {stride_t}: a stride of 1 doesn't downsample, so set each of strides_t to 2 or more"
        )


def downsampling_conv(input_width: int, output_width: int, stride: int) -> Convolution:
    """A convolution of kernel ``2 * stride`` that makes exactly ``T / stride`` frames of ``T``, its multiple.

    The padding is half the stride; half of an odd stride is rounded up, as rounding down would lose a frame.
    """
    return Convolution(input_width, output_width, 2 * stride, stride, padding=(stride + 1) // 2)


def upsampling_conv(input_width: int, output_width: int, stride: int) -> TransposedConvolution:
    """The transpose of :func:`downsampling_conv`: exactly ``T * stride`` frames of ``T``.

    For an odd stride the rounded-up padding takes one frame too many, which ``output_padding`` gives back.
    """
    return TransposedConvolution(
        input_width, output_width, 2 * stride, stride, padding=(stride + 1) // 2, output_padding=stride % 2
    )


class ResidualBlock(nn.Module):
    """``x + scale * pointwise(relu(dilated(relu(x))))`` on ``[N, width, T]``.

    Args:
        width: channels of input and output.
        hidden_width: channels between the two convolutions.
        dilation: dilation of the first convolution (kernel 3).
        zero_out: start the second convolution at zero, so that the block starts as the identity.
        scale: factor of the branch.
    """

    def __init__(
        self, width: int, hidden_width: int, *, dilation: int = 1, zero_out: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dilated = Convolution(width, hidden_width, 3, padding=dilation, dilation=dilation)
        self.pointwise = Convolution(hidden_width, width, 1)
        if zero_out:
            nn.init.zeros_(self.pointwise.weight)
            nn.init.zeros_(cast(Tensor, self.pointwise.bias))

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, [(self.dilated, self.pointwise)], self.scale)


class ResidualOptions(TypedDict, total=False):
    """What may be said of a :class:`ResidualStack` besides its size."""

    m_conv: float
    dilation_growth_rate: int
    dilation_cycle: int | None
    reverse_dilation: bool
    zero_out: bool
    res_scale: bool
    checkpoint: bool


class ResidualStack(nn.Module):
    """``depth`` residual blocks on ``[N, width, T]`` whose dilations grow: block ``i`` has ``growth ** (i mod cycle)``.

    Args:
        width: channels.
        depth: number of blocks.
        m_conv: hidden width of a block as a multiple of ``width``.
        dilation_growth_rate: growth of the dilation from block to block.
        dilation_cycle: start again at dilation 1 after so many blocks (None: never).
        reverse_dilation: largest dilation first.
        zero_out: each block starts as the identity.
        res_scale: multiply each branch by ``1 / sqrt(depth)``.
        checkpoint: in training keep only the blocks' inputs and compute the rest again when gradients are taken.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        m_conv: float = 1.0,
        dilation_growth_rate: int = 1,
        dilation_cycle: int | None = None,
        reverse_dilation: bool = False,
        zero_out: bool = False,
        res_scale: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.scale = depth**-0.5 if res_scale and depth else 1.0
        exponents = [i if dilation_cycle is None else i % dilation_cycle for i in range(depth)]
        if reverse_dilation:
            exponents.reverse()
        self.blocks = nn.ModuleList(
            ResidualBlock(
                width,
                int(m_conv * width),
                dilation=dilation_growth_rate**exponent,
                zero_out=zero_out,
                scale=self.scale,
            )
            for exponent in exponents
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoint and self.training and torch.is_grad_enabled():
            for block in self.blocks:
                x = cast(Tensor, recompute(block, x, use_reentrant=False))
            return x
        blocks = cast(Iterable[ResidualBlock], self.blocks)
        return residual(x, [(block.dilated, block.pointwise) for block in blocks], self.scale)


class DownsamplingStage(nn.Module):
    """One strided convolution, then a residual stack: ``[N, input_width, T]`` → ``[N, width, T / stride]``."""

    def __init__(self, input_width: int, width: int, stride: int, residual: ResidualStack) -> None:
        super().__init__()
        self.resample = downsampling_conv(input_width, width, stride)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.resample(x))


class UpsamplingStage(nn.Module):
    """A residual stack, then one transposed convolution: ``[N, width, T]`` → ``[N, output_width, T * stride]``."""

    def __init__(self, width: int, output_width: int, stride: int, residual: ResidualStack) -> None:
        super().__init__()
        self.residual = residual
        self.resample = upsampling_conv(width, output_width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.residual(x))


class DownsamplingBlock(nn.Module):
    """``[N, input_width, T]`` → ``[N, output_width, T / stride_t ** down_t]``: ``down_t`` stages, then a projection.

    Args:
        input_width: channels that come in.
        output_width: channels that go out.
        down_t: number of stages, at least 1.
        stride_t: stride of each stage, at least 2.
        width: channels inside.
        depth: residual blocks a stage.

    The other arguments are those of :class:`ResidualStack`.

    Raises:
        UserError: ``down_t`` or ``stride_t`` doesn't downsample.
    """

    def __init__(
        self,
        input_width: int,
        output_width: int,
        *,
        down_t: int,
        stride_t: int,
        width: int,
        depth: int,
        **options: Unpack[ResidualOptions],
    ) -> None:
        super().__init__()
        _check_geometry(down_t, stride_t)
        self.stages = nn.ModuleList(
            DownsamplingStage(
                input_width if stage == 0 else width,
                width,
                stride_t,
                ResidualStack(width, depth, **options),
            )
            for stage in range(down_t)
        )
        self.project = Convolution(width, output_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.project(x)


class UpsamplingBlock(nn.Module):
    """``[N, input_width, T]`` → ``[N, output_width, T * stride_t ** down_t]``: a projection, then ``down_t`` stages.

    The mirror of :class:`DownsamplingBlock`; also the upsampling priors' conditioner. Arguments as there.

    Raises:
        UserError: ``down_t`` or ``stride_t`` doesn't upsample.
    """

    def __init__(
        self,
        input_width: int,
        output_width: int,
        *,
        down_t: int,
        stride_t: int,
        width: int,
        depth: int,
        **options: Unpack[ResidualOptions],
    ) -> None:
        super().__init__()
        _check_geometry(down_t, stride_t)
        self.project = Convolution(input_width, width, 3, padding=1)
        self.stages = nn.ModuleList(
            UpsamplingStage(
                width,
                output_width if stage == down_t - 1 else width,
                stride_t,
                ResidualStack(width, depth, **options),
            )
            for stage in range(down_t)
        )

    def forward(self, x: Tensor, output: nn.Conv1d | None = None) -> Tensor:
        """``x``, and with ``output`` (kernel 3, few channels) what that convolution makes of the block's result."""
        x = self.project(x)
        *stages, last = self.stages
        for stage in stages:
            x = stage(x)
        if output is None:
            return last(x)
        last = cast(UpsamplingStage, last)
        return upsample_and_project(last.residual(x), last.resample, output)


class Encoder(nn.Module):
    """Audio ``[N, 1, T]`` → ``[N, emb_width, T / hop_lengths[level]]`` through the blocks of levels 0 to ``level``."""

    def __init__(self, blocks: Sequence[DownsamplingBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """``[N, emb_width, T]`` → audio ``[N, 1, T * hop_lengths[level]]`` through the blocks of ``level`` down to 0."""

    def __init__(self, blocks: Sequence[UpsamplingBlock], emb_width: int, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.output = Convolution(emb_width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks[1:]):
            x = block(x)
        return self.blocks[0](x, self.output)


def reset_convolutions(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolutions below ``module`` again, PyTorch's default way (uniform in ±1/sqrt(fan in)).

    The draws are made on the CPU, so that they are the same for every device.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.ConvTranspose1d)):
            fan_in = part.weight.shape[1] * part.weight.shape[2]
            for parameter in (part.weight, part.bias):
                if parameter is not None:
                    drawn = torch.rand(parameter.shape, generator=generator) * 2 - 1
                    with torch.no_grad():
                        parameter.copy_(drawn / math.sqrt(fan_in))


def operations(module: nn.Module, rate: float) -> tuple[float, float]:
    """Multiplications and additions that the convolutions below ``module`` take.

    Args:
        module: its convolutions run one after another, in the order in which they are registered.
        rate: frames that come in, a sample of audio.

    Returns:
        operations a sample of audio, and the rate that goes out.
    """
    total = 0.0
    for part in module.modules():
        if isinstance(part, nn.Conv1d):
            rate /= part.stride[0]
            total += 2 * part.weight.numel() * rate
        elif isinstance(part, nn.ConvTranspose1d):
            total += 2 * part.weight.numel() * rate
            rate *= part.stride[0]
    return total, rate
