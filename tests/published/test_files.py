"""What is known of published files, against the names and shapes of the release; the table in the documentation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import published
from hparams import HPARAMS_REGISTRY
from songbloom.published.fetch import REMOTE_PREFIX
from songbloom.published.jukebox.files import FILES, PublishedFile, smallest_size

ROOT = Path(__file__).parents[2]
SIZES = {"float32": 4, "float16": 2}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_sizes(file: PublishedFile) -> None:
    manifest = json.loads((ROOT / "tests" / "manifest" / f"jukebox_{file.name}.json").read_text())
    twice = {pair[1] for pair in manifest["tied"]}
    stored = [each for name, each in manifest["keys"].items() if name not in twice]
    assert file.bytes == sum(math.prod(each["shape"]) * SIZES[each["dtype"]] for each in stored)
    assert file.parameters == manifest["param_count"]
    assert smallest_size(file.path) == file.bytes
    addresses = {HPARAMS_REGISTRY[file.name].get(key) for key in ("restore_vqvae", "restore_prior")}
    assert f"{REMOTE_PREFIX}{file.path}" in addresses


def test_the_table_is_what_the_command_prints() -> None:
    text = (ROOT / "docs" / "published.md").read_text()
    assert "\n".join(published.rows()) in text
