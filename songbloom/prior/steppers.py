"""Ways to run an autoregressive model token by token: plain, with prepared weights, natively, or as a CUDA graph.

All have the same three methods (:class:`Stepper`), and the plain one is the reference for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.transformer.blocks import Transformer
from songbloom.transformer.cache import DecodingCache
from songbloom.transformer.decoding import DecodingTransformer, PackedLinear, worth_packing
from songbloom.transformer.native import stepper as native
from songbloom.transformer.quantized import QuantizedLinear
from songbloom.transformer.recording import record
from songbloom.transformer.static import StaticStep

Head = Callable[[Tensor], Tensor]
"""The output layer: hidden states [.., W] → logits [.., bins], float32."""


@dataclass(frozen=True)
class Given:
    """What a stepper needs of the model and of a request.

    Attributes:
        transformer, embedding, positions, output_weight: the model's.
        n_samples: N.
        before, after: [N, n_ctx or 1, W], added to the transformer's input and to its output; None for nothing.
        encoder_kv: [N, encoder_dims, W], for layers that read an encoder.
        dtype, quantize: what the transformer computes in, and how its weights are kept.
    """

    transformer: Transformer
    embedding: Tensor
    positions: Tensor
    output_weight: Tensor
    n_samples: int
    before: Tensor | None = None
    after: Tensor | None = None
    encoder_kv: Tensor | None = None
    dtype: torch.dtype = torch.float32
    quantize: str = ""

    def entered(self, x: Tensor, begin: int) -> Tensor:
        """The transformer's input of positions ``begin`` and on, from what stands there [N, m, W]."""
        x = x + self.positions[begin : begin + x.shape[1]]
        return _plus(x, self.before, begin)

    def left(self, x: Tensor, begin: int) -> Tensor:
        """What the output layer sees, from the transformer's output [N, m, W]."""
        return _plus(x, self.after, begin)


def _plus(x: Tensor, added: Tensor | None, begin: int) -> Tensor:
    if added is None:
        return x
    return x + (added if added.shape[1] == 1 else added[:, begin : begin + x.shape[1]])


class Stepper(Protocol):
    """Takes a sequence from its beginning, positions in order."""

    cache: DecodingCache

    def read(self, x: Tensor, begin: int, *, wanted: bool) -> Tensor | None:
        """Positions ``begin`` and on of a prompt [N, m, W], without positions and conditions → logits [N, m, bins] if
        ``wanted``."""
        ...

    def first(self, x: Tensor, position: int) -> Tensor:
        """The same of one position whose logits [N, bins] are to be drawn from."""
        ...

    def after(self, tokens: Tensor, position: int) -> Tensor:
        """The position that follows ``tokens`` [N] int64 → logits [N, bins], the caller's until the next call."""
        ...


class TorchStepper:
    """By a transformer's own ``extend``, or that of one with prepared weights."""

    def __init__(self, given: Given, decoder: Transformer | DecodingTransformer, head: Head) -> None:
        self.given, self.decoder, self.head = given, decoder, head
        self.cache: DecodingCache = decoder.new_cache(
            given.n_samples, dtype=given.dtype, device=given.positions.device, encoder_kv=given.encoder_kv
        )

    def read(self, x: Tensor, begin: int, *, wanted: bool) -> Tensor | None:
        x = self.decoder.extend(self.given.entered(x, begin), self.cache)
        return self.head(self.given.left(x, begin)) if wanted else None

    def first(self, x: Tensor, position: int) -> Tensor:
        logits = self.read(x, position, wanted=True)
        assert logits is not None
        return logits[:, 0]

    def after(self, tokens: Tensor, position: int) -> Tensor:
        return self.first(F.embedding(tokens[:, None], self.given.embedding), position)


class NativeStepper:
    """By the C++ step, from token to logits in one call; an item's numbers don't depend on the others in its batch."""

    def __init__(self, given: Given, transformer: native.NativeTransformer, head: native.Map) -> None:
        self.given, self.transformer = given, transformer
        self.cache = transformer.new_cache(given.n_samples, encoder_kv=given.encoder_kv)
        self.step = native.NativeStep(
            transformer,
            self.cache,
            embedding=given.embedding,
            positions=given.positions,
            before=given.before,
            after=given.after,
            head=head,
        )
        self._head = head

    def read(self, x: Tensor, begin: int, *, wanted: bool) -> Tensor | None:
        x = self.transformer.extend(self.given.entered(x, begin), self.cache)
        if not wanted:
            return None
        weight = self._head.weight.float()
        if self._head.scales is not None:
            weight = weight * self._head.scales[:, None]
        return torch.stack([F.linear(item, weight) for item in self.given.left(x, begin)])

    def first(self, x: Tensor, position: int) -> Tensor:
        return self.step.logits_of(self.given.entered(x, position)[:, 0])

    def after(self, tokens: Tensor, position: int) -> Tensor:
        return self.step.logits_after(tokens)


