"""One position at a time, fast: weights prepared once, fused operations, as little Python a layer as possible.

Decoding one position reads every weight once and computes almost nothing, so its limit is the memory's speed. On a CPU
oneDNN's reordered weights come nearer to that limit than plain matrix products do, and they take bias, activation and
residual sum into the same call. Those calls are private to torch, so where they are missing plain ones stand in. On
other devices weights are only cast.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from songbloom.errors import UserError
from songbloom.transformer.attention import Geometry
from songbloom.transformer.blocks import Transformer, TransformerConfig, TransformerLayer
from songbloom.transformer.cache import DecodingCache, attend_chunk, step_window
from songbloom.transformer.layers import QUICK_GELU_SLOPE, layer_norm
from songbloom.transformer.linears import FastLinear, FoldedLinear, PlainLinear
from songbloom.transformer.lora import effective_weight
from songbloom.transformer.quantized import QuantizedLinear

# Rows that oneDNN is told to expect when it orders a weight. Any number of rows may come; with this hint one row is as
# fast as with a hint of 1, and four are a third faster (measured on an Intel machine with AVX-512).
PACKING_ROWS = 16
PACKED_FROM_ROWS = 4  # see worth_packing

# Activation → name and algorithm in oneDNN, and the factor its input is multiplied by. quick-GELU is swish of the
# scaled input, divided by the same factor again, which the weights before and after it take in.
_FUSED = {
    "": ("none", "", 1.0),
    "relu": ("relu", "", 1.0),
    "swish": ("swish", "", 1.0),
    "gelu": ("gelu", "tanh", 1.0),
    "quick_gelu": ("swish", "", QUICK_GELU_SLOPE),
}


class PackedLinear:
    """A linear map with a copy of the weights in oneDNN's own order.

    Args:
        weight, bias, activation, scale: as in :class:`PlainLinear`.
        after: the activation of the map that makes the input.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str = "",
        *,
        dtype: torch.dtype | None = None,
        after: str = "",
        scale: float = 1.0,
    ) -> None:
        dtype = dtype or weight.dtype
        self.activation, self.algorithm, slope = _FUSED[activation]
        weight = (weight.detach().float() * (slope * scale / _FUSED[after][2])).to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKING_ROWS)
        self.bias = (bias.detach().float() * (slope * scale)).to(dtype)
        self._call = torch.ops.mkldnn._linear_pointwise.default
        self._call_added = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(x, self.weight, self.bias, self.activation, [], self.algorithm)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._call_added(x, residual, self.weight, self.bias, "add")


@cache
def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch, on this machine, has oneDNN's packed linear map for the dtype; tried on a tiny one."""
    if device.type != "cpu":
        return False
    try:
        weight, x = torch.eye(16, dtype=dtype), torch.arange(32, dtype=dtype).reshape(2, 16)
        packed = PackedLinear(weight, torch.ones(16, dtype=dtype))
        return torch.equal(packed(x), x + 1) and torch.equal(packed.added_to(x, x), 2 * x + 1)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@cache
def _mkl_is_at_home() -> bool:
    """Whether plain float32 products run on MKL on an Intel processor, where it reaches the memory's speed."""
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:
        vendor = platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in vendor


def worth_packing(dtype: torch.dtype, device: torch.device, rows: int) -> bool:
    """Whether packed weights are the faster ones for ``rows`` rows at a time.

    A plain float32 product of one row reads a 4 MiB weight at 20 GB/s where MKL meets another maker's processor, and
    oneDNN at 24; on an Intel one it is 26 against 21, as each call of oneDNN costs some 30 µs more. From about four
    rows on, and in bfloat16, oneDNN wins on both. The rule looks at nothing that changes between runs on one machine,
    so that neither does what is computed.
    """
    if dtype == torch.float32 and rows < PACKED_FROM_ROWS and _mkl_is_at_home():
        return False
    return can_pack(dtype, device)


