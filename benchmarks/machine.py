"""What the machine under a benchmark is, and how fast it could go: its matrix products and its memory."""

from __future__ import annotations

import songbloom  # isort: skip  # first of all: what it sets must be there when torch is loaded
import atexit
import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.transformer import halves
from songbloom.transformer.native import loader


def facts() -> dict[str, Any]:
    """Machine and versions, as of now; ``load_average`` tells whether somebody else was using it."""
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {
            "songbloom": songbloom.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def run(measure: Callable[[Sequence[str]], dict[str, Any]]) -> int:
    """A benchmark's program: print what ``measure(arguments)`` finds as JSON; returns the exit status."""
    try:
        print(json.dumps(measure(sys.argv[1:]), indent=2, ensure_ascii=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def cpu_model() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seconds(function: Callable[[], object], repeats: int, warmup: int = 1) -> list[float]:
    """How long each of ``repeats`` calls took, after ``warmup`` calls that don't count."""
    for _ in range(warmup):
        function()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """Median and best; a wide gap between them means a disturbed run."""
    return {"seconds_median": round(statistics.median(taken), 6), "seconds_best": round(min(taken), 6)}


def gemm_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """The best rate of a square matrix product of torch's, in operations a second."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(seconds(lambda: F.linear(a, b), repeats))


def halves_rate(size: int = 2048, repeats: int = 5) -> float | None:
    """The same of what bfloat16 is multiplied by where the processor has AVX512-FP16; None elsewhere."""
    if not halves.available():
        return None
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    return 2 * size**3 / min(seconds(lambda: halves.multiply(a, b.t(), dtype=torch.bfloat16), repeats))


def instruction_rates(turns: int = 10_000_000, repeats: int = 5) -> dict[str, float]:
    """What all threads' multiplications reach that need nothing from memory, in operations a second: the limit.

    Returns:
        ``floats`` and ``halves``, where the processor has AVX-512 instructions of that kind and there is a compiler.
    """
    library = compiled("multiplying")
    if library is None:
        return {}
    library.operations.restype = ctypes.c_double
    threads, found = torch.get_num_threads(), {}
    for half, name in enumerate(("floats", "halves")):
        arguments = (half, ctypes.c_int64(turns), threads)
        if operations := library.operations(*arguments):
            found[name] = operations / min(seconds(lambda given=arguments: library.multiply_all(*given), repeats))
    return found


@cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The library of a source that lies beside this file, built for this machine; None without a compiler."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = [*loader.FLAGS, "-ffast-math", *loader.thread_flags(), *loader.machine_flags()]
    source, library = Path(__file__).with_name(f"{name}.cpp"), Path(folder) / f"{name}.so"
    command = [os.environ.get("CXX", "c++"), *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        subprocess.run(command, check=True, capture_output=True)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def reader() -> tuple[str, Callable[[torch.Tensor], object]]:
    """What reads a buffer of float32 from end to end fastest here, and its name.

    That is ``reading.cpp`` where there is a compiler: several streams a thread, twice as fast as torch's sum on a
    machine that was measured.
    """
    library = compiled("reading")
    if library is None:
        return "torch.sum", torch.Tensor.sum
    read_all = library.read_all
    read_all.restype, read_all.argtypes = ctypes.c_float, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    return "reading.cpp", lambda buffer: read_all(buffer.data_ptr(), buffer.numel(), torch.get_num_threads())


def read_rate(megabytes: int = 256, repeats: int = 7) -> float:
    """The best rate of reading memory once from end to end, in bytes a second."""
    buffer, read = torch.ones(megabytes << 18), reader()[1]
    return buffer.nbytes / min(seconds(lambda: read(buffer), repeats))
