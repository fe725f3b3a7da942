"""Doing what a command asks: sampling, decoding and writing levels, with the items shared over ranks.

Every rank keeps the windows of its items in their journals, and writes their sound. Rank 0 looks what is there before,
and puts levels in their place when all ranks have done their part.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom import __version__
from songbloom.data.label_tables import UNKNOWN
from songbloom.distributed import broadcast_object, gather_objects, say, world
from songbloom.errors import UserError, counted
from songbloom.hyperparams import Hyperparams
from songbloom.sampling import journal, preview, sound
from songbloom.sampling.form import Form
from songbloom.sampling.going_on import beginnings
from songbloom.sampling.journal import LevelJournal
from songbloom.sampling.page import clock
from songbloom.sampling.progress import LevelProgress
from songbloom.sampling.run import DATA, RECORD, SHORT_SOUND, LevelData, Run, read_data
from songbloom.sampling.sampler import LevelPrior, Work, Writer, item_seeds, sample, share
from songbloom.sampling.windows import Window


@dataclass(frozen=True)
class Job:
    """What a command line asks for, checked against the model.

    Attributes:
        options: the command line.
        vqvae: the codec, on its device; of either family.
        load_prior: loads the prior of a level onto its device, or what writes with it.
        seconds: length of an item.
        totals: codes an item, for the levels to write.
        settings: for the levels to write.
        codes: what the items begin from, for every level, on the CPU, in the job's form.
        identity: everything that decides what is written, as plain data.
        labels: of the levels whose priors have any.
        earlier: for each level, what the run of ``codes_file`` keeps as its labels.
        argv: the command line, for people.
        seeds: one an item, 63 bits; of ``options.seed`` and the items' numbers where none are given.
        parent: what run it goes on from, as plain data (:mod:`songbloom.sampling.tree`); None for none.
        chosen: what was chosen for this machine and nobody asked for, as plain data; kept, so that a run that goes on
            on another machine goes on with it.
        form: how codes lie while they are written, and what is kept of them.
        outputs: names of the items' sound files in the run's folder, beside the pages; none for no such files.
    """

    options: Hyperparams
    vqvae: Any
    load_prior: Callable[[int], LevelPrior | Writer]
    seconds: float
    totals: dict[int, int]
    settings: Mapping[int, Any]
    codes: list[Tensor]
    identity: dict[str, Any]
    argv: Sequence[str]
    labels: Mapping[int, Any] = field(default_factory=dict)
    earlier: Sequence[Any] = ()
    seeds: Sequence[int] = ()
    parent: Mapping[str, Any] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    form: Form = field(default_factory=Form)
    outputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.seeds:
            object.__setattr__(self, "seeds", item_seeds(self.options.seed, range(self.items)))

    @property
    def items(self) -> int:
        """How many items."""
        return self.codes[0].shape[0]


def perform(job: Job) -> Path:
    """Sample, decode and write the levels that are not there yet; every rank calls it.

    With ``options.preview`` it decodes what the journals hold, and samples nothing.

    Returns:
        The page to open.

    Raises:
        UserError: the folder holds another run, or cannot be written; there is nothing to preview.
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
        going_on=beginnings(job.options, list(job.totals)),
    )
    if job.options.preview:
        return preview_only(job, run)
    preview.listen()
    there = run.open(overwrite=job.options.overwrite) if world().is_main else {}
    done = min(there, default=None)
    record = (run.folder / RECORD).read_bytes() if world().is_main else b""
    kept = journal.levels_in(run.folder) if world().is_main else []  # now: after this other ranks begin journals
    done, codes, run.chosen, record, kept = broadcast_object(
        (done, job.codes if done is None else list(there[done].codes), run.chosen, record, kept)
    )
    _same_folder(run.folder, record)
    totals = {level: total for level, total in job.totals.items() if done is None or level < done}
    begun = [level for level in kept if level in totals]
    levels = f", levels {', '.join(map(str, sorted(totals, reverse=True)))}" if len(totals) > 1 else ""
    if done is not None or begun:
        where = f"at level {max(begun)}" if begun else f"below level {done}"
        say(f"{job.options.name}: " + (f"goes on {where}" if totals else "is complete already"))
    else:
        items = len(job.codes[0])
        say(f"{job.options.name}: {counted(items, 'item')} of {job.seconds:.4g} s{levels}")
    Levels(replace(job, settings=settings_of(job, run)), run).write(codes, totals)
    if world().is_main:
        run.write_pages()  # anew for levels that an earlier version of the page showed
        run.name_outputs(job.outputs)
    return run.folder / "index.html"


