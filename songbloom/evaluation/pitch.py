"""How high a voice sings: its pitch frame by frame where one is heard, and its range.

The tracker is WORLD's DIO with StoneMask (Morise et al. 2009, 2016), made for one voice alone. In a mix it follows what
is loudest in its range, so ranges of mixes are told with that word.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from songbloom.evaluation.recogniser import FRAME_SECONDS

LOWEST, HIGHEST = 65.0, 1100.0
"""Hz that are looked for: C2 to C♯6."""
_SUNG = 0.5
_FEWEST = 25  # frames; half a second of pitch


@dataclass(frozen=True)
class PitchStatistics:
    """Pitches of sung frames.

    Attributes:
        median: MIDI number.
        low, high: the 5th and the 95th percentile, MIDI numbers.
        voiced: share of sung frames that have a pitch.
        frames: with a pitch, 20 ms each.
    """

    median: float
    low: float
    high: float
    voiced: float
    frames: int

    @property
    def range(self) -> float:
        """Semitones between ``low`` and ``high``."""
        return self.high - self.low

    def plain(self) -> dict[str, Any]:
        """As a dict, with the range."""
        return {**asdict(self), "range": self.range}


def track(audio: np.ndarray, sample_rate: int, frames: int) -> np.ndarray:
    """MIDI number of each frame of 20 ms of mono audio ``[T]``, NaN where there is no pitch ``[frames]``."""
    import pyworld

    midi = np.full(frames, np.nan)
    samples = np.ascontiguousarray(audio, np.float64)
    if len(samples) < sample_rate * 0.1 or not np.any(samples):
        return midi
    period = 1000 * FRAME_SECONDS
    found, times = pyworld.dio(samples, sample_rate, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=period)
    hertz = pyworld.stonemask(samples, found, times, sample_rate)[:frames]
    known = np.flatnonzero(hertz > 0)
    midi[known] = 69 + 12 * np.log2(hertz[known] / 440)
    return midi


def statistics(midi: np.ndarray, voice: np.ndarray) -> PitchStatistics | None:
    """Statistics of the pitches ``[frames]`` where a voice is heard (probabilities ``[frames]``); None of too few."""
    sung = voice > _SUNG
    known = midi[sung & np.isfinite(midi)]
    if len(known) < _FEWEST:
        return None
    low, median, high = (float(value) for value in np.percentile(known, [5, 50, 95]))
    return PitchStatistics(median, low, high, len(known) / int(sung.sum()), len(known))
