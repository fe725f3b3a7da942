"""Linear maps of many bfloat16 rows on a CPU that multiplies halves, forwards and backwards, with weights of any kind.

Processors with AVX512-FP16 but without a matrix unit multiply float16 numbers twice as fast as float32 ones, and
bfloat16 ones half as fast as those. Here the operands of a bfloat16 map become float16, each row and column scaled by a
power of two so that none overflows, and are summed in float32 (songbloom/transformer/native/halves.h). Results are
nearer to those of float32 than those of bfloat16 products are, as float16 has three bits more; weights in float32 are
read as they are.

Everywhere else, for few rows and without gradients :func:`linear` and :func:`attention` are torch's; who asks for
:func:`multiply` and :func:`softmax_attention` gets them.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from songbloom.transformer.native import loader

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
QUICK_GELU_SLOPE = 1.702  # x * sigmoid(1.702 x), Hendrycks and Gimpel 2016, section 2
FEWEST = 2**22  # multiplications of a product below which laying its operands costs more than it saves


class _Product(ctypes.Structure):
    """``struct Product`` of halves.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "bias", "row_sums", "before", "slope_at", "scratch")),
        *((name, ctypes.c_int64) for name in ("a_row", "a_column", "b_row", "b_column", "c_row")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "depth")),
        *((name, ctypes.c_int32) for name in ("a_kind", "b_kind", "c_kind", "threads")),
    )