class GraphStepper(TorchStepper):
    """As :class:`TorchStepper`, but for single positions one function of fixed operations on fixed memory, which on
    CUDA is recorded once and then replayed: a launch a token instead of some twenty a layer.

    Args:
        record: whether to record; False runs the function itself each time, on any device.
    """

    def __init__(self, given: Given, decoder: DecodingTransformer, head: Head, *, record: bool) -> None:
        super().__init__(given, decoder, head)
        self._static, self._record = StaticStep(decoder, self.cache), record
        device = given.positions.device
        self._tokens = torch.zeros(given.n_samples, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def _run(self) -> Tensor:
        """Logits of the position in ``_position``, which is then counted up, after the tokens in ``_tokens``."""
        given, position = self.given, self._position
        x = F.embedding(self._tokens, given.embedding) + given.positions.index_select(0, position)
        x = self._static(_plus_at(x, given.before, position), position)
        logits = self.head(_plus_at(x, given.after, position))
        position.add_(1)
        return logits

    def after(self, tokens: Tensor, position: int) -> Tensor:
        self._tokens.copy_(tokens)
        if self._logits is None:  # the first of these steps; from then on the position counts itself
            self._position.fill_(position)
            if self._record:
                self._warm_up_and_record()
                self._position.fill_(position)
        self.cache.length = position + 1
        if self._graph is not None and self._logits is not None:
            self._graph.replay()
            return self._logits
        self._logits = self._run()
        return self._logits

    def _warm_up_and_record(self) -> None:
        # What the first calls write into the cache is the entry of this position, which the replay then writes again.
        place = self._position.clone()

        def warm_up() -> None:
            self._run()
            self._position.copy_(place)

        self._graph, self._logits = record(self._run, warm_up=warm_up, times=3)


def _plus_at(x: Tensor, added: Tensor | None, position: Tensor) -> Tensor:
    if added is None:
        return x
    return x + (added[:, 0] if added.shape[1] == 1 else added.index_select(1, position)[:, 0])


def head_of(given: Given, fast: bool) -> Head:
    """The output layer by torch: float32 products, whatever the transformer computes in."""
    weight, bins = given.output_weight.detach().float(), len(given.output_weight)
    if fast and given.quantize:
        linear = QuantizedLinear(weight, weight.new_zeros(bins))
        return lambda hidden: linear(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], bins)
    if fast and worth_packing(torch.float32, weight.device, given.n_samples):
        packed = PackedLinear(weight, weight.new_zeros(bins))
        return lambda hidden: packed(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], bins)
    return lambda hidden: F.linear(hidden, weight)


class Prepared:
    """A model's weights as they were last prepared, so that the windows of a song prepare them once.

    They are prepared again when a weight has changed or moved, or something else is asked for.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._value: Any = None

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()  # a copy of the model prepares its own

    def native(self, model: nn.Module, given: Given) -> tuple[native.NativeTransformer, native.Map]:
        """The native transformer and output layer."""

        def make() -> tuple[native.NativeTransformer, native.Map]:
            transformer = native.NativeTransformer(given.transformer, given.dtype, given.quantize)
            return transformer, native.head_map(given.output_weight, given.quantize)

        return cast(tuple[native.NativeTransformer, native.Map], self._kept("native", model, given, make))

    def decoder(self, model: nn.Module, given: Given) -> DecodingTransformer:
        """The transformer with weights prepared for torch; what it packs for a number of samples it keeps as well."""

        def make() -> DecodingTransformer:
            return DecodingTransformer(given.transformer, given.dtype, quantize=given.quantize)

        return cast(DecodingTransformer, self._kept("torch", model, given, make))

    def _kept(self, way: str, model: nn.Module, given: Given, make: Callable[[], Any]) -> Any:
        parameters = list(model.parameters())
        # A tensor made in inference mode has no version: what is done to it goes unseen.
        known = not any(p.is_inference() for p in parameters)
        key = (way, given.dtype, given.quantize, [(p.data_ptr(), p._version) for p in parameters]) if known else None
        if self._value is None or key is None or key != self._key:
            self._value = None  # let go before the new ones take memory
            self._value, self._key = make(), key
        return self._value


def stepper_for(model: nn.Module, given: Given, prepared: Prepared, *, fast: bool) -> Stepper:
    """The fastest way that there is here, or the plain one; decided by nothing that changes between runs.

    ``quantize`` is kept in any way but the plain one, whose weights are as the model has them.
    """
    device = given.positions.device
    if not fast:
        return TorchStepper(given, given.transformer, head_of(given, False))
    if native.available(given.dtype, device):
        return NativeStepper(given, *prepared.native(model, given))
    decoder = prepared.decoder(model, given)
    if device.type == "cuda":
        return GraphStepper(given, decoder, head_of(given, True), record=True)
    return TorchStepper(given, decoder, head_of(given, True))