def settings_of(job: Job, run: Run) -> Mapping[int, Any]:
    """The settings of each level, with the sizes of batches that were chosen when the run began.

    Items that share a batch decide, on some processors, how sums are rounded.
    """
    kept = run.chosen.get("max_batch_size")
    if job.options.max_batch_size is not None or not isinstance(kept, Mapping):
        return job.settings
    return {
        level: replace(each, max_batch_size=int(kept.get(str(level), each.max_batch_size)))
        for level, each in job.settings.items()
    }


def _same_folder(folder: Path, record: bytes, patience: float = 10.0) -> None:
    """Refuse ranks on hosts that do not share the disk: what they wrote would never come together."""
    until = time.monotonic() + patience  # a network file system may show a new file late
    while not (folder / RECORD).is_file() or (folder / RECORD).read_bytes() != record:
        if time.monotonic() > until:
            raise UserError(
                f"{folder}: rank {world().rank} does not see what rank 0 wrote there: give a --name on a disk that all "
                "hosts share"
            )
        time.sleep(0.1)


class Levels:
    """The writing of levels, on one rank.

    Args:
        job: what is asked for.
        run: where it is written.
    """

    def __init__(self, job: Job, run: Run):
        self.job, self.run = job, run
        self.place = world()
        self.mine = share(job.items, self.place.rank, self.place.size)
        self.asking = preview.Asking(job.options.preview_minutes)
        self.journal: LevelJournal | None = None
        self.progress: LevelProgress | None = None

    def write(self, codes: Sequence[Tensor], totals: Mapping[int, int]) -> None:
        """Bring levels to their lengths, from the coarsest down; each rank works on its share of the items.

        Args:
            codes: of all items and levels, on the CPU.
            totals: codes an item at the end, for the levels to write.
        """
        job, mine = self.job, self.mine
        sample(
            job.load_prior,
            [each[mine.start : mine.stop].to(self.place.device) for each in codes],
            totals,
            job.settings,
            seeds=job.seeds[mine.start : mine.stop],
            labels={level: labels.windows(mine) for level, labels in job.labels.items()},
            keeper=self._keeper,
            on_begin=self._begin,
            on_window=self._window,
            on_codes=lambda count: self.progress.add(count) if self.progress else None,
            after_level=self._after,
        )

    def _keeper(self, level: int, codes: Sequence[Tensor]) -> LevelJournal:
        self.journal = LevelJournal(
            self.run.folder,
            level,
            self.mine,
            settings=self.run.settings,
            codes=codes,
            seeds=self.job.seeds[self.mine.start : self.mine.stop],
            l_bins=self.job.vqvae.l_bins,
        )
        return self.journal

    def _begin(self, level: int, work: Work) -> None:
        works = gather_objects(work)
        self.progress = LevelProgress(level, works, rank=self.place.rank, quiet=not self.place.is_main)

    def _window(self, level: int, window: Window, codes: Tensor) -> None:
        if self.asking.due():
            for index, item in enumerate(self.mine):
                preview_item(self.job, self.run, level, item, codes[index])
            preview.write_page(self.run.folder, self.job.seconds)

    def _after(self, level: int, written: list[Tensor]) -> None:
        """Write the sound of this rank's items beside the place of the level; rank 0 then puts all in its place."""
        job, run = self.job, self.run
        before = self.journal.seconds if self.journal else 0.0
        if self.journal:
            self.journal.close()
            self.journal = None
        before = max(gather_objects(before))  # all windows of all ranks are there now
        took = before + (self.progress.finish() if self.progress else 0.0)
        beside = Path(gather_objects(str(run.begin_level(level)) if self.place.is_main else "")[0])
        codec, hop = job.vqvae, job.vqvae.hop_lengths[level]
        lengths = [job.form.length(each) for each in written[level]]
        of_all = [each for shares in gather_objects(lengths) for each in shares]
        longest = max(of_all, default=0) * hop
        short = job.items * longest * codec.channels <= SHORT_SOUND
        audio = torch.zeros(len(self.mine) if short else 0, longest, codec.channels)
        for index, item in enumerate(self.mine):
            at = 0
            pieces = self._pieces(level, written[level][index])
            how: dict[str, Any] = {"channels": codec.channels, "kind": job.options.output_format}
            for piece in sound.write_item(beside, item, pieces, lengths[index] * hop, codec.sample_rate, **how):
                if short:
                    audio[index, at : at + piece.shape[1]] = piece[0].cpu()
                    at += piece.shape[1]
        shares = gather_objects(([each.cpu() for each in written], audio))
        if self.place.is_main:
            data = LevelData(
                job.form.kept([torch.cat(parts) for parts in zip(*(codes for codes, _ in shares), strict=True)]),
                torch.cat([audio for _, audio in shares]) if short else None,
                kept_labels(job),
                sampling_kwargs(job),
            )
            say(f"level {level}: written to {run.write_level(level, data, took)}")
            if early := ended_early(of_all, job.totals[level], hop / codec.sample_rate):
                advice = "; --min_length_in_seconds keeps a model from it"
                asked = job.options.mode != "upsample" and job.options.sample_length_in_seconds is not None
                say(early + (advice if asked else ""))

    def _pieces(self, level: int, codes: Tensor) -> Iterator[Tensor]:
        """The sound of one item."""
        if not self.job.form.length(codes):
            return iter(())
        return sound.decoded(self.job.vqvae, [self.job.form.heard(codes)], level)