class _Positions(ctypes.Structure):
    """``struct Positions`` of half_attention.h."""

    _fields_ = (("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("outer", "head", "position")))


class _Attention(ctypes.Structure):
    """``struct Attention`` of half_attention.h."""

    _fields_ = (
        *((name, _Positions) for name in ("query", "key", "value", "result")),
        *((f"{name}_grad", _Positions) for name in ("result", "query", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("logs", "scratch")),
        *((name, ctypes.c_int64) for name in ("outer", "heads", "queries", "keys", "width")),
        *((name, ctypes.c_int32) for name in ("kind", "causal", "threads")),
        ("rate", ctypes.c_float),
    )


@cache
def _library() -> ctypes.CDLL | None:
    features = loader.cpu_features().split()
    if "avx512_fp16" not in features or "amx_bf16" in features:  # a matrix unit is faster still, and torch uses it
        return None
    library = loader.library("halves")
    if library is None or not library.halves_here():
        return None
    parts = (_Product, _Attention)
    assert [library.halves_size(which) for which in range(len(parts))] == [ctypes.sizeof(part) for part in parts]
    return library


def available() -> bool:
    """Whether this machine has what :func:`multiply` needs."""
    return _library() is not None


def usable(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether what is to be computed in ``dtype`` on ``device`` is computed here: bfloat16 on such a CPU.

    Not in what ``torch.compile`` makes, which is torch's own.
    """
    if dtype != torch.bfloat16 or device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return available()


def slower_than_float32(x: torch.Tensor) -> bool:
    """Whether torch multiplies many rows of ``x`` faster in float32: of bfloat16 on a CPU without a matrix unit."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and "amx_bf16" not in loader.cpu_features()


def multiply(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    bias: torch.Tensor | None = None,
    row_sums: torch.Tensor | None = None,
    before: torch.Tensor | None = None,
    slope_at: torch.Tensor | None = None,
) -> torch.Tensor:
    """``a b (+ bias)``, with operands rounded to float16 after scaling, and sums in float32.

    Args:
        a: ``[rows, depth]``, float32, bfloat16 or float16; one of its strides is 1.
        b: ``[depth, columns]``, likewise.
        dtype: of the result.
        bias: ``[columns]``.
        row_sums: float32 ``[rows]``, takes the sums of a's rows.
        before: ``[rows, columns]`` of ``dtype``, contiguous: takes the result, which itself becomes its quick-GELU.
        slope_at: the same: the result is multiplied by the slope of quick-GELU at these places.

    Returns:
        ``[rows, columns]``, contiguous.

    Raises:
        RuntimeError: this machine cannot (:func:`available`).
    """
    library = _library()
    if library is None:
        raise RuntimeError("this processor does not multiply halves, or there is no compiler")
    (rows, depth), columns = a.shape, b.shape[1]
    if b.shape[0] != depth:
        raise ValueError(f"{list(a.shape)} does not go with {list(b.shape)}")
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"{list(bias.shape)} is no bias of {columns} columns")
    if any(x is not None and x.device.type != "cpu" for x in (a, b, bias)):
        raise ValueError("halves are multiplied on a CPU, where all that is given must be")
    result = torch.empty(rows, columns, dtype=dtype)
    if not result.numel() or not depth:
        if row_sums is not None:
            row_sums.copy_(a.sum(1))
        return _activated(result.zero_() if bias is None else result.copy_(bias.detach()), before, slope_at)
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    bias = None if bias is None else bias.detach().float().contiguous()
    others = (None if x is None else x.data_ptr() for x in (bias, row_sums, before, slope_at))
    product = _Product(
        a.data_ptr(), b.data_ptr(), result.data_ptr(), *others,
        None, *a.stride(), *b.stride(), columns, rows, columns, depth,
        KINDS[a.dtype], KINDS[b.dtype], KINDS[dtype], torch.get_num_threads(),
    )  # fmt: skip
    needed = library.halves_scratch(ctypes.byref(product))
    if needed < 0:
        return _activated(multiply(a, b, bias=bias, row_sums=row_sums).to(dtype), before, slope_at)
    scratch = _scratch(needed)
    product.scratch = scratch.data_ptr()
    library.halves_multiply(ctypes.byref(product))
    return result


def _activated(result: torch.Tensor, before: torch.Tensor | None, slope_at: torch.Tensor | None) -> torch.Tensor:
    """What :func:`multiply` makes of a product."""
    if before is not None:
        result = F.silu(QUICK_GELU_SLOPE * before.copy_(result)) / QUICK_GELU_SLOPE
    return result if slope_at is None else torch.ops.aten.silu_backward(result, QUICK_GELU_SLOPE * slope_at)


_kept = threading.local()


def _scratch(size: int) -> torch.Tensor:
    """At least so many bytes, the same ones for every product of a thread: new ones would be new pages each time."""
    kept: torch.Tensor | None = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        kept = _kept.scratch = torch.empty(size, dtype=torch.uint8)
    return kept


class _Linear(torch.autograd.Function):
    """``x Wᵀ + b`` for rows x in some dtype, and its gradients: the bias' in float32, others as what they belong to."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight.t(), dtype=dtype, bias=bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        gradient = gradients[0].contiguous()
        for_x = multiply(gradient, weight, dtype=x.dtype) if wanted[0] else None
        return for_x, *_weight_and_bias(gradient, x, weight, *wanted[1:3]), None


class _QuickGELUMLP(torch.autograd.Function):
    """``down(quick_gelu(up(x)))`` for rows x: the activation and its slope are applied where products are written."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *inputs: torch.Tensor) -> torch.Tensor:
        x, up, up_bias, down, down_bias = inputs
        before = x.new_empty(x.shape[0], up.shape[0])
        hidden = multiply(x, up.t(), dtype=x.dtype, bias=up_bias, before=before)
        ctx.save_for_backward(x, before, hidden, up, down)
        return multiply(hidden, down.t(), dtype=x.dtype, bias=down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, before, hidden, up, down = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        gradient = gradients[0].contiguous()
        for_down = _weight_and_bias(gradient, hidden, down, *wanted[3:])
        inner = multiply(gradient, down, dtype=x.dtype, slope_at=before)
        for_up = _weight_and_bias(inner, x, up, *wanted[1:3])
        return multiply(inner, up, dtype=x.dtype) if wanted[0] else None, *for_up, *for_down


def _weight_and_bias(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, wants_weight: bool, wants_bias: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of a linear map's weight, in its dtype, and of its bias, in float32."""
    bias = gradient.new_empty(gradient.shape[1], dtype=torch.float32) if wants_bias else None
    if wants_weight:
        return multiply(gradient.t(), x, dtype=weight.dtype, row_sums=bias), bias
    return None, None if bias is None else torch.sum(gradient, 0, dtype=torch.float32, out=bias)


def quick_gelu_mlp(
    x: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor
) -> torch.Tensor | None:
    """``down(quick_gelu(up(x)))`` of linear maps, ``[..., width]`` to the same; None where it is not for here."""
    if x.numel() * up.shape[0] < FEWEST or not usable(x.dtype, x.device) or not torch.is_grad_enabled():
        return None
    return _QuickGELUMLP.apply(x.reshape(-1, x.shape[-1]), up, up_bias, down, down_bias).view(x.shape)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``x Wᵀ + b``; weights in another dtype are cast.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
        dtype: of the result, x's unless given. Bfloat16 maps may so give float32, and take it, at no cost; torch's map
            is computed in this dtype.

    Returns:
        ``[..., out]``.
    """
    dtype = dtype or x.dtype
    half = x.dtype if dtype == torch.float32 else dtype
    # Only where gradients are wanted: in sampling an item's numbers must not depend on what rows are beside its own.
    if torch.is_grad_enabled() and x.numel() * weight.shape[0] >= FEWEST and usable(half, x.device):
        y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, dtype)
        return y.view(*x.shape[:-1], weight.shape[0])
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


class _SoftmaxAttention(torch.autograd.Function):
    """Softmax attention of ``[N, heads, m, d]`` to ``[N, heads, l, d]``, all of one dtype, in half precision."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal: bool,
    ) -> torch.Tensor:
        found, logs = torch.empty_like(query), torch.empty(query.shape[:-1])
        _attend((query, key, value, found), (), logs, causal)
        ctx.save_for_backward(query, key, value, found, logs)
        ctx.causal = causal  # type: ignore[attr-defined]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, found, logs = ctx.saved_tensors  # type: ignore[attr-defined]
        given = gradients[0] if gradients[0].stride(-1) == 1 else gradients[0].contiguous()
        made = [torch.empty_like(each) for each in inputs]
        _attend((*inputs, found), (given, *made), logs, ctx.causal)  # type: ignore[attr-defined]
        return *made, None


def _attend(
    forward: tuple[torch.Tensor, ...], backward: tuple[torch.Tensor, ...], logs: torch.Tensor, causal: bool
) -> None:
    """One direction of attention: the backward one where there are gradients."""
    library, query, key = _library(), forward[0], forward[1]
    assert library is not None
    none = (_Positions(),) * (4 - len(backward))
    parts = (*(_Positions(each.data_ptr(), *each.stride()[:3]) for each in (*forward, *backward)), *none)
    shape = (*query.shape[:3], key.shape[2], query.shape[3])
    rate = query.shape[3] ** -0.5
    step = _Attention(*parts, logs.data_ptr(), None, *shape, KINDS[query.dtype], causal, torch.get_num_threads(), rate)
    address = ctypes.byref(step)
    step.scratch = _scratch(library.halves_attention_scratch(address, bool(backward))).data_ptr()
    library.halves_attention(address, bool(backward))


def softmax_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool = False
) -> torch.Tensor:
    """Softmax attention in half precision, with softmax and sums in float32; each head of each item by itself, so that
    what one gets depends on no other. Within a head values of later positions may decide how earlier ones are rounded.

    Args:
        query: ``[N, heads, m, d]``, float32, bfloat16 or float16.
        key, value: ``[N, heads, l, d]`` of the same dtype.
        causal: whether query i sees keys up to i only.

    Returns:
        ``[N, heads, m, d]`` of that dtype, laid out as the query is.

    Raises:
        RuntimeError: this machine cannot (:func:`available`).
        ValueError: the shapes or dtypes do not go together.
    """
    if not available():
        raise RuntimeError("this processor does not multiply halves, or there is no compiler")
    if (
        query.ndim != 4
        or key.shape != value.shape
        or (*key.shape[:2], key.shape[3:]) != (*query.shape[:2], query.shape[3:])
    ):
        raise ValueError(f"{list(query.shape)} does not attend to {list(key.shape)} and {list(value.shape)}")
    if not query.dtype == key.dtype == value.dtype or query.dtype not in KINDS:
        raise ValueError(f"attention of {query.dtype} to {key.dtype} and {value.dtype}")
    if any(each.device.type != "cpu" for each in (query, key, value)):
        raise ValueError("halves are multiplied on a CPU, where all that is given must be")
    if not query.numel() or not key.numel():
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    query, key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value))
    return _SoftmaxAttention.apply(query, key, value, causal)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> torch.Tensor:
    """torch's ``scaled_dot_product_attention``, but where :func:`usable`: such a CPU multiplies the small matrices of
    bfloat16 slowest of all. There it is :func:`softmax_attention` in training, where each thread has a head and enough
    to compute, and else torch's in float32.

    Args:
        query: ``[.., m, d]``; key and value ``[.., l, d]``.

    Returns:
        ``[.., m, d]``, in the query's dtype.
    """
    dtype = query.dtype
    if usable(dtype, query.device):
        plain = mask is None and not dropout and query.ndim == 4 and torch.is_grad_enabled()
        heads = query.shape[:2].numel()  # each is for one thread
        if plain and heads >= torch.get_num_threads() and query.numel() * key.shape[-2] >= FEWEST:
            return softmax_attention(query, key, value, causal=causal)
        query, key, value = query.float(), key.float(), value.float()
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return found.to(dtype)
