"""How high a voice sings: its pitch frame by frame where one is heard, and its range.

The tracker adds up harmonics (Hermes 1988, *Measurement of pitch by subharmonic summation*) of a whitened spectrum, in
which a voice stands out from a band below it, and follows the strongest line (Viterbi 1967). docs/evaluation.md has
its errors for singers alone and in mixes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from songbloom.evaluation.recogniser import FRAME_SECONDS

LOWEST, HIGHEST = 46, 86
"""MIDI numbers that are looked for: A♯2 to D6."""
_STEP = 0.2  # semitones between candidates
_HARMONICS, _DECAY = 6, 0.8
_WINDOW_SECONDS, _PADDED = 0.128, 2  # of a spectrum; zeros make it twice as long
_WHITENED = 240.0  # Hz over which the spectrum is compared with its own mean
_GLIDE = 0.02  # what a step to the next candidate costs, where the strongest pitch of a frame counts 1
_REACH = round(1.0 / _STEP)  # steps a frame may glide; farther is a jump
_SUNG = 0.5
_FEWEST = 25  # frames; half a second of pitch


@dataclass(frozen=True)
class PitchStatistics:
    """Pitches of sung frames.

    Attributes:
        median: MIDI number.
        low, high: the 10th and the 90th percentile, MIDI numbers.
        frames: sung, 20 ms each.
    """

    median: float
    low: float
    high: float
    frames: int

    @property
    def range(self) -> float:
        """Semitones between ``low`` and ``high``."""
        return self.high - self.low

    def plain(self) -> dict[str, Any]:
        """As a dict, with the range."""
        return {**asdict(self), "range": self.range}


@lru_cache(maxsize=4)
def _harmonics(sample_rate: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates ``[K]``, MIDI numbers, and what each takes of a spectrum ``[size // 2 + 1, K]``."""
    candidates = np.arange(LOWEST, HIGHEST, _STEP)
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    taken = np.zeros((len(frequencies), len(candidates)))
    for index, midi in enumerate(candidates):
        for harmonic in range(1, _HARMONICS + 1):
            centre = 440 * 2 ** ((midi - 69) / 12) * harmonic
            peak = np.maximum(0, 1 - np.abs(frequencies - centre) / (0.03 * centre + sample_rate / size))
            taken[:, index] += _DECAY ** (harmonic - 1) * peak / max(float(peak.sum()), 1e-9)
    return candidates, taken


def _strongest_line(strength: np.ndarray) -> np.ndarray:
    """Candidate of each frame ``[T]`` on the best path through strengths ``[T, K]``."""
    frames, candidates = strength.shape
    back = np.zeros((frames, candidates), np.int64)
    total, jump = strength[0].copy(), 1.5 * _GLIDE * _REACH
    cost = _GLIDE * np.abs(np.arange(-_REACH, _REACH + 1))
    for frame in range(1, frames):
        padded = np.pad(total, _REACH, constant_values=-np.inf)
        near = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1) - cost
        chosen = near.argmax(1)
        best, source = near[np.arange(candidates), chosen], np.arange(candidates) + chosen - _REACH
        jumps = best < total.max() - jump
        back[frame] = np.where(jumps, total.argmax(), source)
        total = np.where(jumps, total.max() - jump, best) + strength[frame]
    path = np.zeros(frames, np.int64)
    path[-1] = total.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = back[frame, path[frame]]
    return path


def track(audio: np.ndarray, sample_rate: int, frames: int) -> np.ndarray:
    """MIDI number of each frame of 20 ms of mono audio ``[T]``, NaN in silence ``[frames]``."""
    hop, window = round(FRAME_SECONDS * sample_rate), round(_WINDOW_SECONDS * sample_rate)
    samples = np.asarray(audio, np.float64)
    level = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    if not frames or level < 1e-6:
        return np.full(frames, np.nan)
    padded = np.pad(samples / level, ((window - hop) // 2, max(0, frames * hop - len(samples)) + window))
    framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:frames] * np.hanning(window)
    size = _PADDED * window
    magnitude = np.sqrt(np.abs(np.fft.rfft(framed, size)))
    wide = round(_WHITENED * size / sample_rate) | 1
    sums = np.cumsum(np.pad(magnitude, ((0, 0), (wide // 2 + 1, wide // 2))), axis=1)
    around = (sums[:, wide:] - sums[:, :-wide]) / wide
    candidates, taken = _harmonics(sample_rate, size)
    strength = np.maximum(magnitude / (around + 1e-2) - 1, 0) @ taken
    most = strength.max(1)
    midi = candidates[_strongest_line(strength / (most[:, None] + 1e-6))]
    midi[most < 1e-3] = np.nan
    return midi


def statistics(midi: np.ndarray, voice: np.ndarray) -> PitchStatistics | None:
    """Statistics of the pitches ``[frames]`` where a voice is heard (probabilities ``[frames]``); None of too few."""
    known = midi[(voice > _SUNG) & np.isfinite(midi)]
    if len(known) < _FEWEST:
        return None
    low, median, high = (float(value) for value in np.percentile(known, [10, 50, 90]))
    return PitchStatistics(median, low, high, len(known))
