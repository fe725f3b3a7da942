"""What writing frames needs of memory: weights, the positions of each prompt, and those of each song."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from songbloom.prior.config import dtype_of
from songbloom.prior.songbloom.llama import CHUNK
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.sampling import memory
from songbloom.sampling.needs import Need
from songbloom.sampling.songbloom_writer import LATENTS, SongSettings
from songbloom.training.shared import are_shared

_BUFFERS = 12  # activations of a position that live at once, in widths of the model
_WHOLE = 3  # vectors of every position: what is read, and what comes of it


def weight_bytes(prior: SongBloomPrior, precision: str) -> float:
    """What the weights take as they are loaded: matrices of the transformers in the precision, all else in float32."""
    itemsize = dtype_of(precision).itemsize
    kept = sum(prior.get_parameter(name).numel() for name in prior.matrices())
    return itemsize * kept + 4.0 * (sum(each.numel() for each in prior.parameters()) - kept)


def position_bytes(prior: SongBloomPrior, precision: str) -> float:
    """A position of a song or a prompt in the language model's cache."""
    return prior.cost()["cache_bytes_a_position"] / 4 * dtype_of(precision).itemsize


def item_bytes(prior: SongBloomPrior, precision: str, frames: int) -> float:
    """What a song of so many frames takes: with and without conditions, its positions and its prompt's, and the
    activations and scores of a long beginning that is read at once."""
    config = prior.config
    positions = 1 + (config.patch_size + 1) * -(-frames // config.patch_size)
    together = min(positions, CHUNK)  # positions of a long beginning that are read at once
    scores = 4.0 * 2 * 3 * config.heads * together * (positions + config.prefix)
    inner = 4.0 * 2 * (_BUFFERS * together + _WHOLE * positions) * config.prior_width
    return position_bytes(prior, precision) * (2 * positions + config.prefix) + scores + inner


def need_of(
    prior: SongBloomPrior,
    settings: SongSettings,
    items: int,
    frames: int,
    *,
    codec_bytes: float,
    device: torch.device | None = None,
    source: Path | None = None,
) -> Need:
    """What sampling takes in one process.

    Args:
        prior: its sizes are enough.
        settings: of the run.
        items: of this process.
        frames: of a song.
        codec_bytes: of the codec's weights, which every process has for itself.
        device: where it will be; None: a CPU.
        source: the file of the prior's weights; None where that is not known.
    """
    precision, mine = settings.precision, weight_bytes(prior, settings.precision)
    on_cpu = device is None or device.type == "cpu"
    shared = mine if on_cpu and are_shared(mine, source, dtype_of(precision)) else 0.0
    weights = mine + codec_bytes + position_bytes(prior, precision) * prior.config.prefix
    together = max(1, min(items, settings.max_batch_size))
    return Need(LATENTS, precision, weights, shared, 0.0, item_bytes(prior, precision, frames), together)


def batch_of(
    prior: SongBloomPrior, precision: str, device: torch.device, items: int, frames: int, codec_bytes: float
) -> int:
    """Items to sample together, the same on all ranks; all of them call it together."""
    weights = weight_bytes(prior, precision) + codec_bytes
    most = max(1, min(items, memory.LARGEST_BATCH))
    return memory.items_in(memory.free_everywhere(device), weights, item_bytes(prior, precision, frames), most)


def parameter_bytes(modules: Sequence[torch.nn.Module]) -> float:
    """Of modules in float32."""
    return 4.0 * sum(parameter.numel() for module in modules for parameter in module.parameters())
