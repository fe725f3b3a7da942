"""Weights that the processes of a machine share where they cannot be pages of the file that they come from.

On a CPU, float32 tensors of our own checkpoints are pages of the file, which all processes of the machine share. Of
other files, and in other types, each process would hold a copy of its own: of 5b_lyrics in float32 23 GB a rank. So
where there are several, the first of them writes what a model needs into a file of the cache folder,

    $SONGBLOOM_CACHE/converted/{digest}.safetensors

and all of them map that, in this run and in later ones. The digest is of the checkpoint's content, of this program's
version, and of every name, shape and type that is wanted, so a file never stands for other weights. It may be deleted
at any time, and one that cannot be read is written anew; the folder is kept below :data:`LARGEST`, what was used
longest ago going first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from songbloom import __version__
from songbloom.distributed import say, world
from songbloom.errors import UserError
from songbloom.files import written_beside
from songbloom.published import fetch as downloads
from songbloom.published.safetensors import NAMES, SUFFIX, read_safetensors
from songbloom.training.stored import Stored, fill, wanted_types

FOLDER = "converted"
LARGEST = 64e9  # bytes of all files together: 5b_lyrics in float32 and in half precision
_SPARE = 1e9  # bytes that are left free on the disk
_TOLD_FROM = 1e8  # bytes of a file that a person hears of
_ALIGNED = 64  # bytes; where tensors begin


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
        state[name].dtype == kind and state[name].is_contiguous() for name, kind in wanted.items()
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
    with _alone(target):
        tensors = _tensors_of(target, wanted)
        if tensors is None:
            _write(target, state, stored, wanted)
            tensors = read_safetensors(target)
        os.utime(target)  # the time of its last use
        return tensors


def _tensors_of(target: Path, wanted: Mapping[str, torch.dtype]) -> dict[str, Tensor] | None:
    """What is in ``target``; None if it isn't there, or cannot be read."""
    if not target.is_file():
        return None
    try:
        tensors = read_safetensors(target)
    except UserError:
        return None
    return tensors if {name: tensor.dtype for name, tensor in tensors.items()} == dict(wanted) else None


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Other processes of this machine are kept from ``target`` within."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError("this system cannot share them") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(target: Path, state: Mapping[str, Tensor], stored: Stored, wanted: Mapping[str, torch.dtype]) -> None:
    """Write the tensors, one in memory at a time, into a file that appears whole."""
    names = sorted(wanted, key=lambda name: -wanted[name].itemsize)  # so that each begins at a multiple of its size
    table: dict[str, Any] = {}
    at = 0
    for name in names:
        size = state[name].numel() * wanted[name].itemsize
        table[name] = {"dtype": NAMES[wanted[name]], "shape": list(state[name].shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNED)
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
            stored.let_go(state[name])
        del pages
    if whole >= _TOLD_FROM:
        say(
            f"{target}: {whole / 1e9:.2f} GB of weights that the processes of this machine share; delete it as you like"
        )


def _make_room(target: Path, size: int) -> None:
    """Remove files that were used longest ago, so that ``size`` bytes fit.

    A process that has mapped one keeps what it has.

    Raises:
        OSError: they don't fit.
    """
    if size > LARGEST:
        raise OSError(f"{size / 1e9:.1f} GB are more than {target.parent} is to hold")
    others = sorted(target.parent.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    held = sum(path.stat().st_size for path in others)
    while others and (held + size > LARGEST or shutil.disk_usage(target.parent).free < size + _SPARE):
        oldest = others.pop(0)
        held -= oldest.stat().st_size
        oldest.unlink()
    if shutil.disk_usage(target.parent).free < size + _SPARE:
        raise OSError(f"{target.parent} has no room for {size / 1e9:.1f} GB")


def worth_sharing(module: nn.Module, device: torch.device | str) -> bool:
    """Whether :func:`fill_shared` is for ``module`` here: there are several processes, and their memory is one."""
    several = world().local_size > 1 and torch.device(device).type == "cpu" and hasattr(os, "posix_fallocate")
    return several and all(tensor.is_meta for tensor in module.state_dict().values())
