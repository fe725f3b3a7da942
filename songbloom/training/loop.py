"""The one training loop, for codecs and priors alike.

A step is: forward, backward (each ``iters_before_update`` times), gradient norm, optimiser, zero gradients, schedule,
average of the weights, logging. Numbers that are not finite are told between ranks as integer flags, since a
floating-point maximum over ranks would lose a NaN; then every rank skips the step.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from songbloom import distributed
from songbloom.data.loader import batches_in_epoch, make_loader
from songbloom.errors import UserError, counted
from songbloom.training.logger import Averages, Logger, Progress, four_digits
from songbloom.training.optim import clipped_scale, gradient_norm
from songbloom.training.state import TrainingState
from songbloom.training.stopping import Interruption
from songbloom.training.tasks import Batch, evaluating
from songbloom.training.wandb_log import WandbLog

TIME_IS_UP = "its time is used up (budget_minutes)"
HOPELESS = 200  # steps skipped in a row after which training gives up


class Trainer:
    """Trains and evaluates a task.

    Args:
        state: the task and all that changes while it is trained, resumed where it is to go on.
        folder: the run's folder, for checkpoints; TensorBoard files go to its ``logs``.
        train_set, test_set: data sets (:class:`songbloom.data.dataset.ChunkDataset`); either may be None if unused.
    """

    def __init__(self, state: TrainingState, folder: Path, train_set: Any, test_set: Any) -> None:
        self.state, self.folder = state, folder
        if distributed.world().is_main:
            folder.mkdir(parents=True, exist_ok=True)
        self.train_set, self.test_set = train_set, test_set
        self.task, self.hps = state.task, state.hps
        self.world = distributed.world()
        self.accumulate = int(self.hps["iters_before_update"])
        self.module = self._wrapped()
        self.logger = Logger(
            folder / "logs",
            sample_rate=self.hps["sr"],
            max_log=self.hps["max_log"],
            max_len=self.hps["max_len"],
            resumed_at=state.step,
            also=WandbLog(self.hps, folder) if self.hps["wandb"] and self.world.is_main else None,
        )
        self.logger.settings(self.hps, state.step)
        self.progress = Progress(self.task.shown, self._seconds_left)
        self.interruption = Interruption(self.progress.say)
        self.finished = ""  # why training ended
        self._saved = (-1, False)  # the last save: its step, and whether it has a number
        self._skipped_in_a_row = 0
        self._begin_group()

    def _wrapped(self) -> torch.nn.Module:
        """The task with gradients averaged over ranks."""
        if self.world.size == 1 or not self.hps["train"]:
            return self.task
        distributed.require_own_devices()
        # A convolution of kernel 1 may lay its gradient out otherwise than its weight; it is then copied, cheaply.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            self.task,
            device_ids=None,  # with one it would move labels there, which priors look through on the CPU
            forward_sync_buffers=False,
            bucket_cap_mb=self.hps["bucket"],
            gradient_as_bucket_view=True,
        )

    # ------------------------------------------------------------------------------------------------ the run

    def run(self) -> int:
        """Train (``train``), evaluate (``test``), save; returns the exit status, 0 unless a signal ended it."""
        try:
            with self.interruption:
                if self.hps["train"]:
                    self._train()
                elif self.hps["test"]:
                    self._evaluate()
            return self.interruption.status
        finally:
            self.logger.close()

    def _train(self) -> None:
        state = self.state
        if distributed.any_rank(state.clock.left <= 0):
            self.finished = TIME_IS_UP
        if self.finished or self._is_over():
            self.progress.say(f"nothing left to train: {self.finished} (step {state.step})")
            return
        self.task.train()
        self.progress.pause()
        batch = None
        while not self.finished:
            if state.position.epoch >= self.hps["epochs"]:
                self.finished = f"{counted(self.hps['epochs'], 'epoch is', 'epochs are')} done"
                break
            for batch in self._batches(self.train_set, state.position.epoch, state.position.batch, shuffle=True):
                self._batch(batch)
                if self.finished:
                    break
            else:
                state.position.epoch += 1
                state.position.batch = 0
                every = self.hps["save_epochs"]
                if self.hps["save"] and every and state.position.epoch % every == 0:
                    self._save(numbered=True)
                if self.hps["test"] and not self.hps["eval_iters"] and state.position.epoch < self.hps["epochs"]:
                    self._evaluate()
        self._end(batch)

    def _end(self, batch: Batch | None) -> None:
        wanted = (self.state.step, not self.interruption.signal)
        if self.hps["save"] and self._saved < wanted:
            self._save(numbered=wanted[1])
        if wanted[1] and self.state.step % self.hps["log_steps"]:
            self._log(batch)  # what a run shorter than log_steps, or its last part, would not have told
        self.progress.say(f"training ended at step {self.state.step}: {self.finished}")
        if self.interruption.signal:
            distributed.barrier()  # the first rank that ends with a signal's status ends all, and rank 0 is saving
            return
        if self.hps["test"]:
            self._evaluate()
        if batch is not None:
            self._examples(batch, samples=bool(self.hps["sample_iters"]))

    def _batches(self, dataset: Any, epoch: int, skip: int, *, shuffle: bool) -> Iterator[Batch]:
        """Each batch, on the device."""
        loader = make_loader(
            dataset,
            batch=self.hps["bs"],
            world=self.world,
            epoch=epoch,
            skip_batches=skip,
            workers=self.hps["nworkers"],
            seed=self.hps["seed"],
            shuffle=shuffle,
            drop_last=shuffle,
        )
        # Starting a loader draws from the global generator, which dropout uses: put it back, so that a run that starts
        # loaders at other moments (after a stop) drops the same.
        with torch.random.fork_rng(devices=[]):
            batches = iter(loader)
            first = list(itertools.islice(batches, 1))
        for items in itertools.chain(first, batches):
            yield self.task.batch_of(items, self.world.device)
        replaced = int(distributed.all_reduce_(torch.tensor(loader.replaced, device=self.world.device)))
        if replaced:
            self.progress.say(f"epoch {epoch}: {replaced} chunks could not be read; others stood in")

    # ----------------------------------------------------------------------------------------------- one step

    def _begin_group(self) -> None:
        """Begin to gather gradients for the next optimiser step."""
        self._micro = 0
        self._bad = False
        self._pending: list[tuple[dict[str, Tensor], int]] = []
        self._wants_stop = self._wants_save = False
        for p in self.state.parameters:
            p.grad = None

    def _batch(self, batch: Batch) -> None:
        """Take in one batch; every ``iters_before_update``-th completes an optimiser step."""
        last = self._micro + 1 == self.accumulate
        with contextlib.ExitStack() as stack:
            if not last and isinstance(self.module, DistributedDataParallel):
                stack.enter_context(self.module.no_sync())
            loss, metrics = self.module(*self.task.prepare(batch))
            self._hear_flags(loss)
            if not self._bad:
                (loss * (self.state.scaler.scale / self.accumulate)).backward()
                self._pending.append(({"loss": loss.detach(), **metrics}, len(batch)))
        self.state.position.batch += 1
        self._micro += 1
        if last:
            stepped = self._optimise()
            stop, save = self._wants_stop, self._wants_save
            self._begin_group()
            if stepped:
                self._after_step(batch, save)
            if stop and not self.finished:
                self.finished = "interrupted" if self.interruption.signal else TIME_IS_UP

    def _hear_flags(self, loss: Tensor) -> None:
        """One integer exchange a batch: is a loss not finite, does a rank want to stop, or to save?"""
        clock = self.state.clock
        flags = [not bool(torch.isfinite(loss)), clock.left <= 0, clock.save_due, self.interruption.asked]
        heard = distributed.all_reduce_max_(torch.tensor(flags, dtype=torch.int32, device=self.world.device)).tolist()
        self._bad = self._bad or bool(heard[0])
        self.interruption.agree(heard[3])
        self._wants_stop = self._wants_stop or bool(heard[1]) or bool(self.interruption.signal)
        self._wants_save = self._wants_save or bool(heard[2])

    def _optimise(self) -> bool:
        """Use the gathered gradients; False if the step had to be skipped."""
        state = self.state
        if self._bad:
            return self._skip("the loss is not finite")
        norms = [float(gradient_norm(group["params"], state.scaler.scale)) for group in state.adam.param_groups]
        norm = math.hypot(*norms)
        limit = float(self.hps["ignore_grad_norm"])
        flags = [not math.isfinite(norm), 0 < limit < norm]
        heard = distributed.all_reduce_max_(torch.tensor(flags, dtype=torch.int32, device=self.world.device)).tolist()
        if heard[0]:
            state.scaler.update(True)
            scale = f"; loss scale is now {state.scaler.scale:g}" if self.task.precision.scaled else ""
            return self._skip(f"a gradient is not finite{scale}")
        if heard[1]:
            return self._skip(f"the gradient norm {norm:.4g} is above ignore_grad_norm={limit:g}")
        if self.task.lora is not None and not state.step:
            self.task.lora.check_gradients()
        lr = state.schedule.lr
        for group in state.adam.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        state.adam.step(scale=[clipped_scale(own, self.hps["clip"], state.scaler.scale) for own in norms])
        state.scaler.update(False)
        state.schedule.step()
        if state.average is not None:
            state.average.step()
        state.step += 1
        self._skipped_in_a_row = 0
        for metrics, items in self._pending:
            state.window.add({**metrics, **self._told(norms), "lr": lr}, items)
        return True

    def _told(self, norms: Sequence[float]) -> dict[str, float]:
        """The gradients' norms under their names; ``gn`` is that of the first group."""
        names = [group.get("name", "") for group in self.state.adam.param_groups]
        return {f"gn_{name}" if name else "gn": norm for name, norm in zip(names, norms, strict=True)}

    def _skip(self, why: str) -> bool:
        self.state.skipped += 1
        self._skipped_in_a_row += 1
        count = self._skipped_in_a_row
        if count <= 5 or count % 20 == 0:
            self.progress.say(f"skipping step {self.state.step + 1}: {why}")
        if count >= HOPELESS:
            raise UserError(
                f"{counted(count, 'step')} in a row had to be skipped ({why}); go back to an "
                "earlier checkpoint, or lower --lr"
            )
        return False

    def _after_step(self, batch: Batch, save_due: bool) -> None:
        """Log, save and sample where it is time to, and see whether training is over."""
        step, hps = self.state.step, self.hps
        self.progress.step(step)
        if step % hps["log_steps"] == 0:
            self._log(batch)
        over = self._is_over()
        if hps["test"] and hps["eval_iters"] and step % hps["eval_iters"] == 0 and not over:
            self._evaluate()
        numbered = step % hps["save_iters"] == 0
        if hps["save"] and (numbered or save_due):
            self._save(numbered=numbered)
        sampling = bool(hps["sample_iters"]) and step % hps["sample_iters"] == 0
        if (numbered or sampling) and not over:
            self._examples(batch, samples=sampling)

    def _is_over(self) -> bool:
        """Whether no further step is to be taken; says why in ``finished``."""
        state, steps = self.state, self.hps["train_steps"]
        if steps and state.step >= steps:
            self.finished = f"train_steps={steps} is reached"
        elif state.schedule.finished:
            self.finished = "the learning rate has reached 0"
        return bool(self.finished)

    # ---------------------------------------------------------------------------------- telling and saving

    def _save(self, *, numbered: bool) -> None:
        self.state.save(self.folder, numbered=numbered)
        self._saved = (self.state.step, numbered)
        self.progress.pause()

    def _log(self, batch: Batch | None) -> None:
        """Average what was gathered over ranks, write it and tell the important part."""
        state = self.state
        values = state.window.take()
        if not values:
            return
        values["lg_loss_scale"] = math.log2(state.scaler.scale)
        values["skipped_steps"] = float(state.skipped)
        values["steps_per_second"] = self.progress.steps_per_second
        rate = ""
        if batch is not None:
            a_step = self.task.amount(batch.audio) * self.accumulate * self.world.size
            speed = a_step * self.progress.steps_per_second
            values[f"{self.task.unit.replace('-', '_')}_per_second"] = speed
            rate = f"{four_digits(speed)} {self.task.unit}/s"
        self.logger.scalars(values, state.step)
        self.progress.set(state.step, state.position.epoch, values, rate)

    def _examples(self, batch: Batch, *, samples: bool) -> None:
        """Log inputs, reconstructions and, if ``samples``, new items, all with averaged weights (rank 0)."""
        with evaluating(self.task), self._averaged(), self.task.merged():
            if self.world.is_main:
                self.task.log_inputs(self.logger, self.state.step, batch)
                if samples:
                    self.task.log_samples(self.logger, self.state.step, batch)
                self.logger.flush()
        distributed.barrier()
        self.progress.pause()

    def _averaged(self) -> Any:
        average = self.state.average
        return average.averaged() if average is not None else contextlib.nullcontext()

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Averages of ``test_*`` metrics over the test set, with averaged weights; logged and told."""
        averages = Averages()
        with evaluating(self.task), self._averaged():
            for number, batch in enumerate(self._batches(self.test_set, 0, 0, shuffle=False)):
                loss, metrics = self.task(*self.task.prepare(batch))
                named = {"test_loss": loss, **{f"test_{k}": v for k, v in metrics.items()}}
                averages.add(named, 0 if self._is_filling(number) else len(batch))
        values = averages.take()
        self.logger.scalars(values, self.state.step)
        shown = [f"{k} {values[f'test_{k}']:.4g}" for k in self.task.shown if f"test_{k}" in values]
        self.progress.say(f"test at step {self.state.step}: {' | '.join(shown)}")
        self.progress.pause()
        return values

    def _is_filling(self, number: int) -> bool:
        """Whether test batch ``number`` of this rank only repeats an item because the last has fewer than ranks."""
        left = len(self.test_set) - number * self.state.global_batch
        return left < self.world.size and self.world.rank >= left

    def _seconds_left(self, step: int, speed: float) -> float:
        """How long training will go on at this speed: the nearest of its ends."""
        ends: list[float] = []
        if self.hps["train_steps"]:
            ends.append(self.hps["train_steps"] - step)
        if self.hps["lr_use_linear_decay"] or self.hps["lr_use_cosine_decay"]:
            ends.append(self.hps["lr_start_linear_decay"] + self.hps["lr_decay"] - step)
        if self.train_set is not None:
            batches = batches_in_epoch(len(self.train_set), self.state.global_batch)
            left = (self.hps["epochs"] - self.state.position.epoch) * batches - self.state.position.batch
            ends.append(left / self.accumulate)
        return min(min(ends, default=math.inf) / max(speed, 1e-9), self.state.clock.left)


def _called(hps: Mapping[str, Any], kind: str) -> str:
    """What is trained, in a word: a prior that writes the codes below others is an upsampler."""
    below = kind == "prior" and not hps.get("songbloom") and hps["level"] < hps["levels"] - 1
    return f"upsampler of level {hps['level']}" if below else kind


def describe(hps: Mapping[str, Any], state: TrainingState) -> str:
    """One line about what is going to be trained."""
    parameters = sum(p.numel() for p in state.parameters)
    batch = state.global_batch * int(hps["iters_before_update"])
    place = distributed.world()
    return (
        f"{_called(hps, state.task.kind)}: {parameters:,} parameters, {state.task.precision.name} on {place.device} "
        f"({counted(place.size, 'rank')}), {counted(batch, 'item')} a step, from step {state.step}"
    )
