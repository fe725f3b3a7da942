"""Is a sung phrase usable? Level and pitch are measured on the sound, with a tracker that does not know the melody."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.voices import FRAME, FRAME_SECONDS, SAMPLE_RATE, PhraseNotes, SungPhrase
from songbloom.data.prepare.sung.words import VOWELS
from songbloom.errors import UserError

CENTS_LIMIT = 60.0
"""Largest median error of a phrase against its notes."""
VOICED_LIMIT = 0.75
"""Smallest share of vowel frames in which a pitch is found."""
QUIET_LIMIT = 0.004
"""Smallest root mean square of the vowels, full scale 1, before levels are set."""
_EDGE = 3  # frames left out at both ends of a vowel, where pitch moves


@dataclass(frozen=True)
class Measured:
    """Pitch errors in cents in voiced vowel frames ``[n]``, the number of vowel frames, and the vowels' level."""

    cents: NDArray[np.float64]
    vowel_frames: int
    level: float


def _import_world() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which warns
            import pyworld
    except ImportError as error:
        raise UserError("sung_corpus measures pitch with WORLD: pip install pyworld 'setuptools<82'") from error
    return pyworld


def track_pitch(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequency in Hz of each 5 ms frame, 0 where unvoiced (DIO and StoneMask, Morise et al. 2009)."""
    world = _import_world()
    wave = np.ascontiguousarray(wave, dtype=np.float64)
    coarse, times = world.dio(wave, SAMPLE_RATE, f0_floor=100.0, f0_ceil=900.0, frame_period=1000 * FRAME_SECONDS)
    return world.stonemask(wave, coarse, times, SAMPLE_RATE)


def measure(phrase: SungPhrase, notes: PhraseNotes) -> Measured:
    """Measure the middles of the vowels of one phrase."""
    hertz = track_pitch(phrase.wave)
    frame = phrase.start + np.arange(len(hertz))
    wanted = np.zeros(len(hertz))
    for phoneme in phrase.phonemes:
        if phoneme.note is not None and phoneme.phoneme in VOWELS:
            inside = (frame >= phoneme.start + _EDGE) & (frame < phoneme.end - _EDGE)
            wanted[inside] = notes.midi[phoneme.note]
    voiced = (wanted > 0) & (hertz > 0)
    cents = 1200.0 * np.log2(hertz[voiced] / 440.0) - 100.0 * (wanted[voiced] - 69.0)
    vowels = np.repeat(wanted > 0, FRAME)[: len(phrase.wave)]
    sound = phrase.wave[: len(vowels)][vowels]
    level = float(np.sqrt(np.mean(sound**2))) if len(sound) else 0.0
    return Measured(cents, int((wanted > 0).sum()), level)


def judge(measured: Measured, text: str) -> None:
    """Raise :class:`UnusableRendering` for a phrase that is too quiet, unvoiced or out of tune."""
    if measured.level < QUIET_LIMIT:
        raise UnusableRendering("quiet", f"{text!r} has a level of {measured.level:.2g}")
    share = len(measured.cents) / max(1, measured.vowel_frames)
    if share < VOICED_LIMIT:
        raise UnusableRendering("unvoiced", f"{text!r}: pitch in {share:.0%} of the vowel frames")
    error = float(np.median(np.abs(measured.cents)))
    if error > CENTS_LIMIT:
        raise UnusableRendering("pitch", f"{text!r} is {error:.0f} cents off its notes")


def summary(measured: Sequence[Measured]) -> dict[str, float]:
    """Figures of a song: median error and share within 50 cents over all voiced vowel frames, voiced share."""
    cents = np.abs(np.concatenate([m.cents for m in measured]))
    frames = sum(m.vowel_frames for m in measured)
    return {
        "median_error_cents": round(float(np.median(cents)), 2),
        "within_50_cents": round(float(np.mean(cents < 50.0)), 4),
        "voiced_share": round(len(cents) / max(1, frames), 4),
    }
