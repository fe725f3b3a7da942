"""The built-in features: what is sung and played, nothing to download.

They are made for two things that a sketch of a song has to keep: the words, which are in the shape of the spectrum
(formants, noise, silence), and the melody with its harmony, which are in how strongly each pitch sounds. So they are
made of two views:

* ``shape``: the log-mel spectrum over 25 or 43 ms, less its mean level over the two seconds around. How loud a song was
  mastered is not in it.
* ``pitch``: how strongly each quarter tone sounds, as the sum of its harmonics in a long spectrum (Hermes 1988,
  *Measurement of pitch by subharmonic summation*), compared with the other pitches of the same moment.

Neither view keeps phases, stereo or fine timbre: those are the latents' matter.

A feature is what is left of them when pitch is smoothed away from the shape (the first cepstral numbers, Davis and
Mermelstein 1980) and the pitches are smoothed over three frames. Nothing in that is learned, and its codes carry more
of words and melody than those of the plain log-mel spectrum (``docs/sketch.md`` has the numbers). With
``sketch_hidden`` a network, which begins by adding nothing, learns through the codebook what to add to it.

The network looks at about a third of a second around a frame, the level at a second: a song in pieces gives what the
whole gives, but for float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.audio.filters import banded_power, mel_filters
from songbloom.errors import UserError
from songbloom.hyperparams import fields_from
from songbloom.sketch.features import FRAME_RATE, Features

STEPS = 4  # moments of the views a frame
LEVEL_REACH = 25  # frames to either side over which the level is averaged
HARMONICS = 6
HARMONIC_DECAY = 0.84  # what each harmonic counts against the one below (Hermes 1988)
FLOOR = 1e-6  # power in a band that counts as silence
SILENCE = 1e-4  # strength of pitches below which none is told from another
PIECE = 500  # frames that the network computes at a time
# Spread of the cepstral numbers and of the pitches over the sung corpus: divided by them both count alike.
CEPSTRAL_SPREAD, PITCH_SPREAD = 3.5, 8.0
SMOOTHING = (0.25, 0.5, 0.25)  # of the pitches, over three frames


@dataclass(frozen=True)
class BuiltinConfig:
    """Sizes of the built-in features; fields are named as the hyperparameters.

    Attributes:
        sketch_sr: sample rate that they hear, Hz; a multiple of 100.
        sketch_bands: mel bands.
        sketch_cepstra: numbers that are kept of the spectrum's shape; more of them tell pitch as well.
        sketch_words: weight of the shape against the pitches in a feature.
        sketch_n_fft: samples of the mel spectrum's windows.
        sketch_pitch_n_fft: samples of the pitch view's windows.
        sketch_lowest_pitch: Hz.
        sketch_octaves: that the pitch view covers, in quarter tones.
        sketch_hidden: channels of the network that learns to add to the features; 0: none does.
        sketch_dilations: of its residual units at 25 frames a second.

    Raises:
        UserError: sizes that make no features.
    """

    sketch_sr: int = 24000
    sketch_bands: int = 64
    sketch_cepstra: int = 13
    sketch_words: float = 0.85
    sketch_n_fft: int = 1024
    sketch_pitch_n_fft: int = 4096
    sketch_lowest_pitch: float = 65.41
    sketch_octaves: int = 5
    sketch_hidden: int = 0
    sketch_dilations: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if self.sketch_sr < 4000 or self.sketch_sr % (FRAME_RATE * STEPS):
            raise UserError(f"sketch_sr is {self.sketch_sr} Hz: it must be a multiple of 100, at least 4000")
        for name in ("sketch_cepstra", "sketch_bands", "sketch_octaves"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("sketch_words", "sketch_hidden"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.sketch_cepstra >= self.sketch_bands:
            raise UserError(
                f"sketch_cepstra is {self.sketch_cepstra}: it must be less than sketch_bands, {self.sketch_bands}"
            )
        for name in ("sketch_n_fft", "sketch_pitch_n_fft"):
            if getattr(self, name) < self.hop_length or getattr(self, name) % 2:
                raise UserError(
                    f"{name} is {getattr(self, name)}: windows must be even and at least {self.hop_length} samples, "
                    "which is their distance"
                )
        if self.sketch_lowest_pitch * 2**self.sketch_octaves > self.sketch_sr / 2:
            raise UserError(
                f"{self.sketch_octaves} octaves above {self.sketch_lowest_pitch} Hz are beyond half of sketch_sr"
            )
        if not self.sketch_dilations or min(self.sketch_dilations) < 1:
            raise UserError(f"sketch_dilations is {self.sketch_dilations}: give at least one, each at least 1")

    @classmethod
    def from_hps(cls, mapping: Mapping[str, Any]) -> BuiltinConfig:
        """Take what the features need from any mapping of hyperparameters, defaults for what isn't there."""
        return cls(**fields_from(cls, mapping))

    @property
    def hop_length(self) -> int:
        """Samples from moment to moment of the views."""
        return self.sketch_sr // (FRAME_RATE * STEPS)

    @property
    def pitches(self) -> int:
        """Quarter tones."""
        return 24 * self.sketch_octaves

    @property
    def view_width(self) -> int:
        """Numbers that both views have for a moment."""
        return self.sketch_bands + self.pitches

    @property
    def width(self) -> int:
        """Numbers of a feature: the cepstral ones, then the pitches."""
        return self.sketch_cepstra + self.pitches


