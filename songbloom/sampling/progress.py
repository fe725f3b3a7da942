"""How far a level is, how fast it goes and how long it will take, said now and then."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from songbloom.sampling.page import clock
from songbloom.sampling.sampler import Work


class LevelProgress:
    """Counts the codes that one process adds to one level, and prints a line about all processes'.

    Every process takes about as long for a step of the prior, so from how far this one is follows how far the others
    are: they may have other numbers of items, and after a restart other numbers of windows left. On a terminal the line
    is renewed in place; elsewhere a new one is printed every ten seconds.

    Args:
        level: named in the line.
        shares: what each process has to do, in the order of ranks.
        rank: of this process.
        quiet: print nothing (on ranks other than 0).
    """

    def __init__(
        self,
        level: int,
        shares: Sequence[Work],
        *,
        rank: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.level, self.shares, self.mine, self.quiet = level, shares, shares[rank], quiet
        self.there = sum(share.there for share in shares)
        self.new = sum(share.new for share in shares)
        self.stream = stream or sys.stdout
        self.in_place = self.stream.isatty()
        self.now = now
        self.added = 0
        self.begun = self.said = now()
        self.first: tuple[float, int] | None = None  # when the first codes came, and how many
        if self.new and not self.mine.new and not quiet:
            self._print(f"level {level}: {self.new} codes are left for other ranks", last=True)

    def add(self, codes: int) -> None:
        """So many more codes are written."""
        self.added += codes
        now = self.now()
        if self.first is None:
            self.first = now, codes
        if not self.quiet and now - self.said >= (0.5 if self.in_place else 10.0):
            self.said = now
            self._print(self.line(), last=False)

    def line(self) -> str:
        """Such as ``level 1: 5120 of 8192 codes, 231 codes/s, 0:13 left``; codes of an earlier session count as done,
        but tell nothing of the speed, and neither does the time before the first codes: weights are read in it."""
        since, before = self.first or (self.begun, 0)
        took = max(self.now() - since, 1e-9)
        steps, skipped = self._steps(self.added), self._steps(before)
        added = self._of_all(steps)
        longest = max(share.steps for share in self.shares)
        left = clock((longest - steps) * took / (steps - skipped)) if steps > skipped else "?"
        return (
            f"level {self.level}: {round(self.there + added)} of {self.there + self.new} codes, "
            f"{(added - self._of_all(skipped)) / took:.0f} codes/s, {left} left"
        )

    def _steps(self, codes: int) -> float:
        """In how many steps this process adds so many codes."""
        return self.mine.steps * codes / self.mine.new if self.mine.new else 0.0

    def _of_all(self, steps: float) -> float:
        """How many codes all processes add in so many steps."""
        return sum(share.new * min(1.0, steps / share.steps) for share in self.shares if share.steps)

    def finish(self) -> float:
        """Print how long all took, when all are done; returns that, in seconds."""
        took = self.now() - self.begun
        if not self.quiet:
            before = f" ({self.there} were there)" if self.there else ""
            speed = self.new / max(took, 1e-9)
            text = f"level {self.level}: {self.new} codes in {clock(took)}{before}, {speed:.0f} codes/s"
            self._print(text, last=True)
        return took

    def _print(self, text: str, *, last: bool) -> None:
        if self.in_place:
            if not last:  # a line that goes on in the next row could not be renewed
                text = text[: max(1, shutil.get_terminal_size().columns - 1)]
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)
