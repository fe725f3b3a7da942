"""How many items fit into memory at once, where nobody says how many to sample together.

How items are batched may decide the last bit of a sum, and so, rarely, a code. What was chosen when a run began is
therefore kept in its ``run.json`` and used again when the run goes on, whatever is free by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from songbloom.distributed import gather_objects
from songbloom.free_memory import free_bytes
from songbloom.prior.config import dtype_of
from songbloom.prior.prior import Prior
from songbloom.sampling import journal
from songbloom.sampling.tree import RECORD
from songbloom.transformer.layers import Linear

LARGEST_BATCH = 64  # more makes a step no cheaper an item, and the first codes come late
USED_SHARE = 0.8  # of what is free; the rest is for decoding, and for others
_BUFFERS = 8  # activations of a token that live at once, in widths of the model: its sums, queries, the MLP's inside


def weight_bytes(prior: Prior, precision: str) -> float:
    """What a prior's weights take as they are loaded: matrices in the precision, all else in float32."""
    matrices = sum(module.weight.numel() for module in prior.modules() if isinstance(module, Linear))
    rest = sum(parameter.numel() for parameter in prior.parameters()) - matrices
    return 4.0 * rest + dtype_of(precision).itemsize * matrices


def item_bytes(prior: Prior, precision: str) -> float:
    """What one item more in a batch takes: its cache, its conditioning, its logits, and the activations of a prompt.

    Everything but the cache is counted in float32 and generously; the cache is most of it in large priors.
    """
    model = prior.autoregressive
    tokens = 4.0 * model.n_ctx * model.width * _BUFFERS
    conditioning = 0.0
    if prior.conditioner is not None:
        largest = max(parameter.shape[0] for parameter in prior.conditioner.parameters() if parameter.dim() > 1)
        conditioning = 4.0 * prior.n_ctx * largest * 4
    return prior.cost(precision)["cache_bytes"] + tokens + conditioning + 4.0 * prior.l_bins * _BUFFERS


def largest_batch(prior: Prior, precision: str, free: float | None, items: int) -> int:
    """Items to sample together: as many as there is room for beside the weights, at least one.

    Args:
        prior: its sizes are enough; its weights need not be there, and are not.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        free: bytes; None where nobody knows.
        items: how many there are.
    """
    most = max(1, min(items, LARGEST_BATCH))
    return items_in(free, weight_bytes(prior, precision), item_bytes(prior, precision), most)


def items_in(free: float | None, weights: float, item: float, most: int) -> int:
    """How many items of so many bytes fit beside the weights, at least one and not more than ``most``."""
    if free is None:
        return most
    return max(1, min(most, int((USED_SHARE * free - weights) // item)))


def chosen_before(folder: Path | str) -> Mapping[str, Any]:
    """What a run in ``folder`` chose when it began; nothing where there is none that can be read, nor where it has kept
    nothing yet: another command may take its place, with more items or a larger model."""
    folder = Path(folder)
    if journal.is_empty(folder) and not any(folder.glob("level_[0-9]*")):
        return {}
    try:
        chosen = json.loads((folder / RECORD).read_text(encoding="utf-8"))["chosen"]["max_batch_size"]
        return {str(int(level)): int(size) for level, size in chosen.items() if int(size) >= 1}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def choose_batches(
    sizes: Iterable[Prior], precision: str, device: torch.device, items: int, before: Mapping[str, Any]
) -> dict[str, int]:
    """For each level how many items are sampled together, the same on all ranks; all of them call it together.

    Args:
        sizes: the priors' sizes.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: where they will be.
        items: of the run.
        before: what the run chose when it began (:func:`chosen_before`).
    """
    free = free_everywhere(device)
    return {
        str(prior.level): before.get(str(prior.level)) or largest_batch(prior, precision, free, items)
        for prior in sizes
    }


def free_everywhere(device: torch.device) -> int | None:
    """The least that any rank has free; all of them call it together. None where no system tells."""
    return min((free for free in gather_objects(free_bytes(device)) if free is not None), default=None)
