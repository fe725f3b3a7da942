"""From what was heard to phonemes, and how far they are from those that should have been sung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from songbloom.errors import UserError
from songbloom.lyrics.morae import PHONEMES, group_phonemes
from songbloom.lyrics.vocabulary import ReadingRule, vocabulary

CLASS_OF = {phoneme: index + 1 for index, phoneme in enumerate(PHONEMES)}
"""Class of each phoneme; 0 is none."""
SHUFFLES = 8


def expected_phonemes(lyrics: str, *, reading: ReadingRule = "auto") -> tuple[str, ...]:
    """The phonemes of a song's words, as Japanese sings them; structure tags are not sung.

    Raises:
        UserError: the words cannot be read without a package that is missing.
    """
    tokens = vocabulary("ja_phonemes").tokenize(lyrics, reading=reading)
    return tuple(phoneme for phoneme in tokens.phonemes if phoneme in CLASS_OF)


class GreedyDecoder:
    """The likeliest class of each frame; runs are one, blanks none. Takes pieces one after the other."""

    def __init__(self) -> None:
        self.phonemes: list[str] = []
        self._last = 0

    def hear(self, log_probabilities: np.ndarray) -> None:
        """Take ``[frames, 41]`` that follow those before."""
        for best in log_probabilities.argmax(axis=1).tolist():
            if best not in (0, self._last):
                self.phonemes.append(PHONEMES[best - 1])
            self._last = best


def greedy(log_probabilities: np.ndarray) -> tuple[str, ...]:
    """Phonemes of ``[frames, 41]`` by :class:`GreedyDecoder`."""
    decoder = GreedyDecoder()
    decoder.hear(log_probabilities)
    return tuple(decoder.phonemes)


class BeamDecoder:
    """CTC prefix beam search (Graves et al. 2006, section 4.2; Hannun et al. 2014): the likeliest phonemes, however
    they are spread over frames. Takes pieces one after the other.

    Args:
        width: prefixes that are kept.
        narrow: classes this much less likely in a frame than the best (natural logarithm) are not followed.
    """

    def __init__(self, width: int = 16, narrow: float = 8.0) -> None:
        if width < 1:
            raise UserError(f"a beam of {width}: it must be at least 1")
        self.width, self.narrow = width, narrow
        # A prefix → log-probability that it ends in a blank, and that it ends in its last phoneme.
        self._beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}

    def hear(self, log_probabilities: np.ndarray) -> None:
        """Take ``[frames, 41]`` that follow those before."""
        for frame in log_probabilities.astype(np.float64):
            likely = np.flatnonzero(frame >= frame.max() - self.narrow).tolist()
            grown: dict[tuple[int, ...], tuple[float, float]] = {}
            for prefix, (blank, sound) in self._beam.items():
                either = float(np.logaddexp(blank, sound))
                last = prefix[-1] if prefix else 0
                kept = grown.get(prefix, (-np.inf, -np.inf))
                repeated = sound + frame[last] if last else -np.inf
                grown[prefix] = (
                    float(np.logaddexp(kept[0], either + frame[0])),
                    float(np.logaddexp(kept[1], repeated)),
                )
                for index in likely:
                    if index:
                        longer = (*prefix, index)
                        more = grown.get(longer, (-np.inf, -np.inf))
                        path = (blank if index == last else either) + float(frame[index])
                        grown[longer] = (more[0], float(np.logaddexp(more[1], path)))
            best = sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))[: self.width]
            self._beam = dict(best)

    @property
    def phonemes(self) -> list[str]:
        """The likeliest so far."""
        return [PHONEMES[index - 1] for index in next(iter(self._beam))]


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


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends (exclusive) of runs of True in ``[frames]``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in list(pairwise(edges.tolist()))[::2]]
