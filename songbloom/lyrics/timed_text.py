"""Words with times: pieces of a text (lines, words, syllables or phonemes) and when each is sung."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from songbloom.errors import UserError

SCORES = (".musicxml", ".xml", ".mxl")
"""Endings of MusicXML files."""
_LONGEST = 1e9  # seconds; more is no moment of a song


class Timed(NamedTuple):
    """A piece of text and its start and end in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class TimedText:
    """A text of which some pieces have times.

    Attributes:
        text: everything, with line ends; of phonemes, their names with spaces between.
        spans: start and end (exclusive) in ``text`` of each piece that has a time, in order.
        times: start and end of each piece in seconds.
        kind: whether ``text`` is to be read as people write, or is phonemes in Open JTalk's names.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    times: tuple[tuple[float, float], ...]
    kind: Literal["text", "phonemes"] = "text"

    def __iter__(self) -> Iterator[Timed]:
        for (first, last), (start, end) in zip(self.spans, self.times, strict=True):
            yield Timed(self.text[first:last], start, end)

    def lines(self) -> list[list[Timed]]:
        """The timed pieces line by line; lines without any are left out."""
        breaks = [i for i, character in enumerate(self.text) if character == "\n"]
        found: dict[int, list[Timed]] = {}
        line = 0
        for (first, _), piece in zip(self.spans, self, strict=True):
            while line < len(breaks) and breaks[line] < first:
                line += 1
            found.setdefault(line, []).append(piece)
        return list(found.values())


class Builder:
    """Puts a :class:`TimedText` together, piece by piece."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._length = 0
        self._spans: list[tuple[int, int]] = []
        self._times: list[tuple[float, float]] = []

    def add(self, text: str, start: float | None = None, end: float | None = None) -> None:
        """Append text; with a time, if ``start`` and ``end`` are given and there is something to sing."""
        if start is not None and end is not None and text.strip():
            lead = len(text) - len(text.lstrip())
            self._spans.append((self._length + lead, self._length + len(text.rstrip())))
            self._times.append((start, end))
        self._text.append(text)
        self._length += len(text)

    def stretch(self, end: float) -> None:
        """Let the last timed piece last until ``end``."""
        if self._times:
            self._times[-1] = (self._times[-1][0], max(end, self._times[-1][1]))

    def ends_with(self, text: str) -> bool:
        """Whether the text so far is empty or ends with ``text``."""
        return not self._text or self._text[-1].endswith(text)

    def build(self, kind: Literal["text", "phonemes"] = "text") -> TimedText:
        """What was put together."""
        return TimedText("".join(self._text), tuple(self._spans), tuple(self._times), kind)


def from_phrases(phrases: Iterable[Mapping[str, Any]], *, source: str = "phrases") -> TimedText:
    """Times as a song's JSON has them: objects with ``start`` and ``end`` in seconds and ``text``, one a line.

    An object may have ``phonemes`` (names with spaces, or a list of objects with times of their own) beside its text;
    only the text is read here.

    Args:
        phrases: the objects, in the order they are sung.
        source: how messages name the place.

    Raises:
        UserError: a field is missing or no number, an end is before its start, or there are no phrases.
    """
    builder = Builder()
    last = 0.0
    for number, phrase in enumerate(phrases, start=1):
        where = f"{source}, entry {number}"
        if not isinstance(phrase, Mapping) or not isinstance(phrase.get("text"), str):
            raise UserError(f"{where}: has no text; an entry is {{'start': seconds, 'end': seconds, 'text': words}}")
        start, end = (_seconds(phrase, key, where) for key in ("start", "end"))
        if not 0 <= start <= end:
            raise UserError(f"{where}: lasts from {start:g} to {end:g} seconds; its end is before its start")
        if start < last:
            raise UserError(f"{where}: starts at {start:g}, before the entry above it ({last:g}); sort them by start")
        last = start
        if number > 1:
            builder.add("\n")
        builder.add(phrase["text"].strip().replace("\n", " "), start, end)
    timed = builder.build()
    if not timed.spans:
        raise UserError(f"{source}: no words with times in it")
    return timed


def _seconds(phrase: Mapping[str, Any], key: str, where: str) -> float:
    value = phrase.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LONGEST:
        raise UserError(f"{where}: {key} is {value!r:.40}; it must be a number of seconds")
    return float(value)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file in UTF-8, in Shift JIS, which old Japanese corpora use, or in UTF-16 that says so.

    Raises:
        UserError: it cannot be read, or is in none of them.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp932"):
        try:
            return content.decode(encoding).splitlines()
        except UnicodeDecodeError:
            continue
    raise UserError(f"{path}: is no text in UTF-8 or Shift JIS; save it as UTF-8")
