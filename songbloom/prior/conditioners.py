"""What a prior is conditioned on besides its own past: the codes of the level above, and positions in a song.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4 (upsampling priors' conditioner stacks,
timing signals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.prior.config import Codec, PriorConfig
from songbloom.vqvae.blocks import ResidualOptions, UpsamplingBlock


@dataclass(frozen=True)
class Conditions:
    """What a window's codes depend on besides the codes before them; None where the model has no such thing.

    Attributes:
        x_cond: [N, n_ctx, W], added at each position of the music: the codes above, or the timing labels.
        y_cond: [N, 1, W], what the sequence begins with: artist and genre.
        lyrics: [N, n_tokens] int64, lyric tokens (with ``copy_input`` codes).
    """

    x_cond: Tensor | None = None
    y_cond: Tensor | None = None
    lyrics: Tensor | None = None


class UpsamplingConditioner(nn.Module):
    """Codes of the level above at this level's rate: ``[N, T]`` → ``[N, T * stride_t ** down_t, W]``.

    Args:
        bins: size of the codebook above.
        width: W, the prior's width.
        down_t: stages between the two levels, at least 1.
        stride_t: stride of each stage, at least 2.
        cond_width: channels inside.
        cond_depth: residual blocks a stage.
        init_scale: factor of the embedding's initial standard deviation 0.02.

    The other arguments are those of :class:`songbloom.vqvae.blocks.ResidualStack`.

    Raises:
        UserError: ``down_t`` or ``stride_t`` doesn't upsample.
    """

    def __init__(
        self,
        bins: int,
        width: int,
        *,
        down_t: int,
        stride_t: int,
        cond_width: int,
        cond_depth: int,
        init_scale: float = 1.0,
        **options: Unpack[ResidualOptions],
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(bins, width)
        nn.init.normal_(self.embedding.weight, std=0.02 * init_scale)
        self.upsample = UpsamplingBlock(
            width, width, down_t=down_t, stride_t=stride_t, width=cond_width, depth=cond_depth, **options
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.down_t, self.stride_t = down_t, stride_t

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """``codes`` [N, T] int64 → [N, T * factor, W] float32; ``condition`` [N, T, W] is added to their embedding."""
        x = self.embedding(codes)
        if condition is not None:
            x = x + condition
        return self.norm(self.upsample(x.transpose(1, 2)).transpose(1, 2).float())

    def operations_per_token(self) -> float:
        """Multiplications and additions of a forward pass for each position that comes out, biases left out."""
        operations = 0.0
        for name, weight in self.upsample.named_parameters():
            if weight.ndim < 2:
                continue
            # Each convolution, transposed ones too, uses all of its weights once a position that goes in; a stage's
            # positions are stride_t times as many as those of the stage before it.
            stage = int(name.split(".")[1]) if name.startswith("stages.") else 0
            operations += 2.0 * weight.numel() / self.stride_t ** (self.down_t - stage)
        return operations


def _stride_of_level(config: PriorConfig, codec: Codec, level: int) -> tuple[int, int]:
    """``(down_t, stride_t)`` of a codec's level: the codec's own, or else the configuration's."""
    source = getattr(codec, "config", config)
    downs_t, strides_t = source.downs_t, source.strides_t
    factor = codec.downsamples[level]
    if level >= len(downs_t) or level >= len(strides_t) or strides_t[level] ** downs_t[level] != factor:
        raise UserError(
            f"downs_t={tuple(downs_t)} and strides_t={tuple(strides_t)} don't give the codec's downsampling of {factor}"
            f" at level {level}: use the values that the codec was built with"
        )
    return downs_t[level], strides_t[level]


def upsampling_conditioner(config: PriorConfig, codec: Codec) -> UpsamplingConditioner:
    """The conditioner of a prior with these settings, on the codes of the level above.

    Raises:
        UserError: the settings give another upsampling than the codec's.
    """
    down_t, stride_t = _stride_of_level(config, codec, config.level + 1)
    return UpsamplingConditioner(
        codec.l_bins,
        config.prior_width,
        down_t=down_t,
        stride_t=stride_t,
        cond_width=config.cond_width,
        cond_depth=config.cond_depth,
        m_conv=config.cond_m_conv,
        dilation_growth_rate=config.cond_dilation_growth_rate,
        dilation_cycle=config.cond_dilation_cycle,
        zero_out=config.cond_zero_out,
        res_scale=config.cond_res_scale,
        checkpoint=config.cond_c_res == 1,
        init_scale=config.init_scale,
    )


class RangeEmbedding(nn.Module):
    """Embeds numbers of a range ``[low, high)`` by the bin that they fall into.

    With ``n_time`` 1 it embeds one number an item; otherwise ``n_time`` numbers that lead evenly from ``start`` up to
    ``end`` (exclusive), so that each position of a window learns where in the song it is.

    Args:
        n_time: numbers an item.
        bins: rows of the table.
        low, high: the range; all bins are of equal size.
        width: W, of the embedding.
        init_scale: factor of the table's initial standard deviation 0.01.
        clamp: bring ``end`` into the range first, instead of refusing it.
    """

    def __init__(
        self,
        n_time: int,
        bins: int,
        low: float,
        high: float,
        width: int,
        *,
        init_scale: float = 1.0,
        clamp: bool = False,
    ) -> None:
        super().__init__()
        self.n_time, self.bins, self.low, self.high, self.clamp = n_time, bins, low, high, clamp
        self.embedding = nn.Embedding(bins, width)
        nn.init.normal_(self.embedding.weight, std=0.01 * init_scale)

    def bin_index(self, start: Tensor, end: Tensor | None = None, *, check: bool = True) -> Tensor:
        """``start`` and ``end`` [N, 1] → [N, n_time] int64. All arithmetic is float32, as in published models.

        Args:
            check: look whether the numbers lie in the range, which waits for the device; False where that is known.

        Raises:
            UserError: ``start`` lies outside ``[low, high)`` or ``end`` outside ``[low, high]``.
        """
        start = start.float()
        if check:
            self._check("start", start, start < self.high)
        position = start
        if self.n_time != 1:
            if end is None:
                raise UserError(f"a range embedding over {self.n_time} positions needs an end as well as a start")
            end = end.float()
            if self.clamp:
                end = end.clamp(self.low, self.high)
            if check:
                self._check("end", end, end <= self.high)
            share = torch.arange(self.n_time, dtype=torch.float32, device=start.device) / self.n_time
            position = start + (end - start) * share
        normalised = (position - self.low) / (self.high - self.low)
        # Rounding may carry a number at an end of the range just beyond it, where there is no bin.
        return (self.bins * normalised).floor().long().clamp(0, self.bins - 1)

    def _check(self, name: str, value: Tensor, below: Tensor) -> None:
        if not bool(((value >= self.low) & below).all()):
            worst = value[~((value >= self.low) & below)].flatten()[0].item()
            raise UserError(
                f"{name} {worst:g} lies outside the range {self.low:g} to {self.high:g} that this model was built for"
            )

    def forward(self, start: Tensor, end: Tensor | None = None, *, check: bool = True) -> Tensor:
        """``start`` and ``end`` [N, 1] → [N, n_time, W]; ``check`` and what it raises as in :meth:`bin_index`."""
        return self.embedding(self.bin_index(start, end, check=check))
