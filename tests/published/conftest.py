"""What the tests of published files share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from songbloom.published import fetch
from tests.published.server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server in the place of the publisher's, and an empty cache folder."""
    with Server() as running:
        monkeypatch.setenv(fetch.MIRROR, running.address)
        monkeypatch.setenv(fetch.CACHE, str(tmp_path / "cache"))
        monkeypatch.setattr(fetch, "PAUSE", 0.0)
        monkeypatch.setattr(fetch, "_checked", {})
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
