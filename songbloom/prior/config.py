"""The settings of a prior, and what of them cannot be built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from songbloom.errors import UserError
from songbloom.hyperparams import fields_from
from songbloom.transformer.blocks import TransformerConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str | torch.dtype | None) -> torch.dtype:
    """``fp32``, ``bf16`` or ``fp16`` (or a dtype; None is float32) → the dtype.

    Raises:
        UserError: another word.
    """
    if precision is None:
        return torch.float32
    if isinstance(precision, torch.dtype):
        return precision
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}: it must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


class Codec(Protocol):
    """What a prior reads of a codec when it is built; it keeps no reference to it."""

    levels: int
    l_bins: int

    @property
    def downsamples(self) -> Sequence[int]: ...

    @property
    def hop_lengths(self) -> Sequence[int]: ...

    @property
    def z_shapes(self) -> Sequence[Sequence[int]]: ...


@dataclass(frozen=True)
class PriorConfig:
    """Settings of a prior; the fields are hyperparameters and explained in ``songbloom/knobs/``, but for this one.

    Attributes:
        draw_lyric_ids: where lyrics and music are one sequence, let the id of a lyric token be drawn in the place of a
            code, as the published sampler does: it stays in the context of its window, and the code given back is 0.
            Otherwise only codes are drawn. Trained models give lyric ids next to no probability there.
    """

    level: int = 0
    n_ctx: int = 1024
    prior_width: int = 128
    prior_depth: int = 3
    heads: int = 1
    attn_order: int = 0
    blocks: int | None = None
    spread: int | None = None
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    emb_dropout: float = 0.0
    zero_out: bool = False
    res_scale: bool = False
    pos_init: bool = False
    init_scale: float = 1.0
    m_attn: float = 0.25
    m_mlp: float = 1.0
    c_res: int = 0
    c_attn: int = 0
    c_mlp: int = 0
    merged_decoder: bool = False
    cond_depth: int = 3
    cond_width: int = 128
    cond_m_conv: float = 1.0
    cond_zero_out: bool = False
    cond_res_scale: bool = False
    cond_dilation_growth_rate: int = 1
    cond_dilation_cycle: int | None = None
    cond_c_res: int = 0
    downs_t: tuple[int, ...] = (1, 1)
    strides_t: tuple[int, ...] = (2, 2)
    sr: int = 44100
    labels: bool = True
    y_bins: int | tuple[int, ...] = 0
    t_bins: int = 64
    max_bow_genre_size: int | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    use_tokens: bool = False
    n_tokens: int = 0
    n_vocab: int = 0
    single_enc_dec: bool = False
    copy_input: bool = False
    draw_lyric_ids: bool = False
    prime_loss_fraction: float = 0.1
    alignment_layer: int | None = None
    alignment_head: int | None = None
    alignment_loss_fraction: float = 0.0
    prime_depth: int = 3
    prime_width: int = 128
    prime_heads: int = 1
    prime_attn_order: int = 0
    prime_blocks: int | None = None
    prime_spread: int | None = None
    prime_attn_dropout: float = 0.0
    prime_resid_dropout: float = 0.0
    prime_emb_dropout: float = 0.0
    prime_zero_out: bool = False
    prime_res_scale: bool = False
    prime_pos_init: bool = False
    prime_init_scale: float = 1.0
    prime_m_attn: float = 0.25
    prime_m_mlp: float = 1.0
    prime_c_res: int = 0
    prime_c_attn: int = 0
    prime_c_mlp: int = 0

    @classmethod
    def from_hps(cls, hps: Mapping[str, Any]) -> PriorConfig:
        """Take what a prior knows from any mapping of hyperparameters; what is missing has its default."""
        return cls(**fields_from(cls, hps))

    @property
    def lyric_tokens(self) -> int:
        """How many lyric tokens a window is shown: ``n_tokens`` where lyrics are used, else 0."""
        return self.n_tokens if self.use_tokens or self.single_enc_dec else 0

    @property
    def label_width(self) -> int:
        """Columns of a label vector: length, offset, window, artist, genre words, lyric tokens; 0 without labels."""
        return 4 + (self.max_bow_genre_size or 0) + self.lyric_tokens if self.labels else 0

    def lyric_bins(self, l_bins: int) -> int:
        """Size of the lyric vocabulary; with ``copy_input`` codes take the words' place."""
        return l_bins if self.copy_input else self.n_vocab

    def transformer(self) -> TransformerConfig:
        """The transformer's part of the settings."""
        lyrics = self.lyric_tokens
        return TransformerConfig(
            width=self.prior_width,
            n_ctx=self.n_ctx + (lyrics if self.single_enc_dec else 0),
            heads=self.heads,
            depth=self.prior_depth,
            attn_order=self.attn_order,
            blocks=self.blocks,
            spread=self.spread,
            m_attn=self.m_attn,
            m_mlp=self.m_mlp,
            attn_dropout=self.attn_dropout,
            resid_dropout=self.resid_dropout,
            zero_out=self.zero_out,
            res_scale=self.res_scale,
            init_scale=self.init_scale,
            encoder_dims=0 if self.single_enc_dec else lyrics,
            prime_len=lyrics if self.single_enc_dec else None,
            c_res=self.c_res,
            c_attn=self.c_attn,
            c_mlp=self.c_mlp,
        )

    def encoder(self) -> TransformerConfig:
        """The lyric encoder's transformer.

        Raises:
            UserError: its settings don't fit each other.
        """
        try:
            return TransformerConfig(
                width=self.prime_width,
                n_ctx=self.lyric_tokens,
                heads=self.prime_heads,
                depth=self.prime_depth,
                attn_order=self.prime_attn_order,
                blocks=self.prime_blocks,
                spread=self.prime_spread,
                m_attn=self.prime_m_attn,
                m_mlp=self.prime_m_mlp,
                attn_dropout=self.prime_attn_dropout,
                resid_dropout=self.prime_resid_dropout,
                zero_out=self.prime_zero_out,
                res_scale=self.prime_res_scale,
                init_scale=self.prime_init_scale,
                c_res=self.prime_c_res,
                c_attn=self.prime_c_attn,
                c_mlp=self.prime_c_mlp,
            )
        except UserError as error:
            raise UserError(
                f"the lyric encoder, whose settings begin with prime_ and whose n_ctx is n_tokens: {error}"
            ) from None

    def durations(self, sample_length: int) -> tuple[float, float]:
        """``(min_duration, max_duration)`` of timing labels in seconds; the first is by default whole seconds that
        hold a window of ``sample_length`` samples.

        Raises:
            UserError: there is no upper end, the lower one is not below it, or no window fits below it.
        """
        window = sample_length / self.sr
        low = float(math.ceil(window)) if self.min_duration is None else float(self.min_duration)
        if self.max_duration is None:
            raise UserError("timing labels need the length of the longest song: give --max_duration=SECONDS")
        high = float(self.max_duration)
        if not low < high:
            raise UserError(f"min_duration={low:g} s must be less than max_duration={high:g} s")
        if window > high:
            raise UserError(
                f"max_duration={high:g} s is less than one window of {window:g} s (n_ctx codes): raise --max_duration"
            )
        return low, high


