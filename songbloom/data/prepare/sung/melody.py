"""Songs before they sound: key, chords, rhythm and melody for the words, on a grid of sixteenths.

The melody of a phrase is the cheapest path through the notes of the scale: near a contour, in small steps, on chord
tones where the bar is strong, and ending on a chord tone. The chords are those that the band plays. Random costs that
belong to a kind of section make its phrases alike, as verses of one song are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from songbloom.data.prepare.sung.lyric_lines import THEMES, Couplet, Line
from songbloom.data.prepare.sung.styles import STEPS_PER_QUARTER, STYLES, Style
from songbloom.data.prepare.sung.words import Reading, read_line
from songbloom.errors import UserError

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "major pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
}
"""Notes that a melody may use, in semitones above the tonic. Chords come from the full major or minor scale."""

_CHORDS: dict[str, tuple[int, ...]] = {
    "I": (0, 4, 7), "Imaj7": (0, 4, 7, 11), "ii": (2, 5, 9), "ii7": (2, 5, 9, 12), "iii": (4, 7, 11), "IV": (5, 9, 12),
    "IVmaj7": (5, 9, 12, 16), "V": (7, 11, 14), "V7": (7, 11, 14, 17), "vi": (9, 12, 16), "vi7": (9, 12, 16, 19),
    "i": (0, 3, 7), "III": (3, 7, 10), "iv": (5, 8, 12), "v": (7, 10, 14), "VI": (8, 12, 15), "VII": (10, 14, 17),
}  # fmt: skip
"""Chord tones in semitones above the tonic, root first."""

_PROGRESSIONS: dict[str, tuple[str, ...]] = {
    "major": (
        "I V vi IV", "vi IV I V", "IVmaj7 V7 iii vi", "I vi IV V", "I V vi iii IV I IV V", "ii7 V7 Imaj7 vi7",
        "I IV I V", "IV I V vi",
    ),
    "minor": ("i VI III VII", "i iv v i", "i VII VI v", "i III VII iv", "VI VII i i", "i iv VII III"),
}  # fmt: skip

_GAP_SECONDS = 0.30  # shortest rest between phrases: a breath, and the consonant that precedes the next beat
_NOTE_SECONDS = 0.40  # wanted mean length of a note
_CONTOURS = ("arch", "fall", "rise", "wave", "late peak")


@dataclass(frozen=True)
class Chord:
    """A chord from ``start`` for ``length`` steps; ``tones`` in semitones above the tonic, root first."""

    start: int
    length: int
    name: str
    tones: tuple[int, ...]


@dataclass(frozen=True)
class Note:
    """One sung note: ``start`` and ``length`` in steps of the song, ``pitch`` in semitones above the tonic."""

    start: int
    length: int
    pitch: int
    kana: str


@dataclass(frozen=True)
class Phrase:
    """A lyric line and its notes, one a syllable, without rests between them."""

    section: int
    line: Line
    reading: Reading
    notes: tuple[Note, ...]

    @property
    def end(self) -> int:
        """First step after the last note."""
        return self.notes[-1].start + self.notes[-1].length


@dataclass(frozen=True)
class Section:
    """``kind`` is ``intro``, ``verse``, ``chorus``, ``interlude`` or ``outro``; in bars from the song's beginning."""

    kind: str
    start_bar: int
    bars: int


@dataclass(frozen=True)
class Composition:
    """A song without a voice: its key is open until ``tonic`` is chosen (MIDI number of pitch 0)."""

    style: Style
    tempo: int
    mode: str
    theme: str
    sections: tuple[Section, ...]
    phrases: tuple[Phrase, ...]
    chords: tuple[Chord, ...]

    @property
    def bars(self) -> int:
        """Bars in the song."""
        return self.sections[-1].start_bar + self.sections[-1].bars

    @property
    def step_seconds(self) -> float:
        """Length of a sixteenth."""
        return 60.0 / self.tempo / STEPS_PER_QUARTER

    @property
    def seconds(self) -> float:
        """Length of all bars."""
        return self.bars * self.style.steps_per_bar * self.step_seconds

    @cached_property
    def pitch_range(self) -> tuple[int, int]:
        """Lowest and highest pitch, in semitones above the tonic."""
        pitches = [note.pitch for phrase in self.phrases for note in phrase.notes]
        return min(pitches), max(pitches)


