"""Windows cover a song once, in order, with the prompts they claim."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.sampling import windows


@st.composite
def songs(draw: st.DrawFn) -> tuple[int, int, int]:
    n_ctx = draw(st.integers(1, 40))
    return draw(st.integers(n_ctx, 200)), n_ctx, draw(st.integers(1, n_ctx))


@given(songs())
def test_starts_cover_the_song(song: tuple[int, int, int]) -> None:
    total, n_ctx, hop = song
    found = windows.starts(total, n_ctx, hop)
    assert found[0] == 0
    assert found[-1] == total - n_ctx
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(step == hop for step in steps[:-1])
    assert all(0 < step <= hop for step in steps)


@given(songs(), st.integers(0, 250))
def test_a_plan_adds_each_missing_code_once(song: tuple[int, int, int], have: int) -> None:
    total, n_ctx, hop = song
    length = have
    for window in windows.plan(total, n_ctx, hop, have):
        assert window.new > 0
        assert window.start + window.prompt == length
        assert window.end - window.start == n_ctx
        length += window.new
    assert length == max(total, have)


@given(st.integers(1, 40), st.data())
def test_a_short_song_is_one_partial_window_from_its_beginning(n_ctx: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(0, n_ctx - 1))
    have = data.draw(st.integers(0, n_ctx))
    plan = windows.plan(total, n_ctx, 1, have)
    if have >= total:
        assert plan == []
    else:
        assert plan == [windows.Window(0, n_ctx, prompt=have, sample_tokens=total)]


def test_a_partial_window_keeps_as_much_context_as_fits() -> None:
    assert windows.partial_window(25, 30, 32) == windows.Window(23, 55, prompt=2, sample_tokens=32)
    assert windows.partial_window(5, 8, 32) == windows.Window(0, 32, prompt=5, sample_tokens=13)
    with pytest.raises(ValueError, match="not 33"):
        windows.partial_window(0, 33, 32)


@pytest.mark.parametrize("hop", [0, -1, 33])
def test_a_hop_that_cannot_be_is_refused(hop: int) -> None:
    with pytest.raises(ValueError, match=f"not by {hop}"):
        windows.plan(100, 32, hop)
    if hop < 1:
        with pytest.raises(ValueError, match=f"not by {hop}"):
            windows.starts(100, 32, hop)


def test_hop_fractions() -> None:
    assert windows.hop_of(0.125, 8192, level=2) == 1024
    assert windows.hop_of(0.33, 100, level=0, multiple_of=3) == 33
    assert windows.hop_of(1.0, 32, level=0, multiple_of=4) == 32
    for fraction, words in [
        (0.0, "more than 0"),
        (-0.5, "more than 0"),
        (1.5, "at most 1"),
        (0.01, "level 1 is less than one code of the context of 32; give at least 0.0312"),
    ]:
        with pytest.raises(UserError, match=words):
            windows.hop_of(fraction, 32, level=1)
    with pytest.raises(UserError, match=r"multiple of 4 codes \(one code of level 1\); give 0.25, which is 8"):
        windows.hop_of(0.3, 32, level=0, multiple_of=4)


@given(st.integers(0, 40), st.integers(1, 20))
def test_batches_cover_the_items(items: int, largest: int) -> None:
    parts = list(windows.batches(items, largest))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(items))
    assert all(part.stop - part.start == largest for part in parts[:-1])
