"""Structured lyrics: sections with a tag, a wanted length, and lines; read from two ways of writing, and written again.

A page::

    [intro 8s]
    [verse 24.5s]
    First line
    Second line
    [chorus]
    Third line

or one line, as the published SongBloom program takes it, where `` , `` ends a section, ``.`` a sentence, and tags are
repeated for length::

    [intro] [intro] , [verse] First line. Second line , [chorus] Third line
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from songbloom.errors import UserError
from songbloom.lyrics.phonemes import SILENT_TAGS
from songbloom.lyrics.tags import advice_on, tag_of
from songbloom.lyrics.tokens import Places

_BRACKETS = re.compile(r"[\[【]([^\[\]【】\n]*)[\]】]")
_LENGTH = re.compile(
    r"(?P<name>.*?)[\s:|,_]+(?:(?P<seconds>\d+(?:\.\d+)?|\.\d+)\s*(?:s|sec|secs|seconds?|秒)|(?P<minutes>\d+):(?P<rest>\d\d(?:\.\d+)?))\s*",
    re.IGNORECASE,
)
_DECIMAL_COMMA = re.compile(r"\d+,\d+(?=\s*[a-z秒]|\Z)", re.IGNORECASE)
_UNCLOSED = re.compile(r"\[\s*([A-Za-z]+)[^\[\]\n]*(?=\n|\[|\Z)")
_LINE_END = re.compile(r"[!！?？]+|(?:[.。](?!\d))+|[\n\r\v\f\x85\u2028\u2029]+|(?<=\s)[,，](?=\s|\Z)")
_LONGEST = 3600.0  # seconds of a section


@dataclass(frozen=True)
class Line:
    """A sentence or line; ``start`` and ``end`` are characters of the text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Section:
    """A part of a song.

    Attributes:
        tag: ``[verse]`` and so on; empty for words before the first tag.
        seconds: the wanted length, ``None`` if none is given.
        repeats: how often the tag is written, which asks for length in published models.
        lines: its words.
        start, end: characters of the first tag in the text.
    """

    tag: str
    seconds: float | None
    repeats: int
    lines: tuple[Line, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Tag:
    """A bracket of a text: ``name`` is ``None`` if it is no known tag and not sung either."""

    name: str | None
    seconds: float | None
    start: int
    end: int


def find_tags(text: str) -> Iterator[Tag]:
    """The structure tags of a text, in any case, glued or not, with their lengths.

    Raises:
        UserError: a length that cannot be understood, or a tag that is not closed; with line and column.
    """
    position = 0
    for match in _BRACKETS.finditer(text):
        _check_closed(text, position, match.start())
        position = match.end()
        name, seconds = match[1].strip(), None
        if (comma := _DECIMAL_COMMA.search(name)) and tag_of(name[: comma.start()]) is not None:
            point = comma[0].replace(",", ".")
            advice = f"has a comma inside a number; write {point}s, or a space after the comma"
            raise _mistake(text, match.start(), match[0], advice)
        length = _LENGTH.fullmatch(name)
        if length is not None and tag_of(length["name"]) is not None:
            name = length["name"]
            seconds = float(length["seconds"] or 0) + 60 * float(length["minutes"] or 0) + float(length["rest"] or 0)
            if not 0 < seconds <= _LONGEST:
                raise _mistake(
                    text, match.start(), match[0], f"asks for {seconds:g} s; give more than 0 and at most an hour"
                )
        first = re.match(r"[^\s:|,\-]*", name)
        tag = tag_of(name)
        if tag is None and first is not None and tag_of(first[0]) is not None and re.search(r"\d", name):
            raise _mistake(text, match.start(), match[0], f"has no length that can be read; write [{first[0]} 12.5s]")
        if tag is not None or (match[0][0] == "[" and name.isascii()):
            yield Tag(tag, seconds, match.start(), match.end())
    _check_closed(text, position, len(text))


def parse(text: str, places: Places | None = None) -> tuple[Section, ...]:
    """The sections of a song.

    Args:
        text: either way of writing.
        places: takes what is odd: unknown tags.

    Raises:
        UserError: as :func:`find_tags`.
    """
    places = places or Places(text)
    sections: list[Section] = []
    current = Tag("", None, 0, 0)
    repeats, start = 1, 0

    def close(end: int) -> None:
        lines = tuple(_lines(text, start, end, places))
        if current.name or lines:
            sections.append(Section(current.name or "", current.seconds, repeats, lines, current.start, current.end))

    for tag in find_tags(text):
        if tag.name is None:
            places.note(tag.start, text[tag.start : tag.end], advice_on(text[tag.start + 1 : tag.end - 1]))
            continue
        between = text[start : tag.start]
        if tag.name == current.name and tag.seconds is None and current.seconds is None and not between.strip():
            repeats += 1
        else:
            close(tag.start)
            current, repeats = tag, 1
        start = tag.end
    close(len(text))
    return tuple(sections)


def write_page(sections: Sequence[Section]) -> str:
    """Sections as a page: a tag with its length, then its lines. :func:`parse` reads the same sections from it."""
    rows: list[str] = []
    for section in sections:
        length = "" if section.seconds is None else f" {section.seconds:.10g}s"
        if section.tag:
            rows.append(" ".join([f"[{section.tag[1:-1]}{length}]"] + [section.tag] * (section.repeats - 1)))
        rows += [line.text for line in section.lines]
    return "\n".join(rows) + "\n" if rows else ""


def write_published(sections: Sequence[Section], seconds_per_tag: float = 1.0) -> str:
    """Sections in one line, as the published program takes them.

    Lengths of sections without words become repeated tags; those of sung sections have no place in this form.

    Args:
        sections: as :func:`parse` gives them.
        seconds_per_tag: what one tag stands for: 1 for the 150 s models, 5 for the 240 s model; 0 repeats nothing.
    """
    parts = []
    for section in sections:
        tags = [section.tag] * tag_count(section, seconds_per_tag) if section.tag else []
        words = ". ".join(line.text for line in section.lines)
        words = re.sub(r"(?<=[!?！？])\.(?= )", "", words)
        parts.append(" ".join([*tags, words]).strip())
    return " , ".join(part for part in parts if part)


def tag_count(section: Section, seconds_per_tag: float) -> int:
    """How many tags stand for a section: its length over ``seconds_per_tag`` where it has no words."""
    if section.seconds is None or section.lines or seconds_per_tag <= 0 or section.tag not in SILENT_TAGS:
        return section.repeats
    return max(1, round(section.seconds / seconds_per_tag))


def _lines(text: str, start: int, end: int, places: Places) -> Iterator[Line]:
    position = start
    for match in [*_LINE_END.finditer(text, start, end), None]:
        stop = match.start() if match else end
        if match and match[0][0] in "!！?？":
            stop = match.end()  # belongs to the line
        words = text[position:stop]
        stripped = words.strip().strip(",，").strip()
        if stripped:
            first = position + words.index(stripped)
            yield Line(re.sub(r"\s+", " ", stripped), first, first + len(stripped))
        position = match.end() if match else end


def _check_closed(text: str, start: int, end: int) -> None:
    for match in _UNCLOSED.finditer(text, start, end):
        if tag_of(match[1]) is not None:
            raise _mistake(text, match.start(), match[0].strip(), "is not closed; a tag ends with ] on its line")


def _mistake(text: str, position: int, symbol: str, advice: str) -> UserError:
    places = Places(text)
    places.note(position, symbol, advice)
    return UserError(str(places.problems()[0]))
