"""A slowly moving average of the weights, which is what evaluation, samples and published weights use.

``shadow = mu*shadow + (1 - mu)*weight`` in float32, started from the initial weights. Buffers (the codebooks, which
average themselves) are not part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def default_mu(batch: int, ranks: int) -> float:
    """The decay a step for a global batch of ``batch * ranks`` items: ``1 - (batch*ranks/8)/1000``, at least 0."""
    return max(0.0, 1 - (batch * ranks / 8) / 1000)


class WeightAverage:
    """The moving average of a list of parameters.

    Args:
        parameters: the parameters to follow, in an order that stays the same.
        mu: decay a step.
        every: average only each ``every``-th step, with decay ``mu ** every``.
        device: where the shadow lies; None is where each parameter lies. ``"cpu"`` costs a transfer at each averaging
            and no memory of the accelerator.
        round_on_swap: let :meth:`swap` there and back round the shadow of a half-precision parameter to that precision,
            as published Jukebox weights were made. Off, the shadow keeps its float32 value.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        mu: float,
        *,
        every: int = 1,
        device: torch.device | str | None = None,
        round_on_swap: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.mu = mu
        self.every = max(1, int(every))
        self.round_on_swap = round_on_swap
        self.count = 0
        self.swapped = False
        self._raw: dict[int, Tensor] = {}
        self.shadow = [
            p.detach().to(device=device or p.device, dtype=torch.float32, copy=True) for p in self.parameters
        ]

    @torch.no_grad()
    def step(self) -> None:
        """The optimiser has taken a step."""
        self.count += 1
        if self.count % self.every:
            return
        mu = self.mu**self.every
        groups: dict[tuple[torch.device, torch.device, torch.dtype], list[int]] = {}
        for i, (p, s) in enumerate(zip(self.parameters, self.shadow, strict=True)):
            groups.setdefault((p.device, s.device, p.dtype), []).append(i)
        for indices in groups.values():
            shadow = [self.shadow[i] for i in indices]
            values = [self.parameters[i].detach().to(self.shadow[i].device, torch.float32) for i in indices]
            torch._foreach_mul_(shadow, mu)
            torch._foreach_add_(shadow, values, alpha=1 - mu)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights with the average; again, to exchange them back.

        Float32 weights change places with their shadow, so this takes no more memory than the largest of them. A
        half-precision weight is set aside meanwhile, so that its shadow keeps all its bits.
        """
        for i, (p, shadow) in enumerate(zip(self.parameters, self.shadow, strict=True)):
            if p.dtype == torch.float32:
                raw = p.detach().clone()
                p.copy_(shadow)
                shadow.copy_(raw)
            elif not self.swapped:
                self._raw[i] = p.detach().clone()
                p.copy_(shadow)
            else:
                if self.round_on_swap:
                    shadow.copy_(p)
                p.copy_(self._raw.pop(i))
        self.swapped = not self.swapped

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: shadow (in the order of the parameters) and step count.

        Raises:
            RuntimeError: the weights are swapped at this moment.
        """
        if self.swapped:
            raise RuntimeError("the averaged weights are in use; swap them back before saving")
        return {"shadow": list(self.shadow), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
        self.count = int(state["count"])


def make_average(parameters: Iterable[Tensor], hps: Mapping[str, Any], ranks: int) -> WeightAverage | None:
    """The average that hyperparameters ``ema, mu, cpu_ema, cpu_ema_freq`` describe; None if there is to be none.

    ``mu`` None is :func:`default_mu` of ``bs`` (items a rank) and ``ranks``. (``ema_fused`` needs no choice here: many
    tensors are averaged with one call in every case.)
    """
    if not hps["ema"]:
        return None
    mu = hps["mu"] if hps["mu"] is not None else default_mu(hps["bs"] * hps.get("iters_before_update", 1), ranks)
    if hps["cpu_ema"]:
        return WeightAverage(parameters, mu, every=hps["cpu_ema_freq"], device="cpu")
    return WeightAverage(parameters, mu)
