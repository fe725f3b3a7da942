"""A run of the sampler on disk: a folder with a folder for each level, pages, and what the run was asked for.

    {name}/run.json                      the settings, so that the same command can go on and another one is refused
    {name}/index.html                    the finest level that there is
    {name}/level_{l}/item_{i}.wav        sound, item by item, and its picture item_{i}.png
    {name}/level_{l}/data.pth.tar        codes of all levels so far, labels, settings, short sound; plain data
    {name}/level_{l}/index.html          the page
    {name}/tree.js                       the runs before it and after it, for pages (:mod:`songbloom.sampling.tree`)
    {name}/alignment/item_{i}.json …     when its words are sung, as align.py found (:mod:`songbloom.sampling.words`)
    {name}/journal/level_{l}/…           windows of a level that is being written (:mod:`songbloom.sampling.journal`)
    {name}/preview/…                     how it sounds so far (:mod:`songbloom.sampling.preview`)

The folder of a level is written beside its place and renamed into it, so it is there wholly or not at all; its journal
and its preview go when it has come.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from songbloom import __version__
from songbloom.distributed import broadcast_object, world
from songbloom.errors import UserError, reason
from songbloom.files import hold, write_text
from songbloom.published.fetch import content_digest
from songbloom.sampling import journal, preview, sound, tree, words
from songbloom.sampling.going_on import commands
from songbloom.sampling.page import LevelPage, PageItem, clock, write_page
from songbloom.training import checkpoint

DATA = "data.pth.tar"
RECORD = tree.RECORD
SHORT_SOUND = 1 << 22  # samples of all items together up to which data.pth.tar holds the sound too: 16 MiB


@dataclass(frozen=True)
class LevelData:
    """What is kept of a written level.

    Attributes:
        codes: of every level, finest first, ``[items, …]`` int64, or latents ``[items, …, width]`` float32; those of
            levels not yet written are empty.
        audio: float32 ``[items, T, channels]``, decoded from this level; None where it is too long to be kept twice
            (more than ``SHORT_SOUND`` samples), and lies in the sound files alone.
        labels: for each level, what its prior was told; None for priors without labels.
        sampling_kwargs: for each level, how it was or will be sampled, as plain data.
    """

    codes: Sequence[Tensor]
    audio: Tensor | None
    labels: Sequence[Any]
    sampling_kwargs: Sequence[Mapping[str, Any]]

    def plain(self) -> dict[str, Any]:
        """As written to ``data.pth.tar``, under the names that Jukebox's files have."""
        return {
            "zs": [codes.cpu() for codes in self.codes],
            "labels": list(self.labels),
            "sampling_kwargs": [dict(keywords) for keywords in self.sampling_kwargs],
            **({} if self.audio is None else {"x": self.audio.cpu()}),
        }


def read_data(path: Path | str) -> LevelData:
    """Read a ``data.pth.tar``, without executing code.

    Raises:
        UserError: it is missing, damaged or something else.
    """
    content = checkpoint.load(path)
    codes, audio = content.get("zs"), content.get("x")
    fine = isinstance(codes, (list, tuple)) and all(isinstance(each, Tensor) and _is_codes(each) for each in codes)
    sounds = audio is None or (isinstance(audio, Tensor) and audio.ndim == 3)
    if not fine or not codes or not sounds:
        raise UserError(f"{path}: holds no codes; give a {DATA} that sample.py wrote")
    levels = len(codes)
    told: dict[str, list[Any]] = {}
    for key, nothing in (("labels", None), ("sampling_kwargs", {})):
        there = content.get(key) or []
        fine = isinstance(there, (list, tuple)) and len(there) <= levels
        if not fine or not all(isinstance(each, Mapping) or each == nothing for each in there):
            raise UserError(f"{path}: its {key} are not one mapping a level; give a {DATA} that sample.py wrote")
        told[key] = [*there, *[nothing] * (levels - len(there))]
    return LevelData(
        [each.float() if each.ndim == 3 else each.long() for each in codes],
        None if audio is None else audio.float(),
        told["labels"],
        told["sampling_kwargs"],
    )


