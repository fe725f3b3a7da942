"""Files that appear whole: written beside their place, safely on disk, then renamed into it."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from songbloom.errors import UserError, reason


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends, or, if it fails, vanishes.

    Folders above it are made. A process that is killed meanwhile leaves ``path`` as it was, and a hidden file that ends
    in ``.partial``, which the next one that writes there takes away.

    Raises:
        UserError: it cannot be written (disk full, no permission); what was there before is untouched.
    """
    path = Path(path)
    # The machine's name keeps processes apart that share the folder over a network and have the same number.
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_remains(path)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _machine() -> str:
    return platform.node().replace(os.sep, "_") or "here"


def _clear_remains(path: Path) -> None:
    """Take away what processes of this machine that have ended left of ``path``."""
    beginning = f".{path.name}.{_machine()}."
    for left in path.parent.glob(f"{glob.escape(beginning)}*.partial"):
        number = left.name.removeprefix(beginning).removesuffix(".partial")
        if number.isdigit() and int(number) != os.getpid() and not _lives(int(number)):
            with contextlib.suppress(OSError):
                left.unlink()


def _lives(process: int) -> bool:
    if os.name == "nt":  # there a signal to look with would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def unwritable(path: str | Path, error: OSError) -> UserError:
    """What to tell of a file that cannot be written."""
    return UserError(f"{path}: cannot be written ({reason(error)}); free space or change the folder")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which is at ``path`` when the block has ended; as :func:`written_beside`."""
    with written_beside(path) as temporary, temporary.open("wb") as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file; as :func:`written_beside`."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


_held: dict[Path, IO[str]] = {}  # locks of this process, until it ends


def hold(folder: str | Path, *, busy: str, instead: str) -> None:
    """Make ``folder`` and keep other processes from holding it until this one ends.

    Where the system or the file system has no locks, nobody is kept out.

    Args:
        folder: which.
        busy: what another process would be doing there, for the message.
        instead: the option that names another folder, for the message.

    Raises:
        UserError: it cannot be written, or another process holds it.
    """
    folder = Path(folder)
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another {instead}") from error
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on Windows
        pass
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another process is {busy} there; wait for it, or choose another {instead}"
        ) from error
    except OSError:  # some network file systems have no locks
        pass
    _held[folder] = lock


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut, where the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
