"""Weights that the processes of a machine share where they cannot be pages of the file that they come from.

On a CPU, float32 tensors of our own checkpoints are pages of the file, which all processes of the machine share. Of
other files, and in other types, each process would hold a copy of its own: of 5b_lyrics in float32 23 GB a rank. So
where there are several, the first of them writes what a model needs into a file of the cache folder,

    $SONGBLOOM_CACHE/converted/{digest}.safetensors

and all of them map that, in this run and in later ones. The digest is of the checkpoint's content, of this program's
version, and of every name, shape and type that is wanted, so a file never stands for other weights. It may be deleted
at any time, and one that cannot be read is written anew; the folder is kept below :data:`LARGEST`, what was used
longest ago going first.

A file holds a checksum of itself. It is compared once after each start of the machine, since before that the disk may
have lost what was written last; what was compared is noted in the file that locks it, so that others need not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from songbloom import __version__
from songbloom.distributed import say, world
from songbloom.errors import UserError
from songbloom.files import written_beside
from songbloom.published import fetch as downloads
from songbloom.published.safetensors import NAMES, SUFFIX, read_safetensors
from songbloom.training.checkpoint import open_file
from songbloom.training.stored import Stored, fill, wanted_types

FOLDER = "converted"
LARGEST = 64e9  # bytes of all files together: 5b_lyrics in float32 and in half precision
_SPARE = 1e9  # bytes that are left free on the disk
_TOLD_FROM = 1e8  # bytes of a file that a person hears of
_ALIGNED = 64  # bytes; where tensors begin
_PIECE = 1 << 24  # bytes that are read at once
_SUM = "crc32"  # of the table and the tensors; a key of the table's metadata
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def fill_shared(
    module: nn.Module,
    state: Mapping[str, Tensor],
    stored: Stored,
    source: Path,
    *,
    chosen: str,
    dtype: torch.dtype | None = None,
) -> None:
    """:func:`songbloom.training.stored.fill` on a CPU, for one of several processes of this machine that do the same.

    Needs no other process: the first one converts, those that come meanwhile wait for it, later ones find it done.
    Where there is no room for the file, or files cannot be mapped, each process has a copy of its own.

    Args:
        module: on the meta device.
        state, stored, dtype: as in :func:`fill`.
        source: the file that ``stored`` is.
        chosen: which of the weights in the file ``state`` is.
    """
    wanted = wanted_types(module, dtype)
    if stored.mapped and all(
        state[name].dtype == kind and state[name].is_contiguous() and stored.holds(state[name])
        for name, kind in wanted.items()
    ):
        fill(module, state, stored, dtype=dtype)
        return
    target = downloads.cache_folder() / FOLDER / (_digest(state, wanted, source, chosen) + SUFFIX)
    try:
        tensors = _converted(target, state, stored, wanted)
    except (OSError, UserError) as error:
        say(f"note: {source.name}: every process has a copy of its own ({error})")
        fill(module, state, stored, dtype=dtype)
        return
    fill(module, tensors, Stored(tensors, mapped=True), dtype=dtype)


def _digest(state: Mapping[str, Tensor], wanted: Mapping[str, torch.dtype], source: Path, chosen: str) -> str:
    described = [[name, list(state[name].shape), str(kind)] for name, kind in sorted(wanted.items())]
    text = json.dumps([__version__, downloads.content_key(source), chosen, described])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _converted(
    target: Path, state: Mapping[str, Tensor], stored: Stored, wanted: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """The tensors in ``target``, which is written now if it is not there.

    Raises:
        OSError, UserError: it cannot be.
    """
    with _alone(target) as notes:
        tensors = _tensors_of(target, state, wanted, notes)
        if tensors is None:
            tensors = _write(target, state, stored, wanted)
            _note(target, notes)
        with contextlib.suppress(FileNotFoundError):  # another process may need its room already: its pages stay ours
            os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))  # the time of its last use
        return tensors


def _tensors_of(
    target: Path, state: Mapping[str, Tensor], wanted: Mapping[str, torch.dtype], notes: IO[str]
) -> dict[str, Tensor] | None:
    """What is in ``target``; None if it isn't there, cannot be read, or is not as it was written."""
    try:
        known = _stamp(target)
        tensors = read_safetensors(target)
        if {name: (each.dtype, each.shape) for name, each in tensors.items()} != {
            name: (kind, state[name].shape) for name, kind in wanted.items()
        }:
            return None
        notes.seek(0)
        if not known or known not in notes.read().splitlines():
            if (size := target.stat().st_size) >= _TOLD_FROM:
                say(f"{target}: {size / 1e9:.2f} GB of an earlier run, which are checked once")
            if not _sum_is_right(target):
                return None
            _note(target, notes)
    except (OSError, UserError):
        return None
    return tensors


def _stamp(target: Path) -> str:
    """What tells that a file is the one that was looked at since the machine has started; empty if nothing does."""
    status = target.stat()
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
    return f"{boot} {status.st_size} {status.st_mtime_ns}" if boot else ""


def _note(target: Path, notes: IO[str]) -> None:
    """Remember that ``target`` is right."""
    with contextlib.suppress(OSError):  # it is compared again then
        notes.write(f"{_stamp(target)}\n")  # at the end, wherever was read
        notes.flush()


