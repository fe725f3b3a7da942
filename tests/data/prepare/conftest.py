"""A small corpus rendered once by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SMALL = ["--songs", "3", "--seconds", "6", "--seed", "7", "--voices", "mei"]


def command(*arguments: object) -> list[str]:
    """The command line of the renderer."""
    return [sys.executable, "-m", "songbloom.data.prepare.sung_corpus", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, with the checkout importable and one thread a process."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the renderer to its end."""
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three songs of about six seconds, sung by Mei."""
    folder = tmp_path_factory.mktemp("sung") / "corpus"
    done = run_command("--output_dir", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder
