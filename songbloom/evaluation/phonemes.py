"""From what was heard to phonemes, and how far they are from those that should have been sung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from songbloom.errors import UserError
from songbloom.lyrics.morae import PHONEMES, group_phonemes
from songbloom.lyrics.vocabulary import ReadingRule, vocabulary

CLASS_OF = {phoneme: index + 1 for index, phoneme in enumerate(PHONEMES)}
"""Class of each phoneme; 0 is none."""
SHUFFLES = 8
CHANGE = 3.0
"""What a change of phoneme costs in :class:`Decoder`; the best on songs that the shipped recogniser learned from."""


def expected_phonemes(lyrics: str, *, reading: ReadingRule = "auto") -> tuple[str, ...]:
    """The phonemes of a song's words, as Japanese sings them; structure tags are not sung.

    Raises:
        UserError: the words cannot be read without a package that is missing.
    """
    tokens = vocabulary("ja_phonemes").tokenize(lyrics, reading=reading)
    return tuple(phoneme for phoneme in tokens.phonemes if phoneme in CLASS_OF)


class Decoder:
    """The likeliest path through the classes, where each change of class costs (Viterbi 1967); runs are one phoneme,
    blanks none, as CTC reads a path. Takes pieces one after the other, and keeps 41 bytes a frame.

    Singing holds its phonemes, and a path that may change for nothing hears flickering consonants in long vowels.

    Args:
        change: what a change costs, as a natural logarithm; 0 takes the likeliest class of each frame.
    """

    def __init__(self, change: float = CHANGE) -> None:
        if change < 0:
            raise UserError(f"a change of phoneme that costs {change:g}: it must be 0 or more")
        self.change = change
        self._total: np.ndarray | None = None
        self._back: list[np.ndarray] = []

    def hear(self, log_probabilities: np.ndarray) -> None:
        """Take ``[frames, 41]`` that follow those before."""
        back = np.zeros(log_probabilities.shape, np.uint8)
        for index, frame in enumerate(log_probabilities.astype(np.float64)):
            if self._total is None:
                self._total = frame
                continue
            best = int(self._total.argmax())
            changed = self._total[best] - self.change
            changes = changed > self._total
            back[index] = np.where(changes, best, np.arange(len(frame)))
            self._total = np.where(changes, changed, self._total) + frame
            self._total -= self._total.max()  # so that long songs lose no precision
        self._back.append(back)

    @property
    def path(self) -> np.ndarray:
        """Class of each frame so far ``[frames]``."""
        if self._total is None:
            return np.zeros(0, np.int64)
        back = np.concatenate(self._back)
        path = np.zeros(len(back), np.int64)
        path[-1] = self._total.argmax()
        for frame in range(len(back) - 1, 0, -1):
            path[frame - 1] = back[frame, path[frame]]
        return path

    @property
    def phonemes(self) -> tuple[str, ...]:
        """The phonemes so far."""
        path = self.path
        begins = np.flatnonzero((path != 0) & (np.diff(path, prepend=0) != 0))
        return tuple(PHONEMES[index - 1] for index in path[begins])


def decode(log_probabilities: np.ndarray, change: float = CHANGE) -> tuple[str, ...]:
    """Phonemes of ``[frames, 41]`` by :class:`Decoder`."""
    decoder = Decoder(change)
    decoder.hear(log_probabilities)
    return decoder.phonemes


def edits(heard: Sequence[str], expected: Sequence[str], *, part: bool = False) -> int:
    """Fewest insertions, deletions and substitutions that make ``expected`` of ``heard`` (Levenshtein 1966).

    Args:
        part: any stretch of ``expected`` will do, whatever stands before and after it (Sellers 1980).
    """
    words = {phoneme: index for index, phoneme in enumerate(dict.fromkeys([*heard, *expected]))}
    wanted = np.array([words[p] for p in expected], np.int64)
    place = np.arange(len(wanted) + 1)
    row = np.zeros(len(wanted) + 1, np.int64) if part else place.copy()
    for phoneme in heard:
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + (wanted != words[phoneme]))
        row = np.minimum.accumulate(above - place) + place  # a deletion costs 1 a step to the right
    return int(row.min() if part else row[-1])


def shuffled(expected: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """The same morae in a random order: as many phonemes of each kind, but other words."""
    morae = group_phonemes(tuple(expected))
    order = np.random.default_rng([seed, len(morae)]).permutation(len(morae))
    return tuple(phoneme for index in order for phoneme in morae[index])


@dataclass(frozen=True)
class PhonemeScore:
    """How well words were sung.

    Attributes:
        expected, heard: numbers of phonemes.
        edits: :func:`edits` between them.
        edits_shuffled: mean of the same against :func:`shuffled` lyrics, which is what chance gives.
        edits_part: edits from what was heard to the best stretch of the words.
        edits_part_shuffled: the same against shuffled lyrics.
    """

    expected: int
    heard: int
    edits: int
    edits_shuffled: float
    edits_part: int
    edits_part_shuffled: float

    @property
    def per(self) -> float:
        """Phoneme error rate: edits a phoneme of the words; 1 if nothing is sung, more if much else is."""
        return self.edits / self.expected

    @property
    def per_shuffled(self) -> float:
        """:attr:`per` against shuffled lyrics."""
        return self.edits_shuffled / self.expected

    @property
    def per_part(self) -> float | None:
        """Edits to the best stretch of the words, a heard phoneme: for clips that sing only some of the words."""
        return self.edits_part / self.heard if self.heard else None

    @property
    def per_part_shuffled(self) -> float | None:
        """:attr:`per_part` against shuffled lyrics."""
        return self.edits_part_shuffled / self.heard if self.heard else None


def score(heard: Sequence[str], expected: Sequence[str], *, seed: int = 0) -> PhonemeScore:
    """Compare what was heard with what should be.

    Raises:
        ValueError: nothing is expected.
    """
    if not expected:
        raise ValueError("lyrics without phonemes have no error rate")
    others = [shuffled(expected, seed + number) for number in range(SHUFFLES)]
    return PhonemeScore(
        len(expected),
        len(heard),
        edits(heard, expected),
        float(np.mean([edits(heard, other) for other in others])),
        edits(heard, expected, part=True),
        float(np.mean([edits(heard, other, part=True) for other in others])),
    )


def together(scores: Sequence[PhonemeScore]) -> PhonemeScore:
    """Scores of several items as one: all their phonemes and edits together.

    Raises:
        ValueError: of none.
    """
    if not scores:
        raise ValueError("no scores")
    whole = [(s.expected, s.heard, s.edits, s.edits_part) for s in scores]
    expected, heard, apart, part = (sum(column) for column in zip(*whole, strict=True))
    return PhonemeScore(
        expected,
        heard,
        apart,
        sum(s.edits_shuffled for s in scores),
        part,
        sum(s.edits_part_shuffled for s in scores),
    )
