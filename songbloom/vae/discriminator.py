"""The judge of adversarial training: convolutions over complex spectra of several sizes.

Source: Défossez et al. 2022, *High Fidelity Neural Audio Compression*, section 3.4 (the multi-scale STFT discriminator,
the hinge loss and the relative feature matching loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.vae.layers import WeightNormed

SLOPE = 0.2  # of the leaky rectifiers below 0


class Convolution2d(WeightNormed):
    """A weight-normed convolution over ``[N, C, frames, frequencies]``, padded to keep both (before striding)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__((outputs, inputs, *kernel), inputs * kernel[0] * kernel[1], outputs)
        self.stride, self.dilation = (1, stride), (dilation, 1)
        self.padding = (dilation * (kernel[0] // 2), kernel[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)


class ScaleDiscriminator(nn.Module):
    """One size of transform: audio ``[N, T, C]`` → a judgement of each place, and what it was made of.

    Frequencies are halved three times while frames are looked at from ever farther away.
    """

    def __init__(self, channels: int, width: int, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.layers = nn.ModuleList(
            [
                Convolution2d(2 * channels, width, (3, 9)),
                *[Convolution2d(width, width, (3, 9), stride=2, dilation=dilation) for dilation in (1, 2, 4)],
                Convolution2d(width, width, (3, 3)),
            ]
        )
        self.output = Convolution2d(width, 1, (3, 3))

    def spectrum(self, audio: Tensor) -> Tensor:
        """Real and imaginary parts, ``[N, 2 * C, frames, frequencies]``."""
        batch, time, channels = audio.shape
        if time <= self.n_fft // 2:
            raise UserError(
                f"audio of {time} samples is too short for a discriminator of size {self.n_fft}, which needs more than "
                f"{self.n_fft // 2}: use a longer sample_length or smaller vae_discriminator_n_fft"
            )
        with torch.autocast(audio.device.type, enabled=False):
            window = torch.hann_window(self.n_fft, device=audio.device)
            signals = audio.float().transpose(1, 2).flatten(0, 1)
            spectrum = torch.stft(
                signals, self.n_fft, self.n_fft // 4, window=window, normalized=True, return_complex=True
            )
        parts = torch.view_as_real(spectrum.unflatten(0, (batch, channels)))  # [N, C, frequencies, frames, 2]
        return parts.permute(0, 1, 4, 3, 2).flatten(1, 2)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, features = self.spectrum(audio), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.output(x), features


class AdversarialLosses(NamedTuple):
    """Numbers without weights: for the VAE ``adversarial`` and ``features``; for the judge ``discriminator``."""

    adversarial: Tensor
    features: Tensor
    discriminator: Tensor


class Discriminator(nn.Module):
    """Several :class:`ScaleDiscriminator`.

    Args:
        channels: of the audio.
        width: channels of every layer.
        n_fft: sizes of the transforms, one a scale.
    """

    def __init__(self, channels: int, width: int, n_fft: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleDiscriminator(channels, width, size) for size in n_fft)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Audio ``[N, T, C]`` → for each scale its judgements and features."""
        return [scale(audio) for scale in self.scales]

    def losses(self, real: Tensor, made: Tensor) -> AdversarialLosses:
        """Both sides' losses for one batch, so that one backward pass serves both.

        Gradients of ``discriminator`` reach only this module's weights, those of the other two only ``made``.

        Args:
            real: audio ``[N, T, C]``.
            made: what the VAE made of it.
        """
        still: dict[str, Tensor] = {name: p.detach() for name, p in self.named_parameters()}
        judged_real, judged_made = self(real), self(made.detach())
        zero = torch.zeros((), device=made.device)
        discriminator = adversarial = matching = zero
        for (good, _), (bad, _) in zip(judged_real, judged_made, strict=True):
            discriminator = discriminator + F.relu(1 - good.float()).mean() + F.relu(1 + bad.float()).mean()
        terms = 0
        for (_, wanted), (judged, given) in zip(judged_real, functional_call(self, still, (made,)), strict=True):
            adversarial = adversarial + F.relu(1 - judged.float()).mean()
            for want, got in zip(wanted, given, strict=True):
                want = want.detach().float()
                # Relative for each item, so that a batch means the same however it is divided among ranks.
                size = want.abs().flatten(1).mean(dim=1).clamp_min(1e-5)
                matching = matching + ((want - got.float()).abs().flatten(1).mean(dim=1) / size).mean()
                terms += 1
        scales = len(judged_real)
        return AdversarialLosses(adversarial / scales, matching / terms, discriminator / scales)
