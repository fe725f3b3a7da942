"""Doing what a command asks: sampling, decoding and writing levels, with the items shared over ranks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom import __version__
from songbloom.data.label_tables import UNKNOWN
from songbloom.distributed import broadcast_object, say, world
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.sampling.gathering import Gathering
from songbloom.sampling.labelling import LevelLabels
from songbloom.sampling.page import clock
from songbloom.sampling.progress import LevelProgress
from songbloom.sampling.run import LevelData, Run, decode
from songbloom.sampling.sampler import LevelSettings, item_seeds, sample, share
from songbloom.vqvae.vqvae import VQVAE


@dataclass(frozen=True)
class Job:
    """What a command line asks for, checked against the model.

    Attributes:
        options: the command line.
        vqvae: the codec, on its device.
        load_prior: loads the prior of a level onto its device.
        seconds: length of an item.
        totals: codes an item, for the levels to write.
        settings: for the levels to write.
        codes: what the items begin from, for every level, on the CPU.
        identity: everything that decides what is written, as plain data.
        labels: of the levels whose priors have any.
        earlier: for each level, what the run of ``codes_file`` keeps as its labels.
        argv: the command line, for people.
        seeds: one an item, 63 bits; of ``options.seed`` and the items' numbers where none are given.
        parent: what run it goes on from, as plain data (:mod:`songbloom.sampling.tree`); None for none.
        chosen: what was chosen for this machine and nobody asked for, as plain data; kept, so that a run that goes on
            on another machine goes on with it.
    """

    options: Hyperparams
    vqvae: VQVAE
    load_prior: Callable[[int], Prior]
    seconds: float
    totals: dict[int, int]
    settings: dict[int, LevelSettings]
    codes: list[Tensor]
    identity: dict[str, Any]
    argv: Sequence[str]
    labels: dict[int, LevelLabels] = field(default_factory=dict)
    earlier: Sequence[Any] = ()
    seeds: Sequence[int] = ()
    parent: Mapping[str, Any] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds:
            object.__setattr__(self, "seeds", item_seeds(self.options.seed, range(self.items)))

    @property
    def items(self) -> int:
        """How many items."""
        return self.codes[0].shape[0]


def perform(job: Job) -> Path:
    """Sample, decode and write the levels that are not there yet; every rank calls it.

    Returns:
        The page to open.

    Raises:
        UserError: the folder holds another run, or cannot be written.
    """
    run = Run(
        job.options.name,
        job.identity,
        sample_rate=job.vqvae.sample_rate,
        facts=facts(job),
        details={level: details(job, level) for level in job.totals},
        argv=job.argv,
        parent=job.parent,
        chosen=job.chosen,
    )
    gathering = Gathering()
    there = run.open(overwrite=job.options.overwrite) if world().is_main else {}
    done = min(there, default=None)
    done, codes = broadcast_object((done, job.codes if done is None else list(there[done].codes)))
    totals = {level: total for level, total in job.totals.items() if done is None or level < done}
    if done is not None:
        say(f"{job.options.name}: " + ("goes on below level " + str(done) if totals else "is complete already"))
    write_levels(job, run, codes, totals, gathering)
    if world().is_main:
        run.write_pages()  # anew for levels that an earlier version of the page showed
    return run.folder / "index.html"


def write_levels(job: Job, run: Run, codes: list[Tensor], totals: dict[int, int], gathering: Gathering) -> None:
    """Bring levels to their lengths, from the coarsest down; each rank works on its share of the items."""
    place = world()
    mine = share(job.items, place.rank, place.size)
    progress: list[LevelProgress] = []  # of the level that is being written

    def load_prior(level: int) -> Prior:
        prior = job.load_prior(level)
        new = (totals[level] - codes[level].shape[1]) * len(mine)
        progress[:] = [LevelProgress(level, new, share=job.items / len(mine), quiet=not place.is_main)]
        return prior

    def after_level(level: int, written: list[Tensor]) -> None:
        took = progress[0].finish() if progress else 0.0
        length = totals[level] * job.vqvae.hop_lengths[level]
        audio = decode(job.vqvae.decode, written, level, empty=length, device=place.device)
        shares = gathering.all(([each.cpu() for each in written], audio, took))
        if place.is_main:
            data = LevelData(
                [torch.cat(parts) for parts in zip(*(codes for codes, _, _ in shares), strict=True)],
                torch.cat([audio for _, audio, _ in shares]),
                kept_labels(job),
                sampling_kwargs(job),
            )
            folder = run.write_level(level, data, max(took for _, _, took in shares))
            say(f"level {level}: written to {folder}")

    sample(
        load_prior,
        [each[mine.start : mine.stop].to(place.device) for each in codes],
        totals,
        job.settings,
        seeds=job.seeds[mine.start : mine.stop],
        labels={level: labels.windows(mine) for level, labels in job.labels.items()},
        on_codes=lambda count: progress[0].add(count),
        after_level=after_level,
    )


def kept_labels(job: Job) -> list[Any]:
    """For each level what its prior was told, as plain data; None for a prior without labels."""
    earlier = list(job.earlier) or [None] * job.vqvae.levels
    return [
        job.labels[level].labels.plain() if level in job.labels else None if level in job.totals else earlier[level]
        for level in range(job.vqvae.levels)
    ]


def sampling_kwargs(job: Job) -> list[dict[str, Any]]:
    """For each level how it is sampled, and what the whole run was asked for; empty for a level that is not written."""
    about = {**job.identity, "sr": job.vqvae.sample_rate, "version": __version__}
    return [
        {**job.settings[level].plain(), "run": about} if level in job.settings else {}
        for level in range(job.vqvae.levels)
    ]


def facts(job: Job) -> list[tuple[str, str]]:
    """What the head of a page tells."""
    return [
        ("model", job.options.model),
        ("items", str(job.items)),
        ("length", clock(job.seconds)),
        ("seed", str(job.options.seed)),
        *_told(job),
    ]


def _told(job: Job) -> list[tuple[str, str]]:
    """The artist and the genre where they are the same for all items."""
    infos = [info for labels in job.labels.values() for info in labels.labels.infos]
    told = [(key, {info[key] for info in infos}) for key in ("artist", "genre")]
    return [(key, values.pop()) for key, values in told if len(values) == 1 and values != {UNKNOWN}]


def details(job: Job, level: int) -> list[tuple[str, str]]:
    """What the table of settings of a level's page tells."""
    settings, vqvae = job.settings[level], job.vqvae
    filters = [(key, f"{value:g}") for key, value in (("top_k", settings.top_k), ("top_p", settings.top_p)) if value]
    return [
        ("mode", job.options.mode),
        ("temp", f"{settings.temperature:g}"),
        *filters,
        ("hop_fraction", f"{settings.hop_fraction:g}"),
        ("codes_an_item", f"{job.totals[level]} ({vqvae.sample_rate / vqvae.hop_lengths[level]:g}/s)"),
        ("length", f"{job.seconds:.2f} s"),
        ("sample_rate", f"{vqvae.sample_rate} Hz"),
        ("precision", settings.precision),
        ("device", str(world().device)),
        ("checkpoints", ", ".join(f"{name} {digest[:8]}" for name, digest in job.identity["weights"].items())),
        ("command", shlex.join(["python", *job.argv])),
    ]
