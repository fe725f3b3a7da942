"""``.safetensors`` files, ours and those that other programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from songbloom.errors import UserError
from songbloom.lora.files import write_safetensors
from songbloom.published.safetensors import read_safetensors


def write(path: Path, table: dict[str, Any], content: bytes) -> Path:
    """A file whose table is not padded, so that numbers may begin anywhere."""
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).to(dtype), "empty": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize("padding", range(8))
def test_numbers_may_begin_anywhere(tmp_path: Path, padding: int) -> None:
    numbers = torch.tensor([1.5, -2.0])
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    content = numbers.numpy().tobytes()
    path = write(tmp_path / "x.safetensors", {"__metadata__": {"pad": "x" * padding}, "a": entry}, content)
    assert torch.equal(read_safetensors(path)["a"], numbers)


def test_tensors_are_pages_of_the_file_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(4), "b": torch.zeros(4)}, {})
    before = path.read_bytes()
    found = read_safetensors(path)
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    found["a"].fill_(7.0)
    assert path.read_bytes() == before and torch.equal(read_safetensors(path)["a"], torch.ones(4))


@pytest.mark.parametrize(
    ("entry", "size", "words"),
    [
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, 8, "another size"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, 7, "cut short"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, 8, "another size"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, 8, "F4"),
        ({"dtype": "F32", "shape": [2]}, 8, "data_offsets"),
    ],
)
def test_files_that_are_not_whole_are_told(tmp_path: Path, entry: dict[str, Any], size: int, words: str) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry}, bytes(size))
    with pytest.raises(UserError, match=f"not a safetensors file.*{words}"):
        read_safetensors(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_safetensors(tmp_path / "gone.safetensors")
    for content in (b"", b"\x20\0\0\0\0\0\0\0{}", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file"):
            read_safetensors(tmp_path / "x.safetensors")
