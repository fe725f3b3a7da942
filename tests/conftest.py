"""How all tests run: one thread a process, the same examples every time, and the tests of a file on one worker.

Sizes are small here: more threads would only wait for each other, for minutes where the machine is busy.
"""

from __future__ import annotations

import os

# Before anything loads torch; the programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of programs would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

# Folders whose files share what takes long to make; elsewhere a file shares nothing with others.
TOGETHER = ("tests/data/prepare", "tests/evaluation")


def pytest_configure(config: pytest.Config) -> None:
    """Workers take groups in the order of :func:`pytest_collection_modifyitems`, not those of most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` a file's tests go to one worker, which makes what they share once; slow files first."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        path = item.nodeid.partition("::")[0]
        group = next((folder for folder in TOGETHER if path.startswith(f"{folder}/")), path)
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)

    def slow(group: str) -> int:
        return sum(item.get_closest_marker("slow") is not None for item in groups[group])

    items[:] = [item for group in sorted(groups, key=slow, reverse=True) for item in groups[group]]
