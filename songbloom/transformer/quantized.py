"""Weights kept in 8 bits while decoding: whole numbers from -127 to 127 and one scale an output channel.

Only weights are rounded; inputs, sums and everything between the linear maps stay in the computing dtype, so no data is
needed to calibrate anything. Source: Dettmers et al. 2022, *LLM.int8()*, section 2 (absmax, here by output channel).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from songbloom.errors import UserError, did_you_mean
from songbloom.transformer.linears import SeparateLinear

QUANTIZATIONS = ("", "int8")
FEW_ROWS = 16  # up to here a product with 8-bit weights as they are is the faster one


def check_quantize(name: str) -> None:
    """Refuse a way of keeping weights that there is none of.

    Raises:
        UserError: names those there are.
    """
    if name not in QUANTIZATIONS:
        raise UserError(f"quantize={name!r}: it is empty or int8{did_you_mean(name, QUANTIZATIONS[1:])}")


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` → int8 ``[out, in]`` and float32 ``[out]``, whose product is nearest to the weight."""
    weight = weight.detach().float()
    # A channel of zeros gets a scale of 1, so that nothing is divided by zero.
    largest = weight.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def dequantized(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight that int8 ``[out, in]`` and its scales ``[out]`` stand for."""
    return (weight.float() * scale[:, None]).to(dtype)


@cache
def can_multiply(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch has a product with 8-bit weights for the dtype on the device; tried on a small one."""
    try:
        weight, scales = torch.eye(32, device=device).to(torch.int8), torch.ones(32, dtype=dtype, device=device)
        x = torch.arange(64, dtype=dtype, device=device).reshape(2, 32)
        return torch.equal(torch._weight_int8pack_mm(x, weight, scales), x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


class QuantizedLinear(SeparateLinear):
    """A linear map with 8-bit weights.

    Args:
        weight, bias, activation, scale, after: as in :class:`songbloom.transformer.linears.PlainLinear`.
        dtype: computed in; None: that of the bias.
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
        self.dtype = dtype or bias.dtype
        super().__init__(bias.to(self.dtype), activation, scale)
        self.weight, self.scales = quantized(weight)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] <= FEW_ROWS and can_multiply(self.dtype, x.device):
            scales = self.scales.to(self.dtype)
            return torch._weight_int8pack_mm(x, self.weight, scales) + self.bias
        # The weight in full exists only for the length of one call: no more memory than one layer's.
        return F.linear(x, dequantized(self.weight, self.scales, self.dtype), self.bias)