def cepstral_basis(bands: int, cepstra: int) -> Tensor:
    """Orthonormal cosines 1 to ``cepstra`` over the bands, without the constant: ``[bands, cepstra]``."""
    place = (torch.arange(bands) + 0.5)[:, None]
    return torch.cos(math.pi / bands * place * torch.arange(1, cepstra + 1)) * (2 / bands) ** 0.5


def pitch_filters(config: BuiltinConfig) -> Tensor:
    """How much each frequency says of each pitch: ``[sketch_pitch_n_fft // 2 + 1, pitches]``.

    Around each harmonic stands a bell as wide as a quarter tone or as the transform's resolution, whichever is wider.
    Its peak is what counts, not its area, or low pitches, whose bells are narrow, would be heard below every note.
    """
    resolution = config.sketch_sr / config.sketch_pitch_n_fft
    frequencies = torch.arange(config.sketch_pitch_n_fft // 2 + 1)[:, None] * resolution
    pitches = config.sketch_lowest_pitch * 2 ** (torch.arange(config.pitches) / 24)
    made = torch.zeros(len(frequencies), config.pitches)
    for harmonic in range(1, HARMONICS + 1):
        centre = harmonic * pitches
        width = torch.maximum(centre * (2 ** (1 / 24) - 1), torch.tensor(resolution))
        made += HARMONIC_DECAY ** (harmonic - 1) * torch.exp(-0.5 * ((frequencies - centre) / (0.6 * width)) ** 2)
    return made


class ChannelNorm(nn.Module):
    """Layer norm over the channels of ``[N, C, T]``: each moment for itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class ResidualUnit(nn.Module):
    """Norm, convolution, GELU, mix of channels; plus the input. ``[N, C, T]`` to the same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.convolution = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        self.reach = dilation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.convolution(self.norm(x))))


