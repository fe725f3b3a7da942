"""From attention to times: the song's matrix, the monotone path against a slow reference, and words."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from songbloom.data.labels import Labels
from songbloom.errors import UserError
from songbloom.lyrics.lrc import read_lrc, write_lrc
from songbloom.sampling import alignment, heads, words
from songbloom.sampling.heads import Choice, HeadScore, Song
from songbloom.sampling.page import PageWord
from songbloom.sampling.words import Lyrics

weights_of_any_kind = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 4)),
    elements=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.9]),
)


def total_score(weights: np.ndarray, segments: np.ndarray) -> float:
    scores = np.array(list(alignment._scores(weights)))
    return sum(float(scores[token, start:end].sum()) for token, (start, end) in enumerate(segments))


def slow_best(weights: np.ndarray) -> float:
    """The largest sum of scores over all ways to give tokens stretches of frames in order: all of them are tried."""
    scores = np.array(list(alignment._scores(weights)))
    frames = weights.shape[0]
    before = {0: 0.0}  # first free frame → best sum so far
    for row in scores:
        after: dict[int, float] = {}
        for free, value in before.items():
            for start, end in itertools.combinations_with_replacement(range(free, frames + 1), 2):
                gained = value + float(row[start:end].sum())
                after[end] = max(after.get(end, -np.inf), gained)
        before = after
    return max(before.values())


@given(weights_of_any_kind)
def test_the_path_is_the_best_of_all(weights: np.ndarray) -> None:
    segments = alignment.monotone_segments(weights)
    flat = segments.reshape(-1)
    assert (np.diff(flat) >= 0).all()
    assert flat[0] >= 0
    assert flat[-1] <= len(weights)
    assert total_score(weights, segments) == pytest.approx(slow_best(weights), abs=1e-9)


def staircase(tokens: int, each: int, *, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """A head that looks at token f in frames f * each … (f + 1) * each, more or less."""
    generator = np.random.default_rng(seed)
    weights = noise * generator.random((tokens * each, tokens))
    weights[np.arange(tokens * each), np.repeat(np.arange(tokens), each)] += 0.8
    return weights / weights.sum(axis=1, keepdims=True)


def test_a_clear_head_gives_its_times() -> None:
    segments = alignment.monotone_segments(staircase(40, 9))
    assert (segments == np.arange(40)[:, None] * 9 + [0, 9]).all()


def test_a_token_that_is_always_looked_at_is_no_hindrance() -> None:
    weights = staircase(30, 8)
    weights[:, 11] += 3.0  # all through the song
    segments = alignment.monotone_segments(weights / weights.sum(axis=1, keepdims=True))
    others = np.delete(np.arange(30), 11)
    assert np.abs(segments[others, 0] - others * 8).max() <= 8


def test_silence_and_what_is_not_sung_get_no_frames() -> None:
    weights = np.full((300, 20), 1 / 20)  # looks everywhere
    weights[100:200] = 0.001
    weights[np.arange(100, 200), np.repeat(np.arange(10), 10)] = 0.9  # the first ten tokens, in the middle
    segments = alignment.monotone_segments(weights)
    assert (segments[:10] == 100 + np.arange(10)[:, None] * 10 + [0, 10]).all()
    assert (segments[10:, 0] == segments[10:, 1]).all()
    assert alignment.times_of(segments, 0.1)[10:] == [None] * 10


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (8, 9)])
def test_matrices_of_any_size(shape: tuple[int, int]) -> None:
    weights = np.zeros(shape)
    assert alignment.monotone_segments(weights).tolist() == [[0, 0]] * shape[1]
    assert alignment.token_times(weights, 0.1) == [None] * shape[1]
    assert alignment.colour_picture(weights).shape[2] == 3
    assert alignment.grey_picture(weights).shape == (512, 1024)
    assert alignment.path_share(weights, alignment.monotone_segments(weights)) == 0.0


def test_a_long_song() -> None:
    weights = np.zeros((20_000, 2000), np.float32)
    weights[np.arange(20_000), np.repeat(np.arange(2000), 10)] = 1.0
    segments = alignment.monotone_segments(weights)
    assert (segments[:, 0] == np.arange(2000) * 10).all()


def test_tokens_too_fast_to_be_seen_share_the_time_of_the_next() -> None:
    segments = np.array([[0, 10], [10, 10], [10, 20], [30, 30], [40, 50], [50, 50], [50, 50], [50, 50], [50, 50]])
    times = alignment.times_of(segments, 1.0)
    assert times[:3] == [(0.0, 10.0), (10.0, 15.0), (15.0, 20.0)]
    assert times[3] == pytest.approx((39.85, 40.0))
    assert times[5:] == [None] * 4
    assert alignment.times_of(segments, 1.0, shift=5.0)[0] == (0.0, 5.0)


def test_positions_are_one_late() -> None:
    matrix = np.zeros((60, 6))
    matrix[np.arange(60), np.minimum(np.repeat(np.arange(6), 10) + 1, 5)] = 1.0  # at position f + 1 for token f
    times = alignment.token_times(matrix, 0.1)
    assert times[:4] == [pytest.approx((f, f + 1.0)) for f in range(4)]
    assert times[4:] == [pytest.approx((4.0, 5.0)), pytest.approx((5.0, 6.0))]  # the last token is never read


def test_earlier_windows_count_and_padding_is_dropped() -> None:
    def attend(start: int) -> tuple[np.ndarray, list[int]]:
        return np.full((4, 3), float(start + 1)), [-1, 0, 1 + (start > 0)]

    matrix = alignment.assemble(attend, [0, 2], 6, 4)
    assert matrix[:, 0].tolist() == [1, 1, 1, 1, 3, 3]
    assert matrix[:, 1].tolist() == [1, 1, 1, 1, 0, 0]
    assert matrix[:, 2].tolist() == [0, 0, 3, 3, 3, 3]
    assert matrix[:, 3].tolist() == [0] * 6
    assert alignment.assemble(attend, [0], 3, 4).shape == (3, 4)


def test_how_monotone() -> None:
    def share(weights: np.ndarray) -> float:
        return alignment.path_share(weights, alignment.monotone_segments(weights))

    clear, noisy = share(staircase(40, 6)), share(staircase(40, 6, noise=0.06))
    still = np.zeros((240, 40))
    still[:, 7] = 1.0
    shuffled = staircase(40, 6)[:, np.random.default_rng(1).permutation(40)]
    assert clear > 0.5 > noisy > share(shuffled) + 0.05
    assert abs(share(still)) < 1e-9
    assert abs(share(np.full((240, 40), 1 / 40))) < 1e-9


# --- heads ----------------------------------------------------------------------------------------------------------


class ThreeHeads:
    """Stands in for a prior: head (0, 0) looks nowhere, (0, 1) along the words but late, (1, 0) at one word."""

    level, n_ctx, hop_length, sample_length = 2, 64, 10, 640
    each = 8  # frames a token

    def lyric_heads(self) -> list[tuple[int, int]]:
        return [(0, 0), (0, 1), (1, 0)]

    def lyric_attention(self, codes, labels, *, wanted, precision):  # type: ignore[no-untyped-def]
        place = int(labels[0, 1])
        found = torch.full((len(wanted), 1, self.n_ctx, 16), 1 / 16)
        for number, head in enumerate(wanted):
            if head == (0, 0):
                continue
            found[number] = 0.001
            for frame in range(self.n_ctx):
                at = max(place + frame - 3, 0) // self.each + 1 - self.first(place)
                if head == (1, 0):
                    at = 4
                if 0 <= at < 16:
                    found[number, 0, frame, at] = 0.9
        return found

    def first(self, place: int) -> int:
        return min(place // self.each, 24)

    def shifted(self, labels: Labels, start: int, prior: object) -> tuple[torch.Tensor, list[list[int]]]:
        return torch.tensor([[0, start]]), [[self.first(start) + n for n in range(16)]]


def song(times: bool = True) -> Song:
    prior = ThreeHeads()
    tokens, frames = 40, 40 * prior.each
    labels = Labels(torch.zeros(1, 2, dtype=torch.int64), [{"full_tokens": list(range(tokens))}])
    known = [(f * 0.08, (f + 1) * 0.08) for f in range(tokens)]
    return Song("song", torch.zeros(frames, dtype=torch.int64), labels, known if times else None)


@pytest.mark.parametrize("times", [True, False])
def test_the_head_that_follows_the_words_is_first(times: bool) -> None:
    prior = ThreeHeads()
    ranked = heads.rank(prior, prior, [song(times)], sample_rate=1000, hop=16)
    assert (ranked[0].layer, ranked[0].head) == (0, 1)
    assert len(ranked) == 3
    assert ranked[0].monotony > 0.4 > 0.1 > ranked[1].monotony
    if times:
        assert ranked[0].judged == 40
        assert ranked[0].right == 1.0
        assert ranked[0].shift == pytest.approx(0.03, abs=0.011)  # three frames of ten milliseconds
        assert ranked[0].error == pytest.approx(0.0, abs=0.011)
    else:
        assert ranked[0].right is ranked[0].error is None


def test_little_memory_changes_nothing() -> None:
    prior, one = ThreeHeads(), song()
    wanted = prior.lyric_heads()
    whole = dict(heads.matrices(prior, prior, one.codes, one.labels, wanted, hop=16))
    parts = dict(heads.matrices(prior, prior, one.codes, one.labels, wanted, hop=16, memory=1))
    assert all((whole[head] == parts[head]).all() for head in wanted)

    def attend(start: int) -> tuple[np.ndarray, list[int]]:
        y, indices = prior.shifted(one.labels, start, prior)
        return prior.lyric_attention(None, y, wanted=[(0, 1)], precision="fp32")[0, 0].numpy(), indices[0]

    starts = alignment.window_starts(len(one.codes), prior.n_ctx, 16)
    assert (alignment.assemble(attend, starts, len(one.codes), 40) == whole[0, 1]).all()


def test_a_head_that_finds_nothing_is_not_right() -> None:
    score = HeadScore(0, 0)
    score.hear(np.zeros((50, 4), np.float32), [(0.0, 1.0), None, (1.0, 2.0), (9.0, 9.5)], 0.1)
    assert (score.judged, score.right, score.error) == (2, 0.0, np.inf)  # the last one lies behind the end


def test_a_head_that_is_far_off_is_wrong_and_not_late() -> None:
    score = HeadScore(0, 0)
    score.hear(staircase(20, 10).astype(np.float32), [(f + 4.0, f + 5.0) for f in range(20)], 0.1)
    assert (score.shift, score.right) == (-0.5, 0.0)


def test_the_choice_lies_beside_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint_latest.pth.tar"
    assert heads.read_choice(weights) is None
    choice = Choice(3, 1, -0.02, "abc", {"right": 0.9})
    assert heads.write_choice(weights, choice) == [tmp_path / "checkpoint_latest.alignment.json"]
    assert heads.read_choice(weights) == choice
    beside = tmp_path / "checkpoint_latest.json"
    beside.write_text(json.dumps({"hps": {"lr": 1.0, "alignment_layer": None}, "argv": ["x"]}))
    assert heads.write_choice(weights, choice)[1] == beside
    content = json.loads(beside.read_text())
    assert content == {"hps": {"lr": 1.0, "alignment_layer": 3, "alignment_head": 1}, "argv": ["x"]}
    heads.choice_file(weights).write_text("{")
    with pytest.raises(UserError, match=r"run align\.py --find again"):
        heads.read_choice(weights)


# --- words ----------------------------------------------------------------------------------------------------------


def by_character(text: str) -> Lyrics:
    return words.lyrics_of({"lyrics": text})


def shown(pieces: list[PageWord]) -> list[tuple[object, ...]]:
    return [(w.text, w.start, w.end) + ((w.reading,) if w.reading else ()) for w in pieces]


def test_letters_become_words() -> None:
    text = "[verse]\nI don't know, いま"
    times = [None if c in "[]" else (float(i), i + 1.0) for i, c in enumerate(text)]
    assert shown(words.words_of(by_character(text), times)) == [
        ("[verse]", None, None),
        ("\n", None, None),
        *(("I", 8.0, 9.0), (" ", None, None), ("don't", 10.0, 15.0), (" ", None, None), ("know", 16.0, 20.0)),
        *((",", None, None), (" ", None, None), ("い", 22.0, 23.0), ("ま", 23.0, 24.0)),
    ]


def test_tokens_that_share_characters_are_one_piece() -> None:
    lyrics = Lyrics("桜{さくら}の、花", ("sa", "ku", "ra", "no", "ha", "na"), ((0, 6),) * 3 + ((6, 7),) + ((8, 9),) * 2)
    times = [(0.0, 1.0), (1.0, 1.5), None, (2.0, 3.0), None, None]
    assert shown(words.words_of(lyrics, times)) == [
        *(("桜", 0.0, 1.5, "さくら"), ("の", 2.0, 3.0), ("、", None, None), ("花", None, None)),
    ]


def test_short_pauses_stay_lit_and_nothing_overlaps() -> None:
    pieces = words.words_of(by_character("あいう"), [(0.0, 1.0), (1.3, 2.6), (2.5, 3.0)])
    assert shown(pieces) == [("あ", 0.0, 1.3), ("い", 1.3, 2.5), ("う", 2.5, 3.0)]


@given(st.text(st.sampled_from("あ漢a1[] \n{}、'é"), max_size=30))
def test_no_text_is_lost(text: str) -> None:
    pieces = words.words_of(by_character(text), [(0.0, 1.0)] * len(text))
    told = "".join(w.text + (f"{{{w.reading}}}" if w.reading else "") for w in pieces)
    assert told.replace("{}", "") == text.replace("{}", "")


def test_words_go_to_a_file_and_back(tmp_path: Path) -> None:
    lyrics = by_character("[verse]\nさく、ら\n\nまだ")
    times = [None] * 8 + [(1.0, 1.5), (1.5, 2.0), None, (2.25, 3.0)] + [None] * 4
    pieces = words.words_of(lyrics, times)
    words.write_words(tmp_path / "w.json", pieces, lyrics, times, {"layer": 1})
    assert words.read_words(tmp_path / "w.json") == (pieces, False)
    write_lrc(tmp_path / "w.lrc", words.timed_text(pieces), enhanced=True)
    heard = read_lrc(tmp_path / "w.lrc")
    assert [piece.text for piece in heard] == ["さ", "く、", "ら"]
    assert [piece.start for piece in heard] == [1.0, 1.5, 2.25]
    (tmp_path / "w.json").write_text('{"words": [{}]}')
    with pytest.raises(UserError, match="holds no words"):
        words.read_words(tmp_path / "w.json")
