"""One decoding step whose operations and shapes are the same at every position, so that a GPU can record it once.

A CUDA graph replays recorded kernels with recorded addresses: what depends on the position has to come from a tensor.
So windows are looked up in tables on the device, every layer attends to as many slots as it ever could, and those it
may not see are masked. On a CPU the same function runs unrecorded, which is how it is tested; it is no faster there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from songbloom.distributed import say
from songbloom.transformer.attention import Geometry, split_heads
from songbloom.transformer.cache import DecodingCache, slots, step_window
from songbloom.transformer.decoding import DecodingTransformer, FastLinear, LayerWeights, PlainLinear
from songbloom.transformer.layers import layer_norm
from songbloom.transformer.patterns import AttentionFunction as A
from songbloom.transformer.quantized import QuantizedLinear

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


@dataclass(frozen=True)
class _Here:
    """What one position needs of one attention function, looked up once a step for all layers that have it.

    Attributes:
        slot: ``[1]`` int64, where its entry goes; -1 for nowhere.
        at: ``[span]`` int64, the slots to see, where these do not begin at slot 0; None: the first ``span``.
        bias: ``[1, 1, span]``, added to scores: 0, or minus infinity for what is not to be seen.
        sees: ``[1]``, whether there is anything to see; None: always.
    """

    slot: torch.Tensor
    at: torch.Tensor | None
    bias: torch.Tensor
    sees: torch.Tensor | None


def add_norm(
    x: torch.Tensor, more: torch.Tensor, scale: float, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + scale more`` in x's dtype, and the layer norm of that in the dtype of ``more``; all ``[N, W]``."""
    x = torch.add(x, more, alpha=scale)
    return x, layer_norm(x, weight, bias).to(more.dtype)


def biased_softmax(scores: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """The softmax of ``scale scores + bias`` over the last axis, computed in float32, in the scores' dtype."""
    return torch.softmax(scores.float() * scale + bias, -1).to(scores.dtype)


@dataclass(frozen=True)
class Fusions:
    """The two chains of small operations of a step, which a compiler makes one kernel each."""

    add_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]] = add_norm
    biased_softmax: Callable[..., torch.Tensor] = biased_softmax

    @classmethod
    def compiled(cls) -> Fusions:
        """By torch's compiler, which knows the device when they are called."""
        # A kernel a shape and scale: levels, batches and windows of a run have more than torch allows by itself.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 64)
        return cls(torch.compile(add_norm, dynamic=False), torch.compile(biased_softmax, dynamic=False))


@cache
def fusions_for(device: torch.device, dtype: torch.dtype) -> Fusions:
    """Compiled ones on CUDA, where launches are what a step's time goes to; tried on small tensors.

    Where torch has no compiler for the device, or gives other numbers, they are the plain functions.
    """
    if device.type != "cuda":
        return Fusions()
    try:
        return tried(Fusions.compiled(), device, dtype)
    except Exception as error:  # a compiler that is missing or broken can raise anything
        what = str(error).strip() or type(error).__name__
        say(f"note: steps are recorded without fused kernels ({what.splitlines()[0][:120]})")
        return Fusions()


def tried(fusions: Fusions, device: torch.device, dtype: torch.dtype) -> Fusions:
    """``fusions``, which give the numbers of the plain functions.

    Raises:
        ValueError: they do not.
    """
    generator = torch.Generator().manual_seed(0)
    x, scores, weight = (torch.randn(2, 64, generator=generator).to(device) for _ in range(3))
    bias = torch.where(torch.arange(64, device=device) < 40, 0.0, float("-inf"))
    more = scores.to(dtype)
    for got, want in (
        *zip(fusions.add_norm(x, more, 0.5, weight[0], weight[1]), add_norm(x, more, 0.5, *weight), strict=True),
        (fusions.biased_softmax(more, bias, 0.3), biased_softmax(more, bias, 0.3)),
    ):
        if got.dtype != want.dtype or not torch.allclose(got.float(), want.float(), rtol=1e-2, atol=1e-3):
            raise ValueError("torch.compile gives other numbers here")
    return fusions


def _with_product(linear: FastLinear) -> PlainLinear | QuantizedLinear:
    assert isinstance(linear, PlainLinear | QuantizedLinear)  # packed weights are a CPU's
    return linear


