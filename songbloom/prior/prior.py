"""A prior of one level: conditions on codes above, then the autoregressive model of the level's own codes.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4. The top level's prior is unconditional
or labelled; those below are upsamplers, conditioned on the level directly above.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.prior.autoregressive import AutoregressiveModel
from songbloom.prior.conditioners import UpsamplingConditioner
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
    """Settings of a prior; the fields are hyperparameters and explained in ``hparams.py``."""

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
    labels: bool = True
    use_tokens: bool = False
    n_tokens: int = 0
    single_enc_dec: bool = False
    copy_input: bool = False
    prime_loss_fraction: float = 0.1

    @classmethod
    def from_hps(cls, hps: Mapping[str, Any]) -> PriorConfig:
        """Take what a prior knows from any mapping of hyperparameters; what is missing has its default."""
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in hps.items() if k in known}
        return cls(**given)

    def transformer(self) -> TransformerConfig:
        """The transformer's part of the settings."""
        return TransformerConfig(
            width=self.prior_width,
            n_ctx=self.n_ctx,
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
            c_res=self.c_res,
            c_attn=self.c_attn,
            c_mlp=self.c_mlp,
        )


def _check(config: PriorConfig, codec: Codec) -> None:
    if not 0 <= config.level < codec.levels:
        raise UserError(
            f"level is {config.level}, but the codec has levels 0 to {codec.levels - 1}: set --level to one of them"
        )
    if config.labels:
        raise UserError("a prior with labels cannot be built yet: pass --labels=False to train.py for one without")
    if config.single_enc_dec or (config.use_tokens and config.n_tokens):
        raise UserError("lyrics need labels, which --labels=False takes away: pass --use_tokens=False as well")


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


