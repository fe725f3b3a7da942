"""The sound of an item on disk, written, drawn and read piece by piece: a long song takes no more memory than a short.

item_{i}.wav, item_{i}.png     sound (or .flac, .mp3) and its spectrogram
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor

from songbloom.audio.files import WaveWriter
from songbloom.audio.mel import MelPicture, write_png
from songbloom.errors import UserError, reason
from songbloom.files import written_beside
from songbloom.sampling.page import WAVE_BINS, wave_path

FORMATS = ("wav", "flac", "mp3")
RATES_OF_MP3 = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
PIECE_SECONDS = 2.0  # decoded at once; with 6 the peak still crept up by a tenth from 20 seconds of song to 240
_BLOCK = 1 << 16  # samples that are read of a WAV file at once


class Heard(NamedTuple):
    """What a page tells of a sound file; nothing of one that is gone or no 16-bit WAV."""

    seconds: float = 0.0
    wave: str = ""  # :func:`songbloom.sampling.page.wave_path`


class Codec(Protocol):
    """What is asked of a codec here; those of both families have it."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def hop_lengths(self) -> Sequence[int]:
        """Samples a code, a level."""
        ...

    @property
    def decode_pieces(self) -> Callable[..., Iterator[Tensor]]:
        """From codes, a level and ``piece=`` to the sound ``[N, t, channels]`` in pieces of so many codes."""
        ...


def decoded(vqvae: Codec, codes: Sequence[Tensor], level: int) -> Iterator[Tensor]:
    """The sound of codes ``[1, …]`` of the levels from ``level`` up (only the first are looked at), in short pieces."""
    piece = max(1, int(PIECE_SECONDS * vqvae.sample_rate) // vqvae.hop_lengths[level])
    return vqvae.decode_pieces(codes, level, piece=piece)


class SoundWriter:
    """A FLAC or MP3 file that is written piece by piece, as :class:`songbloom.audio.files.WaveWriter` writes WAV.

    Args:
        path: where; its suffix tells the format.
        sample_rate: Hz.
        channels: of every piece.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, sample_rate: int, channels: int = 1) -> None:
        self.path, self.sample_rate, self.channels = path, sample_rate, channels
        self._beside = written_beside(path)
        self._file: soundfile.SoundFile | None = None

    def __enter__(self) -> SoundWriter:
        place = self._beside.__enter__()
        kind = self.path.suffix[1:].upper()
        subtype = "MPEG_LAYER_III" if kind == "MP3" else "PCM_16"
        try:
            self._file = soundfile.SoundFile(
                str(place), "w", samplerate=self.sample_rate, channels=self.channels, format=kind, subtype=subtype
            )
        except (soundfile.LibsndfileError, OSError) as error:
            self._beside.__exit__(type(error), error, error.__traceback__)
            raise UserError(f"{self.path}: cannot be written ({reason(error)})") from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._beside.__exit__(kind, error, trace)

    def append(self, audio: NDArray[np.float32]) -> None:
        """Write what comes next: ``[T, channels]``, clamped to ±1; what is no number is silence."""
        assert self._file is not None
        try:
            self._file.write(np.clip(np.nan_to_num(audio), -1.0, 1.0))
        except (soundfile.LibsndfileError, OSError) as error:
            raise UserError(f"{self.path}: cannot be written ({reason(error)}); free space or change --name") from error


def check_format(kind: str, sample_rate: int) -> None:
    """Refuse a format that cannot hold sound of this rate.

    Raises:
        UserError: MP3 knows certain rates only.
    """
    if kind == "mp3" and sample_rate not in RATES_OF_MP3:
        raise UserError(f"--output_format=mp3: an MP3 file cannot have the model's {sample_rate} Hz; give wav or flac")


def item_file(folder: Path, index: int) -> Path:
    """The sound of an item in the folder of a level, in whatever format it is; the WAV's place where there is none."""
    found = (folder / f"item_{index}.{kind}" for kind in FORMATS)
    return next((path for path in found if path.is_file()), folder / f"item_{index}.wav")


def write_item(
    folder: Path,
    index: int,
    pieces: Iterable[Tensor],
    length: int,
    sample_rate: int,
    *,
    channels: int = 1,
    kind: str = "wav",
) -> Iterator[Tensor]:
    """Write ``item_{index}.wav`` and ``item_{index}.png``, and hand the pieces on.

    Args:
        folder: where.
        index: the item's number.
        pieces: of its sound, ``[1, t, channels]``, from the beginning on.
        length: samples of them all.
        sample_rate: Hz.
        channels: of the sound.
        kind: ``wav``, ``flac`` or ``mp3``.

    Raises:
        UserError: a file cannot be written.
    """
    picture = MelPicture(sample_rate, length)
    path = folder / f"item_{index}.{kind}"
    with (WaveWriter if kind == "wav" else SoundWriter)(path, sample_rate, channels) as writer:
        for piece in pieces:
            samples = piece[0].cpu().numpy()
            writer.append(samples)
            picture.append(samples)
            yield piece
    write_png(folder / f"item_{index}.png", picture.picture())


def heard(path: Path) -> Heard:
    """The length and the waveform of a file that :func:`write_item` wrote."""
    if path.suffix != ".wav":
        return _heard_of_any(path)
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2 or not file.getnframes():
                return Heard()
            return Heard(file.getnframes() / file.getframerate(), wave_path(_envelope(file)))
    except (OSError, EOFError, wave.Error):
        return Heard()


def _heard_of_any(path: Path) -> Heard:
    try:
        with soundfile.SoundFile(str(path)) as file:
            if not file.frames:
                return Heard()
            blocks = (block[:, 0] for block in file.blocks(_BLOCK, dtype="float32", always_2d=True))
            return Heard(file.frames / file.samplerate, wave_path(_envelope_of(blocks, file.frames)))
    except (soundfile.LibsndfileError, OSError, EOFError):
        return Heard()


def _envelope(file: wave.Wave_read) -> NDArray[np.float32]:
    """The lowest and the highest sample of each column of a waveform in turn, whose waveform is that of the file."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        left = file.getnframes()
        while left:
            frames = np.frombuffer(file.readframes(_BLOCK), "<i2").reshape(-1, file.getnchannels())[:, 0]
            left -= len(frames)
            yield frames.astype(np.float32) / np.float32(32768)
            if not len(frames):
                return

    return _envelope_of(blocks(), file.getnframes())


def _envelope_of(blocks: Iterator[NDArray[np.float32]], length: int) -> NDArray[np.float32]:
    """The same of one channel in blocks, ``length`` samples in all."""
    edges = np.linspace(0, length, min(WAVE_BINS, length) + 1).astype(int)
    low, high = np.full(len(edges) - 1, np.inf, np.float32), np.full(len(edges) - 1, -np.inf, np.float32)
    start = 0
    while start < length:
        samples = next(blocks, np.zeros(0, np.float32))
        samples = samples[: length - start]
        if not len(samples):
            raise EOFError("the file ends before its sound does")
        columns = np.searchsorted(edges, np.arange(start, start + len(samples)), side="right") - 1
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        places = columns[begins]
        low[places] = np.minimum(low[places], np.minimum.reduceat(samples, begins))
        high[places] = np.maximum(high[places], np.maximum.reduceat(samples, begins))
        start += len(samples)
    return np.stack([low, high], axis=1).reshape(-1)
