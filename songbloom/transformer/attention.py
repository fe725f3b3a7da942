"""The eight attention functions, computed without ever building an ``n × n`` matrix where the pattern is sparse.

Queries, keys and values are ``[N, n, S]`` with the heads as neighbouring slices of the last axis. Rows, columns and
previous rows become small dense attentions by looking at the sequence as ``[N, blocks, block_ctx, S]``; the fused
kernels of torch do the rest. Scores are ``q·k / √d``, softmax in float32. Training with half-precision scores would ask
for q and k to be scaled by ``d^-1/4`` each before their product; the fused kernels keep scores in float32, where the
two agree to rounding, and :func:`attention_weights`, which does form them in half, follows that rule.

:mod:`songbloom.transformer.patterns` states the same patterns as plain matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from songbloom.transformer import halves
from songbloom.transformer.layers import Linear
from songbloom.transformer.patterns import AttentionFunction as A
from songbloom.transformer.patterns import prime_positions, zero_slots

MASKED = -1e9  # the score that stands for "not allowed" where a softmax is written out


@dataclass(frozen=True)
class Geometry:
    """What an attention pattern needs to know of the sequence.

    ``block_ctx`` is the length of a block and ``blocks`` their number (1 where a model has none), ``spread`` the
    positions a block gives to function 5, ``prime`` how many first positions function 7 sees, ``causal`` whether a key
    may not come after its query.
    """

    n_ctx: int
    heads: int
    blocks: int = 1
    spread: int = 0
    prime_len: int = 0
    encoder_dims: int = 0
    causal: bool = True

    @property
    def block_ctx(self) -> int:
        return self.n_ctx // self.blocks

    @property
    def prime(self) -> int:
        return prime_positions(self.prime_len, self.blocks, self.n_ctx)

    def summary(self, function: int) -> int:
        """How many last positions of a block functions 4 and 5 see; as many zero slots stand before them."""
        return zero_slots(function, self.spread)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """``[.., m, d], [.., l, d], [.., l, d] -> [.., m, d]``: scores over √d, softmax in float32."""
    return halves.attention(query, key, value, mask=mask, dropout=dropout, causal=causal)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[N, n, S] -> [N, heads, n, S / heads]``, a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """``[N, heads, n, d] -> [N, n, heads * d]``."""
    return x.transpose(1, 2).flatten(2)


def _group_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[N, groups, m, S] -> [N * groups, heads, m, d]``; a view for one item or contiguous groups."""
    return split_heads(x.flatten(0, 1), heads)


def grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention within each group: ``[N, groups, m, S]`` on ``[N, groups, l, S]`` gives ``[N, groups, m, S]``."""
    items, groups = query.shape[:2]
    if heads == 1:  # groups can stand where heads do, which needs no copy for any batch
        return _fused(query, key, value, causal=causal, mask=mask, dropout=dropout)
    q, k, v = (_group_heads(x, heads) for x in (query, key, value))
    return merge_heads(_fused(q, k, v, causal=causal, mask=mask, dropout=dropout)).unflatten(0, (items, groups))


def summary_entries(x: torch.Tensor, function: int, geometry: Geometry) -> torch.Tensor:
    """The zero slots and the last positions of each block but the model's last: ``[N, n, S] -> [N, entries, S]``."""
    last, c = geometry.summary(function), geometry.block_ctx
    ends = x.unflatten(1, (-1, c))[:, : geometry.blocks - 1, c - last :].flatten(1, 2)
    return F.pad(ends, (0, 0, last, 0))


def summary_positions(count: int, function: int, geometry: Geometry, device: torch.device) -> torch.Tensor:
    """The position of each of the first ``count`` summary entries, -1 for zero slots."""
    last, c = geometry.summary(function), geometry.block_ctx
    entry = torch.arange(count, device=device) - last
    position = entry.div(last, rounding_mode="floor") * c + c - last + entry % last
    return torch.where(entry < 0, -1, position)


def _summary_mask(n: int, count: int, function: int, geometry: Geometry, device: torch.device) -> torch.Tensor | None:
    """Bool ``[n, count]``, which summary entries each position may see; None where all may."""
    if not geometry.causal:
        return None
    return summary_positions(count, function, geometry, device) <= torch.arange(n, device=device)[:, None]


