"""One position at a time, fast: weights prepared once, fused operations, as little Python a layer as possible.

Decoding one position reads every weight once and computes almost nothing, so its limit is the memory's speed. On a CPU
oneDNN's reordered weights come nearer to that limit than plain matrix products do, and they take bias, activation and
residual sum into the same call. Those calls are private to torch, so where they are missing plain ones stand in. On
other devices weights are only cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from songbloom.errors import UserError
from songbloom.transformer.attention import Geometry
from songbloom.transformer.cache import DecodingCache, attend_chunk, step_window
from songbloom.transformer.layers import LAYER_NORM_EPS, QUICK_GELU_SLOPE, layer_norm
from songbloom.transformer.patterns import AttentionFunction

if TYPE_CHECKING:
    from songbloom.transformer.blocks import Transformer, TransformerConfig


# Rows that oneDNN is told to expect when it orders a weight. Any number of rows may come; with this hint one row is as
# fast as with a hint of 1, and four are a third faster (measured on an Intel machine with AVX-512).
PACKING_ROWS = 16


class FastLinear(Protocol):
    """A linear map on ``[rows, in]`` with its weights prepared."""

    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``activation(x Wᵀ + b)``."""
        ...

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x Wᵀ + b``."""
        ...


# Activation → name and algorithm in oneDNN, and the factor its input is multiplied by. quick-GELU is swish of the
# scaled input, divided by the same factor again, which the weights around it take in.
_FUSED = {
    "": ("none", "", 1.0),
    "relu": ("relu", "", 1.0),
    "swish": ("swish", "", 1.0),
    "gelu": ("gelu", "tanh", 1.0),
    "quick_gelu": ("swish", "", QUICK_GELU_SLOPE),
}


class PlainLinear:
    """A linear map with weights in the computing dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, activation: str = "") -> None:
        self.weight, self.bias, self.activation = weight, bias, _FUSED[activation][0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.activation == "swish":
            return F.silu(y, inplace=True)
        if self.activation == "gelu":
            return F.gelu(y, approximate="tanh")
        return y.relu_() if self.activation == "relu" else y

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias).add_(residual)


class PackedLinear:
    """A linear map with weights in oneDNN's own order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, activation: str = "") -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKING_ROWS)
        self.bias = bias
        self.activation, self.algorithm, _ = _FUSED[activation]
        self._call = torch.ops.mkldnn._linear_pointwise.default
        self._call_added = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(x, self.weight, self.bias, self.activation, [], self.algorithm)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._call_added(x, residual, self.weight, self.bias, "add")


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


class LayerWeights:
    """One layer's weights, prepared: norms as (weight, bias), linear maps as :class:`FastLinear`."""

    def __init__(
        self,
        state: dict[str, torch.Tensor],
        config: TransformerConfig,
        function: AttentionFunction,
        dtype: torch.dtype,
        kind: Callable[[torch.Tensor, torch.Tensor, str], FastLinear],
    ) -> None:
        def prepared(name: str, scale: float = 1.0, bias_scale: float = 1.0, activation: str = "") -> FastLinear:
            weight, bias = state[f"{name}.weight"].float() * scale, state[f"{name}.bias"].float() * bias_scale
            return kind(weight.to(dtype), bias.to(dtype), activation)

        slope, scale = _FUSED[config.activation][2], config.residual_scale
        self.function = function
        self.attention_norm = state["attention_norm.weight"].float(), state["attention_norm.bias"].float()
        self.mlp_norm = state["mlp_norm.weight"].float(), state["mlp_norm.bias"].float()
        crosses = function == AttentionFunction.ENCODER_DECODER
        self.project = prepared("attention.query" if crosses else "attention.query_key_value")
        self.output = prepared("attention.output")
        self.up = prepared("mlp.up", slope, slope, config.activation)
        self.down = prepared("mlp.down", scale / slope, scale)


class DecodingTransformer:
    """A transformer's weights as they were when this was made, ready for :meth:`extend`.

    Made by ``Transformer.for_decoding``. Later changes of the transformer's weights do not reach it.
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        weight = transformer.stack[0].mlp.up.weight
        self.config, self.dtype, self.device = transformer.config, dtype, weight.device
        self.packed = can_pack(dtype, weight.device)
        self._transformer = transformer
        kind = PackedLinear if self.packed else PlainLinear
        self.layers = [
            LayerWeights(layer.state_dict(), self.config, function, dtype, kind)
            for layer, function in zip(transformer.stack, transformer.funcs, strict=True)
        ]
        self.geometry: Geometry = self.config.geometry
        self.distinct: Sequence[int] = sorted(set(transformer.funcs))
        self.head_width = self.config.state // self.config.heads

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
        return self._transformer.new_cache(batch, dtype=self.dtype, device=device, encoder_kv=encoder_kv)

    @torch.no_grad()
    def extend(self, x: torch.Tensor, cache: DecodingCache) -> torch.Tensor:
        """As ``Transformer.extend``: ``[N, m, width] -> [N, m, width]`` in float32, any m ≥ 1."""
        before = cache.advance(x)
        shape = x.shape
        if shape[1] == 1:
            return self._step(x.reshape(shape[0], shape[2]).to(self.dtype), cache, before).float().view(shape)
        flat = x.reshape(-1, shape[2]).to(self.dtype)
        for layer, entries in zip(self.layers, cache.entries, strict=True):
            qkv = layer.project(layer_norm(flat, *layer.attention_norm)).view(shape[0], shape[1], -1)
            q, k, v = (*qkv.split(self.config.state, dim=-1), None, None)[:3]
            a = attend_chunk(layer.function, self.geometry, entries, q, k, v, before)
            flat = self._finish(layer, flat, a.reshape(flat.shape[0], -1))
        return flat.float().view(shape)

    def _finish(self, layer: LayerWeights, x: torch.Tensor, a: torch.Tensor | None) -> torch.Tensor:
        """The layer's output from its input and its attention before the output projection (None: zeros)."""
        y = x + layer.output.bias if a is None else layer.output.added_to(x, a)
        h = torch.layer_norm(y, y.shape[-1:], *layer.mlp_norm, LAYER_NORM_EPS)
        scale = self.config.residual_scale
        return layer.down.added_to(y if scale == 1.0 else torch.lerp(x, y, scale), layer.up(h))

    def _step(self, x: torch.Tensor, cache: DecodingCache, t: int) -> torch.Tensor:
        """One position, ``[N, width] -> [N, width]``."""
        n, state, heads, d = x.shape[0], self.config.state, self.config.heads, self.head_width
        windows = {function: step_window(function, self.geometry, t) for function in self.distinct}
        for index, layer in enumerate(self.layers):
            h = torch.layer_norm(x, x.shape[-1:], *layer.attention_norm, LAYER_NORM_EPS)
            qkv = layer.project(h)
            slot, start, stop = windows[layer.function]
            row = qkv.shape[1]
            if slot >= 0:
                cache.entries[index].select(1, slot).copy_(qkv.as_strided((n, 2, state), (row, state, 1), state))
            a = None
            if stop > start:
                keys, values = cache.keys[index][:, :, start:stop], cache.values[index][:, :, start:stop]
                query = qkv.as_strided((n, heads, 1, d), (row, d, state, 1))
                a = F.scaled_dot_product_attention(query, keys, values).view(n, state)
            x = self._finish(layer, x, a)
        return x
