"""A small band in numpy: drums, bass, chords and a pad after the patterns of a style.

Tuned sounds are wavetables (sums of harmonics below 16 kHz, a bright and a dark one whose mixture darkens as the note
decays) or two-operator FM (Chowning 1973); drums are swept sines and filtered noise; a short room of decaying noise is
added to chords, pad and snare. Everything is float64 at 48 kHz, stereo ``[samples, 2]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from songbloom.data.prepare.sung.melody import Chord, Composition, Section
from songbloom.data.prepare.sung.styles import Style
from songbloom.data.prepare.sung.voices import SAMPLE_RATE

Audio = NDArray[np.float64]

_TABLE = 16384  # samples in a wavetable; read without interpolation its error is about -75 dB
_HIGHEST = 16000.0
_PAN = {"kick": 0.0, "snare": 0.1, "hat": 0.45, "rim": -0.45, "bass": 0.0}
_LEVEL = {"kick": 0.9, "snare": 0.45, "hat": 0.16, "rim": 0.25, "bass": 0.55, "chords": 0.30, "pad": 0.11}
_DRUMS_BY_SECTION = {"intro": 0.6, "verse": 0.8, "chorus": 1.0, "interlude": 0.9, "outro": 0.7}


def _hertz(midi: float) -> float:
    return 440.0 * 2.0 ** ((midi - 69.0) / 12.0)


@lru_cache(maxsize=256)
def _wavetable(kind: str, highest_harmonic: int) -> Audio:
    """One period of a sound; peak about 1."""
    k = np.arange(1, max(1, min(highest_harmonic, 40)) + 1)
    amplitudes = {
        "piano": k**-1.4,
        "piano dark": k**-2.8,
        "guitar": np.abs(np.sin(np.pi * k * 0.19)) * k**-1.1,
        "guitar dark": k**-2.5,
        "square": (k % 2) / k / (1.0 + (k / 14.0) ** 2),
        "square dark": (k % 2) / k**2,
        "bass": k**-1.5,
        "bass dark": k**-3.0,
        "saw": 1.0 / k / (1.0 + (k / 6.0) ** 2),
    }[kind]
    # Phases that grow with the square of the harmonic keep the peak low (Schroeder 1970).
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(k) + 1] = amplitudes * np.exp(1j * np.pi * k * k / len(k))
    table = np.fft.irfft(spectrum)
    return table / np.abs(table).max()


def _oscillator(kind: str, hertz: float, samples: int, start: float = 0.0) -> Audio:
    table = _wavetable(kind, int(_HIGHEST / hertz))
    places = (np.arange(samples) * (hertz * _TABLE / SAMPLE_RATE) + start * _TABLE).astype(np.int64)
    return table[places & (_TABLE - 1)]


def _fade(samples: int, attack: float, release: float) -> Audio:
    """1 with linear ramps of ``attack`` and ``release`` seconds at the ends."""
    time = np.arange(samples) / SAMPLE_RATE
    return np.clip(np.minimum(time / attack, (samples / SAMPLE_RATE - time) / release), 0.0, 1.0)


@lru_cache(maxsize=512)
def tuned_note(sound: str, midi: int, samples: int) -> Audio:
    """One note ``[samples]``, with its own attack, decay and release."""
    hertz = _hertz(midi)
    time = np.arange(samples) / SAMPLE_RATE
    if sound in ("electric", "bell"):
        ratio, index, decay = (1.0, 1.6, 1.8) if sound == "electric" else (3.5, 1.1, 2.2)
        modulator = np.sin(2 * np.pi * ratio * hertz * time) * index * np.exp(-time * decay * 2)
        return np.sin(2 * np.pi * hertz * time + modulator) * np.exp(-time * decay) * _fade(samples, 0.003, 0.04)
    decay, darkening = {"piano": (1.6, 3.0), "guitar": (2.4, 5.0), "square": (3.0, 6.0), "bass": (1.6, 8.0)}[sound]
    bright = np.exp(-time * darkening)
    wave = bright * _oscillator(sound, hertz, samples) + (1 - bright) * _oscillator(sound + " dark", hertz, samples)
    return wave * np.exp(-time * decay) * _fade(samples, 0.004, 0.05)


@lru_cache(maxsize=128)
def pad_note(midi: int, samples: int) -> Audio:
    """A slow chord tone ``[samples, 2]``: detuned saws, others on the left than on the right."""
    hertz = _hertz(midi)
    sides = [
        _oscillator("saw", hertz * 2 ** (cents / 1200), samples, start)
        + _oscillator("saw", hertz, samples, 0.3 + start)
        for cents, start in ((-7.0, 0.1), (6.0, 0.6))
    ]
    return np.stack(sides, axis=1) * 0.5 * _fade(samples, min(0.25, samples / SAMPLE_RATE / 3), 0.2)[:, None]


def drum_sounds(rng: np.random.Generator) -> dict[str, Audio]:
    """One hit of each drum ``[samples]``, peak 1; noise comes from ``rng``."""

    def clock(seconds: float) -> Audio:
        return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE

    time = clock(0.30)
    kick = np.sin(2 * np.pi * (48 * time + 75 * 0.035 * (1 - np.exp(-time / 0.035)))) * np.exp(-time / 0.09)
    time = clock(0.22)
    noise = np.diff(rng.normal(size=len(time) + 1))
    snare = 0.7 * noise * np.exp(-time / 0.05) + np.sin(2 * np.pi * 185 * time) * np.exp(-time / 0.06)
    time = clock(0.09)
    noise = np.diff(rng.normal(size=len(time) + 3), n=3)  # each difference takes away 6 dB an octave below
    hat = noise * np.exp(-time / 0.018)
    time = clock(0.06)
    rim = (np.sin(2 * np.pi * 1700 * time) + 0.6 * np.sin(2 * np.pi * 2450 * time)) * np.exp(-time / 0.008)
    hits = {"kick": kick, "snare": snare, "hat": hat, "rim": rim}
    return {name: hit * _fade(len(hit), 0.0005, 0.01) / np.abs(hit).max() for name, hit in hits.items()}


def _voicing(chord: Chord, tonic: int) -> list[int]:
    """MIDI numbers of the chord's tones, gathered around middle C."""
    return sorted(54 + (tonic + tone - 54) % 12 + (12 if i == 3 else 0) for i, tone in enumerate(chord.tones[:4]))


