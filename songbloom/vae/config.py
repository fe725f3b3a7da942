"""What a VAE is made of and trained by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from songbloom.audio.spectral import LOG_FLOOR, STFT
from songbloom.errors import UserError, counted
from songbloom.hyperparams import fields_from


@dataclass(frozen=True)
class VAEConfig:
    """Sizes and losses of a VAE; fields are named as the hyperparameters. The defaults are the published model's.

    Attributes:
        sr: of the audio, Hz.
        sample_length: samples of one training example (0: by ``sample_length_in_seconds``).
        sample_length_in_seconds: the same in seconds, cut to whole frames.
        vae_channels: of the audio; 2 is stereo.
        vae_width: channels at the audio's own rate.
        vae_multipliers: channels after each block of the encoder, in units of ``vae_width``.
        vae_strides: how many moments each block of the encoder makes one; their product is the samples a latent.
        vae_dilations: of the residual units of each block.
        vae_latent_dim: numbers a latent.
        vae_final_tanh: whether the output goes through a tanh.
        vae_spectral: weight of the spectral loss.
        vae_spectral_n_fft: its transforms' sizes; hops are a quarter of them.
        vae_perceptual: whether it weighs frequencies by how loud the ear finds them.
        vae_spectral_floor: added to magnitudes before the spectral loss takes their logarithm.
        vae_mel: weight of the mean difference of the logarithms of mel bands; its transforms and floor are the spectral
            loss's.
        vae_waveform: weight of the mean absolute difference of samples.
        vae_kl: weight of the latents' divergence from a normal law.
        vae_adversarial: weight of the discriminator's judgement; 0 builds no discriminator.
        vae_feature_matching: weight of the differences of the discriminator's features.
        vae_adversarial_start: training step from which the discriminator's judgement counts (it learns from the first).
        vae_discriminator_width: channels of its layers.
        vae_discriminator_n_fft: its transforms' sizes.
        seed: of the noise in training.

    Raises:
        UserError: values that make no model.
    """

    sr: int = 48000
    sample_length: int = 0
    sample_length_in_seconds: float = 1.4
    vae_channels: int = 2
    vae_width: int = 128
    vae_multipliers: tuple[int, ...] = (1, 2, 4, 8, 16)
    vae_strides: tuple[int, ...] = (2, 4, 4, 6, 10)
    vae_dilations: tuple[int, ...] = (1, 3, 9)
    vae_latent_dim: int = 64
    vae_final_tanh: bool = False
    vae_spectral: float = 1.0
    vae_spectral_n_fft: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64, 32)
    vae_perceptual: bool = True
    vae_spectral_floor: float = LOG_FLOOR
    vae_mel: float = 0.0
    vae_waveform: float = 0.0
    vae_kl: float = 1e-4
    vae_adversarial: float = 0.0
    vae_feature_matching: float = 5.0
    vae_adversarial_start: int = 0
    vae_discriminator_width: int = 64
    vae_discriminator_n_fft: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.vae_strides) != len(self.vae_multipliers) or not self.vae_strides:
            raise UserError(
                f"vae_strides has {counted(len(self.vae_strides), 'value')} and vae_multipliers "
                f"{len(self.vae_multipliers)}: "
                "give one of each a block, and at least one block"
            )
        for name in ("vae_strides", "vae_multipliers", "vae_dilations", "vae_spectral_n_fft"):
            if any(value < 1 for value in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}: every value must be at least 1")
        if min(self.vae_strides) < 2:
            raise UserError(f"vae_strides is {self.vae_strides}: every block must make at least 2 moments one")
        for name in ("sr", "vae_channels", "vae_width", "vae_latent_dim", "vae_discriminator_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.vae_spectral_floor <= 0:
            raise UserError(f"vae_spectral_floor is {self.vae_spectral_floor:g}: it must be above 0")
        if any(size < 4 for size in (*self.vae_spectral_n_fft, *self.vae_discriminator_n_fft)):
            raise UserError(
                "vae_spectral_n_fft and vae_discriminator_n_fft: every transform needs a size of at least 4"
            )
        if self.vae_adversarial and not self.vae_discriminator_n_fft:
            raise UserError("vae_adversarial is on without vae_discriminator_n_fft: give at least one size")
        if self.sample_length % self.hop_length:
            raise UserError(not_whole_frames("sample_length", self.sample_length, self.hop_length))

    @classmethod
    def from_hps(cls, mapping: Mapping[str, Any]) -> VAEConfig:
        """Take what a VAE needs from any mapping of hyperparameters, defaults for what isn't there."""
        return cls(**fields_from(cls, mapping))

    @property
    def hop_length(self) -> int:
        """Audio samples a latent."""
        return math.prod(self.vae_strides)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the encoder's first block and after each."""
        return (self.vae_width, *(self.vae_width * multiplier for multiplier in self.vae_multipliers))

    @property
    def samples(self) -> int:
        """Audio samples of one training example, whole frames."""
        hop = self.hop_length
        return self.sample_length or int(self.sample_length_in_seconds * self.sr) // hop * hop

    @property
    def transforms(self) -> tuple[STFT, ...]:
        """The sizes of the spectral loss."""
        return tuple(STFT(size, size // 4, size) for size in self.vae_spectral_n_fft)


def not_whole_frames(what: str, length: int, hop: int) -> str:
    """That ``what`` is no multiple of the hop length, and what to do."""
    below = length // hop * hop
    nearest = f"{below} or {below + hop}" if below else str(hop)
    return f"{what} is {length} samples, no multiple of the hop length {hop}: cut or pad it to {nearest}"