def attend(
    function: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    geometry: Geometry,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention over a whole sequence by ``function``.

    Args:
        query: ``[N, n, S]``; n is at most ``n_ctx``, and a multiple of ``block_ctx`` for functions 1 to 5.
        key, value: ``[N, n, S]``, for function 6 ``[N, encoder_dims, S]``.

    Returns:
        ``[N, n, S]``.
    """
    heads, causal, c = geometry.heads, geometry.causal, geometry.block_ctx
    if function in (A.BLOCK, A.TRANSPOSE_BLOCK):
        q, k, v = (x.unflatten(1, (-1, c)) for x in (query, key, value))
        if function == A.BLOCK:
            return grouped(q, k, v, heads, causal=causal, dropout=dropout).flatten(1, 2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return grouped(q, k, v, heads, causal=causal, dropout=dropout).transpose(1, 2).flatten(1, 2)
    if function == A.PREVIOUS_BLOCK:
        q, k, v = query[:, c:], key[:, :-c], value[:, :-c]
        if q.shape[1]:
            q, k, v = (x.unflatten(1, (-1, c)) for x in (q, k, v))
            q = grouped(q, k, v, heads, dropout=dropout).flatten(1, 2)
        return F.pad(q, (0, 0, c, 0))  # the first block has nothing before it and gets zeros
    if function in (A.SUMMARY, A.SUMMARY_SPREAD):
        key, value = (summary_entries(x, function, geometry) for x in (key, value))
        mask = _summary_mask(query.shape[1], key.shape[1], function, geometry, query.device)
        q, k, v = (split_heads(x, heads) for x in (query, key, value))
        return merge_heads(_fused(q, k, v, mask=mask, dropout=dropout))
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    if function == A.DENSE:
        return merge_heads(_fused(q, k, v, causal=causal, dropout=dropout))
    if function == A.PRIME:
        k, v = k[:, :, : geometry.prime], v[:, :, : geometry.prime]
        if not causal:
            return merge_heads(_fused(q, k, v, dropout=dropout))
        seen = k.shape[2]
        first = merge_heads(_fused(q[:, :, :seen], k, v, causal=True, dropout=dropout))
        if seen == query.shape[1]:
            return first
        return torch.cat([first, merge_heads(_fused(q[:, :, seen:], k, v, dropout=dropout))], dim=1)
    return merge_heads(_fused(q, k, v, dropout=dropout))  # encoder-decoder: everything, always


def attention_weights(
    function: int, query: torch.Tensor, key: torch.Tensor, geometry: Geometry, *, training: bool = False
) -> torch.Tensor:
    """The softmax weights that :func:`attend` uses without showing them.

    Returns:
        In the query's dtype: ``[N, heads, n, keys]`` for functions 0, 4, 5 (zero slots are the first keys) and 6;
        ``[N * blocks, heads, block_ctx, block_ctx]`` for 1 and 3 (the first block of 3 attends evenly to zeros);
        ``[N * block_ctx, heads, blocks, blocks]`` for 2; for 7 only positions after the prime as queries and only the
        prime as keys, ``[N, heads, n - prime_len, prime_len]``.
    """
    heads, c = geometry.heads, geometry.block_ctx
    n = query.shape[1]
    mask: torch.Tensor | None = None
    if function in (A.BLOCK, A.TRANSPOSE_BLOCK, A.PREVIOUS_BLOCK):
        if function == A.PREVIOUS_BLOCK:
            key = F.pad(key[:, :-c], (0, 0, c, 0))
        q, k = (x.unflatten(1, (-1, c)) for x in (query, key))
        if function == A.TRANSPOSE_BLOCK:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        q, k = _group_heads(q, heads), _group_heads(k, heads)
        if geometry.causal and function != A.PREVIOUS_BLOCK:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    else:
        if function in (A.SUMMARY, A.SUMMARY_SPREAD):
            key = summary_entries(key, function, geometry)
            mask = _summary_mask(n, key.shape[1], function, geometry, query.device)
        elif function == A.PRIME:
            key = key[:, : geometry.prime]
        if geometry.causal and function in (A.DENSE, A.PRIME):
            mask = torch.ones(n, key.shape[1], dtype=torch.bool, device=query.device).tril()
        q, k = split_heads(query, heads), split_heads(key, heads)
    width = q.shape[-1]
    if training:
        scores = (q * width**-0.25) @ (k * width**-0.25).transpose(-1, -2)
    else:
        scores = (q @ k.transpose(-1, -2)) * width**-0.5
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, MASKED)
    weights = scores.softmax(-1).to(query.dtype)
    if function == A.PRIME:
        weights = weights[:, :, geometry.prime_len :, : geometry.prime_len]
    return weights


WEIGHT_ROWS = 1024  # queries whose weights head_weights holds at a time


def head_weights(
    function: int,
    query: torch.Tensor,
    key: torch.Tensor,
    geometry: Geometry,
    *,
    head: int,
    first_query: int = 0,
    keys: int,
) -> torch.Tensor:
    """One head's softmax weights from positions ``first_query`` on to the first ``keys`` keys, in evaluation.

    Only some rows are held at a time, so a whole song's window fits where ``n × n`` weights would not. The softmax is
    over all that a position attends to; what lies behind the first ``keys`` is left out afterwards.

    Args:
        function: 0, 6 or 7.
        query: ``[N, n, S]``.
        key: ``[N, positions, S]``.

    Returns:
        float32 ``[N, n - first_query, keys]``.
    """
    if function not in (A.DENSE, A.ENCODER_DECODER, A.PRIME):
        raise ValueError(f"attention function {function} has no weights to the first positions of all")
    if function == A.PRIME:
        key = key[:, : geometry.prime]
    n, width = query.shape[1], query.shape[2] // geometry.heads
    q, k = (x[..., head * width : (head + 1) * width] for x in (query, key))
    causal = geometry.causal and function != A.ENCODER_DECODER
    found = torch.zeros(query.shape[0], n - first_query, keys, dtype=torch.float32, device=query.device)
    for begin in range(first_query, n, WEIGHT_ROWS):
        end = min(begin + WEIGHT_ROWS, n)
        seen = k[:, :end] if causal else k
        scores = ((q[:, begin:end] @ seen.transpose(-1, -2)) * width**-0.5).float()
        if causal:
            at = torch.arange(begin, end, device=query.device)[:, None]
            scores = scores.masked_fill(torch.arange(seen.shape[1], device=query.device) > at, MASKED)
        weights = scores.softmax(-1).to(query.dtype)[..., :keys]
        found[:, begin - first_query : end - first_query, : weights.shape[-1]] = weights
    return found


class Attention(nn.Module):
    """Multi-head attention by one of the eight functions.

    Args:
        width: channels of the input and of the encoder's output.
        state: channels of queries, keys and values together; a multiple of the geometry's heads.
        function: which positions see which (:class:`AttentionFunction`).
        recompute: activation checkpointing while training: 0 none, 1 and 2 the attention between the projections, 3
            everything here.
    """

    def __init__(
        self,
        width: int,
        state: int,
        function: int,
        geometry: Geometry,
        *,
        attn_dropout: float = 0.0,
        resid_dropout: float = 0.0,
        zero_out: bool = False,
        init_scale: float = 1.0,
        recompute: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.function, self.geometry, self.state = A(function), geometry, state
        self.attn_dropout, self.resid_dropout, self.recompute = attn_dropout, resid_dropout, recompute
        std = 0.02 * init_scale
        if function == A.ENCODER_DECODER:
            self.query = Linear(width, state, std=std, generator=generator)
            self.key_value = Linear(width, 2 * state, std=std, generator=generator)
        else:
            self.query_key_value = Linear(width, 3 * state, std=std, generator=generator)
        self.output = Linear(state, width, std=std, zero=zero_out, generator=generator)
        self.recorded: torch.Tensor | None = None  # filled by forward while `record` is set
        self.record = False

    @property
    def crosses(self) -> bool:
        """Whether keys and values come from an encoder."""
        return self.function == A.ENCODER_DECODER

    def project(self, x: torch.Tensor, encoder_kv: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each ``[N, positions, S]``, in x's dtype."""
        if self.crosses:
            assert encoder_kv is not None
            return self.query(x), *self.key_value(encoder_kv.to(x.dtype)).chunk(2, dim=-1)
        return self.query_key_value(x).chunk(3, dim=-1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        dropout = self.attn_dropout if self.training else 0.0
        return attend(self.function, query, key, value, self.geometry, dropout)

    def _whole(self, x: torch.Tensor, encoder_kv: torch.Tensor | None) -> torch.Tensor:
        query, key, value = self.project(x, encoder_kv)
        if self.record:
            # Such a CPU multiplies these in float32 faster than in bfloat16.
            q, k = (query.float(), key.float()) if halves.usable(x.dtype, x.device) else (query, key)
            self.recorded = attention_weights(self.function, q, k, self.geometry, training=self.training)
        if self.training and self.recompute in (1, 2):
            y = recomputed(self._attend, query, key, value, random=self.attn_dropout > 0)
        else:
            y = self._attend(query, key, value)
        y = self.output(y)
        return F.dropout(y, self.resid_dropout, self.training) if self.resid_dropout else y

    def forward(self, x: torch.Tensor, encoder_kv: torch.Tensor | None = None) -> torch.Tensor:
        """``[N, n, width] -> [N, n, width]``; ``encoder_kv`` ``[N, encoder_dims, width]`` for function 6 only."""
        if self.training and self.recompute == 3:
            random = self.attn_dropout > 0 or self.resid_dropout > 0
            return recomputed(self._whole, x, encoder_kv, random=random)
        return self._whole(x, encoder_kv)


def recomputed(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor | None, random: bool = False
) -> torch.Tensor:
    """``function(*inputs)``, whose inner activations are computed again in the backward pass instead of kept.

    Set ``random`` where it draws (dropout), so that the second time draws the same.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)