def _bass_note(chord: Chord, tonic: int, degree: str) -> int:
    interval = {"r": 0, "t": chord.tones[1] - chord.tones[0], "f": chord.tones[2] - chord.tones[0], "8": 12}[degree]
    return 33 + (tonic + chord.tones[0] - 33) % 12 + interval


def _room(rng: np.random.Generator, dry: Audio, seconds: float = 0.9) -> Audio:
    """``dry`` [samples, 2] in a room whose sound has fallen by 60 dB after ``seconds``."""
    length = int(seconds * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    response = rng.normal(size=(length, 2)) * (10.0 ** (-3.0 * time / seconds))[:, None]
    response[: int(0.012 * SAMPLE_RATE)] = 0.0
    response /= np.sqrt((response**2).sum(axis=0))
    size = 1 << int(np.ceil(np.log2(length * 4)))
    hop = size - length
    spectrum = np.fft.rfft(response, size, axis=0)
    wet = np.zeros((len(dry) + size, 2))
    for start in range(0, len(dry), hop):
        block = np.fft.irfft(np.fft.rfft(dry[start : start + hop], size, axis=0) * spectrum, size, axis=0)
        wet[start : start + size] += block
    return wet[: len(dry)]


class _Mixer:
    """Two buses, one of which goes through the room."""

    def __init__(self, samples: int):
        self.dry = np.zeros((samples, 2))
        self.to_room = np.zeros((samples, 2))

    def add(self, at: int, sound: Audio, level: float, pan: float = 0.0, room: float = 0.0) -> None:
        """Add ``sound`` ([n] or [n, 2]) from sample ``at``; ``pan`` -1 (left) to 1, ``room`` a share of ``level``."""
        sound = sound[: max(0, len(self.dry) - at)]
        if sound.ndim == 1:
            sides = np.array([np.cos((pan + 1) * np.pi / 4), np.sin((pan + 1) * np.pi / 4)])
            sound = sound[:, None] * sides
        self.dry[at : at + len(sound)] += level * sound
        if room:
            self.to_room[at : at + len(sound)] += level * room * sound


def play(song: Composition, tonic: int, samples: int, rng: np.random.Generator) -> Audio:
    """The backing of a song ``[samples, 2]``, on the tonic with MIDI number ``tonic``; level not normalised."""
    mixer = _Mixer(samples)
    style, bar = song.style, song.style.steps_per_bar
    drums = drum_sounds(rng)

    def sample_of(step: float) -> int:
        return round(step * song.step_seconds * SAMPLE_RATE)

    for section in song.sections:
        for number in range(section.start_bar, section.start_bar + section.bars):
            if number < song.bars - 1 or song.bars == 1:  # the last bar is one long chord
                _play_drums(mixer, style, drums, section, number * bar, sample_of, rng)
    for chord in song.chords:
        final = chord.start + chord.length >= song.bars * bar
        _play_chord(mixer, style, chord, tonic, final, sample_of, rng)
    if song.bars > 1:
        mixer.add(sample_of((song.bars - 1) * bar), drums["kick"], _LEVEL["kick"])
    return mixer.dry + 0.5 * _room(rng, mixer.to_room)


def _play_drums(
    mixer: _Mixer,
    style: Style,
    drums: dict[str, Audio],
    section: Section,
    first: int,
    sample_of: Callable[[float], int],
    rng: np.random.Generator,
) -> None:
    """The drums of the bar that begins at step ``first``."""
    for name, row in (("kick", style.kick), ("snare", style.snare), ("hat", style.hat), ("rim", style.rim)):
        for step, mark in enumerate(row):
            if mark != ".":
                strength = (1.0 if mark == "x" else 0.55) * _DRUMS_BY_SECTION[section.kind] * rng.uniform(0.88, 1.05)
                room = 0.35 if name == "snare" else 0.0
                mixer.add(sample_of(first + step), drums[name], _LEVEL[name] * strength, _PAN[name], room)


def _play_chord(
    mixer: _Mixer,
    style: Style,
    chord: Chord,
    tonic: int,
    final: bool,
    sample_of: Callable[[float], int],
    rng: np.random.Generator,
) -> None:
    """Bass, chord pattern and pad under one chord; the song's last chord is struck once and held."""
    bar = style.steps_per_bar
    notes = _voicing(chord, tonic)
    offset = chord.start % bar
    span = sample_of(chord.start + chord.length) - sample_of(chord.start)
    for note in notes:
        mixer.add(sample_of(chord.start), pad_note(note, span), _LEVEL["pad"] * style.pad_level, room=0.5)
    bass_row = "r" + "." * (chord.length - 1) if final else style.bass[offset : offset + chord.length]
    chord_row = "x" + "." * (chord.length - 1) if final else style.chords[offset : offset + chord.length]
    for step, mark in enumerate(bass_row):
        if mark != ".":
            rest = bass_row[step + 1 :]
            length = len(rest) - len(rest.lstrip(".")) + 1
            samples = sample_of(length) if not final else span
            sound = tuned_note("bass", _bass_note(chord, tonic, mark), samples)
            mixer.add(sample_of(chord.start + step), sound, _LEVEL["bass"] * rng.uniform(0.92, 1.0))
    for step, mark in enumerate(chord_row):
        if mark == ".":
            continue
        struck = notes if mark == "x" else [notes[(int(mark) - 1) % len(notes)] + 12 * ((int(mark) - 1) // len(notes))]
        seconds_in_steps = chord.length if final else min(chord.length - step, 6)
        for i, note in enumerate(struck):
            sound = tuned_note(style.chord_sound, note, sample_of(seconds_in_steps))
            level = _LEVEL["chords"] * (1.0 if len(struck) == 1 else 0.6) * rng.uniform(0.85, 1.0)
            pan = 1.2 * (i / (len(struck) - 1) - 0.5) if len(struck) > 1 else (0.5 if step % 4 else -0.5)
            mixer.add(sample_of(chord.start + step), sound, level, pan, room=0.4)