def check(config: PriorConfig, codec: Codec) -> None:
    """Refuse settings that no prior can be built with.

    Raises:
        UserError: names the setting and what to change.
    """
    if not 0 <= config.level < codec.levels:
        raise UserError(
            f"level is {config.level}, but the codec has levels 0 to {codec.levels - 1}: set --level to one of them"
        )
    if not config.labels:
        if config.single_enc_dec or config.lyric_tokens:
            raise UserError("lyrics need labels, which --labels=False takes away: pass --use_tokens=False as well")
        return
    sizes = config.y_bins if isinstance(config.y_bins, tuple) else ()
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(
            f"labels=True needs y_bins=(genres, artists), not {config.y_bins}: set --y_bins, or give --labels=False for"
            " a prior without labels"
        )
    if not config.max_bow_genre_size or config.max_bow_genre_size < 1:
        raise UserError(
            "labels=True needs the number of genre words of a song: set --max_bow_genre_size (1 for one genre), or give"
            " --labels=False"
        )
    if config.single_enc_dec and not config.lyric_tokens:
        raise UserError("single_enc_dec=True puts lyrics before the music: set --use_tokens=True and --n_tokens")
    if config.lyric_tokens and not config.copy_input and config.n_vocab < 1:
        raise UserError("lyrics need the size of their vocabulary: set --n_vocab")
    if config.copy_input and config.lyric_tokens > config.n_ctx:
        raise UserError(
            f"copy_input shows the first n_tokens={config.n_tokens} codes, but a window has n_ctx={config.n_ctx}:"
            " lower --n_tokens"
        )
