"""Log-mel spectrograms and their pictures, for logs and pages."""

from __future__ import annotations

import struct
import warnings
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


def log_mel(audio: np.ndarray, sample_rate: int, *, bands: int = 128, hop_length: int = 512) -> np.ndarray:
    """Power in mel bands, in decibels relative to a full-scale power of 1.

    Args:
        audio: ``[T]``, any length; shorter than a window is filled with silence.
        sample_rate: Hz. The window is about 93 ms at any rate.
        bands: mel bands from 0 Hz to half the sample rate (Slaney's scale, librosa's default).
        hop_length: samples between frames.

    Returns:
        float32 ``[bands, 1 + T // hop_length]``, low frequencies first; at least -100 dB.
    """
    import librosa  # takes about a second to import

    samples = np.nan_to_num(np.asarray(audio, np.float32).reshape(-1))
    n_fft = 2 ** max(5, round(np.log2(0.093 * sample_rate)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a band narrower than the resolution stays empty; a picture may show that
        power = librosa.feature.melspectrogram(
            y=samples, sr=sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=bands, pad_mode="constant"
        )
    return np.maximum(librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None), _FLOOR_DB).astype(np.float32)


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
    frames = log_mel(audio, sample_rate, bands=height)
    if frames.shape[1] > max_width:
        edges = np.linspace(0, frames.shape[1], max_width + 1).astype(int)[:-1]
        widths = np.diff(np.append(edges, frames.shape[1]))
        power = np.add.reduceat(10.0 ** (frames.astype(np.float64) / 10), edges, axis=1) / widths
        frames = 10 * np.log10(power)
    loudest = float(frames.max())
    shade = np.clip((frames - loudest) / _RANGE_DB + 1, 0, 1) if loudest > _FLOOR_DB + 1 else np.zeros_like(frames)
    steps = np.linspace(0, 1, len(_COLOURS))
    picture = np.stack([np.interp(shade, steps, _COLOURS[:, colour]) for colour in range(3)], axis=-1)
    return np.ascontiguousarray(picture[::-1].round().astype(np.uint8))


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
