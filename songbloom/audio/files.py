"""Audio files: find them, say how long they are, read any stretch of them at any sample rate, and write WAV.

Reading is exact: ``read_audio(path, offset=o, length=n)`` gives bit for bit the slice ``[o : o + n]`` of the whole
file, in every format and at every sample rate. :mod:`songbloom.audio.sources` does it for decoding; for resampling, the
song is cut into blocks on a grid that falls on whole samples of both rates, and each block is resampled with the same
context around it, however it is asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import gcd
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import soxr

from songbloom.audio.decoding import GRID, Source, SourceError
from songbloom.audio.mix import match_channels
from songbloom.audio.sources import open_source
from songbloom.errors import UserError, reason
from songbloom.files import unwritable, whole_file

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac")

_QUALITY = "VHQ"  # soxr's 28-bit setting; in blocks it costs no more than the 20-bit one (both about 4 ms a second)
_CONTEXT = 512  # samples of the lower rate around each block; beyond about 128 nothing changes any more
ABSURD = (
    1e6  # 120 dB above full scale: a value from here on is no audio, but damage in a file of floating-point numbers
)


class AudioError(UserError):
    """An audio file cannot be read; the message names the file and says why."""


class AudioInfo(NamedTuple):
    """Exact facts about an audio file: what can be read, not what its header claims."""

    duration: float  # seconds
    sample_rate: int  # Hz
    channels: int
    frames: int  # samples a channel, at the file's own rate


@contextmanager
def _opened(path: str | Path) -> Iterator[Source]:
    path = Path(path)
    try:
        source = open_source(path)
        try:
            if source.frames < 1:
                raise SourceError("holds no samples")
            yield source
        finally:
            source.close()
    except (SourceError, OSError) as error:
        why = reason(error)
        raise AudioError(f"{path}: {why[:1].lower()}{why[1:]}") from error


def find_audio(folder: str | Path) -> list[Path]:
    """Every file below ``folder`` whose suffix is in :data:`AUDIO_SUFFIXES` (in any case), sorted.

    Hidden files and folders are left out (``._song.mp3`` is no song); symbolic links to folders are followed.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root, name) for name in names if not name.startswith(".") and name.lower().endswith(AUDIO_SUFFIXES)
        ]
    return sorted(found)


def probe(path: str | Path) -> AudioInfo:
    """How long a file is, exactly, and its rate and channels.

    A header that promises more than the file holds is not believed; encoder delay and padding do not count.

    Raises:
        AudioError: it is missing, empty, or no audio that can be read.
    """
    with _opened(path) as source:
        return AudioInfo(source.frames / source.sample_rate, source.sample_rate, source.channels, source.frames)


def length_at(frames: int, from_rate: int, to_rate: int) -> int:
    """Samples of a song of ``frames`` samples after resampling: durations are truncated to whole samples."""
    return frames * to_rate // from_rate


def read_audio(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    offset: int = 0,
    length: int | None = None,
    channels: int | None = None,
    pad: bool = False,
) -> np.ndarray:
    """Read samples ``[offset, offset + length)`` of a file at ``sample_rate``.

    Args:
        path: an audio file of any kind in :data:`AUDIO_SUFFIXES`.
        sample_rate: Hz; None keeps the file's own.
        offset: first sample, at ``sample_rate``.
        length: number of samples, at ``sample_rate``; None reads to the end.
        channels: mixes or copies channels to this many (:func:`songbloom.audio.mix.match_channels`); None keeps them.
        pad: fill what the file lacks with zeros up to ``length``; else the result is shorter.

    Returns:
        float32 ``[T, C]``, bit-equal to the slice of the whole file.

    Raises:
        AudioError: the file is missing, empty, no audio, or damaged in the stretch that was asked for.
        ValueError: a negative offset or length, or ``pad`` without ``length``.
    """
    if offset < 0 or (length is not None and length < 0) or (pad and length is None):
        raise ValueError(f"offset {offset}, length {length}: both must be at least 0, and pad needs a length")
    with _opened(path) as source:
        rate = sample_rate or source.sample_rate
        total = length_at(source.frames, source.sample_rate, rate)
        stop = max(offset, total if length is None else min(total, offset + length))
        early = channels if channels is not None and channels < source.channels else None
        samples = _read(source, rate, offset, stop, early)
    sound = np.abs(samples) < ABSURD  # false for NaN
    if not sound.all():
        where = (offset + int(np.argmin(sound.all(axis=1)))) / rate
        raise AudioError(f"{path}: is damaged near {where:.2f} s (values that are no audio)")
    if channels is not None and samples.shape[1] != channels:
        samples = match_channels(samples, channels)
    if pad and length is not None and len(samples) < length:
        samples = np.concatenate([samples, np.zeros((length - len(samples), samples.shape[1]), np.float32)])
    return samples


