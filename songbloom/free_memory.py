"""How much memory this process can have: of a device, of the machine, of the container that it runs in."""

from __future__ import annotations

from pathlib import Path

import torch

from songbloom.distributed import world


def free_bytes(device: torch.device) -> int | None:
    """Memory of ``device`` that this process can have; None where the system does not tell.

    Ranks that share a machine, or a GPU, share what is free there.
    """
    sharers = world().local_size
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        # What torch keeps for itself but does not use now is free as well.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + spare) // -(-sharers // torch.cuda.device_count())
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            return None
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) // sharers
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return min([free, *control_group_rooms()]) // sharers


def control_group_rooms(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each limit leaves which a container or a batch system has set on this process; none elsewhere.

    Linux alone has them (cgroups(7), both versions). Pages of files that nobody uses count as free.

    Args:
        groups: where the system shows its control groups.
        mine: the file that names those of this process, each limited by the ones that it lies in as well.
    """
    rooms = []
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            top, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            top, names = groups, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top) and (room := _room_in(folder, *names)) is not None:
                rooms.append(room)
    return rooms


def _room_in(folder: Path, limit: str, used: str, unused: str) -> int | None:
    """What the limit of one control group leaves; None where it has none."""
    try:
        most = int((folder / limit).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - int((folder / used).read_text()) + int(counts.get(unused, 0)))
    except (OSError, ValueError):  # "max" is no number
        return None
