"""Channels: down to mono for the models, and between layouts for files."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)  # a NumPy array or a tensor

# Into stereo: the left speaker's weights (the right one's are mirrored), ITU-R BS.775: centre and surrounds at -3 dB,
# the low-frequency channel left out. The order of channels is that of WAVE and FFmpeg.
_HALF = 0.7071067811865476
_TO_LEFT: dict[int, tuple[float, ...]] = {
    3: (1, 0, _HALF),  # L R C
    4: (1, 0, _HALF, 0),  # L R, rear L R
    5: (1, 0, _HALF, _HALF, 0),  # L R C, rear L R
    6: (1, 0, _HALF, 0, _HALF, 0),  # 5.1: L R C LFE, rear L R
    8: (1, 0, _HALF, 0, _HALF, 0, _HALF, 0),  # 7.1: L R C LFE, rear L R, side L R
}


def to_mono(audio: Array, mix: Any = 0.5) -> Array:
    """``mix * left + (1 - mix) * right`` of a batch (specification of the Jukebox trainer's preprocessing).

    Args:
        audio: ``[N, T, C]`` with one or two channels, NumPy or torch.
        mix: a number, or one an item as ``[N]`` or ``[N, 1]``; 0.5 is the mean, a random draw is ``aug_blend``.

    Returns:
        ``[N, T, 1]``; one channel comes back as it is.

    Raises:
        ValueError: more than two channels, or another number of dimensions.
    """
    if audio.ndim != 3 or audio.shape[2] not in (1, 2):
        raise ValueError(f"audio to mix must be [N, T, 1] or [N, T, 2], not {list(audio.shape)}")
    if audio.shape[2] == 1:
        return audio
    if not isinstance(mix, (int, float)) and mix.ndim:
        mix = mix.reshape(-1, 1)
    mono = mix * audio[:, :, 0] + (1 - mix) * audio[:, :, 1]
    return mono[:, :, None]


def _mirrored(weights: tuple[float, ...]) -> tuple[float, ...]:
    """The right speaker's weights: left and right of each pair change places, centre and bass stay."""
    order = {3: (1, 0, 2), 4: (1, 0, 3, 2), 5: (1, 0, 2, 4, 3), 6: (1, 0, 2, 3, 5, 4), 8: (1, 0, 2, 3, 5, 4, 7, 6)}
    return tuple(weights[i] for i in order[len(weights)])


def match_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """``[T, C]`` → ``[T, channels]``, float32.

    One channel is copied to all. Two become one as their mean. Surround layouts of 3, 4, 5, 6 (5.1) and 8 (7.1)
    channels become two by ITU-R BS.775, scaled so that nothing clips; other numbers become one as their mean.

    Raises:
        ValueError: fewer than one channel is wanted.
    """
    have = audio.shape[1]
    if channels < 1:
        raise ValueError(f"{channels} channels of audio cannot be made")
    if have == channels:
        return audio
    if have == 1:
        return np.repeat(audio, channels, axis=1)
    if have in _TO_LEFT and channels < have:
        left = _TO_LEFT[have]
        weights = np.asarray([left, _mirrored(left)], np.float32) / np.float32(sum(left))
        audio = audio @ weights.T
        return match_channels(audio.astype(np.float32, copy=False), channels)
    mono = audio.mean(axis=1, keepdims=True, dtype=np.float32)
    return mono if channels == 1 else np.repeat(mono, channels, axis=1)
