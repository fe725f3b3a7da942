"""Convolutions as plain matrix products over rows, for float32 on the CPU, with derivatives.

A signal is ``[N, T, C]``, contiguous: a row a moment. A convolution of stride 1 is one product a tap, of the rows
shifted by the dilation; a strided one of kernel ``2 * stride`` is two products, of the rows taken ``stride`` at a time.
Nothing is copied or reordered for either. Rows go by in pieces: a piece stays in a core's cache from one product to the
next, and each thread takes pieces of its own (:mod:`songbloom.vqvae.workers`). For long signals of few channels this is
faster than PyTorch's own convolutions, above all in training (``benchmarks/vqvae.py`` measures both).

Items of a batch that are shorter than a piece are laid end to end with rows of zeros between, which stand for the
padding of both neighbours, so that few long products do the work of many short ones.

What the pieces add up to is summed in their order, so results don't depend on which thread was faster.

The references are ``torch.nn.functional.conv1d`` and ``conv_transpose1d`` (``tests/vqvae/test_convolution.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from songbloom.vqvae.workers import each, scratch

PIECE_NUMBERS = 1 << 19  # numbers of one signal that a thread works on at once: 2 megabytes, a core's cache
SHORTEST_PIECE = 1024  # rows; shorter ones aren't worth handing out


def usable(x: Tensor) -> bool:
    """Whether this file's functions apply: float32 on the CPU, outside autocast and compilation."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class Piece(NamedTuple):
    """Rows ``start`` to ``end`` of one item of the batch."""

    item: int
    start: int
    end: int


