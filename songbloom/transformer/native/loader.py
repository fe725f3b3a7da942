"""Building and loading the C++ steps: once a machine, into a cache folder, by torch's extension builder.

The library's name is a digest of its source, the compiler's options and the processor's features, so neither a newer
source nor another machine with the same home folder ever meets a library that was not built for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from songbloom.distributed import world
from songbloom.errors import reason

FOLDER = Path(__file__).parent
# Each library's functions, with what they take and give; its source is the .cpp of its name.
_ADDRESS, _LONG = ctypes.c_void_p, ctypes.c_int64
FUNCTIONS: dict[str, dict[str, tuple[list[Any], Any]]] = {
    "step": {
        "songbloom_step": ([_ADDRESS], None),
        "songbloom_step_scratch": ([_ADDRESS], _LONG),
        "songbloom_step_sizes": ([], _LONG),
    },
    "song": {
        "song_sizes": ([ctypes.c_int], _LONG),
        "song_large_pages": ([_ADDRESS, _LONG], None),
        "song_collapse_pages": ([_ADDRESS, _LONG], None),
        "song_halves": ([], ctypes.c_int32),
        "song_scales_size": ([_ADDRESS], _LONG),
        "song_find_scales": ([_ADDRESS, _ADDRESS], None),
        "song_panels_size": ([_ADDRESS], _LONG),
        "song_lay_panels": ([_ADDRESS, _ADDRESS], None),
        "song_diffusion_scratch": ([_ADDRESS], _LONG),
        "song_diffusion_kept": ([_ADDRESS], _LONG),
        "song_diffusion_begin": ([_ADDRESS], None),
        "song_diffusion_velocity": ([_ADDRESS], None),
        "song_language_scratch": ([_ADDRESS], _LONG),
        "song_language_step": ([_ADDRESS], None),
        "song_maps_scratch": ([_ADDRESS], _LONG),
        "song_map": ([_ADDRESS], None),
    },
    "halves": {
        "halves_here": ([], ctypes.c_int),
        "halves_size": ([ctypes.c_int], _LONG),
        "halves_scratch": ([_ADDRESS], _LONG),
        "halves_multiply": ([_ADDRESS], None),
        "half_rows_size": ([ctypes.c_int], _LONG),
        "half_rows_norm": ([_ADDRESS, ctypes.c_int], None),
        "half_rows_swiglu": ([_ADDRESS, ctypes.c_int], None),
        "half_rows_heads": ([_ADDRESS, ctypes.c_int], None),
        "halves_attention_scratch": ([_ADDRESS, ctypes.c_int], _LONG),
        "halves_attention": ([_ADDRESS, ctypes.c_int], None),
    },
}
# What is missed without each, for the line that says so.
_MISSED = {
    "step": "no native decoding step, sampling is slower",
    "song": "no native steps of songs, sampling is slower",
    "halves": "no native products of halves, bf16 is slower",
}
# No -ffast-math: sums stay in the order in which they are written, on which batch invariance rests.
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-w")
_BUILDING = ".building."  # in the name of a folder in which a library is built, after the library's


class BuildError(RuntimeError):
    """Why there is no library; one line."""


def cache_folder() -> Path:
    """Where libraries are kept: ``$SONGBLOOM_CACHE/native``, by default ``~/.cache/songbloom/native``.

    Raises:
        BuildError: this user has no home folder.
    """
    base = os.environ.get("SONGBLOOM_CACHE")
    try:
        return (Path(base) if base else Path.home() / ".cache" / "songbloom") / "native"
    except RuntimeError as error:
        raise BuildError("there is no home folder: set SONGBLOOM_CACHE to a folder") from error


def machine_flags() -> tuple[str, ...]:
    """What tells the compiler to use all that this processor has."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


def thread_flags() -> tuple[str, ...]:
    """OpenMP; Apple's compiler has none, there one thread computes."""
    return () if sys.platform == "darwin" else ("-fopenmp",)


def cpu_features() -> str:
    """The processor's model and features, as the system tells them."""
    path = Path("/proc/cpuinfo")
    wanted = ("flags", "features", "model name", "cpu part")
    if path.exists():
        told = path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = {line for line in told if line.lower().startswith(wanted)}
        return "\n".join(sorted(lines))
    return platform.processor() or platform.machine()


