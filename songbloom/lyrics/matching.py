"""Which symbols of one sequence are those of another, when both differ a little: global alignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_CELLS = 40_000_000
"""Largest product of both lengths: 160 MB for a moment."""
_SAME, _OTHER, _GAP = 2, -1, 1


def match(left: Sequence[str], right: Sequence[str]) -> list[int]:
    """For each symbol of ``left`` the index of its partner in ``right``, or -1.

    The alignment with the highest score (Needleman and Wunsch 1970: 2 for the same symbol, -1 for another, -1 for one
    left out). Partners rise; a partner may be another symbol.

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
    return _walk_back(_scores(a, b), a, b)


def _scores(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
    """``[len(a) + 1, len(b) + 1]``: best score of each pair of beginnings."""
    ramp = _GAP * np.arange(len(b) + 1, dtype=np.int32)
    scores = np.empty((len(a) + 1, len(b) + 1), dtype=np.int32)
    scores[0] = -ramp
    best = np.empty_like(ramp)
    for i, symbol in enumerate(a):
        before = scores[i]
        best[0] = before[0] - _GAP
        np.maximum(before[:-1] + np.where(b == symbol, _SAME, _OTHER), before[1:] - _GAP, out=best[1:])
        # A run of gaps within the row: the best start of it is a running maximum.
        scores[i + 1] = np.maximum.accumulate(best + ramp) - ramp
    return scores


def _walk_back(scores: NDArray[np.int32], a: NDArray[np.int32], b: NDArray[np.int32]) -> list[int]:
    partners = [-1] * len(a)
    i, j = len(a), len(b)
    while i and j:
        here = scores[i, j]
        if here == scores[i - 1, j - 1] + (_SAME if a[i - 1] == b[j - 1] else _OTHER):
            i, j = i - 1, j - 1
            partners[i] = j
        elif here == scores[i - 1, j] - _GAP:
            i -= 1
        else:
            j -= 1
    return partners
