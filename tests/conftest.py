"""How all tests run: one thread a process, the same examples every time, and the tests of a file on one worker.

Sizes are small here: more threads would only wait for each other, for minutes where the machine is busy.
"""

from __future__ import annotations

import os
from typing import Any

# Before anything loads torch; the programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of programs would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import HealthCheck, settings

# Drawing examples is slow where the machine is busy, which is no fault of theirs.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", derandomize=True, deadline=None, database=None, suppress_health_check=SLOW)
settings.load_profile("same")

# Folders whose files share what takes long to make; elsewhere a file shares nothing with others.
TOGETHER = ("tests/data/prepare", "tests/evaluation")


def group_of(nodeid: str) -> str:
    """What a test goes with: its file, or its folder."""
    path = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if path.startswith(f"{folder}/")), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, so that no worker is left alone with one at the end."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(group_of(item.nodeid), []).append(item)

    def slow(group: str) -> int:
        return sum(item.get_closest_marker("slow") is not None for item in groups[group])

    items[:] = [item for group in sorted(groups, key=slow, reverse=True) for item in groups[group]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup`` a group goes to one worker, which makes what its tests share once, not every worker.

    Marks of pytest-xdist 3.8 make no groups under pytest 9.2, which keeps the names of tests elsewhere.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # the order above, not most tests first
    return Groups(config, log)
