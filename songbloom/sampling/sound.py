"""The sound of an item on disk, written, drawn and read piece by piece: a long song takes no more memory than a short.

item_{i}.wav, item_{i}.png     sound and its spectrogram
"""

from __future__ import annotations

import wave
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from songbloom.audio.files import WaveWriter
from songbloom.audio.mel import MelPicture, write_png
from songbloom.sampling.page import WAVE_BINS, wave_path
from songbloom.vqvae.vqvae import VQVAE

PIECE_SECONDS = 2.0  # decoded at once; with 6 the peak still crept up by a tenth from 20 seconds of song to 240
_BLOCK = 1 << 16  # samples that are read of a WAV file at once


class Heard(NamedTuple):
    """What a page tells of a sound file; nothing of one that is gone or no 16-bit WAV."""

    seconds: float = 0.0
    wave: str = ""  # :func:`songbloom.sampling.page.wave_path`


def decoded(vqvae: VQVAE, codes: Sequence[Tensor], level: int) -> Iterator[Tensor]:
    """The sound of codes ``[1, …]`` of the levels from ``level`` up (only the first are looked at), in short pieces."""
    piece = max(1, int(PIECE_SECONDS * vqvae.sample_rate) // vqvae.hop_lengths[level])
    return vqvae.decode_pieces(codes, start_level=level, piece=piece)


def write_item(folder: Path, index: int, pieces: Iterable[Tensor], length: int, sample_rate: int) -> Iterator[Tensor]:
    """Write ``item_{index}.wav`` and ``item_{index}.png``, and hand the pieces on.

    Args:
        folder: where.
        index: the item's number.
        pieces: of its sound, ``[1, t, 1]``, from the beginning on.
        length: samples of them all.
        sample_rate: Hz.

    Raises:
        UserError: a file cannot be written.
    """
    picture = MelPicture(sample_rate, length)
    with WaveWriter(folder / f"item_{index}.wav", sample_rate) as writer:
        for piece in pieces:
            samples = piece[0, :, 0].cpu().numpy()
            writer.append(samples)
            picture.append(samples)
            yield piece
    write_png(folder / f"item_{index}.png", picture.picture())


def heard(path: Path) -> Heard:
    """The length and the waveform of a WAV file that :func:`write_item` wrote."""
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2 or not file.getnframes():
                return Heard()
            return Heard(file.getnframes() / file.getframerate(), wave_path(_envelope(file)))
    except (OSError, EOFError, wave.Error):
        return Heard()


def _envelope(file: wave.Wave_read) -> NDArray[np.float32]:
    """The lowest and the highest sample of each column of a waveform in turn, whose waveform is that of the file."""
    length = file.getnframes()
    edges = np.linspace(0, length, min(WAVE_BINS, length) + 1).astype(int)
    low, high = np.full(len(edges) - 1, np.inf, np.float32), np.full(len(edges) - 1, -np.inf, np.float32)
    for start in range(0, length, _BLOCK):
        frames = np.frombuffer(file.readframes(_BLOCK), "<i2").reshape(-1, file.getnchannels())[:, 0]
        if not len(frames):
            raise EOFError("the file ends before its sound does")
        samples = frames.astype(np.float32) / 32768
        columns = np.searchsorted(edges, np.arange(start, start + len(samples)), side="right") - 1
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        places = columns[begins]
        low[places] = np.minimum(low[places], np.minimum.reduceat(samples, begins))
        high[places] = np.maximum(high[places], np.maximum.reduceat(samples, begins))
    return np.stack([low, high], axis=1).reshape(-1)
