"""The learning rate of each optimiser step: warmup, then constant, stepwise, linear or cosine decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def learning_rate(step: int, hps: Mapping[str, Any]) -> float:
    """The learning rate of optimiser step ``step`` (the first is 0).

    ``lr * lr_scale * min(1, step / lr_warmup)``, times one of

    * ``lr_gamma ** (step // lr_decay)`` (the default; constant while ``lr_gamma`` is 1);
    * with ``lr_use_linear_decay``: from 1 to 0 over the ``lr_decay`` steps after ``lr_start_linear_decay``;
    * with ``lr_use_cosine_decay``: half a cosine over the same steps (Loshchilov & Hutter 2017, without restarts).

    So with warmup the very first step has learning rate 0; ``lr_warmup=0`` means none.

    Args:
        step: optimiser steps already taken.
        hps: any mapping with ``lr, lr_warmup, lr_decay, lr_gamma, lr_scale, lr_use_linear_decay,
            lr_start_linear_decay`` and, optionally, ``lr_use_cosine_decay``.
    """
    warmup = min(1.0, step / hps["lr_warmup"]) if hps["lr_warmup"] > 0 else 1.0
    cosine = bool(hps.get("lr_use_cosine_decay", False))
    if not (hps["lr_use_linear_decay"] or cosine):
        return hps["lr"] * (hps["lr_scale"] * hps["lr_gamma"] ** (step // hps["lr_decay"]) * warmup)
    gone = max(0.0, step - hps["lr_start_linear_decay"]) / hps["lr_decay"]
    left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, gone))) if cosine else max(0.0, 1.0 - gone)
    return hps["lr"] * (hps["lr_scale"] * warmup * left)


class Schedule:
    """Counts optimiser steps and tells the learning rate of the next one."""

    def __init__(self, hps: Mapping[str, Any], step: int = 0) -> None:
        self._hps = hps
        self.count = step

    @property
    def lr(self) -> float:
        """The learning rate of the step about to be taken."""
        return learning_rate(self.count, self._hps)

    def step(self) -> None:
        """One optimiser step was taken."""
        self.count += 1

    @property
    def finished(self) -> bool:
        """Whether training ends here: steps were taken, and the next would have a learning rate of exactly 0."""
        return self.count > 0 and self.lr == 0.0

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint."""
        self.count = int(state["count"])
