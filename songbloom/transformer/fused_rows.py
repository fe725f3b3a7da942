"""What transformer layers do row by row between their large products, in bfloat16 on a CPU.

Norms, SwiGLU and rotary positions are one pass over memory each, forwards and backwards, computed in float32 and
rounded once (songbloom/transformer/native/half_rows.h), where :func:`songbloom.transformer.halves.usable` says so and
gradients are wanted. torch takes several passes for each, and many of its kernels are slow in bfloat16. A row's numbers
depend on no other row, and nothing depends on the number of threads.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from songbloom.transformer.halves import usable
from songbloom.transformer.native import loader

FEWEST = 2**14  # numbers below which it is torch's
PART, MOST_PARTS = 64, 64  # rows of a norm whose gradients are summed one after the other, at least; and such parts


class _Norm(ctypes.Structure):
    """``struct Norm`` of half_rows.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "branch", "sum", "weight", "bias", "y")),
        *((name, ctypes.c_void_p) for name in ("x_grad", "own_grads", "means", "rates")),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        *((name, ctypes.c_int32) for name in ("parts", "threads")),
        ("eps", ctypes.c_float),
    )


class _SwiGLUs(ctypes.Structure):
    """``struct SwiGLU`` of half_rows.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate_up", "y", "gate_up_grad")),
        *((name, ctypes.c_int64) for name in ("rows", "hidden")),
        ("threads", ctypes.c_int32),
    )


class _HeadsPart(ctypes.Structure):
    """``struct HeadsPart`` of half_rows.h."""

    _fields_ = (("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("song", "head", "position")))


class _Heads(ctypes.Structure):
    """``struct Heads`` of half_rows.h."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        *((name, _HeadsPart) for name in ("query", "key", "value")),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("songs", "positions", "heads", "width", "turned")),
        ("threads", ctypes.c_int32),
    )


@cache
def _library() -> ctypes.CDLL:
    """The library of what is :func:`usable`."""
    library = loader.library("halves")
    assert library is not None
    parts = (_Norm, _SwiGLUs, _Heads)
    assert [library.half_rows_size(which) for which in range(len(parts))] == [ctypes.sizeof(part) for part in parts]
    return library


def _wanted(x: torch.Tensor) -> bool:
    """Whether this is for here; without gradients it is not, as with products of halves."""
    return x.numel() >= FEWEST and usable(x.dtype, x.device) and torch.is_grad_enabled()


def _address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _NormOfSum(torch.autograd.Function):
    """``x + branch`` and its layer norm, or without a bias its RMS norm; x itself, and its norm, without a branch."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        branch: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, branch = x.contiguous(), None if branch is None else branch.contiguous()
        y, total = torch.empty_like(x), x if branch is None else torch.empty_like(x)
        rates = torch.empty(x.shape[:-1])
        means = None if bias is None else torch.empty_like(rates)
        _norm((x, branch, None if branch is None else total, weight, bias, y, None, None, means, rates), eps)
        ctx.save_for_backward(total, weight, bias, means, rates)  # type: ignore[arg-type]  # may be None
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, means, rates = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        of_sum, of_y = (None if each is None else each.contiguous() for each in gradients)
        if of_y is None:
            return of_sum, of_sum if wanted[1] else None, None, None, None
        x_grad, parts = torch.empty_like(x), _parts(x)
        own = torch.zeros(parts, 1 if bias is None else 2, x.shape[-1])
        _norm((x, None, of_sum, weight, bias, of_y, x_grad, own, means, rates), 0.0, backward=True)
        of_own = own.sum(0)
        return (
            x_grad if wanted[0] else None,
            x_grad if wanted[1] else None,
            of_own[0] if wanted[2] else None,
            of_own[1] if wanted[3] else None,
            None,
        )


def _parts(x: torch.Tensor) -> int:
    rows = x.numel() // x.shape[-1]
    return min(-(-rows // PART), MOST_PARTS)


def _norm(tensors: tuple[torch.Tensor | None, ...], eps: float, *, backward: bool = False) -> None:
    """One direction of a norm of the first of these, which are the tensors of ``struct Norm``."""
    x = tensors[0]
    assert x is not None
    shape = (x.numel() // x.shape[-1], x.shape[-1])
    norm = _Norm(*map(_address, tensors), *shape, _parts(x), torch.get_num_threads(), eps)
    _library().half_rows_norm(ctypes.byref(norm), backward)


def _norm_of_sum(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    own = (weight,) if bias is None else (weight, bias)
    if not _wanted(x) or any(each.dtype != torch.float32 or each.device != x.device for each in own):
        return None
    if any(each.shape != x.shape[-1:] or not each.is_contiguous() for each in own):
        return None  # torch says what is wrong with that
    if branch is not None and (branch.shape != x.shape or branch.dtype != x.dtype or branch.device != x.device):
        return None
    return _NormOfSum.apply(x, branch, weight, bias, eps)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, *, branch: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """``x + branch`` and its layer norm over the last axis; without a branch x, whose other gradients are added where
    the norm's is computed, and its norm.

    Args:
        x, branch: ``[..., width]``.
        weight, bias: ``[width]``, float32.

    Returns:
        Two tensors like x; None where it is not for here.
    """
    return _norm_of_sum(x, branch, weight, bias, eps)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, branch: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same with an RMS norm (Zhang and Sennrich 2019)."""
    return _norm_of_sum(x, branch, weight, None, eps)


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) · up`` of contiguous ``[..., gate and up]``."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, gate_up: torch.Tensor) -> torch.Tensor:
        y = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        _gate(gate_up, y, None)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        made = torch.empty_like(gate_up)
        _gate(gate_up, gradients[0].contiguous(), made)
        return made