def sources(name: str) -> list[Path]:
    """A file of this folder and the headers beside it that it includes, and those that they do."""
    found = [FOLDER / name]
    for path in found:  # grows on the way
        for header in re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            if FOLDER / header not in found:
                found.append(FOLDER / header)
    return found


def library_name(flags: tuple[str, ...], source: str = "step") -> str:
    """The name of the library that a source gives with these options on this machine."""
    parts = (
        *(path.read_text(encoding="utf-8") for path in sources(f"{source}.cpp")),
        " ".join(flags),
        cpu_features(),
        platform.machine(),
        torch.__version__,
    )
    return f"{source}_" + hashlib.blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Only one process at a time within; a process that dies lets go."""
    with (folder / f"{name}.lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: builds side by side cost time, but the renaming at their end is atomic
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear_remains(folder: Path, name: str) -> None:
    """Take away what builds that were killed have left in ``folder``; the caller holds the lock of ``name``.

    Who builds holds the lock of what is built, so a work folder whose lock nobody else holds is nobody's.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing tells whether somebody is at work there
        return
    for left in folder.glob(f"*{_BUILDING}*"):
        whose = left.name.partition(_BUILDING)[0]
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            if whose != name:
                lock = held.enter_context((folder / f"{whose}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _programs_of_this_python() -> Iterator[None]:
    """Programs beside this Python are found, as ninja from its package is in a virtual environment that nobody has
    activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def build(flags: tuple[str, ...], folder: Path, source: str = "step") -> Path:
    """The library of a source in ``folder``, built if it isn't there.

    Raises:
        BuildError: there is no compiler or ninja, the folder cannot be written, or the compiler failed.
    """
    name = library_name(flags, source)
    path = folder / f"{name}.so"
    compiler = os.environ.get("CXX", "c++")
    try:
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _programs_of_this_python(), _alone(folder, name):
            for program in (compiler, "ninja"):
                if shutil.which(program) is None:
                    raise BuildError(f"{program} is not installed")
            if not path.exists():  # another process may have built it meanwhile
                _clear_remains(folder, name)
                _compile(name, source, flags, path)
    except OSError as error:
        raise BuildError(f"{folder}: {reason(error)}") from error
    return path


def _compile(name: str, source: str, flags: tuple[str, ...], path: Path) -> None:
    from torch.utils import cpp_extension  # takes a moment to import, and only building needs it

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{name}{_BUILDING}") as work:
        try:
            # A name of its own: torch numbers what one process builds under the same name. OpenMP is only compiled
            # for, not linked: torch has loaded its own, and two of them would fight for the cores.
            once = Path(work).name.replace(".", "_")
            sources = [str(FOLDER / f"{source}.cpp")]
            cpp_extension.load(once, sources, extra_cflags=list(flags), build_directory=work, is_python_module=False)
        except (RuntimeError, OSError, ImportError, ValueError) as error:  # the last: a path that cannot be encoded
            lines = str(error).splitlines() or ["the compiler failed"]
            raise BuildError(next((line.strip() for line in lines if "error:" in line), lines[0])) from error
        (Path(work) / f"{once}.so").replace(path)


def load(flags: tuple[str, ...] | None = None, folder: Path | None = None, source: str = "step") -> ctypes.CDLL:
    """A library, with the types of its functions.

    Args:
        flags: of the compiler; None: all that this machine has.
        folder: where it is kept; None: :func:`cache_folder`.
        source: ``step`` (one position of a prior of the first family), ``song`` (steps of the second) or ``halves``
            (large products of bfloat16).

    Raises:
        BuildError: there can be none.
    """
    flags = (*FLAGS, *thread_flags(), *machine_flags()) if flags is None else flags
    path = build(flags, cache_folder() if folder is None else folder, source)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error}); delete it to have it built again") from error
    for name, (takes, gives) in FUNCTIONS[source].items():
        function = getattr(library, name)
        function.argtypes, function.restype = takes, gives
    return library


@cache
def library(source: str = "step") -> ctypes.CDLL | None:
    """A library of this machine, or None where there can be none, which one line on rank 0's stderr says, once.

    ``SONGBLOOM_NATIVE=0`` in the environment does without it, silently.
    """
    if os.environ.get("SONGBLOOM_NATIVE", "1") == "0":
        return None
    try:
        return load(source=source)
    except BuildError as error:
        if world().is_main:
            print(f"note: {_MISSED[source]}: {error}", file=sys.stderr)
        return None