class LayerWeights:
    """One layer's weights, prepared: norms as (weight, bias) in float32, linear maps as :class:`FastLinear`."""

    def __init__(
        self,
        layer: TransformerLayer,
        config: TransformerConfig,
        dtype: torch.dtype,
        packed: bool,
        quantize: str = "",
    ) -> None:
        def prepared(module: nn.Linear, activation: str = "", after: str = "", scale: float = 1.0) -> FastLinear:
            plain = FoldedLinear if module.weight.device.type == "cuda" else PlainLinear
            kind = QuantizedLinear if quantize else PackedLinear if packed else plain
            return kind(effective_weight(module), module.bias, activation, dtype=dtype, after=after, scale=scale)

        def norm(module: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
            weight, bias = module.weight.detach(), module.bias.detach()
            return weight.to(torch.float32, copy=packed), bias.to(torch.float32, copy=packed)

        attention, mlp = layer.attention, layer.mlp
        self.function = attention.function
        self.attention_norm, self.mlp_norm = norm(layer.attention_norm), norm(layer.mlp_norm)
        self.project = prepared(attention.query if attention.crosses else attention.query_key_value)
        self.output = prepared(attention.output)
        self.up = prepared(mlp.up, activation=config.activation)
        self.down = prepared(mlp.down, after=config.activation, scale=config.residual_scale)


class DecodingTransformer:
    """A transformer with the same ``new_cache`` and ``extend``, its weights prepared for speed at single positions.

    They are packed, or not, when the first cache of a batch size that asks for it is made. Make this again when the
    weights have changed: packed ones are a copy that later changes do not reach. Plain ones are the model's own where
    the dtype is the model's, at no extra memory.

    Args:
        transformer: its weights.
        dtype: computed in.
        quantize: ``int8`` keeps the weights in 8 bits (:class:`songbloom.transformer.quantized.QuantizedLinear`).
        packed: whether weights are packed; None: where :func:`worth_packing` says so.
    """

    def __init__(
        self,
        transformer: Transformer,
        dtype: torch.dtype = torch.float32,
        *,
        quantize: str = "",
        packed: bool | None = None,
    ) -> None:
        self.quantize, self._packed = quantize, False if quantize else packed
        self.config, self.dtype, self.device = transformer.config, dtype, transformer.stack[0].mlp.up.weight.device
        self.geometry: Geometry = self.config.geometry
        self._transformer = transformer
        self._layers: dict[bool, list[LayerWeights]] = {}
        self._functions: Sequence[int] = sorted(set(transformer.funcs))

    def layers(self, batch: int, packed: bool | None = None) -> list[LayerWeights]:
        """The layers as prepared for this many sequences; ``packed`` if that is given."""
        packed = self._packed if packed is None else packed
        packed = worth_packing(self.dtype, self.device, batch) if packed is None else packed
        if packed not in self._layers:
            stack = self._transformer.stack
            self._layers[packed] = [
                LayerWeights(layer, self.config, self.dtype, packed, self.quantize) for layer in stack
            ]
        return self._layers[packed]

    def new_cache(
        self,
        batch: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        encoder_kv: torch.Tensor | None = None,
    ) -> DecodingCache:
        """As ``Transformer.new_cache``; the dtype can only be the one this was made for."""
        if dtype not in (None, self.dtype):
            raise UserError(f"dtype: prepared for {self.dtype}, so its cache cannot be {dtype}")
        self.layers(batch)
        return self._transformer.new_cache(batch, dtype=self.dtype, device=device, encoder_kv=encoder_kv)

    @torch.no_grad()
    def extend(self, x: torch.Tensor, cache: DecodingCache) -> torch.Tensor:
        """As ``Transformer.extend``: ``[N, m, width] -> [N, m, width]`` in float32, any m ≥ 1."""
        before = cache.advance(x)
        shape = x.shape
        if shape[1] == 1:
            return self._step(x.reshape(shape[0], shape[2]).to(self.dtype), cache, before).float().view(shape)
        flat = x.reshape(-1, shape[2]).to(self.dtype)
        for layer, entries in zip(self.layers(shape[0]), cache.entries, strict=True):
            qkv = layer.project(layer_norm(flat, *layer.attention_norm)).view(shape[0], shape[1], -1)
            q, k, v = (*qkv.split(self.config.state, dim=-1), None, None)[:3]
            a = attend_chunk(layer.function, self.geometry, entries, q, k, v, before)
            flat = self.finish(layer, flat, a.reshape(flat.shape[0], -1))
        return flat.float().view(shape)

    def finish(self, layer: LayerWeights, x: torch.Tensor, a: torch.Tensor | None) -> torch.Tensor:
        """The layer's output from its input and its attention before the output projection (None: zeros)."""
        y = x + layer.output.bias if a is None else layer.output.added_to(x, a)
        h = layer_norm(y, *layer.mlp_norm)
        scale = self.config.residual_scale
        return layer.down.added_to(y if scale == 1.0 else torch.lerp(x, y, scale), layer.up(h))

    def _step(self, x: torch.Tensor, cache: DecodingCache, t: int) -> torch.Tensor:
        """One position, ``[N, width] -> [N, width]``."""
        n, state, heads = x.shape[0], self.config.state, self.config.heads
        d = state // heads
        windows = {function: step_window(function, self.geometry, t) for function in self._functions}
        for index, layer in enumerate(self.layers(n)):
            h = layer_norm(x, *layer.attention_norm)
            qkv = layer.project(h)
            slot, start, stop = windows[layer.function]
            row = qkv.shape[1]
            if slot >= 0:
                cache.entries[index].select(1, slot).copy_(qkv.as_strided((n, 2, state), (row, state, 1), state))
            a = None
            if stop > start:
                keys, values = cache.keys[index][:, :, start:stop], cache.values[index][:, :, start:stop]
                query = qkv.as_strided((n, heads, 1, d), (row, d, state, 1))
                a = F.scaled_dot_product_attention(query, keys, values).reshape(n, state)
            x = self.finish(layer, x, a)
        return x
