"""Progress is said now and then, with the right numbers."""

from __future__ import annotations

import io

import pytest

from songbloom.sampling.progress import LevelProgress
from songbloom.sampling.sampler import Work


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    shares = [Work(0, 100, 50), Work(0, 100, 50), Work(0, 100, 50)]
    progress = LevelProgress(2, shares, stream=stream, now=clock)
    for _ in range(50):
        clock.time += 0.5
        progress.add(2)
    assert progress.finish() == 25.0
    assert stream.getvalue().splitlines() == [
        "level 2: 120 of 300 codes, 12 codes/s, 0:15 left",
        "level 2: 240 of 300 codes, 12 codes/s, 0:05 left",
        "level 2: 300 codes in 0:25, 12 codes/s",
    ]


def test_codes_of_an_earlier_session_are_done_but_tell_nothing_of_the_speed() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = LevelProgress(0, [Work(500, 100, 100)], stream=stream, now=clock)
    clock.time = 90.0  # of which reading the weights took most
    progress.add(1)
    clock.time = 100.0
    progress.add(40)
    assert stream.getvalue().splitlines() == [
        "level 0: 501 of 600 codes, 0 codes/s, ? left",
        "level 0: 541 of 600 codes, 4 codes/s, 0:15 left",
    ]
    clock.time = 125.0
    progress.finish()
    assert stream.getvalue().endswith("level 0: 100 codes in 2:05 (500 were there), 1 codes/s\n")


def test_the_slowest_rank_tells_when_all_is_done() -> None:
    """Rank 0 has one of its two items' last windows left; rank 1 all of its own."""
    clock, stream = Clock(), io.StringIO()
    progress = LevelProgress(0, [Work(50, 20, 20), Work(0, 100, 50)], stream=stream, now=clock)
    progress.add(0)
    clock.time = 10.0
    progress.add(10)  # as many steps: rank 1 has made 20 codes in them
    assert stream.getvalue() == "level 0: 80 of 170 codes, 3 codes/s, 0:40 left\n"


def test_a_rank_with_nothing_left_says_for_whom_it_waits() -> None:
    stream = io.StringIO()
    progress = LevelProgress(1, [Work(10, 0, 0), Work(0, 7, 7)], stream=stream, now=Clock())
    assert stream.getvalue() == "level 1: 7 codes are left for other ranks\n"
    assert progress.line() == "level 1: 10 of 17 codes, 0 codes/s, ? left"


def test_a_terminal_keeps_one_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, stream = Clock(), Terminal()
    progress = LevelProgress(0, [Work(0, 10, 10)], stream=stream, now=clock)
    for _ in range(10):
        clock.time += 1.0
        progress.add(1)
    progress.finish()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 11


def test_a_narrow_terminal_gets_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    clock, stream = Clock(), io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    progress = LevelProgress(0, [Work(0, 100, 100)], stream=stream, now=clock)
    clock.time = 1.0
    progress.add(10)
    assert stream.getvalue() == "\r\x1b[Klevel 0: 10 of 100 "


def test_other_ranks_are_quiet() -> None:
    stream = io.StringIO()
    progress = LevelProgress(0, [Work(0, 10, 10)], quiet=True, stream=stream)
    progress.add(10)
    progress.finish()
    assert stream.getvalue() == ""