def _piece_rows(total: int, width: int) -> int:
    """Rows a piece: few enough for the cache and for all threads to have some."""
    share = -(-total // torch.get_num_threads())
    return max(SHORTEST_PIECE, min(share, PIECE_NUMBERS // width))


def _pieces(items: int, total: int, width: int) -> list[Piece]:
    rows = _piece_rows(total, width)
    return [Piece(i, start, min(total, start + rows)) for i in range(items) for start in range(0, total, rows)]


def _end_to_end(x: Tensor, gap: int, width: int) -> tuple[Tensor, int]:
    """Items of ``x [N, T, C]`` laid end to end with ``gap`` rows of zeros after each, if that pays.

    Returns:
        ``[1, N * (T + gap), C]`` and ``T + gap``, or ``x`` itself and ``T``.
    """
    items, total, channels = x.shape
    if items == 1 or gap > total // 4 or total >= _piece_rows(items * total, width):
        return x, total
    return Lay.apply(x, gap).view(1, -1, channels), total + gap


def _apart(x: Tensor, items: int, length: int) -> Tensor:
    """The items again: what :func:`_end_to_end` did, undone for a result of ``length`` rows an item."""
    return x if len(x) == items else Lift.apply(x.view(items, -1, x.shape[2]), length)


def _laid(x: Tensor, total: int) -> Tensor:
    out = x.new_empty(len(x), total, x.shape[2])
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = 0
    return out


class Lay(torch.autograd.Function):
    """``gap`` rows of zeros after each item, without writing the rest twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gap: int) -> Tensor:
        ctx.length = x.shape[1]
        return _laid(x, x.shape[1] + gap)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][:, : ctx.length].contiguous(), None


class Lift(torch.autograd.Function):
    """The transpose of :class:`Lay`: the first ``length`` rows of each item."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: int) -> Tensor:
        ctx.total = x.shape[1]
        return x[:, :length].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _laid(gradients[0], ctx.total), None


# ---------------------------------------------------------------------------------------------------- stride 1


def convolve(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Convolution of stride 1 and odd kernel, padded to its own length.

    ``x [N, T, C]``, ``weight [O, C, K]`` (as ``nn.Conv1d``), ``bias [O]`` → ``[N, T, O]``.
    """
    laid, _ = _end_to_end(x, weight.shape[2] // 2 * dilation, max(weight.shape[:2]))
    return _apart(Convolve.apply(laid, weight, bias, dilation), *x.shape[:2])


def _shifts(taps: int, dilation: int) -> list[int]:
    """How far each tap looks ahead."""
    return [(tap - taps // 2) * dilation for tap in range(taps)]


def _overlap(start: int, end: int, shift: int, total: int) -> tuple[int, int]:
    """The part of rows ``start`` to ``end`` whose shifted rows exist."""
    return max(start, -shift), min(end, total - shift)


def _convolve_into(
    out: Tensor, signal: Tensor, first: int, start: int, taps: Tensor, bias: Tensor | None, dilation: int, total: int
) -> None:
    """Rows ``start …`` of the convolution into ``out``; ``signal`` holds the rows from ``first`` that they look at."""
    end, middle = start + len(out), len(taps) // 2  # the middle tap finds a row for each, so it comes first
    same = signal[start - first : end - first]
    if bias is None:
        torch.mm(same, taps[middle], out=out)
    else:
        torch.addmm(bias, same, taps[middle], out=out)
    for tap, shift in enumerate(_shifts(len(taps), dilation)):
        low, high = _overlap(start, end, shift, total)
        if shift and low < high:
            out[low - start : high - start].addmm_(signal[low + shift - first : high + shift - first], taps[tap])


def _taps_gradient(
    d_taps: Tensor, signal: Tensor, first: int, d_out: Tensor, start: int, dilation: int, total: int
) -> None:
    """What ``d_out`` (of rows ``start …``) means for the taps, into ``d_taps [K, C, O]``; ``signal`` as above."""
    for tap, shift in enumerate(_shifts(len(d_taps), dilation)):
        low, high = _overlap(start, start + len(d_out), shift, total)
        if low < high:
            seen = signal[low + shift - first : high + shift - first]
            torch.mm(seen.t(), d_out[low - start : high - start], out=d_taps[tap])
        else:
            d_taps[tap].zero_()


def _taps(weight: Tensor) -> Tensor:
    """``[O, C, K]`` → ``[K, C, O]``."""
    return weight.permute(2, 1, 0).contiguous()


def _taps_back(weight: Tensor) -> Tensor:
    """Taps ``[K, O, C]`` of the convolution that takes gradients of a convolution's output to its input."""
    return weight.permute(2, 0, 1).flip(0).contiguous()


class Convolve(torch.autograd.Function):
    """See :func:`convolve`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        taps, out, total = _taps(weight), x.new_empty(*x.shape[:2], weight.shape[0]), x.shape[1]

        def work(piece: Piece) -> None:
            item, start, end = piece
            _convolve_into(out[item, start:end], x[item], 0, start, taps, bias, dilation, total)

        each(work, _pieces(len(x), total, max(weight.shape[:2])))
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_out, total, dilation = gradients[0].contiguous(), x.shape[1], ctx.dilation
        taps, d_x = _taps_back(weight), torch.empty_like(x)

        def work(piece: Piece) -> Tensor:
            item, start, end = piece
            _convolve_into(d_x[item, start:end], d_out[item], 0, start, taps, None, dilation, total)
            d_taps = x.new_empty(weight.shape[2], weight.shape[1], weight.shape[0])
            _taps_gradient(d_taps, x[item], 0, d_out[item, start:end], start, dilation, total)
            return d_taps

        d_taps = torch.stack(each(work, _pieces(len(x), total, max(weight.shape[:2])))).sum(dim=0)
        return d_x, d_taps.permute(2, 1, 0), d_out.sum(dim=(0, 1)), None


# ------------------------------------------------------------------------------------------- residual blocks


def residual_blocks(x: Tensor, weights: Sequence[tuple[Tensor, ...]], dilations: Sequence[int], scale: float) -> Tensor:
    """Residual blocks one after another: ``x + scale * pointwise(relu(dilated(relu(x))))`` each.

    A piece goes through several blocks while it is in the cache, with as many rows around it as the blocks together
    look at, which are computed twice; so only so many blocks go together that those rows stay few.

    Args:
        x: ``[N, T, C]``.
        weights: a block: ``[H, C, 3]`` and ``[H]`` of the dilated convolution, ``[C, H, 1]`` and ``[C]`` of the
            pointwise one.
        dilations: one a block.
        scale: of every branch.
    """
    if not weights:
        return x
    items, length, width = len(x), x.shape[1], max(weights[0][0].shape[:2])
    x, period = _end_to_end(x, max(dilations), width)
    rows = _piece_rows(x.shape[1], width)
    begin, reach = 0, 0
    for index, dilation in enumerate(dilations):
        reach += dilation
        if index > begin and rows < x.shape[1] and reach > rows // 16:
            x = _apply_blocks(x, (length, period), weights[begin:index], dilations[begin:index], scale)
            begin, reach = index, dilation
    return _apart(_apply_blocks(x, (length, period), weights[begin:], dilations[begin:], scale), items, length)


def _apply_blocks(
    x: Tensor,
    layout: tuple[int, int],
    weights: Sequence[tuple[Tensor, ...]],
    dilations: Sequence[int],
    scale: float,
) -> Tensor:
    flat = (tensor for block in weights for tensor in block)
    return ResidualBlocks.apply(x, layout, tuple(dilations), scale, *flat)


def _clear_gaps(rows: Tensor, first: int, layout: tuple[int, int]) -> None:
    """Put zeros between the items in ``rows``, which begin at row ``first``.

    ``layout`` is an item's length, and how far apart items begin.
    """
    length, period = layout
    if length == period:
        return
    for item in range(first // period, (first + len(rows)) // period + 1):
        rows[max(0, item * period + length - first) : max(0, (item + 1) * period - first)].zero_()


def _rectified(rows: Tensor, first: int, low: int, high: int, dilation: int, total: int) -> tuple[Tensor, int]:
    """Rectified rows ``low`` to ``high`` with those that a convolution looks at around them; where they begin.

    ``rows`` begin at row ``first``.
    """
    begin, end = max(0, low - dilation), min(total, high + dilation)
    room = scratch("rectified", end - begin, rows.shape[1])
    return torch.clamp_min(rows[begin - first : end - first], 0, out=room), begin


class ResidualBlocks(torch.autograd.Function):
    """Some residual blocks at once (see :func:`residual_blocks`).

    Keeps each block's input and hidden rows for the derivative, and makes the rectified input again. Where items lie
    end to end, a block's output is cleared between them, which is all that the backward pass needs, too: the gradient
    there is zero on its way in, and stays so.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layout: tuple[int, int], dilations: tuple[int, ...], scale: float, *weights: Tensor
    ) -> Tensor:
        learning, count, total = any(ctx.needs_input_grad), len(dilations), x.shape[1]
        width, hidden_width = x.shape[2], weights[0].shape[0]
        # Where learning, what every block gets and what it hides; pieces write their own rows only.
        kept = [torch.empty_like(x) for _ in range(count - 1 if learning else 0)]
        hiddens = [x.new_empty(*x.shape[:2], hidden_width) for _ in range(count if learning else 0)]
        out = torch.empty_like(x)
        blocks = [
            (_taps(weights[4 * i]), weights[4 * i + 1], weights[4 * i + 2][:, :, 0].t(), scale * weights[4 * i + 3])
            for i in range(count)
        ]

        def work(piece: Piece) -> None:
            item, start, end = piece
            current, first, ahead = x[item], 0, sum(dilations)
            for index, (taps, bias, mix, added) in enumerate(blocks):
                ahead -= dilations[index]  # how far the blocks after this one look
                low, high = max(0, start - ahead), min(total, end + ahead)
                own = slice(start - low, end - low)
                signal, begin = _rectified(current, first, low, high, dilations[index], total)
                inner = scratch("hidden", high - low, hidden_width)
                _convolve_into(inner, signal, begin, low, taps, bias, dilations[index], total)
                inner.relu_()
                if learning:
                    hiddens[index][item, start:end] = inner[own]
                last = index == count - 1
                result = out[item, low:high] if last else scratch(f"result {index % 2}", high - low, width)
                torch.add(current[low - first : high - first], added, out=result).addmm_(inner, mix, alpha=scale)
                _clear_gaps(result, low, layout)
                if learning and not last:
                    kept[index][item, start:end] = result[own]
                current, first = result, low

        each(work, _pieces(len(x), total, max(width, hidden_width)))
        if learning:
            ctx.save_for_backward(x, *kept, *hiddens, *weights)
            ctx.settings = dilations, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dilations, scale = ctx.settings
        count = len(dilations)
        saved = ctx.saved_tensors  # once: under activation checkpointing this computes them again
        inputs, hiddens, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        x, d_out = inputs[0], gradients[0].contiguous()
        total, width, hidden_width = x.shape[1], x.shape[2], weights[0].shape[0]
        d_x = torch.empty_like(x)
        backs = [_taps_back(weights[4 * i]) for i in range(count)]
        mixes = [weights[4 * i + 2][:, :, 0] * scale for i in range(count)]
        mask = torch.ops.aten.threshold_backward.grad_input

        def work(piece: Piece) -> tuple[Tensor, ...]:
            item, start, end = piece
            taps = x.new_empty(count, weights[0].shape[2], width, hidden_width)
            mix, bias, added = (
                x.new_empty(count, *shape) for shape in ((width, hidden_width), (hidden_width,), (width,))
            )
            current, first, behind = d_out[item], 0, sum(dilations)
            for index in reversed(range(count)):
                low, high = max(0, start - behind), min(total, end + behind)
                own = slice(start - low, end - low)  # the rows around the piece are other pieces' to learn from
                part, inner = current[low - first : high - first], hiddens[index][item, low:high]
                d_inner = torch.mm(part, mixes[index], out=scratch("hidden", high - low, hidden_width))
                mask(d_inner, inner, 0, grad_input=d_inner)
                torch.mm(part[own].t(), inner[own], out=mix[index])
                torch.sum(part[own], dim=0, out=added[index])
                torch.sum(d_inner[own], dim=0, out=bias[index])
                signal, begin = _rectified(inputs[index][item], 0, start, end, dilations[index], total)
                _taps_gradient(taps[index], signal, begin, d_inner[own], start, dilations[index], total)
                behind -= dilations[index]  # how far the blocks before this one look
                to, until = max(0, start - behind), min(total, end + behind)
                result = scratch(f"result {index % 2}", until - to, width) if index else d_x[item, to:until]
                _convolve_into(result, d_inner, low, to, backs[index], None, dilations[index], total)
                mask(result, inputs[index][item, to:until], 0, grad_input=result).add_(part[to - low : until - low])
                current, first = result, to
            return taps, bias, mix, added

        results = each(work, _pieces(len(x), total, max(width, hidden_width)))
        taps, bias, mix, added = (torch.stack(parts).sum(dim=0) for parts in zip(*results, strict=True))
        of_blocks = [
            (taps[i].permute(2, 1, 0), bias[i], scale * mix[i][:, :, None], scale * added[i]) for i in range(count)
        ]
        return d_x, None, None, None, *(gradient for block in of_blocks for gradient in block)


# ---------------------------------------------------------------------------------------------------- strided


def _halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[O, C, 2 * stride]`` → for either half of the kernel ``[stride * C, O]``."""
    both = weight.permute(2, 1, 0).reshape(2, -1, weight.shape[0])
    return both[0], both[1]


def _groups(rows: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """``rows [T, C]`` taken ``stride`` at a time, from ``padding`` rows before the signal to beyond its end.

    Returns:
        the first group (zeros where rows are lacking) ``[1, stride * C]``; those that have all their rows, as a view
        ``[T / stride - 1, stride * C]``; the last group, like the first.
    """
    first, last = (rows.new_zeros(stride, rows.shape[1]) for _ in range(2))
    first[padding:] = rows[: stride - padding]
    last[:padding] = rows[len(rows) - padding :]
    return first.view(1, -1), _inner(rows, stride, padding), last.view(1, -1)


def _inner(rows: Tensor, stride: int, padding: int) -> Tensor:
    return rows[stride - padding : len(rows) - padding].view(-1, stride * rows.shape[1])


def _frames_into(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
    """What the strided convolution makes of ``rows [N, F * stride, C]``, into ``out [N, F, O]``."""
    early, late = _halves(weight)
    frames = out.shape[1]
    groups = [_groups(item, stride, padding) for item in rows]

    def work(piece: Piece) -> None:
        item, start, end = piece
        first, inner, last = groups[item]  # frame f sees group f early and group f + 1 late; inner begins with group 1
        mine = out[item, start:end]
        if bias is None:
            mine.zero_()
        else:
            mine.copy_(bias)
        low, high = max(start, 1), min(end, frames - 1)
        if low < end:
            mine[low - start :].addmm_(inner[low - 1 : end - 1], early)
        if start < high:
            mine[: high - start].addmm_(inner[start:high], late)
        if start == 0:
            mine[:1].addmm_(first, early)
        if end == frames:
            mine[-1:].addmm_(last, late)

    each(work, _pieces(len(out), frames, max(early.shape)))


def _rows_into(rows: Tensor, frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
    """The transpose of :func:`_frames_into`: ``rows [N, F * stride, C]`` from ``frames [N, F, O]``."""
    early, late = (half.t() for half in _halves(weight))
    count, width = frames.shape[1], rows.shape[2]
    grouped = None if bias is None else bias.repeat(stride)

    def work(piece: Piece) -> None:
        item, start, end = piece
        mine, inner = frames[item], _inner(rows[item], stride, padding)
        end = min(end, count - 1)
        if start < end:
            torch.mm(mine[start + 1 : end + 1], early, out=inner[start:end])
            inner[start:end].addmm_(mine[start:end], late)
            if grouped is not None:
                inner[start:end] += grouped

    each(work, _pieces(len(frames), count, max(early.shape)))
    for item in range(len(frames)):
        first = (frames[item, :1] @ early).view(stride, width)[padding:]
        last = (frames[item, -1:] @ late).view(stride, width)[:padding]
        rows[item, : stride - padding] = first if bias is None else first + bias
        rows[item, rows.shape[1] - padding :] = last if bias is None else last + bias


def _strided_gradient(rows: Tensor, frames: Tensor, like: Tensor, stride: int, padding: int) -> Tensor:
    """The derivative by the weight ``[O, C, 2 * stride]``, which is the same for both directions."""
    count = frames.shape[1]
    groups = [_groups(item, stride, padding) for item in rows]

    def work(piece: Piece) -> Tensor:
        item, start, end = piece
        first, inner, last = groups[item]
        mine, end = frames[item], min(end, count - 1)
        gradient = rows.new_empty(2, inner.shape[1], frames.shape[2])
        torch.mm(inner[start:end].t(), mine[start + 1 : end + 1], out=gradient[0])
        torch.mm(inner[start:end].t(), mine[start:end], out=gradient[1])
        if start == 0:
            gradient[0].addmm_(first.t(), mine[:1])
            gradient[1].addmm_(last.t(), mine[-1:])
        return gradient

    width = max(frames.shape[2], stride * rows.shape[2])
    total = torch.stack(each(work, _pieces(len(frames), count, width))).sum(dim=0)
    return total.view(like.shape[2], like.shape[1], like.shape[0]).permute(2, 1, 0)


def downsample(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolution of kernel ``2 * stride``: ``x [N, F * stride, C]``, ``weight [O, C, 2 * stride]`` → ``[N, F, O]``.

    ``padding`` zeros stand before the signal and ``stride - padding`` after it.
    """
    laid, _ = _end_to_end(x, stride, max(weight.shape[:2]))
    return _apart(Downsample.apply(laid, weight, bias, stride, padding), len(x), x.shape[1] // stride)


def upsample(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """The transpose of :func:`downsample`: ``x [N, F, O]``, ``weight [O, C, 2 * stride]`` → ``[N, F * stride, C]``."""
    laid, _ = _end_to_end(x, 1, max(weight.shape[0], stride * weight.shape[1]))
    return _apart(Upsample.apply(laid, weight, bias, stride, padding), len(x), x.shape[1] * stride)


class Downsample(torch.autograd.Function):
    """See :func:`downsample`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        out = x.new_empty(x.shape[0], x.shape[1] // stride, weight.shape[0])
        _frames_into(out, x, weight, bias, stride, padding)
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_out, d_x = gradients[0].contiguous(), torch.empty_like(x)
        _rows_into(d_x, d_out, weight, None, *ctx.geometry)
        d_weight = _strided_gradient(x, d_out, weight, *ctx.geometry)
        return d_x, d_weight, d_out.sum(dim=(0, 1)), None, None


class Upsample(torch.autograd.Function):
    """See :func:`upsample`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        out = x.new_empty(x.shape[0], x.shape[1] * stride, weight.shape[1])
        _rows_into(out, x, weight, bias, stride, padding)
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_out, d_x = gradients[0].contiguous(), torch.empty_like(x)
        _frames_into(d_x, d_out, weight, None, *ctx.geometry)
        d_weight = _strided_gradient(d_out, x, weight, *ctx.geometry)
        return d_x, d_weight, d_out.sum(dim=(0, 1)), None, None
