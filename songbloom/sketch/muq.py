"""MuQ: features of music at 25 frames a second, from a network that learned to predict masked stretches of songs.

Source: Zhu et al. 2025, *MuQ: Self-Supervised Music Representation Learning with Mel Residual Vector Quantization*; its
layers are those of Gulati et al. 2020, *Conformer*, with the rotary positions of Su et al. 2021, *RoFormer*.

Audio is ``[N, T]`` at 24 kHz, features are ``[N, frames, width]``. ``tests/golden/checkers/songbloom_muq.py`` holds the
numbers of the published package.

A song of any length is heard in bounded memory: the spectrum and the convolutions before the conformer are computed in
pieces that give exactly what the whole gives; the conformer's attention, which reaches over all that it is given, hears
pieces of ``piece`` frames with ``context`` frames at either side. Audio that is no longer than one piece with its
context is heard whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.audio.filters import SECONDS_A_PIECE, banded_power, mel_filters, reflected
from songbloom.errors import UserError
from songbloom.hyperparams import fields_from

SAMPLE_RATE = 24000
N_FFT = 2048
MEL_PER_FRAME = 4  # two convolutions of stride 2
MEL_CONTEXT = 12  # mel frames around a piece of the convolutions, which look 9 far; whole frames
PIECE = 750  # frames: 30 s
CONTEXT = 125  # frames: 5 s
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class MuQConfig:
    """Sizes of a MuQ. The defaults are those of the published large model, as far as they are known.

    Attributes:
        hop_length: samples from mel frame to mel frame.
        n_mels: mel bands; a multiple of 4.
        mel_mean, mel_std: of the mel spectrum in decibels, over the data that it was trained on.
        conv_dim: channels of the convolutions over the spectrum.
        width: of a feature.
        depth: conformer layers.
        heads: of the attention.
        feed_forward: width inside the feed-forward halves.
        kernel: moments that a conformer layer's convolution looks at, odd.
        rotary_base: of the positions.
        layer_norm_eps: of the norm after the last layer.
        activation: one of :data:`ACTIVATIONS`.
        rvq_codebooks: codebooks of the mel targets that it was trained to predict; 0 leaves them out.
        rvq_codes: codes each.
        rvq_dim: width of their vectors.

    Raises:
        UserError: sizes that make no model.
    """

    hop_length: int = 240
    n_mels: int = 128
    mel_mean: float = 6.768444971712967
    mel_std: float = 18.417922652295623
    conv_dim: int = 512
    width: int = 1024
    depth: int = 12
    heads: int = 16
    feed_forward: int = 4096
    kernel: int = 31
    rotary_base: float = 10000.0
    layer_norm_eps: float = 1e-5
    activation: str = "swish"
    rvq_codebooks: int = 8
    rvq_codes: int = 1024
    rvq_dim: int = 16

    def __post_init__(self) -> None:
        for name in ("hop_length", "n_mels", "conv_dim", "width", "depth", "heads", "feed_forward", "kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"MuQ: {name} is {getattr(self, name)}; it must be at least 1")
        if self.n_mels % MEL_PER_FRAME:
            raise UserError(f"MuQ: {self.n_mels} mel bands; their number must be a multiple of {MEL_PER_FRAME}")
        if self.width % (2 * self.heads):
            raise UserError(f"MuQ: a width of {self.width} in {self.heads} heads; it must be a multiple of twice those")
        if self.kernel % 2 == 0:
            raise UserError(f"MuQ: a kernel of {self.kernel}; it must be odd")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"MuQ: activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> MuQConfig:
        """Take what a MuQ needs from any mapping, defaults for what isn't there."""
        return cls(**fields_from(cls, mapping))

    @property
    def frame_length(self) -> int:
        """Samples a feature."""
        return self.hop_length * MEL_PER_FRAME


