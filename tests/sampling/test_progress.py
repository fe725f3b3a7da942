"""Progress is said now and then, with the right numbers."""

from __future__ import annotations

import io

from songbloom.sampling.progress import LevelProgress


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LevelProgress(2, 100, share=3.0, stream=stream, now=clock)
    for _ in range(50):
        clock.time += 0.5
        progress.add(2)
    assert progress.finish() == 25.0
    assert stream.getvalue().splitlines() == [
        "level 2: 120 of 300 codes, 12 codes/s, 0:15 left",
        "level 2: 240 of 300 codes, 12 codes/s, 0:05 left",
        "level 2: 300 codes in 0:25, 12 codes/s",
    ]


def test_a_terminal_keeps_one_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, stream = Clock(), Terminal()
    progress = LevelProgress(0, 10, stream=stream, now=clock)
    for _ in range(10):
        clock.time += 1.0
        progress.add(1)
    progress.finish()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 11


def test_other_ranks_are_quiet() -> None:
    stream = io.StringIO()
    progress = LevelProgress(0, 10, quiet=True, stream=stream)
    progress.add(10)
    progress.finish()
    assert stream.getvalue() == ""
