"""From the tokens of a song's lyrics and their times to words that a page can light, and to files of them.

{name}/alignment/item_{i}.json       words and tokens with their times, and which head they were found by
{name}/alignment/item_{i}.lrc        the same for players that show lyrics, line by line and word by word
{name}/alignment/item_{i}.png        what the head looked at
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from songbloom.errors import UserError, reason
from songbloom.files import write_text
from songbloom.lyrics.timed_text import Builder, TimedText
from songbloom.sampling.page import PageWord

FOLDER = "alignment"
FORMAT = 1
Times = tuple[float, float]

_HOLD = 0.4  # seconds; a shorter pause between two words leaves the first one lit
_OF_A_WORD = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f]|['’0-9]")  # letters of scripts with spaces
_READING = re.compile(r"\{([^{}\n]*)\}")
_TAG = re.compile(r"\[[^\]\n]*\]")


class Spanned(Protocol):
    """What is read of :class:`songbloom.lyrics.tokens.Tokens`."""

    @property
    def text(self) -> str: ...

    @property
    def spans(self) -> Sequence[tuple[int, int]]: ...

    @property
    def symbols(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Lyrics:
    """The lyrics of an item as its labels keep them.

    Attributes:
        text: as given.
        symbols: of the tokens.
        spans: characters of the text that each token came from.
    """

    text: str
    symbols: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def lyrics_of(info: Mapping[str, Any]) -> Lyrics:
    """The lyrics in an item's info (:meth:`songbloom.data.labels.Known.plain`); one that knows its text only has one
    token a character, as Jukebox's files have."""
    text = info.get("text", info.get("lyrics")) or ""
    if not isinstance(text, str):
        text = ""
    spans = info.get("spans")
    if spans is None:
        return Lyrics(text, tuple(text), tuple((place, place + 1) for place in range(len(text))))
    return Lyrics(text, tuple(info["symbols"]), tuple((int(start), int(end)) for start, end in spans))


def words_of(tokens: Spanned, times: Sequence[Times | None]) -> list[PageWord]:
    """The given text in pieces, each with the time of the tokens that it became.

    Tokens that share characters of the text are one piece, and so are neighbouring letters of a script that puts
    spaces between words. Tags such as ``[verse]``, spaces and marks are sung by nobody and have no time. A reading in
    braces behind a piece (``漢字{かんじ}``) becomes its reading.

    Args:
        tokens: of the whole lyrics.
        times: for each token, in seconds; None where it is not sung.
    """
    text = tokens.text
    words: list[PageWord] = []
    place = 0

    def between(end: int) -> None:
        nonlocal place
        if end > place:
            words.append(PageWord(text[place:end]))
            place = end

    tags = {start: found.end() for found in _TAG.finditer(text) for start in range(*found.span())}
    for start, end, members in _groups(tokens):
        if start in tags:  # its letters may be tokens of their own
            between(tags[start])
        if start < place:
            continue  # within a reading, a tag or a piece that has been told
        piece = text[start:end]
        known = [time for token in members if (time := times[token]) is not None]
        if not any(map(str.isalnum, piece)):
            known = []
        between(start)
        base, reading = _with_reading(text, start, end)
        place = base[1]
        first, last = (min(a for a, _ in known), max(b for _, b in known)) if known else (None, None)
        words.append(PageWord(base[0], first, last, reading))
    between(len(text))
    return _held(words)


def _with_reading(text: str, start: int, end: int) -> tuple[tuple[str, int], str]:
    """The text of a piece without its braces and the place after them, and the reading inside them."""
    inside = _READING.search(text, start, end)
    if inside and inside.start() > start:
        return (text[start : inside.start()] + text[inside.end() : end], end), inside[1]
    behind = _READING.match(text, end)
    if behind:
        return (text[start:end], behind.end()), behind[1]
    return (text[start:end], end), ""


def _groups(tokens: Spanned) -> list[tuple[int, int, list[int]]]:
    """Characters from … to and the tokens that came from them, in the order of the text."""
    groups: list[tuple[int, int, list[int]]] = []
    for token, (start, end) in sorted(enumerate(tokens.spans), key=lambda pair: (pair[1][0], pair[0])):
        if groups:
            first, last, members = groups[-1]
            shared = start < last or (start, end) == (first, last)
            if shared or (start == last and _joined(tokens.text, first, last, end)):
                groups[-1] = (first, max(last, end), [*members, token])
                continue
        groups.append((start, end, [token]))
    return groups