def frames_of(mel_frames: int) -> int:
    """Features that so many mel frames give."""
    return -(-mel_frames // MEL_PER_FRAME)


class _ResidualConvolution(nn.Module):
    """``[N, C, bands, T]`` to half the bands and half the moments."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.skip_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.skip_norm(self.skip(x)))


class _FeedForward(nn.Module):
    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(self.norm(x))))


class _Attention(nn.Module):
    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = self.norm(x)
        # Positions turn the slices of the projections' input, not the projected queries and keys.
        turned = _turn(x.unflatten(2, (self.heads, -1)), turns).flatten(2)
        parts = (self.query(turned), self.key(turned), self.value(x))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _turn(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """``x [N, T, heads, d]``, the halves of each slice turned against each other by its moment's angles."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = (part[:, None].to(x.dtype) for part in turns)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class _Convolution(nn.Module):
    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.up = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width, bias=False)
        self.batch_norm = nn.BatchNorm1d(width)
        self.down = nn.Conv1d(width, width, 1, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.up(self.norm(x).transpose(1, 2)), dim=1)
        return self.down(self.activation(self.batch_norm(self.depthwise(x)))).transpose(1, 2)


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, the other half, norm; ``[N, T, width]`` to the same."""

    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        self.first_half = _FeedForward(config)
        self.attention = _Attention(config)
        self.convolution = _Convolution(config)
        self.second_half = _FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + 0.5 * self.first_half(x)
        x = x + self.attention(x, turns)
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.second_half(x))


class _MelQuantiser(nn.Module):
    """One codebook of the mel targets: project, take the nearest by angle, project back."""

    def __init__(self, inputs: int, codes: int, dim: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(inputs, dim)
        self.project_out = nn.Linear(dim, inputs)
        self.codebook = nn.Parameter(torch.empty(codes, dim).normal_(generator=torch.Generator().manual_seed(0)))

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        inner = F.normalize(self.project_in(residual), dim=-1)
        codes = (inner @ F.normalize(self.codebook, dim=-1).t()).argmax(dim=-1)
        return codes, self.project_out(self.codebook[codes])


class MuQ(nn.Module):
    """The network, without what only its training needs (masks, the heads that predict).

    Args:
        config: sizes.
    """

    mel_filters: Tensor

    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            [_ResidualConvolution(1, config.conv_dim), _ResidualConvolution(config.conv_dim, config.conv_dim)]
        )
        self.project = nn.Linear(config.conv_dim * (config.n_mels // MEL_PER_FRAME), config.width)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.targets = nn.ModuleList(
            _MelQuantiser(MEL_PER_FRAME * config.n_mels, config.rvq_codes, config.rvq_dim)
            for _ in range(config.rvq_codebooks)
        )

    # -- what it hears -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mel(self, audio: Tensor) -> Tensor:
        """Mel power in decibels of ``audio [N, T]`` at 24 kHz: float32 ``[N, n_mels, T // hop_length]``."""
        config = self.config
        with torch.autocast(audio.device.type, enabled=False):
            filters = mel_filters(SAMPLE_RATE, N_FFT, config.n_mels).to(audio.device)
            frames = audio.shape[1] // config.hop_length
            padded = reflected(audio.float(), N_FFT // 2)
            piece = SECONDS_A_PIECE * SAMPLE_RATE // config.hop_length
            power = banded_power(padded, filters, N_FFT, config.hop_length, frames, piece)
            return 10.0 * torch.log10(power.clamp_min(1e-10)).transpose(1, 2)

    def normalised(self, mel: Tensor) -> Tensor:
        """The spectrum as the network takes it: mean 0, spread 1 over the published model's data."""
        return (mel - self.config.mel_mean) / self.config.mel_std

    def subsample(self, mel: Tensor, piece: int = PIECE) -> Tensor:
        """Normalised mel ``[N, n_mels, M]`` → the conformer's input ``[N, ceil(M / 4), width]``, in exact pieces."""
        frames = frames_of(mel.shape[2])
        made = []
        for start in range(0, frames, piece):
            stop = min(start + piece, frames)
            first = max(0, start * MEL_PER_FRAME - MEL_CONTEXT)
            part = mel[:, None, :, first : stop * MEL_PER_FRAME + MEL_CONTEXT].to(self.project.weight.dtype)
            for block in self.blocks:
                part = block(part)
            skip = start - first // MEL_PER_FRAME
            part = part[..., skip : skip + stop - start].permute(0, 3, 1, 2).flatten(2)
            made.append(self.project(part))
        return torch.cat(made, dim=1) if made else mel.new_zeros(mel.shape[0], 0, self.config.width)

    # -- what it makes of it -------------------------------------------------------------------------------------

    def _turns(self, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        dim = self.config.width // self.config.heads
        rates = self.config.rotary_base ** -(torch.arange(0, dim, 2, device=device).float() / dim)
        angles = torch.arange(frames, device=device).float()[:, None] * rates
        return angles.cos(), angles.sin()

    def hidden_states(self, x: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """The conformer's input ``[N, T, width]``, then what each layer gives; the last layer's is normed.

        Args:
            x: what :meth:`subsample` gave.
            last: the state to stop after (``depth`` by default).
        """
        turns = self._turns(x.shape[1], x.device)
        yield x
        for index, layer in enumerate(list(self.layers)[:last]):
            x = layer(x, turns)
            yield self.norm(x) if index + 1 == len(self.layers) else x

    def state(self, x: Tensor, layer: int) -> Tensor:
        """One of :meth:`hidden_states`, by its number."""
        for found in self.hidden_states(x, layer):
            x = found
        return x

    @torch.no_grad()
    def encode(self, audio: Tensor, layer: int = -1, *, piece: int | None = PIECE, context: int = CONTEXT) -> Tensor:
        """Features of ``audio [N, T]`` at 24 kHz.

        Args:
            audio: mono. Audio below 1025 samples is filled up with silence.
            layer: which state: 0 is the conformer's input, ``depth`` (or -1) the last layer's.
            piece: frames that the conformer gives at a time (None: all).
            context: frames that it hears besides at either side of a piece.

        Returns:
            float32 ``[N, ceil(T // 240 / 4), width]``.

        Raises:
            UserError: no such layer, or pieces of nothing.
        """
        layer = self.layer_number(layer)
        if piece is not None and (piece < 1 or context < 0):
            raise UserError(f"MuQ in pieces of {piece} frames with {context} around them: at least 1, at least 0")
        x = self.subsample(self.normalised(self.mel(audio)))
        frames = x.shape[1]
        if piece is None or frames <= piece + 2 * context or not layer:
            return self.state(x, layer).float()
        made = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for start in range(0, frames, piece):
            stop = min(start + piece, frames)
            first = max(0, start - context)
            heard = self.state(x[:, first : stop + context], layer)
            made[:, start:stop] = heard[:, start - first : stop - first]
        return made

    def layer_number(self, layer: int) -> int:
        """``layer`` counted from the beginning.

        Raises:
            UserError: there is no such layer.
        """
        return self.layer_number_of(layer, self.config.depth)

    @staticmethod
    def layer_number_of(layer: int, depth: int) -> int:
        """:meth:`layer_number` for any MuQ of ``depth`` layers."""
        states = depth + 1
        if not -states <= layer < states:
            raise UserError(f"MuQ: layer {layer} of {states} states (0 to {states - 1}, or counted from the end)")
        return layer % states

    @torch.no_grad()
    def mel_codes(self, mel: Tensor) -> Tensor:
        """What MuQ learned to predict: normalised mel ``[N, n_mels, M]`` → int64 ``[N, codebooks, M // 4]``."""
        frames = mel.shape[2] // MEL_PER_FRAME
        stacked = mel[..., : frames * MEL_PER_FRAME].transpose(1, 2).unflatten(1, (frames, MEL_PER_FRAME)).flatten(2)
        residual, made = stacked.to(self.project.weight.dtype), []
        for quantiser in self.targets:
            codes, known = quantiser(residual)
            residual = residual - known
            made.append(codes)
        shape = (mel.shape[0], 0, frames)
        return torch.stack(made, dim=1) if made else torch.zeros(shape, dtype=torch.int64, device=mel.device)
