"""The cache of latents and sketches: what is found, what is made anew, what a kill leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from songbloom.data.cache import Cache, ContentDigests, Entry
from songbloom.errors import UserError

ENTRY = Entry("latents", "a" * 40, "weights", (0, 100), {"sample_rate": 8000})


def never() -> Tensor:
    raise AssertionError("it was there")


def test_what_was_made_is_found_and_counted(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = torch.arange(6.0).view(3, 2)
    assert torch.equal(cache.get(ENTRY, lambda: made), made)
    assert torch.equal(Cache(tmp_path).get(ENTRY, never), made)
    codes = Entry("sketch", "a" * 40, "book")
    assert cache.get(codes, lambda: torch.tensor([3, 1])).dtype == torch.int64
    assert cache.get(codes, never).tolist() == [3, 1]
    assert (cache.counts.hits, cache.counts.made) == (1, 2)
    number, size = cache.size()
    told = f"1 of 3 were there (33 %); 2 entries, {size / 1000:.1f} kB in {tmp_path}"
    assert number == 2 and size > 0 and told in cache.report()


CHANGES = [{"kind": "prompt"}, {"audio": "b" * 40}, {"weights": "others"}, {"segment": (1, 100)}]


@pytest.mark.parametrize("change", [*CHANGES, {"settings": {"sample_rate": 1}}])
def test_anything_else_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    cache = Cache(tmp_path)
    cache.get(ENTRY, lambda: torch.zeros(1))
    other = Entry(**{**{name: getattr(ENTRY, name) for name in Entry.__dataclass_fields__}, **change})  # type: ignore[arg-type]
    assert cache.read(other) is None and other.name() != ENTRY.name()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    cache = Cache(tmp_path)
    cache.get(ENTRY, lambda: torch.zeros(500))
    path = cache.path(ENTRY)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # inside the numbers
    path.write_bytes(bytes(content) if damage is None else damage)
    assert float(cache.get(ENTRY, lambda: torch.ones(500)).sum()) == 500
    assert float(Cache(tmp_path).get(ENTRY, never).sum()) == 500


def test_rebuilding_makes_each_entry_once(tmp_path: Path) -> None:
    Cache(tmp_path).get(ENTRY, lambda: torch.zeros(1))
    cache = Cache(tmp_path, rebuild=True)
    assert float(cache.get(ENTRY, lambda: torch.ones(1))) == 1
    assert float(cache.get(ENTRY, never)) == 1


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    digests = ContentDigests()
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"song")
    other.write_bytes(b"song")
    before = digests.of(one)
    assert before == digests.of(other)
    one.write_bytes(b"gong")
    os.utime(one, ns=(0, 1))
    assert digests.of(one) != before
    with pytest.raises(UserError, match="nothing: cannot be read"):
        digests.of(tmp_path / "nothing")


def test_a_kill_while_writing_leaves_no_entry(tmp_path: Path) -> None:
    program = f"""
import os, signal
import numpy as np
from songbloom.data.cache import Cache, Entry
import torch
def half(file, **arrays):
    file.write(b"PK half of it"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
np.savez = half
Cache({str(tmp_path)!r}).get(Entry("latents", "a", "w"), lambda: torch.zeros(4))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=600)
    assert done.returncode == -9
    cache = Cache(tmp_path)
    assert cache.size()[0] == 0 and len(cache.get(Entry("latents", "a", "w"), lambda: torch.zeros(4))) == 4
