"""Log-mel spectrograms and their pictures, for logs and pages."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from songbloom.files import whole_file

_FLOOR_DB = -100.0  # of silence
_RANGE_DB = 80.0  # what lies further below the loudest place is drawn black

# From silence to loud: (red, green, blue) at equal steps, chosen so that lightness rises evenly.
_COLOURS = np.array(
    [
        (4, 3, 14),
        (35, 20, 82),
        (88, 28, 122),
        (142, 44, 118),
        (196, 62, 98),
        (236, 98, 82),
        (251, 155, 98),
        (253, 208, 146),
        (252, 250, 210),
    ],
    dtype=np.float64,
)


_HOP = 512  # samples between frames
_FRAMES_AT_ONCE = 512  # bounds memory to some megabytes


def _mels(hertz: np.ndarray) -> np.ndarray:
    high = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, high)


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def mel_filters(sample_rate: int, n_fft: int, bands: int) -> np.ndarray:
    """Triangular filters of the same area, equally spaced on Slaney's mel scale from 0 Hz to half the sample rate.

    The scale is linear up to 1000 Hz and logarithmic above. A band narrower than the resolution may stay empty.
    Source: Slaney, *Auditory Toolbox*, Interval Research technical report 1998-010.

    Returns:
        float32 ``[bands, n_fft // 2 + 1]``.
    """
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    edges = _hertz(np.linspace(0, _mels(np.asarray(sample_rate / 2)), bands + 2))[:, None]
    widths = np.diff(edges, axis=0)
    rising, falling = (frequencies - edges[:-2]) / widths[:-1], (edges[2:] - frequencies) / widths[1:]
    return (np.maximum(np.minimum(rising, falling), 0) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


class _Analysis:
    """Frames of samples to decibels in mel bands."""

    def __init__(self, sample_rate: int, bands: int) -> None:
        self.window = 2 ** max(5, round(np.log2(0.093 * sample_rate)))
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)).astype(np.float32)
        self._filters = mel_filters(sample_rate, self.window, bands)

    def decibels(self, samples: np.ndarray, hop_length: int) -> np.ndarray:
        """float32 ``[T]`` → float32 ``[bands, 1 + (T - window) // hop_length]``."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.window)[::hop_length]
        made = np.empty((len(self._filters), len(frames)), np.float32)
        for first in range(0, len(frames), _FRAMES_AT_ONCE):
            part = slice(first, first + _FRAMES_AT_ONCE)
            spectrum = np.fft.rfft(frames[part] * self._hann).astype(np.complex64)
            made[:, part] = self._filters @ (spectrum.real**2 + spectrum.imag**2).T
        return np.maximum(10 * np.log10(np.maximum(made, np.float32(1e-10))), np.float32(_FLOOR_DB))


def log_mel(audio: np.ndarray, sample_rate: int, *, bands: int = 128, hop_length: int = _HOP) -> np.ndarray:
    """Power in mel bands, in decibels relative to a full-scale power of 1.

    Args:
        audio: ``[T]``, any length; shorter than a window is filled with silence.
        sample_rate: Hz. The window is about 93 ms at any rate.
        bands: mel bands from 0 Hz to half the sample rate (see :func:`mel_filters`).
        hop_length: samples between frames.

    Returns:
        float32 ``[bands, 1 + T // hop_length]``, low frequencies first; at least -100 dB.
    """
    analysis = _Analysis(sample_rate, bands)
    samples = np.nan_to_num(np.asarray(audio, np.float32).reshape(-1))
    return analysis.decibels(np.pad(samples, analysis.window // 2), hop_length)


class MelPicture:
    """:func:`mel_picture` of a song that comes in pieces, in memory that does not grow with the song.

    Args:
        sample_rate: Hz.
        length: samples of the whole song, which decides what shares a column.
        height: mel bands, one a row.
        max_width: columns at most.
    """

    def __init__(self, sample_rate: int, length: int, *, height: int = 128, max_width: int = 1024) -> None:
        self._analysis = _Analysis(sample_rate, height)
        self._length = length
        self._heard = 0
        frames = 1 + length // _HOP
        self._edges = np.linspace(0, frames, min(frames, max_width) + 1).astype(int)  # a column's first frame
        self._columns = np.zeros((height, len(self._edges) - 1))  # power, summed over the frames of a column
        self._frame = 0  # the next one to come
        self._waiting = [np.zeros(self._analysis.window // 2, np.float32)]  # samples from that frame's first on

    def append(self, audio: np.ndarray) -> None:
        """Hear what comes next: ``[T]``, or ``[T, C]``, whose channels are averaged.

        Raises:
            ValueError: more than the length that was promised.
        """
        samples = np.nan_to_num(np.asarray(audio, np.float32))
        samples = samples.mean(axis=1) if samples.ndim == 2 else samples
        self._heard += len(samples)
        if self._heard > self._length:
            raise ValueError(f"{self._heard} samples of a song of {self._length}")
        step = _FRAMES_AT_ONCE * _HOP
        for start in range(0, len(samples), step):
            self._hear(samples[start : start + step])

    def _hear(self, samples: np.ndarray) -> None:
        self._waiting.append(samples)
        if sum(map(len, self._waiting)) < self._analysis.window + 16 * _HOP:  # not worth the trouble yet
            return
        self._draw()

    def _draw(self) -> None:
        """Draw the frames whose samples are all there."""
        samples = np.concatenate(self._waiting)
        count = (len(samples) - self._analysis.window) // _HOP + 1
        if count < 1:
            self._waiting = [samples]
            return
        decibels = self._analysis.decibels(samples, _HOP)
        places = np.searchsorted(self._edges, np.arange(self._frame, self._frame + count), side="right") - 1
        begins = np.flatnonzero(np.diff(places, prepend=-1))  # where a new column does
        power = 10.0 ** (decibels.astype(np.float64) / 10)
        self._columns[:, places[begins]] += np.add.reduceat(power, begins, axis=1)
        self._frame += count
        self._waiting = [samples[count * _HOP :].copy()]

    def picture(self) -> np.ndarray:
        """The picture, once all has been heard; see :func:`mel_picture`.

        Raises:
            ValueError: something is lacking.
        """
        if self._heard != self._length:
            raise ValueError(f"{self._heard} samples of a song of {self._length}")
        if self._frame < self._edges[-1]:
            self._waiting.append(np.zeros(self._analysis.window // 2, np.float32))
            self._draw()
        frames = 10 * np.log10(self._columns / np.diff(self._edges))
        loudest = float(frames.max())
        shade = np.clip((frames - loudest) / _RANGE_DB + 1, 0, 1) if loudest > _FLOOR_DB + 1 else np.zeros_like(frames)
        steps = np.linspace(0, 1, len(_COLOURS))
        picture = np.stack([np.interp(shade, steps, _COLOURS[:, colour]) for colour in range(3)], axis=-1)
        return np.ascontiguousarray(picture[::-1].round().astype(np.uint8))


def mel_picture(audio: np.ndarray, sample_rate: int, *, height: int = 128, max_width: int = 1024) -> np.ndarray:
    """A colour picture of the log-mel spectrogram: time to the right, low frequencies at the bottom.

    Args:
        audio: ``[T]``.
        sample_rate: Hz.
        height: mel bands, one a row.
        max_width: columns at most; a longer song is drawn with the mean power of the frames that share a column.

    Returns:
        uint8 ``[height, width, 3]``. The loudest place is brightest, 80 dB less is black; silence is all black.
    """
    samples = np.asarray(audio).reshape(-1)
    picture = MelPicture(sample_rate, len(samples), height=height, max_width=max_width)
    picture.append(samples)
    return picture.picture()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture, uint8 ``[H, W, 3]``, as a PNG file (W3C PNG specification: 8-bit RGB).

    Raises:
        ValueError: another shape or type.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"a picture must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    height, width, _ = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = picture.astype(np.uint8).reshape(height, -1)
    # Filter "up": each row as its difference from the one above, which compresses spectrograms well.
    filtered = np.vstack([rows[:1], rows[1:] - rows[:-1]])
    content = np.hstack([np.full((height, 1), 2, np.uint8), filtered]).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(content, 9))
        + _chunk(b"IEND", b"")
    )


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture, uint8 ``[H, W, 3]``, as a PNG file, in one step; folders above it are made."""
    content = png_bytes(picture)
    with whole_file(path) as file:
        file.write(content)
