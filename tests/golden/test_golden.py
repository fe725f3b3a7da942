"""Every golden file beside this one passes, and the check itself can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.golden.check import check_file
from tests.golden.report import Golden

FILES = sorted(Path(__file__).parent.glob("*.pt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file(path: Path) -> None:
    torch.manual_seed(0)
    golden = check_file(path)
    assert not golden.failures(), "\n".join([golden.table(), *golden.failures()])


def test_a_wrong_number_fails() -> None:
    golden = Golden("x", {"a": torch.tensor([1.0, 2.0])})
    golden.expect("a", got=torch.tensor([1.0, 2.1]), abs=1e-3)
    assert any(line.startswith("a: worst difference 0.1") for line in golden.failures())


def test_a_nan_fails() -> None:
    golden = Golden("x", {"a": torch.tensor([1.0])})
    golden.expect("a", got=torch.tensor([float("nan")]), abs=1e-3)
    assert golden.failures()


def test_an_unknown_quantity_fails() -> None:
    golden = Golden("x", {"a": 1, "b": {"c": torch.zeros(3)}})
    golden.expect("a", got=1)
    assert golden.failures() == ["quantities that no check knows: b.c"]


def test_a_wrong_shape_or_key_fails() -> None:
    golden = Golden("x", {"a": torch.zeros(3), "b": {"c": 1}})
    golden.expect("a", got=torch.zeros(4), abs=1)
    golden.expect("b", got={"d": 1})
    assert len(golden.failures()) == 2


def test_the_command_names_an_unknown_file(tmp_path: Path) -> None:
    path = tmp_path / "nobody_knows.pt"
    torch.save({}, path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden", str(path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2
    assert "no check knows this kind" in done.stderr


def test_the_command_names_a_missing_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden", "nofile"], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nofile: no such file\n")
