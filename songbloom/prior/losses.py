"""Cross entropy of an output layer, without ever holding the logits of all positions.

At ``n_ctx`` 8192 and 2048 bins the float32 logits of one item and their gradient take 128 MiB, and writing and reading
them costs more time than computing them. The output layer and the loss are therefore one function: it walks over
groups of rows, and while a group's logits are in cache it takes the loss and both gradients from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from songbloom.transformer import halves

_GROUP_ELEMENTS = 1 << 21  # logits held at a time: 8 MiB in float32


def _products(dtype: torch.dtype, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Matrix products in a dtype, as float32."""
    if halves.usable(dtype, device):
        return halves.multiply
    return lambda a, b: (a.to(dtype) @ b.to(dtype)).float()


class _LinearCrossEntropy(torch.autograd.Function):
    """``(sum_i weight_i * nats_i, nats)``; gradients are found on the way forward, where the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows = hidden.shape[0]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        product = _products(dtype, hidden.device)
        matrix = weight.detach()
        matrix = matrix if halves.usable(dtype, hidden.device) else matrix.to(dtype)
        nats = hidden.new_empty(rows, dtype=torch.float32)
        # Rows are weighted relative to the largest weight, so that nothing underflows in a 16-bit dtype; the
        # remaining factor joins in backward, in float32.
        scale = row_weights.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        relative = row_weights / scale
        hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        group = max(1, _GROUP_ELEMENTS // weight.shape[0])
        for begin in range(0, rows, group):
            part = slice(begin, begin + group)
            inputs, target = hidden[part].detach().to(dtype), targets[part, None]
            logits = product(inputs, matrix.T)
            total = logits.logsumexp(-1, keepdim=True)
            nats[part] = (total - logits.gather(-1, target))[:, 0]
            if hidden_grad is None and weight_grad is None:
                continue
            error = logits.sub_(total).exp_()  # softmax; less the target's one-hot it is the gradient of the logits
            error.scatter_add_(-1, target, error.new_full((), -1.0).expand_as(target))
            error.mul_(relative[part, None])
            if hidden_grad is not None:
                hidden_grad[part] = product(error, matrix)
            if weight_grad is not None:
                if dtype == torch.float32:
                    weight_grad.addmm_(error.T, inputs)
                else:
                    weight_grad += product(error.T, inputs)
        ctx.save_for_backward(hidden_grad, weight_grad, scale)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(nats)
        return torch.dot(nats, row_weights.float()), nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, scale = ctx.saved_tensors
        factor = grads[0] * scale
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            None if hidden_grad is None else (hidden_grad * factor).to(hidden_dtype),
            None if weight_grad is None else (weight_grad * factor).to(weight_dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The weighted cross entropy of ``hidden @ weight.T``, in bits.

    Args:
        hidden: [rows, width] float32.
        weight: [bins, width], the output layer.
        targets: [rows] int64.
        row_weights: [rows]; ``1 / rows`` everywhere gives the mean.
        dtype: of the matrix products; the softmax and the sums are float32 in any case.

    Returns:
        The scalar ``sum(row_weights * bits)``, differentiable once, and ``bits`` [rows] float32, without a gradient.
    """
    total, nats = _LinearCrossEntropy.apply(hidden, weight, targets, row_weights, dtype)
    return total / math.log(2), nats / math.log(2)
