"""One decoding step whose operations and shapes are the same at every position, so that a GPU can record it once.

A CUDA graph replays recorded kernels with recorded addresses: what depends on the position has to come from a tensor.
So windows are looked up in tables on the device, every layer attends to as many slots as it ever could, and those it
may not see are masked. On a CPU the same function runs unrecorded, which is how it is tested; it is no faster there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from songbloom.transformer.attention import Geometry, split_heads
from songbloom.transformer.cache import DecodingCache, slots, step_window
from songbloom.transformer.decoding import DecodingTransformer, LayerWeights
from songbloom.transformer.layers import layer_norm
from songbloom.transformer.patterns import AttentionFunction as A

_MOVING = (A.TRANSPOSE_BLOCK, A.PREVIOUS_BLOCK)  # windows that do not begin at slot 0


@dataclass(frozen=True)
class WindowTable:
    """What each position writes and sees, for one attention function.

    Attributes:
        slot: ``[n_ctx]`` int64, -1 for none.
        start, count: ``[n_ctx]`` int64, the slots to see.
        span: most slots that any position sees.
        always_writes, always_sees: whether there is no position that does not.
    """

    slot: torch.Tensor
    start: torch.Tensor
    count: torch.Tensor
    span: int
    always_writes: bool
    always_sees: bool

    @classmethod
    def of(cls, function: int, geometry: Geometry, device: torch.device) -> WindowTable:
        rows = torch.tensor([step_window(function, geometry, t) for t in range(geometry.n_ctx)])
        slot, start, count = rows[:, 0], rows[:, 1], rows[:, 2] - rows[:, 1]
        span = int(count.max()) if function in _MOVING else slots(function, geometry)
        return cls(
            slot.to(device),
            start.to(device),
            count.to(device),
            span,
            always_writes=bool((slot >= 0).all()),
            always_sees=bool((count > 0).all()),
        )


class StaticStep:
    """:meth:`DecodingTransformer.extend` for one position, with the position in a tensor.

    Args:
        transformer: its weights.
        cache: of the same transformer; its ``length`` is not counted on here.
    """

    def __init__(self, transformer: DecodingTransformer, cache: DecodingCache) -> None:
        self.config, self.cache = transformer.config, cache
        self.dtype, self._layers = transformer.dtype, transformer.layers(cache.batch)
        functions = {layer.function for layer in self._layers}
        self._tables = {function: WindowTable.of(function, cache.geometry, cache.device) for function in functions}
        self._finish = transformer.finish
        longest = max(table.span for table in self._tables.values())
        self._places = torch.arange(max(longest, 1), device=cache.device)

    def __call__(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``x [N, width]`` and ``position`` int64 ``[1]`` → float32 ``[N, width]``; no host synchronisation."""
        x = x.to(self.dtype)
        for layer, entries in zip(self._layers, self.cache.entries, strict=True):
            x = self._finish(layer, x, self._attention(layer, entries, x, position))
        return x.float()

    def _attention(
        self, layer: LayerWeights, entries: torch.Tensor, x: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor | None:
        table, state, heads = self._tables[layer.function], self.config.state, self.config.heads
        qkv = layer.project(layer_norm(x, *layer.attention_norm))
        if layer.function != A.ENCODER_DECODER:
            self._write(table, entries, qkv[:, state:].view(-1, 1, 2, state), position)
        if not table.span:
            return None
        count = table.count.index_select(0, position)
        places = self._places[: table.span]
        seen = entries[:, : table.span]
        if layer.function in _MOVING:
            at = table.start.index_select(0, position) + places
            seen = entries.index_select(1, at.clamp(max=entries.shape[1] - 1))
        mask = (places < count)[None, None, None]
        query, keys, values = (split_heads(t, heads) for t in (qkv[:, None, :state], seen[:, :, 0], seen[:, :, 1]))
        a = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).reshape(len(x), state)
        return a if table.always_sees else torch.where(count > 0, a, torch.zeros_like(a))

    @staticmethod
    def _write(table: WindowTable, entries: torch.Tensor, kv: torch.Tensor, position: torch.Tensor) -> None:
        slot = table.slot.index_select(0, position)
        if not table.always_writes:  # what is there is written back where nothing is to be written
            there = slot.clamp(min=0)
            kv, slot = torch.where(slot >= 0, kv, entries.index_select(1, there)), there
        entries.index_copy_(1, slot, kv)
