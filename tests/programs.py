"""Running the project's programs, and programs written by tests, as processes of their own, with ranks if need be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests import warm

ROOT = Path(__file__).parent.parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ALL_FRESH = sys.platform != "linux" or "SONGBLOOM_TESTS_FRESH" in os.environ


def command(*words: str, ranks: int = 1) -> list[str]:
    """``python words…``, on several ranks under mpiexec."""
    return [*([str(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []), sys.executable, *words]


def run(
    folder: Path, *words: str, ranks: int = 1, timeout: float = 600, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``python words…`` in ``folder``; its status is for the caller to look at.

    A single process is a warm one (:mod:`tests.warm`), unless it is to be ``fresh``.
    """
    if ranks == 1 and not (fresh or ALL_FRESH):
        return warm.run(words, folder, ENVIRONMENT, timeout)
    return subprocess.run(
        command(*words, ranks=ranks),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def results_of_ranks(program: str, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What the ranks of a program save, each to ``{folder}/{ranks}_{rank}.pt``; the folder is its argument."""
    path = folder / "program.py"
    path.write_text(program)
    done = run(folder, str(path), str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{ranks}_{rank}.pt", weights_only=True) for rank in range(ranks)]
