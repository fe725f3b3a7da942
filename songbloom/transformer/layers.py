"""The small parts of a transformer layer: linear maps, layer norm, activations, the feed-forward half.

Weights stay in the dtype they are stored in (float32 as a rule) and are cast to the input's dtype where they are used,
so one model computes in float32, float16 or bfloat16 by the dtype of what is fed to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from songbloom.errors import UserError, did_you_mean
from songbloom.transformer import fused_rows
from songbloom.transformer.halves import QUICK_GELU_SLOPE, linear, quick_gelu_mlp

LAYER_NORM_EPS = 1e-5


class _QuickGELU(torch.autograd.Function):
    """x σ(1.702 x) with its analytic derivative, keeping one tensor for the backward pass.

    With z = 1.702 x it is silu(z) / 1.702, and its derivative in x is silu'(z): both directions are one fused kernel
    of torch (which computes half dtypes in float32 inside), and only z is kept.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        z = x * QUICK_GELU_SLOPE
        ctx.save_for_backward(z)
        return F.silu(z).mul_(1.0 / QUICK_GELU_SLOPE)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.ops.aten.silu_backward(gradients[0], z)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(1.702 x)``, any shape."""
    if x.requires_grad and torch.is_grad_enabled():
        return _QuickGELU.apply(x)
    return F.silu(x * QUICK_GELU_SLOPE).mul_(1.0 / QUICK_GELU_SLOPE)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form, ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``."""
    return F.gelu(x, approximate="tanh")


def swish(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "swish": swish,
    "relu": F.relu,
}


def activation_named(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation of that name.

    Raises:
        UserError: there is none.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"activation: {name!r} is not one of {known}{did_you_mean(name, ACTIVATIONS)}") from None


class Linear(nn.Linear):
    """``y = x Wᵀ + b`` with W ``[out, in]`` cast to x's dtype; W starts as N(0, ``std``) or zeros, b as zeros."""

    def __init__(
        self, inputs: int, outputs: int, *, std: float, zero: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(inputs, outputs, device="meta")  # its own random start would be thrown away
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if not zero:
            nn.init.normal_(self.weight, std=std, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis with statistics and affine map in float32, result in the input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of_sum(x)[1]

    def of_sum(self, x: torch.Tensor, branch: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """``x + branch``, or x alone, and the norm of that: a residual sum and what the next branch begins with."""
        found = fused_rows.layer_norm(x, self.weight, self.bias, LAYER_NORM_EPS, branch=branch)
        if found is not None:
            return found
        x = x if branch is None else x + branch
        return x, layer_norm(x, self.weight, self.bias)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Layer norm over the last axis, computed in float32, in x's dtype.

    On a CPU torch's kernel takes half inputs with float32 weights as they are and works in float32 inside; elsewhere
    the input is cast.
    """
    if x.dtype == torch.float32 or x.device.type == "cpu":
        return F.layer_norm(x, weight.shape, weight.float(), bias.float(), LAYER_NORM_EPS)
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), LAYER_NORM_EPS).to(x.dtype)


class MLP(nn.Module):
    """``down(activation(up(x)))`` with a hidden width of ``int(m_mlp * width)``, then dropout."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "quick_gelu",
        dropout: float = 0.0,
        zero_out: bool = False,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation_named(activation)
        self.dropout = dropout
        self.up = Linear(width, hidden, std=0.02 * init_scale, generator=generator)
        self.down = Linear(hidden, width, std=0.02 * init_scale, zero=zero_out, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._at_once(x) if self.activation is quick_gelu else None
        if y is None:
            y = self.down(self.activation(self.up(x)))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def _at_once(self, x: torch.Tensor) -> torch.Tensor | None:
        """What both maps make of x where that is one function, and nobody (an adapter) looks at either map alone."""
        if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in (self.up, self.down)):
            return None
        return quick_gelu_mlp(x, self.up.weight, self.up.bias, self.down.weight, self.down.bias)
