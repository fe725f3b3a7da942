"""What a vocabulary makes of a text."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

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
            made.append(Problem("…", last.line, last.column, f"and {self._more} more problems, which are not listed"))
        return tuple(made)

    def _problem(self, position: int, symbol: str, advice: str) -> Problem:
        line = bisect_right(self._starts, position)
        return Problem(symbol, line, position - self._starts[line - 1] + 1, advice)
