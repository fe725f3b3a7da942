"""The hierarchical VQ-VAE: raw audio to discrete codes at several rates, and back from each.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 3 and appendix B.1. Every level has its
own encoder from raw audio, its own codebook and its own decoder back to raw audio; nothing is shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from songbloom.audio.spectral import STFT, stfts
from songbloom.distributed import world
from songbloom.errors import UserError, counted
from songbloom.hyperparams import fields_from
from songbloom.vqvae import losses, pieces
from songbloom.vqvae.blocks import Decoder, DownsamplingBlock, Encoder, UpsamplingBlock, operations, reset_convolutions
from songbloom.vqvae.bottleneck import Bottleneck, NoBottleneck

NO_BANDWIDTH = {"l1": 1.0, "l2": 1.0, "spec": 1.0}  # losses stay in the audio's own units


@dataclass(frozen=True)
class VQVAEConfig:
    """What a VQ-VAE is made of; fields are named as the hyperparameters, which ``songbloom/knobs/`` explains.

    Raises:
        UserError: values that make no model.
    """

    sr: int = 44100
    sample_length: int = 0
    sample_length_in_seconds: float = 24
    levels: int = 2
    downs_t: tuple[int, ...] = (1, 1)
    strides_t: tuple[int, ...] = (2, 2)
    hvqvae_multipliers: tuple[int, ...] | None = None
    emb_width: int = 64
    l_bins: int = 512
    l_mu: float = 0.99
    revival_threshold: float = 1.0
    use_bottleneck: bool = True
    width: int = 128
    depth: int = 3
    m_conv: float = 1.0
    dilation_growth_rate: int = 1
    dilation_cycle: int | None = None
    vqvae_reverse_decoder_dilation: bool = True
    commit: float = 1.0
    spectral: float = 0.0
    multispectral: float = 1.0
    loss_fn: str = "l2"
    linf_k: int = 2048
    lmix_l1: float = 0.0
    lmix_l2: float = 0.0
    lmix_linf: float = 0.0
    use_nonrelative_specloss: bool = True
    multispec_loss_n_fft: tuple[int, ...] = (2048, 1024, 512)
    multispec_loss_hop_length: tuple[int, ...] = (240, 120, 50)
    multispec_loss_window_size: tuple[int, ...] = (1200, 600, 240)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UserError(f"levels is {self.levels}: a VQ-VAE needs at least 1")
        for name in ("downs_t", "strides_t", "hvqvae_multipliers"):
            value = getattr(self, name)
            if value is not None and len(value) != self.levels:
                raise UserError(f"{name} has {counted(len(value), 'value')} for {self.levels} levels: give one a level")
        losses.check_loss_function(self.loss_fn)
        _ = self.transforms  # complains about unusable sizes
        if self.sample_length % self.hop_lengths[-1]:
            raise UserError(_not_a_multiple("sample_length", self.sample_length, self.hop_lengths[-1]))

    @classmethod
    def from_hps(cls, mapping: Mapping[str, Any]) -> VQVAEConfig:
        """Take what a VQ-VAE needs from any mapping of hyperparameters, defaults for what isn't there."""
        return cls(**fields_from(cls, mapping))

    @property
    def downsamples(self) -> tuple[int, ...]:
        """Samples of the level below (audio for level 0) a code, one number a level."""
        return tuple(stride**down for down, stride in zip(self.downs_t, self.strides_t, strict=True))

    @property
    def hop_lengths(self) -> tuple[int, ...]:
        """Audio samples a code, one number a level."""
        return tuple(math.prod(self.downsamples[: level + 1]) for level in range(self.levels))

    @property
    def multipliers(self) -> tuple[int, ...]:
        """By what each level's width and depth are multiplied."""
        return self.hvqvae_multipliers or (1,) * self.levels

    @property
    def samples(self) -> int:
        """Audio samples of one training example: ``sample_length``, or from seconds, a multiple of the top hop."""
        top = self.hop_lengths[-1]
        return self.sample_length or int(self.sample_length_in_seconds * self.sr) // top * top

    @property
    def transforms(self) -> tuple[STFT, ...]:
        """The STFTs of the multi-size spectral loss."""
        return stfts(self.multispec_loss_n_fft, self.multispec_loss_hop_length, self.multispec_loss_window_size)


def _not_a_multiple(what: str, length: int, hop: int) -> str:
    below = length // hop * hop
    nearest = f"{below} or {below + hop}" if below else str(hop)
    return f"{what} is {length} samples, no multiple of the hop length {hop}: cut or pad it to {nearest}"


