"""Label files of phonemes, as HTS, Sinsy, NNSVS and ENUNU write them: ``start end phoneme`` in each line.

Times are whole numbers of 100 ns (HTS), or seconds with a decimal point (Tohoku Kiritan). A phoneme may stand in a
full-context label. Consonant and vowel may share the span of their note, as Sinsy writes them.
"""

from __future__ import annotations

import itertools
import re
import statistics
from pathlib import Path
from typing import NamedTuple

from songbloom.errors import UserError
from songbloom.lyrics.timed_text import Builder, TimedText, read_lines

SILENT = frozenset(("pau", "sil", "sp", "br", "xx", "rest", "R", "#"))
"""Labels of silence and breath: they end a phrase and are not sung."""
_CONTEXT = re.compile(r"\^[^-]*-(?P<phoneme>[^-+]+)\+")
_SHORTEST, _LONGEST = 0.004, 8.0  # seconds that the median phoneme of a file can last
_UNITS = (("seconds", 1.0), ("units of 100 ns", 1e-7))


class _Row(NamedTuple):
    line: int
    start: float
    end: float
    phoneme: str


def read_lab(path: str | Path) -> TimedText:
    """Phonemes with times in seconds; each silence ends a line.

    Raises:
        UserError: with file and line: a line that is not ``start end phoneme``, times that go back or overlap, or that
            fit neither unit.
    """
    path = Path(path)
    rows = [_row(line, path, number) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: no labels in it; each line is: start end phoneme")
    unit = _unit(rows, path)
    _check_order(rows, path)
    builder = Builder()
    for row in rows:
        if row.phoneme in SILENT:
            if not builder.ends_with("\n"):
                builder.add("\n")
            continue
        if not builder.ends_with("\n"):
            builder.add(" ")
        builder.add(row.phoneme, row.start * unit, row.end * unit)
    timed = builder.build("phonemes")
    if not timed.spans:
        raise UserError(f"{path}: nothing but silence in it")
    return timed


def voiced(phoneme: str) -> str:
    """A devoiced vowel as it is sung."""
    return phoneme.lower() if phoneme in ("A", "I", "U", "E", "O") else phoneme


def _row(line: str, path: Path, number: int) -> _Row:
    fields = line.split()
    try:
        start, end, label = float(fields[0]), float(fields[1]), fields[2]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} is not: start end phoneme") from error
    if not 0 <= start <= end < float("inf"):
        raise UserError(f"{path}, line {number}: lasts from {fields[0]} to {fields[1]}; the end is before the start")
    context = _CONTEXT.search(label)
    return _Row(number, start, end, voiced(context["phoneme"] if context else label))


def _unit(rows: list[_Row], path: Path) -> float:
    """Seconds in one unit of the file: the one in which phonemes last as long as phonemes do."""
    sung = [row.end - row.start for row in rows if row.phoneme not in SILENT and row.end > row.start]
    median = statistics.median(sung or [row.end - row.start for row in rows])
    for _, unit in _UNITS:
        if _SHORTEST <= median * unit <= _LONGEST:
            return unit
    hint = "; these look like milliseconds" if _SHORTEST <= median * 1e-3 <= _LONGEST else ""
    raise UserError(
        f"{path}: times are neither seconds nor units of 100 ns (a phoneme would last {median:g} s or "
        f"{median * 1e-7:g} s){hint}"
    )


def _check_order(rows: list[_Row], path: Path) -> None:
    for before, row in itertools.pairwise(rows):
        same_note = (before.start, before.end) == (row.start, row.end)
        tolerance = 1e-6 * max(row.end, 1e-3)  # rounding where decimals are written
        if row.start < before.end - tolerance and not same_note:
            raise UserError(
                f"{path}, line {row.line}: {row.phoneme} starts before {before.phoneme} in line {before.line} ends"
            )
