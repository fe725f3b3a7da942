"""How loud a data set is: what the VQ-VAE's losses are divided by.

Source: Dhariwal et al. 2020, *Jukebox*, appendix B.1. One pass over some minutes of audio, before training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from songbloom.audio.spectral import DEFAULT_STFT, STFT
from songbloom.distributed import gather_objects, world
from songbloom.errors import UserError

ITEM_STEP = 16  # published models looked at each sixteenth item
PADDINGS = ("reflect", "constant")


class AudioDataset(Protocol):
    """Items are audio ``[T, C]``, or mappings with such audio under ``"audio"``; every item of the same size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def visited(count: int, step: int = ITEM_STEP) -> Iterator[int]:
    """Each of ``count`` items once: 0, step, 2 * step, …, then 1, step + 1, … and so on."""
    for first in range(min(step, count)):
        yield from range(first, count, step)


def measure_bandwidth(
    dataset: AudioDataset,
    *,
    sample_rate: int,
    duration: float = 600.0,
    step: int = ITEM_STEP,
    padding: str = "reflect",
    stft: STFT = DEFAULT_STFT,
) -> dict[str, float]:
    """Mean magnitude, variance, and mean spectral norm of the data.

    Items are visited in the order of :func:`visited` until they hold ``duration`` seconds (channels counted apart), or
    all were seen. Ranks share the same visits and add up in the order of visits, so their number changes nothing, not
    even the last bit.

    Args:
        dataset: audio to measure; reading item 0 on every rank tells the size of all.
        sample_rate: of the audio, in Hz.
        duration: seconds to measure; published models used 600 for a VQ-VAE, 1 for a prior.
        step: distance of visited items.
        padding: how a spectrogram's ends are padded, ``"reflect"`` (as published models were measured) or
            ``"constant"`` (zeros).
        stft: sizes of the spectral norm's transform.

    Returns:
        ``l1`` = mean of ``|x|``; ``l2`` = variance; ``spec`` = mean over items of the Frobenius norm of the magnitude
        spectrogram of the mean over channels. Computed in float64.

    Raises:
        UserError: there is nothing to measure, or nothing but silence.
    """
    if padding not in PADDINGS:
        raise UserError(f"padding is {padding!r}: choose one of {', '.join(PADDINGS)}")
    count = len(dataset)
    if not count:
        raise UserError("the bandwidth of an empty data set cannot be measured: check audio_files_dir or data_jsonl")
    first = _audio_of(dataset, 0)
    wanted = min(count, max(1, math.ceil(duration * sample_rate / first.size)))
    order = list(visited(count, step))[:wanted]
    place = world()
    mine = {}
    for visit in range(place.rank, wanted, place.size):
        audio = first if order[visit] == 0 else _audio_of(dataset, order[visit])
        mine[visit] = _measure(audio, stft, padding)
    rows = {visit: row for share in gather_objects(mine) for visit, row in share.items()}
    size, total, magnitude, square, spectral = (
        math.fsum(rows[visit][column] for visit in range(wanted)) for column in range(5)
    )
    variance = square / size - (total / size) ** 2
    if variance <= 0.0 or spectral == 0.0:
        raise UserError(f"{wanted} items of the data set hold nothing but silence: check the audio files")
    return {"l1": magnitude / size, "l2": variance, "spec": spectral / wanted}


def _audio_of(dataset: AudioDataset, index: int) -> np.ndarray:
    item = dataset[index]
    audio = np.asarray(item["audio"] if isinstance(item, dict) else item, dtype=np.float64)
    return audio[:, None] if audio.ndim == 1 else audio


def _measure(audio: np.ndarray, stft: STFT, padding: str) -> tuple[float, float, float, float, float]:
    """Size, sum, sum of magnitudes, sum of squares and spectral norm of one item ``[T, C]``."""
    norm = spectral_norm(audio.mean(axis=1), stft, padding)
    sums = float(audio.sum()), float(np.abs(audio).sum()), float(np.square(audio).sum())
    return float(audio.size), *sums, norm


def spectral_norm(audio: np.ndarray, stft: STFT, padding: str) -> float:
    """Frobenius norm of the magnitude spectrogram of ``audio [T]``, in float64.

    Raises:
        UserError: the audio is too short to be padded by reflection.
    """
    half = stft.n_fft // 2
    if padding == "reflect" and len(audio) <= half:
        raise UserError(
            f"items of {len(audio)} samples are too short for an STFT of size {stft.n_fft}: use more than {half}"
        )
    padded = np.pad(audio, half, mode="reflect" if padding == "reflect" else "constant")
    left = (stft.n_fft - stft.window_size) // 2
    frames = np.lib.stride_tricks.sliding_window_view(padded, stft.n_fft)[:: stft.hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(stft.window_size) / stft.window_size)
    total = 0.0
    for start in range(0, len(frames), 256):  # a few megabytes at once, however long the item
        part = frames[start : start + 256, left : left + stft.window_size] * window
        spectrum = np.fft.rfft(part, n=stft.n_fft)
        total += float(np.square(spectrum.real).sum() + np.square(spectrum.imag).sum())
    return math.sqrt(total)
