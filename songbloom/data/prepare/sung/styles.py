"""Backing styles: meter, tempo and the patterns that the band plays, one sixteenth a character.

A style is also the song's genre. Drum rows: ``x`` hit, ``o`` soft hit, ``.`` rest. The bass row names chord degrees:
``r`` root, ``f`` fifth, ``8`` octave, ``t`` third. The chord row: ``x`` all notes together, ``1``–``4`` single notes of
an arpeggio. Tempos count quarter notes.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS_PER_QUARTER = 4
"""The time grid of a song: one step is a sixteenth."""


@dataclass(frozen=True)
class Style:
    """One way to accompany. Levels are relative amplitudes."""

    name: str
    beats: int
    beat_type: int
    tempo: tuple[int, int]
    kick: str
    snare: str
    hat: str
    rim: str
    bass: str
    chords: str
    chord_sound: str
    pad_level: float

    @property
    def steps_per_bar(self) -> int:
        """Sixteenths in a bar."""
        return self.beats * 16 // self.beat_type


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(
            "ballad", 4, 4, (63, 80),
            kick="x.........x.....", snare="........x.......", hat="o...o...o...o...", rim="................",
            bass="r.......f.......", chords="1.2.3.4.3.2.3.2.", chord_sound="piano", pad_level=0.9,
        ),
        Style(
            "pop", 4, 4, (96, 128),
            kick="x.....x.x.......", snare="....x.......x...", hat="x.o.x.o.x.o.x.o.", rim="................",
            bass="r..rr.r.r..rr.8.", chords="x..x..x.....x.x.", chord_sound="electric", pad_level=0.6,
        ),
        Style(
            "bossa", 4, 4, (104, 132),
            kick="x.....o.x.....o.", snare="................", hat="o.o.o.o.o.o.o.o.", rim="x..x..x...x..x..",
            bass="r.....f.f.....r.", chords="x..x..x...x.x...", chord_sound="guitar", pad_level=0.3,
        ),
        Style(
            "waltz", 3, 4, (96, 138),
            kick="x...........", snare="....o...o...", hat="....o...o...", rim="............",
            bass="r...........", chords="....x...x...", chord_sound="piano", pad_level=0.5,
        ),
        Style(
            "march", 2, 4, (100, 122),
            kick="x.......", snare="..x.xxx.", hat="........", rim="........",
            bass="r...f...", chords="..x...x.", chord_sound="electric", pad_level=0.5,
        ),
        Style(
            "lullaby", 6, 8, (66, 84),
            kick="............", snare="............", hat="............", rim="............",
            bass="r.....f.....", chords="1.2.3.4.3.2.", chord_sound="bell", pad_level=0.8,
        ),
        Style(
            "electro", 4, 4, (118, 132),
            kick="x...x...x...x...", snare="....x.......x...", hat="..x...x...x...x.", rim="................",
            bass="..r...r...r.8.r.", chords="x..x..x..x..x.x.", chord_sound="square", pad_level=0.8,
        ),
        Style(
            "folk", 4, 4, (84, 110),
            kick="x.......x.......", snare="................", hat="..o...o...o...o.", rim="....o.......o...",
            bass="r.......f.......", chords="1.3.2.3.1.3.2.4.", chord_sound="guitar", pad_level=0.2,
        ),
        Style(
            "jazz", 4, 4, (104, 140),
            kick="o.......o.......", snare="............o...", hat="x...x.o.x...x.o.", rim="................",
            bass="r...t...f...t...", chords="......x.......x.", chord_sound="electric", pad_level=0.3,
        ),
    )
}  # fmt: skip
