"""Convolutions as plain matrix products over rows, for float32 on the CPU, with derivatives.

A signal is ``[N, T, C]``, contiguous: a row a moment. A convolution of stride 1 is one product a tap, of the rows
shifted by the dilation; a strided one of kernel ``2 * stride`` is two products, of the rows taken ``stride`` at a time.
Nothing is copied or reordered for either, and rows go by in chunks that stay in the cores' caches from one product to
the next. For long signals of few channels this is faster than PyTorch's own convolutions, above all in training
(``benchmarks/vqvae.py`` measures both).

The references are ``torch.nn.functional.conv1d`` and ``conv_transpose1d`` (``tests/vqvae/test_convolution.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 18  # numbers of one signal that a thread works on at once: one megabyte


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
    out: Tensor, signal: Tensor, first: int, start: int, taps: Tensor, bias: Tensor | None, dilation: int, total: int
) -> None:
    """Rows ``start …`` of the convolution into ``out``; ``signal`` holds the rows from ``first`` that they look at."""
    end, middle = start + len(out), len(taps) // 2
    same = signal[start - first : end - first]
    if bias is None:
        torch.mm(same, taps[middle], out=out)
    else:
        torch.addmm(bias, same, taps[middle], out=out)
    for tap, shift in enumerate(_shifts(len(taps), dilation)):
        low, high = _overlap(start, end, shift, total)
        if shift and low < high:
            out[low - start : high - start].addmm_(signal[low + shift - first : high + shift - first], taps[tap])


def _add_taps(
    d_taps: Tensor, signal: Tensor, first: int, d_out: Tensor, start: int, end: int, dilation: int, total: int
) -> None:
    """Add to ``d_taps`` what ``d_out`` (of rows ``start`` to ``end``) means for the taps; ``signal`` as above."""
    for tap, shift in enumerate(_shifts(len(d_taps), dilation)):
        low, high = _overlap(start, end, shift, total)
        if low < high:
            part = d_out[low - start : high - start]
            d_taps[tap].addmm_(signal[low + shift - first : high + shift - first].t(), part)


def _taps(weight: Tensor) -> Tensor:
    """``[O, C, K]`` → ``[K, C, O]``."""
    return weight.permute(2, 1, 0).contiguous()


def _taps_back(weight: Tensor) -> Tensor:
    """Taps ``[K, O, C]`` of the convolution that takes gradients of a convolution's output to its input."""
    return weight.permute(2, 0, 1).flip(0).contiguous()


