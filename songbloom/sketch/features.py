"""What a sketch is made of: the face of feature extractors.

An extractor hears audio at any sample rate with any number of channels, and gives 25 frames a second. A sketch of ``T``
samples has ``T * 25 // sample_rate`` frames, the number of whole frames, which is also how many latents the VAE makes
of them; frame ``i`` is about the audio from ``i / 25`` to ``(i + 1) / 25`` seconds.

Those that there are: :mod:`songbloom.sketch.extractors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from songbloom.errors import UserError

FRAME_RATE = 25


def frame_count(samples: int, sample_rate: int) -> int:
    """Frames of so many samples: the whole ones, ``samples * 25 // sample_rate``."""
    return samples * FRAME_RATE // sample_rate


def samples_of(frames: int, sample_rate: int) -> int:
    """The fewest samples that have so many frames."""
    return -(-frames * sample_rate // FRAME_RATE)


def to_mono_at(audio: Tensor, sample_rate: int, wanted: int) -> Tensor:
    """``[N, T, C]`` → the mean of the channels at another rate, float32 ``[N, ceil(T * wanted / sample_rate)]``.

    Raises:
        UserError: another shape, a sample rate that is none, or values that are no audio.
    """
    if audio.ndim != 3 or audio.shape[2] < 1:
        raise UserError(f"audio of shape {list(audio.shape)}: a sketch is made of [batch, time, channels]")
    if sample_rate < FRAME_RATE:
        raise UserError(f"a sample rate of {sample_rate} Hz: give that of the audio, at least {FRAME_RATE}")
    mono = audio.float().mean(dim=2)
    if not mono.isfinite().all():
        raise UserError("audio with values that are no numbers: no sketch can be made of it")
    if sample_rate == wanted:
        return mono
    length = -(-mono.shape[1] * wanted // sample_rate)
    made = np.zeros((len(mono), length), np.float32)
    for row, samples in enumerate(mono.cpu().numpy()):
        if samples.size:
            resampled = soxr.resample(samples, sample_rate, wanted, quality="VHQ")[:length]
            made[row, : len(resampled)] = resampled
    return torch.from_numpy(made).to(audio.device)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights: of their names, shapes and values, wherever they lie and in whatever order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


class Features(nn.Module):
    """The base of extractors.

    Attributes:
        name: what codebooks call it; extractors that give the same features share it.
        width: of a feature.
        sample_rate: what it hears inside, Hz.
        layer: which of its states the features are, for those that have several.
    """

    name = ""
    width: int
    sample_rate: int
    layer: int | None = None

    def hear(self, mono: Tensor) -> Tensor:
        """``[N, T]`` at ``sample_rate`` → features, at least ``frame_count(T, sample_rate)`` frames of them."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A fingerprint of the weights that make the features."""
        return weights_digest(self.state_dict())

    def identity(self) -> dict[str, Any]:
        """What a codebook remembers of the features that it was made for: plain data."""
        return {
            "name": self.name,
            "layer": self.layer,
            "width": self.width,
            "sample_rate": self.sample_rate,
            "weights": self.fingerprint(),
        }

    @property
    def device(self) -> torch.device:
        """Where it computes. Built-in features without a network have buffers alone."""
        return next((each.device for each in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @torch.no_grad()
    def extract(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Features of audio.

        Args:
            audio: ``[N, T, C]``, of any length; the channels are averaged.
            sample_rate: of it, Hz.

        Returns:
            float32 ``[N, T * 25 // sample_rate, width]``, on the extractor's device.

        Raises:
            UserError: no such audio.
        """
        frames = frame_count(audio.shape[1] if audio.ndim == 3 else 0, sample_rate)
        mono = to_mono_at(audio, sample_rate, self.sample_rate).to(self.device)
        if not frames or not len(mono):
            return torch.zeros(len(mono), frames, self.width, device=self.device)
        return self.hear(mono)[:, :frames].float()