def compose(rng: np.random.Generator, styles: list[str], seconds: float, tries: int = 60) -> Composition:
    """Draw a song of about ``seconds`` in the first of ``styles`` that fits; :class:`UserError` if none does."""
    for name in styles:
        style = STYLES[name]
        low, high = style.tempo
        if seconds < 15:  # short songs need short bars
            low = (low + high) // 2
        for _ in range(tries):
            composition = _Composer(rng, style, int(rng.integers(low, high + 1)), seconds).compose()
            if composition is not None:
                return composition
    raise UserError(f"no song of {seconds:g} s fits the styles {', '.join(styles)}; give more --seconds")


@dataclass(frozen=True)
class _Plan:
    """Sections in order, and the lines that each sings."""

    sections: list[Section]
    lines: list[list[Line]]


def _metric_weights(style: Style) -> NDArray[np.float64]:
    """How strong each step of a bar is."""
    steps = np.arange(style.steps_per_bar)
    strong = 6 if style.beat_type == 8 else 8
    weights = np.where(steps % 2 == 0, 1.0, 0.0)
    if style.beat_type == 4:
        weights[steps % 4 == 0] = 2.0
    weights[steps % strong == 0] = 3.0 if style.beats != 3 else 2.0
    weights[0] = 4.0
    return weights


