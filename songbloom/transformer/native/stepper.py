"""A transformer's decoding by the C++ step: its ``new_cache`` and ``extend``, and whole steps from token to logits.

One position goes through all layers, and if asked for through embedding and output layer, in a single call; more than
one at a time (a prompt) go through torch, sequence by sequence. Either way a sequence's numbers do not depend on how
many others there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from songbloom.errors import UserError
from songbloom.transformer.attention import Geometry
from songbloom.transformer.blocks import Transformer, TransformerLayer
from songbloom.transformer.cache import DecodingCache, step_window
from songbloom.transformer.decoding import DecodingTransformer, LayerWeights, PlainLinear
from songbloom.transformer.native import loader
from songbloom.transformer.quantized import QuantizedLinear, quantized

FUNCTIONS = 8
DTYPES = (torch.float32, torch.bfloat16)
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ACTIVATIONS = ("quick_gelu", "gelu", "swish", "relu")
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weight", "scales", "bias")),
        *((name, _INT) for name in ("outputs", "inputs", "kind", "unused")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in ("project", "output", "up", "down")),
        *((name, _POINTER) for name in ("norm_weight", "norm_bias", "mlp_norm_weight", "mlp_norm_bias", "entries")),
        ("slots", _LONG),
        ("function", _INT),
        ("unused", _INT),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((n, _INT) for n in ("depth", "batch", "width", "state", "heads", "hidden", "entry_kind", "activation")),
        ("residual_scale", ctypes.c_float),
        ("threads", _INT),
        ("windows", _POINTER),
        ("position", _LONG),
        *((name, _POINTER) for name in ("tokens", "embedding", "positions", "before")),
        ("before_stride", _LONG),
        ("after", _POINTER),
        ("after_stride", _LONG),
        ("x", _POINTER),
        ("head", _Linear),
        *((name, _POINTER) for name in ("logits", "scratch", "counters")),
    )


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a transformer can be decoded here by the native step; builds it the first time."""
    return device.type == "cpu" and dtype in DTYPES and loader.library() is not None


@dataclass(frozen=True)
class Map:
    """A linear map's weights as the step reads them: in float32 the model's own, otherwise a copy."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scales: torch.Tensor | None = None

    def written_to(self, to: _Linear) -> None:
        """The addresses; they hold as long as this does."""
        to.weight, to.kind = self.weight.data_ptr(), _KINDS[self.weight.dtype]
        to.scales = None if self.scales is None else self.scales.data_ptr()
        to.bias = None if self.bias is None else self.bias.data_ptr()
        to.outputs, to.inputs = self.weight.shape


class _Weights:
    """One layer's, kept alive here; they are those that a prompt is read with."""

    def __init__(self, layer: TransformerLayer, prompt: LayerWeights) -> None:
        attention, mlp = layer.attention, layer.mlp
        project = attention.query if attention.crosses else attention.query_key_value
        modules = {"project": project, "output": attention.output, "up": mlp.up, "down": mlp.down}
        self.maps = {}
        for name, module in modules.items():
            prepared = getattr(prompt, name)
            assert isinstance(prepared, PlainLinear | QuantizedLinear)
            scales = prepared.scales if isinstance(prepared, QuantizedLinear) else None
            self.maps[name] = Map(prepared.weight.contiguous(), module.bias.detach().float(), scales)
        self.norms = {
            name: tensor.detach().float().contiguous()
            for prefix, module in (("norm", layer.attention_norm), ("mlp_norm", layer.mlp_norm))
            for name, tensor in ((f"{prefix}_weight", module.weight), (f"{prefix}_bias", module.bias))
        }
        self.function = int(attention.function)


class NativeTransformer:
    """A transformer with the same ``new_cache`` and ``extend`` whose single positions are computed by the native step.

    In float32 its weights are the model's own, at no extra memory; in bfloat16 and int8 they are copies. Sums are
    float32 in any case, and what goes from layer to layer is, too.

    Args:
        transformer: its weights must not be moved while this is in use.
        dtype: float32 or bfloat16, of weights and cache.
        quantize: ``int8`` keeps the layers' weights in 8 bits; ``dtype`` is then the cache's and the prompt's.

    Raises:
        UserError: there is no native step for this dtype, device or machine (:func:`available`).
    """

    def __init__(self, transformer: Transformer, dtype: torch.dtype = torch.float32, quantize: str = "") -> None:
        device = transformer.stack[0].mlp.up.weight.device
        found = loader.library()
        if found is None or not available(dtype, device):
            raise UserError(f"there is no native decoding step for {dtype} on {device} here")
        self.library = found
        self.config, self.dtype, self.quantize = transformer.config, dtype, quantize
        self.geometry: Geometry = self.config.geometry
        # A prompt goes through torch's matrix products, with the same weights.
        self._prompt = DecodingTransformer(transformer, dtype, quantize=quantize, packed=False)
        self.weights = [
            _Weights(layer, prompt) for layer, prompt in zip(transformer.stack, self._prompt.layers(1), strict=True)
        ]
        self._functions: Sequence[int] = sorted({weights.function for weights in self.weights})
        self._transformer = transformer

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
        if encoder_kv is None or len(encoder_kv) != batch:  # nothing to do by item, or a mistake to be told of
            return self._transformer.new_cache(batch, dtype=self.dtype, device=device, encoder_kv=encoder_kv)
        cache = DecodingCache(
            self._transformer.funcs,
            self.geometry,
            self.config.state,
            batch,
            dtype=self.dtype,
            device=torch.device(device or "cpu"),
        )
        for item in range(batch):  # a product of the rows of several items may round otherwise
            one = self._transformer.new_cache(1, dtype=self.dtype, device=device, encoder_kv=encoder_kv[item, None])
            for layer, entries, own in zip(self._transformer.stack, cache.entries, one.entries, strict=True):
                if layer.attention.crosses:
                    entries[item] = own[0]
        return cache

    @torch.no_grad()
    def extend(self, x: torch.Tensor, cache: DecodingCache) -> torch.Tensor:
        """As ``Transformer.extend``: ``[N, m, width] -> [N, m, width]`` in float32, any m ≥ 1."""
        if x.shape[1] == 1:
            step = NativeStep(self, cache)
            return step.hidden(x[:, 0])[:, None]
        before = cache.advance(x)
        parts = []
        for item in range(len(x)):
            own = cache.item(item)
            own.length = before
            parts.append(self._prompt.extend(x[item : item + 1], own))
        return torch.cat(parts)

    def windows(self, t: int, into: ctypes.Array[ctypes.c_int32]) -> None:
        """What position ``t`` writes and sees, for each function that there is."""
        for function in self._functions:
            into[3 * function : 3 * function + 3] = list(step_window(function, self.geometry, t))


