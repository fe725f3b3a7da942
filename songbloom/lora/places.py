"""Where in a model adapters may stand, and by which names people ask for these places.

A place is a linear map, or one part of a map that joins several (query, key and value; gate and up). Each has our
dotted name, the name that it has in the published model's module tree, and, in the Jukebox family, the names that
Llama-like models have taught people (``q_proj``, ``o_proj``, ``up_proj``). A target finds places by any of them:

* words such as ``q_proj``, ``self_attn`` or ``language_model.layers.0``: a run of whole words between dots, anywhere;
* with ``*``, ``?`` or ``[``: a pattern as of file names, over the whole name (``*layers.[0-3].*.value``);
* ``re:…``: a regular expression over the whole name;
* ``all-linear``: every linear map.

Where a map and parts of it are both found, the adapter stands over the whole map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from songbloom.errors import UserError, did_you_mean
from songbloom.prior.songbloom.layers import Linear as SongBloomLinear
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.published.jukebox import prior as jukebox
from songbloom.published.songbloom import prior as songbloom
from songbloom.transformer.lora import WHOLE

ALL = "all-linear"
EXPRESSION = "re:"
PARTS = {
    "query_key_value": ("query", "key", "value"),
    "key_value": ("key", "value"),
    "gate_up": ("gate", "up"),
}
"""Maps that join several: the parts of their rows, in order and of equal size."""
_LLAMA = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "attention.output": "o_proj",
    "mlp.up": "up_proj",
    "mlp.down": "down_proj",
}


@dataclass(frozen=True)
class Place:
    """Where an adapter may stand.

    Attributes:
        module: dotted name of the linear map.
        part: of its rows, or :data:`songbloom.transformer.lora.WHOLE`.
        start, rows: which rows of the map's output.
        inputs: width of its input.
        published: name of the module in the published model's tree; "" where that has no module of these rows.
        names: all names by which targets find it.
    """

    module: str
    part: str
    start: int
    rows: int
    inputs: int
    published: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Our name, with the part."""
        return self.module if self.part == WHOLE else f"{self.module}.{self.part}"


def is_linear(module: nn.Module) -> bool:
    """Whether adapters can stand there."""
    return isinstance(module, (nn.Linear, SongBloomLinear))


def linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Dotted name and module of every linear map."""
    for name, module in model.named_modules():
        if is_linear(module):
            yield name, module


def published_keys(model: nn.Module, key: str, tensor: Tensor | None = None) -> dict[str, Tensor]:
    """What a weight of ours is in a published model of the family: its key or keys there, in the order of the rows.

    Args:
        model: a prior of either family; any other model's names are their own.
        key: as in ``state_dict``.
        tensor: its numbers; without, only the keys count.
    """
    tensor = torch.empty(1, device="meta") if tensor is None else tensor
    if isinstance(model, SongBloomPrior):
        if tensor.is_meta and tensor.numel() == 1:
            tensor = torch.empty(6, 1, device="meta")  # enough rows for any parts
        return songbloom.to_published({key: tensor}, prefix="")
    if model.__class__.__name__ == "Prior":
        tensor = torch.empty(1, 1, device="meta") if tensor.is_meta and tensor.numel() == 1 else tensor
        found = jukebox.to_published({key: tensor})
        return dict(list(found.items())[:1])  # a table that is the output layer too is there under both names
    return {key: tensor}


def module_of(key: str) -> str:
    """The module that a published weight belongs to."""
    return key.rpartition(".")[0]


def places(model: nn.Module) -> list[Place]:
    """Every place of a model, maps before their parts."""
    found: list[Place] = []
    for name, linear in linears(model):
        published = [module_of(key) for key in published_keys(model, f"{name}.weight")]
        rows, inputs = linear.weight.shape
        before, _, leaf = name.rpartition(".")
        llama = not isinstance(model, SongBloomPrior)
        parts = PARTS.get(leaf, ())
        alone = published[0] if len(published) == 1 else ""
        names = [name, alone]
        if llama:
            names += [f"{name}.{short}" for long, short in _LLAMA.items() if f".{name}".endswith(f".{long}")]
        found.append(Place(name, WHOLE, 0, rows, inputs, alone, tuple(filter(None, names))))
        for index, part in enumerate(parts):
            theirs = published[index] if len(published) == len(parts) else ""
            names = [f"{name}.{part}", theirs, f"{before}.{_LLAMA[part]}" if llama and part in _LLAMA else ""]
            size = rows // len(parts)
            found.append(Place(name, part, index * size, size, inputs, theirs, tuple(filter(None, names))))
    return found


def _matches(target: str, name: str) -> bool:
    if target.startswith(EXPRESSION):
        return re.fullmatch(target.removeprefix(EXPRESSION), name) is not None
    if any(sign in target for sign in "*?["):
        return fnmatchcase(name, target)
    return f".{target}." in f".{name}."


def split_targets(text: str) -> tuple[str, ...]:
    """The targets of an option: separated by commas, blanks left out. An expression (``re:``) goes to the end."""
    before, mark, expression = text.partition(EXPRESSION)
    found = [part.strip() for part in before.split(",")]
    return tuple(part for part in (*found, mark + expression if mark else "") if part)


def chosen(model: nn.Module, targets: Sequence[str]) -> list[Place]:
    """The places that targets ask for, in the model's order.

    Raises:
        UserError: there is no target, one is no expression, or one finds nothing (near names are listed).
    """
    if not targets:
        raise UserError("--lora_target_modules is empty: name the layers, such as q_proj,v_proj, or all-linear")
    everywhere = places(model)
    wanted: set[Place] = set()
    for target in targets:
        try:
            found = {
                place
                for place in everywhere
                if (place.part == WHOLE if target == ALL else any(_matches(target, name) for name in place.names))
            }
        except re.error as error:
            raise UserError(f"--lora_target_modules: {target!r} is no regular expression ({error})") from error
        if not found:
            raise UserError(_nothing(target, everywhere))
        wanted |= found
    whole = {place.module for place in wanted if place.part == WHOLE}
    return [place for place in everywhere if place in wanted and (place.part == WHOLE or place.module not in whole)]


def _nothing(target: str, everywhere: Iterable[Place]) -> str:
    names = [name for place in everywhere for name in place.names]
    words = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    near = did_you_mean(target.rpartition(".")[2], words) or did_you_mean(target, names)
    shown = ", ".join(words[:20])
    example = next(iter(names), "")
    return (
        f"--lora_target_modules: {target!r} matches no linear layer of this model{near}; there are {shown} "
        f"(whole names such as {example})"
    )
