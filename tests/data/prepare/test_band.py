"""The backing band: right notes, every style, same seed same sound."""

from __future__ import annotations

import numpy as np
import pytest

from songbloom.data.prepare.sung import band
from songbloom.data.prepare.sung.melody import compose
from songbloom.data.prepare.sung.styles import STYLES

RATE = 48000


@pytest.mark.parametrize("style", ["folk", "ballad"])
def test_the_band_plays_the_chords(style: str):
    """The two strongest pitch classes between 150 and 500 Hz under each chord belong to it."""
    song = compose(np.random.default_rng(2), [style], 15.0)
    tonic = 62
    audio = band.play(song, tonic, int(song.seconds * RATE), np.random.default_rng(0)).mean(axis=1)
    right = 0
    for chord in song.chords:
        first, end = (round(step * song.step_seconds * RATE) for step in (chord.start, chord.start + chord.length))
        piece = audio[first:end]
        power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2
        hertz = np.fft.rfftfreq(len(piece), 1 / RATE)
        middle = (hertz > 150) & (hertz < 500)
        classes = np.round(69 + 12 * np.log2(hertz[middle] / 440)).astype(int) % 12
        energy = np.bincount(classes, weights=power[middle], minlength=12)
        right += set(np.argsort(-energy)[:2]) <= {(tonic + tone) % 12 for tone in chord.tones}
    assert right >= 0.9 * len(song.chords)
    assert np.isfinite(audio).all()


@pytest.mark.parametrize("style", list(STYLES))
def test_the_same_seed_sounds_the_same_in_every_style(style: str):
    song = compose(np.random.default_rng(1), [style], 8.0)
    samples = int(song.seconds * RATE)
    one = band.play(song, 60, samples, np.random.default_rng(5))
    band.tuned_note.cache_clear()  # notes are kept between songs; keeping must not change them
    band.pad_note.cache_clear()
    assert one.shape == (samples, 2)
    assert np.array_equal(one, band.play(song, 60, samples, np.random.default_rng(5)))
    assert not np.array_equal(one, band.play(song, 60, samples, np.random.default_rng(6)))
    assert np.isfinite(one).all()
    for start in range(0, samples - RATE, RATE):
        assert np.sqrt(np.mean(one[start : start + RATE] ** 2)) > 1e-3  # no second is silent


def test_drums_fade_out_and_do_not_exceed_one():
    for name, hit in band.drum_sounds(np.random.default_rng(0)).items():
        assert np.abs(hit).max() <= 1.0, name
        assert abs(hit[-1]) < 1e-3