def _joined(text: str, first: int, middle: int, end: int) -> bool:
    return bool(_OF_A_WORD.match(text, middle - 1) and _OF_A_WORD.match(text, middle)) and end > middle > first


def _held(words: list[PageWord]) -> list[PageWord]:
    """Words that stay lit over short pauses, and never longer than the next one begins."""
    result = list(words)
    later: float | None = None
    for place in range(len(words) - 1, -1, -1):
        word = words[place]
        if word.start is None or word.end is None:
            continue
        end = word.end
        if later is not None and later > word.start and (end > later or later - end < _HOLD):
            end = later
        result[place] = PageWord(word.text, word.start, end, word.reading)
        later = word.start
    return result


def write_words(
    path: Path | str,
    words: Sequence[PageWord],
    tokens: Spanned,
    times: Sequence[Times | None],
    about: Mapping[str, Any],
) -> None:
    """Write words and tokens with their times as JSON.

    Args:
        path: where.
        words: :func:`words_of`.
        tokens, times: as given to it.
        about: how they were found, as plain data.

    Raises:
        UserError: it cannot be written.
    """

    def seconds(time: float | None) -> float | None:
        return None if time is None else round(time, 3)

    content = {
        "format": FORMAT,
        **about,
        "text": tokens.text,
        "words": [
            {"text": word.text, "start": seconds(word.start), "end": seconds(word.end)}
            | ({"reading": word.reading} if word.reading else {})
            for word in words
        ],
        "tokens": [
            {"symbol": symbol, "span": list(span), "start": seconds(time and time[0]), "end": seconds(time and time[1])}
            for symbol, span, time in zip(tokens.symbols, tokens.spans, times, strict=True)
        ],
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def timed_text(words: Sequence[PageWord]) -> TimedText:
    """Words with times, for files that other players read; marks that follow a word belong to it."""
    builder = Builder()
    last: PageWord | None = None
    for word in words:
        sung = word.start is not None
        mark = bool(word.text) and not word.text[0].isspace() and not sung
        if last is not None and mark and not any(map(str.isalnum, word.text)):
            marks, separator, rest = word.text.partition("\n")
            builder.add(last.text + marks, last.start, last.end)
            builder.add(separator + rest)
            last = None
            continue
        if last is not None:
            builder.add(last.text, last.start, last.end)
            last = None
        if sung:
            last = word
        else:
            builder.add(word.text)
    if last is not None:
        builder.add(last.text, last.start, last.end)
    return builder.build()


def read_words(path: Path | str) -> tuple[list[PageWord], bool]:
    """The words in a file of :func:`write_words`, and whether their times are no more than a guess.

    Raises:
        UserError: it cannot be read or is something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        words = []
        for word in content["words"]:
            start, end = (None if word[key] is None else float(word[key]) for key in ("start", "end"))
            words.append(PageWord(str(word["text"]), start, end, str(word.get("reading", ""))))
        return words, bool(content.get("guessed", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: holds no words ({reason(error)}); run align.py --name again to write it anew"
        ) from error


def for_page(run: Path, index: int, info: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of an item's labels: keywords of :class:`songbloom.sampling.page.PageItem`.

    Args:
        run: the folder of the run; words have times once they are aligned there.
        index: the item's number.
        info: of the item (:meth:`songbloom.data.labels.Known.plain`); empty for a model without labels.
    """
    shown: dict[str, Any] = {}
    for key in ("artist", "genre"):
        value = info.get(key)
        shown[key] = value if isinstance(value, str) and value not in ("unknown", "n/a") else ""
    place = run / FOLDER / f"item_{index}.json"
    if place.is_file():
        files = [("lrc", ".lrc"), ("timing", ".json")]
        beside = f"../{FOLDER}/item_{index}"
        there = [(word, beside + suffix) for word, suffix in files if place.with_suffix(suffix).is_file()]
        picture = beside + ".png" if place.with_suffix(".png").is_file() else ""
        pieces, guessed = read_words(place)
        return {**shown, "words": pieces, "guessed": guessed, "attention": picture, "files": there}
    lyrics = lyrics_of(info)
    return {**shown, "words": words_of(lyrics, [None] * len(lyrics.spans))}
