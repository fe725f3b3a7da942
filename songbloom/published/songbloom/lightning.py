"""Checkpoints that the Japanese fork of SongBloom trains: Lightning files, perhaps with adapters within the model.

Under ``state_dict`` they hold the published model's names (:mod:`songbloom.published.songbloom.prior`), those of its
VAE, and for each layer that was adapted, in place of ``PATH.weight``, ``PATH.base.weight``, ``PATH.lora_A.weight``
``[rank, in]`` and ``PATH.lora_B.weight`` ``[out, rank]``. What an adapter adds is ``alpha / rank`` times the product of
the last two; the file does not say alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from songbloom.published.songbloom import prior as published

_BASE = ".base."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Two-dimensional, and no matrices of linear maps.
_TABLES = ("sketch_embedding.weight", "lyrics.tokens.weight", "lyrics.sentences.weight", "diffusion.time.frequencies")


class Parts(NamedTuple):
    """What such a file holds.

    Attributes:
        base: the state of the published model, its VAE beside it where the file has one, without adapters.
        adapters: A and B of each adapted module, under its published name; None for the one that is missing.
    """

    base: dict[str, Tensor]
    adapters: dict[str, tuple[Tensor | None, Tensor | None]]


def parts_of(content: Mapping[str, Any]) -> Parts | None:
    """The parts of a loaded file, or None if it is no such checkpoint.

    A bare ``state_dict`` counts as one only if there are adapters in it; without, it is a published model's file.
    """
    wrapped = content.get("state_dict")
    state = wrapped if isinstance(wrapped, Mapping) else content
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        return None
    adapted = dict.fromkeys(key for key in state if key.endswith((_A, _B)))
    if not published.is_published(state) or not (adapted or wrapped is state):
        return None
    base = {key.replace(_BASE, ".", 1): tensor for key, tensor in state.items() if key not in adapted}
    modules = dict.fromkeys(key.removesuffix(_A).removesuffix(_B) for key in adapted)
    adapters = {
        module.removeprefix(published.PREFIX): (state.get(module + _A), state.get(module + _B)) for module in modules
    }
    return Parts(base, adapters)


def digested(base: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The base by our names, matrices of linear maps on the meta device, and the names of these.

    What identifies a base are the numbers of all other tensors (:func:`songbloom.lora.files.state_digest`), so joining
    matrices, which are nearly all of the model, is spared.

    Raises:
        UserError: names that no SongBloom model has.
    """
    tables = published.to_published(dict.fromkeys(_TABLES, torch.empty(0)), prefix="")
    light = {}
    for key, tensor in base.items():
        bare = key.removeprefix(published.PREFIX)
        matrix = bare.endswith(".weight") and tensor.ndim == 2 and bare not in tables
        light[key] = torch.empty(tensor.shape, device="meta") if matrix else tensor
    ours = published.from_published(light)
    return ours, {name for name, tensor in ours.items() if tensor.is_meta}
