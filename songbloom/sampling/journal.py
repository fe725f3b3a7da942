"""What a level that is being written has got so far, on disk after every window: nothing drawn is drawn twice.

    {name}/journal/level_{l}/item_{i}.journal

A file belongs to an item, not to a process, so a run that was killed goes on with any number of ranks. It begins with a
header that says whose it is (a digest of everything that decides the item's codes, its seed, how many codes it began
from). After every window follows a record: where the window begins and where its new codes do, the codes, and the
seconds that the level has taken so far. Random numbers need no place in it: those of a window are made from the item's
seed, the level and the window's start (:func:`songbloom.sampling.sampler.window_generators`).

Header and records end with a checksum and reach the disk (fsync) before sampling goes on. A process that dies while it
writes leaves a torn last record; opening the file cuts it off, and everything before it counts. Integers are
little-endian; codes take two bytes each where the codebook allows it. Codes that are rows of numbers (of a model that
writes several levels at once) are float32, and the file begins with ``songjrn2`` and has the rows' width in its header.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from songbloom.errors import UserError, reason
from songbloom.files import sync_folder
from songbloom.sampling.windows import Window

FOLDER = "journal"
_MAGIC = b"songjrn1"
_MAGIC_OF_ROWS = b"songjrn2"
_HEADER = struct.Struct("<8s16sIIQQB")  # magic, identity, level, item, codes it began from, seed, bytes a code
_WIDTH = struct.Struct("<I")  # numbers a code, after the header of a file of rows
_RECORD = struct.Struct("<QQIId")  # window's start, first new code, new codes, spare, seconds of the level so far
_CHECK = 8  # bytes of a checksum
_LOCK_SECONDS = 10.0  # how long a process that is just being ended may still hold a file


@dataclass(frozen=True)
class Owner:
    """Whose journal a file is; another one is not taken for it.

    Attributes:
        identity: 16 bytes that stand for everything that decides the codes (:func:`identity_of`).
        level, item: which.
        begin: codes that the item began from at this level.
        seed: the item's.
        code_bytes: 2 or 4, for a code; 4 for each number of a row.
        width: numbers of a code that is a row; 0 for codes that are whole numbers.
    """

    identity: bytes
    level: int
    item: int
    begin: int
    seed: int
    code_bytes: int = 2
    width: int = 0

    def header(self) -> bytes:
        """As written at the beginning of the file."""
        magic = _MAGIC_OF_ROWS if self.width else _MAGIC
        head = _HEADER.pack(
            magic, self.identity, self.level, self.item, self.begin, self.seed & (1 << 64) - 1, self.code_bytes
        )
        head += _WIDTH.pack(self.width) if self.width else b""
        return head + _checksum(b"", head)

    @property
    def stored(self) -> str:
        """The type of a number on disk."""
        return "<f4" if self.width else f"<u{self.code_bytes}"

    @property
    def bytes_a_code(self) -> int:
        """On disk."""
        return self.code_bytes * max(self.width, 1)

    def empty(self) -> Tensor:
        """No codes."""
        return torch.zeros(0, self.width) if self.width else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Record:
    """What one window added to one item.

    Attributes:
        window: where the window begins, in codes of the level.
        start: where its new codes begin.
        codes: the new codes, ``[new]`` int64, or ``[new, width]`` float32 where they are rows.
        seconds: that the level had taken when this was written, over all sessions.
    """

    window: int
    start: int
    codes: Tensor
    seconds: float = 0.0


def _checksum(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK, key=key).digest()


def identity_of(settings: Mapping[str, Any], level: int, beginning: Sequence[Tensor]) -> bytes:
    """A digest of everything that decides the codes of an item at a level.

    Args:
        settings: of the run, as plain data.
        level: which is written.
        beginning: the item's codes at this level before sampling and at the levels above, ``[codes]`` each.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([settings, level], sort_keys=True, ensure_ascii=True).encode())
    for codes in beginning:
        plain = codes.cpu().float() if codes.is_floating_point() else codes.cpu().long()
        digest.update(struct.pack("<Q", codes.numel()) + plain.contiguous().numpy().tobytes())
    return digest.digest()


def path_of(folder: Path, level: int, item: int) -> Path:
    """Where the journal of an item lies in the folder of a run."""
    return folder / FOLDER / f"level_{level}" / f"item_{item}.journal"


def levels_in(folder: Path) -> list[int]:
    """The levels that have journals in the folder of a run, the finest first."""
    names = [path.name.removeprefix("level_") for path in (folder / FOLDER).glob("level_*")]
    return sorted(int(name) for name in names if name.isdecimal())


