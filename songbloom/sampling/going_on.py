"""The commands that go on from an item of a run, for its page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from songbloom.hyperparams import COMMAND_LINE, Hyperparams
from songbloom.sampling.page import PageCommand

_KEPT = (
    *("hps", "restore_vqvae", "restore_prior", "local_logdir", "label_tables", "lora"),
    *("temp", "top_k", "top_p", "hop_fraction", "max_batch_size", "chunk_size", "precision", "quantize", "device"),
    *("restore_vae", "restore_sketch", "cfg_coef", "dit_cfg_type", "steps", "sampler", "diff_temp", "penalty"),
    *("penalty_window", "window_patches", "compatibility", "language", "seconds_per_tag", "output_format"),
)
BRANCHES = 4  # ways on that a page proposes


def beginnings(options: Hyperparams, levels: Sequence[int]) -> dict[str, str]:
    """What the commands that go on from any item of a run begin with; kept in its ``run.json``.

    Words and labels are left out: they are carried on from the run.

    Args:
        options: the run's command line.
        levels: those that it writes.

    Returns:
        ``name`` (the run's folder, as it was typed), ``continue`` and, for a run without its finest level,
        ``upsample``.
    """
    kept = [*_written(options, ("model",)), *_written(options, [key for key in _KEPT if _typed(options, key)])]
    source = f"--codes_file={options.name}"
    further = [*kept, "--mode=continue", source]
    if options.mode != "upsample" and _typed(options, "levels_to_sample"):
        further += _written(options, ("levels_to_sample",))
    made = {"name": options.name, "continue": shlex.join(["python", "sample.py", *further])}
    if min(levels) > 0:
        made["upsample"] = shlex.join(["python", "sample.py", *kept, "--mode=upsample", source])
    return made


def _typed(options: Hyperparams, key: str) -> bool:
    return options.sources.get(key) == COMMAND_LINE and options.get(key) is not None


def _written(options: Hyperparams, keys: Sequence[str]) -> list[str]:
    values = {key: options[key] for key in keys}
    return [
        f"--{key}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for key, value in values.items()
    ]


def commands(begun: Mapping[str, Any], item: int, seconds: float, total: float = 0.0) -> list[PageCommand]:
    """The commands that go on from an item.

    Args:
        begun: of :func:`beginnings`; empty for none.
        item: its number.
        seconds: its length.
        total: that of the song which the model was told it begins; 0 where it was told of none.
    """
    found = []
    name = str(begun.get("name", ""))
    if isinstance(begun.get("continue"), str):
        text = f"{begun['continue']} --pick={item} --branch={BRANCHES}"
        if 0 < total < 2 * seconds:  # the longest that is proposed; a song is no shorter than its beginning
            text += f" --total_sample_length_in_seconds={math.ceil(2 * seconds)}"
        found.append(PageCommand("go_on", text, f"{name}-{item}", seconds))
    if isinstance(begun.get("upsample"), str):
        found.append(PageCommand("refine", f"{begun['upsample']} --pick={item}", f"{name}-{item}-fine"))
    return found
