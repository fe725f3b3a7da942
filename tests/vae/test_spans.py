"""Plans cover the signal once, and the published one is what pasting pieces gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.vae import spans


def _covers(plan: list[spans.Span], frames: int) -> None:
    kept = [frame for span in plan for frame in range(span.start, span.stop)]
    assert kept == list(range(frames))
    assert all(0 <= span.first <= span.start < span.stop <= span.last <= frames for span in plan)


@given(st.integers(1, 1000), st.integers(1, 200), st.integers(0, 30), st.integers(0, 30))
def test_exact_pieces_cover_the_signal_and_read_what_they_must(frames: int, chunk: int, left: int, right: int) -> None:
    plan = spans.exact(frames, chunk, lambda interval: (interval[0] - left, interval[1] + right))
    _covers(plan, frames)
    for span in plan:
        assert span.stop - span.start <= chunk
        assert span.first == max(0, span.start - left) and span.last == min(frames, span.stop + right)


@given(st.integers(1, 1000), st.data())
def test_overlapping_pieces_are_what_pasting_gives(frames: int, data: st.DataObject) -> None:
    chunk = data.draw(st.integers(1, 200))
    overlap = data.draw(st.integers(0, chunk - 1))
    plan = spans.overlapping(frames, chunk, overlap)
    _covers(plan, frames)
    wanted, firsts = np.full(frames, -1), []
    if frames >= chunk:
        firsts = list(range(0, frames - chunk + 1, chunk - overlap))
        if firsts[-1] + chunk != frames:
            firsts.append(frames - chunk)
    else:
        wanted[:] = 0
    for number, first in enumerate(firsts):
        left = 0 if number == 0 else overlap // 2
        right = 0 if number == len(firsts) - 1 else overlap // 2
        wanted[first + left : first + chunk - right] = number
    got = np.full(frames, -1)
    for number, span in enumerate(plan):
        got[span.start : span.stop] = number
        assert span.last - span.first == min(chunk, frames)
    assert np.array_equal(got, wanted)


def test_the_published_plan() -> None:
    assert spans.overlapping(250, 128, 32) == [
        spans.Span(0, 128, 0, 112),
        spans.Span(96, 224, 112, 138),
        spans.Span(122, 250, 138, 250),
    ]


def test_sizes_that_make_no_pieces() -> None:
    with pytest.raises(UserError, match="chunk is 0"):
        spans.exact(10, 0, lambda interval: interval)
    for overlap in (-2, 8):
        with pytest.raises(UserError, match="overlap"):
            spans.overlapping(10, 8, overlap)
