"""How a long signal is taken in pieces.

A :class:`Span` is a piece in frames (latents): what it reads and what of its result is kept. The kept parts of a plan
lie end to end and cover the signal. :func:`exact` reads as far around each piece as the network looks, so that pieces
give what the whole gives, but for float rounding; :func:`overlapping` is the published models' plan, whose pieces have
one fixed length and lose half an overlap at each seam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from songbloom.errors import UserError
from songbloom.vae.layers import Interval


class Span(NamedTuple):
    """Frames ``first`` to ``last`` (excluded) are read; of the result, frames ``start`` to ``stop`` are kept."""

    first: int
    last: int
    start: int
    stop: int


def whole(frames: int) -> list[Span]:
    """Everything at once."""
    return [Span(0, frames, 0, frames)]


def exact(frames: int, chunk: int, reads: Callable[[Interval], Interval]) -> list[Span]:
    """Pieces of ``chunk`` frames that give what the whole gives.

    Args:
        frames: length of the signal.
        chunk: frames that a piece gives; the last gives what remains.
        reads: the frames that an interval of frames depends on, which may reach beyond the signal's ends.

    Raises:
        UserError: ``chunk`` is below 1.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk} frames: pieces need at least 1")
    spans = []
    for start in range(0, frames, chunk):
        stop = min(start + chunk, frames)
        first, last = reads((start, stop))
        spans.append(Span(max(0, first), min(frames, last), start, stop))
    return spans


def overlapping(frames: int, chunk: int, overlap: int) -> list[Span]:
    """Pieces of ``chunk`` frames, each beginning ``overlap`` before the end of the last one, as published models do it.

    A last piece is taken from the signal's end where none ends there. Each piece gives up half an overlap at either
    side that isn't an end of the signal. A signal shorter than a chunk is one piece.

    Raises:
        UserError: ``overlap`` is negative, or not below ``chunk``.
    """
    if not 0 <= overlap < chunk:
        raise UserError(f"overlap is {overlap} frames of chunks of {chunk}: it must be at least 0 and below the chunk")
    if frames <= chunk:
        return whole(frames)
    firsts = list(range(0, frames - chunk + 1, chunk - overlap))
    if firsts[-1] + chunk < frames:
        firsts.append(frames - chunk)
    starts = [0] + [first + overlap // 2 for first in firsts[1:]]
    stops = [*starts[1:], frames]  # a later piece writes over an earlier one
    return [Span(first, first + chunk, *kept) for first, *kept in zip(firsts, starts, stops, strict=True)]
