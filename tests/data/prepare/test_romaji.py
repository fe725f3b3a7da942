"""Romaji in scores."""

from __future__ import annotations

import pytest

from songbloom.data.prepare.romaji import KUNREI_AND_OTHERS, kana
from songbloom.lyrics.morae import PHONEMES_OF, as_hiragana


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kippu", "きっぷ"), ("shin'ya", "しんや"), ("konnichiwa", "こんにちわ"),
        ("Tōkyō", "とーきょー"), ("matchi", "まっち"),
        ("si tu hu zya", "し つ ふ じゃ"), ("sampo", "さんぽ"), ("n", "ん"), ("hello", "へっろ"),
        ("doo wop", None), ("yes", None),
    ],
)  # fmt: skip
def test_syllables(text: str, wanted: str | None):
    assert kana(text) == wanted


def test_every_mora_by_its_phonemes():
    for mora, phonemes in PHONEMES_OF.items():
        if len(phonemes) == 2 and "".join(phonemes) not in KUNREI_AND_OTHERS:
            spelled = kana("".join(phonemes))
            assert spelled is not None
            assert PHONEMES_OF[mora] == next(p for k, p in PHONEMES_OF.items() if as_hiragana(k) == spelled)
