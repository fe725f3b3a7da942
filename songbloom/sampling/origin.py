"""The run that another one goes on from: which of its items are kept, how much of them, and how often.

A song is grown by listening. Some items of a run are kept (``--pick``), up to a moment (``--cut_at``), and each of them
goes on in several ways (``--branch``). What is drawn for a way depends on the seed of the item that it goes on from
and on the way's number, so the first of four ways is the same as the only one of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from songbloom.errors import UserError, counted
from songbloom.hyperparams import COMMAND_LINE, Hyperparams
from songbloom.sampling import prompts
from songbloom.sampling.run import DATA, LevelData, read_data
from songbloom.sampling.sampler import item_seeds, stable_seed
from songbloom.sampling.tree import path_from, read_record, run_id, seeds_of_settings

LARGEST_SEED = 2**63 - 1
_LEVEL = re.compile(r"level_(\d+)")


@dataclass(frozen=True)
class Origin:
    """What the items of a run begin from.

    Attributes:
        path: the ``data.pth.tar``.
        data: what it holds.
        codes: ``[items, …]`` int64 for each level, finest first, of the items of the new run, not cut yet.
        items: for each item of the new run the item of the file that it goes on from.
        branches: for each item of the new run, how many items before it go on from the same one.
        end: seconds that the longest level holds.
    """

    path: Path
    data: LevelData
    codes: list[Tensor]
    items: list[int]
    branches: list[int]
    end: float

    @property
    def folder(self) -> Path:
        """The folder of the run, or of the file where it lies in no run."""
        level = self.path.parent
        return level.parent if _LEVEL.fullmatch(level.resolve().name) else level

    @property
    def labels(self) -> list[Any]:
        """For each level what its prior was told of the items that are kept; None for a prior without labels."""
        return prompts.labels_of_items(self.data.labels, self.items)

    def seeds_before(self) -> list[int]:
        """The seeds that the items went by in their own run; of a file that does not tell, those of seed 0."""
        about: Mapping[str, Any] = {}
        for keywords in self.data.sampling_kwargs:
            run = keywords.get("run") if isinstance(keywords, Mapping) else None
            about = run if isinstance(run, Mapping) else about
        seeds = seeds_of_settings(about)
        there = self.data.codes[0].shape[0]
        if len(seeds) != there:
            seeds = item_seeds(0, range(there))
        return [seeds[item] for item in self.items]


def data_file(path: Path | str, above: int = -1) -> Path:
    """The ``data.pth.tar`` of a run: ``path`` itself, or of a run's or level's folder the one to go on from.

    Args:
        path: a file, the folder of a level, or the folder of a run.
        above: of a run's folder, take the finest level above this one if there is any, else the finest.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--codes_file={path}: no such file or folder; give the folder of a run, or a {DATA}")
    if not path.is_dir():
        return path
    if (path / DATA).is_file():
        return path / DATA
    there = {int(match[1]): each for each in path.iterdir() if (match := _LEVEL.fullmatch(each.name))}
    levels = sorted(level for level, folder in there.items() if (folder / DATA).is_file())
    if not levels:
        raise UserError(f"{path}: is no folder of a run that has written a level; give one, or a {DATA}")
    return there[next((level for level in levels if level > above), levels[0])] / DATA


def items_of(options: Hyperparams, finest: int) -> int:
    """How many items the command line asks for, before there is a codec to read them with.

    Args:
        options: the command line.
        finest: the finest level to write.

    Raises:
        UserError: ``codes_file`` cannot be read, or has not what is picked.
    """
    if options.codes_file:
        return len(_chosen(options, finest)[2])
    sounds = [part for part in options.audio_file.split(",") if part.strip()]
    return options.n_samples or max(1, len(sounds))


def _chosen(options: Hyperparams, finest: int) -> tuple[Path, LevelData, list[int]]:
    """The file to go on from, what it holds, and for each item of the new run the item of the file."""
    path = data_file(options.codes_file, finest if options.mode == "upsample" else -1)
    if options.overwrite and path.resolve().is_relative_to(Path(options.name).resolve()):
        raise UserError(
            f"--overwrite would remove {options.name}, from which --codes_file goes on: choose another --name"
        )
    data = read_data(path)
    return path, data, _kept_items(options, path, data.codes[0].shape[0])