class NativeStep:
    """The native step on one cache, with all its memory taken once.

    Args:
        transformer: its weights.
        cache: of the same transformer; a step adds one position to it.
        embedding: ``[bins, width]``, for :meth:`logits_after`.
        positions: ``[n_ctx, width]``, likewise.
        before, after: ``[N, n_ctx or 1, width]`` added to the input and before the output layer; None for nothing.
        head: the output layer, for :meth:`logits_after`.
    """

    def __init__(
        self,
        transformer: NativeTransformer,
        cache: DecodingCache,
        *,
        embedding: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        before: torch.Tensor | None = None,
        after: torch.Tensor | None = None,
        head: Map | None = None,
    ) -> None:
        config, batch = transformer.config, cache.batch
        self._transformer, self._cache, self._call = transformer, cache, transformer.library.songbloom_step
        self._layers = (_Layer * config.depth)()
        for to, weights, entries in zip(self._layers, transformer.weights, cache.entries, strict=True):
            for name, linear in weights.maps.items():
                linear.written_to(getattr(to, name))
            for name, tensor in weights.norms.items():
                setattr(to, name, tensor.data_ptr())
            to.entries, to.slots, to.function = entries.data_ptr(), entries.shape[1], weights.function
        self._windows = (_INT * (3 * FUNCTIONS))()
        self._x = torch.zeros(batch, config.width)
        self._counters = torch.zeros(5 * config.depth + 1, dtype=torch.int32)
        self._step = step = _Step(
            layers=self._layers,
            depth=config.depth,
            batch=batch,
            width=config.width,
            state=config.state,
            heads=config.heads,
            hidden=config.hidden,
            entry_kind=_KINDS[cache.dtype],
            activation=_ACTIVATIONS.index(config.activation),
            residual_scale=config.residual_scale,
            threads=torch.get_num_threads(),
            windows=ctypes.addressof(self._windows),
            x=self._x.data_ptr(),
            counters=self._counters.data_ptr(),
        )
        # Everything whose address the step knows is kept here as long as the step is.
        self._added = [_rows(added, batch) for added in (before, after)]
        self._table = None if embedding is None else embedding.detach().float().contiguous()
        self._positions = None if positions is None else positions.detach().float().contiguous()
        self._head, self.logits = head, torch.zeros(batch, 0)
        if self._table is not None and self._positions is not None:
            step.embedding, step.positions = self._table.data_ptr(), self._positions.data_ptr()
        if head is not None:
            self.logits = torch.zeros(batch, head.weight.shape[0])
            step.logits = self.logits.data_ptr()
        floats = transformer.library.songbloom_step_scratch(ctypes.addressof(step))
        self._scratch = torch.zeros(floats + 16)
        step.scratch = (self._scratch.data_ptr() + 63) // 64 * 64  # whole cache lines
        self._address = ctypes.addressof(step)

    def _run(self, x: torch.Tensor | None, tokens: torch.Tensor | None, head: bool) -> None:
        t = self._cache.advance(self._x[:, None])
        step = self._step
        self._transformer.windows(t, self._windows)
        step.position = t
        for name, added in zip(("before", "after"), self._added, strict=True):
            if added is not None:
                place = t if added.shape[1] > 1 else 0
                setattr(step, name, added.data_ptr() + place * added.stride(1) * 4)
                setattr(step, f"{name}_stride", added.stride(0))
        if x is not None:
            self._x.copy_(x)
        step.tokens = None if tokens is None else tokens.data_ptr()
        if head and self._head is not None:
            self._head.written_to(step.head)
        else:
            step.head.weight = None
        self._call(self._address)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """The next position from its input ``[N, width]`` → what the last layer gives, float32 ``[N, width]``."""
        self._run(x, None, False)
        return self._x.clone()

    def logits_of(self, x: torch.Tensor) -> torch.Tensor:
        """The next position from its whole input ``[N, width]`` → ``[N, bins]``, overwritten by the next step."""
        self._run(x, None, True)
        return self.logits

    def logits_after(self, tokens: torch.Tensor) -> torch.Tensor:
        """The next position, which follows ``tokens`` int64 ``[N]`` → ``[N, bins]``, overwritten by the next step."""
        self._run(None, tokens, True)
        return self.logits


def _rows(added: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """``[N, positions, width]`` in float32 whose last axis lies in one piece."""
    if added is None:
        return None
    added = added.detach().float().expand(batch, -1, -1)
    return added if added.stride(2) == 1 else added.contiguous()


def head_map(weight: torch.Tensor, quantize: str) -> Map:
    """The output layer ``[bins, width]``: float32 whatever the transformer computes in, or 8 bits where asked for."""
    if quantize:
        rounded, scales = quantized(weight)
        return Map(rounded, None, scales)
    return Map(weight.detach().float().contiguous(), None)
