"""Batches in an order that does not depend on how many ranks and workers there are.

An epoch has one order, drawn from (seed, epoch). Step s of all ranks together takes items ``[s * G, (s + 1) * G)`` of
it, G being the global batch; each rank takes its contiguous share. A run that goes on after a stop skips steps without
reading them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from songbloom.distributed import World
from songbloom.distributed import world as current_world
from songbloom.errors import UserError

_ORDER = 4  # sets the draws of the order apart from other draws with the same seed


# --- the order -------------------------------------------------------------------------------------------------------


def epoch_order(length: int, seed: int, epoch: int, *, shuffle: bool = True, at_least: int = 0) -> np.ndarray:
    """Item numbers of an epoch, int64 ``[max(length, at_least)]``; fewer items than ``at_least`` come around again."""
    rounds = max(1, -(-at_least // length))
    draws = np.random.default_rng([_ORDER, seed & 0xFFFFFFFF, epoch])
    orders = [draws.permutation(length) if shuffle else np.arange(length) for _ in range(rounds)]
    return np.concatenate(orders)[: max(length, at_least)].astype(np.int64)


def batches_in_epoch(length: int, global_batch: int, *, drop_last: bool = True) -> int:
    """Steps of an epoch, at least one: a data set smaller than a batch fills it with repetitions if ``drop_last``."""
    return max(1, length // global_batch) if drop_last else -(-length // global_batch)


def share_of(
    length: int,
    *,
    global_batch: int,
    world: World,
    seed: int,
    epoch: int,
    skip_batches: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
) -> list[list[int]]:
    """The item numbers of one rank, batch by batch, after the first ``skip_batches``.

    With ``drop_last`` every batch is full. Without it the last one may be smaller; it is then divided as evenly as it
    can be, and if it has fewer items than there are ranks, items from the beginning of the order are added so that
    every rank has one.
    """
    steps = batches_in_epoch(length, global_batch, drop_last=drop_last)
    order = epoch_order(length, seed, epoch, shuffle=shuffle, at_least=global_batch if drop_last else world.size)
    shares = []
    for step in range(skip_batches, steps):
        batch = order[step * global_batch : (step + 1) * global_batch]
        if len(batch) < world.size:
            batch = np.concatenate([batch, order[: world.size - len(batch)]])
        first, last = (len(batch) * rank // world.size for rank in (world.rank, world.rank + 1))
        shares.append(batch[first:last].tolist())
    return shares


# --- the loader ------------------------------------------------------------------------------------------------------


class _Plan(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, item), set anew for each pass; workers stay, so the epoch travels with each item."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(self.epoch, item) for item in batch]

    def __len__(self) -> int:
        return len(self.batches)


class _ByEpoch(Dataset[dict[str, Any]]):
    """A data set whose items are asked for as (epoch, item). A data set without epochs is taken as it is.

    It does not keep the data set alive: workers that wait for the next epoch end with the data set.
    """

    def __init__(self, dataset: Any) -> None:
        self._find: Callable[[], Any] = weakref.ref(dataset)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self._find()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        dataset = state["dataset"]  # in a worker that was spawned: here nobody else holds it
        self._find = lambda: dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, item = key
        dataset = self._find()
        return dataset.item(epoch, item) if hasattr(dataset, "item") else dataset[item]


@dataclass
class _Kept:
    """Workers that wait for the next epoch."""

    settings: tuple[Any, ...]
    plan: _Plan
    loader: DataLoader[dict[str, Any]]
    busy: bool = False


_kept: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()


class Loader:
    """Iterates once over the batches of one rank; made by :func:`make_loader`. ``len()`` is the number of batches left.

    Attributes:
        replaced: items so far for which another one stepped in, because they could not be read.
    """

    def __init__(
        self, dataset: Any, shares: list[list[int]], epoch: int, workers: int, pin: bool, first: int = 0
    ) -> None:
        self._dataset, self._shares, self._epoch, self._first = dataset, shares, epoch, first
        self._workers, self._pin = workers, pin
        self.replaced = 0

    def __len__(self) -> int:
        return len(self._shares)

    def _workers_for_this(self) -> _Kept:
        settings = (self._workers, self._pin)
        kept = _kept.get(self._dataset)
        if kept is not None and kept.settings == settings and not kept.busy:
            return kept
        plan = _Plan()
        loader: DataLoader[dict[str, Any]] = DataLoader(
            _ByEpoch(self._dataset),
            batch_sampler=plan,
            num_workers=self._workers,
            pin_memory=self._pin,
            persistent_workers=self._workers > 0,
            worker_init_fn=partial(start_worker, os.getpid()) if self._workers else None,
        )
        fresh = _Kept(settings, plan, loader)
        if kept is None or not kept.busy:
            _kept[self._dataset] = fresh
        return fresh

    def __iter__(self) -> Iterator[dict[str, Any]]:
        kept = self._workers_for_this()
        kept.plan.epoch, kept.plan.batches = self._epoch, self._shares
        kept.busy = True
        try:
            for number, batch in enumerate(kept.loader, self._first):
                batch["batch"] = torch.full((len(self._shares[number - self._first]),), number)
                if "replaced" in batch:
                    self.replaced += int(batch["replaced"].sum())
                yield batch
        except UserError as error:  # a worker's comes with its traceback, of which the last line is the message
            raise UserError(str(error).strip().rsplit("UserError: ", 1)[-1]) from None
        finally:
            kept.busy = False


def start_worker(rank_process: int, worker: int) -> None:
    """What a worker does first: one thread, no answer to Ctrl-C (the rank decides), and no life without its rank."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A worker holds copies of its rank's connections. If the rank is killed, they must close at once, or the other
        # ranks would not notice; so the kernel is asked to kill the worker too (PR_SET_PDEATHSIG).
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
        if os.getppid() != rank_process:  # it was already too late
            os._exit(1)


