"""When training stops, and when it saves in between: signals, a budget of time, a number of steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from songbloom import distributed

ECHO = 1.0  # seconds; a terminal and mpiexec both hand one Ctrl-C to a rank


class Interruption:
    """Turns the first Ctrl-C, and SIGTERM of a single process, into a request to save and stop; a second stops at once.

    With several ranks all of them have to hear of it before they stop (:meth:`agree`), and SIGTERM keeps its meaning: a
    rank that is told to end takes all ranks with it within seconds (:func:`songbloom.distributed.run`).

    Attributes:
        asked: the signal that this process was sent; 0 for none.
        signal: the signal that all ranks know of, and stop for; 0 for none.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = self.signal = 0
        self._say = say
        self._alone = distributed.world().size == 1
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked and (self._alone or time.monotonic() - self._when > ECHO):
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._when = number, time.monotonic()
        if self._alone:
            self.signal = number
        self._say(f"{signal.Signals(number).name}: saving and stopping after this step (again to stop at once)")

    def agree(self, heard: int) -> None:
        """Take the largest of what the ranks were asked as what all of them stop for."""
        self.signal = self.signal or heard

    @property
    def status(self) -> int:
        """The exit status that tells the signal, as a shell does; 0 if there was none."""
        return 128 + self.signal if self.signal else 0


class Clock:
    """Training time of this run, over all its processes, against its limits.

    Args:
        hps: ``budget_minutes`` (0: no limit) and ``checkpoint_minutes`` (0: never).
    """

    def __init__(self, hps: Mapping[str, Any]) -> None:
        self._budget = 60.0 * float(hps["budget_minutes"])
        self._interval = 60.0 * float(hps["checkpoint_minutes"])
        self._before = 0.0
        self._started = time.monotonic()
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier processes included."""
        return self._before + time.monotonic() - self._started

    def resume(self, seconds: float) -> None:
        """Earlier processes trained for so long."""
        self._before = seconds
        self._started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left of the budget; infinite without one."""
        return self._budget - self.seconds if self._budget else float("inf")

    @property
    def save_due(self) -> bool:
        """Whether ``checkpoint_minutes`` have passed since the last checkpoint."""
        return bool(self._interval) and time.monotonic() - self._saved >= self._interval

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()
