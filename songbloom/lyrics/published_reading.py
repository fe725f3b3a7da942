"""Words → phonemes exactly as the published SongBloom program makes them, with the habits that its models learned.

Words that are symbols themselves (``I``, ``a``, ``my``) stay as they are, tags that are not spelled exactly are sung,
kana vanish, and kanji are Chinese. :mod:`songbloom.lyrics.song` reads songs as people mean them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from songbloom.lyrics import arpabet, mandarin
from songbloom.lyrics.phonemes import SYMBOLS, TAGS

_REPLACED = {
    **dict.fromkeys("：；，·、/", ","), "。": ".", "！": "!", "？": "?", "\n": ".", "...": "…", "$": ".", "—": "-",
    "~": "…", "～": "…",
}  # fmt: skip
_REPLACE = re.compile("|".join(map(re.escape, _REPLACED)))
_PART = re.compile("(?P<mark>[,.!?…-])|(?P<zh>[\u4e00-\u9fa5]+)|(?P<en>[^,.!?…\u4e00-\u9fa5-]+)")


class ReadWord(NamedTuple):
    """A word between single spaces: its phonemes (``("",)`` for none) and where it stands in the text.

    ``passed`` says that it is a symbol or a tag itself; ``guessed`` are parts that no dictionary has.
    """

    phonemes: tuple[str, ...]
    start: int
    end: int
    passed: bool
    guessed: tuple[str, ...] = ()


def read_words(text: str) -> list[ReadWord]:
    """Each word of a text, words being what stands between single spaces.

    Raises:
        UserError: the text has Chinese characters, and the packages that read them are missing.
    """
    words: list[ReadWord] = []
    start = 0
    for word in text.split(" "):
        end = start + len(word)
        if word in SYMBOLS or word in TAGS or not word:
            words.append(ReadWord((word,), start, end, True))
        else:
            phonemes, guessed = _read_word(word)
            words.append(ReadWord(tuple(phonemes) or ("",), start, end, False, tuple(guessed)))
        start = end + 1
    return words


def _read_word(word: str) -> tuple[list[str], list[str]]:
    word = _REPLACE.sub(lambda match: _REPLACED[match[0]], word)
    phonemes: list[str] = []
    guessed: list[str] = []
    for part in _PART.finditer(word):
        if part["mark"]:
            phonemes.append(part["mark"])
        elif part["zh"]:
            phonemes += [phoneme for syllable in mandarin.read(part["zh"]) for phoneme in syllable.phonemes]
        else:
            for spoken in arpabet.speak(arpabet.normalise(part["en"])):
                phonemes += ["-" if phoneme == "'" else phoneme for phoneme in spoken.phonemes]
                if spoken.how in ("model", "compound", "letters"):
                    guessed.append(spoken.word)
    return ["UNK" if phoneme == "<unk>" else phoneme for phoneme in phonemes if _is_symbol(phoneme)], guessed


def _is_symbol(phoneme: str) -> bool:
    return phoneme in SYMBOLS or phoneme == "<unk>"
