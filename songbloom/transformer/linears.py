"""Linear maps with their weights prepared for decoding: what all kinds offer, and those that use plain products."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from songbloom.transformer.layers import QUICK_GELU_SLOPE, activation_named


class FastLinear(Protocol):
    """A linear map on ``[rows, in]`` with its weights prepared."""

    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``activation(x Wᵀ + b)``."""
        ...

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x Wᵀ + b``."""
        ...


class SeparateLinear:
    """A linear map whose activation and residual sum are operations of their own, after :meth:`product`.

    Args:
        bias: ``[out]``, in the computing dtype.
        activation: applied by ``__call__``; none if empty.
        scale: multiplies what ``added_to`` adds.
    """

    def __init__(self, bias: torch.Tensor, activation: str, scale: float) -> None:
        self.bias, self.scale = bias.detach(), scale
        self.activation = activation_named(activation) if activation else None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``x Wᵀ + b``, before activation and scale."""
        raise NotImplementedError

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        return y if self.activation is None else self.activation(y)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.add(residual, self.product(x), alpha=self.scale)


class PlainLinear(SeparateLinear):
    """A linear map with weights in the computing dtype; they are the given ones where that is their dtype already.

    Args:
        weight, bias: ``[out, in]`` and ``[out]``.
        activation, scale: as in :class:`SeparateLinear`.
        dtype: computed in; None: that of the weight.
        after: the activation of the map that makes the input; these weights leave it as it is.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str = "",
        *,
        dtype: torch.dtype | None = None,
        after: str = "",
        scale: float = 1.0,
    ) -> None:
        dtype = dtype or weight.dtype
        super().__init__(bias.to(dtype), activation, scale)
        self.weight = weight.detach().to(dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class FoldedLinear(PlainLinear):
    """As :class:`PlainLinear`, with quick-GELU as the swish of the scaled input, divided by the same factor again.

    Product and sum of a map take a factor anyway, so that the activation is one kernel instead of three on a GPU, and
    the weights stay the given ones.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str = "",
        *,
        dtype: torch.dtype | None = None,
        after: str = "",
        scale: float = 1.0,
    ) -> None:
        quick = "quick_gelu"
        slope = QUICK_GELU_SLOPE if quick in (activation, after) else 1.0
        bias = bias.detach().float() * slope
        dtype = dtype or weight.dtype
        scale = scale / slope if after == quick else scale
        super().__init__(weight, bias, "swish" if activation == quick else activation, dtype=dtype, scale=scale)
        self._factor = slope if activation == quick else 1.0

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if self._factor == 1.0:
            return super().product(x)
        return torch.addmm(self.bias, x, self.weight.t(), alpha=self._factor)
