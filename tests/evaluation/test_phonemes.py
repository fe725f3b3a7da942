"""Phonemes out of probabilities, and error rates."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.evaluation import phonemes
from songbloom.lyrics.morae import PHONEMES

WORDS = st.lists(st.sampled_from(["a", "i", "k", "sh", "N"]), max_size=9)


def slow_edits(heard: Sequence[str], expected: Sequence[str]) -> int:
    """The definition, step by step."""
    if not heard or not expected:
        return len(heard) + len(expected)
    return min(
        slow_edits(heard[1:], expected[1:]) + (heard[0] != expected[0]),
        slow_edits(heard[1:], expected) + 1,
        slow_edits(heard, expected[1:]) + 1,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("aik"), max_size=5), st.lists(st.sampled_from("aik"), max_size=5))
def test_edits_follow_their_definition(heard: list[str], expected: list[str]) -> None:
    assert phonemes.edits(heard, expected) == slow_edits(heard, expected)
    parts = [expected[a:b] for a in range(len(expected) + 1) for b in range(a, len(expected) + 1)]
    assert phonemes.edits(heard, expected, part=True) == min(slow_edits(heard, part) for part in parts)


@given(WORDS, st.integers(0, 5))
def test_shuffled_lyrics_have_the_same_sounds(words: list[str], seed: int) -> None:
    assert Counter(phonemes.shuffled(words, seed)) == Counter(words)
    assert phonemes.shuffled(words, seed) == phonemes.shuffled(words, seed)


def test_tags_are_not_sung_and_words_are() -> None:
    sung = phonemes.expected_phonemes("[verse]\n学校へ\n\n[chorus]\nきょう")
    assert " ".join(sung) == "g a cl k o o e ky o o"
    assert phonemes.expected_phonemes("[inst]") == ()


def path_of(classes: Sequence[int], sure: float = 0.9) -> np.ndarray:
    """Log-probabilities ``[frames, 41]`` that prefer these classes."""
    path = np.full((len(classes), 1 + len(PHONEMES)), (1 - sure) / len(PHONEMES))
    path[np.arange(len(classes)), classes] = sure
    return np.log(path)


def test_runs_are_one_and_blanks_none() -> None:
    a, k = phonemes.CLASS_OF["a"], phonemes.CLASS_OF["k"]
    path = path_of([0, k, k, a, a, 0, a, 0])
    assert phonemes.decode(path, 0) == ("k", "a", "a") == phonemes.decode(path, 1)
    decoder = phonemes.Decoder(0)
    for frame in path:  # a run goes on from one piece to the next
        decoder.hear(frame[None])
    assert decoder.phonemes == ("k", "a", "a")
    assert phonemes.Decoder().phonemes == () == phonemes.decode(path[:0])


def test_flickering_is_not_heard() -> None:
    a, k = phonemes.CLASS_OF["a"], phonemes.CLASS_OF["k"]
    path = path_of([a] * 9 + [k] + [a] * 9, sure=0.5)
    assert phonemes.decode(path, 0) == ("a", "k", "a") and phonemes.decode(path) == ("a",)
    with pytest.raises(UserError, match="must be 0 or more"):
        phonemes.Decoder(-1)


@pytest.mark.parametrize("cost", [0.0, 0.7, 3.0])
def test_the_path_is_the_best_of_all(cost: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        path = np.full((5, 1 + len(PHONEMES)), 1e-12)
        path[:, :3] = rng.dirichlet([1.0, 1.0, 1.0], 5)
        path = np.log(path)

        def worth(classes: Sequence[int], path: np.ndarray = path) -> float:
            return float(path[range(5), classes].sum()) - cost * int(np.count_nonzero(np.diff(classes)))

        decoder = phonemes.Decoder(cost)
        decoder.hear(path[:2])
        decoder.hear(path[2:])
        best = max(itertools.product(range(3), repeat=5), key=worth)
        assert decoder.path.tolist() == list(best)
        assert decoder.phonemes == tuple(PHONEMES[c - 1] for c, _ in itertools.groupby(best) if c)


def test_scores() -> None:
    words = phonemes.expected_phonemes("さくらのはなが\nひらひらとまう\nそらにとけてゆく")
    right = phonemes.score(words, words)
    assert right.per == 0 and right.per_part == 0 and 0.4 < right.per_shuffled < 1
    part = phonemes.score(words[10:24], words)
    assert part.per_part == 0 and part.per == pytest.approx(1 - 14 / len(words))
    assert part.per_part_shuffled is not None and part.per_part_shuffled > 0.3
    silent = phonemes.score((), words)
    assert silent.per == 1 == silent.per_shuffled and silent.per_part is None
    other = phonemes.score(phonemes.shuffled(words, 77), words)
    assert abs(other.per - other.per_shuffled) < 0.15  # chance is chance
    both = phonemes.together([right, silent])
    assert both.per == pytest.approx(0.5) and both.heard == len(words)
    with pytest.raises(ValueError, match="without phonemes"):
        phonemes.score(words, ())