def make_loader(
    dataset: Any,
    *,
    batch: int,
    world: World | None = None,
    epoch: int = 0,
    skip_batches: int = 0,
    workers: int = 0,
    seed: int | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Loader:
    """The batches of this rank in one epoch, from a given place on.

    Args:
        dataset: a :class:`songbloom.data.dataset.ChunkDataset`, or anything with ``len`` and ``[i]``.
        batch: items of **each rank** in a step; the global batch is ``batch * world.size``.
        world: this process's place among the ranks; by default that of :mod:`songbloom.distributed`.
        epoch: chooses the order and what is random about the items.
        skip_batches: steps of the epoch that are already done; their items are not read.
        workers: processes that read items; 0 reads them in this process. Workers stay for the next epoch.
        seed: of the order; by default the data set's.
        shuffle: else the order is 0, 1, 2, …
        drop_last: leave out what does not fill the last global batch (for training). A data set smaller than one
            global batch is repeated to fill one. Without it, the last batch may be smaller.

    Yields:
        the items' values, stacked: ``{"audio": float32 [batch, sample_length, 1], "song": int64 [batch], …}``; pinned
        in memory if the device is a CUDA device. With them ``"batch"``, int64 [batch]: the step's number in the epoch.

    Raises:
        ValueError: an empty data set, or a batch, number of workers or batches below zero.
    """
    world = current_world() if world is None else world
    if batch < 1 or workers < 0 or skip_batches < 0 or len(dataset) < 1:
        raise ValueError(f"{len(dataset)} items, batch {batch}, {workers} workers, {skip_batches} batches to skip")
    shares = share_of(
        len(dataset),
        global_batch=batch * world.size,
        world=world,
        seed=getattr(dataset, "seed", 0) if seed is None else seed,
        epoch=epoch,
        skip_batches=skip_batches,
        shuffle=shuffle,
        drop_last=drop_last,
    )
    return Loader(dataset, shares, epoch, workers, world.device.type == "cuda", skip_batches)
