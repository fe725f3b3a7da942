"""LRC: lines of words with start times, and its extension with a time before each word.

::

    [00:12.30]Sakura no hana
    [00:12.30]<00:12.30>Sakura <00:13.10>no <00:13.40>hana<00:14.20>
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from songbloom.errors import UserError
from songbloom.files import write_text
from songbloom.lyrics.timed_text import Builder, Timed, TimedText, read_lines

_CLOCK = r"\d{1,3}:\d{1,2}(?::\d{1,2})?(?:[.:]\d{1,3})?"
_TIME = re.compile(rf"\[\s*({_CLOCK})\s*\]")
_WORD_TIME = re.compile(rf"<\s*({_CLOCK})\s*>")
_INFORMATION = re.compile(r"\[\s*([A-Za-z#]+)\s*:(.*)\]\s*$")
_LOOKS_TIMED = re.compile(r"\[\s*[+-]?\d+\s*[:.\]]")
SECONDS_A_CHARACTER = 0.7
"""A line lasts until the next one starts, but no longer than this times its characters: LRC has no ends."""


class _Line(NamedTuple):
    start: float
    words: str
    number: int


def read_lrc(path: str | Path) -> TimedText:
    """Read an LRC file, plain or with word times.

    Raises:
        UserError: with file and line: a time that is none, or no line with a time at all.
    """
    path = Path(path)
    timed: list[_Line] = []
    untimed: list[tuple[int, str]] = []
    shift = 0.0
    for number, line in enumerate(read_lines(path), start=1):
        words = line.strip()
        information = _INFORMATION.match(words)
        if information and not information[1][0].isdigit():
            if information[1].lower() == "offset":
                shift = _offset(information[2], path, number)
            continue
        times = []
        while match := _TIME.match(words):
            times.append(_seconds(match[1], path, number))
            words = words[match.end() :].lstrip()
        if _LOOKS_TIMED.match(words):
            raise UserError(f"{path}, line {number}: {words[:30]!r} is no time; write [minutes:seconds.hundredths]")
        if times:
            timed += [_Line(time, words, number) for time in times]
        elif words:
            untimed.append((len(timed), words))  # a heading such as [verse], before the line that follows
    if not any(line.words for line in timed):
        raise UserError(f"{path}: no line of words has a time; lines of LRC begin with [minutes:seconds.hundredths]")
    return _build(timed, untimed, shift, path)


def write_lrc(path: str | Path, timed: TimedText, *, enhanced: bool = False, title: str = "", artist: str = "") -> None:
    """Write times as LRC, one line of text a line.

    Args:
        path: the file; it appears whole.
        timed: words with times.
        enhanced: a time before each piece, and after the last of a line.
        title, artist: for the heading.

    Raises:
        UserError: it cannot be written.
    """
    heading = [f"[{key}:{_one_line(value)}]" for key, value in (("ti", title), ("ar", artist)) if value]
    lines = timed.lines()
    rows = list(heading)
    for index, pieces in enumerate(lines):
        rows.append(_row(pieces, enhanced))
        after = lines[index + 1][0].start if index + 1 < len(lines) else float("inf")
        if after - pieces[-1].end > 1.0:  # an empty line ends the one before
            rows.append(f"[{clock(pieces[-1].end)}]")
    write_text(path, "\n".join(rows) + "\n")


def clock(seconds: float) -> str:
    """``75.5`` → ``"01:15.50"``."""
    hundredths = round(max(seconds, 0.0) * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


def _row(pieces: list[Timed], enhanced: bool) -> str:
    gaps = [_gap(a.text, b.text) for a, b in itertools.pairwise(pieces)] + [""]
    if not enhanced:
        return f"[{clock(pieces[0].start)}]" + "".join(p.text + gap for p, gap in zip(pieces, gaps, strict=True))
    words = "".join(f"<{clock(p.start)}>{_safe(p.text)}{gap}" for p, gap in zip(pieces, gaps, strict=True))
    return f"[{clock(pieces[0].start)}]{words}<{clock(pieces[-1].end)}>"


def _gap(before: str, after: str) -> str:
    """A space between words of alphabets that have spaces."""
    return " " if before[-1].isascii() and after[0].isascii() else ""


def _safe(text: str) -> str:
    return text.replace("<", "(").replace(">", ")")


def _one_line(text: str) -> str:
    return " ".join(text.replace("]", ")").replace("[", "(").split())


def _offset(text: str, path: Path, number: int) -> float:
    try:
        return int(text) / 1000
    except ValueError as error:
        raise UserError(f"{path}, line {number}: offset {text.strip()!r} is no number of milliseconds") from error


def _seconds(text: str, path: Path, number: int) -> float:
    """Seconds of ``mm:ss``, ``mm:ss.xx``, ``mm:ss:xx`` or ``hh:mm:ss.xx``."""
    parts = re.split("[:.]", text)
    fraction = "0"
    if "." in text or (len(parts) == 3 and ":" in text and "." not in text):
        fraction = parts.pop()
    whole = [int(part) for part in parts]
    if any(part >= 60 for part in whole[1:]):
        raise UserError(f"{path}, line {number}: time {text} has 60 or more seconds; write minutes:seconds")
    seconds = 0
    for part in whole:
        seconds = seconds * 60 + part
    return seconds + int(fraction) / 10 ** len(fraction)


def _build(timed: list[_Line], untimed: list[tuple[int, str]], shift: float, path: Path) -> TimedText:
    headings: dict[int, list[str]] = {}  # line of words → headings before it
    for place, words in untimed:
        headings.setdefault(place, []).append(words)
    order = sorted(range(len(timed)), key=lambda index: (timed[index].start, index))
    builder = Builder()
    for position, index in enumerate(order):
        for heading in headings.pop(index, []):
            builder.add(heading + "\n")
        after = timed[order[position + 1]].start if position + 1 < len(order) else float("inf")
        if timed[index].words:
            _add_line(builder, timed[index], after, shift, path)
    for heading in headings.pop(len(timed), []):
        builder.add(heading + "\n")
    return builder.build()


def _add_line(builder: Builder, line: _Line, after: float, shift: float, path: Path) -> None:
    def at(time: float) -> float:
        return max(time - shift, 0.0)

    pieces = _WORD_TIME.split(line.words)
    plain = "".join(pieces[::2])
    if re.search(r"<\s*\d+\s*[:.]", plain):
        raise UserError(
            f"{path}, line {line.number}: {plain[:30]!r} has a time that is none; write <minutes:seconds.hundredths>"
        )
    if len(pieces) == 1:
        end = min(after, line.start + SECONDS_A_CHARACTER * max(len(plain), 2))
        builder.add(plain.strip(), at(line.start), at(end))
    else:
        times = [line.start, *(_seconds(piece, path, line.number) for piece in pieces[1::2])]
        for index, text in enumerate(pieces[::2]):
            longest = times[index] + SECONDS_A_CHARACTER * max(len(text.strip()), 2)
            end = times[index + 1] if index + 1 < len(times) else min(after, longest)
            builder.add(text, at(times[index]), at(max(end, times[index])))
    builder.add("\n")
