"""Which positions attend to which: the eight attention functions as boolean matrices, and the thirteen layer orders.

Sparse attention in the manner of Sparse Transformers (Child et al. 2019), as Jukebox (Dhariwal et al. 2020, appendix A)
uses it: the ``n_ctx`` positions are cut into ``blocks`` blocks of ``block_ctx = n_ctx / blocks``; rows are blocks and
columns are equal places within blocks. The matrices here are the slow, plain statement of what
:mod:`songbloom.transformer.attention` computes fast; nothing but tests and reference computations builds them.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from songbloom.errors import UserError


class AttentionFunction(IntEnum):
    """What the queries of a layer attend to. The numbers are the published ones (``attn_func``)."""

    DENSE = 0  # every earlier position
    BLOCK = 1  # earlier positions of the same block ("row")
    TRANSPOSE_BLOCK = 2  # the same place in earlier blocks ("column")
    PREVIOUS_BLOCK = 3  # the whole block before; nothing in the first block
    SUMMARY = 4  # the last position of each earlier block, and one empty slot
    SUMMARY_SPREAD = 5  # the last ``spread`` positions of each earlier block, and ``spread`` empty slots
    ENCODER_DECODER = 6  # every position of an encoder's output
    PRIME = 7  # the first positions of the same sequence (lyrics that stand before the music)


BLOCKED = frozenset({1, 2, 3, 4, 5})  # these need n_ctx to be a multiple of blocks

ORDERS: dict[int, str] = {
    0: "dense everywhere",
    1: "row, column",
    2: "row, column, previous row",
    3: "row, summary",
    4: "row, spread summary",
    5: "row, summary, row, row",
    6: "row, column, previous row, encoder",
    7: "five times (row, column, previous row), then encoder",
    8: "three times (row, column, previous row), then encoder",
    9: "row, column, previous row, dense",
    10: "as 2 for 9 layers, then order 8 in turn; 79 layers a cycle",
    11: "as 2, but every 16th layer encoder, encoder, dense in turn",
    12: "as 2, but every 16th layer prime, prime, dense in turn",
}

_ROWS = (1, 2, 3)
_CYCLES: dict[int, tuple[int, ...]] = {
    0: (0,),
    1: (1, 2),
    2: _ROWS,
    3: (1, 4),
    4: (1, 5),
    5: (1, 4, 1, 1),
    6: (*_ROWS, 6),
    7: (*_ROWS * 5, 6),
    8: (*_ROWS * 3, 6),
    9: (*_ROWS, 0),
    10: (*_ROWS * 3, *(*_ROWS * 3, 6) * 7),
}


def layer_function(attn_order: int, layer: int) -> AttentionFunction:
    """The attention function of layer number ``layer`` (from 0) in order ``attn_order``.

    Raises:
        UserError: there is no such order.
    """
    if attn_order in _CYCLES:
        cycle = _CYCLES[attn_order]
        return AttentionFunction(cycle[layer % len(cycle)])
    if attn_order in (11, 12):
        if layer % 16 != 15:
            return AttentionFunction(_ROWS[layer % 3])
        special = 6 if attn_order == 11 else 7
        return AttentionFunction((special, special, 0)[layer % 3])
    raise UserError(f"attn_order: there is no order {attn_order}; use one of {min(ORDERS)} to {max(ORDERS)}")


def layer_functions(attn_order: int, depth: int) -> list[AttentionFunction]:
    """The attention function of each of ``depth`` layers."""
    return [layer_function(attn_order, layer) for layer in range(depth)]


def reading_depth(attn_order: int) -> int:
    """The fewest layers with which an order has one that attends to an encoder's output; 0: it never has one."""
    functions = layer_functions(attn_order, 32)  # further than the first such layer of any order
    reads = AttentionFunction.ENCODER_DECODER
    return functions.index(reads) + 1 if reads in functions else 0


def prime_positions(prime_len: int, blocks: int, n_ctx: int) -> int:
    """How many first positions function 7 sees: ``prime_len`` rounded up *beyond* itself to a multiple of ``blocks``.

    It is rounded up even where it divides already (384 of 64 blocks becomes 448), as in the published models.
    """
    return min((prime_len // blocks + 1) * blocks, n_ctx)


def zero_slots(function: int, spread: int | None = None) -> int:
    """How many all-zero keys with all-zero values stand before the real ones, open to every query."""
    if function == AttentionFunction.SUMMARY:
        return 1
    return (spread or 0) if function == AttentionFunction.SUMMARY_SPREAD else 0


def reference_mask(
    function: int,
    n_ctx: int,
    *,
    blocks: int | None = None,
    spread: int | None = None,
    prime_len: int | None = None,
    encoder_dims: int = 0,
    causal: bool = True,
) -> torch.Tensor:
    """Boolean ``[n_ctx, keys]``: whether query i attends to key j. Zero slots are not columns.

    ``keys`` is ``n_ctx``, but ``encoder_dims`` for function 6. Without ``causal``, functions 0, 1, 2, 4, 5 and 7 lose
    the rule that a key must not come after its query.
    """
    i, j = torch.arange(n_ctx)[:, None], torch.arange(n_ctx)[None, :]
    earlier = (j <= i) if causal else torch.ones(n_ctx, n_ctx, dtype=torch.bool)
    block_ctx = n_ctx // (blocks or 1)
    if function == AttentionFunction.DENSE:
        return earlier
    if function == AttentionFunction.BLOCK:
        return earlier & (i // block_ctx == j // block_ctx)
    if function == AttentionFunction.TRANSPOSE_BLOCK:
        return earlier & (i % block_ctx == j % block_ctx)
    if function == AttentionFunction.PREVIOUS_BLOCK:
        return j // block_ctx == i // block_ctx - 1
    if function in (AttentionFunction.SUMMARY, AttentionFunction.SUMMARY_SPREAD):
        last = 1 if function == AttentionFunction.SUMMARY else (spread or 0)
        return earlier & (j % block_ctx >= block_ctx - last) & (j // block_ctx < (blocks or 1) - 1)
    if function == AttentionFunction.ENCODER_DECODER:
        return torch.ones(n_ctx, encoder_dims, dtype=torch.bool)
    if function == AttentionFunction.PRIME:
        return earlier & (j < prime_positions(prime_len or 0, blocks or 1, n_ctx))
    raise ValueError(f"there is no attention function {function}")


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    empty_slots: int = 0,
) -> torch.Tensor:
    """Plain masked attention, the yardstick for every fast path.

    Args:
        query: ``[N, heads, n, d]``.
        key, value: ``[N, heads, keys, d]``.
        mask: bool ``[n, keys]``.
        empty_slots: all-zero keys and values put before the others, open to all queries.

    Returns:
        ``[N, heads, n, d]`` in the query's dtype; zeros where a query has nothing to attend to.
    """
    if empty_slots:
        key = torch.nn.functional.pad(key, (0, 0, empty_slots, 0))
        value = torch.nn.functional.pad(value, (0, 0, empty_slots, 0))
        mask = torch.nn.functional.pad(mask, (empty_slots, 0), value=True)
    scores = (query.float() @ key.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, -1e9), dim=-1)
    weights = weights * mask.any(-1, keepdim=True)
    return (weights @ value.float()).to(query.dtype)
