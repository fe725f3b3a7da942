"""The VAE: stereo audio to a short series of continuous latents, and back.

Source: Evans et al. 2024, *Stable Audio Open*, section 3.1; Kingma & Welling 2014 (variational autoencoders). Audio is
``[N, T, C]``, latents are ``[N, T / hop, vae_latent_dim]``.

Work in pieces (``chunked=True``) reads around each piece as far as the network looks and gives what the whole gives,
but for float rounding, at any length; memory beyond the result does not grow with the song.
``tests/vae/test_vae.py`` holds it, ``tests/golden/checkers/songbloom_vae.py`` holds the published model's numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.distributed import world
from songbloom.errors import UserError, counted
from songbloom.vae import losses, spans
from songbloom.vae.config import VAEConfig, not_whole_frames
from songbloom.vae.discriminator import Discriminator
from songbloom.vae.layers import (
    Convolution,
    DecoderBlock,
    EncoderBlock,
    Interval,
    Snake,
    TransposedConvolution,
    WeightNormed,
    held_weights,
    reads_of,
)
from songbloom.vae.spans import Span

__all__ = ["VAE", "Decoder", "Encoder", "Posterior", "VAEConfig"]

CHUNK = 128  # latents a piece, where nothing else is asked for
SHORTEST_PROMPT = 2048  # samples; published models hear nothing in a style prompt that is shorter
FIRST_LOUDNESS = 0.1  # of an untrained decoder: from near silence it learns at once, a loud one first learns to hush
STD_FLOOR = 1e-4  # added to every standard deviation; part of the published models' definition


class Encoder(nn.Module):
    """Audio ``[N, C, T]`` → means and scales ``[N, 2 * vae_latent_dim, T // hop]``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.hop_length = config.hop_length
        self.input = Convolution(config.vae_channels, widths[0], 7, padding=3)
        self.blocks = nn.ModuleList(
            EncoderBlock(widths[index], widths[index + 1], stride, config.vae_dilations)
            for index, stride in enumerate(config.vae_strides)
        )
        self.activation = Snake(widths[-1])
        self.output = Convolution(widths[-1], 2 * config.vae_latent_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2] // self.hop_length
        x = self.input(x)
        for block in self.blocks:
            x = block(x)
        return self.output(self.activation(x))[..., :frames]  # odd strides can make one more of a broken frame

    def reads(self, interval: Interval) -> Interval:
        """The frames of audio that an interval of latents depends on."""
        first, last = reads_of([self.input, *self.blocks, self.output], interval)
        return first // self.hop_length, -(-last // self.hop_length)


class Decoder(nn.Module):
    """Latents ``[N, vae_latent_dim, T]`` → audio ``[N, C, T * hop]``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.hop_length = config.hop_length
        self.final_tanh = config.vae_final_tanh
        self.input = Convolution(config.vae_latent_dim, widths[0], 7, padding=3)
        self.blocks = nn.ModuleList(
            DecoderBlock(widths[index], widths[index + 1], stride, config.vae_dilations)
            for index, stride in enumerate(config.vae_strides[::-1])
        )
        self.activation = Snake(widths[-1])
        self.output = Convolution(widths[-1], config.vae_channels, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = block(x)
        x = self.output(self.activation(x))
        return x.tanh() if self.final_tanh else x

    def reads(self, interval: Interval) -> Interval:
        """The latents that the audio of an interval of frames depends on."""
        samples = interval[0] * self.hop_length, interval[1] * self.hop_length
        return reads_of([self.input, *self.blocks, self.output], samples)


class Posterior(NamedTuple):
    """What the encoder says of some audio: ``mean`` and ``std``, each ``[N, frames, vae_latent_dim]``."""

    mean: Tensor
    std: Tensor


class VAE(nn.Module):
    """Encoder and decoder, and a discriminator where training is adversarial.

    Args:
        config: sizes and losses.
        generator: draws the initial weights (None: PyTorch's global one).

    Attributes:
        sample_rate: of the audio, Hz.
        channels: of the audio.
        levels: always 1.
        latent_dim: numbers a latent.
        downsamples, hop_lengths: samples a latent, in a tuple of one.
        sample_length: audio samples of one training example.
        z_shapes: shape of the latents of one such example, in a tuple of one.
        steps: training steps made, which the noise of the next one depends on.
    """

    def __init__(self, config: VAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sr
        self.channels = config.vae_channels
        self.levels = 1
        self.latent_dim = config.vae_latent_dim
        self.downsamples = self.hop_lengths = (config.hop_length,)
        self.sample_length = config.samples
        self.z_shapes = ((self.sample_length // config.hop_length, config.vae_latent_dim),)
        self.steps = 0
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.discriminator = (
            Discriminator(config.vae_channels, config.vae_discriminator_width, config.vae_discriminator_n_fft)
            if config.vae_adversarial
            else None
        )
        if generator is not None:
            for part in self.modules():
                if isinstance(part, WeightNormed):
                    part.reset(generator)
        with torch.no_grad():
            self.decoder.output.magnitude.mul_(FIRST_LOUDNESS)

    # -- audio to latents ----------------------------------------------------------------------------------------

    def _channels_first(self, audio: Tensor) -> Tensor:
        if audio.ndim != 3 or audio.shape[2] not in (1, self.channels):
            raise UserError(
                f"audio of shape {list(audio.shape)}: this VAE takes [batch, time, {self.channels}], "
                "or one channel, which it repeats"
            )
        return audio.transpose(1, 2).to(self.encoder.input.direction.dtype).expand(-1, self.channels, -1)

    def posterior(self, audio: Tensor) -> Posterior:
        """What the encoder says of ``audio [N, T, C]`` in one piece; differentiable.

        Raises:
            UserError: a wrong shape.
        """
        return self._split(self.encoder(self._channels_first(audio)))

    @staticmethod
    def _split(encoded: Tensor) -> Posterior:
        mean, scale = encoded.float().transpose(1, 2).chunk(2, dim=2)
        return Posterior(mean, F.softplus(scale) + STD_FLOOR)

    def encode_posterior(
        self, audio: Tensor, *, chunked: bool = False, chunk: int = CHUNK, overlap: int | None = None
    ) -> Posterior:
        """Means and standard deviations of the latents; arguments as in :meth:`encode`, without gradients."""
        x = self._channels_first(audio)
        hop = self.hop_lengths[0]
        frames = x.shape[2] // hop
        shape = (x.shape[0], frames, self.latent_dim)
        result = Posterior(x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32))
        with _plainly(self.encoder, x):
            for span in self._spans(frames, self.encoder.reads, chunked, chunk, overlap):
                last = x.shape[2] if span.last == frames else span.last * hop  # the rest of a broken frame is heard
                piece = self._split(self.encoder(x[..., span.first * hop : last]))
                for part, of in zip(result, piece, strict=True):
                    part[:, span.start : span.stop] = of[:, span.start - span.first : span.stop - span.first]
        return result

    def encode(
        self,
        audio: Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Tensor | None = None,
        chunked: bool = False,
        chunk: int = CHUNK,
        overlap: int | None = None,
    ) -> Tensor:
        """Audio to latents, no gradients.

        Args:
            audio: ``[N, T, C]``, or ``[N, T, 1]``, whose channel is repeated. What follows the last whole frame makes
                no latent, though the latents before may hear it.
            generator: draws latents from the posterior; one generator an item makes an item's latents independent of
                its batch. None gives the posterior's means.
            noise: ``[N, T // hop, vae_latent_dim]``, used in place of draws.
            chunked: work in pieces, so that memory does not grow with ``T``.
            chunk: latents a piece.
            overlap: None reads around each piece as far as the encoder looks, which gives what the whole gives. With a
                number pieces overlap by so many latents, as in published models' own code; what they give differs from
                the whole where half of it is less than what the encoder looks at.

        Returns:
            float32 ``[N, T // hop, vae_latent_dim]``.

        Raises:
            UserError: a wrong shape, or another number of generators than of items.
        """
        mean, std = self.encode_posterior(audio, chunked=chunked, chunk=chunk, overlap=overlap)
        if noise is None:
            if generator is None:
                return mean
            noise = _normal(mean.shape, generator)
        if noise.shape != mean.shape:
            raise UserError(
                f"noise of shape {list(noise.shape)} for latents of shape {list(mean.shape)}: give the same"
            )
        return mean + std * noise.to(mean.device)

    def encode_prompt(
        self,
        audio: Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The latents of style prompts, as published models hear them: less than 2048 samples are no latents at all.

        Args:
            audio: ``[N, T]`` mono, or ``[N, T, C]``.
            generator: as in :meth:`encode`; published models always draw.
            noise: as in :meth:`encode`.
        """
        audio = audio.unsqueeze(2) if audio.ndim == 2 else audio
        if audio.shape[1] < SHORTEST_PROMPT:
            return audio.new_zeros((audio.shape[0], 0, self.latent_dim), dtype=torch.float32)
        return self.encode(audio, generator=generator, noise=noise)

    # -- latents to audio ----------------------------------------------------------------------------------------

    @staticmethod
    def _spans(frames: int, reads: Any, chunked: bool, chunk: int, overlap: int | None) -> list[Span]:
        if not frames:
            return []
        if not chunked:
            return spans.whole(frames)
        return spans.exact(frames, chunk, reads) if overlap is None else spans.overlapping(frames, chunk, overlap)

    def decode_pieces(
        self, latents: Tensor, *, chunked: bool = True, chunk: int = CHUNK, overlap: int | None = None
    ) -> Iterator[Tensor]:
        """The pieces of :meth:`decode` one after another, ``[N, t, C]``, to be written as they come."""
        if latents.ndim != 3 or latents.shape[2] != self.latent_dim:
            raise UserError(f"latents of shape {list(latents.shape)}: this VAE takes [batch, time, {self.latent_dim}]")
        z = latents.transpose(1, 2).to(self.decoder.input.direction.dtype)
        hop = self.hop_lengths[0]
        for span in self._spans(z.shape[2], self.decoder.reads, chunked, chunk, overlap):
            with _plainly(self.decoder, z):
                audio = self.decoder(z[..., span.first : span.last])
                piece = audio[..., (span.start - span.first) * hop : (span.stop - span.first) * hop]
            yield piece.transpose(1, 2).float()

    def decode(
        self, latents: Tensor, *, chunked: bool = False, chunk: int = CHUNK, overlap: int | None = None
    ) -> Tensor:
        """Latents to audio, no gradients.

        Args:
            latents: ``[N, T, vae_latent_dim]``.
            chunked: work in pieces, so that memory beyond the result does not grow with ``T``.
            chunk: latents a piece.
            overlap: None reads around each piece as far as the decoder looks, which gives what the whole gives; a
                number works as in :meth:`encode`.

        Returns:
            float32 audio ``[N, T * hop, C]``.

        Raises:
            UserError: a wrong shape.
        """
        made, position = None, 0
        with held_weights(self.decoder):
            for piece in self.decode_pieces(latents, chunked=chunked, chunk=chunk, overlap=overlap):
                if piece.shape[1] == latents.shape[1] * self.hop_lengths[0]:
                    return piece
                if made is None:
                    made = piece.new_empty(piece.shape[0], latents.shape[1] * self.hop_lengths[0], self.channels)
                made[:, position : position + piece.shape[1]] = piece
                position += piece.shape[1]
        return latents.new_zeros((latents.shape[0], 0, self.channels), dtype=torch.float32) if made is None else made

    def reconstruct(self, x: Tensor, bs_chunks: int = 1) -> list[Tensor]:
        """What the VAE keeps of ``x [N, T, C]``: its means decoded, in a list of one, as the VQ-VAE gives levels."""
        return [torch.cat([self.decode(self.encode(part)) for part in x.chunk(bs_chunks)])]

    # -- training ------------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None, metrics: bool = True
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruct and measure.

        In training mode latents are drawn, and with a discriminator the loss is the sum of both sides' losses, whose
        gradients do not mix: one backward pass and one step train both. In eval mode latents are means, and the
        discriminator isn't asked.

        Args:
            x: ``[N, T, C]`` in [-1, 1], ``T`` a multiple of the hop length.
            generator: of the noise. None in training mode: noise that depends on the seed, the step and the item's
                place in the batch of all ranks alone.
            metrics: False gives no numbers to log.

        Returns:
            output ``[N, T, C]``; the loss; numbers to log (tensors without gradient).

        Raises:
            UserError: a wrong shape, or a length that isn't a multiple.
        """
        hop = self.hop_lengths[0]
        if x.ndim == 3 and (x.shape[1] == 0 or x.shape[1] % hop):
            raise UserError(not_whole_frames("the audio", x.shape[1], hop))
        mean, std = self.posterior(x)
        latents = mean
        if generator is not None or self.training:
            latents = mean + std * _normal(mean.shape, generator or self._noise(len(x))).to(mean.device)
        output = self.decoder(latents.to(mean.dtype).transpose(1, 2)).transpose(1, 2).float()
        with torch.autocast(x.device.type, enabled=False):
            target = x.float().expand_as(output)
            loss, numbers = self._measure(target, output, Posterior(mean, std))
        if self.training:
            if self.discriminator is not None:
                loss = loss + self._contest(self.discriminator, target, output, numbers)
            self.steps += 1
        return output, loss, {name: number.detach() for name, number in numbers.items()} if metrics else {}

    def _noise(self, items: int) -> list[torch.Generator]:
        """One generator an item; items are numbered through the ranks, which have equal, contiguous shares."""
        first = world().rank * items
        return [
            torch.Generator().manual_seed(_stable_seed(self.config.seed, self.steps, first + item))
            for item in range(items)
        ]

    def _measure(self, target: Tensor, output: Tensor, posterior: Posterior) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        difference = target - output
        waveform = difference.abs().mean()
        kl = losses.kl_divergence(*posterior)
        with torch.set_grad_enabled(bool(config.vae_spectral) and torch.is_grad_enabled()):
            views = losses.spectral_losses(
                target,
                output,
                transforms=config.transforms,
                sample_rate=config.sr,
                perceptual=config.vae_perceptual,
                floor=config.vae_spectral_floor,
            )
        spectral = views.mean()
        loss = config.vae_spectral * spectral + config.vae_waveform * waveform + config.vae_kl * kl
        numbers = {"spectral_loss": spectral, "l1_loss": waveform, "l2_loss": difference.square().mean(), "kl": kl}
        if config.vae_mel:
            numbers["mel_loss"] = losses.mel_loss(
                target,
                output,
                transforms=config.transforms,
                sample_rate=config.sr,
                floor=config.vae_spectral_floor,
            )
            loss = loss + config.vae_mel * numbers["mel_loss"]
        if self.channels == 2:
            numbers |= {"sum_difference_loss": views[:2].mean(), "left_right_loss": views[2:].mean()}
        return loss, numbers

    def _contest(self, judge: Discriminator, target: Tensor, output: Tensor, numbers: dict[str, Tensor]) -> Tensor:
        """What the discriminator adds to the loss: its own, and what it makes of the output."""
        config = self.config
        adversarial, features, discriminator = judge.losses(target, output)
        numbers |= {
            "adversarial_loss": adversarial,
            "feature_matching_loss": features,
            "discriminator_loss": discriminator,
        }
        if self.steps < config.vae_adversarial_start:
            return discriminator
        return discriminator + config.vae_adversarial * adversarial + config.vae_feature_matching * features

    def codebook_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides weights: the number of steps, which noise depends on. Plain data."""
        return {"steps": self.steps}

    def load_codebook_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`codebook_state` gave; with it the next steps are as if there had been no stop."""
        self.steps = int(state["steps"])

    def load_codec(self, state: Mapping[str, Tensor]) -> None:
        """Load encoder and decoder alone, strictly; a discriminator, on either side, is left out.

        Raises:
            UserError: names or shapes of another model.
        """
        codec = {name: tensor for name, tensor in state.items() if not name.startswith("discriminator.")}
        own = {name: p.shape for name, p in self.state_dict().items() if not name.startswith("discriminator.")}
        for name in sorted({*codec, *own}):
            there, here = codec.get(name), own.get(name)
            if there is None or here is None or there.shape != here:
                told = "nothing" if there is None else list(there.shape)
                wanted = "nothing" if here is None else list(here)
                raise UserError(
                    f"weights of another VAE: {name} is {told} there, {wanted} here; check vae_width, vae_multipliers, "
                    "vae_strides and vae_latent_dim"
                )
        self.load_state_dict(codec, strict=False)

    # -- cost ----------------------------------------------------------------------------------------------------

    def cost(self) -> dict[str, Any]:
        """What the codec costs, without a discriminator.

        Returns:
            ``parameters``; ``encode_operations`` and ``decode_operations`` (multiplications and additions a sample of
            audio and ``codes_per_second`` (latents), each in a list of one; ``encode_margin`` and ``decode_margin``:
            latents that a piece reads beyond its ends, left and right.
        """
        encode, decode = _operations(self.encoder, 1.0), _operations(self.decoder, 1 / self.hop_lengths[0])
        margins = [(-first, last - 1) for first, last in (self.encoder.reads((0, 1)), self.decoder.reads((0, 1)))]
        return {
            "parameters": sum(p.numel() for part in (self.encoder, self.decoder) for p in part.parameters()),
            "encode_operations": [encode],
            "decode_operations": [decode],
            "codes_per_second": [self.sample_rate / self.hop_lengths[0]],
            "encode_margin": margins[0],
            "decode_margin": margins[1],
        }


@contextmanager
def _plainly(part: nn.Module, x: Tensor) -> Iterator[None]:
    """Without gradients, in the weights' own precision, the weights put together once."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), held_weights(part):
        yield


def _normal(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Float32 noise of ``shape [N, …]`` on the generator's device; with one generator an item, each draws its own."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise UserError(
            f"{counted(len(generator), 'generator')} for {counted(shape[0], 'item')}: give one an item, or one for all"
        )
    return torch.stack([torch.randn(tuple(shape[1:]), generator=each, device=each.device) for each in generator])


def _stable_seed(*parts: int) -> int:
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _operations(module: nn.Module, rate: float) -> float:
    """Multiplications and additions a sample of audio of all convolutions below, run in order from ``rate``."""
    total = 0.0
    for part in module.modules():
        if isinstance(part, Convolution):
            rate /= part.stride
            total += part.operations() * rate
        elif isinstance(part, TransposedConvolution):
            total += part.operations() * rate
            rate *= part.stride
    return total
