"""Scores that this package writes and music21 reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data.prepare.sung.musicxml import Score, ScoreNote, key_fifths, key_name, write_score

music21 = pytest.importorskip("music21")


def read_back(text: str):
    """Notes as (start in sixteenths, length, midi, lyric) with ties joined, rests as (start, length), and the part."""
    part = music21.converter.parseData(text, format="musicxml").parts[0]
    joined = part.stripTies()
    notes = [
        (round(float(n.getOffsetInHierarchy(joined)) * 4), round(float(n.quarterLength) * 4), n.pitch.midi, n.lyric)
        for n in joined.recurse().notes
    ]
    rests = [
        (float(r.getOffsetInHierarchy(part)) * 4, float(r.quarterLength) * 4)
        for r in part.recurse().getElementsByClass("Rest")
    ]
    return notes, rests, part


@st.composite
def scores(draw) -> Score:
    beats, beat_type = draw(st.sampled_from([(4, 4), (3, 4), (2, 4), (6, 8)]))
    notes, place = [], 0
    for _ in range(draw(st.integers(1, 8))):
        place += draw(st.integers(0, 9))
        length = draw(st.integers(1, 23))
        kana = draw(st.sampled_from(["あ", "きょ", "かっ", "ん"]))
        notes.append(ScoreNote(place, length, draw(st.integers(45, 84)), kana))
        place += length
    bar = beats * 16 // beat_type
    return Score(
        "題 <&>", notes, -(-place // bar) * bar, beats, beat_type, 96, draw(st.integers(-5, 6)), "minor", "声 & co"
    )


@settings(max_examples=15, deadline=None)
@given(scores())
def test_music21_reads_the_same_notes_lyrics_rests_and_tempo(score: Score):
    notes, rests, part = read_back(write_score(score))
    assert notes == [(n.start, n.length, n.midi, n.kana) for n in score.notes]
    silent = score.steps - sum(n.length for n in score.notes)
    assert sum(length for _, length in rests) == silent
    assert part.recurse().getElementsByClass("MetronomeMark")[0].number == 96
    assert part.recurse().getElementsByClass("KeySignature")[0].sharps == score.fifths
    time = part.recurse().getElementsByClass("TimeSignature")[0]
    assert (time.numerator, time.denominator) == (score.beats, score.beat_type)
    bar = score.beats * 4 / score.beat_type
    assert all(float(measure.duration.quarterLength) == bar for measure in part.getElementsByClass("Measure"))


def test_keys():
    assert [key_fifths(t, False) for t in (0, 7, 2, 5, 10, 6, 1)] == [0, 1, 2, -1, -2, 6, -5]
    assert key_fifths(9, True) == 0
    assert (key_name(3, False), key_name(6, False), key_name(1, True)) == ("Eb", "F#", "C#")


def test_overlapping_notes_are_refused():
    notes = [ScoreNote(0, 4, 60, "あ"), ScoreNote(3, 4, 60, "い")]
    with pytest.raises(ValueError, match="overlaps"):
        write_score(Score("x", notes, 16, 4, 4, 100, 0, "major"))
