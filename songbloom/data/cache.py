"""Latents and sketches on disk, found by what they were made of, so that they can never be out of date.

The name of an entry is a digest of the audio file's own bytes, the part of it that is meant, a fingerprint of the
weights that made it and the settings that count. What is not there is made; what was made of something else is never
found. Entries appear whole (written beside their place, renamed into it), so processes may share a folder and be killed
at any moment; a damaged entry is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom.distributed import all_reduce_, world
from songbloom.errors import UserError, counted, reason
from songbloom.files import written_beside

FORMAT = 1  # of entries; another number finds none of the old ones
SUFFIX = ".npz"
_BLOCK = 1 << 20


@dataclass
class Counts:
    """How often entries were there."""

    hits: int = 0
    made: int = 0

    def over_ranks(self) -> Counts:
        """The sum over all ranks, which call it together."""
        both = all_reduce_(torch.tensor([self.hits, self.made], device=world().device)).tolist()
        return Counts(int(both[0]), int(both[1]))


@dataclass(frozen=True)
class Entry:
    """What an array is made of.

    Attributes:
        kind: ``latents``, ``sketch`` or ``prompt``.
        audio: digest of the audio file's bytes (:meth:`ContentDigests.of`).
        weights: fingerprint of the weights that make it.
        segment: first sample and number of samples; ``(0, 0)`` is the whole file.
        settings: whatever else decides the result.
    """

    kind: str
    audio: str
    weights: str
    segment: tuple[int, int] = (0, 0)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """All of it as text, the same for equal entries."""
        told = {
            "format": FORMAT,
            "kind": self.kind,
            "audio": self.audio,
            "weights": self.weights,
            "segment": list(self.segment),
            "settings": dict(self.settings),
        }
        return json.dumps(told, sort_keys=True)

    def name(self) -> str:
        """The digest that it is found by."""
        return hashlib.blake2b(self.text().encode(), digest_size=20).hexdigest()


class ContentDigests:
    """Digests of files' bytes; a file is read again when its size, time of change or place on disk differs."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def of(self, path: Path) -> str:
        """The digest of a file's bytes.

        Raises:
            UserError: it cannot be read.
        """
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
            if path not in self._known or self._known[path][0] != stamp:
                digest = hashlib.blake2b(digest_size=20)
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                self._known[path] = (stamp, digest.hexdigest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error).lower()})") from error
        return self._known[path][1]


class Cache:
    """A folder of arrays.

    Args:
        folder: where; made when the first entry is written.
        rebuild: make every entry anew once, whatever is there.

    Attributes:
        counts: hits and entries made by this process.
    """

    def __init__(self, folder: str | Path, *, rebuild: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.digests = ContentDigests()
        self.counts = Counts()
        self._rebuild = rebuild
        self._rebuilt: set[str] = set()

    def path(self, entry: Entry) -> Path:
        """Where an entry is, or would be."""
        name = entry.name()
        return self.folder / name[:2] / (name + SUFFIX)

    def read(self, entry: Entry) -> Tensor | None:
        """An entry's array, or None if it is not there or damaged; not counted."""
        path = self.path(entry)
        try:
            with np.load(path, allow_pickle=False) as stored:  # the checksums of a zip are compared on reading
                if str(stored["entry"]) != entry.text():
                    return None
                return torch.from_numpy(stored["data"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def get(self, entry: Entry, make: Callable[[], Tensor]) -> Tensor:
        """An entry's array, made and kept if it is not there.

        Raises:
            UserError: it cannot be written.
        """
        wanted = self._rebuild and entry.name() not in self._rebuilt
        found = None if wanted else self.read(entry)
        if found is not None:
            self.counts.hits += 1
            return found
        made = make().detach().cpu().contiguous()
        with written_beside(self.path(entry)) as temporary, temporary.open("wb") as file:
            np.savez(file, data=made.numpy(), entry=np.array(entry.text()))
        self._rebuilt.add(entry.name())
        self.counts.made += 1
        return made

    def size(self) -> tuple[int, int]:
        """Number of entries and their bytes."""
        number, total = 0, 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(SUFFIX):
                    try:
                        total += (Path(folder) / name).stat().st_size
                    except OSError:  # another process has just replaced it
                        continue
                    number += 1
        return number, total

    def report(self) -> str:
        """One line about size and hit rate over all ranks, which call it together."""
        counts = self.counts.over_ranks()
        number, total = self.size()
        asked = counts.hits + counts.made
        rate = f"{counts.hits} of {asked} were there ({100 * counts.hits / asked:.0f} %)" if asked else "nothing asked"
        size = f"{total / 1e6:.1f} MB" if total >= 100_000 else f"{total / 1e3:.1f} kB"
        return f"cache: {rate}; {counted(number, 'entry', 'entries')}, {size} in {self.folder}"
