"""Filter banks and short-time spectra for feature extractors; everything float32, on the audio's own device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SECONDS_A_PIECE = 20  # of audio whose spectrum is held at a time


def _mel(hertz: Tensor) -> Tensor:
    return 2595.0 * torch.log10(1.0 + hertz / 700.0)


def mel_filters(sample_rate: int, n_fft: int, bands: int, lowest: float = 0.0, highest: float | None = None) -> Tensor:
    """Triangular filters equally spaced on HTK's mel scale, each with a peak of 1.

    Source: Young et al., *The HTK Book*, section 5.4.

    Returns:
        ``[n_fft // 2 + 1, bands]``, float32.
    """
    highest = sample_rate / 2 if highest is None else highest
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    ends = _mel(torch.tensor([lowest, highest], dtype=torch.float64))
    centres = torch.linspace(float(ends[0]), float(ends[1]), bands + 2)
    centres = 700.0 * (10.0 ** (centres / 2595.0) - 1.0)
    steps = centres.diff()
    distances = centres[None] - frequencies[:, None]
    rising, falling = -distances[:, :-2] / steps[:-1], distances[:, 2:] / steps[1:]
    return torch.minimum(rising, falling).clamp_min(0.0)


def power_frames(padded: Tensor, n_fft: int, hop_length: int, first: int, last: int) -> Tensor:
    """Power spectra of frames ``first`` to ``last`` (excluded) of already padded audio ``[N, P]``.

    Frame ``i`` is the ``n_fft`` samples from ``i * hop_length`` on, under a periodic Hann window.

    Returns:
        ``[N, last - first, n_fft // 2 + 1]``.
    """
    part = padded[:, first * hop_length : (last - 1) * hop_length + n_fft]
    window = torch.hann_window(n_fft, device=padded.device)
    spectrum = torch.fft.rfft(part.unfold(-1, n_fft, hop_length) * window)
    return spectrum.real.square() + spectrum.imag.square()


def banded_power(padded: Tensor, filters: Tensor, n_fft: int, hop_length: int, frames: int, piece: int) -> Tensor:
    """:func:`power_frames` through ``filters [n_fft // 2 + 1, bands]``, ``piece`` frames at a time.

    Returns:
        ``[N, frames, bands]``.
    """
    made = padded.new_empty(padded.shape[0], frames, filters.shape[1])
    for first in range(0, frames, piece):
        last = min(first + piece, frames)
        made[:, first:last] = power_frames(padded, n_fft, hop_length, first, last) @ filters
    return made


def reflected(audio: Tensor, margin: int) -> Tensor:
    """``[N, T]`` with ``margin`` samples mirrored at both ends; shorter audio is first filled up with silence."""
    audio = F.pad(audio, (0, max(0, margin + 1 - audio.shape[1])))
    return F.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0]
