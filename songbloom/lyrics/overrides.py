"""Readings that a person gives: ``人気{ひとけ}``, ``｜今日は{きょうわ}``."""

from __future__ import annotations

import re
from typing import NamedTuple

from songbloom.lyrics.morae import is_kana

_BRACES = re.compile(r"\{([^{}\n]*)\}")
_STARTS = "|｜"
_BASE = re.compile(
    r"(?:[A-Za-z'’]+|[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\d〆ヶヵ]+|[ァ-ヺー]+)\Z"
)


class Marked(NamedTuple):
    """A text without its marks.

    ``plain`` is what is written; ``origin`` the characters of the marked text that each of its characters came from;
    ``readings`` have start and end in ``plain`` and kana; ``problems`` have a place in the marked text.
    """

    plain: str
    origin: list[tuple[int, int]]
    readings: list[tuple[int, int, str]]
    problems: list[tuple[int, str, str]]


def parse(text: str) -> Marked:
    """Take the readings out of a text.

    A reading belongs to the word in kanji and numbers, in katakana or in Latin letters right before it, or to all that
    stands between it and a ``｜``. A mark that cannot be understood is a problem, and left out.
    """
    plain: list[str] = []
    origin: list[tuple[int, int]] = []
    readings: list[tuple[int, int, str]] = []
    problems: list[tuple[int, str, str]] = []
    bar: tuple[int, int] | None = None  # place in plain, place in text
    last_brace = text.rfind("{")
    position = 0
    while position < len(text):
        character = text[position]
        if character in _STARTS and position < last_brace:
            bar = (len(plain), position)
            position += 1
            continue
        match = _BRACES.match(text, position) if character == "{" else None
        if match is not None:
            base = _base("".join(plain[-60:]), len(plain)) if bar is None else bar[0]
            kana = match[1].replace(" ", "")
            if not is_kana(kana):
                problems.append((position, match[0], "is no reading in kana and is left out; write 漢字{かんじ}"))
            elif base is None or base == len(plain):
                problems.append((position, match[0], "follows no kanji and is left out; mark the word: ｜ことば{よみ}"))
            else:
                readings.append((base, len(plain), kana))
            bar = None
            position = match.end()
            continue
        if character in "{}":
            problems.append((position, character, "has no partner and is left out; readings are written 漢字{かんじ}"))
        else:
            plain.append(character)
            origin.append((position, position + 1))
        position += 1
    if bar is not None:
        problems.append((bar[1], text[bar[1]], "starts a word that gets no reading, and is left out"))
    return Marked("".join(plain), origin, readings, problems)


def _base(before: str, length: int) -> int | None:
    match = _BASE.search(before)
    return None if match is None else length - len(match[0])
