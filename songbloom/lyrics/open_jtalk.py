"""The door to Open JTalk, loaded when asked for: words of a Japanese text, how they sound, and where they stand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from dataclasses import dataclass
from typing import Any

from songbloom.errors import UserError
from songbloom.lyrics.morae import KANA_OF, group_phonemes, split_kana

_SILENT = frozenset(("pau", "sil", "sp", "unk"))
_SPOKEN_ONLY = str.maketrans("AIUEO", "aiueo")  # devoiced in speech; a sung note voices them


@dataclass(frozen=True)
class Word:
    """A word as Open JTalk reads it.

    ``start`` and ``end`` are characters of the text given. ``morae`` are katakana and phonemes of each mora, with every
    vowel voiced; empty for what is not pronounced. ``known``: the dictionary has it.
    """

    start: int
    end: int
    morae: tuple[tuple[str, tuple[str, ...]], ...]
    known: bool


def is_installed() -> bool:
    """Whether Open JTalk can be imported; nothing is loaded."""
    try:
        return importlib.util.find_spec("pyopenjtalk") is not None
    except ValueError:  # kept from being imported
        return False


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which JSON can hold and UTF-8 can't


def import_open_jtalk(purpose: str = "reading Japanese") -> Any:
    """The ``pyopenjtalk`` module.

    Raises:
        UserError: it is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it advertises an optional package on stdout
            import pyopenjtalk
    except ImportError as error:
        raise UserError(f"{purpose} needs Open JTalk: pip install pyopenjtalk-plus") from error
    return pyopenjtalk


def read_words(text: str) -> list[Word]:
    """Words of one line of Japanese.

    The package pyopenjtalk-plus tells where each word stands. With pyopenjtalk, whose words have no places, the whole
    line is one word.
    """
    open_jtalk = import_open_jtalk()
    text = _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)
    if hasattr(open_jtalk, "g2p_mapping"):
        # The model that guesses 何 as なに or なん is off: it runs only where another package happens to be installed.
        with contextlib.suppress(ValueError):  # the text's characters cannot be found again in the words
            return _with_places(open_jtalk.g2p_mapping(text, predict_nani=False), len(text))
        phonemes = open_jtalk.g2p(text, join=False, predict_nani=False)
    else:
        phonemes = open_jtalk.g2p(text, join=False)
    return [Word(0, len(text), _morae("", phonemes), True)]


def _with_places(entries: list[dict[str, Any]], length: int) -> list[Word]:
    words: list[Word] = []
    for index, entry in enumerate(entries):
        start, end = entry["char_span"]
        if start == end:  # a word that numbers gain: 十 in 2024
            if words:
                start, end = words[-1].start, words[-1].end
            else:
                start, end = next((e["char_span"] for e in entries[index:] if e["char_span"][1]), (0, length))
        words.append(Word(start, end, _morae(entry["pron"], entry["phonemes"]), not entry["is_unknown"]))
    return words


def _morae(pronunciation: str, phonemes: list[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    sung = [p.translate(_SPOKEN_ONLY) if p in "AIUEO" else p for p in phonemes if p not in _SILENT]
    groups = group_phonemes(sung)
    kana = split_kana(pronunciation.replace("’", ""))
    if len(kana) != len(groups):
        kana = ["".join(KANA_OF.get(part, "") for part in _parts(group)) for group in groups]
    return tuple(zip(kana, groups, strict=True))


def _parts(group: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [group] if group in KANA_OF else [group[-1:]]
