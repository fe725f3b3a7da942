"""The transformer of the priors: layers of attention and feed-forward halves, whole or a few positions at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from songbloom.errors import UserError
from songbloom.transformer.attention import Attention, Geometry, head_weights, recomputed
from songbloom.transformer.cache import DecodingCache, attend_chunk, mean_seen, slots
from songbloom.transformer.layers import MLP, LayerNorm
from songbloom.transformer.patterns import BLOCKED, AttentionFunction, layer_functions
from songbloom.transformer.recomputation import Recomputation


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that shapes a transformer. Names follow the hyperparameters (``prior_attn_block``).

    Attributes:
        width: channels of a position.
        n_ctx: positions of a sequence.
        heads: attention heads; they share ``int(m_attn * width)`` channels.
        depth: layers.
        attn_order: which attention function each layer has (:data:`songbloom.transformer.patterns.ORDERS`).
        blocks: blocks that sparse attention cuts the sequence into.
        spread: last positions of a block that function 5 sees.
        m_attn, m_mlp: attention and feed-forward channels as multiples of the width.
        attn_dropout, resid_dropout: dropout of attention weights; of what each half adds to the residual stream.
        zero_out: start both output projections at zero.
        res_scale: scale what a layer adds by 1 / depth.
        init_scale: multiplies the starting weights' spread (0.02).
        mask: causal attention.
        encoder_dims: positions of the encoder that function 6 attends to.
        prime_len: positions that stand before the music in the same sequence (function 7).
        activation: of the feed-forward half.
        c_res, c_attn, c_mlp: recompute activations in the backward pass to save memory: whole layers (1, but on a CPU
            only where memory is short, see :class:`Recomputation`; 2: in any case); attention (1 or 2 between its
            projections, 3 with them); the feed-forward half (1). Same numbers, only in training.
    """

    width: int
    n_ctx: int
    heads: int
    depth: int
    attn_order: int = 0
    blocks: int | None = None
    spread: int | None = None
    m_attn: float = 0.25
    m_mlp: float = 1.0
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    zero_out: bool = False
    res_scale: bool = False
    init_scale: float = 1.0
    mask: bool = True
    encoder_dims: int = 0
    prime_len: int | None = None
    activation: str = "quick_gelu"
    c_res: int = 0
    c_attn: int = 0
    c_mlp: int = 0

    def __post_init__(self) -> None:
        functions = set(self.functions)
        if self.state % self.heads or not self.state:
            raise UserError(
                f"heads={self.heads}: the attention width int(m_attn * width) = {self.state} must be a positive "
                "multiple of it; change heads, m_attn or the width"
            )
        if functions & (BLOCKED | {AttentionFunction.PRIME}) and not self.blocks:
            raise UserError(f"blocks: attn_order={self.attn_order} needs the number of blocks")
        if functions & BLOCKED and self.n_ctx % (self.blocks or 1):
            raise UserError(f"n_ctx={self.n_ctx} must be a multiple of blocks={self.blocks}")
        if AttentionFunction.SUMMARY_SPREAD in functions and not (
            self.spread and self.blocks and 0 < self.spread <= self.n_ctx // self.blocks
        ):
            raise UserError(f"spread={self.spread}: attn_order={self.attn_order} needs 1 to n_ctx / blocks positions")
        if AttentionFunction.ENCODER_DECODER in functions and not self.encoder_dims:
            raise UserError(f"encoder_dims: attn_order={self.attn_order} needs the encoder's number of positions")
        if AttentionFunction.PRIME in functions and self.prime_len is None:
            raise UserError(f"prime_len: attn_order={self.attn_order} needs the number of positions before the music")

    @property
    def functions(self) -> list[AttentionFunction]:
        """The attention function of each layer."""
        return layer_functions(self.attn_order, self.depth)

    @property
    def state(self) -> int:
        """Channels of queries (and of keys, and of values)."""
        return int(self.m_attn * self.width)

    @property
    def hidden(self) -> int:
        """Channels inside the feed-forward half."""
        return int(self.m_mlp * self.width)

    @property
    def kept_numbers(self) -> int:
        """Numbers that a layer keeps for each position until its backward pass: inputs of maps, norms and attention.

        With dropout of attention also what it makes of the scores, at least as much as a sparse pattern has: three
        tensors in float32, which are six in half precision.
        """
        scores = 6 * self.heads * self.n_ctx if self.attn_dropout else 0
        return 5 * self.width + 5 * self.state + 3 * self.hidden + scores

    @property
    def residual_scale(self) -> float:
        """What a layer adds is multiplied by this."""
        return 1.0 / self.depth if self.res_scale else 1.0

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            n_ctx=self.n_ctx,
            heads=self.heads,
            blocks=self.blocks or 1,
            spread=self.spread or 0,
            prime_len=self.prime_len or 0,
            encoder_dims=self.encoder_dims,
            causal=self.mask,
        )