class Prior(nn.Module):
    """The model of one level's codes.

    Attributes:
        level: the level that it writes; ``levels`` is the tuple of these.
        n_ctx: codes of a window.
        hop_length: samples a code.
        sample_length: samples of a window.
        cond_downsample: codes of a window for each code above (None at the top).
        l_bins: size of the codebooks.
        z_shapes: for each level ``(codes,)``, of which this level's is ``n_ctx``.

    Raises:
        UserError: settings that don't fit the codec, or labels (which this model doesn't read).
    """

    def __init__(self, config: PriorConfig, codec: Codec) -> None:
        super().__init__()
        _check(config, codec)
        level = config.level
        self.config = config
        self.level, self.levels = level, (level,)
        self.n_ctx = config.n_ctx
        self.l_bins = codec.l_bins
        self.hop_length = codec.hop_lengths[level]
        self.sample_length = self.n_ctx * self.hop_length
        self.z_shapes = [(shape[0] * self.n_ctx // codec.z_shapes[level][0],) for shape in codec.z_shapes]
        self.cond_downsample: int | None = None
        self.conditioner: UpsamplingConditioner | None = None
        if level + 1 < codec.levels:
            self.cond_downsample = codec.downsamples[level + 1]
            if self.n_ctx % self.cond_downsample:
                raise UserError(
                    f"n_ctx is {self.n_ctx}: at level {level} it must be a multiple of {self.cond_downsample},"
                    " the number of its codes for each code above"
                )
            down_t, stride_t = _stride_of_level(config, codec, level + 1)
            self.conditioner = UpsamplingConditioner(
                self.l_bins,
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
        self.autoregressive = AutoregressiveModel(
            config.transformer(),
            bins=self.l_bins,
            merged_decoder=config.merged_decoder,
            emb_dropout=config.emb_dropout,
            pos_init=config.pos_init,
        )

    def condition(self, upper_codes: Tensor | None, *, batch: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """What is added at each position, from the codes above: [N, n_ctx / cond_downsample] → [N, n_ctx, W].

        None at the top.

        Args:
            dtype: bfloat16 runs the convolutions in it while training; otherwise all is float32, as published.

        Raises:
            UserError: codes are missing, too many, of a wrong shape, or given where nothing lies above.
        """
        if self.conditioner is None or self.cond_downsample is None:
            if upper_codes is not None:
                raise UserError(f"level {self.level} is the top level: it takes no codes from above")
            return None
        shape = [batch, self.n_ctx // self.cond_downsample]
        if upper_codes is None:
            raise UserError(f"level {self.level} needs the codes of level {self.level + 1}, of shape {shape}")
        given = list(upper_codes.shape)
        if given != shape:
            raise UserError(f"codes of level {self.level + 1} have shape {given}: level {self.level} needs {shape}")
        upper_codes = upper_codes.to(self.conditioner.norm.weight.device)
        reduced = dtype == torch.bfloat16 and self.training
        with torch.autocast(upper_codes.device.type, dtype) if reduced else contextlib.nullcontext():
            return self.conditioner(upper_codes)

    def _refuse_labels(self, labels: Tensor | None) -> None:
        if labels is not None:
            raise UserError("labels were given, but this prior was built without them (--labels=False)")

    def logits(
        self,
        codes: Tensor,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        precision: str | torch.dtype = "fp32",
    ) -> Tensor:
        """Predictions at all positions, each from the codes before it: [N, n_ctx, l_bins] float32."""
        self._refuse_labels(labels)
        dtype = dtype_of(precision)
        x_cond = self.condition(upper_codes, batch=len(codes), dtype=dtype)
        return self.autoregressive.logits(codes, x_cond=x_cond, dtype=dtype)

    def forward(
        self,
        codes: Tensor,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        precision: str | torch.dtype = "fp32",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``codes`` [N, n_ctx] int64, in bits a code.

        Args:
            upper_codes: [N, n_ctx / cond_downsample] int64, the codes of the level above (not at the top).
            labels: none in a prior without labels.
            precision: ``fp32``, ``bf16`` or ``fp16``: in which the transformer computes.

        Returns:
            The loss, and metrics without gradients: ``bpd``, ``gen_loss`` (the same) and ``prime_loss`` (of lyrics: 0).
        """
        self._refuse_labels(labels)
        dtype = dtype_of(precision)
        x_cond = self.condition(upper_codes, batch=len(codes), dtype=dtype)
        loss, _ = self.autoregressive(codes, x_cond=x_cond, dtype=dtype)
        gen_loss = loss.detach()
        return loss, {"bpd": gen_loss, "gen_loss": gen_loss, "prime_loss": torch.zeros_like(gen_loss)}

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        *,
        prompt: Tensor | None = None,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        sample_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        precision: str | torch.dtype = "fp32",
        fast: bool = True,
        on_token: Callable[[int], None] | None = None,
        preds: Tensor | None = None,
    ) -> Tensor:
        """Draw a window of codes, as :meth:`AutoregressiveModel.sample` does.

        Args:
            upper_codes: [n_samples, n_ctx / cond_downsample] int64, the codes above the whole window (not at the top).
            sample_tokens: length of the result, the prompt included; None is ``n_ctx``.
            precision: ``fp32``, ``bf16`` or ``fp16``, of the transformer and its caches.

        Returns:
            [n_samples, sample_tokens] int64.
        """
        self._refuse_labels(labels)
        training = self.training
        self.eval()
        try:
            return self.autoregressive.sample(
                n_samples,
                prompt=prompt,
                x_cond=self.condition(upper_codes, batch=n_samples),
                sample_tokens=sample_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                chunk_size=chunk_size,
                generators=generators,
                dtype=dtype_of(precision),
                fast=fast,
                on_token=on_token,
                preds=preds,
            )
        finally:
            self.train(training)

    def window_of(self, codes_by_level: Sequence[Tensor], start: int, end: int) -> Tensor | None:
        """The codes above the window ``[start, end)`` of this level: [N, n_ctx / cond_downsample], or None at the top.

        Args:
            codes_by_level: codes of all levels, finest first, each [N, T_l]; only those of the level above are read.
            start, end: in this level's codes.

        Raises:
            UserError: the window doesn't begin and end between codes of the level above, isn't ``n_ctx`` long,
                or reaches beyond what the level above has.
        """
        if self.cond_downsample is None:
            return None
        step = self.cond_downsample
        if start % step or end % step:
            raise UserError(
                f"the window {start} to {end} of level {self.level} doesn't line up with level {self.level + 1}:"
                f" both ends must be multiples of {step}"
            )
        if start < 0 or end - start != self.n_ctx:
            raise UserError(f"the window {start} to {end} of level {self.level} must hold n_ctx = {self.n_ctx} codes")
        above = codes_by_level[self.level + 1]
        if above.shape[1] < end // step:
            raise UserError(
                f"level {self.level + 1} has {above.shape[1]} codes: the window {start} to {end} of level {self.level}"
                f" needs {end // step}, so sample level {self.level + 1} further first"
            )
        return above[:, start // step : end // step]

    def cost(self, precision: str | torch.dtype = "fp32") -> dict[str, float]:
        """What the model costs, averaged over a window: the transformer's figures, the embeddings', the output layer's.

        Returns:
            ``parameters``; ``operations_per_token`` of a forward pass, the conditioner's share included (a
            multiplication and an addition count as two; training costs three times as many);
            ``bytes_per_decoded_token``, what one new code of one item reads; ``cache_bytes_per_token`` and
            ``cache_bytes`` of an item.
        """
        model = self.autoregressive
        cost = dict(model.transformer.cost(dtype_of(precision)))
        head = model.output_weight
        rows = (3 if self.conditioner is not None else 2) * model.width  # token, position, condition
        cost["parameters"] = sum(parameter.numel() for parameter in self.parameters())
        cost["operations_per_token"] += 2.0 * head.numel()
        cost["bytes_per_decoded_token"] += 4.0 * (head.numel() + rows)  # float32 whatever the transformer computes in
        if self.conditioner is not None:
            cost["operations_per_token"] += self.conditioner.operations_per_token()
        return cost
