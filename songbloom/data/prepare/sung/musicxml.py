"""MusicXML of a vocal part: notes with kana, rests, ties over bar lines, tempo, key.

A small writer instead of music21: importing that takes longer than singing a song, and it puts dates and random
identifiers into its files. The tests read everything back with music21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from songbloom.data.prepare.sung.styles import STEPS_PER_QUARTER

_TYPES = {16: "whole", 8: "half", 4: "quarter", 2: "eighth", 1: "16th"}
_PIECES = (16, 12, 8, 6, 4, 3, 2, 1)  # lengths in steps that one note head, dotted or not, can have
_SHARPS, _FLATS = "C C# D D# E F F# G G# A A# B", "C Db D Eb E F Gb G Ab A Bb B"


@dataclass(frozen=True)
class ScoreNote:
    """A note at MIDI pitch ``midi`` that sings ``kana``; ``start`` and ``length`` in steps (sixteenths)."""

    start: int
    length: int
    midi: int
    kana: str


@dataclass(frozen=True)
class Score:
    """A vocal part of ``steps`` steps. ``fifths``: sharps (flats if negative) of the key; ``mode``: major or minor."""

    title: str
    notes: Sequence[ScoreNote]
    steps: int
    beats: int
    beat_type: int
    tempo: float
    fifths: int
    mode: str
    credit: str = ""


def key_fifths(tonic: int, minor: bool) -> int:
    """Sharps (or minus flats) in the key signature of a tonic, from -5 to 6."""
    major = (tonic + (3 if minor else 0)) % 12
    sharps = major * 7 % 12
    return sharps if sharps <= 6 else sharps - 12


def key_name(tonic: int, minor: bool) -> str:
    """Name of the tonic as its key signature spells it, such as ``Eb``."""
    spelling = (_SHARPS if key_fifths(tonic, minor) > 0 else _FLATS).split()
    return spelling[tonic % 12]


def _pitch(midi: int, fifths: int) -> str:
    name = (_SHARPS if fifths > 0 else _FLATS).split()[midi % 12]
    alter = {"#": "<alter>1</alter>", "b": "<alter>-1</alter>"}.get(name[1:], "")
    return f"<pitch><step>{name[0]}</step>{alter}<octave>{midi // 12 - 1}</octave></pitch>"


def _pieces(start: int, length: int, bar: int) -> list[int]:
    """Lengths of the note heads that write ``length`` steps from ``start``: cut at bar lines, then as few as can be."""
    pieces = []
    while length:
        room = min(length, bar - start % bar)
        piece = next(p for p in _PIECES if p <= room)
        pieces.append(piece)
        start, length = start + piece, length - piece
    return pieces


def _element(piece: int, what: str, ties: tuple[bool, bool], kana: str | None) -> str:
    """One ``<note>``; ``ties``: tied to the one before, to the one after."""
    dotted = piece not in _TYPES
    kind = _TYPES[piece * 2 // 3 if dotted else piece]
    names = [name for name, tied in zip(("stop", "start"), ties, strict=True) if tied]
    tie = "".join(f'<tie type="{name}"/>' for name in names)
    notations = "<notations>" + "".join(f'<tied type="{name}"/>' for name in names) + "</notations>" if names else ""
    lyric = "" if kana is None else f"<lyric><syllabic>single</syllabic><text>{escape(kana)}</text></lyric>"
    dot = "<dot/>" if dotted else ""
    head = f"{what}<duration>{piece}</duration>{tie}<voice>1</voice><type>{kind}</type>{dot}"
    return f"<note>{head}{notations}{lyric}</note>\n"


def write_score(score: Score) -> str:
    """The score as MusicXML 3.1, partwise. Raises ``ValueError`` when notes overlap or pass the end."""
    bar = score.beats * 4 * STEPS_PER_QUARTER // score.beat_type
    measures: list[list[str]] = [[] for _ in range(-(-score.steps // bar))]
    place = 0

    def put(length: int, what: str, kana: str | None) -> None:
        nonlocal place
        pieces = _pieces(place, length, bar)
        for i, piece in enumerate(pieces):
            ties = (kana is not None and i > 0, kana is not None and i + 1 < len(pieces))
            measures[place // bar].append(_element(piece, what, ties, kana if i == 0 else None))
            place += piece

    for note in score.notes:
        if note.start < place or note.length < 1 or note.start + note.length > score.steps:
            raise ValueError(f"note at step {note.start} overlaps another or passes the end")
        put(note.start - place, "<rest/>", None)
        put(note.length, _pitch(note.midi, score.fifths), note.kana)
    put(len(measures) * bar - place, "<rest/>", None)
    attributes = (
        f"<attributes><divisions>{STEPS_PER_QUARTER}</divisions>"
        f"<key><fifths>{score.fifths}</fifths><mode>{score.mode}</mode></key>"
        f"<time><beats>{score.beats}</beats><beat-type>{score.beat_type}</beat-type></time>"
        "<clef><sign>G</sign><line>2</line></clef></attributes>\n"
        '<direction placement="above"><direction-type><metronome><beat-unit>quarter</beat-unit>'
        f"<per-minute>{score.tempo:g}</per-minute></metronome></direction-type>"
        f'<sound tempo="{score.tempo:g}"/></direction>\n'
    )
    body = "".join(
        f'<measure number="{number}">\n{attributes if number == 1 else ""}{"".join(measure)}</measure>\n'
        for number, measure in enumerate(measures, start=1)
    )
    rights = f"<rights>{escape(score.credit)}</rights>" if score.credit else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 3.1 Partwise//EN" '
        '"http://www.musicxml.org/dtds/partwise.dtd">\n'
        f'<score-partwise version="3.1">\n<work><work-title>{escape(score.title)}</work-title></work>\n'
        f"<identification>{rights}</identification>\n"
        '<part-list><score-part id="P1"><part-name>Voice</part-name></score-part></part-list>\n'
        f'<part id="P1">\n{body}</part>\n</score-partwise>\n'
    )
