"""Bringing together what ranks wrote, when some are done hours before others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from songbloom.distributed import world

PATIENCE = timedelta(days=30)  # nobody waits for a dead rank: if one dies, songbloom.distributed ends all


class Gathering:
    """A meeting of all ranks; each of them must make one, at the same point of the program.

    The collectives of :mod:`songbloom.distributed` give up after half an hour, which is right for training steps. A
    rank with fewer items may wait here for as long as another samples.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world().size > 1 else None

    def all(self, value: Any) -> list[Any]:
        """What every rank gave, in the order of ranks, on every rank."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * world().size
        dist.all_gather_object(found, value, group=self._group)
        return found
