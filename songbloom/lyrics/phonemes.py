"""The phonemes of SongBloom's published vocabulary, made from the inventories of its languages; and its clean-up.

Yang et al. 2025 (arXiv 2506.07634) feed phonemes of Mandarin and English; Japanese ones have places in the vocabulary
that no published model has learned.
"""

from __future__ import annotations

import re

from songbloom.lyrics import arpabet, pinyin

SUNG_TAGS = ("[verse]", "[chorus]", "[bridge]")
SILENT_TAGS = ("[intro]", "[outro]", "[inst]", "[silence]")
TAGS = (*SUNG_TAGS, *SILENT_TAGS)
"""The tags of the published vocabulary, in the order of their ids, which begin at 1."""
MARKS = ("!", ",", "-", ".", "?")
SECTION_END, SENTENCE_END = ",", "."

PUBLISHED_ROOM = 600
"""Lyric tokens that the published 150 s models see; the rest is cut off."""

_UNUSED = (
    "AA", "ER", "IH", "SP", "SP2", "SP3", "UNK", "_", "…",
)  # fmt: skip
_JAPANESE = (
    "I", "U", "a", "b", "by", "ch", "cl", "d", "dy", "e", "f", "g", "gy", "h", "hy", "i", "j", "k", "ky", "m", "my",
    "n", "ny", "o", "p", "py", "r", "ry", "s", "sh", "t", "ts", "u", "v", "w", "y", "z",
)  # fmt: skip

SYMBOLS = frozenset(
    (*MARKS, *arpabet.PHONEMES, *pinyin.INITIALS, *pinyin.ZERO_INITIALS, *pinyin.FINALS, *_UNUSED, *_JAPANESE)
)
"""The 322 symbols that are sung or mark sentences and sections."""
PUBLISHED = ("", *TAGS, *sorted(SYMBOLS))
"""The 330 entries of the published vocabulary in the order of their ids; the first is the empty word."""

_TO_FULL_STOP = re.compile("[!?;,:…！？，]")
_QUOTES = re.compile('["“”‘’«»〈〉《》【】(){}]')
_KNOWN = "|".join(re.escape(tag) for tag in TAGS)
_BRACKETED = re.compile(r"(\[[^\[\]]*\])")
_CJK = "\u4e00-\u9fff"


def clean_lyrics(text: str) -> str:
    """The published clean-up: tags in small letters and apart, one kind of sentence end, no quotes.

    It turns ``! ? ; , :`` into full stops and puts `` , `` between sections. The published program has it and does not
    call it.
    """
    text = _TO_FULL_STOP.sub(".", text)
    text = re.sub(rf"({_KNOWN})\s*[,.]", r"\1 ", text, flags=re.IGNORECASE)
    pieces: list[str] = []
    for piece in _BRACKETED.split(text):
        if piece.lower() in TAGS:
            pieces.append(f"{piece.lower()} ")
        elif piece.strip():
            pieces.append(re.sub(r"\s+", " ", _QUOTES.sub("", piece)).strip())
    text = "".join(piece + _between(piece, after) for piece, after in zip(pieces, [*pieces[1:], ""], strict=False))
    for pattern, put in (
        (r"\s+,", " ,"),
        (r",\s+", ", "),
        (r"\.\.+", "."),
        (r"\.\s*,", ","),
        (rf"([{_CJK}])\s+([{_CJK}])", r"\1.\2"),
    ):
        text = re.sub(pattern, put, text)
    return text.strip()


def _between(piece: str, after: str) -> str:
    """What stands between two neighbours of a cleaned text."""
    tag, next_tag = piece.strip() in TAGS, after.strip() in TAGS
    if not after or not (tag or next_tag) or (tag and next_tag and piece == after):
        return ""
    if tag and not next_tag and piece.strip() in SUNG_TAGS:
        return ""
    return " , "


NEAREST: dict[str, tuple[str, ...]] = {
    "a": ("a1", "AA1"), "i": ("i1", "IY1"), "u": ("u1", "UW1"), "e": ("EH1", "E1"), "o": ("o1", "OW1"),
    "I": ("i1", "IY1"), "U": ("u1", "UW1"), "cl": ("SP",), "ts": ("z", "c"), "v": ("V",),
    "ky": ("k", "Y"), "gy": ("g", "Y"), "ny": ("n", "Y"), "hy": ("h", "Y"), "by": ("b", "Y"), "py": ("p", "Y"),
    "my": ("m", "Y"), "ry": ("r", "Y"), "dy": ("d", "Y"), "ty": ("t", "Y"), "fy": ("f", "Y"),
    "kw": ("k", "W"), "gw": ("g", "W"), "[prechorus]": ("[verse]",),
}  # fmt: skip
"""Symbols that no published model has learned → those it has learned that sound most alike."""