def _sum_is_right(target: Path) -> bool:
    """Whether a file has the checksum that it tells."""
    with target.open("rb") as file:
        table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        told = table.pop("__metadata__", {}).get(_SUM)
        found = zlib.crc32(_plain(table))
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return bool(told == f"{found:08x}")


def _plain(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, separators=(",", ":")).encode()


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[IO[str]]:
    """Other processes of this machine are kept from ``target`` within; gives the file that does so, for notes."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError("this system cannot share them") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _write(
    target: Path, state: Mapping[str, Tensor], stored: Stored, wanted: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Write the tensors, one in memory at a time, into a file that appears whole; gives its pages."""
    names = sorted(wanted, key=lambda name: -wanted[name].itemsize)  # so that each begins at a multiple of its size
    table: dict[str, Any] = {}
    at = 0
    for name in names:
        size = state[name].numel() * wanted[name].itemsize
        table[name] = {"dtype": NAMES[wanted[name]], "shape": list(state[name].shape), "data_offsets": [at, at + size]}
        at += size
    found = zlib.crc32(_plain(table))
    head = _head(table, found)
    begin, whole = 8 + len(head), 8 + len(head) + at
    _make_room(target, whole)
    with written_beside(target) as temporary:
        with temporary.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, whole)  # a disk that fills up later would end the process
            file.write(len(head).to_bytes(8, "little") + head)
        pages = torch.from_file(str(temporary), shared=True, size=whole, dtype=torch.uint8)
        room = torch.empty(
            max(t.numel() * t.itemsize for t in state.values()) if not stored.mapped else 0, dtype=torch.uint8
        )
        for name in names:
            first, last = (begin + offset for offset in table[name]["data_offsets"])
            pages[first:last].view(wanted[name]).view(state[name].shape).copy_(stored.numbers(state[name], room))
            found = zlib.crc32(pages[first:last].numpy().data, found)
            stored.let_go(state[name])
        pages[8:begin] = torch.frombuffer(bytearray(_head(table, found)), dtype=torch.uint8)
        del pages
        tensors = read_safetensors(temporary)  # before others may need its room
    if whole >= _TOLD_FROM:
        say(
            f"{target}: {whole / 1e9:.2f} GB of weights that the processes of this machine share; delete it as you like"
        )
    return tensors


def _head(table: Mapping[str, Any], found: int) -> bytes:
    """The table as it stands in the file, of the same length whatever the checksum."""
    head = _plain({"__metadata__": {_SUM: f"{found:08x}"}, **table})
    return head + b" " * (-(8 + len(head)) % _ALIGNED)


def _make_room(target: Path, size: int) -> None:
    """Remove files that were used longest ago, so that ``size`` bytes fit.

    A process that has mapped one keeps what it has.

    Raises:
        OSError: they don't fit.
    """
    if size > LARGEST:
        raise OSError(f"{size / 1e9:.1f} GB are more than {target.parent} is to hold")
    used = _used(target.parent)
    held = sum(each for _, each in used.values())
    others = sorted(used, key=used.__getitem__)
    while others and (held + size > LARGEST or shutil.disk_usage(target.parent).free < size + _SPARE):
        oldest = others.pop(0)
        held -= used[oldest][1]
        oldest.unlink(missing_ok=True)
    if shutil.disk_usage(target.parent).free < size + _SPARE:
        raise OSError(f"{target.parent} has no room for {size / 1e9:.1f} GB")


def _used(folder: Path) -> dict[Path, tuple[int, int]]:
    """Each file of the folder: when it was used last, and its size."""
    found = {}
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # others make room as well
            status = path.stat()
            found[path] = status.st_atime_ns, status.st_size
    return found


def are_shared(size: float, source: Path | None, dtype: torch.dtype) -> bool:
    """Whether processes of a machine that load so many bytes of weights for its CPUs will share them.

    Either they are pages of the checkpoint, or there is room for a converted file in the cache folder, as far as can be
    told beforehand.

    Args:
        size: bytes, as they are loaded.
        source: the checkpoint; None, or a file that is not there yet, is one to be converted.
        dtype: that matrices are kept in.
    """
    with contextlib.suppress(OSError, UserError):
        if source is not None and dtype == torch.float32 and source.is_file():
            stored = open_file(source, verify=False)
            if stored.mapped and stored.content.get("kind") == "prior":  # a file of ours
                return True
    with contextlib.suppress(OSError):
        folder = downloads.cache_folder() / FOLDER
        there = next(each for each in (folder, *folder.parents) if each.exists())
        room = shutil.disk_usage(there).free + sum(each for _, each in _used(folder).values())
        writable = there.is_dir() and os.access(there, os.W_OK)
        return hasattr(os, "posix_fallocate") and writable and size <= LARGEST and room >= size + _SPARE
    return False


def worth_sharing(module: nn.Module, device: torch.device | str) -> bool:
    """Whether :func:`fill_shared` is for ``module`` here: there are several processes, and their memory is one."""
    several = world().local_size > 1 and torch.device(device).type == "cpu" and hasattr(os, "posix_fallocate")
    return several and all(tensor.is_meta for tensor in module.state_dict().values())
