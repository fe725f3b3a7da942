"""Japanese readings: lines with their phonemes, and the table of kana. These files are JSON."""

from __future__ import annotations

from songbloom.lyrics.morae import LONG, PHONEMES_OF, pronounce
from songbloom.lyrics.vocabulary import vocabulary
from tests.golden.report import Golden

OVERRIDES = {"人気": "ひとけ", "根本": "ねもと", "市場": "いちば"}
"""Readings that a person gives where the dictionary's is not meant."""


def check_kana(golden: Golden) -> None:
    """Phonemes of each mora as it stands."""
    golden.given("produced_by")
    golden.given("note")
    golden.expect("count", got=len(PHONEMES_OF))
    golden.expect("table", got={kana: heard(kana) for kana in PHONEMES_OF})


def check_lines(golden: Golden) -> None:
    """Each line's sung phonemes, by both vocabularies; tokens with tags; and misread lines with their reading given."""
    for key in ("description", "produced_by", "cross_check", "fields", "licence", "date"):
        if golden.has(key):
            golden.given(key)
    golden.expect("count", got=len(golden.look("items")))
    for index in range(len(golden.look("items"))):
        _check_line(golden, index)


def heard(kana: str) -> list[str]:
    """Phonemes of kana as they stand."""
    return [phoneme for _, phonemes in pronounce(kana) for phoneme in phonemes]


def _check_line(golden: Golden, index: int) -> None:
    item = golden.look("items", index)
    at = ("items", index)
    text = item["text"]
    for key in item:  # other tools' phonemes, speech's devoiced vowels and pauses, remarks
        if key not in ("sung_phonemes", "tokens_with_tags", "correct_kana"):
            golden.given(*at, key)
    tokens = vocabulary("ja_phonemes").tokenize(text)
    golden.expect(*at, "sung_phonemes", got=list(tokens.phonemes), name=f"{item['id']}: phonemes")
    kana = vocabulary("ja_kana").tokenize(text)
    sounds = heard("".join(symbol for symbol in kana.symbols if symbol in PHONEMES_OF or symbol == LONG))
    golden.expect(*at, "sung_phonemes", got=sounds, name=f"{item['id']}: phonemes of the kana")
    if "tokens_with_tags" in item:
        golden.expect(*at, "tokens_with_tags", got=list(tokens.symbols), name=f"{item['id']}: tokens")
    if "correct_kana" in item:
        _check_override(golden, index)


def _check_override(golden: Golden, index: int) -> None:
    """The line with its reading given, word by word where the word is known here, and as a whole."""
    item = golden.look("items", index)
    right = golden.given("items", index, "correct_kana")
    whole = "".join(c for c in right if c == LONG or "ァ" <= c <= "ヺ")
    marked = item["text"]
    for word, reading in OVERRIDES.items():
        marked = marked.replace(word, f"{word}{{{reading}}}")
    wanted = Golden(golden.name, {"phonemes": heard(right)})
    wanted.expect("phonemes", got=_read(f"｜{item['text']}{{{whole}}}"), name=f"{item['id']}: whole reading given")
    if marked != item["text"]:
        wanted.expect("phonemes", got=_read(marked), name=f"{item['id']}: word's reading given")
    golden.quantities.update(wanted.quantities)


def _read(text: str) -> list[str]:
    return list(vocabulary("ja_phonemes").tokenize(text).phonemes)


CHECKS = {"japanese_g2p": check_lines, "japanese_kana_phonemes": check_kana}
