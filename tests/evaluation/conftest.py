"""A few sung lines, rendered once."""

from __future__ import annotations

from pathlib import Path

import pytest

from songbloom.evaluation import practice


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``songs.jsonl`` of four practice lines that Mei sings."""
    return practice.render(tmp_path_factory.mktemp("practice"), 4, 90210, ["mei"])
