"""Vocabularies: which tokens words are made of.

==============  =======================================================================================
``v2``, ``v3``  characters of ASCII text, as the published Jukebox models know them
``ja_kana``     Japanese, one token a mora of the reading (``キョ``, ``ー``, ``ッ``)
``ja_phonemes`` Japanese, one token a phoneme in Open JTalk's names (``ky``, ``o``, ``cl``, ``N``)
``songbloom``   English, Chinese and Japanese, the published SongBloom models' 330 phonemes and tags
``songbloom_ja`` the same and what Japanese lacks there, after the last
``songbloom_published`` as ``songbloom``, read with the published program's habits
a file          ``vocab_g2p.yaml`` or another list of symbols, read as ``songbloom`` is
==============  =======================================================================================

The Japanese ones also have structure tags (``[verse]``), line ends, ``, . ! ?``, and Latin letters for English words
that are kept as they are. Token 0 is padding. Nothing is dropped in silence: see :class:`Tokens` ``.problems``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from songbloom.errors import UserError, did_you_mean
from songbloom.lyrics import phoneme_vocabulary
from songbloom.lyrics.morae import LONG, PHONEMES, PHONEMES_OF
from songbloom.lyrics.tags import TAGS
from songbloom.lyrics.tokens import (
    ENGLISH_RULES,
    READINGS,
    EnglishRule,
    Places,
    Problem,
    ReadingRule,
    Tokens,
    Vocabulary,
    check_rules,
)

if TYPE_CHECKING:
    from songbloom.lyrics.japanese import Piece

__all__ = ["ENGLISH_RULES", "NAMES", "READINGS", "Problem", "ReadingRule", "Tokens", "Vocabulary", "vocabulary"]

NAMES = ("v2", "v3", "ja_kana", "ja_phonemes", "songbloom", "songbloom_ja", "songbloom_published")
"""Names that :func:`vocabulary` knows, beside files."""
FILES = (".yaml", ".yml", ".json")
"""Kinds of files that a vocabulary can be read from."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEPT_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
_V2 = _LETTERS + "0123456789" + ".,:;!?-+'\"()[]" + " \t\n"


class CharacterVocabulary(Vocabulary):
    """One token a character of the text in ASCII; what has no token is left out and named."""

    def tokenize(self, text: str, *, english: EnglishRule = "katakana", reading: ReadingRule = "auto") -> Tokens:
        check_rules(english, reading)
        from songbloom.lyrics.plain_ascii import ascii_of

        places = Places(text)
        characters: list[str] = []
        spans: list[tuple[int, int]] = []
        for position, character in enumerate(text):
            known = [c for c in ascii_of(character).replace("\\", "\n") if c in self._id_of]
            if not known:
                places.note(position, character, f"has no letters in vocabulary {self.name} and is left out")
            characters += known
            spans += [(position, position + 1)] * len(known)
        return Tokens(
            ids=tuple(self._id_of[c] for c in characters),
            symbols=tuple(characters),
            spans=tuple(spans),
            text=text,
            cleaned="".join(characters),
            problems=places.problems(),
        )


class JapaneseVocabulary(Vocabulary):
    """One token a mora or a phoneme of the reading, and structure tags, line ends, punctuation and letters."""

    def __init__(self, name: str, sounds: Sequence[str], *, by_phoneme: bool) -> None:
        super().__init__(name, ("", "\n", *",.!?", *TAGS, *(f"<{letter}>" for letter in _KEPT_LETTERS), *sounds))
        self._by_phoneme = by_phoneme

    @property
    def is_japanese(self) -> bool:
        return True

    def tokenize(self, text: str, *, english: EnglishRule = "katakana", reading: ReadingRule = "auto") -> Tokens:
        check_rules(english, reading)
        if english == "arpabet":
            raise UserError(f"vocabulary {self.name} has no English phonemes; english is katakana, letters or keep")
        from songbloom.lyrics import japanese  # loads Open JTalk when a text needs it

        places = Places(text)
        song = japanese.read(text, english, reading, places)
        symbols: list[str] = []
        spans: list[tuple[int, int]] = []
        for piece in song.pieces:
            made: Sequence[str] = (piece.symbol,)
            if piece.kind == "letter":
                made = (f"<{piece.symbol}>",)
            elif piece.kind == "mora" and self._by_phoneme:
                made = piece.phonemes
            for symbol in made:
                if symbol in self._id_of:
                    symbols.append(symbol)
                    spans.append((piece.start, piece.end))
                else:
                    places.note(piece.start, symbol, f"has no token in vocabulary {self.name} and is left out")
        return Tokens(
            ids=tuple(self._id_of[symbol] for symbol in symbols),
            symbols=tuple(symbols),
            spans=tuple(spans),
            text=text,
            cleaned=song.cleaned,
            problems=places.problems(),
            reading="".join(_written(piece) for piece in song.pieces),
            phonemes=tuple(phoneme for piece in song.pieces for phoneme in piece.phonemes),
        )

    @property
    def separator(self) -> str:
        return " " if self._by_phoneme else ""

    def decode(self, ids: Sequence[int]) -> str:
        symbols = [symbol for symbol in self._symbols_of(ids) if symbol]
        return self.separator.join(symbols).replace(" \n ", "\n")


@lru_cache(maxsize=16)
def vocabulary(name: str) -> Vocabulary:
    """The vocabulary called ``name``.

    Raises:
        UserError: there is none of this name.
    """
    if name == "v2":
        return CharacterVocabulary(name, ("", *_V2))
    if name == "v3":
        return CharacterVocabulary(name, ("", *_V2.replace("+", "")))
    if name == "ja_kana":
        return JapaneseVocabulary(name, (*PHONEMES_OF, LONG), by_phoneme=False)
    if name == "ja_phonemes":
        return JapaneseVocabulary(name, PHONEMES, by_phoneme=True)
    if name.startswith("songbloom") or Path(name).suffix in FILES:
        if name in NAMES:
            return phoneme_vocabulary.named(name)
        if Path(name).suffix in FILES:
            return phoneme_vocabulary.from_file(Path(name))
    raise UserError(f"no vocabulary {name!r}{did_you_mean(name, NAMES)}; there are {', '.join(NAMES)}, or a file")


def _written(piece: Piece) -> str:
    return piece.symbol if piece.kind != "letter" else f"<{piece.symbol}>"
