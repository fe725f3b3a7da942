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

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from songbloom.errors import UserError, did_you_mean
from songbloom.lyrics.morae import LONG, PHONEMES, PHONEMES_OF
from songbloom.lyrics.tags import TAGS
from songbloom.lyrics.tokens import Places, Problem, Tokens

if TYPE_CHECKING:
    from songbloom.lyrics.japanese import Piece

__all__ = ["ENGLISH_RULES", "NAMES", "READINGS", "Problem", "Tokens", "Vocabulary", "vocabulary"]

EnglishRule = Literal["katakana", "letters", "keep", "arpabet"]
ReadingRule = Literal["auto", "dictionary", "kana"]
ENGLISH_RULES: tuple[EnglishRule, ...] = ("katakana", "letters", "keep", "arpabet")
"""What becomes of English words in a Japanese song: read as Japanese, spelled out, kept letter by letter, or English
phonemes, which the ``songbloom`` vocabularies have."""
READINGS: tuple[ReadingRule, ...] = ("auto", "dictionary", "kana")
"""How Japanese is read: by Open JTalk (``auto``: if it is installed or the text needs it), or as its kana stand."""
NAMES = ("v2", "v3", "ja_kana", "ja_phonemes", "songbloom", "songbloom_ja", "songbloom_published")
"""Names that :func:`vocabulary` knows, beside files."""
FILES = (".yaml", ".yml", ".json")
"""Kinds of files that a vocabulary can be read from."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEPT_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
_V2 = _LETTERS + "0123456789" + ".,:;!?-+'\"()[]" + " \t\n"


class Vocabulary(ABC):
    """Tokens and what they stand for.

    Attributes:
        name: as given to :func:`vocabulary`.
        symbols: what each id stands for; id 0 is padding, an empty string.
        n_vocab: number of ids.
    """

    def __init__(self, name: str, symbols: Sequence[str]) -> None:
        self.name = name
        self.symbols = tuple(symbols)
        self.n_vocab = len(self.symbols)
        self._id_of = {symbol: index for index, symbol in enumerate(self.symbols)}

    @property
    def is_japanese(self) -> bool:
        """Whether texts are read as Japanese."""
        return False

    @property
    def separator(self) -> str:
        """What stands between symbols that are shown together."""
        return ""

    @abstractmethod
    def tokenize(self, text: str, *, english: EnglishRule = "katakana", reading: ReadingRule = "auto") -> Tokens:
        """Tokens of a song's words.

        Args:
            text: words, lines, structure tags.
            english: what becomes of English words in Japanese; v2 and v3 do not need it.
            reading: how Japanese is read; v2 and v3 do not need it.

        Raises:
            UserError: an unknown rule, or a Japanese text that cannot be read without a package that is missing.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; padding is nothing.

        Raises:
            UserError: an id that the vocabulary does not have.
        """
        return "".join(self._symbols_of(ids))

    def _symbols_of(self, ids: Sequence[int]) -> list[str]:
        for index in ids:
            if not 0 <= index < self.n_vocab:
                raise UserError(f"vocabulary {self.name} has no token {index}; it has 0 to {self.n_vocab - 1}")
        return [self.symbols[index] for index in ids]


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
        from songbloom.lyrics import phoneme_vocabulary

        if name in NAMES:
            return phoneme_vocabulary.named(name)
        if Path(name).suffix in FILES:
            return phoneme_vocabulary.from_file(Path(name))
    raise UserError(f"no vocabulary {name!r}{did_you_mean(name, NAMES)}; there are {', '.join(NAMES)}, or a file")


def check_rules(english: str, reading: str) -> None:
    """Refuse rules that there are not.

    Raises:
        UserError: names the rule and those that there are.
    """
    for what, value, options in (("english", english, ENGLISH_RULES), ("reading", reading, READINGS)):
        if value not in options:
            raise UserError(
                f"{what} is {value!r}{did_you_mean(value, options)}; it must be one of {', '.join(options)}"
            )


def _written(piece: Piece) -> str:
    return piece.symbol if piece.kind != "letter" else f"<{piece.symbol}>"
