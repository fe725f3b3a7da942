"""Large tensors take the pages of those before them, unless a person chose otherwise."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from songbloom import allocator
from tests.programs import ENVIRONMENT

PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from songbloom import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    allocator.keep_memory()
source = torch.ones(24 << 20)  # 96 MB, more than malloc keeps by itself
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = source + 1
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del made
kept = resident()
allocator.give_back()
given_back = kept - resident()
print(json.dumps({"faults": faults, "given_back": given_back, "right": bool((source + 1 == 2).all())}))
"""
SIZE = 96 << 20
SETTINGS = [*(f"MALLOC_{name}_" for name in allocator._SETTINGS), "GLIBC_TUNABLES", "SONGBLOOM_MALLOC"]
glibc_only = pytest.mark.skipif(allocator._glibc() is None, reason="malloc is not glibc's")


def ran(what: str, **more: str) -> dict[str, object]:
    """What the program says in a fresh Python, in an environment that sets nothing of malloc but ``more``."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in SETTINGS} | more
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    assert said["right"]
    return said


def faults(said: dict[str, object]) -> list[int]:
    found = said["faults"]
    assert isinstance(found, list)
    return found


@glibc_only
def test_large_tensors_take_the_pages_of_those_before_them() -> None:
    said = ran("keep")
    # A hole is some bytes too small for the next of the same size where something else came beside it. How often, and
    # how late, depends on where the heap begins, so on the environment: in sixty of them seven times at most.
    assert 0 < sum(faults(said)) < len(faults(said)) * max(faults(said)) / 3
    assert isinstance(said["given_back"], int) and said["given_back"] > SIZE // 2


@glibc_only
@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("import", {}),
        ("keep", {"SONGBLOOM_MALLOC": "0"}),
        ("keep", {"MALLOC_TRIM_THRESHOLD_": "1048576"}),
        ("keep", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}),
    ],
)
def test_malloc_is_as_it_was_without_a_program_and_where_a_person_chose(what: str, more: dict[str, str]) -> None:
    said = ran(what, **more)
    assert min(faults(said)) > 0.9 * max(faults(said))
    assert isinstance(said["given_back"], int) and said["given_back"] < SIZE // 2


def test_other_settings_of_malloc_are_no_choice() -> None:
    for environment in ({}, {"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}):
        assert not allocator.chosen_otherwise(environment)
    assert allocator.chosen_otherwise({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=4096"})


class OldLibrary:
    """A glibc that refuses large thresholds, as some did."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, name: int, value: int) -> int:
        self.asked.append((name, value))
        return int(not (name == -3 and value > 32 << 20))


def test_an_older_glibc_is_asked_to_do_without_blocks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OldLibrary()
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    monkeypatch.setattr(allocator, "_keeps", False)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert allocator.keep_memory() and allocator.keep_memory()
    assert library.asked == [(-1, -1), (-3, allocator.LARGEST), (-4, 0)]


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setattr(allocator, "_keeps", False)
    assert not allocator.keep_memory()
    allocator.give_back()
