"""Low-rank adapters on linear maps, and trainable rows of embeddings, in place.

A linear map ``y = x Wᵀ`` with an adapter gives ``y + (alpha / rank) · B (A dropout(x))``, with A ``[rank, in]`` and B
``[out, rank]``; W stays as it is (Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, section 4.1).
B starts as zeros, so a fresh adapter changes nothing.

The adapted module stays the very module it was, with its weight under its name, and has its adapters beside the weight
as ``lora``; several may stand there, each over its own rows of the output (query, key and value are one matrix here).
Adapters are float32 whatever the weight is kept in, and compute in the input's dtype.

Code that reads a weight instead of calling the module asks :func:`effective_weight`. :func:`merge` puts weights with
the adapters' products in the place of the weights, rounded to the weight's dtype. The tensors that were there before
are kept aside untouched, and :func:`unmerge` puts these same tensors back, so not a bit of them can change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

WHOLE = "whole"
"""The name of an adapter over all rows of a matrix."""
LORA = "lora"
ROWS = "rows"


class LowRank(nn.Module):
    """``x [.., in] → scale · B (A dropout(x))``, the sum for output rows ``start`` and on: ``[.., rows]``.

    Args:
        inputs, rows: sizes.
        rank: of the product BA.
        alpha: the scale is ``alpha / rank``.
        dropout: of the input, while training.
        start: the first output row that this is added to.
        generator: where A is drawn from, uniform in ±1/√in (as Kaiming's rule has it with a = √5); None: torch's own.
    """

    def __init__(
        self,
        inputs: int,
        rows: int,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        start: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout, self.start, self.rows = rank, float(alpha), dropout, start, rows
        self.scale = self.alpha / rank
        self.A = nn.Parameter(torch.empty(rank, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs))
        self.B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, self.A.to(x.dtype)), (self.B * self.scale).to(x.dtype))

    def product(self) -> Tensor:
        """What is added to the matrix's rows: ``[rows, in]``, float32."""
        return (self.B * self.scale) @ self.A


class Adapters(nn.ModuleDict):
    """The adapters of one linear map, each under a name of its own; ``hook`` lets the map use them."""

    def __init__(self, hook: RemovableHandle) -> None:
        super().__init__()
        self.hook = hook
        self.kept: list[Tensor] = []  # the weight itself, while a merged one is in its place

    def added_to(self, weight: Tensor) -> Tensor:
        """``weight [out, in]`` with every product added, float32."""
        total = weight.float().clone() if weight.dtype == torch.float32 else weight.float()
        for adapter in self.values():
            assert isinstance(adapter, LowRank)
            total[adapter.start : adapter.start + adapter.rows] += adapter.product()
        return total


class Rows(nn.Module):
    """Rows of an embedding that stand in the place of those in its table.

    Args:
        ids: which rows.
        values: ``[len(ids), width]``, what they begin as.
        bins: rows of the table.
        hook: lets the embedding use them.
    """

    ids: Tensor
    place: Tensor

    def __init__(self, ids: Tensor, values: Tensor, bins: int, hook: RemovableHandle) -> None:
        super().__init__()
        self.hook = hook
        self.values = nn.Parameter(values.detach().float().clone())
        self.register_buffer("ids", ids.to(torch.int64))
        place = torch.full((bins,), -1, dtype=torch.int64, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("place", place, persistent=False)
        self.kept: list[Tensor] = []

    def forward(self, ids: Tensor, output: Tensor) -> Tensor:
        place = self.place[ids]
        own = F.embedding(place.clamp(min=0), self.values).to(output.dtype)
        return torch.where((place >= 0)[..., None], own, output)

    def added_to(self, weight: Tensor) -> Tensor:
        """The table ``[bins, width]`` with these rows in it, float32."""
        return weight.float().index_put((self.ids,), self.values)


def adapters_of(linear: nn.Module) -> Adapters | None:
    """What :func:`add_adapter` put beside the weight of a linear map."""
    found = getattr(linear, LORA, None)
    return found if isinstance(found, Adapters) else None


def rows_of(embedding: nn.Module) -> Rows | None:
    """What :func:`add_rows` put beside the table of an embedding."""
    found = getattr(embedding, ROWS, None)
    return found if isinstance(found, Rows) else None


def _add(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapters = adapters_of(linear)
    if adapters is None or adapters.kept:
        return output
    for adapter in adapters.values():
        assert isinstance(adapter, LowRank)
        # In place: the output is the map's own, and no gradient needs what it was.
        output.narrow(-1, adapter.start, adapter.rows).add_(adapter(inputs[0]))
    return output


def _replace(embedding: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    rows = rows_of(embedding)
    return output if rows is None or rows.kept else rows(inputs[0], output)


def add_adapter(linear: nn.Module, name: str, adapter: LowRank) -> None:
    """Let a linear map (anything with a ``weight [out, in]`` that is called with one tensor) use an adapter.

    It stands on the weight's device, under ``name``, which no other adapter of the map may have.
    """
    adapters = adapters_of(linear)
    if adapters is None:
        adapters = Adapters(linear.register_forward_hook(_add)).train(linear.training)
        linear.add_module(LORA, adapters)
    if name in adapters or adapters.kept:
        raise ValueError(f"{name} is there already" if name in adapters else "the adapters are merged")
    weight: Any = linear.weight
    adapters[name] = adapter.to(weight.device).train(linear.training)


def add_rows(embedding: nn.Module, ids: Tensor, values: Tensor | None = None) -> Rows:
    """Let an embedding (anything with a ``weight [bins, width]`` that is called with ids) have rows of its own.

    Args:
        ids: which rows.
        values: what they begin as; None: as they are in the table.
    """
    weight: Any = embedding.weight
    ids = ids.to(weight.device)
    before = rows_of(embedding)
    hook = embedding.register_forward_hook(_replace) if before is None else before.hook
    rows = Rows(ids, weight.detach()[ids] if values is None else values.to(weight.device), len(weight), hook)
    embedding.add_module(ROWS, rows)
    return rows


def effective_weight(module: nn.Module) -> Tensor:
    """The weight of a linear map or an embedding as its adapters make it, for code that does not call the module.

    Without adapters, or with merged ones, the weight itself; otherwise float32, with gradients to the adapters. Dropout
    of the adapters' input is not possible here.
    """
    weight: Any = module.weight
    for beside in (adapters_of(module), rows_of(module)):
        if beside is not None and not beside.kept:
            weight = beside.added_to(weight)
    return weight


def _adapted(model: nn.Module) -> Iterator[tuple[nn.Module, Adapters | Rows]]:
    for module in model.modules():
        for beside in (adapters_of(module), rows_of(module)):
            if beside is not None:
                yield module, beside


def has_live_adapters(model: nn.Module) -> bool:
    """Whether a part of the model is adapted and not merged, so that its weights alone do not tell what it does."""
    return any(not beside.kept for _, beside in _adapted(model))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put merged weights in the place of all adapted ones, so that every fast path sees them; once is enough.

    Sums are made in float32 and rounded once to the weight's dtype. Memory: one more matrix for each adapted one.
    """
    for module, beside in _adapted(model):
        weight: Any = module.weight
        if beside.kept or weight.is_meta:
            continue
        merged = beside.added_to(weight.data).to(weight.dtype)
        beside.kept = [weight.data]
        weight.data = merged


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Put the weights back that :func:`merge` set aside."""
    for module, beside in _adapted(model):
        weight: Any = module.weight
        if beside.kept:
            weight.data = beside.kept.pop()


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within it the adapters are merged."""
    merge(model)
    try:
        yield
    finally:
        unmerge(model)


def remove(model: nn.Module) -> None:
    """Take all adapters away; what is merged stays merged, and no weight is kept aside for it.

    Their hooks go too: fast paths compute only what nobody looks at on its way.
    """
    for module, beside in list(_adapted(model)):
        beside.hook.remove()
        for name in (LORA, ROWS):
            if name in module._modules:
                del module._modules[name]


def bake(model: nn.Module) -> None:
    """Merge all adapters for good: a plain model again, matrix by matrix, so that one at most is there twice."""
    with torch.no_grad():
        for module, beside in list(_adapted(model)):
            weight: Any = module.weight
            if not beside.kept:
                weight.data = beside.added_to(weight.data).to(weight.dtype)
    remove(model)
