"""The line of progress, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from songbloom.training.logger import Progress, four_digits

SHOWN = ("loss", "bits_per_code")
VALUES = {"loss": 1.25, "bits_per_code": 5.125}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line that a terminal of so many columns shows after a step."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(SHOWN, lambda step, speed: 3600.0)
    progress.set(7, 2, VALUES, "lr 0.0003")
    progress.step(7)
    return terminal.getvalue()


def test_a_line_is_cut_to_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    start = "\r\x1b[2K"
    kept, live = drawn(300, monkeypatch).removeprefix(start).split("\n" + start)
    assert kept == "step 7 | epoch 2 | loss 1.25 | bits_per_code 5.125 | lr 0.0003 | 0 steps/s | ETA 1 h 00 min"
    # What a narrow terminal must not lose comes first.
    assert re.fullmatch(r"step 7 \| \S+ steps/s \| ETA 1 h 00 min \| epoch 2 \| loss 1.25 \| bits.* \| lr 0.0003", live)
    for columns in (40, 2, 1):
        cut = drawn(columns, monkeypatch).split("\n" + start)[1]
        assert len(cut) <= max(columns - 1, 1)
        assert cut.endswith("…") and live.startswith(cut[:-1][:7])


def test_elsewhere_lines_are_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    progress = Progress(SHOWN, lambda step, speed: 3600.0)
    progress.set(7, 2, VALUES, "lr 0.0003")
    progress.step(7)
    line = "step 7 | epoch 2 | loss 1.25 | bits_per_code 5.125 | lr 0.0003 | 0 steps/s | ETA 1 h 00 min\n"
    assert capsys.readouterr().out == line


def test_rates_have_four_digits_and_no_exponent() -> None:
    told = {10152.7: "10153", 1234567.0: "1234567", 999.96: "1000", 12.3456: "12.35", 0.512: "0.512", 0.0: "0"}
    assert {value: four_digits(value) for value in told} == told
