"""Text in ASCII, as the vocabularies v2 and v3 know it: é → e, “ → ", П → P.

The tables are those of Text::Unidecode (Burke 2001) in the package text-unidecode. What it lacks or has changed since,
and lyrics use, is mended here.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from text_unidecode import unidecode

_MENDED = {
    "¼": " 1/4", "½": " 1/2", "¾": " 3/4", "Ŋ": "NG", "ŋ": "ng", "Є": "Ie", "Ъ": "'", "ъ": "'", "ẞ": "SS",
    "し": "shi", "ち": "chi", "っ": "tsu", "つ": "tsu", "シ": "shi", "チ": "chi", "ッ": "tsu", "ツ": "tsu", "ー": "-",
    "−": "-", "∶": ":",
    "❜": "'", "❝": '"', "❞": '"',
}  # fmt: skip
_UNKNOWN = "[?]"  # the package's mark for a character without an entry


@lru_cache(maxsize=65536)
def ascii_of(character: str) -> str:
    """ASCII for one character: one, several or no characters.

    What has no entry is taken apart by its compatibility decomposition (①, 𝐀, ℃), or becomes nothing (emoji).
    """
    if character < "\x80":
        return character
    if character in _MENDED:
        return _MENDED[character]
    plain = str(unidecode(character))
    if _UNKNOWN not in plain and plain:
        return plain
    parts = unicodedata.normalize("NFKC", character)
    return "".join(ascii_of(part) for part in parts) if parts != character else ""