def ended_early(lengths: Sequence[int], total: int, seconds: float, most: int = 20) -> str:
    """A line about the items that the model ended before their length; empty for none.

    Args:
        lengths: codes of each item that are sound.
        total: codes that an item was to have.
        seconds: of a code.
        most: items that are named.
    """
    early = [(item, length) for item, length in enumerate(lengths) if length < total]
    if not early:
        return ""
    named = [f"item {item} at {length * seconds:.2f} s" for item, length in early[:most]]
    more = f" and {len(early) - most} more" if len(early) > most else ""
    return (
        f"note: the model ended {len(early)} of {counted(len(lengths), 'song')} before {total * seconds:.2f} s: "
        f"{', '.join(named)}{more}"
    )


def preview_item(job: Job, run: Run, level: int, item: int, codes: Tensor) -> None:
    """Write the sound so far of an item, of its codes ``[codes]`` at this level."""
    if not job.form.length(codes):
        return
    pieces = sound.decoded(job.vqvae, [job.form.heard(codes).to(world().device)], level)
    preview.write_item(run.folder, level, item, pieces, job.vqvae.sample_rate, job.vqvae.channels)


def preview_only(job: Job, run: Run) -> Path:
    """Decode what the journals hold of the level that is being written, also while another process writes it.

    Returns:
        The page of the previews.

    Raises:
        UserError: the folder holds another run, or no window of a level that is not whole.
    """
    run.check()
    begun = [level for level in journal.levels_in(run.folder) if level in job.totals]
    if begun:
        level = min(begun)
        above = [run.level_folder(other) / DATA for other in range(level + 1, job.vqvae.levels)]
        codes = next((list(read_data(path).codes) for path in above if path.is_file()), job.codes)
        place = world()
        for item in share(job.items, place.rank, place.size):
            beginning = [each[item] for each in codes[level:]]
            owner = journal.owner_of(run.settings, level, item, beginning, job.seeds[item], job.vqvae.l_bins)
            records = journal.read(journal.path_of(run.folder, level, item), owner)
            if records:
                preview_item(job, run, level, item, torch.cat([beginning[0], journal.joined(records, owner)]))
    gather_objects(None)
    page = preview.write_page(run.folder, job.seconds) if world().is_main else run.folder
    if not any((run.folder / preview.FOLDER).glob("*.wav")):
        raise UserError(f"{run.folder}: no window of a level that is not whole is kept there; nothing to preview")
    return page


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
        *([] if "seeds" in job.identity else [("seed", str(job.options.seed))]),
        *_told(job),
    ]


def _told(job: Job) -> list[tuple[str, str]]:
    """The artist and the genre where they are the same for all items."""
    infos = [info for labels in job.labels.values() for info in labels.labels.infos]
    told = [(key, {info.get(key, UNKNOWN) for info in infos}) for key in ("artist", "genre", "prompt_wav")]
    return [(key, values.pop()) for key, values in told if len(values) == 1 and values != {UNKNOWN}]


def details(job: Job, level: int) -> list[tuple[str, str]]:
    """What the table of settings of a level's page tells."""
    settings, vqvae = job.settings[level], job.vqvae
    return [
        ("mode", job.options.mode),
        *settings.told(),
        ("codes_an_item", f"{job.totals[level]} ({vqvae.sample_rate / vqvae.hop_lengths[level]:g}/s)"),
        ("length", f"{job.seconds:.2f} s"),
        ("sample_rate", f"{vqvae.sample_rate} Hz"),
        ("precision", settings.precision),
        ("device", str(world().device)),
        ("checkpoints", ", ".join(f"{name} {digest[:8]}" for name, digest in job.identity["weights"].items())),
        ("command", shlex.join(["python", *job.argv])),
    ]
