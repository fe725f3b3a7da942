"""One-dimensional convolutions, laid out for speed.

Tensors are ``[N, C, T]`` to the outside, but keep the channels of one moment side by side in memory (as ``[N, T, C]``
lies): the vendors' kernels are up to several times faster on that layout, and the codebook wants one row a moment
anyway. PyTorch has such kernels for images, so a signal goes by as an image of height 1.

Plain ``torch.nn.functional.conv1d`` and ``conv_transpose1d`` are the references; ``tests/vqvae/test_convolution.py``
holds that these functions and their derivatives agree with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.vqvae import rows


def _as_image(x: Tensor) -> Tensor:
    """``[N, C, T]`` → ``[N, C, 1, T]`` with channels side by side in memory (no copy if they lie so already)."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """``[N, C, T]`` → contiguous ``[N, T, C]`` (no copy if channels lie side by side already)."""
    return x.transpose(1, 2).contiguous()


class Convolution(nn.Conv1d):
    """``nn.Conv1d`` on channels side by side.

    Either of stride 1, dilated and padded to its own length, or strided with a kernel of twice the stride, padded by
    half of it (rounded up).
    """

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if self.in_channels == 1 and dilation == 1:  # one product a frame, which leaves channels side by side at once
            frames = F.pad(x[:, 0], (padding, padding)).unfold(-1, self.kernel_size[0], stride)
            return F.linear(frames, self.weight[:, 0], self.bias).transpose(1, 2)
        if self.bias is not None and rows.usable(x):
            if stride == 1:
                return rows.convolve(_rows(x), self.weight, self.bias, dilation).transpose(1, 2)
            if x.shape[2] % stride == 0:
                return rows.downsample(_rows(x), self.weight, self.bias, stride, padding).transpose(1, 2)
        image = F.conv2d(_as_image(x), self.weight.unsqueeze(2), self.bias, (1, stride), (0, padding), (1, dilation))
        return image.squeeze(2)


class TransposedConvolution(nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` on channels side by side: the transpose of a strided :class:`Convolution`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        if self.bias is not None and rows.usable(x):
            return rows.upsample(_rows(x), self.weight, self.bias, stride, padding).transpose(1, 2)
        image = F.conv_transpose2d(
            _as_image(x), self.weight.unsqueeze(2), self.bias, (1, stride), (0, padding), (0, self.output_padding[0])
        )
        return image.squeeze(2)


def residual(x: Tensor, blocks: Sequence[tuple[Convolution, Convolution]], scale: float) -> Tensor:
    """``x + scale * pointwise(relu(dilated(relu(x))))`` for each ``(dilated, pointwise)`` in turn, on ``[N, C, T]``."""
    if rows.usable(x):
        weights = [
            (dilated.weight, cast(Tensor, dilated.bias), pointwise.weight, cast(Tensor, pointwise.bias))
            for dilated, pointwise in blocks
        ]
        dilations = [dilated.dilation[0] for dilated, _ in blocks]
        return rows.residual_blocks(_rows(x), weights, dilations, scale).transpose(1, 2)
    for dilated, pointwise in blocks:
        branch = pointwise(F.relu(dilated(F.relu(x)), inplace=True))
        x = x + branch if scale == 1.0 else torch.add(x, branch, alpha=scale)
    return x


def upsample_and_project(x: Tensor, upsample: nn.ConvTranspose1d, project: nn.Conv1d) -> Tensor:
    """``project(upsample(x))`` in one step, for a projection of kernel 3 to few channels.

    Nothing non-linear stands between the two, so they are one transposed convolution whose kernel is two longer. That
    spares the widest signal of all, at the audio's own rate. Only the first and the last moment differ: there the
    projection sees zeros where the longer kernel would go on, so what it adds is taken off again.

    Args:
        x: ``[N, C, T]``.
        upsample: kernel ``2 * stride``, as :func:`songbloom.vqvae.blocks.upsampling_conv` makes it.
        project: kernel 3, padding 1, stride 1.

    Returns:
        ``[N, project.out_channels, T * stride]``.
    """
    stride, padding = upsample.stride[0], int(upsample.padding[0])
    up, out = upsample.weight, project.weight  # [C, M, 2 * stride], [O, M, 3]
    kernel = F.conv1d(
        up, out, padding=2
    )  # [C, O, 2 * stride + 2]: tap j of one and tap e of the other meet at j - e + 2
    up_bias = up.new_zeros(up.shape[1]) if upsample.bias is None else upsample.bias
    edge = torch.einsum("omk,m->ok", out, up_bias)  # what the upsampled bias adds through each tap
    bias = edge.sum(dim=1) if project.bias is None else edge.sum(dim=1) + project.bias
    whole = _overlap_add(x, kernel, stride)[..., padding + 1 :][..., : x.shape[2] * stride] + bias[:, None]
    before = x[:, :, 0] @ (up[:, :, padding - 1] @ out[:, :, 0].T)
    after = x[:, :, -1] @ (up[:, :, stride + padding] @ out[:, :, 2].T)
    first = F.pad((before + edge[:, 0])[:, :, None], (0, whole.shape[2] - 1))
    last = F.pad((after + edge[:, 2])[:, :, None], (whole.shape[2] - 1, 0))
    return whole - first - last


def _overlap_add(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Transposed convolution to few channels: ``x [N, C, T]``, ``kernel [C, O, K]`` → ``[N, O, …]``, uncropped.

    One product gives every moment's whole contribution; they are then added, shifted by whole strides.
    """
    width, channels, size = kernel.shape
    shifts = -(-size // stride)
    kernel = F.pad(kernel, (0, shifts * stride - size)).reshape(width, -1)
    batch, time = x.shape[0], x.shape[2]
    parts = F.linear(x.transpose(1, 2), kernel.T).view(batch, time, channels, shifts, stride)
    frames = [F.pad(parts[:, :, :, shift], (0, 0, 0, 0, shift, shifts - 1 - shift)) for shift in range(shifts)]
    return torch.stack(frames).sum(dim=0).transpose(1, 2).flatten(2)
