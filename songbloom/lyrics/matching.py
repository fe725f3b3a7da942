"""Which symbols of one sequence are those of another, when both differ a little: global alignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_CELLS = 20_000_000
"""Largest product of both lengths: 160 MB for a moment."""
SAME, OTHER, OPEN, EXTEND = 3, -2, 2, 1
"""Score of a pair of the same symbol and of two others; price of leaving out one run of symbols, and of each in it."""
_NEVER = -(1 << 30)
_Table = NDArray[np.int32]


def match(left: Sequence[str], right: Sequence[str]) -> list[int]:
    """For each symbol of ``left`` the index of its partner in ``right``, or -1.

    The alignment with the highest score (Needleman and Wunsch 1970, with gaps as Gotoh 1982, so that a missing line
    stays in one piece). Partners rise; a partner may be another symbol.

    Raises:
        ValueError: the product of the lengths is above ``MOST_CELLS``.
    """
    if not left or not right:
        return [-1] * len(left)
    if len(left) * len(right) > MOST_CELLS:
        raise ValueError("sequences too long to match")
    names = {symbol: index for index, symbol in enumerate(dict.fromkeys([*left, *right]))}
    a = np.array([names[symbol] for symbol in left], dtype=np.int32)
    b = np.array([names[symbol] for symbol in right], dtype=np.int32)
    return _walk_back(*_scores(a, b), a, b)


def _scores(a: _Table, b: _Table) -> tuple[_Table, _Table]:
    """``[len(a) + 1, len(b) + 1]``: best score of each pair of beginnings, and best with ``a`` ending in a gap."""
    ramp = EXTEND * np.arange(len(b) + 1, dtype=np.int32)
    scores = np.empty((len(a) + 1, len(b) + 1), dtype=np.int32)
    skips = np.full_like(scores, _NEVER)
    scores[0] = -OPEN - ramp
    scores[0, 0] = 0
    for i, symbol in enumerate(a):
        np.maximum(scores[i] - (OPEN + EXTEND), skips[i] - EXTEND, out=skips[i + 1])
        best = skips[i + 1].copy()
        np.maximum(best[1:], scores[i, :-1] + np.where(b == symbol, SAME, OTHER), out=best[1:])
        # A gap within the row: the best place where it opens is a running maximum.
        opened = np.maximum.accumulate(best + ramp)[:-1] - OPEN - ramp[1:]
        scores[i + 1] = best
        np.maximum(best[1:], opened, out=scores[i + 1, 1:])
    return scores, skips


def _walk_back(scores: _Table, skips: _Table, a: _Table, b: _Table) -> list[int]:
    partners = [-1] * len(a)
    i, j = len(a), len(b)
    while i and j:
        here = scores[i, j]
        if here == scores[i - 1, j - 1] + (SAME if a[i - 1] == b[j - 1] else OTHER):
            i, j = i - 1, j - 1
            partners[i] = j
        elif here == skips[i, j]:
            while skips[i, j] != scores[i - 1, j] - (OPEN + EXTEND):
                i -= 1
            i -= 1
        else:
            opened = j - 1
            while here != scores[i, opened] - OPEN - EXTEND * (j - opened):
                opened -= 1
            j = opened
    return partners
