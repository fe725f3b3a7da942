"""Whether a stack of layers keeps what its backward pass needs, or computes it again to save memory (``c_res``).

Chen et al. 2016, "Training deep nets with sublinear memory cost": a third more time for a fraction of the memory. The
numbers are the same bit by bit. On a CPU there is often memory enough, and then nothing is gained by it.
"""

from __future__ import annotations

import torch

from songbloom.free_memory import free_bytes

ALWAYS = 2  # of c_res; 1 is where memory is short
SHARE = 0.25  # of the memory that is free when training begins: parameters, optimiser and data want theirs


class Recomputation:
    """The choice of one stack, made at the first batch of each shape.

    Args:
        c_res: 0: nothing is computed again; 1: it is, but on a CPU only where what is kept otherwise would take more
            than a quarter of the memory that is free; 2: it is.
        numbers: how many numbers a layer keeps for each position otherwise.
        layers: how many there are.
    """

    def __init__(self, c_res: int, numbers: int, layers: int) -> None:
        self.c_res, self.numbers = c_res, numbers * layers
        self._chosen: dict[tuple[int, torch.dtype], bool] = {}

    def wanted(self, x: torch.Tensor) -> bool:
        """Whether the layers that get ``x [..., width]`` are to be computed again in the backward pass."""
        if not self.c_res or not torch.is_grad_enabled():
            return False
        if self.c_res == ALWAYS or x.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        positions = x.numel() // x.shape[-1]
        key = (positions, x.dtype)
        if key not in self._chosen:
            free = free_bytes(x.device)
            self._chosen[key] = free is None or positions * self.numbers * x.element_size() > SHARE * free
        return self._chosen[key]
