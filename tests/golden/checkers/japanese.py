"""Japanese readings: lines with their phonemes, the table of kana, and scores with sung phonemes.

These files are JSON. ``check_file`` gives torch files to the checks of ``CHECKS``; :func:`check_json` takes JSON files
and returns what is wrong, one line a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from songbloom.lyrics.morae import PHONEMES_OF, pronounce
from songbloom.lyrics.vocabulary import vocabulary
from tests.golden.report import Golden

CHECKS: dict[str, Callable[[Golden], None]] = {}
"""No torch file is of this kind."""
OVERRIDES = {"人気": "ひとけ", "根本": "ねもと", "市場": "いちば"}
"""Readings that a person gives where the dictionary's is not meant."""


def check_json(path: Path) -> list[str]:
    """Differences between a file and what this code makes of it; empty when there are none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "table" in content:
        return _kana(content["table"])
    return [line for item in content["items"] for line in _line(item)]


def _kana(table: dict[str, list[str]]) -> list[str]:
    wrong = [f"{kana}: {PHONEMES_OF.get(kana)}, not {said}" for kana, said in table.items() if heard(kana) != said]
    return wrong + [f"{kana}: not in the file" for kana in PHONEMES_OF if kana not in table]


def heard(kana: str) -> list[str]:
    """Phonemes of kana as they stand."""
    return [phoneme for _, phonemes in pronounce(kana) for phoneme in phonemes]


def _line(item: dict[str, Any]) -> list[str]:
    found = []
    text, name = item["text"], item["id"]
    tokens = vocabulary("ja_phonemes").tokenize(text)
    if list(tokens.phonemes) != item["sung_phonemes"]:
        found.append(f"{name}: {' '.join(tokens.phonemes)}, not {' '.join(item['sung_phonemes'])}")
    kana = vocabulary("ja_kana").tokenize(text)
    sounds = heard("".join(symbol for symbol in kana.symbols if symbol in PHONEMES_OF or symbol == "ー"))
    if sounds != item["sung_phonemes"]:
        found.append(f"{name}: kana {kana.reading} are {' '.join(sounds)}, not {' '.join(item['sung_phonemes'])}")
    if "tokens_with_tags" in item and list(tokens.symbols) != item["tokens_with_tags"]:
        found.append(f"{name}: tokens {tokens.symbols}, not {item['tokens_with_tags']}")
    if not item.get("reading_ok", True):
        found += _override(item)
    return found


def _override(item: dict[str, Any]) -> list[str]:
    """The line with its reading given, word by word where the word is known here, and as a whole."""
    right = heard(item["correct_kana"])
    whole = vocabulary("ja_phonemes").tokenize("｜" + item["text"] + "{" + _only_kana(item["correct_kana"]) + "}")
    attempts = [whole]
    marked = item["text"]
    for word, reading in OVERRIDES.items():
        marked = marked.replace(word, f"{word}{{{reading}}}")
    if marked != item["text"]:
        attempts.append(vocabulary("ja_phonemes").tokenize(marked))
    return [
        f"{item['id']}: with its reading given {' '.join(tokens.phonemes)}, not {' '.join(right)}"
        for tokens in attempts
        if list(tokens.phonemes) != right
    ]


def _only_kana(kana: str) -> str:
    return "".join(c for c in kana if c in "ー" or "ァ" <= c <= "ヺ")