class _Composer:
    """Draws one song; everything random comes from one generator, in a fixed order."""

    def __init__(self, rng: np.random.Generator, style: Style, tempo: int, seconds: float):
        self.rng, self.style, self.tempo, self.seconds = rng, style, tempo, seconds
        self.step = 60.0 / tempo / STEPS_PER_QUARTER
        self.bar = style.steps_per_bar
        self.unit = 2 if 2 * self.step <= 0.37 else 1  # shortest note: an eighth, in slow songs a sixteenth
        self.mode = str(rng.choice(list(MODES), p=[0.4, 0.2, 0.28, 0.12]))
        self.low = int(rng.integers(-5, 1))
        self.high = self.low + int(rng.integers(9, 13))
        first, second = (THEMES[int(i)] for i in rng.choice(len(THEMES), 2, replace=False))
        self.theme = first.name
        verses = [first.verse[int(i)] for i in rng.permutation(len(first.verse))]
        verses += [second.verse[int(i)] for i in rng.permutation(len(second.verse))]
        chorus = [first.chorus[int(i)] for i in rng.permutation(len(first.chorus))]
        self.words = {"verse": verses, "chorus": chorus}
        self.phrase_bars = {kind: self._phrase_bars(couplets) for kind, couplets in self.words.items()}
        family = "minor" if self.mode.startswith("minor") else "major"
        names = _PROGRESSIONS[family]
        drawn = rng.choice(len(names), 2, replace=False)
        self.progressions = {"verse": names[int(drawn[0])].split(), "chorus": names[int(drawn[1])].split()}
        self.tonic_chord = "i" if family == "minor" else "I"
        self.dominant_chord = "v" if family == "minor" else "V"
        self.kind_seed = {kind: int(rng.integers(2**32)) for kind in self.words}

    # ---- form

    def _phrase_bars(self, couplets: list[Couplet]) -> int:
        """Bars for each line of a kind of section: room for the longest, and notes of a singable mean length."""
        counts = [len(read_line(line).syllables) for couplet in couplets for line in couplet]
        best, best_cost = 0, np.inf
        for bars in (1, 2, 3, 4, 6, 8):
            free = bars * self.bar - self._gap()
            if free // self.unit < max(counts) + 1:
                continue
            cost = abs(np.log(free * self.step / float(np.mean(counts)) / _NOTE_SECONDS)) + (
                0.3 if bars in (3, 6) else 0
            )
            if cost < best_cost:
                best, best_cost = bars, cost
        return best

    def _gap(self) -> int:
        """Steps of rest at the end of each phrase."""
        return max(self.unit, int(np.ceil(_GAP_SECONDS / self.step)))

    @staticmethod
    def _form(couplets: int) -> list[tuple[str, int]]:
        """Sections, and lines in each, for a number of couplets."""
        rest = {1: [("verse", 2)], 2: [("verse", 2), ("chorus", 2)], 3: [("verse", 4), ("chorus", 2)]}
        blocks, left = divmod(couplets, 4)
        form = [("verse", 4), ("chorus", 4)] * blocks
        if left == 1 and blocks:
            return [*form, ("chorus", 2)]
        return [*form, *rest.get(left, [])]

    def _sung_bars(self, form: list[tuple[str, int]]) -> int:
        return sum(lines * self.phrase_bars[kind] for kind, lines in form)

    def _plan(self) -> _Plan | None:
        total = max(1, round(self.seconds / (self.bar * self.step)))
        form: list[tuple[str, int]] = [("verse", 1)]
        total -= 1  # at least a bar before the first word
        if self._sung_bars(form) > total:
            return None
        for couplets in range(1, 200):
            longer = self._form(couplets)
            if self._sung_bars(longer) + (len(longer) > 2) > total:
                break
            form = longer
        spare = total - self._sung_bars(form)
        extra = {"intro": 1, "outro": 0, "interlude": 0}
        pauses = max(0, sum(kind == "verse" for kind, _ in form) - 1)
        order = ["outro", *["interlude"] * (pauses > 0), "intro", "outro"]
        while spare > 0:
            where = order.pop(0) if order else ("intro" if extra["intro"] <= extra["outro"] else "outro")
            cost = pauses if where == "interlude" else 1
            if cost > spare:
                continue
            extra[where] += 1
            spare -= cost
        return self._lay_out(form, extra)

    def _lay_out(self, form: list[tuple[str, int]], extra: dict[str, int]) -> _Plan:
        sections: list[Section] = []
        words: list[list[Line]] = []
        used = {"verse": 0, "chorus": 0}
        bar = 0

        def add(kind: str, bars: int, lines: list[Line]) -> None:
            nonlocal bar
            if bars:
                sections.append(Section(kind, bar, bars))
                words.append(lines)
                bar += bars

        add("intro", extra["intro"], [])
        for i, (kind, count) in enumerate(form):
            if i and kind == "verse":
                add("interlude", extra["interlude"], [])
            have = self.words[kind]
            at = used[kind] if kind == "verse" else 0  # the chorus returns with its words
            lines = [line for k in range((count + 1) // 2) for line in have[(at + k) % len(have)]]
            used[kind] += (count + 1) // 2
            add(kind, count * self.phrase_bars[kind], lines[:count])
        add("outro", extra["outro"], [])
        return _Plan(sections, words)

    # ---- chords

    def _chords(self, sections: list[Section]) -> list[Chord]:
        length = self.bar // 2 if self.bar * self.step > 2.7 and self.bar % 8 == 0 else self.bar
        chords = []
        for section in sections:
            names = self.progressions["chorus" if section.kind in ("chorus", "intro") else "verse"]
            count = section.bars * self.bar // length
            row = [names[i % len(names)] for i in range(count)]
            if section.kind in ("chorus", "outro"):
                row[-1] = self.tonic_chord
            elif section.kind == "verse":
                row[-1] = self.dominant_chord if count > 1 else self.tonic_chord
            if section is sections[-1]:
                row[-1] = self.tonic_chord
                if count > 2:
                    row[-2] = self.dominant_chord
            for i, name in enumerate(row):
                chords.append(Chord(section.start_bar * self.bar + i * length, length, name, _CHORDS[name]))
        return chords

    # ---- rhythm and melody

    def _rhythm(self, kind: str, syllables: int) -> list[tuple[int, int]]:
        """Start and length in steps of each note of a phrase, from the phrase's beginning."""
        rng = np.random.default_rng(self.kind_seed[kind])
        slot = self.phrase_bars[kind] * self.bar
        end = slot - self._gap()
        taste = rng.normal(0.0, 0.55, slot)  # one table a kind of section: its phrases share a rhythm
        first = int(rng.choice([0, 0, self.unit, 2 * self.unit]))
        places = np.arange(first, end - 2 * self.unit + 1, self.unit)
        while len(places) < syllables:
            first = max(0, first - self.unit)
            last = end - self.unit if first == 0 else end - 2 * self.unit
            places = np.arange(first, last + 1, self.unit)
        weights = np.tile(_metric_weights(self.style), self.phrase_bars[kind])[places] + taste[places]
        # The later a place, the less it is worth, as phrases hurry first and rest on their last note.
        weights -= 1.5 * (places - first) / slot
        weights[0] = np.inf
        chosen = np.sort(places[np.argsort(-weights, kind="stable")[:syllables]])
        ends = np.append(chosen[1:], end)
        longest = int(np.ceil(1.8 / self.step))
        ends[-1] = min(ends[-1], chosen[-1] + max(longest, 2))
        return [(int(a), int(b - a)) for a, b in zip(chosen, ends, strict=True)]

    def _contour(self, shape: str, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Wanted height between 0 and 1 at each place between 0 and 1."""
        if shape == "arch":
            return np.sin(np.pi * places)
        if shape == "fall":
            return 1.0 - places
        if shape == "rise":
            return 0.2 + 0.7 * places
        if shape == "wave":
            return 0.5 + 0.5 * np.sin(2 * np.pi * places)
        return np.where(places < 0.7, places / 0.7, (1.0 - places) / 0.3 * 0.7 + 0.3)

    def _melody(self, kind: str, nth: int, last: bool, rhythm: list[tuple[int, int]], chords: list[Chord]) -> list[int]:
        """Pitches of a phrase: the cheapest path (Viterbi) through the scale. ``chords[i]`` sounds under note ``i``."""
        rng = np.random.default_rng(
            (self.kind_seed[kind], nth % 2)
        )  # lines 1 and 3 of a section are alike, and 2 and 4
        shape = str(rng.choice(_CONTOURS)) if not last else str(rng.choice(["arch", "fall"]))
        pitches = np.array([p for p in range(self.low, self.high + 1) if p % 12 in MODES[self.mode]])
        noise = rng.normal(0.0, 1.0, (64, self.high - self.low + 1))
        span = self.high - self.low
        base, reach = (self.low + 0.35 * span, 0.6 * span) if kind == "chorus" else (self.low + 0.1 * span, 0.6 * span)
        places = np.array([start for start, _ in rhythm], dtype=np.float64)
        places /= max(1.0, places[-1])
        wanted = base + reach * self._contour(shape, places)
        weights = _metric_weights(self.style)
        cost = np.zeros((len(rhythm), len(pitches)))
        for i, ((start, length), chord) in enumerate(zip(rhythm, chords, strict=True)):
            tones = {tone % 12 for tone in chord.tones}
            inside = np.array([p % 12 in tones for p in pitches])
            clash = np.array([not ok and (p - 1) % 12 in tones for p, ok in zip(pitches, inside, strict=True)])
            stress = weights[start % self.bar] / 4.0 + min(1.0, length * self.step)
            cost[i] = 0.12 * (pitches - wanted[i]) ** 2 + 1.2 * noise[i % 64, pitches - self.low]
            cost[i] += stress * np.where(inside, 0.0, 2.0) + stress * np.where(clash, 4.0, 0.0)
            if i == len(rhythm) - 1:
                cost[i] += np.where(inside, 0.0, 1e6)
                if last:
                    cost[i] += np.where(pitches % 12 == 0, 0.0, 6.0)
        step = np.abs(pitches[:, None] - pitches[None, :])
        move = (
            np.where(step == 0, 1.0, 0.35 * step)
            + np.where(step > 5, 1.5 * (step - 5), 0.0)
            + np.where(step > 9, 50.0, 0)
        )
        total, back = cost[0], []
        for i in range(1, len(rhythm)):
            through = total[:, None] + move
            back.append(through.argmin(axis=0))
            total = through.min(axis=0) + cost[i]
        path = [int(total.argmin())]
        for row in reversed(back):
            path.append(int(row[path[-1]]))
        return [int(pitches[k]) for k in reversed(path)]

    def compose(self) -> Composition | None:
        """The whole song, or None when it does not fit its length."""
        if not all(self.phrase_bars.values()):
            return None
        plan = self._plan()
        if plan is None:
            return None
        chords = self._chords(plan.sections)
        starts = np.array([chord.start for chord in chords])
        phrases = []
        for number, (section, lines) in enumerate(zip(plan.sections, plan.lines, strict=True)):
            for nth, line in enumerate(lines):
                reading = read_line(line)
                origin = (section.start_bar + nth * self.phrase_bars[section.kind]) * self.bar
                rhythm = self._rhythm(section.kind, len(reading.syllables))
                under = [chords[int(np.searchsorted(starts, origin + s, side="right")) - 1] for s, _ in rhythm]
                last = nth == len(lines) - 1
                pitches = self._melody(section.kind, nth, last and section.kind == "chorus", rhythm, under)
                notes = tuple(
                    Note(origin + start, length, pitch, syllable.kana)
                    for (start, length), pitch, syllable in zip(rhythm, pitches, reading.syllables, strict=True)
                )
                phrases.append(Phrase(number, line, reading, notes))
        return Composition(
            self.style, self.tempo, self.mode, self.theme, tuple(plan.sections), tuple(phrases), tuple(chords)
        )