def count_records(path: Path) -> int:
    """How many windows a journal holds, whoever it belongs to; 0 for a file that is none."""
    content = path.read_bytes() if path.is_file() else b""
    if len(content) < _HEADER.size + _CHECK:
        return 0
    magic, *owner = _HEADER.unpack_from(content)
    rows = magic == _MAGIC_OF_ROWS
    try:
        width = _WIDTH.unpack_from(content, _HEADER.size)[0] if rows else 0
        return len(decode(Owner(*(*owner, width)), content)[0]) if rows or magic == _MAGIC else 0
    except (ValueError, struct.error):
        return 0


def is_empty(folder: Path) -> bool:
    """Whether no window is kept in the folder of a run."""
    return all(path.stat().st_size <= _header_size(path) for path in (folder / FOLDER).rglob("*.journal"))


def _header_size(path: Path) -> int:
    with path.open("rb") as file:
        rows = file.read(len(_MAGIC)) == _MAGIC_OF_ROWS
    return _HEADER.size + (_WIDTH.size if rows else 0) + _CHECK


def remove(folder: Path, level: int | None = None) -> None:
    """Remove the journals of a level, or all of them, from the folder of a run; none is fine.

    Raises:
        OSError: they cannot be removed.
    """
    place = folder / FOLDER
    doomed = place if level is None else place / f"level_{level}"
    if doomed.exists():
        shutil.rmtree(doomed)
    if level is not None and place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def encode(owner: Owner, record: Record) -> bytes:
    """A record as it is written, checksum included."""
    codes = record.codes.cpu().numpy().astype(owner.stored).tobytes()
    head = _RECORD.pack(record.window, record.start, len(record.codes), 0, record.seconds)
    return head + codes + _checksum(owner.header(), head + codes)


def decode(owner: Owner, content: bytes) -> tuple[list[Record], int]:
    """The records in a file's bytes up to the first that is torn, damaged or out of place.

    Returns:
        The records, each beginning where the one before it ends, and how many bytes of ``content`` are good; 0 when the
        header itself is torn.

    Raises:
        ValueError: the header is whole and another one's.
    """
    header = owner.header()
    head = content[: len(header)]
    if head != header:
        size = _HEADER.size + (_WIDTH.size if content.startswith(_MAGIC_OF_ROWS) else 0) + _CHECK
        whole = len(content) >= size and _checksum(b"", content[: size - _CHECK]) == content[size - _CHECK : size]
        if whole:
            raise ValueError("it belongs to other settings, weights or codes")
        return [], 0
    records, good, next_code = [], len(header), owner.begin
    while good + _RECORD.size <= len(content):
        window, start, new, _, seconds = _RECORD.unpack_from(content, good)
        end = good + _RECORD.size + new * owner.bytes_a_code
        checked = content[end : end + _CHECK]
        if start != next_code or len(checked) < _CHECK or _checksum(header, content[good:end]) != checked:
            break
        numbers = np.frombuffer(content[good + _RECORD.size : end], owner.stored)
        codes = numbers.reshape(new, owner.width).astype(np.float32) if owner.width else numbers.astype(np.int64)
        records.append(Record(window, start, torch.from_numpy(codes), seconds))
        good, next_code = end + _CHECK, next_code + new
    return records, good


def read(path: Path, owner: Owner) -> list[Record]:
    """The records of a journal, which another process may be writing; none when there is no file.

    Raises:
        UserError: it cannot be read, or is another one's.
    """
    try:
        return decode(owner, path.read_bytes())[0]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


class ItemJournal:
    """A journal that is open for writing.

    Args:
        path: the file; made, with the folders above it, when it is not there.
        owner: whose it is to be.

    Attributes:
        records: what it held when it was opened; a torn tail has been cut off.

    Raises:
        UserError: it is another one's, is being written by another process, or cannot be read or written.
    """

    def __init__(self, path: Path, owner: Owner):
        self.path, self.owner = path, owner
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            try:
                _lock(self._file)
                content = self._file.read()
                self.records, self._good = decode(owner, content)
                if self._good < len(content):
                    self._cut()
                if not self._good:
                    self._write(owner.header())
                    _sync_folders(path.parent)
            except BaseException:
                self._file.close()
                raise
        except (OSError, ValueError) as error:
            raise _refused(path, error) from error

    def append(self, record: Record) -> None:
        """Add a record; it is safely on disk when this returns.

        Raises:
            UserError: it cannot be written; the file then ends with the record before.
        """
        try:
            self._write(encode(self.owner, record))
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        try:
            self._file.seek(self._good)
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self._good += len(content)

    def _cut(self) -> None:
        self._file.truncate(self._good)
        os.fsync(self._file.fileno())


