"""Convolutions as plain matrix products over rows, for float32 on the CPU, with derivatives.

A signal is ``[N, T, C]``, contiguous: a row a moment. A convolution of stride 1 is one product a tap, of the rows
shifted by the dilation; a strided one of kernel ``2 * stride`` is two products, of the rows taken ``stride`` at a time.
Nothing is copied or reordered for either, and rows go by in chunks that stay in the cores' caches from one product to
the next. For long signals of few channels this is faster than PyTorch's own convolutions, above all in training
(``benchmarks/vqvae.py`` measures both).

The references are ``torch.nn.functional.conv1d`` and ``conv_transpose1d`` (``tests/vqvae/test_convolution.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 17  # numbers of one signal that a thread works on at once: half a megabyte


def usable(x: Tensor) -> bool:
    """Whether this file's functions apply: float32 on the CPU, outside autocast and compilation."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _chunks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(64, CHUNK_NUMBERS * torch.get_num_threads() // width)
    for start in range(0, rows, size):
        yield start, min(rows, start + size)


# ---------------------------------------------------------------------------------------------------- stride 1


def _shifts(taps: int, dilation: int) -> list[int]:
    """How far each tap looks ahead; the middle one, which always finds a row, comes first in use."""
    return [(tap - taps // 2) * dilation for tap in range(taps)]


def _overlap(start: int, end: int, shift: int, total: int) -> tuple[int, int]:
    """The part of rows ``start`` to ``end`` whose shifted rows exist."""
    return max(start, -shift), min(end, total - shift)


def _convolve_chunk(
    out: Tensor, signal: Tensor, first: int, start: int, taps: Tensor, bias: Tensor, dilation: int, total: int
) -> None:
    """Rows ``start …`` of the convolution into ``out``; ``signal`` holds the rows from ``first`` that they look at."""
    end, middle = start + len(out), len(taps) // 2
    torch.addmm(bias, signal[start - first : end - first], taps[middle], out=out)
    for tap, shift in enumerate(_shifts(len(taps), dilation)):
        low, high = _overlap(start, end, shift, total)
        if shift and low < high:
            out[low - start : high - start].addmm_(signal[low + shift - first : high + shift - first], taps[tap])


def _convolve_back(
    d_out: Tensor, d_signal: Tensor, signal: Tensor, first: int, start: int, taps: Tensor, d_taps: Tensor, dilation: int
) -> None:
    """Add what ``d_out`` (of rows ``start …``) means for all of ``d_signal`` and for ``d_taps``.

    Chunks come in order, so ``d_signal`` need not be cleared: the middle tap writes the rows that no earlier chunk has
    reached, and only those that this chunk reaches beyond its end are set to zero.
    """
    end, total, middle = start + len(d_out), len(d_signal), len(taps) // 2
    reach = middle * dilation
    fresh = min(end, start + reach) if start else 0  # rows from here on hold nothing yet
    across = taps.transpose(1, 2)
    if start < fresh:
        d_signal[start:fresh].addmm_(d_out[: fresh - start], across[middle])
    if fresh < end:
        torch.mm(d_out[fresh - start :], across[middle], out=d_signal[fresh:end])
    if end < total:
        d_signal[max(end, start + reach if start else 0) : end + reach].zero_()
    for tap, shift in enumerate(_shifts(len(taps), dilation)):
        low, high = _overlap(start, end, shift, total)
        if low < high:
            part = d_out[low - start : high - start]
            d_taps[tap].addmm_(signal[low + shift - first : high + shift - first].t(), part)
            if shift:
                d_signal[low + shift : high + shift].addmm_(part, across[tap])


def _buffers(x: Tensor, weight: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Room for one chunk's rectified input and for its hidden rows."""
    _, rows = next(_chunks(x.shape[1], max(weight.shape[:2])))
    return x.new_empty(min(x.shape[1], rows + 2 * reach), x.shape[2]), x.new_empty(rows, weight.shape[0])


class Convolve(torch.autograd.Function):
    """Convolution of stride 1 and odd kernel, padded to its own length.

    ``x [N, T, C]``, ``weight [O, C, K]`` (as ``nn.Conv1d``), ``bias [O]`` → ``[N, T, O]``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        taps = weight.permute(2, 1, 0).contiguous()
        out = x.new_empty(*x.shape[:2], weight.shape[0])
        total, width = x.shape[1], max(weight.shape[:2])
        for item in range(x.shape[0]):
            for start, end in _chunks(total, width):
                _convolve_chunk(out[item, start:end], x[item], 0, start, taps, bias, dilation, total)
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_out = gradients[0].contiguous()
        taps = weight.permute(2, 1, 0).contiguous()
        d_x, d_taps = torch.empty_like(x), torch.zeros_like(taps)
        for item in range(x.shape[0]):
            for start, end in _chunks(x.shape[1], max(weight.shape[:2])):
                _convolve_back(d_out[item, start:end], d_x[item], x[item], 0, start, taps, d_taps, ctx.dilation)
        return d_x, d_taps.permute(2, 1, 0), d_out.sum(dim=(0, 1)), None


class ResidualBranch(torch.autograd.Function):
    """A whole residual block: ``x + scale * (relu(conv(relu(x))) @ pointwise + bias)``.

    ``x [N, T, C]``; ``weight [H, C, 3]``, ``bias [H]`` of the dilated convolution; ``point [C, H, 1]``, ``point_bias
    [C]`` → ``[N, T, C]``. Keeps the hidden rows for the derivative and makes the rectified input again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        point: Tensor,
        point_bias: Tensor,
        dilation: int,
        scale: float,
    ) -> Tensor:
        taps, mix = weight.permute(2, 1, 0).contiguous(), point[:, :, 0].t()
        total, reach = x.shape[1], len(taps) // 2 * dilation
        learning = any(ctx.needs_input_grad)
        hidden = x.new_empty(*x.shape[:2], weight.shape[0]) if learning else None
        out, added = torch.empty_like(x), scale * point_bias
        rectified, spare = _buffers(x, weight, reach)
        for item in range(x.shape[0]):
            for start, end in _chunks(total, max(weight.shape[:2])):
                first, last = max(0, start - reach), min(total, end + reach)
                signal = torch.clamp_min(x[item, first:last], 0, out=rectified[: last - first])
                inner = hidden[item, start:end] if hidden is not None else spare[: end - start]
                _convolve_chunk(inner, signal, first, start, taps, bias, dilation, total)
                result = torch.add(x[item, start:end], added, out=out[item, start:end])
                result.addmm_(inner.relu_(), mix, alpha=scale)
        if learning:
            ctx.save_for_backward(x, hidden, weight, point)
            ctx.settings = dilation, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, point = ctx.saved_tensors
        dilation, scale = ctx.settings
        taps, mix = weight.permute(2, 1, 0).contiguous(), point[:, :, 0]
        scaled = mix * scale
        d_out, total, reach = gradients[0].contiguous(), x.shape[1], len(taps) // 2 * dilation
        d_x, d_taps, d_bias = torch.empty_like(x), torch.zeros_like(taps), x.new_zeros(weight.shape[0])
        d_mix, d_added = torch.zeros_like(mix), x.new_zeros(x.shape[2])
        rectified, spare = _buffers(x, weight, reach)
        mask = torch.ops.aten.threshold_backward.grad_input
        for item in range(x.shape[0]):
            d_signal, done = d_x[item], 0
            for start, end in _chunks(total, max(weight.shape[:2])):
                part, inner = d_out[item, start:end], hidden[item, start:end]
                d_mix.addmm_(part.t(), inner, alpha=scale)
                d_added += part.sum(dim=0)
                d_inner = torch.mm(part, scaled, out=spare[: end - start])
                mask(d_inner, inner, 0, grad_input=d_inner)
                d_bias += d_inner.sum(dim=0)
                first, last = max(0, start - reach), min(total, end + reach)
                signal = torch.clamp_min(x[item, first:last], 0, out=rectified[: last - first])
                _convolve_back(d_inner, d_signal, signal, first, start, taps, d_taps, dilation)
                ready = slice(done, total if end == total else max(done, end - reach))  # no later row adds to these
                mask(d_signal[ready], x[item, ready], 0, grad_input=d_signal[ready]).add_(d_out[item, ready])
                done = ready.stop
        return d_x, d_taps.permute(2, 1, 0), d_bias, d_mix[:, :, None], scale * d_added, None, None


# ---------------------------------------------------------------------------------------------------- strided


def _halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[O, C, 2 * stride]`` → for either half of the kernel ``[stride * C, O]``."""
    outputs, _, size = weight.shape
    both = weight.permute(2, 1, 0).reshape(2, -1, outputs)
    assert size % 2 == 0
    return both[0], both[1]


def _inner(rows: Tensor, stride: int, padding: int) -> Tensor:
    """Of ``rows [T, C]`` the groups of ``stride`` that have all their rows: a view ``[T / stride - 1, stride * C]``.

    Group ``g`` begins at row ``g * stride - padding``; group 0 and the last lack rows at the signal's ends.
    """
    return rows[stride - padding : len(rows) - padding].view(-1, stride * rows.shape[1])


def _ends(rows: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """The first and the last group, zeros where rows are lacking: ``[1, stride * C]`` each."""
    first, last = (rows.new_zeros(stride, rows.shape[1]) for _ in range(2))
    first[padding:] = rows[: stride - padding]
    last[:padding] = rows[len(rows) - padding :]
    return first.view(1, -1), last.view(1, -1)


def _to_frames(out: Tensor, rows: Tensor, weight: Tensor, stride: int, padding: int) -> None:
    """Add to frames ``out [F, O]`` what the strided convolution makes of ``rows [F * stride, C]``."""
    early, late = _halves(weight)
    first, last = _ends(rows, stride, padding)
    out[:1].addmm_(first, early)
    out[-1:].addmm_(last, late)
    inner = _inner(rows, stride, padding)
    for start, end in _chunks(len(inner), max(inner.shape[1], out.shape[1])):
        out[start + 1 : end + 1].addmm_(inner[start:end], early)
        out[start:end].addmm_(inner[start:end], late)


def _to_rows(rows: Tensor, frames: Tensor, weight: Tensor, stride: int, padding: int) -> None:
    """The transpose of :func:`_to_frames`: write ``rows [F * stride, C]`` from ``frames [F, O]``."""
    early, late = (half.t() for half in _halves(weight))
    inner = _inner(rows, stride, padding)
    for start, end in _chunks(len(inner), max(inner.shape[1], frames.shape[1])):
        torch.mm(frames[start + 1 : end + 1], early, out=inner[start:end])
        inner[start:end].addmm_(frames[start:end], late)
    width = rows.shape[1]
    rows[: stride - padding] = (frames[:1] @ early).view(stride, width)[padding:]
    rows[len(rows) - padding :] = (frames[-1:] @ late).view(stride, width)[:padding]


def _add_weight(d_weight: Tensor, rows: Tensor, frames: Tensor, stride: int, padding: int) -> None:
    """Add to ``d_weight [2, stride * C, O]`` the derivative by the weight, which is the same for both directions."""
    first, last = _ends(rows, stride, padding)
    d_weight[0].addmm_(first.t(), frames[:1])
    d_weight[1].addmm_(last.t(), frames[-1:])
    inner = _inner(rows, stride, padding)
    for start, end in _chunks(len(inner), max(inner.shape[1], frames.shape[1])):
        d_weight[0].addmm_(inner[start:end].t(), frames[start + 1 : end + 1])
        d_weight[1].addmm_(inner[start:end].t(), frames[start:end])


def _as_weight(d_weight: Tensor, like: Tensor) -> Tensor:
    return d_weight.view(like.shape[2], like.shape[1], like.shape[0]).permute(2, 1, 0)


class Downsample(torch.autograd.Function):
    """Convolution of kernel ``2 * stride``: ``x [N, F * stride, C]``, ``weight [O, C, 2 * stride]`` → ``[N, F, O]``.

    ``padding`` zeros stand before the signal and ``stride - padding`` after it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        out = x.new_empty(x.shape[0], x.shape[1] // stride, weight.shape[0]).copy_(bias)
        for item in range(x.shape[0]):
            _to_frames(out[item], x[item], weight, stride, padding)
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_out = gradients[0].contiguous()
        d_x, d_weight = torch.empty_like(x), x.new_zeros(2, weight.shape[2] // 2 * weight.shape[1], weight.shape[0])
        for item in range(x.shape[0]):
            _to_rows(d_x[item], d_out[item], weight, *ctx.geometry)
            _add_weight(d_weight, x[item], d_out[item], *ctx.geometry)
        return d_x, _as_weight(d_weight, weight), d_out.sum(dim=(0, 1)), None, None


class Upsample(torch.autograd.Function):
    """The transpose of :class:`Downsample`: ``x [N, F, O]``, ``weight [O, C, 2 * stride]`` → ``[N, F * stride, C]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        out = x.new_empty(x.shape[0], x.shape[1] * stride, weight.shape[1])
        for item in range(x.shape[0]):
            _to_rows(out[item], x[item], weight, stride, padding)
        out += bias
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_out = gradients[0].contiguous()
        d_x = torch.zeros_like(x)
        d_weight = x.new_zeros(2, weight.shape[2] // 2 * weight.shape[1], weight.shape[0])
        for item in range(x.shape[0]):
            _to_frames(d_x[item], d_out[item], weight, *ctx.geometry)
            _add_weight(d_weight, d_out[item], x[item], *ctx.geometry)
        return d_x, _as_weight(d_weight, weight), d_out.sum(dim=(0, 1)), None, None
