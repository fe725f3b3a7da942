"""What a run needs of memory, level by level, said before it begins and before anything is downloaded.

Levels take turns: the prior of one is let go before that of the next is loaded, so a run needs what its largest level
does. Weights that are pages of a file on disk, a checkpoint or one that was converted from it, are shared by all
processes of a machine; copies, where no such file can be, and caches are each process's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from songbloom.distributed import gather_objects, say, world
from songbloom.errors import UserError
from songbloom.free_memory import free_bytes
from songbloom.prior.config import dtype_of
from songbloom.prior.prior import Prior
from songbloom.sampling.memory import item_bytes, weight_bytes
from songbloom.sampling.sampler import LevelSettings
from songbloom.training.shared import are_shared
from songbloom.transformer.decoding import worth_packing
from songbloom.transformer.layers import Linear
from songbloom.transformer.native import stepper

TOLD_FROM = 1e9  # bytes; nobody needs to hear of less


@dataclass(frozen=True)
class Need:
    """Bytes that one level takes in one process.

    Attributes:
        level: which.
        precision: of its weights and caches, for people.
        weights: of the model as it is loaded.
        shared: how much of that is pages of a file, which the processes of a machine share.
        prepared: copies of weights that decoding makes for speed.
        item: cache, conditioning and activations of one item.
        items: sampled together.
    """

    level: int
    precision: str
    weights: float
    shared: float
    prepared: float
    item: float
    items: int

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.prepared + self.items * self.item

    def of_one(self, processes: int) -> float:
        """All of it, as one of so many processes of a machine that each do the same."""
        return self.total - self.shared + self.shared / processes

    def __str__(self) -> str:
        copies = f" and {_gb(self.prepared)} of copies for speed" if self.prepared >= TOLD_FROM / 20 else ""
        return (
            f"level {self.level} needs {_gb(self.total)}: {_gb(self.weights)} of weights ({self.precision}){copies}, "
            f"{_gb(self.item)} for each of {self.items} items"
        )


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def need_of(
    prior: Prior, settings: LevelSettings, items: int, device: torch.device, *, source: Path | None = None
) -> Need:
    """What sampling a level takes.

    Args:
        prior: its sizes are enough.
        settings: of the level.
        items: of this process.
        device: where it will be.
        source: the file of its weights; None where that is not known.
    """
    dtype = dtype_of(settings.precision)
    matrices = sum(module.weight.numel() for module in prior.modules() if isinstance(module, Linear))
    weights = weight_bytes(prior, settings.precision)
    together = max(1, min(items, settings.max_batch_size))
    prepared = 0.0
    if settings.quantize:
        prepared = float(matrices)
    elif not stepper.available(dtype, device) and worth_packing(dtype, device, together):
        prepared = float(dtype.itemsize * matrices)
    shared = weights if device.type == "cpu" and are_shared(weights, source, dtype) else 0.0
    word = f"{settings.precision}, {settings.quantize}" if settings.quantize else settings.precision
    return Need(prior.level, word, weights, shared, prepared, item_bytes(prior, settings.precision), together)


def check(
    priors: Sequence[Prior],
    settings: Mapping[int, LevelSettings],
    items: int,
    device: torch.device,
    sources: Mapping[int, Path] | None = None,
) -> list[Need]:
    """Say what each level needs, where that is much, and refuse what cannot fit; all ranks call it together.

    Args:
        priors: of the levels to write; their sizes are enough.
        settings: by level.
        items: of the run.
        device: where priors will be.
        sources: the file of the weights of each level, as far as known.

    Raises:
        UserError: a level needs more than there is, as far as the system tells.
    """
    mine, files = -(-items // world().size), sources or {}
    found = [need_of(each, settings[each.level], mine, device, source=files.get(each.level)) for each in priors]
    return tell(found, device)


def tell(needs: Sequence[Need], device: torch.device) -> list[Need]:
    """Say needs of much memory, and refuse what cannot fit; all ranks call it together.

    Raises:
        UserError: a level needs more than there is, as far as the system tells.
    """
    place = world()
    free = min((free for free in gather_objects(free_bytes(device)) if free is not None), default=None)
    each = " in each process" if place.local_size > 1 else ""
    there = "" if free is None else f"; there is {_gb(free)} free on {device}{each}"
    for need in sorted(needs, key=lambda need: -need.level):
        if need.total >= TOLD_FROM:
            say(f"memory: {need}{there}")
    for need in sorted(needs, key=lambda need: -need.of_one(place.local_size)):
        if free is not None and need.of_one(place.local_size) > free:
            raise UserError(f"not enough memory{each}: {need}, and {_gb(free)} is free on {device}: {_advice(need)}")
    return list(needs)


def _advice(need: Need) -> str:
    words = []
    if need.items > 1:
        words.append(f"--max_batch_size={max(1, need.items // 2)}")
    if need.precision == "fp32":
        words.append("--precision=bf16")
    words.append("fewer ranks" if world().local_size > 1 else "a smaller --model")
    return f"give {' or '.join(words)}, or free some"