def _is_codes(part: Tensor) -> bool:
    """``[items, codes]`` whole numbers, or latents ``[items, codes, width]``."""
    return part.ndim == 2 or (part.ndim == 3 and part.is_floating_point())


def fingerprint(path: Path | str) -> str:
    """A digest of what a checkpoint file holds; all ranks call it together, and rank 0 reads.

    Of an archive it is one of the checksums that the archive keeps, so that little is read; of another file its
    SHA-256, which lies beside a download. Copying or touching the file does not change it.

    Raises:
        UserError: it is missing or cannot be read; every rank raises it.
    """
    found = problem = ""
    if world().is_main:
        try:
            found = content_digest(Path(path))
        except (OSError, zipfile.BadZipFile) as error:
            problem = f"{path}: cannot be read ({reason(error)})"
    found, problem = broadcast_object((found, problem))
    if problem:
        raise UserError(problem)
    return found


def differences(there: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """In words, where two nested settings differ: ``seed is 0 there, 1 here``."""
    found = []
    for key in dict.fromkeys([*there, *asked]):
        a, b = there.get(key), asked.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {json.dumps(a)} there, {json.dumps(b)} here")
    return found


class Run:
    """The folder of one run. Only rank 0 has one.

    Args:
        folder: where; made when the run is opened.
        settings: everything that decides what is written, as plain data; a folder with other settings is refused.
        sample_rate: Hz.
        facts: (word, value) pairs for the head of every page.
        details: level → (word, value) pairs for the table of settings of its page.
        argv: the command line, kept for people.
        parent: what run it goes on from, as plain data; None for none.
        chosen: what was chosen for the machine it began on, as plain data.
        going_on: what commands that go on from it begin with (:func:`songbloom.sampling.going_on.beginnings`).
    """

    def __init__(
        self,
        folder: Path | str,
        settings: Mapping[str, Any],
        *,
        sample_rate: int,
        facts: Sequence[tuple[str, str]] = (),
        details: Mapping[int, Sequence[tuple[str, str]]] | None = None,
        argv: Sequence[str] = (),
        parent: Mapping[str, Any] | None = None,
        chosen: Mapping[str, Any] | None = None,
        going_on: Mapping[str, str] | None = None,
    ):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.sample_rate = sample_rate
        self.facts, self.details, self.argv = facts, details or {}, list(argv)
        self.parent, self.chosen = parent, dict(chosen or {})
        self.going_on = dict(going_on or {})
        self.took: dict[int, float] = {}
        self.pages: dict[int, LevelPage] = {}

    def level_folder(self, level: int) -> Path:
        """Where a level is written."""
        return self.folder / f"level_{level}"

    def open(self, *, overwrite: bool = False) -> dict[int, LevelData]:
        """Look what is there already.

        Args:
            overwrite: remove the run that is there, whatever its settings.

        Returns:
            The levels that this run has written before, whole.

        Raises:
            UserError: the folder holds another run, is being written by one, or cannot be read, written or emptied.
        """
        hold(self.folder, busy="sampling", instead="--name")
        names = ("level_[0-9]*", "index.html", words.FOLDER, journal.FOLDER, preview.FOLDER, tree.SCRIPT, RECORD)
        ours = [path for name in names for path in self.folder.glob(name)]
        begun = [path for path in ours if path.name not in (RECORD, journal.FOLDER, preview.FOLDER, tree.SCRIPT)]
        if overwrite or (not begun and journal.is_empty(self.folder)):  # nothing is lost of a run that wrote nothing
            try:
                for path in ours:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise UserError(
                    f"{error.filename or self.folder}: cannot be removed ({reason(error)}); change --name"
                ) from error
            ours = []
        for path in self.folder.glob(".level_*.partial"):
            shutil.rmtree(path, ignore_errors=True)
        if not ours:
            self._record()  # from now on the folder is this run's
            return {}
        self.check()
        found = {}
        for level in self.settings["levels"]:
            if (self.level_folder(level) / DATA).is_file():
                found[level] = read_data(self.level_folder(level) / DATA)
                self.pages[level] = self._page(level, found[level])
                self._tidy(level)  # killed between the level's coming and its journal's going
        return found

    def check(self) -> None:
        """Read what is kept of the run in the folder, and whether it is this one.

        Raises:
            UserError: it is another one, there is none, or it cannot be read.
        """
        record = self.folder / RECORD
        advice = "choose another --name, or give --overwrite to replace it"
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            there = content["settings"]
            self.took = {int(level): float(seconds) for level, seconds in content["took"].items()}
            chosen = dict(content.get("chosen") or {})
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: has no {RECORD}, so it is not a run to go on with; {advice}") from error
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{record}: cannot be read ({reason(error)}); {advice}") from error
        different = differences(there, self.settings)
        if different:
            raise UserError(f"{self.folder}: holds a run with other settings ({'; '.join(different)}); {advice}")
        self.chosen = {**self.chosen, **chosen}

    def begin_level(self, level: int) -> Path:
        """An empty folder for the sound and the pictures of a level, which :meth:`write_level` then puts in its place.

        Raises:
            UserError: it cannot be made.
        """
        beside = self._beside(level)
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(level, error) from error
        return beside

    def write_level(self, level: int, data: LevelData, took: float) -> Path:
        """Write the folder of a level, and all pages anew so that they lead to it.

        Args:
            level: which.
            data: its codes and settings, and its sound, unless it is written to :meth:`begin_level`'s folder already.
            took: seconds that it took.

        Returns:
            The level's folder.

        Raises:
            UserError: it cannot be written; levels written before are untouched.
        """
        self.took[level] = took
        place = self.level_folder(level)
        beside = self._beside(level)
        try:
            if not beside.is_dir():
                self.begin_level(level)
            self._record()
            for index in range(data.codes[level].shape[0]):
                if data.audio is not None and not sound.item_file(beside, index).exists():
                    audio = data.audio[index : index + 1]
                    _, length, channels = audio.shape
                    for _ in sound.write_item(beside, index, [audio], length, self.sample_rate, channels=channels):
                        pass
                if not (beside / f"item_{index}.png").exists():
                    raise UserError(
                        f"{beside}: item {index} was written elsewhere: all ranks need the same folder, on a disk that "
                        "their hosts share"
                    )
            checkpoint.save(beside / DATA, data.plain())
            self.pages[level] = self._page(level, data, beside)
            if place.exists():  # an incomplete folder that somebody took the data out of
                shutil.rmtree(place)
            beside.rename(place)
            self.write_pages()
            self._tidy(level)
        except OSError as error:
            raise self._unwritable(level, error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return place

    def _beside(self, level: int) -> Path:
        return self.folder / f".level_{level}.{os.getpid()}.partial"

    def _unwritable(self, level: int, error: OSError) -> UserError:
        return UserError(
            f"{error.filename or self.level_folder(level)}: cannot be written ({reason(error)}); "
            "free space or change --name"
        )

    def _tidy(self, level: int) -> None:
        """Remove what served a level while it was being written; what cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            preview.remove(self.folder, level)
            journal.remove(self.folder, level)

    def write_pages(self) -> None:
        """Write the page of every level that there is, and the run's own, which shows the finest."""
        pages = {level: replace(page, facts=[*page.facts, *self._times(level)]) for level, page in self.pages.items()}
        for level, page in pages.items():
            links = {other: f"../level_{other}/index.html" for other in self.pages}
            write_page(self.level_folder(level) / "index.html", page, links)
        finest = min(self.pages)
        links = {other: "index.html" if other == finest else f"level_{other}/index.html" for other in self.pages}
        write_page(self.folder / "index.html", pages[finest], links, prefix=f"level_{finest}/")
        tree.renew(self.folder)

    def _times(self, level: int) -> list[tuple[str, str]]:
        """How long a level took, and, once they are all there, how long all took together."""
        if level not in self.took:
            return []
        levels = self.settings["levels"]
        if len(levels) == 1:
            return [("took", clock(self.took[level]))]
        whole = (
            [("took_all", clock(sum(self.took.values())))] if set(levels) <= set(self.pages) & set(self.took) else []
        )
        return [("took_level", clock(self.took[level])), *whole]

    def name_outputs(self, names: Sequence[str]) -> None:
        """Give the items' sound files of the finest level second names in the run's own folder.

        Args:
            names: one an item, without suffix; none for nothing to do.

        Raises:
            UserError: a file cannot be made.
        """
        for index, name in enumerate(names):
            source = sound.item_file(self.level_folder(min(self.pages)), index)
            place = self.folder / f"{name}{source.suffix}"
            try:
                place.unlink(missing_ok=True)
                try:
                    os.link(source, place)
                except OSError:  # a disk without links
                    shutil.copyfile(source, place)
            except OSError as error:
                raise UserError(f"{place}: cannot be written ({reason(error)}); free space") from error

    def _record(self) -> None:
        content = {
            "version": __version__,
            "argv": self.argv,
            "settings": self.settings,
            "parent": self.parent,
            "chosen": self.chosen,
            "going_on": self.going_on,
            "facts": [list(pair) for pair in self.facts],
            "details": {str(level): [list(pair) for pair in pairs] for level, pairs in self.details.items()},
            "sample_rate": self.sample_rate,
            "took": {str(level): round(seconds, 3) for level, seconds in self.took.items()},
        }
        write_text(self.folder / RECORD, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _page(self, level: int, data: LevelData, folder: Path | None = None) -> LevelPage:
        """The page of a level; ``folder`` is where its files lie, if not in its place."""
        seeds = tree.seeds_of_settings(self.settings)
        files = [
            sound.item_file(folder or self.level_folder(level), index) for index in range(data.codes[level].shape[0])
        ]
        heard = [sound.heard(path) for path in files]
        # Songs of models that write an end of their own; codes of the others are as long as asked for.
        asked = self.settings.get("sample_length", 0) / self.sample_rate if data.codes[level].ndim == 3 else 0.0
        ended = [path.is_file() and each.seconds < asked - 0.01 for path, each in zip(files, heard, strict=True)]
        items = [
            PageItem(
                index=index,
                audio=files[index].name,
                picture=f"item_{index}.png",
                seed=str(seeds[index]) if index < len(seeds) else "",
                commands=commands(self.going_on, index, each.seconds, _total(data, index) / self.sample_rate),
                asked=asked if ended[index] else 0.0,
                **each._asdict(),
                **words.for_page(self.folder, index, _info(data, index)),
            )
            for index, each in enumerate(heard)
        ]
        return LevelPage(
            title=self.folder.resolve().name,
            level=level,
            items=items,
            facts=self.facts,
            settings=self.details.get(level, ()),
            codes=DATA,
            tree=f"../{tree.SCRIPT}",
        )


def _total(data: LevelData, index: int) -> int:
    """Samples of the song that the priors were told an item begins; 0 where they were told of none."""
    for labels in reversed(data.labels):
        if isinstance(labels, Mapping) and "y" in labels and labels["y"].shape[1] and len(labels["y"]) > index:
            return int(labels["y"][index, 0])
    return 0


def _info(data: LevelData, index: int) -> Mapping[str, Any]:
    """What the priors were told of an item; the top one's labels know most."""
    for labels in reversed(data.labels):
        if isinstance(labels, Mapping) and len(labels.get("info") or ()) > index:
            info: Mapping[str, Any] = labels["info"][index]
            return info
    return {}


def reopen(folder: Path | str) -> tuple[Run, dict[int, LevelData]]:
    """A run that was written before, to add to it, and its levels.

    Raises:
        UserError: there is none, it is being written, or it cannot be read.
    """
    record = Path(folder) / RECORD
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        settings, facts, details = content["settings"], content.get("facts", ()), content.get("details", {})
        run = Run(
            folder,
            settings,
            sample_rate=int(content["sample_rate"]),
            facts=[(str(word), str(value)) for word, value in facts],
            details={int(level): [(str(w), str(v)) for w, v in pairs] for level, pairs in details.items()},
            argv=content["argv"],
            parent=content.get("parent"),
            chosen=content.get("chosen"),
            going_on=content.get("going_on"),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{record}: no run of sample.py can be read there ({reason(error)}); give the --name of one"
        ) from error
    levels = run.open()
    if not levels:
        raise UserError(f"{folder}: no level of this run is written yet; run sample.py first")
    return run, levels
