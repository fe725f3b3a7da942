"""One thread for small sizes: more would only wait for each other, for minutes where the machine is busy.

A package's conftest.py imports the fixture, which then holds for all tests of the package.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
