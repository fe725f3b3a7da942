"""Warm processes are processes: with a folder, an environment, streams, a status and an end of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all start afresh")

PROGRAM = """
import os, signal, sys
import beside
if __name__ == "__main__":
    print(os.getpid(), os.getcwd(), os.environ["ONLY"], "HOME" in os.environ, sys.argv[1:], beside.NAME)
    print("to people", file=sys.stderr)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "waits":
        signal.pause()
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("NAME = 'beside the program'\n")
    (tmp_path / "elsewhere").mkdir()
    return str(tmp_path / "program.py")


def start(program: str, *words: str, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    return warm.run([program, *words], Path(program).parent / "elsewhere", {"ONLY": "this"}, timeout)


def test_a_program_is_itself(program: str) -> None:
    folder, pids = Path(program).parent / "elsewhere", {os.getpid()}
    for status in (0, 3):
        done = start(program, str(status), "a word")
        pid, _, said = done.stdout.partition(" ")
        pids.add(int(pid))
        assert said == f"{folder} this False {[str(status), 'a word']} beside the program\n"
        assert (done.returncode, done.stderr) == (status, "to people\n")
    assert len(pids) == 3


def test_a_module_is_found_where_it_is_started(program: str) -> None:
    folder = Path(program).parent
    done = warm.run(["-m", "program", "5"], folder, {"ONLY": "this"}, 600)
    assert (done.returncode, done.stderr) == (5, "to people\n") and f"{folder} this" in done.stdout


def test_chance_is_its_own(tmp_path: Path) -> None:
    """What is drawn without a seed differs, as it does in programs that start afresh."""
    (tmp_path / "draw.py").write_text(
        "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())\n"
    )
    first, second = (warm.run([str(tmp_path / "draw.py")], tmp_path, {}, 600).stdout.split() for _ in range(2))
    assert len(first) == 3 and all(a != b for a, b in zip(first, second, strict=True))


def test_a_killed_program_and_an_error_are_told(program: str) -> None:
    assert start(program, "killed").returncode == -9
    done = start(program, "no number")
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1 and "ValueError" in done.stderr


def test_one_that_takes_too_long_is_ended(program: str) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        start(program, "waits", timeout=1.0)
    assert start(program, "0").returncode == 0
