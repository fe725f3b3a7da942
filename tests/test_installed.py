"""A Python without the packages is told so in one line, whichever program it was to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from songbloom import installed
from tests.programs import ENVIRONMENT, ROOT


def bare(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that has nothing but its standard library, as one outside the environment."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "words", [*([name, "--help"] for name in installed.PROGRAMS), ["-m", "songbloom.data.check", "x"]]
)
def test_one_line_says_what_to_do(words: list[str]) -> None:
    done = bare(ROOT, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "lacks torch, numpy" in done.stderr, done.stderr
    assert ". .venv/bin/activate" in done.stderr


def test_an_old_python_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as ended:
        installed.require()
    assert ended.value.code == 2 and "is Python 3.9, and 3.11 is the oldest" in capsys.readouterr().err


def test_a_library_ends_nobodys_program(tmp_path: Path) -> None:
    """Somebody's own script hears of it in the ordinary way."""
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport songbloom\nprint('here')\n"
    )
    done = bare(tmp_path, "mine.py")
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
