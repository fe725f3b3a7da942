"""Checkpoints: one file of plain data, written beside its place and renamed into it.

A run's folder holds ``checkpoint_step_{N}.pth.tar`` files and ``checkpoint_latest.pth.tar``, which is the newest of
them (a hard link where the file system has them). Beside each lies a JSON file with the merged configuration, the
version and the command line, to be read by people and by other programs. Files hold tensors, numbers, strings, dicts
and lists only, so that loading one never runs code. A process that is killed while writing leaves the old files as they
were, and a ``.partial`` file that the next start removes.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from songbloom.errors import UserError
from songbloom.files import write_text, written_beside
from songbloom.hyperparams import to_json
from songbloom.training import foreign
from songbloom.training.stored import CutShort, Stored, is_stream, open_stream

FORMAT = 1
SUFFIX = ".pth.tar"
LATEST = f"checkpoint_latest{SUFFIX}"
KEYS = (
    "format",
    "kind",
    "hps",
    "model",
    "ema",
    "codebook",
    "optimizer",
    "scheduler",
    "scaler",
    "random",
    "position",
    "step",
    "version",
    "argv",
)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # what torch would not make, in its message
_STEP_FILE = re.compile(r"checkpoint_step_(\d+)" + re.escape(SUFFIX))


class NotACheckpoint(UserError):
    """A file that is something else."""


class Damaged(UserError):
    """A file that is a checkpoint no longer; ``told`` is the message without what to do."""

    def __init__(self, path: Path, known: str = "") -> None:
        size = f"it has {path.stat().st_size:,} bytes"
        self.told = f"{path}: damaged or cut short ({known or size})"
        before = step_before(path)
        instead = f", or take {before.name} beside it" if before else ""
        super().__init__(f"{self.told}; copy or download it again{instead}")


def plain(value: Any, where: str = "content") -> Any:
    """``value`` with every mapping as a dict and every sequence as a list or tuple, tensors detached.

    Raises:
        TypeError: something else is inside, which could not be loaded without executing code.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds plain data only")


