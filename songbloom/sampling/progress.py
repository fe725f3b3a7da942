"""How far a level is, how fast it goes and how long it will take, said now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from songbloom.sampling.page import clock


class LevelProgress:
    """Counts the codes that one process writes for one level, and prints a line about them.

    On a terminal the line is renewed in place; elsewhere a new one is printed every ten seconds.

    Args:
        level: named in the line.
        codes: how many this process will write, over all of its items.
        share: items of all processes per item of this one, to tell the speed of all.
        quiet: print nothing (on ranks other than 0).
    """

    def __init__(
        self,
        level: int,
        codes: int,
        *,
        share: float = 1.0,
        quiet: bool = False,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.level, self.codes, self.share, self.quiet = level, codes, share, quiet
        self.stream = stream or sys.stdout
        self.in_place = self.stream.isatty()
        self.now = now
        self.done = 0
        self.begun = self.said = now()

    def add(self, codes: int) -> None:
        """So many more codes are written."""
        self.done += codes
        now = self.now()
        if not self.quiet and now - self.said >= (0.5 if self.in_place else 10.0):
            self.said = now
            self._print(self.line(), last=False)

    def line(self) -> str:
        """Such as ``level 1: 5120 of 8192 codes, 231 codes/s, 0:13 left``."""
        took = max(self.now() - self.begun, 1e-9)
        speed = self.done / took
        left = clock((self.codes - self.done) / speed) if self.done else "?"
        total = round(self.codes * self.share)
        return (
            f"level {self.level}: {round(self.done * self.share)} of {total} codes, "
            f"{speed * self.share:.0f} codes/s, {left} left"
        )

    def finish(self) -> float:
        """Print how long the level took; returns that, in seconds."""
        took = self.now() - self.begun
        if not self.quiet:
            speed = self.done * self.share / max(took, 1e-9)
            written = round(self.done * self.share)
            self._print(f"level {self.level}: {written} codes in {clock(took)}, {speed:.0f} codes/s", last=True)
        return took

    def _print(self, text: str, *, last: bool) -> None:
        if self.in_place:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)
