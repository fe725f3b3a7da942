"""What memory is free: of the system, and of containers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from songbloom import free_memory


def test_free_memory_is_told() -> None:
    free = free_memory.free_bytes(torch.device("cpu"))
    if Path("/proc/meminfo").is_file():
        assert free is not None and 1 << 20 < free < 1 << 50
    if not torch.cuda.is_available():
        assert free_memory.free_bytes(torch.device("cuda")) is None


def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, unused: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {unused}\nfile 9\n")


def test_limits_of_containers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, mine = tmp_path / "groups", tmp_path / "cgroup"
    assert free_memory.control_group_rooms(groups, mine) == []
    second, first = ("memory.max", "memory.current", "inactive_file"), ("memory.limit_in_bytes",)
    first = (*first, "memory.usage_in_bytes", "total_inactive_file")
    group(groups / "jobs/mine", second, "max", 10, 0)
    group(groups / "jobs", second, 1000, 400, 100)
    mine.write_text("0::/jobs/mine\n")
    assert free_memory.control_group_rooms(groups, mine) == [700]
    group(groups / "jobs/mine", second, 300, 500, 100)
    assert free_memory.control_group_rooms(groups, mine) == [0, 700]
    group(groups / "memory/box", first, 900, 500, 50)
    mine.write_text("4:cpu,cpuacct:/box\n3:memory:/box\n")
    assert free_memory.control_group_rooms(groups, mine) == [450]
    mine.write_text("0::/gone\n")  # inside a container, whose own group is the first that it sees
    group(groups, second, 2000, 500, 0)
    assert free_memory.control_group_rooms(groups, mine) == [1500]
    monkeypatch.setattr(free_memory, "control_group_rooms", lambda: [12345])
    assert free_memory.free_bytes(torch.device("cpu")) in (12345, None)