class StaticStep:
    """:meth:`DecodingTransformer.extend` for one position, with the position in a tensor.

    On a GPU a step of this size takes as long as its kernels are many: eleven a layer, of which six read weights or
    caches. What depends on the position alone is looked up once and not layer by layer, and what goes from layer to
    layer stays float32, as in the native step.

    Args:
        transformer: its weights.
        cache: of the same transformer; its ``length`` is not counted on here.
        fusions: None: :func:`fusions_for` the cache's device.
    """

    def __init__(self, transformer: DecodingTransformer, cache: DecodingCache, fusions: Fusions | None = None) -> None:
        self.config, self.cache = transformer.config, cache
        self.dtype, self._layers = transformer.dtype, transformer.layers(cache.batch, packed=False)
        self._fused = fusions or fusions_for(cache.device, self.dtype)
        functions = {layer.function for layer in self._layers}
        self._tables = {function: WindowTable.of(function, cache.geometry, cache.device) for function in functions}
        longest = max(table.span for table in self._tables.values())
        self._places = torch.arange(max(longest, 1), device=cache.device)
        self._nothing = torch.zeros(1, device=cache.device)
        self._zero = torch.zeros(1, dtype=self.dtype, device=cache.device)
        self._hidden = torch.full((1,), float("-inf"), device=cache.device)

    def __call__(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``x [N, width]`` and ``position`` int64 ``[1]`` → float32 ``[N, width]``; no host synchronisation."""
        here = {function: self._look_up(function, table, position) for function, table in self._tables.items()}
        scale = self.config.residual_scale
        x = x.float()
        h = layer_norm(x, *self._layers[0].attention_norm).to(self.dtype)
        for index, (layer, entries) in enumerate(zip(self._layers, self.cache.entries, strict=True)):
            a = self._attention(layer, entries, h, here)
            out, up, down = (_with_product(each) for each in (layer.output, layer.up, layer.down))
            more = out.bias.expand(len(x), -1) if a is None else out.product(a)
            y, h = self._fused.add_norm(x, more, out.scale, *layer.mlp_norm)
            more = down.product(up(h))
            y = y if scale == 1.0 else torch.lerp(x, y, scale)
            if index + 1 == len(self._layers):
                return torch.add(y, more, alpha=down.scale)
            x, h = self._fused.add_norm(y, more, down.scale, *self._layers[index + 1].attention_norm)
        return x

    def _look_up(self, function: int, table: WindowTable, position: torch.Tensor) -> _Here:
        count = table.count.index_select(0, position)
        places = self._places[: table.span]
        at = None
        if function in _MOVING:
            last = slots(function, self.cache.geometry) - 1
            at = (table.start.index_select(0, position) + places).clamp_(max=last)
        bias = torch.where(places < count, self._nothing, self._hidden)[None, None]
        return _Here(table.slot.index_select(0, position), at, bias, None if table.always_sees else count > 0)

    def _attention(
        self, layer: LayerWeights, entries: torch.Tensor, h: torch.Tensor, here: Mapping[A, _Here]
    ) -> torch.Tensor | None:
        """What the normed input ``h [N, width]`` sees, ``[N, state]``; None for a layer that never sees anything."""
        table, place, state = self._tables[layer.function], here[layer.function], self.config.state
        qkv = layer.project(h)
        if layer.function != A.ENCODER_DECODER:
            self._write(table, entries, qkv[:, state:].view(-1, 1, 2, state), place.slot)
        if not table.span:
            return None
        seen = entries[:, : table.span] if place.at is None else entries.index_select(1, place.at)
        a = self._seen(qkv[:, :state], seen[:, :, 0], seen[:, :, 1], place.bias)
        return a if place.sees is None else torch.where(place.sees, a, self._zero)

    def _seen(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """One query's attention, written out: what a GPU's fused kernels do, they do for many queries at once, and not
        for every width of a head.

        Args:
            query: ``[N, S]``.
            keys, values: ``[N, span, S]``.
            bias: ``[1, 1, span]``.

        Returns:
            ``[N, S]``.
        """
        n, state = query.shape
        heads = self.config.heads
        if n > 1 and heads > 1:  # no view has sequences and heads in one axis, and a copy of all keys costs more
            q, k, v = (split_heads(t, heads) for t in (query[:, None], keys, values))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype)).reshape(n, state)
        if heads > 1:
            q, k, v = (t.unflatten(-1, (heads, -1))[0].transpose(0, 1) for t in (query[:, None], keys, values))
        else:
            q, k, v = query[:, None], keys, values
        scores = self._fused.biased_softmax(torch.bmm(q, k.transpose(1, 2)), bias, q.shape[-1] ** -0.5)
        return torch.bmm(scores, v).reshape(n, state)

    @staticmethod
    def _write(table: WindowTable, entries: torch.Tensor, kv: torch.Tensor, slot: torch.Tensor) -> None:
        if not table.always_writes:  # what is there is written back where nothing is to be written
            there = slot.clamp(min=0)
            kv, slot = torch.where(slot >= 0, kv, entries.index_select(1, there)), there
        entries.index_copy_(1, slot, kv)