class VQVAE(nn.Module):
    """Encoders, codebooks and decoders of all levels.

    Args:
        config: sizes and losses.
        generator: draws the initial weights (None: PyTorch's global one).

    Attributes:
        sample_rate: of the audio, in Hz.
        channels: of the audio; always 1.
        levels: number of levels; level 0 is the finest.
        l_bins: codes a level.
        downsamples: samples of the level below a code, one number a level.
        hop_lengths: audio samples a code, one number a level.
        sample_length: audio samples of one training example.
        z_shapes: shape of the codes of one such example, one a level.
        bandwidth: what the losses are divided by, ``{"l1", "l2", "spec"}``; ones until it is set.
    """

    def __init__(self, config: VQVAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sr
        self.channels = 1
        self.levels = config.levels
        self.l_bins = config.l_bins
        self.downsamples = config.downsamples
        self.hop_lengths = config.hop_lengths
        self.sample_length = config.samples
        self.z_shapes = tuple((self.sample_length // hop,) for hop in self.hop_lengths)
        self.bandwidth: Mapping[str, float] = dict(NO_BANDWIDTH)
        self.encoders = nn.ModuleList(self._encoder(level) for level in range(self.levels))
        self.decoders = nn.ModuleList(self._decoder(level) for level in range(self.levels))
        self.bottleneck = (
            Bottleneck(
                config.l_bins,
                config.emb_width,
                config.l_mu,
                config.levels,
                revival_threshold=config.revival_threshold,
                seed=config.seed,
            )
            if config.use_bottleneck
            else NoBottleneck()
        )
        if generator is not None:
            reset_convolutions(self, generator)

    def _sizes(self, level: int, block: int) -> dict[str, Any]:
        config = self.config
        return {
            "down_t": config.downs_t[block],
            "stride_t": config.strides_t[block],
            "width": config.width * config.multipliers[level],
            "depth": config.depth * config.multipliers[level],
            "m_conv": config.m_conv,
            "dilation_growth_rate": config.dilation_growth_rate,
            "dilation_cycle": config.dilation_cycle,
        }

    def _encoder(self, level: int) -> Encoder:
        width = self.config.emb_width
        return Encoder(
            [
                DownsamplingBlock(width if block else self.channels, width, **self._sizes(level, block))
                for block in range(level + 1)
            ]
        )

    def _decoder(self, level: int) -> Decoder:
        width, reverse = self.config.emb_width, self.config.vqvae_reverse_decoder_dilation
        blocks = [
            UpsamplingBlock(width, width, reverse_dilation=reverse, **self._sizes(level, block))
            for block in range(level + 1)
        ]
        return Decoder(blocks, width, self.channels)

    # -- codes ---------------------------------------------------------------------------------------------------

    def _span(self, start_level: int, end_level: int | None) -> range:
        end = self.levels if end_level is None else end_level
        if not 0 <= start_level < end <= self.levels:
            raise UserError(
                f"levels from {start_level} up to {end} of a VQ-VAE of {self.levels} levels: "
                f"start_level must be below end_level, and end_level at most {self.levels}"
            )
        return range(start_level, end)

    def _to_channels_first(self, x: Tensor, levels: range) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.channels:
            raise UserError(f"audio of shape {list(x.shape)}: a VQ-VAE takes [batch, time, 1]; mix it to mono first")
        hop = self.hop_lengths[levels[-1]]
        if x.shape[1] == 0 or x.shape[1] % hop:
            raise UserError(_not_a_multiple("the audio", x.shape[1], hop))
        return x.transpose(1, 2).float()

    def encode(self, x: Tensor, start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1) -> list[Tensor]:
        """Audio to codes; only the encoders of the asked levels run.

        Args:
            x: ``[N, T, 1]``, ``T`` a multiple of the coarsest asked level's hop length.
            start_level: finest level wanted.
            end_level: one past the coarsest level wanted (None: all above).
            bs_chunks: work on the batch in so many pieces, to bound memory.

        Returns:
            int64 codes ``[N, T / hop_lengths[level]]`` for each level from ``start_level``.

        Raises:
            UserError: a wrong shape, a length that isn't a multiple, or levels that don't exist.
        """
        levels = self._span(start_level, end_level)
        audio = self._to_channels_first(x, levels)
        with torch.no_grad():
            pieces = [
                [self.bottleneck.encode(self.encoders[level](part), level) for level in levels]
                for part in audio.chunk(bs_chunks)
            ]
        return [torch.cat(level) for level in zip(*pieces, strict=True)]

    def decode(
        self, codes: Sequence[Tensor], start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1
    ) -> Tensor:
        """Codes to audio, by the decoder of ``start_level`` from ``codes[0]``; the coarser codes aren't looked at.

        Args:
            codes: int64 ``[N, T_level]`` for each level from ``start_level`` to ``end_level - 1``.
            start_level: the level to decode.
            end_level: one past the level of the last given codes (None: all above).
            bs_chunks: work on the batch in so many pieces, to bound memory.

        Returns:
            float32 audio ``[N, T_start * hop_lengths[start_level], 1]``.

        Raises:
            UserError: another number of codes than of levels.
        """
        levels = self._span(start_level, end_level)
        if len(codes) != len(levels):
            raise UserError(
                f"codes of {counted(len(codes), 'level')} to decode levels {levels[0]} to "
                f"{levels[-1]}: give {len(levels)}"
            )
        decoder = self.decoders[start_level]
        with torch.no_grad():
            parts = [decoder(self.bottleneck.decode(part, start_level)) for part in codes[0].chunk(bs_chunks)]
            return torch.cat(parts).transpose(1, 2).float()

    def decode_pieces(
        self, codes: Sequence[Tensor], start_level: int = 0, *, piece: int | None = None
    ) -> Iterator[Tensor]:
        """What :meth:`decode` gives, piece by piece, so that memory does not grow with the song.

        Around each piece as many codes are read as the decoder looks at, so the seams are those of the whole: nothing
        differs but, where kernels sum pieces of other lengths in another order, the last bit of float32.

        Args:
            codes: int64 ``[N, T_level]`` for each level from ``start_level`` up; only the first is looked at.
            start_level: the level to decode.
            piece: codes a piece, at least 1 (None: about 6 seconds, see :mod:`songbloom.vqvae.pieces`).

        Yields:
            float32 audio ``[N, t, 1]``, from the beginning on; together ``T_start * hop_lengths[start_level]`` samples.

        Raises:
            UserError: a level that doesn't exist, no codes, or a piece of none.
        """
        self._span(start_level, None)
        if not codes:
            raise UserError("no codes to decode: give those of start_level at least")
        decoder, hop, total = (
            cast(Decoder, self.decoders[start_level]),
            self.hop_lengths[start_level],
            codes[0].shape[1],
        )
        length = pieces.usual_piece(decoder, hop) if piece is None else piece
        if length < 1:
            raise UserError(f"piece is {length} codes: it needs at least 1")
        return self._pieces(decoder, codes[0], start_level, length, hop, total)

    def _pieces(
        self, decoder: Decoder, codes: Tensor, level: int, length: int, hop: int, total: int
    ) -> Iterator[Tensor]:
        for start in range(0, total, length):
            end = min(total, start + length)
            first, last = pieces.reads(decoder, (start * hop, end * hop))
            first, last = max(0, first), min(total, last)
            with torch.no_grad():
                audio = decoder(self.bottleneck.decode(codes[:, first:last], level))
            yield audio[..., (start - first) * hop : (end - first) * hop].transpose(1, 2).float()

    def reconstruct(self, x: Tensor, bs_chunks: int = 1) -> list[Tensor]:
        """What each level keeps of ``x [N, T, 1]``: its codes decoded, ``[N, T, 1]`` a level."""
        codes = self.encode(x, bs_chunks=bs_chunks)
        return [self.decode(codes[level:], start_level=level, bs_chunks=bs_chunks) for level in range(self.levels)]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` sounds ``[n, sample_length, 1]`` of uniformly random finest codes, drawn on the generator's device."""
        device = next(self.parameters()).device
        drawn = torch.randint(
            self.l_bins, (n, *self.z_shapes[0]), generator=generator, device=generator.device if generator else "cpu"
        )
        return self.decode([drawn.to(device)], start_level=0, end_level=1)

    # -- training ------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        *,
        loss_fn: str | None = None,
        bandwidth: Mapping[str, float] | None = None,
        metrics: bool = True,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruct and measure; in training mode the codebooks learn from the batch on the way.

        Args:
            x: ``[N, T, 1]`` in [-1, 1], ``T`` a multiple of the top hop length.
            loss_fn: reconstruction loss (None: the configuration's).
            bandwidth: what losses are divided by (None: ``self.bandwidth``).
            metrics: False computes only what the loss is made of.

        Returns:
            output of level 0 ``[N, T, 1]``; the loss; numbers to log (tensors without gradient).

        Raises:
            UserError: as :meth:`encode`, or an unknown ``loss_fn``.
        """
        audio = self._to_channels_first(x, range(self.levels))
        encoded = [encoder(audio) for encoder in self.encoders]
        _, quantised, commits, book_metrics = self.bottleneck(encoded)
        if not self.training:
            quantised = [q.detach() for q in quantised]
        outputs = torch.stack(
            [decoder(q).float() for decoder, q in zip(self.decoders, quantised, strict=True)]
        ).transpose(2, 3)
        with torch.autocast(x.device.type, enabled=False):
            loss, numbers = self._measure(x.float(), outputs, torch.stack(commits).sum(), loss_fn, bandwidth, metrics)
            if metrics and self.training:
                for name in book_metrics[0]:
                    numbers[name] = torch.stack([level[name].float() for level in book_metrics]).mean()
        return outputs[0], loss, {name: number.detach() for name, number in numbers.items()}

    def _measure(
        self,
        x: Tensor,
        outputs: Tensor,
        commit: Tensor,
        loss_fn: str | None,
        bandwidth: Mapping[str, float] | None,
        wanted: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``outputs [levels, N, T, 1]``, and all there is to log (nothing unless ``wanted``)."""
        config = self.config
        bandwidth = self.bandwidth if bandwidth is None else bandwidth
        difference = x - outputs

        def measure(name: str, of: Tensor) -> Tensor:
            return losses.reconstruction_loss(
                name,
                of,
                bandwidth,
                linf_k=config.linf_k,
                lmix_l1=config.lmix_l1,
                lmix_l2=config.lmix_l2,
                lmix_linf=config.lmix_linf,
            )

        recons = torch.stack([measure(loss_fn or config.loss_fn, level) for level in difference])
        loss = recons.sum() + config.commit * commit
        numbers = {"recons_loss": recons}
        if config.spectral or wanted:
            spec, converged = losses.spectral_losses(
                x,
                outputs,
                bandwidth,
                relative=not config.use_nonrelative_specloss,
                differentiate=bool(config.spectral),
            )
            loss = loss + config.spectral * spec.sum() if config.spectral else loss
            numbers["spectral_loss"] = spec
        if config.multispectral or wanted:
            multi = losses.multispectral_losses(
                x, outputs, bandwidth, transforms=config.transforms, differentiate=bool(config.multispectral)
            )
            loss = loss + config.multispectral * multi.sum() if config.multispectral else loss
            numbers["multispectral_loss"] = multi
        if not wanted:
            return loss, {}
        each = range(self.levels)
        metrics = {f"{name}_l{level + 1}": values[level] for name, values in numbers.items() for level in each}
        metrics |= {name: values.sum() for name, values in numbers.items()}
        with torch.no_grad():
            metrics |= {"spectral_convergence": converged, "commit_loss": commit}
            metrics |= {f"{name}_loss": measure(name, difference[0]) for name in ("l2", "l1", "linf")}
        return loss, metrics

    # -- the codebooks' statistics -------------------------------------------------------------------------------

    def codebook_state(self) -> dict[str, Any]:
        """Moving averages, thresholds and the state of the codebooks' draws: plain data for a checkpoint."""
        return self.bottleneck.state()

    def load_codebook_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`codebook_state` gave; with it the next steps are as if there had been no stop.

        Raises:
            UserError: the state of another model.
        """
        self.bottleneck.load_state(state)

    def restore_codebooks(self, batch_size: int, sample_length: int | None = None) -> None:
        """Rebuild moving averages for training on from weights that came without them (published checkpoints).

        The codes of one step are taken to be used evenly, and ``revival_threshold`` comes into force. Without this call
        the first training batch does the same with its own size.

        Args:
            batch_size: examples a step on this rank.
            sample_length: samples of one example (None: the configuration's).
        """
        samples = (sample_length or self.sample_length) * batch_size * world().size
        self.bottleneck.restore([samples / hop for hop in self.hop_lengths], self.config.revival_threshold)

    # -- cost ----------------------------------------------------------------------------------------------------

    def cost(self) -> dict[str, Any]:
        """What the model costs.

        Returns:
            ``parameters`` (codebooks not counted), ``codebook_entries`` (numbers in all codebooks), and lists, one
            number a level: ``encode_operations`` and ``decode_operations`` (multiplications and additions a sample of
            audio) and ``codes_per_second``.
        """
        encoders = [operations(encoder, 1.0)[0] for encoder in self.encoders]
        search = 2 * self.l_bins * self.config.emb_width if self.config.use_bottleneck else 0
        return {
            "parameters": sum(p.numel() for p in self.parameters()),
            "codebook_entries": sum(b.numel() for name, b in self.state_dict().items() if name.endswith(".codebook")),
            "encode_operations": [cost + search / hop for cost, hop in zip(encoders, self.hop_lengths, strict=True)],
            "decode_operations": [
                sum(operations(block, 1 / self.hop_lengths[index])[0] for index, block in enumerate(decoder.blocks))
                + operations(decoder.output, 1.0)[0]
                for decoder in cast(list[Decoder], self.decoders)
            ],
            "codes_per_second": [self.sample_rate / hop for hop in self.hop_lengths],
        }
