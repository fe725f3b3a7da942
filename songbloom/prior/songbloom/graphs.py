"""Steps on a GPU, recorded once and then replayed (:mod:`songbloom.transformer.recording`).

A graph replays recorded kernels with recorded addresses, so a step must be the same operations on the same memory each
time: what depends on the position comes from a tensor, and the song's attention looks at all the room that its cache
has, what is not written yet masked. Elsewhere the same functions run unrecorded, which is how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from songbloom.prior.songbloom.dit import DiffusionTransformer
from songbloom.prior.songbloom.llama import Cache, LanguageModel
from songbloom.transformer.recording import record

DEVICES = ("cuda",)  # where steps go this way


def here(device: torch.device) -> bool:
    """Whether steps on ``device`` go this way."""
    return device.type in DEVICES


class Recorded:
    """A function of tensors that is recorded at its first call and replayed at the others.

    Args:
        function: the same operations at every call, whatever the numbers; no look at a number from the host.
        record: False calls it every time.
    """

    def __init__(self, function: Callable[..., Tensor], *, record: bool) -> None:
        self.function, self.record = function, record
        self.inputs: list[Tensor] = []
        self.output: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, the caller's own; every call has inputs of the first one's shapes and types."""
        if not self.record:
            return self.function(*inputs)
        if self.graph is None:
            self.inputs = [given.clone() for given in inputs]
            run = partial(self.function, *self.inputs)
            self.graph, self.output = record(run, warm_up=run, times=2)
        for room, given in zip(self.inputs, inputs, strict=True):
            room.copy_(given)
        assert self.graph is not None and self.output is not None
        self.graph.replay()
        return self.output.clone()


class LanguageSteps:
    """Single positions of the language model after a cache's; recorded anew when rows have left it.

    Args:
        model: its layers.
        cache: of the songs; what stands in it stays readable by ``model.step``, and the other way round.
    """

    def __init__(self, model: LanguageModel, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self._keys: Tensor | None = None  # those that were recorded
        self._step = Recorded(self._at, record=False)

    def __call__(self, x: Tensor) -> Tensor:
        """``x [rows, 1, W]`` → ``[rows, 1, W]``; the cache remembers the position."""
        cache = self.cache
        if self._keys is not cache.keys:
            self._keys = cache.keys
            cache.values[:, :, :, cache.length :] = 0  # weights of nothing times what memory held before
            self._places = torch.arange(cache.keys.shape[3], device=x.device)
            self._step = Recorded(self._at, record=x.device.type == "cuda")
        position = torch.full((1,), cache.length, dtype=torch.int64, device=x.device)
        made = self._step(x, position)
        cache.length += 1
        return made

    def _at(self, x: Tensor, position: Tensor) -> Tensor:
        table = self.cache.table.index_select(1, position)
        for index, layer in enumerate(self.model.language_layers()):
            query, key, value = layer.queries_keys_values(x, table)
            x = layer.finish(x, self._attend(index, query, key, value, position))
        return self.model.norm(x)

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, position: Tensor) -> Tensor:
        cache = self.cache
        keys, values = cache.keys[layer], cache.values[layer]
        keys.index_copy_(2, position, key)
        values.index_copy_(2, position, value)
        query = query * query.shape[-1] ** -0.5
        own = (query @ keys.transpose(-1, -2)).masked_fill(self._places > position, float("-inf"))
        return cache.weighed(layer, query, own, values)


def velocities(diffusion: DiffusionTransformer, device: torch.device) -> Recorded:
    """``DiffusionTransformer.velocity`` for one number of rows."""
    return Recorded(diffusion.velocity, record=device.type == "cuda")
