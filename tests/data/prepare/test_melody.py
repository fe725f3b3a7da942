"""Generated songs: form, rhythm, melody and chords agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data.prepare.sung.melody import MODES, Composition, compose
from songbloom.data.prepare.sung.styles import STYLES
from songbloom.errors import UserError

NAMES = list(STYLES)


def chord_at(song: Composition, step: int):
    return next(c for c in song.chords if c.start <= step < c.start + c.length)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(NAMES), seconds=st.sampled_from([15.0, 30.0, 60.0]))
def test_any_song_is_singable_and_fits(seed: int, style: str, seconds: float):
    song = compose(np.random.default_rng(seed), [style], seconds)
    bar = song.style.steps_per_bar
    assert song.style.name == style
    assert abs(song.seconds - seconds) <= bar * song.step_seconds
    low, high = song.pitch_range
    assert high - low <= 12  # the narrowest voice has this range
    # sections and chords tile the song
    assert song.sections[0].start_bar == 0
    for one, after in zip(song.sections, song.sections[1:], strict=False):
        assert one.start_bar + one.bars == after.start_bar
    ends = [c.start + c.length for c in song.chords]
    assert [c.start for c in song.chords] == [0, *ends[:-1]]
    assert ends[-1] == song.bars * bar
    assert song.chords[-1].tones[0] == 0  # ends on the tonic
    place = 0
    for phrase in song.phrases:
        starts = [note.start for note in phrase.notes]
        assert [n.kana for n in phrase.notes] == [s.kana for s in phrase.reading.syllables]
        assert starts[0] >= place
        for note, after in zip(phrase.notes, phrase.notes[1:], strict=False):
            assert note.start + note.length == after.start
            assert abs(note.pitch - after.pitch) <= 9
        assert all(note.pitch % 12 in MODES[song.mode] for note in phrase.notes)
        last = phrase.notes[-1]
        tones = {tone % 12 for tone in chord_at(song, last.start).tones}
        possible = tones & set(MODES[song.mode])
        assert not possible or last.pitch % 12 in tones
        place = phrase.end + 0.29 / song.step_seconds  # a breath
    assert song.phrases[-1].end <= song.bars * bar
    assert song.phrases[0].notes[0].start >= bar  # something before the first word


def test_songs_differ_and_the_same_seed_repeats():
    songs = [compose(np.random.default_rng(seed), NAMES, 30.0) for seed in range(12)]
    assert len({song.phrases for song in songs}) == 12
    assert len({song.theme for song in songs}) > 4
    assert len({song.tempo for song in songs}) > 6
    assert len({song.mode for song in songs}) > 2
    assert compose(np.random.default_rng(3), NAMES, 30.0) == songs[3]


def test_the_chorus_returns_with_its_words_and_melody():
    song = compose(np.random.default_rng(1), ["pop"], 100.0)
    choruses = [
        [
            (p.line, [(n.start - s.start_bar * 16, n.length, n.pitch) for n in p.notes])
            for p in song.phrases
            if p.section == i
        ]
        for i, s in enumerate(song.sections)
        if s.kind == "chorus"
    ]
    assert len(choruses) >= 2
    assert [line for line, _ in choruses[0]][:2] == [line for line, _ in choruses[1]][:2]
    assert choruses[0][0][1] == choruses[1][0][1]


def test_every_style_has_patterns_of_one_bar():
    for style in STYLES.values():
        for row in (style.kick, style.snare, style.hat, style.rim, style.bass, style.chords):
            assert len(row) == style.steps_per_bar
        assert set(style.kick + style.snare + style.hat + style.rim) <= set("xo.")
        assert set(style.bass) <= set("rtf8.")
        assert set(style.chords) <= set("x1234.")


def test_a_song_too_short_for_its_style_is_one_line():
    with pytest.raises(UserError, match=r"ballad.*--seconds"):
        compose(np.random.default_rng(0), ["ballad"], 3.0)
