"""Japanese in Latin letters, as scores write it syllable by syllable, back in kana."""

from __future__ import annotations

import unicodedata

from songbloom.lyrics.morae import KANA_OF, LONG, as_hiragana

_VOWELS = "aiueo"
KUNREI_AND_OTHERS = {
    "si": "シ", "ti": "チ", "tu": "ツ", "hu": "フ", "zi": "ジ", "di": "ヂ", "du": "ヅ", "wo": "ヲ",
    "sya": "シャ", "syu": "シュ", "syo": "ショ", "tya": "チャ", "tyu": "チュ", "tyo": "チョ",
    "zya": "ジャ", "zyu": "ジュ", "zyo": "ジョ", "jya": "ジャ", "jyu": "ジュ", "jyo": "ジョ",
    "cha": "チャ", "la": "ラ", "li": "リ", "lu": "ル", "le": "レ", "lo": "ロ",
}  # fmt: skip
_SPELLINGS = {
    "".join(phonemes): kana for phonemes, kana in KANA_OF.items() if len(phonemes) == 2 or phonemes[0] in _VOWELS
}
_SPELLINGS |= KUNREI_AND_OTHERS
_LONGEST = max(map(len, _SPELLINGS))


def kana(text: str) -> str | None:
    """Romaji (Hepburn or Kunrei) as hiragana; spaces and marks stay; ``None`` if it cannot be all romaji.

    >>> kana("kippu, shin'ya")
    'きっぷ, しんや'
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    made: list[str] = []
    position = 0
    while position < len(plain):
        rest = plain[position:]
        spelled = next((rest[:n] for n in range(_LONGEST, 0, -1) if rest[:n] in _SPELLINGS), None)
        decomposed = unicodedata.normalize("NFD", rest[0])
        if spelled is not None:
            made.append(_SPELLINGS[spelled])
            position += len(spelled)
        elif len(decomposed) == 2 and decomposed[0] in _VOWELS and decomposed[1] in "\u0304\u0302":  # ō, ô
            made.append(_SPELLINGS[decomposed[0]] + LONG)
            position += 1
        elif _long_after(rest):
            made.append(_SPELLINGS[_long_after(rest)] + LONG)
            position += len(_long_after(rest))
        elif (rest[0] in "nm" and not rest[1:2].isalpha()) or (rest[0] in "nm" and rest[1:2] not in (*_VOWELS, "y")):
            made.append("ン")
            position += 2 if rest[1:2] == "'" else 1
        elif len(rest) > 1 and (rest[0] == rest[1] or rest[:3] == "tch") and rest[0].isalpha():
            made.append("ッ")
            position += 1
        elif rest[0].isascii() and rest[0].isalpha():
            return None
        else:
            made.append(rest[0])
            position += 1
    return as_hiragana("".join(made))


def _long_after(rest: str) -> str:
    """A consonant and a vowel with a macron at the beginning, spelled without it: ``kō`` → ``ko``; else nothing."""
    for length in range(2, _LONGEST + 1):
        decomposed = unicodedata.normalize("NFD", rest[:length])
        if len(decomposed) == length + 1 and decomposed[-1] in "\u0304\u0302" and decomposed[:-1] in _SPELLINGS:
            return decomposed[:-1]
    return ""
