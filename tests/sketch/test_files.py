"""Precomputed sketches: what is read, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from songbloom.errors import UserError
from songbloom.sketch.files import checked_sketch, read_sketch, write_sketch

CODES = [3, 0, 15, 7]


def _save(path: Path, content: Any) -> Path:
    if path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    else:
        np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pt", torch.tensor(CODES)),
        ("a.pt", torch.tensor(CODES, dtype=torch.int16)),
        ("a.pt", torch.tensor([CODES])),
        ("a.pt", {"sketch": torch.tensor(CODES, dtype=torch.int32), "other": 1}),
        ("a.pt", {"sketch": CODES}),
        ("a.npy", np.array(CODES)),
        ("a.npy", np.array(CODES, np.uint16)),
        ("a.npy", np.array(CODES, ">i4")),
        ("a.npz", {"sketch": np.array(CODES), "x": np.zeros(3)}),
        ("a.npz", {"codes": np.array(CODES)}),
    ],
)
def test_read(tmp_path: Path, name: str, content: Any) -> None:
    found = read_sketch(_save(tmp_path / name, content), 16)
    assert found.dtype == torch.int64 and found.tolist() == CODES


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pt", torch.tensor([1.0, 2.0]), "torch.float32 instead of whole numbers"),
        ("a.pt", torch.tensor([True]), "torch.bool instead"),
        ("a.pt", torch.zeros(2, 3, dtype=torch.int64), r"shape \[2, 3\]"),
        ("a.pt", torch.tensor(3), r"shape \[\]"),
        ("a.pt", torch.zeros(0, dtype=torch.int64), "holds no codes"),
        ("a.pt", {"codes": torch.tensor(CODES)}, r"without 'sketch' \(keys: codes\)"),
        ("a.pt", "text", "holds a str instead of codes"),
        ("a.pt", {"sketch": [1, 2.5]}, "2.5 is no sketch code"),
        ("a.pt", torch.tensor([1, 2, 16, 17]), r"code 16 at frame 2 \(0.08 s\) is not one of 0 to 15"),
        ("a.pt", torch.tensor([-1]), "code -1 at frame 0"),
        ("a.npy", np.array([0.5]), "float64 instead of whole numbers"),
        ("a.npy", np.array([{}], object), "damaged, or no sketch"),
        ("a.npz", {"a": np.array(CODES), "b": np.array(CODES)}, r"which of its arrays is the sketch \(a, b\)"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: Any, told: str) -> None:
    path = _save(tmp_path / name, content)
    with pytest.raises(UserError, match=told) as error:
        read_sketch(path, 16)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such sketch file"):
        read_sketch(tmp_path / "a.npy", 16)
    with pytest.raises(UserError, match=r"read from \.pt, \.npy, \.npz"):
        read_sketch(tmp_path / "a.txt", 16)
    for name in ("a.pt", "a.npy", "a.npz"):
        (tmp_path / name).write_bytes(b"nonsense" * 9)
        with pytest.raises(UserError, match=r"damaged|not safe"):
            read_sketch(tmp_path / name, 16)
        whole = tmp_path / f"whole{Path(name).suffix}"
        write_sketch(whole, torch.arange(16))
        (tmp_path / name).write_bytes(whole.read_bytes()[:-40])
        with pytest.raises(UserError, match="damaged"):
            read_sketch(tmp_path / name, 16)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match="no such sketch file"):
        read_sketch(tmp_path / "folder.pt", 16)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"sketch": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not safe to read"):
        read_sketch(tmp_path / "a.pt", 16)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".npz"])
def test_written_is_read(tmp_path: Path, suffix: str) -> None:
    write_sketch(tmp_path / f"a{suffix}", torch.tensor(CODES))
    assert read_sketch(tmp_path / f"a{suffix}", 16).tolist() == CODES
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    with pytest.raises(UserError, match="end its name"):
        write_sketch(tmp_path / "a.json", torch.tensor(CODES))


def test_codes_in_a_list() -> None:
    assert checked_sketch(CODES, 16, "line 3").tolist() == CODES
    for wrong, told in (
        ([1, True], "True is no"),
        (["1"], "'1' is no"),
        ([2**70], "instead of whole"),
        ([], "no codes"),
    ):
        with pytest.raises(UserError, match=f"line 3: .*{told}"):
            checked_sketch(wrong, 16, "line 3")