class TransformerLayer(nn.Module):
    """Pre-norm layer: ``y = x + a``, ``out = y + m`` with ``a = attention(norm(x))``, ``m = mlp(norm(y))``.

    With a residual scale s other than 1 it is ``x + s (a + m)``; the feed-forward half still sees ``x + a``.
    """

    def __init__(
        self, config: TransformerConfig, function: AttentionFunction, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        # A layer that looks at an encoder starts as the identity, so it can be added to a trained decoder.
        zero_out = config.zero_out or function == AttentionFunction.ENCODER_DECODER
        self.attention_norm = LayerNorm(config.width)
        self.attention = Attention(
            config.width,
            config.state,
            function,
            config.geometry,
            attn_dropout=config.attn_dropout,
            resid_dropout=config.resid_dropout,
            zero_out=zero_out,
            init_scale=config.init_scale,
            recompute=config.c_attn,
            generator=generator,
        )
        self.mlp_norm = LayerNorm(config.width)
        self.mlp = MLP(
            config.width,
            config.hidden,
            activation=config.activation,
            dropout=config.resid_dropout,
            zero_out=zero_out,
            init_scale=config.init_scale,
            generator=generator,
        )
        self.scale, self.recompute_mlp = config.residual_scale, bool(config.c_mlp)
        self.has_dropout = config.resid_dropout > 0 or config.attn_dropout > 0

    def add_mlp(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """The layer's output from its input and what its attention half gave."""
        if self.training and self.recompute_mlp:
            y = x + a
            m = recomputed(lambda y: self.mlp(self.mlp_norm(y)), y, random=self.has_dropout)
        else:
            y, normed = self.mlp_norm.of_sum(x, a)
            m = self.mlp(normed)
        return y + m if self.scale == 1.0 else torch.add(x, a + m, alpha=self.scale)

    def forward(self, x: torch.Tensor, encoder_kv: torch.Tensor | None = None) -> torch.Tensor:
        x, normed = self.attention_norm.of_sum(x)
        return self.add_mlp(x, self.attention(normed, encoder_kv))

    def extend(self, x: torch.Tensor, entries: torch.Tensor, before: int) -> torch.Tensor:
        """New positions ``x [N, m, width]`` after ``before`` earlier ones, which ``entries`` remembers; no dropout."""
        attention, mlp = self.attention, self.mlp
        h = self.attention_norm(x)
        query, key, value = (attention.query(h), None, None) if attention.crosses else attention.project(h, None)
        a = attention.output(attend_chunk(attention.function, attention.geometry, entries, query, key, value, before))
        m = mlp.down(mlp.activation(mlp.up(self.mlp_norm(x + a))))
        return x + a + m if self.scale == 1.0 else torch.add(x, a + m, alpha=self.scale)


class Transformer(nn.Module):
    """A stack of layers without a final norm. ``.funcs`` is the attention function of each layer.

    Args:
        config: its shape.
        generator: draws the starting weights; torch's default generator if not given.
    """

    def __init__(self, config: TransformerConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.funcs = config.functions
        self.layers = nn.ModuleList(TransformerLayer(config, function, generator) for function in self.funcs)
        self.recomputation = Recomputation(config.c_res, config.kept_numbers, config.depth)

    @property
    def stack(self) -> list[TransformerLayer]:
        """The layers, from the input up."""
        return cast(list[TransformerLayer], list(self.layers))

    def forward(
        self, x: torch.Tensor, encoder_kv: torch.Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A whole sequence at once.

        Args:
            x: ``[N, n, width]``; n is ``n_ctx``, or with a causal mask anything shorter.
            encoder_kv: ``[N, encoder_dims, width]``, for orders with encoder layers.
            dtype: float16 or bfloat16 to compute in that (norms' and softmax's statistics stay float32).

        Returns:
            float32 ``[N, n, width]``.
        """
        n = x.shape[1]
        x = self._checked(x, encoder_kv).to(dtype or torch.float32)
        again = self.training and self.recomputation.wanted(x)
        for layer, function in zip(self.stack, self.funcs, strict=True):
            source = encoder_kv if function == AttentionFunction.ENCODER_DECODER else None
            if again:
                x = recomputed(layer, x, source, random=layer.has_dropout)
            else:
                x = layer(x, source)
        return x[:, :n].float()

    def _checked(self, x: torch.Tensor, encoder_kv: torch.Tensor | None) -> torch.Tensor:
        """``x``, padded to whole blocks where it is shorter than the context."""
        n, config = x.shape[1], self.config
        if n > config.n_ctx or (n < config.n_ctx and not config.mask):
            raise UserError(f"a sequence of {n} positions does not fit a transformer of n_ctx={config.n_ctx}")
        self._check_encoder(x.shape[0], encoder_kv)
        missing = -n % config.geometry.block_ctx if BLOCKED.intersection(self.funcs) else 0
        return F.pad(x, (0, 0, 0, missing)) if missing else x

    def _check_encoder(self, batch: int, encoder_kv: torch.Tensor | None) -> None:
        if AttentionFunction.ENCODER_DECODER in self.funcs:
            shape = None if encoder_kv is None else list(encoder_kv.shape)
            wanted = [batch, self.config.encoder_dims, self.config.width]
            if shape != wanted:
                raise UserError(f"encoder_kv: this transformer attends to an encoder's output {wanted}; got {shape}")

    def new_cache(
        self,
        batch: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        encoder_kv: torch.Tensor | None = None,
    ) -> DecodingCache:
        """An empty cache for :meth:`extend`, all its memory taken now.

        Args:
            batch: sequences.
            dtype: what to compute and remember in.
            device: the model's unless given.
            encoder_kv: ``[N, encoder_dims, width]`` for orders with encoder layers; their keys and values are computed
                here, once.

        Raises:
            UserError: the transformer is not causal, or misses its encoder's output.
        """
        device = torch.device(device) if device is not None else self.stack[0].mlp.up.weight.device
        cache = DecodingCache(self.funcs, self.config.geometry, self.config.state, batch, dtype=dtype, device=device)
        self._check_encoder(batch, encoder_kv)
        with torch.no_grad():
            for layer, entries in zip(self.stack, cache.entries, strict=True):
                if layer.attention.crosses and encoder_kv is not None:
                    entries.copy_(layer.attention.key_value(encoder_kv.to(dtype)).view_as(entries))
        return cache

    @torch.no_grad()
    def extend(self, x: torch.Tensor, cache: DecodingCache) -> torch.Tensor:
        """The next m ≥ 1 positions of every sequence; in any chunks, the same as :meth:`forward` on the whole.

        Dropout is off. For many steps with unchanging weights
        :class:`songbloom.transformer.decoding.DecodingTransformer` is faster.

        Args:
            x: ``[N, m, width]``.
            cache: remembers the positions before; changed in place.

        Returns:
            float32 ``[N, m, width]``.

        Raises:
            UserError: more positions than the context holds, or another batch size than the cache's.
        """
        before = cache.advance(x)
        x = x.to(cache.dtype)
        for layer, entries in zip(self.stack, cache.entries, strict=True):
            x = layer.extend(x, entries, before)
        return x.float()

    def cost(self, dtype: torch.dtype = torch.float32) -> dict[str, float]:
        """What this transformer costs, averaged over the positions of a full context.

        Returns:
            ``parameters``; ``operations_per_token`` of a forward pass (a multiplication and an addition count as two;
            norms and activations are left out; training costs three times as many); ``bytes_per_decoded_token``, the
            weights and the cache entries that one new position of one sequence reads; ``cache_bytes_per_token`` and
            ``cache_bytes``, what a sequence's cache takes, divided by n_ctx and whole.
        """
        geometry, state, itemsize = self.config.geometry, self.config.state, dtype.itemsize
        decoding = [p for name, p in self.named_parameters() if ".key_value." not in name]  # encoders are read once
        seen = sum(mean_seen(function, geometry) for function in self.funcs)
        weights = sum(p.numel() for p in decoding)
        matrices = sum(p.numel() for p in decoding if p.dim() == 2)
        cache_bytes = sum(slots(function, geometry) for function in self.funcs) * 2 * state * itemsize
        return {
            "parameters": sum(p.numel() for p in self.parameters()),
            "operations_per_token": 2.0 * matrices + 4.0 * state * seen,
            "bytes_per_decoded_token": itemsize * (weights + 2.0 * state * seen),
            "cache_bytes_per_token": cache_bytes / self.config.n_ctx,
            "cache_bytes": cache_bytes,
        }

    @torch.no_grad()
    def head_weights(
        self,
        x: torch.Tensor,
        encoder_kv: torch.Tensor | None = None,
        *,
        wanted: Sequence[tuple[int, int]],
        first_query: int = 0,
        keys: int,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Softmax weights of chosen (layer, head) pairs of functions 0, 6 and 7, without a gradient.

        Goes up layer by layer as far as the highest one that is wanted, and keeps nothing else.

        Args:
            x, encoder_kv, dtype: as in :meth:`forward`.
            wanted: pairs of a layer and a head.
            first_query, keys: weights are those from positions ``first_query`` on to the first ``keys`` keys.

        Returns:
            float32 ``[len(wanted), N, n - first_query, keys]``, in the order of ``wanted``.
        """
        n = x.shape[1]
        found = torch.zeros(len(wanted), len(x), n - first_query, keys, dtype=torch.float32, device=x.device)
        x = self._checked(x, encoder_kv).to(dtype or torch.float32)
        last = max((layer for layer, _ in wanted), default=-1)
        for index, layer in enumerate(self.stack[: last + 1]):
            attention, function = layer.attention, self.funcs[index]
            source = encoder_kv if attention.crosses else None
            asked = [(place, head) for place, (at, head) in enumerate(wanted) if at == index]
            if asked:
                query, key, _ = attention.project(layer.attention_norm(x), source)
                for place, head in asked:
                    found[place] = head_weights(
                        function, query[:, :n], key, attention.geometry, head=head, first_query=first_query, keys=keys
                    )
            if index < last:
                x = layer(x, source)
        return found

    @contextmanager
    def record_attention(self, layers: bool | Iterable[int] = True) -> Iterator[dict[int, torch.Tensor]]:
        """Collect softmax weights of whole-sequence forwards: ``with t.record_attention({3}) as weights: t(x)``.

        Yields a dict that holds, once the block is left, the last forward's weights of each chosen layer; shapes in
        :func:`songbloom.transformer.attention.attention_weights`.
        """
        chosen = range(len(self.funcs)) if layers is True else sorted(set(layers or ()))
        found: dict[int, torch.Tensor] = {}
        attentions = {index: self.stack[index].attention for index in chosen}
        for attention in attentions.values():
            attention.record = True
        try:
            yield found
        finally:
            for index, attention in attentions.items():
                attention.record = False
                if attention.recorded is not None:
                    found[index] = attention.recorded
                attention.recorded = None
