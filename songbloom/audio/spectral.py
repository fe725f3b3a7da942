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


def _pad(audio: Tensor, stft: STFT) -> tuple[Tensor, int]:
    """``audio [N, T]`` reflected at both ends as far as its frames reach, and how many frames there are.

    Only the samples under the window are taken. The zeros that would pad a frame to ``n_fft`` on its left only turn the
    phases, so a transform that pads on the right alone has the same magnitudes.
    """
    half, time = stft.n_fft // 2, audio.shape[-1]
    if time <= half:
        raise UserError(
            f"audio of {time} samples is too short for an STFT of size {stft.n_fft}, which needs more than "
            f"{half}: use longer samples (sample_length) or smaller multispec_loss_n_fft"
        )
    left = half - (stft.n_fft - stft.window_size) // 2
    frames = (time + 2 * half - stft.n_fft) // stft.hop_length + 1
    right = max(0, (frames - 1) * stft.hop_length - left + stft.window_size - time)
    return F.pad(audio[:, None], (left, right), mode="reflect")[:, 0], frames


def _window(stft: STFT, device: torch.device) -> Tensor:
    return torch.hann_window(stft.window_size, device=device)


def _transform(padded: Tensor, stft: STFT, frames: int) -> Tensor:
    """Padded audio ``[N, P]`` → complex spectrum ``[N, frames, n_fft // 2 + 1]``."""
    framed = padded.unfold(-1, stft.window_size, stft.hop_length)[:, :frames]
    return torch.fft.rfft(framed * _window(stft, padded.device), n=stft.n_fft)


def _adjoint(gradient: Tensor, stft: STFT, length: int) -> Tensor:
    """The adjoint of :func:`_transform`: gradient of the spectrum (overwritten) → gradient of the padded audio.

    PyTorch's own derivative of a real transform runs a full complex one. This is a real inverse transform of the
    gradient, whose inner frequencies are halved because that inverse counts them twice; then frames are added up where
    they overlap, a hop's worth of all frames at a time.
    """
    inner = slice(1, -1) if stft.n_fft % 2 == 0 else slice(1, None)
    gradient[..., inner] *= 0.5
    framed = torch.fft.irfft(gradient, n=stft.n_fft, norm="forward")[..., : stft.window_size]
    framed = framed * _window(stft, framed.device)
    hop, frames = stft.hop_length, framed.shape[1]
    hops = -(-stft.window_size // hop)
    added = framed.new_zeros(framed.shape[0], max(frames + hops - 1, -(-length // hop)), hop)
    for index in range(hops):
        part = framed[..., index * hop : (index + 1) * hop]
        added[:, index : index + frames, : part.shape[-1]] += part
    return added.flatten(1)[:, :length]


def _magnitude(spectrum: Tensor) -> Tensor:
    """``|spectrum|`` as ``sqrt(re² + im²)``, several times as fast as ``abs``, which guards against overflow."""
    parts = torch.view_as_real(spectrum)
    return parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1]).sqrt_()


class _Magnitudes(torch.autograd.Function):
    """Padded audio ``[N, P]`` → magnitudes ``[N, frames, n_fft // 2 + 1]``."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, stft: STFT, frames: int) -> Tensor:
        spectrum = _transform(padded, stft, frames)
        ctx.stft, ctx.length = stft, padded.shape[1]
        ctx.save_for_backward(spectrum)
        return _magnitude(spectrum)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (spectrum,) = ctx.saved_tensors
        return _adjoint(spectrum.sgn() * gradients[0], ctx.stft, ctx.length), None, None


class _Distances(torch.autograd.Function):
    """Padded audio ``[K * N, P]`` and magnitudes ``[N, F, B]`` of targets → distances ``[K, N]`` of magnitudes.

    The derivative of ``|| |S| - M ||`` by ``S`` is ``(1 - M / |S|) S`` over the norm: one pass, where separate ones
    would each write a spectrogram. It is taken as 0 where ``S`` or the norm is 0.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, target: Tensor, stft: STFT) -> Tensor:
        spectrum = _transform(padded, stft, target.shape[1])
        magnitude = _magnitude(spectrum).view(-1, *target.shape)
        norms = torch.linalg.vector_norm((magnitude - target).flatten(2), dim=2)
        ctx.stft, ctx.length = stft, padded.shape[1]
        ctx.save_for_backward(spectrum, magnitude, target, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        spectrum, magnitude, target, norms = ctx.saved_tensors
        scale = torch.where(norms > 0, gradients[0] / norms, 0.0)[:, :, None, None]
        factor = torch.where(magnitude > 0, (1 - target / magnitude) * scale, 0.0)
        return _adjoint(spectrum * factor.flatten(0, 1), ctx.stft, ctx.length), None, None


def magnitudes(audio: Tensor, stft: STFT = DEFAULT_STFT) -> Tensor:
    """Magnitude spectrogram, differentiable.

    Args:
        audio: ``[N, T, C]`` (channels are averaged) or ``[N, T]``.
        stft: sizes of the transform.

    Returns:
        float32 ``[N, frames, n_fft // 2 + 1]`` with ``T // hop_length + 1`` frames (for an even ``n_fft``).

    Raises:
        UserError: the audio is no longer than half a transform.
    """
    with torch.autocast(audio.device.type, enabled=False):
        return _Magnitudes.apply(*_arguments(audio, stft))


def _arguments(audio: Tensor, stft: STFT) -> tuple[Tensor, STFT, int]:
    padded, frames = _pad(_to_mono(audio), stft)
    return padded, stft, frames


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
        with torch.autocast(outputs.device.type, enabled=False):
            padded, _ = _pad(_to_mono(outputs.flatten(0, 1)), self.stft)
            return _Distances.apply(padded, self.magnitudes, self.stft)

    def norms(self) -> Tensor:
        """Frobenius norm of each target's magnitudes, ``[N]``."""
        return _norm(self.magnitudes)