def save(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` so that the file is either wholly the new one or still the old one.

    Raises:
        UserError: it cannot be written (disk full, no permission); what was there before is untouched.
        TypeError: ``content`` holds something other than plain data.
    """
    checked = plain(content)
    with written_beside(Path(path)) as temporary:
        try:
            torch.save(checked, temporary)
        except RuntimeError as error:  # torch's writer tells a full disk in this way
            raise OSError(str(error).splitlines()[0]) from error


def load(path: Path | str, *, verify: bool = True, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, onto the CPU, without executing code.

    Args:
        path: the file.
        verify: compare the checksums of everything in it first, so that a damaged file is told from a good one.
        mmap: leave tensors on disk until they are used (for models near the size of the memory).

    Raises:
        UserError: it is not there, damaged, cut short, not a checkpoint, or of a newer format than this version reads.
    """
    return _content(path, verify=verify, mmap=mmap).content


def open_file(path: Path | str, *, verify: bool = True) -> Stored:
    """Open a checkpoint whose tensors stay on disk until they are asked for; otherwise as :func:`load`."""
    return _content(path, verify=verify, mmap=True, streams=True)


def _content(path: Path | str, *, verify: bool, mmap: bool, streams: bool = False) -> Stored:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, no' if path.is_dir() else 'no such'} checkpoint file")
    try:
        is_zip = zipfile.is_zipfile(path)
        if verify and is_zip:
            _verify(path)
        other = _what_else(path, is_zip)
        if other:
            raise NotACheckpoint(f"{path}: no checkpoint, but {other}")
        if streams and not is_zip and is_stream(path):
            stored = open_stream(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
            stored = Stored(content, mapped=mmap and is_zip)
    except (NotACheckpoint, Damaged):
        raise
    except pickle.UnpicklingError as error:
        found = _weights_among_objects(path, mmap) if zipfile.is_zipfile(path) else None
        if found is None:
            raise UserError(f"{path}: not a checkpoint that can be read safely ({_first_line(error)})") from error
        stored = found
    except MemoryError:
        raise
    except CutShort as error:
        raise Damaged(path, f"it {error}") from error
    except Exception as error:  # bytes that are no checkpoint can make an unpickler raise anything
        raise Damaged(path) from error
    if not isinstance(stored.content, dict):
        raise UserError(f"{path}: not a checkpoint (it holds a {type(stored.content).__name__}, not a dict)")
    number = stored.content.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise UserError(f"{path}: written in format {number} by a newer version; this one reads up to {FORMAT}")
    return stored


def _weights_among_objects(path: Path, mmap: bool) -> Stored | None:
    """The ``state_dict`` of a trainer's checkpoint that holds objects of its own as well; these are left out."""
    try:
        content = foreign.read(path, mmap=mmap)
    except MemoryError:
        raise
    except Exception:  # bytes that are no checkpoint can make an unpickler raise anything
        return None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        return None
    return Stored({"state_dict": dict(state)}, mapped=mmap) if state else None


def _what_else(path: Path, is_zip: bool) -> str:
    """What a file is that does not even begin as a checkpoint does; empty for one that may be one."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        return "a TorchScript program" if "constants.pkl" in names else "" if "data.pkl" in names else "a zip archive"
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK") or is_stream(path):  # an archive that was cut short is no archive to those who read it
        return ""
    try:
        text = b"\0" not in head and codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = ""
    return "text" if text else "other data" if head else "an empty file"


def _first_line(error: BaseException) -> str:
    """What an error says, for people; its kind where it says nothing in words."""
    said = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch's advice comes before that
    if unknown := _GLOBAL.search(said):
        return f"it holds objects of another program: {unknown[1]}"
    lines = (line for line in said.splitlines() if any(map(str.isalpha, line)))
    return next(lines, f"{type(error).__name__} while it was read")[:120]


def _verify(path: Path) -> None:
    """Compare the checksum of every record (torch writes them and does not read them back)."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise Damaged(path, f"wrong checksum; it has {path.stat().st_size:,} bytes")


# -------------------------------------------------------------------------------------------- a run's folder


def step_files(folder: Path | str) -> list[tuple[int, Path]]:
    """(step, path) of the ``checkpoint_step_*`` files in ``folder``, newest first."""
    found = []
    for path in Path(folder).glob(f"checkpoint_step_*{SUFFIX}"):
        if match := _STEP_FILE.fullmatch(path.name):
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def step_before(path: Path) -> Path | None:
    """The ``checkpoint_step_*`` file to take instead of ``path``: the newest of an earlier step that is no link to it.

    Of ``checkpoint_latest`` any step is an earlier one.
    """
    match = _STEP_FILE.fullmatch(path.name)
    if path.name != LATEST and not match:
        return None
    others = (old for step, old in step_files(path.parent) if (not match or step < int(match[1])))
    return next((old for old in others if not old.samefile(path)), None)


def json_beside(path: Path) -> Path:
    """Where the configuration of a checkpoint lies."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".json")


def save_in_run(folder: Path | str, content: Mapping[str, Any], *, keep: int = 0, numbered: bool = True) -> Path:
    """Write ``checkpoint_latest`` and, the same, ``checkpoint_step_{step}``; returns the path written.

    Args:
        folder: the run's folder; made if need be.
        content: what to save, with the keys :data:`KEYS`.
        keep: number of step files to leave in the folder, the newest; 0 leaves all.
        numbered: False writes ``checkpoint_latest`` alone.

    Raises:
        UserError: it cannot be written; older checkpoints are untouched.
    """
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise KeyError(f"a checkpoint needs {', '.join(missing)}")
    folder = Path(folder)
    latest = folder / LATEST
    text = to_json(content["hps"], content["argv"])
    path = folder / f"checkpoint_step_{content['step']}{SUFFIX}" if numbered else latest
    save(path, content)
    write_text(json_beside(path), text)
    if not numbered:
        return path
    with written_beside(latest) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
    write_text(json_beside(latest), text)
    if keep > 0:
        # By time, not by number: after a fresh start in an old folder the newest file may have the smaller step.
        others = [old for _, old in step_files(folder) if old != path]
        others.sort(key=lambda old: old.stat().st_mtime_ns, reverse=True)
        for old in others[keep - 1 :]:
            old.unlink(missing_ok=True)
            json_beside(old).unlink(missing_ok=True)
    return path


def remove_partial(folder: Path | str) -> None:
    """Remove what processes left that were killed while writing."""
    for path in Path(folder).glob(".checkpoint_*.partial"):
        path.unlink(missing_ok=True)


def newest(folder: Path | str, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, or None if there is none.

    Files that are damaged are passed over, with one line to ``say`` for each.

    Raises:
        UserError: there are checkpoints, and none of them can be read: starting afresh would overwrite them.
    """
    folder = Path(folder)
    latest = folder / LATEST
    candidates = [latest] if latest.exists() else []
    candidates += [path for _, path in step_files(folder)]
    # A kill between a step file and its link leaves an older "latest". Where both are one file, that name comes first.
    candidates.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    broken: list[Path] = []
    for path in candidates:
        if any(path.samefile(other) for other in broken):
            continue
        try:
            content = load(path)
            if "format" not in content or "step" not in content:
                raise UserError(f"{path}: not a checkpoint of this program")
            return path, content
        except UserError as error:
            broken.append(path)
            told = error.told if isinstance(error, Damaged) else error
            say(f"{told}; trying the one before")
    if broken:
        raise UserError(f"{folder}: none of its checkpoints can be read; move them away to start afresh")
    return None
