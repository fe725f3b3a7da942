"""A score's measures, and the order in which repeats and endings make them be played."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MOST_MEASURES = 20_000
"""A score whose repeats make more measures than this is read without them."""


class Note(NamedTuple):
    """A note or rest: ``start`` and ``length`` in quarter notes from the measure's start.

    ``tied``: it goes on from the note before. ``words``: verse number → syllable and its place in the word
    (``single``, ``begin``, ``middle``, ``end``). ``breath``: the singer breathes instead of singing it.
    ``ends_phrase``: a breath mark stands behind it.
    """

    start: float
    length: float
    rest: bool
    tied: bool
    voice: str
    words: dict[str, tuple[str, str]]
    breath: bool = False
    ends_phrase: bool = False


@dataclass
class Measure:
    """One measure of a part; tempos are quarter notes a minute, places are in quarter notes."""

    notes: list[Note] = field(default_factory=list)
    tempos: list[tuple[float, float]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    length: float = 0.0
    repeat_start: bool = False
    repeat_end: int = 0
    """How often the section is played; 0: no repeat ends here."""
    ending: tuple[int, ...] | None = None
    """Passes of the ending that starts here."""
    ending_stops: bool = False


class Part(NamedTuple):
    """A part of a score."""

    key: str
    name: str
    measures: list[Measure]


def unrolled(parts: list[Part], count: int) -> list[tuple[int, int]]:
    """Measures in the order they are played, each with its pass through the section (1, 2, …).

    Marks of any part hold for all. An ending is played in the passes of its numbers.
    """
    together = [_together(parts, index) for index in range(count)]
    _carry_endings(together)
    order: list[tuple[int, int]] = []
    index, section, turn = 0, 0, 1
    while index < count and len(order) <= MOST_MEASURES:
        measure = together[index]
        if measure.repeat_start and index != section:
            section, turn = index, 1
        if measure.ending and turn not in measure.ending:
            index += 1
            continue
        order.append((index, turn))
        last = max((n for m in together[section : index + 2] if m.ending for n in m.ending), default=0)
        if measure.repeat_end and turn < max(measure.repeat_end, last):
            index, turn = section, turn + 1
        elif measure.repeat_end:
            index = section = index + 1
            turn = 1
        else:
            leaves = bool(measure.ending) and not (index + 1 < count and together[index + 1].ending)
            index += 1
            if leaves:
                section, turn = index, 1
    return order if len(order) <= MOST_MEASURES else [(index, 1) for index in range(count)]


def _together(parts: list[Part], index: int) -> Measure:
    merged = Measure()
    for part in parts:
        if index < len(part.measures):
            measure = part.measures[index]
            merged.repeat_start |= measure.repeat_start
            merged.repeat_end = max(merged.repeat_end, measure.repeat_end)
            merged.ending = merged.ending or measure.ending
            merged.ending_stops |= measure.ending_stops
    return merged


def _carry_endings(measures: list[Measure]) -> None:
    """An ending of several measures holds for all of them."""
    current: tuple[int, ...] | None = None
    for measure in measures:
        if measure.ending is not None:
            current = measure.ending
        else:
            measure.ending = current
        if measure.ending_stops or measure.repeat_end:
            current = None
