"""What a vocabulary is asked, and what it makes of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from songbloom.errors import UserError, counted, did_you_mean

EnglishRule = Literal["katakana", "letters", "keep", "arpabet"]
ReadingRule = Literal["auto", "dictionary", "kana"]
ENGLISH_RULES: tuple[EnglishRule, ...] = ("katakana", "letters", "keep", "arpabet")
"""What becomes of English words in a Japanese song: read as Japanese, spelled out, kept letter by letter, or English
phonemes, which the ``songbloom`` vocabularies have."""
READINGS: tuple[ReadingRule, ...] = ("auto", "dictionary", "kana")
"""How Japanese is read: by Open JTalk (``auto``: if it is installed or the text needs it), or as its kana stand."""
MOST_PROBLEMS = 100
"""Problems that are named one by one; a last one says how many more there are."""


@dataclass(frozen=True)
class Problem:
    """Something in a text that does not become tokens, or not surely the right ones.

    ``line`` and ``column`` count from 1 in the text as given; ``advice`` says what became of it and what to do.
    """

    symbol: str
    line: int
    column: int
    advice: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.symbol!r} {self.advice}"


@dataclass(frozen=True)
class SectionTokens:
    """A section's tags among the tokens: ``count`` from ``first`` on; ``seconds`` is its wanted length, if any."""

    tag: str
    first: int
    count: int
    seconds: float | None


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text.

    Attributes:
        ids: the tokens.
        symbols: what each token stands for.
        spans: start and end (exclusive) of the characters of ``text`` that each token came from. Several tokens may
            share a span: the morae of a word in kanji.
        text: the text as given.
        cleaned: the text as understood.
        problems: what did not become tokens, in order; empty when everything did.
        reading: Japanese: katakana as pronounced, else empty.
        phonemes: the phonemes that are sung, for vocabularies that know any.
        sections: where sections begin, for vocabularies of structured lyrics.
    """

    ids: tuple[int, ...]
    symbols: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    text: str
    cleaned: str
    problems: tuple[Problem, ...] = ()
    reading: str = ""
    phonemes: tuple[str, ...] = ()
    sections: tuple[SectionTokens, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


class Places:
    """Collects problems and turns character positions into lines and columns."""

    def __init__(self, text: str) -> None:
        self._starts = [0] + [i + 1 for i, character in enumerate(text) if character == "\n"]
        self._found: list[tuple[int, str, str]] = []
        self._more = 0

    def note(self, position: int, symbol: str, advice: str) -> None:
        """Remember that ``symbol`` at ``position`` is a problem."""
        if len(self._found) < MOST_PROBLEMS:
            self._found.append((position, symbol, advice))
        else:
            self._more += 1

    def problems(self) -> tuple[Problem, ...]:
        """All problems in the order of the text."""
        made = [self._problem(*found) for found in sorted(self._found, key=lambda found: found[0])]
        if self._more:
            last = made[-1]
            made.append(Problem("…", last.line, last.column, f"and {counted(self._more, 'more problem')}, not listed"))
        return tuple(made)

    def _problem(self, position: int, symbol: str, advice: str) -> Problem:
        line = bisect_right(self._starts, position)
        return Problem(symbol, line, position - self._starts[line - 1] + 1, advice)


class Vocabulary(ABC):
    """Tokens and what they stand for.

    Attributes:
        name: as given to :func:`songbloom.lyrics.vocabulary.vocabulary`.
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
