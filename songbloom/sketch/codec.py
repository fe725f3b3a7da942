"""The SongBloom family's codec: a VAE's latents and the sketch of the same audio, as two levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.sketch.features import FRAME_RATE
from songbloom.sketch.tokeniser import SketchTokeniser
from songbloom.vae.vae import VAE

LATENTS, SKETCH = 0, 1  # the levels


class SketchedCodec:
    """Audio ↔ latents (level 0) and, one way only, sketch codes (level 1), 25 frames of each a second.

    Args:
        vae: makes latents of audio and audio of latents.
        tokeniser: makes sketch codes; None where there is no codebook, as for published models.
        l_bins: codes that the prior knows; None: the tokeniser's.

    Attributes:
        sample_rate: of the audio, Hz.
        channels: of the audio.
        levels: always 2.
        hop_lengths: samples a frame of each level, which are the same.
        latent_width: numbers of a latent.
        l_bins: sketch codes, 0 if nobody has said how many.

    Raises:
        UserError: a VAE that has no 25 frames a second, or a codebook of another size than the prior's table.
    """

    levels = 2

    def __init__(self, vae: VAE, tokeniser: SketchTokeniser | None = None, l_bins: int | None = None) -> None:
        hop = vae.hop_lengths[0]
        if vae.sample_rate != hop * FRAME_RATE:
            raise UserError(
                f"a VAE of {vae.sample_rate} Hz with {hop} samples a latent has {vae.sample_rate / hop:g} latents a "
                f"second; a sketch has {FRAME_RATE}: vae_strides must multiply to {vae.sample_rate / FRAME_RATE:g}"
            )
        if tokeniser is not None and l_bins is not None:
            tokeniser.codebook.check_size(l_bins)
        self.vae, self.tokeniser = vae, tokeniser
        self.sample_rate, self.channels, self.hop_lengths = vae.sample_rate, vae.channels, (hop, hop)
        self.latent_width = vae.latent_dim
        self.l_bins = l_bins or (tokeniser.size if tokeniser is not None else 0)

    @property
    def device(self) -> torch.device:
        """Where the VAE computes."""
        return next(self.vae.parameters()).device

    def frames(self, samples: int) -> int:
        """Whole frames in so many samples."""
        return samples // self.hop_lengths[0]

    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[N, T, C]`` or ``[N, T, 1]`` → latents, the posterior's means, ``[N, frames, latent_width]``."""
        return self.vae.encode(audio.to(self.device), chunked=True)

    def encode_sketch(self, audio: Tensor) -> Tensor:
        """Audio ``[N, T, C]`` → codes int64 ``[N, frames]``.

        Raises:
            UserError: there is no codebook.
        """
        if self.tokeniser is None:
            raise UserError(
                "there is no sketch codebook, so audio has no sketch (published models came without theirs): give "
                "--restore_sketch=FILE with the one that the prior was trained with, or recover it from the model "
                "(train.py --vq --hps=sketch_vq --recover_from=MODEL); ancestral sampling needs none"
            )
        return self.tokeniser.encode(audio, self.sample_rate)[:, : self.frames(audio.shape[1])].to(self.device)

    def encode(self, audio: Tensor, start_level: int = 0, end_level: int | None = None) -> list[Tensor]:
        """Audio ``[N, T, C]`` → of each level from ``start_level`` up to ``end_level`` (exclusive): latents float32
        ``[N, frames, latent_width]``, sketch int64 ``[N, frames]``.

        Raises:
            UserError: the sketch is wanted and there is no codebook.
        """
        wanted = range(start_level, self.levels if end_level is None else end_level)
        return [self.encode_sketch(audio) if level == SKETCH else self.encode_latents(audio) for level in wanted]

    def decode(self, codes: Sequence[Tensor], level: int = 0) -> Tensor:
        """Latents ``[N, frames, latent_width]``, the first of ``codes`` → audio ``[N, T, C]``.

        Raises:
            UserError: ``level`` is that of the sketch, from which no audio can be made.
        """
        return self.vae.decode(self._latents(codes, level), chunked=True)

    def decode_pieces(self, codes: Sequence[Tensor], level: int = 0, *, piece: int | None = None) -> Iterator[Tensor]:
        """What :meth:`decode` gives, in pieces ``[N, t, C]`` of ``piece`` frames, in memory that doesn't grow with the
        song."""
        latents = self._latents(codes, level)
        return self.vae.decode_pieces(latents, chunk=piece) if piece else self.vae.decode_pieces(latents)

    def _latents(self, codes: Sequence[Tensor], level: int) -> Tensor:
        if level != LATENTS:
            raise UserError("a sketch alone is no sound: upsample it to latents first (sample.py --mode=upsample)")
        return codes[0].to(self.device)