class Views(nn.Module):
    """Audio to the two views; nothing in it is learned."""

    mel_filters: Tensor
    pitch_filters: Tensor

    def __init__(self, config: BuiltinConfig) -> None:
        super().__init__()
        self.config = config
        mel = mel_filters(config.sketch_sr, config.sketch_n_fft, config.sketch_bands, 60.0)
        self.register_buffer("mel_filters", mel, persistent=False)
        self.register_buffer("pitch_filters", pitch_filters(config), persistent=False)

    def _spectrum(self, mono: Tensor, filters: Tensor, n_fft: int, moments: int, hop: int) -> Tensor:
        """Windows whose middles are the middles of the moments, ``hop`` samples each, with silence beyond the ends."""
        left = (n_fft - hop) // 2
        right = max(0, (moments - 1) * hop + n_fft - left - mono.shape[1])
        return banded_power(F.pad(mono, (left, right)), filters, n_fft, hop, moments, 20 * FRAME_RATE * STEPS)

    @torch.no_grad()
    def forward(self, mono: Tensor) -> Tensor:
        """``[N, T]`` at ``sketch_sr`` → float32 ``[N, 4 * frames, view_width]``, shape first, then pitch.

        The level is a mean over the moments around that exist, so the ends of a song are no cliff. Pitches are the
        same for all moments of a frame: their windows are longer than four.
        """
        config = self.config
        with torch.autocast(mono.device.type, enabled=False):
            mono = mono.float()
            moments = STEPS * (mono.shape[1] // (STEPS * config.hop_length))
            mel = self._spectrum(mono, self.mel_filters, config.sketch_n_fft, moments, config.hop_length)
            # A full-scale sine's power in a Hann window is (n_fft / 4)²: the floor is relative to that.
            mel = (mel / (config.sketch_n_fft / 4) ** 2).clamp_min(FLOOR).log10()
            shape = mel - _around(mel.mean(dim=2, keepdim=True), LEVEL_REACH * STEPS)
            hop = STEPS * config.hop_length
            power = self._spectrum(mono, self.pitch_filters, config.sketch_pitch_n_fft, moments // STEPS, hop)
            strength = (power / (config.sketch_pitch_n_fft / 4) ** 2).sqrt().add(SILENCE).log10()
            pitch = strength - strength.mean(dim=2, keepdim=True)
            return torch.cat([shape, (2.0 * pitch).repeat_interleave(STEPS, dim=1)], dim=2)


def _around(level: Tensor, reach: int) -> Tensor:
    """The mean of ``level [N, T, 1]`` over up to ``reach`` moments at either side, of those that exist."""
    moments = level.shape[1]
    if not moments:
        return level
    whole = level.cpu() if level.device.type == "mps" else level  # Metal has no float64
    sums = F.pad(whole.double().cumsum(dim=1), (0, 0, 1, 0))
    index = torch.arange(moments, device=whole.device)
    first, last = (index - reach).clamp_min(0), (index + reach + 1).clamp_max(moments)
    return ((sums[:, last] - sums[:, first]) / (last - first)[:, None]).to(level)


class Network(nn.Module):
    """Views ``[N, 4 * frames, view_width]`` → what is added to features ``[N, frames, width]``; nothing at first."""

    def __init__(self, config: BuiltinConfig, generator: torch.Generator) -> None:
        super().__init__()
        hidden = config.sketch_hidden
        self.input = nn.Conv1d(config.view_width, hidden, 1)
        self.fine = nn.ModuleList([ResidualUnit(hidden, 1), ResidualUnit(hidden, 2)])
        self.gather = nn.Conv1d(hidden, hidden, STEPS, stride=STEPS)
        self.coarse = nn.ModuleList(ResidualUnit(hidden, dilation) for dilation in config.sketch_dilations)
        self.norm = ChannelNorm(hidden)
        self.output = nn.Conv1d(hidden, config.width, 1)
        reset(self, generator)
        nn.init.zeros_(self.output.weight)

    def forward(self, views: Tensor) -> Tensor:
        x = self.input(views.transpose(1, 2))
        for unit in self.fine:
            x = unit(x)
        x = self.gather(x)
        for unit in self.coarse:
            x = unit(x)
        return self.output(self.norm(x)).transpose(1, 2)


class Encoder(nn.Module):
    """Views ``[N, 4 * frames, view_width]`` → features ``[N, frames, width]``."""

    basis: Tensor
    smoothing: Tensor

    def __init__(self, config: BuiltinConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.bands = config.sketch_bands
        basis = cepstral_basis(config.sketch_bands, config.sketch_cepstra) * (config.sketch_words / CEPSTRAL_SPREAD)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("smoothing", torch.tensor(SMOOTHING)[:, None, None] / PITCH_SPREAD, persistent=False)
        self.network = Network(config, generator) if config.sketch_hidden else None
        # Frames that a piece needs at either side: one for the smoothing, or for the network's fine units (3 moments)
        # with what its coarse ones look.
        self.reach = 1 + (sum(config.sketch_dilations) if config.sketch_hidden else 0)

    def forward(self, views: Tensor) -> Tensor:
        means = views.unflatten(1, (-1, STEPS)).mean(dim=2)
        pitch = means[..., self.bands :]
        around = torch.stack(
            [torch.cat([pitch[:, :1], pitch[:, :-1]], 1), pitch, torch.cat([pitch[:, 1:], pitch[:, -1:]], 1)]
        )
        pitch = (around * self.smoothing[..., None]).sum(dim=0)
        fixed = torch.cat([means[..., : self.bands] @ self.basis, pitch], dim=2)
        return fixed if self.network is None else fixed + self.network(views)


class BuiltinFeatures(Features):
    """The built-in extractor.

    Args:
        config: sizes.
        generator: draws the initial weights of the network, if there is one (None: a fixed seed).
    """

    name = "builtin"

    def __init__(self, config: BuiltinConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config or BuiltinConfig()
        self.width, self.sample_rate = self.config.width, self.config.sketch_sr
        self.views = Views(self.config)
        self.encoder = Encoder(self.config, generator or torch.Generator().manual_seed(0))

    def hear(self, mono: Tensor) -> Tensor:
        return self.encode_views(self.views(mono))

    @torch.no_grad()
    def encode_views(self, views: Tensor, piece: int = PIECE) -> Tensor:
        """:class:`Encoder` in pieces of ``piece`` frames, which give what the whole gives."""
        frames, reach = views.shape[1] // STEPS, self.encoder.reach
        made = []
        for start in range(0, frames, piece):
            stop = min(start + piece, frames)
            first = max(0, start - reach)
            part = self.encoder(views[:, first * STEPS : min(frames, stop + reach) * STEPS])
            made.append(part[:, start - first : stop - first])
        return torch.cat(made, dim=1) if made else views.new_zeros(len(views), 0, self.width)

    def identity(self) -> dict[str, Any]:
        sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.config).items()}
        return {**super().identity(), "sizes": sizes}


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions below ``module`` from ``generator`` (He et al. 2015, gain 1); biases are 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d):
            spread = (part.in_channels * part.kernel_size[0]) ** -0.5
            with torch.no_grad():
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * spread)
                if part.bias is not None:
                    part.bias.zero_()


def from_identity(identity: Mapping[str, Any], state: Mapping[str, Tensor]) -> BuiltinFeatures:
    """The extractor that a codebook's file carries.

    Raises:
        UserError: weights of other sizes than the file says.
    """
    features = BuiltinFeatures(BuiltinConfig.from_hps(identity.get("sizes", {})))
    try:
        features.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(
            "the codebook's file carries built-in features of other sizes than it says; it is damaged"
        ) from error
    return features.eval().requires_grad_(False)


def from_settings(**settings: Any) -> Features:
    """New features of :meth:`BuiltinConfig.from_hps`, to be trained."""
    return BuiltinFeatures(BuiltinConfig.from_hps(settings))
