"""Everything that a training run is made of and that a checkpoint keeps, so that a restart changes nothing.

The state is the weights and their average, the optimiser, schedule and loss scale, codebook statistics, random states
of every rank, the place in the data, and the averages of metrics not yet logged.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom import __version__, distributed
from songbloom.training import checkpoint
from songbloom.training.ema import make_average
from songbloom.training.logger import Averages
from songbloom.training.optim import make_adam
from songbloom.training.precision import make_scaler
from songbloom.training.schedule import Schedule
from songbloom.training.stopping import Clock
from songbloom.training.tasks import Task


@dataclass
class Position:
    """A place in the data, between two batches.

    Attributes:
        epoch: passes over the training set that are behind.
        batch: batches of this epoch that are behind, each of ``bs`` items on every rank.
    """

    epoch: int = 0
    batch: int = 0


class TrainingState:
    """What changes while a task is trained.

    Args:
        task: the task, its model on its device with the weights to start from.
        hps: hyperparameters; what a run begins with may add to them.
        argv: the command line, kept in checkpoints.
    """

    def __init__(self, task: Task, hps: MutableMapping[str, Any], argv: Sequence[str] = ()) -> None:
        self.task, self.hps, self.argv = task, hps, list(argv)
        parameters = list(task.model.parameters())
        self.parameters = [p for p in parameters if p.requires_grad] or parameters  # all are frozen in a mere test
        groups = task.groups(self.parameters)
        self.adam = make_adam(groups, hps, half_moments=task.precision.half_moments)
        self.schedule = Schedule(hps)
        self.scaler = make_scaler(task.precision, hps)
        self.average = make_average(self.parameters, hps, distributed.world().size)
        self.window = Averages()
        self.clock = Clock(hps)
        self.position = Position(epoch=max(0, int(hps["curr_epoch"])))
        self.step = 0  # optimiser steps taken
        self.skipped = 0  # steps skipped: overflow, or too large a gradient

    @property
    def global_batch(self) -> int:
        """Items of a batch over all ranks."""
        return int(self.hps["bs"]) * distributed.world().size

    # ------------------------------------------------------------------------------------------------- saving

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds (:data:`songbloom.training.checkpoint.KEYS`). All ranks call it together."""
        position = {
            "epoch": self.position.epoch,
            "batch": self.position.batch,
            "global_batch": self.global_batch,
            "seconds": self.clock.seconds,
            "skipped": self.skipped,
            "average_count": self.average.count if self.average else 0,
            "window": self.window.state_dict(),
        }
        return {
            "format": checkpoint.FORMAT,
            "kind": self.task.kind,
            "hps": dict(self.hps),
            "model": self.task.weights(),
            "ema": self._averaged_weights(),
            "codebook": self.task.codebook_state(),
            "optimizer": self.adam.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {"ranks": distributed.gather_objects(self._random_state())},
            "position": position,
            "step": self.step,
            "version": __version__,
            "argv": self.argv,
        }

    def _averaged_weights(self) -> dict[str, Tensor] | None:
        """The average under the names of the weights; a weight with two names is there twice, as in ``model``."""
        if self.average is None:
            return None
        shadows = self.average.state_dict()["shadow"]
        of = {id(p): shadow for p, shadow in zip(self.parameters, shadows, strict=True)}
        named = self.task.model.named_parameters(remove_duplicate=False)
        return {name: of[id(p)] for name, p in named if id(p) in of}

    def _random_state(self) -> dict[str, Any]:
        cuda = distributed.world().device.type == "cuda"
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if cuda else None,
        }

    def save(self, folder: Path, *, numbered: bool = True) -> None:
        """Write a checkpoint into the run's folder (rank 0 writes; all ranks call it together).

        Args:
            numbered: also keep it as ``checkpoint_step_N``; otherwise only ``checkpoint_latest`` is replaced.
        """
        content = self.content()
        if distributed.world().is_main:
            checkpoint.save_in_run(folder, content, keep=int(self.hps["keep_checkpoints"]), numbered=numbered)
            self.task.save_beside(folder)
            if self.task.lora is not None:
                with self.average.averaged() if self.average is not None else nullcontext():
                    self.task.lora.export(folder, self.step, numbered=numbered)
        self.clock.saved()

    # ------------------------------------------------------------------------------------------------ loading

    def load_weights(self, content: Mapping[str, Any]) -> None:
        """Take raw weights, their average and the codebook statistics from a checkpoint of this program."""
        self.task.load_weights(content["model"])
        self.task.load_codebook_state(content["codebook"])
        if self.average is not None:
            names = {id(p): name for name, p in self.task.model.named_parameters()}
            saved = content["ema"] or content["model"]  # a run without an average goes on with one from here
            shadow = [saved[names[id(p)]] for p in self.parameters]
            count = int(content["position"]["average_count"])
            self.average.load_state_dict({"shadow": shadow, "count": count})

    def load_optimiser(self, content: Mapping[str, Any]) -> None:
        """Take the optimiser's moments and the loss scale."""
        self.adam.load_state_dict(content["optimizer"])
        if content["scaler"] is not None and self.task.precision.scaled:
            self.scaler.load_state_dict(content["scaler"])

    def load_step(self, content: Mapping[str, Any]) -> None:
        """Take the count of steps, and with it the place in the schedule."""
        self.step = int(content["step"])
        self.schedule.load_state_dict(content["scheduler"])

    def load_place(self, content: Mapping[str, Any]) -> None:
        """Take what only the same run can go on with: place in the data, random states, time, metrics not logged."""
        place = content["position"]
        items = int(place["batch"]) * int(place["global_batch"])
        self.position = Position(int(place["epoch"]), items // self.global_batch)
        self.skipped = int(place["skipped"])
        self.window.load_state_dict(place["window"])
        self.clock.resume(float(place["seconds"]))
        states, rank = content["random"]["ranks"], distributed.world().rank
        if rank >= len(states):  # more ranks than before: the new ones go on from seeds of their own
            torch.manual_seed(rank_seed(self.hps, self.step))
            return
        torch.set_rng_state(states[rank]["torch"])
        if states[rank]["cuda"] is not None and distributed.world().device.type == "cuda":
            torch.cuda.set_rng_state(states[rank]["cuda"])

    def resume(self, content: Mapping[str, Any]) -> None:
        """Go on exactly where a checkpoint of this run was written."""
        self.load_weights(content)
        self.load_optimiser(content)
        self.load_step(content)
        self.load_place(content)


def rank_seed(hps: Mapping[str, Any], step: int = 0) -> int:
    """A seed for what each rank draws on its own (dropout): differs between ranks, and is the same in every run."""
    place = distributed.world()
    return (int(hps.get("seed", 0)) * 1_000_003 + step * 10_007 + place.rank + 1) % (1 << 62)