def open_origin(options: Hyperparams, vqvae: Any, finest: int) -> Origin | None:
    """What the command line says to go on from; None where it begins with nothing or with sound.

    Args:
        options: the command line.
        vqvae: the codec.
        finest: the finest level to write.

    Raises:
        UserError: it cannot be read, is of another codec, or has not what is picked.
    """
    if not options.codes_file:
        return None
    path, data, items = _chosen(options, finest)
    prompts.check_codes(path, data.codes, vqvae)
    branches = [items[:place].count(item) for place, item in enumerate(items)]
    end = max(each.shape[1] * hop for each, hop in zip(data.codes, vqvae.hop_lengths, strict=True)) / vqvae.sample_rate
    return Origin(path, data, [each[items] for each in data.codes], items, branches, end)


def _kept_items(options: Hyperparams, path: Path, there: int) -> list[int]:
    """For each item of the new run, the item of the file."""
    picked = options.pick
    if picked is None and options.branch is None:
        return [item % there for item in range(options.n_samples or there)]
    for item in picked or ():
        if item >= there:
            has = f"items 0 to {there - 1}" if there > 1 else "item 0 only"
            raise UserError(f"--pick={item}: {path} has {has}")
        if picked.count(item) > 1:
            raise UserError(f"--pick names item {item} twice: give --branch=2 for two ways on from each item")
    items = [item for item in (picked or range(there)) for _ in range(options.branch or 1)]
    if options.n_samples not in (None, len(items)):
        raise UserError(
            f"--n_samples={options.n_samples}, but --pick and --branch make {len(items)}: leave --n_samples out"
        )
    return items


def check_seed(seed: Any, where: str) -> int:
    """``seed``, if it is one.

    Raises:
        UserError: it is no whole number from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{where}: a seed is a whole number from 0 to {LARGEST_SEED}, not {seed!r}")
    return seed


def seeds_of(options: Hyperparams, items: int, origin: Origin | None, of_rows: Sequence[int | None] = ()) -> list[int]:
    """The seed of each item.

    ``--seeds`` and the seeds of ``--prompts_jsonl`` are the items' own, as a page states them. Else a run that begins
    with nothing or with sound has those of ``--seed`` and the items' numbers. Upsampling keeps the seeds that its items
    had, so that it writes what the earlier run would have written. Going on has new ones: with the old ones, an item
    that was cut where a window begins would only write again what was cut off.

    Args:
        options: the command line.
        items: how many.
        origin: what they go on from.
        of_rows: the seeds of ``--prompts_jsonl``, None where a row has none; empty for no rows.

    Raises:
        UserError: not one seed an item, or seeds given in two ways.
    """
    if options.seeds is not None:
        if options.sources.get("seed") == COMMAND_LINE:
            raise UserError("--seed and --seeds are both given: leave one out")
        if any(seed is not None for seed in of_rows):
            raise UserError("--seeds and seeds in --prompts_jsonl are both given: leave one out")
        if len(options.seeds) != items:
            raise UserError(
                f"--seeds has {counted(len(options.seeds), 'seed')}, but "
                f"{counted(items, 'item is', 'items are')} asked for: "
                "give one an item"
            )
        return [check_seed(seed, "--seeds") for seed in options.seeds]
    seeds = item_seeds(options.seed, range(items))
    if origin is not None:
        before = origin.seeds_before()
        if options.mode == "continue":
            ways = zip(before, origin.branches, strict=True)
            seeds = [stable_seed("continue", options.seed, seed, branch) for seed, branch in ways]
        else:
            if options.sources.get("seed") == COMMAND_LINE:
                before = item_seeds(options.seed, origin.items)
            ways = zip(before, origin.branches, strict=True)
            seeds = [stable_seed("branch", seed, branch) if branch else seed for seed, branch in ways]
    return [seed if own is None else own for seed, own in zip(seeds, of_rows or [None] * items, strict=True)]


def parent_record(options: Hyperparams, origin: Origin, seeds: Sequence[int], kept: float) -> dict[str, Any]:
    """What ``run.json`` keeps of the run that this one goes on from.

    Args:
        options: the command line.
        origin: what it goes on from.
        seeds: of the new items.
        kept: seconds of it that the new items begin with.
    """
    folder = origin.folder
    record = read_record(folder)
    return {
        "folder": path_from(Path(options.name), folder),
        "title": folder.resolve().name,
        "id": run_id(record["settings"]) if record else "",
        "file": os.path.relpath(origin.path, folder),
        "mode": options.mode,
        "kept_seconds": round(kept, 6),
        "items": [
            {"item": item, "branch": branch, "seed": seed}
            for item, branch, seed in zip(origin.items, origin.branches, seeds, strict=True)
        ],
    }