class LevelJournal:
    """The journals of one level of the items of this process.

    Args:
        folder: of the run.
        level: which is written.
        items: the numbers of the items in the run.
        settings: of the run, as plain data.
        codes: of all levels, ``[items, …]`` int64; those of ``level`` are what the items begin from.
        seeds: one an item.
        l_bins: size of the codebook.

    Attributes:
        seconds: that the level has taken in earlier sessions, as far as its windows were kept.

    Raises:
        UserError: as :class:`ItemJournal`.
    """

    def __init__(
        self,
        folder: Path,
        level: int,
        items: range,
        *,
        settings: Mapping[str, Any],
        codes: Sequence[Tensor],
        seeds: Sequence[int],
        l_bins: int,
        now: Callable[[], float] = time.monotonic,
    ):
        self.level = level
        self._begin = codes[level].shape[1]
        self._device = codes[level].device
        self._journals: list[ItemJournal] = []
        for index, item in enumerate(items):
            owner = owner_of(settings, level, item, [each[index] for each in codes[level:]], seeds[index], l_bins)
            self._journals.append(ItemJournal(path_of(folder, level, item), owner))
        kept = [record.seconds for journal in self._journals for record in journal.records]
        self.seconds = max(kept, default=0.0)
        self._now, self._begun = now, now()

    def restore(self, windows: Sequence[Window]) -> list[Tensor]:
        """The codes that each item has got beyond those it began from, for the windows that are to be written.

        Raises:
            UserError: they were written in other windows.
        """
        self._begun = self._now()
        found = []
        for journal in self._journals:
            for record, window in zip(journal.records, windows, strict=False):
                there = record.window, record.start, len(record.codes)
                if there != (window.start, window.start + window.prompt, window.new):
                    raise _refused(journal.path, ValueError("it was written in other windows"))
            if len(journal.records) > len(windows):
                raise _refused(journal.path, ValueError("it holds more than is asked for"))
            found.append(joined(journal.records, journal.owner).to(self._device))
        return found

    def append(self, items: Sequence[int], window: Window, codes: Tensor) -> None:
        """Keep what a window added.

        Args:
            items: which of this process's items, counted from 0.
            window: the window.
            codes: its new codes, ``[len(items), window.new]``.

        Raises:
            UserError: it cannot be written; what was there before is intact.
        """
        seconds = self.seconds + self._now() - self._begun
        for item, each in zip(items, codes.cpu(), strict=True):
            self._journals[item].append(Record(window.start, window.start + window.prompt, each, seconds))

    def close(self) -> None:
        """Let others open them."""
        for journal in self._journals:
            journal.close()


def owner_of(
    settings: Mapping[str, Any], level: int, item: int, beginning: Sequence[Tensor], seed: int, l_bins: int
) -> Owner:
    """Whose the journal of an item is; the arguments are :class:`LevelJournal`'s, for one item."""
    identity = identity_of(settings, level, beginning)
    width = beginning[0].shape[1] if beginning[0].ndim == 2 else 0
    code_bytes = 2 if l_bins <= 1 << 16 and not width else 4
    return Owner(identity, level, item, len(beginning[0]), seed, code_bytes, width)


def joined(records: Sequence[Record], owner: Owner) -> Tensor:
    """The codes of an owner's records one after the other, ``[codes]`` int64 or ``[codes, width]`` float32."""
    return torch.cat([owner.empty(), *(record.codes for record in records)])


def _refused(path: Path, error: OSError | ValueError) -> UserError:
    if isinstance(error, BlockingIOError):
        return UserError(f"{path}: another process is sampling there; wait for it, or choose another --name")
    if isinstance(error, OSError):
        return UserError(
            f"{path}: cannot be written ({reason(error)}); free space or change the folder: the same command then goes "
            "on after the last window"
        )
    return UserError(f"{path}: {error}; choose another --name, or give --overwrite to begin anew")


def _lock(file: BinaryIO) -> None:
    """Keep other processes out; one that is being ended has a moment to let go."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        except OSError as error:  # some network file systems have no locks
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                return
            raise


def _sync_folders(folder: Path) -> None:
    """Make new names in a journal's folder, and the folder's own, survive a power cut where the system allows it."""
    for place in (folder, folder.parent, folder.parent.parent):
        sync_folder(place)
