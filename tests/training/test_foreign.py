"""Files that hold more than tensors are read without running anything of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from songbloom.training import foreign


class Opens:
    """Unpickled by Python, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_objects_are_left_unmade_and_tensors_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.arange(3)}, "more": Opens(tmp_path / "made")}, tmp_path / "x.ckpt")
    content = foreign.read(tmp_path / "x.ckpt")
    assert torch.equal(content["state_dict"]["a"], torch.arange(3))
    assert isinstance(content["more"], foreign.Unmade)
    assert not (tmp_path / "made").exists()


def test_an_archive_of_code_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "x.ckpt"))
    with pytest.raises(pickle.UnpicklingError, match="holds code"):
        foreign.read(tmp_path / "x.ckpt")
