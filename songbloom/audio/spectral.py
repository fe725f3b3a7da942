"""Spectral distances between waveforms, and the magnitudes they are made of.

Source: Dhariwal et al. 2020, *Jukebox*, section 3.2 and appendix B.1 (spectral loss over several STFT sizes); Arik et
al. 2018, *Fast Spectrogram Inversion using Multi-head Convolutional Neural Networks* (spectral convergence, log
magnitude).

A magnitude spectrogram here is that of a centred STFT: the signal reflected by half a transform at both ends, a
periodic Hann window, zero-padded to the transform's size, nothing normalised, frequencies 0 to Nyquist. Everything runs
in float32 even under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from songbloom.errors import UserError


@dataclass(frozen=True)
class STFT:
    """The sizes of one transform, in samples.

    Attributes:
        n_fft: size of the transform.
        hop_length: samples from frame to frame.
        window_size: samples under the Hann window, at most ``n_fft``.
    """

    n_fft: int
    hop_length: int
    window_size: int

    def __post_init__(self) -> None:
        if not 0 < self.window_size <= self.n_fft or self.hop_length < 1:
            raise UserError(
                f"STFT of size {self.n_fft}, hop {self.hop_length}, window {self.window_size}: "
                "the window must be at least 1 and no longer than the transform, the hop at least 1"
            )


DEFAULT_STFT = STFT(2048, 256, 1536)  # of the single-size loss and of the bandwidth
CONVERGENCE_FLOOR = 2e-3  # spectral convergence of anything quieter than this norm is 0
LOG_FLOOR = 1e-4  # added to magnitudes before their logarithm


def stfts(n_fft: Sequence[int], hop_length: Sequence[int], window_size: Sequence[int]) -> tuple[STFT, ...]:
    """The transforms of the multi-size loss from three lists of one length.

    Raises:
        UserError: the lists differ in length or are empty.
    """
    if not len(n_fft) == len(hop_length) == len(window_size) or not n_fft:
        raise UserError(
            f"multispec_loss_n_fft, _hop_length and _window_size have {len(n_fft)}, {len(hop_length)} and "
            f"{len(window_size)} values: give all three the same number, at least one"
        )
    return tuple(STFT(*sizes) for sizes in zip(n_fft, hop_length, window_size, strict=True))


def _to_mono(audio: Tensor) -> Tensor:
    """``[N, T, C]`` or ``[N, T]`` → float32 ``[N, T]``, channels averaged."""
    return audio.float().mean(dim=-1) if audio.ndim == 3 else audio.float()


def _frame(audio: Tensor, stft: STFT) -> Tensor:
    """The windowless frames ``[N, frames, window_size]`` (a view) of ``audio [N, T]``.

    Only the samples under the window are taken. The zeros that would pad a frame to ``n_fft`` on its left only turn the
    phases, so a transform that pads on the right alone has the same magnitudes.
    """
    half = stft.n_fft // 2
    if audio.shape[-1] <= half:
        raise UserError(
            f"audio of {audio.shape[-1]} samples is too short for an STFT of size {stft.n_fft}, which needs more than "
            f"{half}: use longer samples (sample_length) or smaller multispec_loss_n_fft"
        )
    left = half - (stft.n_fft - stft.window_size) // 2
    frames = audio.shape[-1] // stft.hop_length + 1
    right = (frames - 1) * stft.hop_length - left + stft.window_size - audio.shape[-1]
    padded = F.pad(audio[:, None], (left, max(0, right)), mode="reflect")[:, 0]
    return padded.unfold(-1, stft.window_size, stft.hop_length)[:, :frames]


class _Spectrum(torch.autograd.Function):
    """Frames ``[N, F, window]`` → complex spectrum ``[N, F, n_fft // 2 + 1]``, with the cheap adjoint.

    PyTorch's own derivative of a real transform runs a full complex one; the adjoint is a real inverse transform of the
    gradient, whose inner frequencies are halved because that inverse counts them twice.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, n_fft: int) -> Tensor:
        ctx.n_fft, ctx.window_size = n_fft, frames.shape[-1]
        return torch.fft.rfft(frames, n=n_fft)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0] * 0.5
        gradient[..., 0] *= 2
        if ctx.n_fft % 2 == 0:
            gradient[..., -1] *= 2
        frames = torch.fft.irfft(gradient, n=ctx.n_fft, norm="forward")
        return frames[..., : ctx.window_size], None


