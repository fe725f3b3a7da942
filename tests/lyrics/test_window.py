"""Windows of words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.window import lyric_window, take, timed_window


def test_a_short_text_is_padded_on_the_left():
    assert lyric_window(3, 5, 100, 20, 10) == [-1, -1, 0, 1, 2]
    assert lyric_window(0, 4, 0, 0, 10) == [-1] * 4
    assert take([7, 8, 9], [-1, -1, 0, 1, 2]) == [0, 0, 7, 8, 9]
    assert timed_window([(0, 1)] * 3, 5, 50, 10) == [-1, -1, 0, 1, 2]


def test_no_window_needs_no_words():
    assert lyric_window(9, 0, 10, 3, 2) == []
    assert timed_window([None] * 9, 0, 3, 2) == []


def test_linear_alignment():
    # The middle of the chunk, 0.55 of the song, meets the middle of the window: token 55 of 100.
    assert lyric_window(100, 10, 1000, 500, 100) == list(range(50, 60))
    assert lyric_window(100, 10, 1000, 0, 20) == list(range(10))
    assert lyric_window(100, 10, 1000, 999, 20) == list(range(90, 100))


@pytest.mark.parametrize("offset", [-1, 1000, 2000])
def test_a_chunk_outside_its_song_is_refused(offset: int):
    with pytest.raises(UserError, match="offset"):
        lyric_window(100, 10, 1000, offset, 20)
    assert len(lyric_window(3, 10, 1000, offset, 20)) == 10


@given(st.integers(0, 200), st.integers(0, 60), st.integers(1, 10**7), st.data())
def test_a_window_is_a_run_of_the_text(count: int, n_tokens: int, total: int, data: st.DataObject):
    offset = data.draw(st.integers(0, total - 1))
    indices = lyric_window(count, n_tokens, total, offset, data.draw(st.integers(0, total)))
    assert len(indices) == n_tokens
    inside = [i for i in indices if i >= 0]
    assert inside == list(range(inside[0], inside[0] + len(inside))) if inside else count == 0 or n_tokens == 0
    assert len(inside) == min(count, n_tokens)


def test_words_sung_in_the_chunk_stand_in_the_middle():
    times = [(float(i), i + 0.9) for i in range(100)]
    window = timed_window(times, 20, 50.0, 4.0)  # sings 50 to 53
    assert window == list(range(42, 62))


def test_times_win_over_an_even_spread():
    # All words in the last ten seconds of a hundred.
    times = [(90 + i / 10, 90 + (i + 1) / 10) for i in range(100)]
    assert timed_window(times, 10, 0.0, 8.0) == list(range(10))
    assert timed_window(times, 10, 95.0, 1.0) == list(range(50, 60))
    assert lyric_window(100, 10, 100.0, 50.0, 1.0) == list(range(45, 55))


def test_between_lines_the_window_looks_ahead_and_unknown_times_are_passed_over():
    times = [(1.0, 2.0)] * 10 + [None] + [(30.0, 31.0)] * 10
    assert timed_window(times, 6, 10.0, 5.0) == list(range(8, 14))
    assert timed_window(times, 6, 40.0, 5.0) == list(range(15, 21))


def test_no_times_at_all_is_one_line():
    with pytest.raises(UserError, match="none of the song's words has a time"):
        timed_window([None, None, None], 2, 0.0, 1.0)


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.floats(0, 100), st.floats(0, 100))), min_size=1, max_size=50),
    st.integers(1, 20),
    st.floats(0, 100),
)
def test_a_timed_window_is_a_run_of_the_text(times: list[tuple[float, float] | None], n_tokens: int, offset: float):
    if not any(times) and len(times) >= n_tokens:
        return
    indices = timed_window(times, n_tokens, offset, 8.0)
    inside = [i for i in indices if i >= 0]
    assert len(indices) == n_tokens and len(inside) == min(len(times), n_tokens)
    assert inside == list(range(inside[0], inside[0] + len(inside)))
