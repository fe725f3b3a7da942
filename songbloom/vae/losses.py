"""What the VAE is trained by: spectra at several sizes, the waveform, and the latents' distance from a normal law.

Source: Steinmetz et al. 2020, *Automatic multitrack mixing with a differentiable mixing console* (spectra of sum and
difference); Yamamoto et al. 2020, *Parallel WaveGAN* (spectral convergence and log magnitudes over several sizes);
Wright & Välimäki 2019 (perceptual weighting); Evans et al. 2024, *Stable Audio Open*, section 4; Kumar et al. 2023,
*High-Fidelity Audio Compression with Improved RVQGAN*, section 3.5 (mel bands at several sizes). All of it runs in
float32 even under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from songbloom.audio import spectral
from songbloom.audio.filters import mel_filters

MOST_BANDS = 80  # of a mel spectrum; small transforms have fewer, one for eight samples
SILENCE = 1e-3  # -60 dB: convergence is relative to the target's norm, or that of noise so quiet if it is quieter


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Twice the divergence of ``N(mean, std²)`` from ``N(0, 1)``, summed over the last axis, averaged over the others.

    ``mean² + std² - log std² - 1``, without the usual half, as published models weigh it.
    """
    variance = std.square()
    return (mean.square() + variance - variance.log() - 1).sum(dim=-1).mean()


def stereo_views(audio: Tensor) -> Tensor:
    """``[N, T, C]`` → what spectra are compared of, ``[N, V, T]``.

    Of stereo: sum, difference, left, right. The ear places a sound by the difference, which is far quieter than the
    sides and would be lost among them. Of any other number of channels: the channels.
    """
    channels = audio.float().transpose(1, 2)
    if channels.shape[1] != 2:
        return channels
    left, right = channels.unbind(dim=1)
    return torch.stack([left + right, left - right, left, right], dim=1)


def a_weighting(n_fft: int, sample_rate: int, device: torch.device | None = None) -> Tensor:
    """How loud the ear finds each frequency of a transform: A-weighting as a factor, 1 at 1 kHz, ``[n_fft // 2 + 1]``.

    Source: IEC 61672-1:2013, annex E.
    """
    frequencies = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)

    def response(hertz: Tensor) -> Tensor:
        square = hertz.square()
        poles = (square + 107.7**2).sqrt() * (square + 737.9**2).sqrt()
        return 12194.0**2 * square.square() / ((square + 20.6**2) * poles * (square + 12194.0**2))

    gain = response(frequencies) / response(torch.tensor(1000.0, dtype=torch.float64))
    return gain.to(device, torch.float32)


def spectral_losses(
    target: Tensor,
    output: Tensor,
    *,
    transforms: Sequence[spectral.STFT],
    sample_rate: int,
    perceptual: bool,
    floor: float = spectral.LOG_FLOOR,
) -> Tensor:
    """Spectral convergence plus mean difference of log magnitudes, averaged over the transforms and the batch.

    Convergence is the distance relative to the target's norm; of a target quieter than :data:`SILENCE` it would be
    beyond all measure, and a pause would decide the step, so there it is relative to that.

    Args:
        target: audio ``[N, T, C]``; no gradient flows to it.
        output: audio ``[N, T, C]``.
        transforms: sizes to compare at.
        sample_rate: Hz.
        perceptual: weigh frequencies by :func:`a_weighting`.
        floor: added to magnitudes before their logarithm. What lies below hardly counts; with a low one the quietest
            places, where a small difference is a large ratio, have the steepest gradients of all.

    Returns:
        one number for each of :func:`stereo_views`, ``[V]``.

    Raises:
        UserError: the audio is no longer than half of the largest transform.
    """
    wanted, given = stereo_views(target.detach()), stereo_views(output)
    shape = given.shape[:2]
    total = torch.zeros(shape[1], device=output.device)
    for stft in transforms:
        with torch.no_grad():
            reference = spectral.magnitudes(wanted.flatten(0, 1), stft)
        magnitude = spectral.magnitudes(given.flatten(0, 1), stft)
        weights = torch.ones(stft.n_fft // 2 + 1, device=output.device)
        if perceptual:
            weights = a_weighting(stft.n_fft, sample_rate, output.device)
            reference, magnitude = reference * weights, magnitude * weights
        window = torch.hann_window(stft.window_size, device=output.device)
        quiet = SILENCE * (reference.shape[1] * window.square().sum() * weights.square().sum()).sqrt()
        norm, distance = _norm(reference), _norm(reference - magnitude)
        logarithms = ((reference + floor).log() - (magnitude + floor).log()).abs().flatten(1).mean(dim=1)
        total = total + (distance / norm.clamp_min(quiet) + logarithms).view(shape).mean(dim=0)
    return total / len(transforms)


def mel_loss(
    target: Tensor,
    output: Tensor,
    *,
    transforms: Sequence[spectral.STFT],
    sample_rate: int,
    floor: float = spectral.LOG_FLOOR,
) -> Tensor:
    """Mean difference of the logarithms of mel bands, averaged over the transforms, the views and the batch.

    A band adds up the magnitudes of its frequencies. So noise, whose single magnitudes nothing can foretell, is
    compared by its strength, and formants by their place: what makes consonants and vowels.

    Args:
        target: audio ``[N, T, C]``; no gradient flows to it.
        output: audio ``[N, T, C]``.
        transforms: sizes to compare at; one of ``n_fft`` samples has ``n_fft // 8`` bands, 80 at most.
        sample_rate: Hz.
        floor: added to bands before their logarithm.

    Returns:
        one number.

    Raises:
        UserError: the audio is no longer than half of the largest transform.
    """
    wanted, given = (stereo_views(audio).flatten(0, 1) for audio in (target.detach(), output))
    parts = []
    for stft in transforms:
        filters = mel_filters(sample_rate, stft.n_fft, max(1, min(MOST_BANDS, stft.n_fft // 8))).to(output.device)
        with torch.no_grad():
            reference = (spectral.magnitudes(wanted, stft) @ filters + floor).log()
        parts.append(((spectral.magnitudes(given, stft) @ filters + floor).log() - reference).abs().mean())
    return torch.stack(parts).mean()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
