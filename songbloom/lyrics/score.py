"""A score's measures, and the order in which repeats and endings make them be played."""

from __future__ import annotations

from collections import Counter
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
    jump: str = ""
    """What is done behind the measure: ``dacapo`` goes to the beginning, ``dalsegno`` to the segno."""
    segno: bool = False
    fine: bool = False
    """After a jump the piece ends behind the measure."""
    to_coda: bool = False
    """After a jump the coda follows behind the measure."""
    coda: bool = False
    coda_sign: bool = False
    """A sign that stands both where the coda is gone to and where it begins."""


class Part(NamedTuple):
    """A part of a score."""

    key: str
    name: str
    measures: list[Measure]


def unrolled(parts: list[Part], count: int) -> list[tuple[int, int]]:
    """Measures in the order they are played, each with its pass through the section (1, 2, …).

    Marks of any part hold for all. An ending is played in the passes of its numbers. D.C. and D.S. are followed once
    each, when the repeats before them are done; after them nothing is repeated, the last ending is taken, Fine ends
    the piece and the coda is gone to; the pass of a measure is then one more than it was played before.
    """
    together = [_together(parts, index) for index in range(count)]
    _carry_endings(together)
    _tell_coda_signs(together)
    order: list[tuple[int, int]] = []
    jumped: set[int] = set()
    played: Counter[int] = Counter()
    index, section, turn = 0, 0, 1
    while index < count and len(order) <= MOST_MEASURES:
        measure = together[index]
        if measure.repeat_start and index != section:
            section, turn = index, 1
        if jumped:
            if measure.ending and _last_pass(together, index) not in measure.ending:
                index += 1
                continue
            played[index] += 1
            order.append((index, played[index]))
            if measure.fine:
                break
            if measure.to_coda and (coda := _place(together, "coda", index + 1)) is not None:
                index = coda
                continue
        elif measure.ending and turn not in measure.ending:
            index += 1
            continue
        else:
            order.append((index, turn))
            last = max((n for m in together[section : index + 2] if m.ending for n in m.ending), default=0)
            if measure.repeat_end and turn < max(measure.repeat_end, last):
                index, turn = section, turn + 1
                continue
        target = _target(together, index) if measure.jump and index not in jumped else None
        if target is not None:
            played = played if jumped else Counter(each for each, _ in order)
            jumped.add(index)
            index = target
            continue
        leaves = bool(measure.ending) and not (index + 1 < count and together[index + 1].ending)
        index += 1
        if measure.repeat_end or leaves:
            section, turn = index, 1
    return order if len(order) <= MOST_MEASURES else [(index, 1) for index in range(count)]


def _target(measures: list[Measure], index: int) -> int | None:
    """Where a jump goes; None for a segno that is not there."""
    return 0 if measures[index].jump == "dacapo" else _place(measures, "segno", 0)


def _place(measures: list[Measure], what: str, start: int) -> int | None:
    return next((index for index in range(start, len(measures)) if getattr(measures[index], what)), None)


def _last_pass(measures: list[Measure], index: int) -> int:
    """The last pass of the endings that stand side by side here."""
    first = last = index
    while first > 0 and measures[first - 1].ending:
        first -= 1
    while last + 1 < len(measures) and measures[last + 1].ending:
        last += 1
    return max(n for measure in measures[first : last + 1] for n in measure.ending or ())


def _tell_coda_signs(measures: list[Measure]) -> None:
    """Where only signs stand, the first says where to go to the coda, and the last where it begins."""
    signs = [index for index, measure in enumerate(measures) if measure.coda_sign]
    if len(signs) > 1 and not any(measure.to_coda for measure in measures):
        measures[signs[0]].to_coda = True
    if signs and not any(measure.coda for measure in measures) and signs[-1] != _place(measures, "to_coda", 0):
        measures[signs[-1]].coda = True


def _together(parts: list[Part], index: int) -> Measure:
    merged = Measure()
    for part in parts:
        if index < len(part.measures):
            measure = part.measures[index]
            merged.repeat_start |= measure.repeat_start
            merged.repeat_end = max(merged.repeat_end, measure.repeat_end)
            merged.ending = merged.ending or measure.ending
            merged.ending_stops |= measure.ending_stops
            merged.jump = merged.jump or measure.jump
            for mark in ("segno", "fine", "to_coda", "coda", "coda_sign"):
                setattr(merged, mark, getattr(merged, mark) or getattr(measure, mark))
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