class Convolve(torch.autograd.Function):
    """Convolution of stride 1 and odd kernel, padded to its own length.

    ``x [N, T, C]``, ``weight [O, C, K]`` (as ``nn.Conv1d``), ``bias [O]`` → ``[N, T, O]``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        taps, out = _taps(weight), x.new_empty(*x.shape[:2], weight.shape[0])
        for item in range(x.shape[0]):
            for start, end in _chunks(x.shape[1], max(weight.shape[:2])):
                _convolve_chunk(out[item, start:end], x[item], 0, start, taps, bias, dilation, x.shape[1])
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_out, total = gradients[0].contiguous(), x.shape[1]
        taps, d_x, d_taps = _taps_back(weight), torch.empty_like(x), torch.zeros_like(_taps(weight))
        for item in range(x.shape[0]):
            for start, end in _chunks(total, max(weight.shape[:2])):
                _convolve_chunk(d_x[item, start:end], d_out[item], 0, start, taps, None, ctx.dilation, total)
                _add_taps(d_taps, x[item], 0, d_out[item, start:end], start, end, ctx.dilation, total)
        return d_x, d_taps.permute(2, 1, 0), d_out.sum(dim=(0, 1)), None


# ------------------------------------------------------------------------------------------- residual blocks


def residual_blocks(x: Tensor, weights: Sequence[tuple[Tensor, ...]], dilations: Sequence[int], scale: float) -> Tensor:
    """Residual blocks one after another: ``x + scale * pointwise(relu(dilated(relu(x))))`` each.

    A chunk of rows goes through several blocks while it is in the cache, with as many rows around it as the blocks
    together look at, which are computed twice; so only so many blocks go together that those rows stay few.

    Args:
        x: ``[N, T, C]``.
        weights: a block: ``[H, C, 3]`` and ``[H]`` of the dilated convolution, ``[C, H, 1]`` and ``[C]`` of the
            pointwise one.
        dilations: one a block.
        scale: of every branch.
    """
    if not weights:
        return x
    _, rows = next(_chunks(x.shape[1], max(weights[0][0].shape[:2])))
    begin, reach = 0, 0
    for index, dilation in enumerate(dilations):
        reach += dilation
        if index > begin and rows < x.shape[1] and reach > rows // 16:
            x = _apply_blocks(x, weights[begin:index], dilations[begin:index], scale)
            begin, reach = index, dilation
    return _apply_blocks(x, weights[begin:], dilations[begin:], scale)


def _apply_blocks(x: Tensor, weights: Sequence[tuple[Tensor, ...]], dilations: Sequence[int], scale: float) -> Tensor:
    return ResidualBlocks.apply(x, tuple(dilations), scale, *(tensor for block in weights for tensor in block))


class ResidualBlocks(torch.autograd.Function):
    """Some residual blocks at once (see :func:`residual_blocks`).

    Keeps each block's input and hidden rows for the derivative, and makes the rectified input again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dilations: tuple[int, ...], scale: float, *weights: Tensor) -> Tensor:
        learning, count = any(ctx.needs_input_grad), len(dilations)
        hidden_width = weights[0].shape[0]
        inputs = [x] + [torch.empty_like(x) for _ in range(count - 1 if learning else 0)]
        hiddens = [x.new_empty(*x.shape[:2], hidden_width) for _ in range(count if learning else 0)]
        out, total = torch.empty_like(x), x.shape[1]
        room = _Room(x, hidden_width, sum(dilations))
        blocks = [
            (_taps(weights[4 * i]), weights[4 * i + 1], weights[4 * i + 2][:, :, 0].t(), scale * weights[4 * i + 3])
            for i in range(count)
        ]
        for item in range(x.shape[0]):
            for start, end in _chunks(total, max(x.shape[2], hidden_width)):
                current, first, ahead = x[item], 0, sum(dilations)
                for index, (taps, bias, mix, added) in enumerate(blocks):
                    ahead -= dilations[index]  # how far the blocks after this one look
                    low, high = max(0, start - ahead), min(total, end + ahead)
                    signal, begin = room.rectify(current, first, low, high, dilations[index], total)
                    inner = hiddens[index][item, low:high] if learning else room.hidden[: high - low]
                    _convolve_chunk(inner, signal, begin, low, taps, bias, dilations[index], total)
                    if index == count - 1:
                        result = out[item, low:high]
                    else:
                        result = (
                            inputs[index + 1][item, low:high] if learning else room.results[index % 2][: high - low]
                        )
                    torch.add(current[low - first : high - first], added, out=result)
                    result.addmm_(inner.relu_(), mix, alpha=scale)
                    current, first = result, low
        if learning:
            ctx.save_for_backward(*inputs, *hiddens, *weights)
            ctx.settings = dilations, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dilations, scale = ctx.settings
        count = len(dilations)
        saved = ctx.saved_tensors  # once: under activation checkpointing this computes them again
        inputs, hiddens, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        x, d_out = inputs[0], gradients[0].contiguous()
        total, hidden_width = x.shape[1], weights[0].shape[0]
        d_x, room = torch.empty_like(x), _Room(x, hidden_width, sum(dilations))
        backs = [_taps_back(weights[4 * i]) for i in range(count)]
        mixes = [weights[4 * i + 2][:, :, 0] * scale for i in range(count)]
        d_blocks = [_BlockGradient(weights[4 * i]) for i in range(count)]
        mask = torch.ops.aten.threshold_backward.grad_input
        for item in range(x.shape[0]):
            for start, end in _chunks(total, max(x.shape[2], hidden_width)):
                current, first, behind = d_out[item], 0, sum(dilations)
                for index in reversed(range(count)):
                    low, high = max(0, start - behind), min(total, end + behind)
                    part, inner = current[low - first : high - first], hiddens[index][item, low:high]
                    d_inner = torch.mm(part, mixes[index], out=room.hidden[: high - low])
                    mask(d_inner, inner, 0, grad_input=d_inner)
                    own = slice(start - low, end - low)  # the rows around the chunk are other chunks' to learn from
                    signal, begin = room.rectify(inputs[index][item], 0, start, end, dilations[index], total)
                    d_blocks[index].add(
                        part[own], inner[own], d_inner[own], signal, begin, start, dilations[index], total
                    )
                    behind -= dilations[index]  # how far the blocks before this one look
                    to, until = max(0, start - behind), min(total, end + behind)
                    result = room.results[index % 2][: until - to] if index else d_x[item, to:until]
                    _convolve_chunk(result, d_inner, low, to, backs[index], None, dilations[index], total)
                    mask(result, inputs[index][item, to:until], 0, grad_input=result).add_(part[to - low : until - low])
                    current, first = result, to
        return d_x, None, None, *(gradient for block in d_blocks for gradient in block.finished(scale))


class _Room:
    """Memory for one chunk and the rows around it, used again from chunk to chunk."""

    def __init__(self, x: Tensor, hidden_width: int, reach: int) -> None:
        _, rows = next(_chunks(x.shape[1], max(x.shape[2], hidden_width)))
        rows = min(x.shape[1], rows + 2 * reach)
        self.rectified = x.new_empty(rows, x.shape[2])
        self.hidden = x.new_empty(rows, hidden_width)
        self.results = x.new_empty(2, rows, x.shape[2])

    def rectify(self, rows: Tensor, first: int, low: int, high: int, dilation: int, total: int) -> tuple[Tensor, int]:
        """Rectified rows ``low`` to ``high`` with those that a convolution looks at around them; where they begin."""
        begin, end = max(0, low - dilation), min(total, high + dilation)
        return torch.clamp_min(rows[begin - first : end - first], 0, out=self.rectified[: end - begin]), begin


class _BlockGradient:
    """The derivatives by one block's weights, gathered chunk by chunk."""

    def __init__(self, weight: Tensor) -> None:
        hidden, width, _ = weight.shape
        self.taps = torch.zeros_like(_taps(weight))
        self.mix, self.bias, self.added = (weight.new_zeros(*shape) for shape in ((width, hidden), (hidden,), (width,)))

    def add(
        self,
        d_out: Tensor,
        inner: Tensor,
        d_inner: Tensor,
        signal: Tensor,
        first: int,
        start: int,
        dilation: int,
        total: int,
    ) -> None:
        self.mix.addmm_(d_out.t(), inner)
        self.added += d_out.sum(dim=0)
        self.bias += d_inner.sum(dim=0)
        _add_taps(self.taps, signal, first, d_inner, start, start + len(d_inner), dilation, total)

    def finished(self, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.taps.permute(2, 1, 0), self.bias, scale * self.mix[:, :, None], scale * self.added


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
