"""What a run tells: TensorBoard files, averages of metrics over ranks, and a line of progress.

Everything goes to ``{local_logdir}/{name}/logs`` through tensorboardX, from rank 0 alone; ``tensorboard --logdir logs``
shows it. Scalars are averages over the steps since the last time they were written, over all ranks.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom import distributed


class Logger:
    """Writes scalars, audio, pictures and text of one run; does nothing on ranks other than 0.

    Args:
        folder: where TensorBoard files go.
        sample_rate: of the audio, in Hz.
        max_log: number of clips written at most under one tag.
        max_len: seconds of a clip at most.
        resumed_at: the step that training goes on from; what an earlier process wrote beyond it is hidden.
        also: hears scalars and audio too (:class:`songbloom.training.wandb_log.WandbLog`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        sample_rate: int,
        max_log: int = 32,
        max_len: float = 24,
        resumed_at: int | None = None,
        also: Any = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.max_log = max_log
        self.max_len = max_len
        self._writer: Any = None
        self._also = also
        if distributed.world().is_main:
            from tensorboardX import SummaryWriter

            purge = resumed_at + 1 if resumed_at else None
            # Names of event files tell the second: a run that goes on within it must not write over its own beginning.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=20, filename_suffix=suffix)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write each value under its key."""
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
        if self._also is not None:
            self._also.scalars(values, step)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Write text (shown as Markdown)."""
        if self._writer is not None:
            self._writer.add_text(tag, text, step)

    def settings(self, hps: Mapping[str, Any], step: int = 0) -> None:
        """Write the merged hyperparameters as a table."""
        rows = "\n".join(f"| {key} | {value!r:.300} |" for key, value in sorted(hps.items()))
        self.text("hps", f"| key | value |\n|---|---|\n{rows}", step)

    def audio(self, tag: str, audio: Tensor, step: int) -> None:
        """Write clips and their log-mel pictures under ``{i}/{tag}``.

        Args:
            audio: ``[N, T, C]``, mono or stereo, in [-1, 1]; louder is clamped. At most ``max_log`` items of
                ``max_len`` seconds.
        """
        if self._writer is None:
            return
        from songbloom.audio.mel import mel_picture

        longest = max(1, int(self.max_len * self.sample_rate))
        clips = audio[: self.max_log, :longest].detach().float().cpu()
        for i, clip in enumerate(torch.nan_to_num(clips).clamp(-1, 1).numpy()):
            self._writer.add_audio(f"{i}/{tag}", clip, step, sample_rate=self.sample_rate)
            if self._also is not None:
                self._also.audio(f"{i}/{tag}", clip, step, self.sample_rate)
            picture = np.asarray(mel_picture(clip.mean(axis=1), self.sample_rate))
            self._writer.add_image(f"{i}/{tag}", picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Put on disk what was written so far."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._also is not None:
            self._also.close()
            self._also = None


class Averages:
    """Running averages of metrics, weighted by items, on the device until they are asked for."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._sums: Tensor | None = None
        self._weight = 0.0

    def add(self, metrics: Mapping[str, Tensor | float], items: float = 1.0) -> None:
        """Take in one batch's metrics, each a scalar that is a mean over ``items`` items.

        Raises:
            KeyError: the metrics have other keys than before.
        """
        if self._sums is None:
            self._keys = list(metrics)
        elif set(metrics) != set(self._keys):
            raise KeyError(f"metrics changed from {self._keys} to {list(metrics)}")
        values = []
        on = next((v.device for v in metrics.values() if isinstance(v, Tensor)), torch.device("cpu"))
        dtype = _exact(on)
        for key in self._keys:
            values.append(torch.as_tensor(metrics[key], device=on).detach().to(dtype).reshape(()))
        total = torch.stack(values) * items
        self._sums = total if self._sums is None else self._sums + total
        self._weight += items

    def _over_ranks(self) -> tuple[Tensor, float]:
        assert self._sums is not None
        together = torch.cat([self._sums, self._sums.new_tensor([self._weight])])
        together = distributed.all_reduce_(together.clone())
        return together[:-1].cpu(), float(together[-1])

    def take(self) -> dict[str, float]:
        """The averages over all ranks since the last call; starts anew. All ranks call it together.

        Empty if nothing was added anywhere.
        """
        if not distributed.any_rank(self._sums is not None):
            return {}
        self._agree_on_keys()
        sums, weight = self._over_ranks()
        averages = {key: float(value) / weight for key, value in zip(self._keys, sums, strict=True)}
        self._sums, self._weight = None, 0.0
        return averages

    def _agree_on_keys(self) -> None:
        """A rank that had no batch takes part with zeros."""
        if not distributed.any_rank(self._sums is None):
            return
        keys = next(keys for keys in distributed.gather_objects(self._keys if self._sums is not None else []) if keys)
        if self._sums is None:
            self._keys = keys
            device = distributed.world().device
            self._sums = torch.zeros(len(keys), dtype=_exact(device), device=device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: sums over all ranks. All ranks call it together."""
        if not distributed.any_rank(self._sums is not None):
            return {"keys": [], "sums": None, "weight": 0.0}
        self._agree_on_keys()
        sums, weight = self._over_ranks()
        return {"keys": list(self._keys), "sums": sums, "weight": weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: rank 0 takes all, the others nothing."""
        place = distributed.world()
        self._keys, self._sums, self._weight = list(state["keys"]), None, 0.0
        if state["sums"] is not None:
            mine = state["sums"].to(_exact(place.device)).to(place.device)
            self._sums = mine if place.is_main else torch.zeros_like(mine)
            self._weight = float(state["weight"]) if place.is_main else 0.0


def _exact(device: torch.device) -> torch.dtype:
    """The dtype of sums on a device; Metal has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def four_digits(value: float) -> str:
    """A number with four digits that count, never with an exponent where it is large: ``0.512``, ``10150``."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 07 min`` or ``2 d 03 h``."""
    if seconds != seconds or seconds == float("inf"):
        return "unknown"
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{whole} s"


def _cut(line: str) -> str:
    """A line that stays one on the terminal: a longer one could not be rewritten in place."""
    width = shutil.get_terminal_size().columns - 1  # some terminals go on to the next line after the last column
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


class Progress:
    """Speed and a line about it: printed every ``log_steps``, and on a terminal rewritten in place in between.

    Args:
        shown: metrics that belong in the line, in order; those that do not occur are left out.
        seconds_left: tells, from a step and the steps a second, how long training will go on.
    """

    REDRAW_SECONDS = 0.5
    MEMORY = 30.0  # seconds after which a past speed counts for half

    def __init__(self, shown: tuple[str, ...], seconds_left: Callable[[int, float], float]) -> None:
        self.shown = shown
        self.steps_per_second = 0.0
        self._seconds_left = seconds_left
        self._terminal = sys.stdout.isatty() and distributed.world().is_main
        self._drawn = 0.0
        self._last = time.perf_counter()
        self._elapsed = 0.0
        self._steps = 0.0
        self._told: list[str] = []

    def step(self, step: int) -> None:
        """Optimiser step number ``step`` is done."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        keep = 0.5 ** (took / self.MEMORY)
        self._elapsed = self._elapsed * keep + took
        self._steps = self._steps * keep + 1
        self.steps_per_second = self._steps / max(self._elapsed, 1e-9)
        if self._terminal and now - self._drawn > self.REDRAW_SECONDS:
            self._drawn = now
            sys.stdout.write(f"\r\x1b[2K{_cut(' | '.join([f'step {step}', *self._speed(step), *self._told]))}")
            sys.stdout.flush()

    def pause(self) -> None:
        """Something other than training took the time until now (a test, a sample); speeds leave it out."""
        self._last = time.perf_counter()

    def _speed(self, step: int) -> list[str]:
        left = self._seconds_left(step, self.steps_per_second)
        return [f"{self.steps_per_second:.3g} steps/s", f"ETA {duration(left)}"]

    def set(self, step: int, epoch: int, values: Mapping[str, float], rate: str) -> None:
        """Tell the newest averages (rank 0 prints)."""
        metrics = [f"{key} {values[key]:.4g}" for key in self.shown if key in values]
        self._told = [f"epoch {epoch}", *metrics, *([rate] if rate else [])]
        self.say(" | ".join([f"step {step}", *self._told, *self._speed(step)]))

    def say(self, line: str) -> None:
        """Print a line that stays (rank 0)."""
        if self._terminal:
            sys.stdout.write("\r\x1b[2K")
        distributed.say(line)
