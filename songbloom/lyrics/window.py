"""Which words of a song a chunk of music sees: a window of fixed length into the song's tokens.

Without times, words are taken to be spread evenly over the song (Dhariwal et al. 2020, section 4: lyrics of a chunk
are found by linear alignment). Where a song has times of its tokens, the window follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from songbloom.errors import UserError

Times = Sequence[tuple[float, float] | None]
"""Start and end in seconds of each token; ``None`` where they are not known (tags, line ends)."""


def lyric_window(count: int, n_tokens: int, total: Any, offset: Any, duration: Any) -> list[int]:
    """The tokens that a chunk sees, by linear alignment.

    Args:
        count: tokens of the song.
        n_tokens: length of the window.
        total, offset, duration: length of the song, start and length of the chunk, all in one unit (samples or
            seconds). The arithmetic is done in the types given.

    Returns:
        ``n_tokens`` indices into the song's tokens; -1 is padding, which stands on the left.

    Raises:
        UserError: the chunk does not start within the song (checked only when there is more text than window).
    """
    if count < n_tokens:
        return [-1] * (n_tokens - count) + list(range(count))
    if n_tokens == 0:
        return []
    if not 0 <= offset < total:
        raise UserError(f"a chunk starts at {offset} of a song of length {total}; offset must be 0 or more and less")
    return _around(int(count * (offset + duration / 2.0) / total), count, n_tokens)


def timed_window(times: Times, n_tokens: int, offset: float, duration: float) -> list[int]:
    """The tokens that a chunk sees, by their times: those sung within the chunk stand in the middle of the window.

    Args:
        times: start and end of each token in seconds, ``None`` where unknown; at least one is known.
        n_tokens: length of the window.
        offset, duration: start and length of the chunk in seconds.

    Returns:
        As :func:`lyric_window`.

    Raises:
        UserError: no token has a time.
    """
    count = len(times)
    if count < n_tokens:
        return [-1] * (n_tokens - count) + list(range(count))
    if n_tokens == 0:
        return []
    known = [(index, time) for index, time in enumerate(times) if time is not None]
    if not known:
        raise UserError("none of the song's words has a time; give a timed file, or leave the times out")
    end = offset + duration
    sung = [index for index, time in known if time[0] < end and time[1] > offset]
    if sung:
        middle = (sung[0] + sung[-1] + 1) // 2
    else:  # between two lines: the words to come
        middle = next((index for index, time in known if time[0] >= end), count)
    return _around(middle, count, n_tokens)


def take(ids: Sequence[int], indices: Sequence[int]) -> list[int]:
    """The tokens at ``indices``, and 0 (padding) where an index is -1."""
    return [ids[index] if index >= 0 else 0 for index in indices]


def _around(middle: int, count: int, n_tokens: int) -> list[int]:
    before = n_tokens // 2
    start = min(max(middle, before), count - (n_tokens - before)) - before
    return list(range(start, start + n_tokens))
