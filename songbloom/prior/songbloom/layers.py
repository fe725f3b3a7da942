"""Linear maps, norms and rotary positions of both transformers.

Weights are cast to the input's dtype where they are used, so the dtype of what is fed in decides; norms, softmax and
rotary positions compute in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.transformer import fused_rows
from songbloom.transformer.halves import linear, multiply
from songbloom.transformer.lora import effective_weight

RMS_EPS = 1e-6
LAYER_NORM_EPS = 1e-5
TILE = 256  # hidden channels of a tile; of 128, 256, 512 and 1024 the fastest at width 512 and a second cache of 2 MiB


def can_step_fast(x: Tensor) -> bool:
    """Whether the fast paths are for this: float32 on a CPU, and nobody asks for gradients."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


class Linear(nn.Module):
    """``y = x Wᵀ (+ b)``, W ``[out, in]``; W starts as N(0, ``std``), b as zeros."""

    def __init__(self, inputs: int, outputs: int, *, std: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.std = std

    def start(self, generator: torch.Generator | None) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight, std=self.std, generator=generator)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in x's dtype unless another is asked for."""
        return linear(x, self.weight, self.bias, dtype)

    def in_halves(self, x: Tensor) -> Tensor:
        """The same of float32 without gradients, multiplied in half precision (``transformer/halves.py``)."""
        y = multiply(x.reshape(-1, x.shape[-1]), effective_weight(self).detach().t(), bias=self.bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class Embedding(nn.Module):
    """A row of ``weight [bins, width]`` for each id; rows start as N(0, ``std``)."""

    def __init__(self, bins: int, width: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bins, width))
        self.std = std

    def start(self, generator: torch.Generator | None) -> None:
        """Draw the rows."""
        nn.init.normal_(self.weight, std=self.std, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class RMSNorm(nn.Module):
    """``x / rms(x)`` over the last axis in float32, then scaled (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.of_sum(x)[1]

    def of_sum(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x + branch``, or x alone, and the norm of that: a residual sum and what the next branch begins with."""
        fused = fused_rows.rms_norm(x, self.weight, RMS_EPS, branch=branch)
        if fused is not None:
            return fused
        x = x if branch is None else x + branch
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_EPS)
        return x, (self.weight * normed.to(x.dtype)).to(x.dtype)

    def fused(self, x: Tensor) -> Tensor:
        """The same of float32 in one operation, to rounding."""
        return F.rms_norm(x, self.weight.shape, self.weight, RMS_EPS)


class LayerNorm(nn.Module):
    """Layer norm in float32 with a learned scale.

    The shift is kept but not learned (zeros, unless a file has others).
    """

    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.of_sum(x)[1]

    def of_sum(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`RMSNorm.of_sum`."""
        fused = fused_rows.layer_norm(x, self.weight, self.bias, LAYER_NORM_EPS, branch=branch)
        if fused is not None:
            return fused
        x = x if branch is None else x + branch
        normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), LAYER_NORM_EPS)
        return x, normed.to(x.dtype)


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) · up(x))`` (SwiGLU, Shazeer 2020); gate and up are one matrix, gate's rows first."""

    def __init__(self, width: int, hidden: int, *, std: float) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, std=std)
        self.down = Linear(hidden, width, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(fused_rows.swiglu(self.gate_up(x)))


class TiledMLP:
    """A :class:`GatedMLP` in float32 that goes through its hidden channels in tiles, without gradients.

    A tile of the matrices, and what many rows make of it, stay in the processor's second cache, and the hidden values
    are never written to memory as a whole.

    Args:
        mlp: its weights.
        copied: whether the matrices are copied, with the inputs' axis first, or only looked at.
    """

    def __init__(self, mlp: GatedMLP, *, copied: bool = False) -> None:
        gate, up = (part.t() for part in effective_weight(mlp.gate_up).detach().float().chunk(2))
        down = effective_weight(mlp.down).detach().float().t()
        self.tiles: list[tuple[tuple[Tensor, ...], Tensor]] = []
        for start in range(0, len(down), TILE):
            at = slice(start, start + TILE)
            if copied:
                self.tiles.append(((torch.cat([gate[:, at], up[:, at]], dim=1),), down[at].contiguous()))
            else:
                self.tiles.append(((gate[:, at], up[:, at]), down[at]))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """``y [rows, W]``, to which what comes of ``x [rows, W]`` is added in place."""
        for matrices, down in self.tiles:
            parts = [torch.mm(x, matrix) for matrix in matrices]
            gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=1)
            y.addmm_(F.silu(gate).mul_(up), down)
        return y


def rotary_table(positions: Tensor, channels: int, base: float) -> Tensor:
    """Cosines and sines of the angles ``position · base^(-2i/channels)``: ``[2, len(positions), channels]``, float32.

    The half-split form: channel i is turned with channel i + channels/2 (Su et al. 2021, laid out as in Llama).
    """
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32) / channels
    angles = positions.float()[:, None] * (1.0 / base**steps)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """``x [..., T, channels]`` with its first ``table.shape[-1]`` channels turned by each position's angles."""
    channels = table.shape[-1]
    turned, kept = x[..., :channels].float(), x[..., channels:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * table[0] + torch.cat([-second, first], dim=-1) * table[1]
    turned = turned.to(x.dtype)
    return torch.cat([turned, kept], dim=-1) if kept.shape[-1] else turned


def joint_rotation(table: Tensor) -> Tensor:
    """A rotary table for :func:`rotate_in_place`: ``[2, T, 1, channels]``, the first half's sines negative."""
    sines = torch.cat([-table[1, :, : table.shape[-1] // 2], table[1, :, table.shape[-1] // 2 :]], dim=-1)
    return torch.stack([table[0], sines])[:, :, None]


def rotate_in_place(x: Tensor, joint: Tensor) -> None:
    """:func:`rotate` of float32 ``x [..., T, heads, D]`` where it lies, queries and keys together.

    Args:
        joint: of :func:`joint_rotation`.
    """
    channels = joint.shape[-1]
    part = x[..., :channels]
    swapped = torch.cat([part[..., channels // 2 :], part[..., : channels // 2]], dim=-1)
    part.mul_(joint[0]).add_(swapped.mul_(joint[1]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[N, T, heads · D]`` → ``[N, heads, T, D]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def turned_heads(projected: Tensor, table: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[N, T, 3 · heads · D]`` → queries, keys (both turned by ``table``) and values ``[N, heads, T, D]``."""
    fused = fused_rows.turned_heads(projected, table, heads)
    if fused is not None:
        return fused
    query, key, value = (split_heads(part, heads) for part in projected.chunk(3, dim=-1))
    return rotate(query, table), rotate(key, table), value


def merge_heads(x: Tensor) -> Tensor:
    """``[N, heads, T, D]`` → ``[N, T, heads · D]``."""
    return x.transpose(1, 2).flatten(2)


def start_weights(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of every linear map and embedding inside ``module``, in the order of its modules."""
    for part in module.modules():
        if isinstance(part, (Linear, Embedding)):
            part.start(generator)