def magnitudes(audio: Tensor, stft: STFT = DEFAULT_STFT) -> Tensor:
    """Magnitude spectrogram, differentiable.

    Args:
        audio: ``[N, T, C]`` (channels are averaged) or ``[N, T]``.
        stft: sizes of the transform.

    Returns:
        float32 ``[N, frames, n_fft // 2 + 1]`` with ``T // hop_length + 1`` frames.

    Raises:
        UserError: the audio is shorter than half a transform.
    """
    with torch.autocast(audio.device.type, enabled=False):
        mono = _to_mono(audio)
        window = torch.hann_window(stft.window_size, device=mono.device)
        return _Spectrum.apply(_frame(mono, stft) * window, stft.n_fft).abs()


def _norm(x: Tensor) -> Tensor:
    """Frobenius norm of each item ``[N, …]`` → ``[N]``."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def spectral_loss(x: Tensor, y: Tensor, stft: STFT = DEFAULT_STFT) -> Tensor:
    """Frobenius norm of the difference of magnitudes, one number a sample ``[N]``."""
    return _norm(magnitudes(x, stft) - magnitudes(y, stft))


def multispectral_loss(x: Tensor, y: Tensor, transforms: Sequence[STFT]) -> Tensor:
    """Mean of :func:`spectral_loss` over several transforms, ``[N]``."""
    return torch.stack([spectral_loss(x, y, stft) for stft in transforms]).mean(dim=0)


def convergence(distance: Tensor, norm: Tensor) -> Tensor:
    """Spectral convergence: the distance relative to the target's norm (both ``[N]``), 0 where the target is silent."""
    return (norm > CONVERGENCE_FLOOR) * distance / norm.clamp_min(CONVERGENCE_FLOOR)


def spectral_convergence(x: Tensor, y: Tensor, stft: STFT = DEFAULT_STFT) -> Tensor:
    """:func:`spectral_loss` relative to the norm of the target ``x``'s magnitudes, ``[N]``; 0 where ``x`` is silent."""
    target = magnitudes(x, stft)
    return convergence(_norm(target - magnitudes(y, stft)), _norm(target))


def log_magnitude_loss(x: Tensor, y: Tensor, stft: STFT = DEFAULT_STFT) -> Tensor:
    """Mean absolute difference of log magnitudes (natural logarithm, floor 1e-4), one number for the batch."""
    return ((magnitudes(x, stft) + LOG_FLOOR).log() - (magnitudes(y, stft) + LOG_FLOOR).log()).abs().mean()


class Target:
    """The magnitudes of one target, computed once and compared with several outputs.

    Args:
        audio: the target, ``[N, T, C]`` or ``[N, T]``; no gradient flows to it.
        stft: sizes of the transform.
    """

    def __init__(self, audio: Tensor, stft: STFT = DEFAULT_STFT) -> None:
        self.stft = stft
        with torch.no_grad():
            self.magnitudes = magnitudes(audio, stft)

    def distances(self, outputs: Tensor) -> Tensor:
        """:func:`spectral_loss` of each of ``outputs [K, N, T, C]`` against the target, ``[K, N]``."""
        count, batch = outputs.shape[:2]
        spectrum = magnitudes(outputs.flatten(0, 1), self.stft)
        difference = spectrum.view(count, batch, *spectrum.shape[1:]) - self.magnitudes
        return torch.linalg.vector_norm(difference.flatten(2), dim=2)

    def norms(self) -> Tensor:
        """Frobenius norm of each target's magnitudes, ``[N]``."""
        return _norm(self.magnitudes)