def _gate(gate_up: torch.Tensor, y: torch.Tensor, gate_up_grad: torch.Tensor | None) -> None:
    """One direction of SwiGLU: the backward one where there is a last tensor."""
    hidden = y.shape[-1]
    step = _SwiGLUs(*map(_address, (gate_up, y, gate_up_grad)), y.numel() // hidden, hidden, torch.get_num_threads())
    _library().half_rows_swiglu(ctypes.byref(step), gate_up_grad is not None)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) · up`` (Shazeer 2020): ``[..., 2 · hidden]``, gate first, to ``[..., hidden]``."""
    if _wanted(gate_up) and gate_up.shape[-1] % 2 == 0:
        return _SwiGLU.apply(gate_up.contiguous())
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _TurnedHeads(torch.autograd.Function):
    """Contiguous ``[N, T, 3 · heads · D]`` to queries, keys and values ``[N, heads, T, D]``, the first two turned."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, rows: torch.Tensor, table: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, ...]:
        songs, positions, channels = rows.shape
        shape = (songs, positions, heads, channels // (3 * heads))
        # As the rows lie: what attention gives then lies so too, and heads are merged without copying.
        parts = tuple(rows.new_empty(shape).transpose(1, 2) for _ in range(3))
        _turn(rows, parts, table)
        ctx.save_for_backward(table)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (table,) = ctx.saved_tensors  # type: ignore[attr-defined]
        parts = tuple(each if each.stride(-1) == 1 else each.contiguous() for each in gradients)
        songs, heads, positions, width = parts[0].shape
        rows = parts[0].new_empty(songs, positions, 3 * heads * width)
        _turn(rows, parts, table, backward=True)
        return rows, None, None


def _turn(rows: torch.Tensor, parts: tuple[torch.Tensor, ...], table: torch.Tensor, *, backward: bool = False) -> None:
    """One direction of turning heads."""
    places = (_HeadsPart(part.data_ptr(), *part.stride()[:3]) for part in parts)
    songs, heads, positions, width = parts[0].shape
    shape = (songs, positions, heads, width, table.shape[-1])
    step = _Heads(rows.data_ptr(), *places, table.data_ptr(), *shape, torch.get_num_threads())
    _library().half_rows_heads(ctypes.byref(step), backward)


def turned_heads(
    rows: torch.Tensor, table: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Queries, keys and values of each head, queries and keys turned by their positions' angles (Su et al. 2021).

    Args:
        rows: ``[N, T, 3 · heads · D]``, queries first.
        table: cosines and sines, float32 ``[2, T, channels]``; the first half of so many channels is turned with the
            second, the others stay.

    Returns:
        Three times ``[N, heads, T, D]``; None where it is not for here.
    """
    if not _wanted(rows) or rows.ndim != 3 or rows.shape[-1] % (3 * heads):
        return None
    turned = table.shape[-1]
    if table.shape != (2, rows.shape[1], turned) or turned % 2 or turned > rows.shape[-1] // (3 * heads):
        return None
    if table.dtype != torch.float32 or table.device != rows.device or table.requires_grad:
        return None
    return _TurnedHeads.apply(rows.contiguous(), table.contiguous(), heads)