def _read(source: Source, rate: int, start: int, stop: int, channels: int | None) -> np.ndarray:
    """``[start, stop)`` at ``rate``; ``channels``, if given, are mixed before resampling, which is cheaper."""

    def native(first: int, last: int) -> np.ndarray:
        samples = source.read(first, last)
        return samples if channels is None else match_channels(samples, channels)

    if rate == source.sample_rate:
        return native(min(start, source.frames), min(stop, source.frames))
    shared = gcd(rate, source.sample_rate)
    step_in, step_out = source.sample_rate // shared, rate // shared  # both rates meet every step_in native samples
    steps = max(1, GRID // step_in)  # a block
    context = -(-_CONTEXT * max(1.0, step_in / step_out) // step_in) * step_in
    result = np.zeros((stop - start, channels or source.channels), np.float32)
    for block in range(start // (steps * step_out), -(-stop // (steps * step_out))):
        begin = max(0, block * steps * step_in - int(context))
        end = min(source.frames, (block + 1) * steps * step_in + int(context))
        resampled = soxr.resample(native(begin, end), source.sample_rate, rate, quality=_QUALITY)
        origin = begin // step_in * step_out  # the output sample that resampled[0] is
        low = max(start, block * steps * step_out)
        high = min(stop, (block + 1) * steps * step_out)
        result[low - start : high - start] = resampled[low - origin : high - origin]
    return result


_WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # RIFF, one PCM format chunk, the head of one data chunk
WAV_LIMIT = 0xFFFFFFFF - (_WAV_HEADER.size - 8)  # bytes of samples; the header's sizes are numbers of 32 bits


class WaveWriter:
    """A 16-bit WAV file that is written piece by piece; the file is there when all is written, or not at all.

    A context manager. While it is open the samples lie in a hidden file beside ``path``; where the block ends without
    an exception, the header gets its lengths and the file its name.

    Args:
        path: where; folders above it are made.
        sample_rate: Hz.
        channels: of every piece.

    Attributes:
        frames: samples a channel that have been written.

    Raises:
        UserError: on entering, appending or leaving: it cannot be written (disk full, no permission), or it is longer
            than a WAV file can be (4 GB: 6.8 hours of stereo at 44.1 kHz). What was there before is untouched.
    """

    def __init__(self, path: str | Path, sample_rate: int, channels: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"{channels} channels: a WAV file needs at least 1")
        self.path = Path(path)
        self.sample_rate = int(sample_rate)
        self.channels = channels
        self.frames = 0
        self._file: BinaryIO | None = None
        self._whole: AbstractContextManager[BinaryIO] = whole_file(self.path)

    def __enter__(self) -> Self:
        self._file = self._whole.__enter__()
        self._put(self._header())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if kind is None and file is not None:
            try:
                file.seek(0)
                file.write(self._header())
                file.flush()
            except OSError as problem:
                self._whole.__exit__(type(problem), problem, problem.__traceback__)
        self._whole.__exit__(kind, error, trace)

    def append(self, audio: np.ndarray) -> None:
        """Write what comes next: ``[T, channels]`` (or ``[T]`` of one), clamped to ±1; what is no number is silence.

        Raises:
            ValueError: another shape, or the file isn't open.
            UserError: as the class says.
        """
        samples = np.asarray(audio)
        samples = samples[:, None] if samples.ndim == 1 else samples
        if samples.ndim != 2 or samples.shape[1] != self.channels:
            raise ValueError(f"audio to write must be [T, {self.channels}], not {list(np.shape(audio))}")
        frames = self.frames + len(samples)
        if frames * self.channels * 2 > WAV_LIMIT:
            hours = WAV_LIMIT / (self.sample_rate * self.channels * 2 * 3600)
            raise UserError(f"{self.path}: a WAV file holds 4 GB, which is {hours:.1f} hours here; write shorter songs")
        samples = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
        self._put(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
        self.frames = frames

    def _header(self) -> bytes:
        frame = 2 * self.channels
        size = self.frames * frame
        rates = self.sample_rate, self.sample_rate * frame
        head = b"RIFF", size + _WAV_HEADER.size - 8, b"WAVE", b"fmt ", 16, 1, self.channels
        return _WAV_HEADER.pack(*head, *rates, frame, 16, b"data", size)

    def _put(self, content: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self.path}: is not open; append inside the writer's with block")
        try:
            self._file.write(content)
        except OSError as error:
            raise unwritable(self.path, error) from error


def write_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write float audio as a 16-bit WAV file, in one step: the file is either whole or not there.

    Args:
        path: where; folders above it are made.
        audio: ``[T]`` or ``[T, C]``, clamped to ±1; values that are no numbers become silence.
        sample_rate: Hz.

    Raises:
        ValueError: another shape.
        UserError: it cannot be written; what was there before is untouched.
    """
    samples = np.asarray(audio)
    if samples.ndim not in (1, 2) or 0 in samples.shape[1:]:
        raise ValueError(f"audio to write must be [T] or [T, C], not {list(samples.shape)}")
    with WaveWriter(path, sample_rate, 1 if samples.ndim == 1 else samples.shape[1]) as writer:
        writer.append(samples)
