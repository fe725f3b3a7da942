"""What a transformer remembers while it is fed a few positions at a time.

Every attention function keeps only the keys and values that a later position can still see, in buffers allocated once:
dense and column attention the whole context, row attention one block, previous-row two, summaries their few entries,
prime the prime, and encoder attention the encoder's keys and values, computed when the cache is made.

Entries are laid out so that what one new position sees is a contiguous run of slots (:func:`step_window`); columns, for
one, lie after another. Nothing depends on data: slots follow from the position alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from songbloom.errors import UserError
from songbloom.transformer.attention import Geometry, grouped, merge_heads, split_heads, summary_positions
from songbloom.transformer.patterns import AttentionFunction as A


def slots(function: int, geometry: Geometry) -> int:
    """How many entries a layer with this function keeps."""
    c = geometry.block_ctx
    if function in (A.DENSE, A.TRANSPOSE_BLOCK):
        return geometry.n_ctx
    if function == A.BLOCK:
        return c
    if function == A.PREVIOUS_BLOCK:
        return 2 * c
    if function in (A.SUMMARY, A.SUMMARY_SPREAD):
        return geometry.summary(function) * geometry.blocks
    return geometry.encoder_dims if function == A.ENCODER_DECODER else geometry.prime


def step_window(function: int, geometry: Geometry, t: int) -> tuple[int, int, int]:
    """Where the entry of position ``t`` goes and which slots that position sees.

    Returns:
        ``(slot, start, stop)``: the slot to write first, -1 for none, then the range to attend to; the range is empty
        where there is nothing to see.
    """
    block, place = divmod(t, geometry.block_ctx)
    if function == A.DENSE:
        return t, 0, t + 1
    if function == A.BLOCK:
        return place, 0, place + 1
    if function == A.TRANSPOSE_BLOCK:
        column = place * geometry.blocks
        return column + block, column, column + block + 1
    if function == A.PREVIOUS_BLOCK:
        c = geometry.block_ctx
        other = (block + 1) % 2 * c
        return block % 2 * c + place, other, other + (c if block else 0)
    if function in (A.SUMMARY, A.SUMMARY_SPREAD):
        last = geometry.summary(function)
        within = place - (geometry.block_ctx - last)
        done = last * (1 + min(block, geometry.blocks - 1))  # zero slots, and the blocks before this one
        if within < 0 or block == geometry.blocks - 1:
            return -1, 0, done
        return done + within, 0, done + within + 1
    if function == A.PRIME:
        return (t if t < geometry.prime else -1), 0, min(t + 1, geometry.prime)
    return -1, 0, geometry.encoder_dims


def mean_seen(function: int, geometry: Geometry) -> float:
    """How many entries a position sees on average over the context."""
    n, c, blocks = geometry.n_ctx, geometry.block_ctx, geometry.blocks
    if function == A.BLOCK:
        return (c + 1) / 2
    if function == A.TRANSPOSE_BLOCK:
        return (blocks + 1) / 2
    if function == A.PREVIOUS_BLOCK:
        return c * (blocks - 1) / blocks
    if function == A.ENCODER_DECODER:
        return float(geometry.encoder_dims)
    windows = (step_window(function, geometry, t) for t in range(n))
    return sum(stop - start for _, start, stop in windows) / n


def _write(store: torch.Tensor, function: int, geometry: Geometry, kv: torch.Tensor, t0: int) -> None:
    """Put the entries ``kv [N, m, 2, S]`` of positions t0, t0 + 1, … where they belong."""
    c = geometry.block_ctx
    keep = {A.BLOCK: c, A.PREVIOUS_BLOCK: 2 * c}.get(A(function), kv.shape[1])  # older ones would be overwritten
    first = max(0, kv.shape[1] - keep)
    t = torch.arange(t0 + first, t0 + kv.shape[1], device=store.device)
    kv = kv[:, first:]
    block, place = t.div(c, rounding_mode="floor"), t % c
    if function == A.DENSE:
        slot = t
    elif function == A.BLOCK:
        slot = place
    elif function == A.TRANSPOSE_BLOCK:
        slot = place * geometry.blocks + block
    elif function == A.PREVIOUS_BLOCK:
        slot = block % 2 * c + place
    elif function == A.PRIME:
        slot = t[: max(0, geometry.prime - t0)]
        kv = kv[:, : slot.shape[0]]
    else:
        last = geometry.summary(function)
        chosen = (place >= c - last) & (block < geometry.blocks - 1)
        slot = (last * (1 + block) + place - (c - last))[chosen]
        kv = kv[:, chosen]
    store.index_copy_(1, slot, kv)


def _padded_blocks(x: torch.Tensor, before: torch.Tensor | int, block_ctx: int) -> torch.Tensor:
    """``x [N, m, S]`` after ``before`` (entries, or a number of zero rows), as whole blocks ``[N, b, c, S]``."""
    if isinstance(before, int):
        x = F.pad(x, (0, 0, before, 0))
    else:
        x = torch.cat([before, x], dim=1)
    x = F.pad(x, (0, 0, 0, -x.shape[1] % block_ctx))
    return x.unflatten(1, (-1, block_ctx))


def attend_chunk(
    function: int,
    geometry: Geometry,
    store: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    t0: int,
) -> torch.Tensor:
    """Attention of m new positions that follow ``t0`` earlier ones, for any m; remembers what later ones will see.

    Args:
        store: this layer's entries ``[N, slots, 2, S]``, changed in place.
        query, key, value: ``[N, m, S]``; no key and value for function 6.

    Returns:
        ``[N, m, S]``.
    """
    heads, c, m = geometry.heads, geometry.block_ctx, query.shape[1]
    t1, block, place = t0 + m, *divmod(t0, c)
    kv = None if key is None or value is None else torch.stack([key, value], dim=2)
    if function in (A.BLOCK, A.PREVIOUS_BLOCK) and kv is not None:
        if function == A.BLOCK:
            seen = store[:, :place]
        else:
            half = block % 2 * c
            previous = store[:, c - half : 2 * c - half] if block else torch.zeros_like(store[:, :c])
            seen = torch.cat([previous, store[:, half : half + place]], dim=1)
        q = _padded_blocks(query, place, c)
        k, v = (_padded_blocks(kv[:, :, i], seen[:, :, i], c)[:, : q.shape[1]] for i in (0, 1))
        y = grouped(q, k, v, heads, causal=function == A.BLOCK).flatten(1, 2)[:, place : place + m]
        _write(store, function, geometry, kv, t0)
        return y
    if kv is not None:
        _write(store, function, geometry, kv, t0)
    if function == A.TRANSPOSE_BLOCK:
        q = _padded_blocks(query, place, c).transpose(1, 2)  # [N, c, rows, S]
        rows = q.shape[2]
        entries = store.unflatten(1, (c, geometry.blocks))[:, :, : block + rows]
        mask = torch.ones(rows, block + rows, dtype=torch.bool, device=q.device).tril(block)
        y = grouped(q, entries[..., 0, :], entries[..., 1, :], heads, mask=mask)
        return y.transpose(1, 2).flatten(1, 2)[:, place : place + m]
    stop = step_window(function, geometry, t1 - 1)[2]
    q, k, v = (split_heads(x, heads) for x in (query, store[:, :stop, 0], store[:, :stop, 1]))
    allowed: torch.Tensor | None = None
    if function != A.ENCODER_DECODER and not (function == A.PRIME and t0 >= geometry.prime):
        at = torch.arange(stop, device=q.device)
        if function in (A.SUMMARY, A.SUMMARY_SPREAD):
            at = summary_positions(stop, function, geometry, q.device)
        allowed = at <= torch.arange(t0, t1, device=q.device)[:, None]
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


class DecodingCache:
    """The entries of every layer for ``batch`` sequences, and how many positions they have been fed.

    Made by ``Transformer.new_cache``. ``length`` is the number of positions so far; ``reset`` starts again from none
    (what was computed from an encoder stays).

    Attributes:
        entries: a layer's keys and values, ``[N, slots, 2, S]``.
        keys, values: the same memory seen as ``[N, heads, slots, d]``.
    """

    def __init__(
        self,
        functions: Sequence[int],
        geometry: Geometry,
        state: int,
        batch: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if not geometry.causal:
            raise UserError("mask: a transformer without a causal mask cannot be fed a few positions at a time")
        self.functions, self.geometry, self.batch, self.dtype, self.device = functions, geometry, batch, dtype, device
        self.length = 0
        # Zeros, not empty memory: a masked entry still meets a weight of 0, and 0 times NaN would be NaN.
        self.entries = [
            torch.zeros(batch, slots(function, geometry), 2, state, dtype=dtype, device=device)
            for function in functions
        ]
        self.keys = [split_heads(entries[:, :, 0], geometry.heads) for entries in self.entries]
        self.values = [split_heads(entries[:, :, 1], geometry.heads) for entries in self.entries]

    def reset(self) -> None:
        """Forget all positions."""
        self.length = 0

    def item(self, index: int) -> DecodingCache:
        """A cache of one of the sequences alone, in the same memory; its ``length`` goes its own way."""
        one = copy.copy(self)
        one.batch, at = 1, slice(index, index + 1)
        one.entries, one.keys, one.values = (
            [each[at] for each in kept] for kept in (self.entries, self.keys, self.values)
        )
        return one

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take."""
        return sum(entries.nbytes for entries in self.entries)

    def advance(self, x: torch.Tensor) -> int:
        """Check that positions ``x [N, m, W]`` fit, count them, and return the number of positions before them.

        Raises:
            UserError: another batch size than the cache was made for, or more positions than the context holds.
        """
        before, (batch, m) = self.length, x.shape[:2]
        if batch != self.batch:
            raise UserError(f"the cache was made for {self.batch} sequences and is fed {batch}; make another")
        if before + m > self.geometry.n_ctx:
            raise UserError(
                f"{before} + {m} positions do not fit the context of {self.geometry.n_ctx}; reset the cache"
            )
        self.length += m
        return before
