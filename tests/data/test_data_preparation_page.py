"""The pages about preparing data name options that there are, in both languages alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from songbloom.data import check, combine, split_jsonl
from songbloom.data.fields import ALIASES, FIELDS
from songbloom.data.prepare import dummy, folder, jacappella, kiritan, lines, pjs

DOCS = Path(__file__).parents[2] / "docs"
MODULES = (check, combine, split_jsonl, dummy, folder, jacappella, kiritan, lines, pjs)


def options() -> set[str]:
    return {name for module in MODULES for name in module._parser()._option_string_actions if name.startswith("--")}


@pytest.mark.parametrize("name", ["data_preparation.md", "data_preparation_ja.md"])
def test_options_and_fields_of_the_page(name: str):
    page = (DOCS / name).read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z][a-z_]+", page))
    assert len(named) > 20
    assert named - options() == set()
    row = page.split("    {", 1)[1].split("\n\n", 1)[0]
    fields = set(re.findall(r'"([a-z_]+)":', row)) - {"start", "end", "text", "tag"}
    assert fields <= {*FIELDS, *ALIASES}
    assert {"--help", *named} <= options()


def test_both_pages_name_the_same_options():
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("data_preparation.md", "data_preparation_ja.md")]
    named = [set(re.findall(r"--[a-z][a-z_]+|`[a-z_.]+`", page)) for page in pages]
    assert named[0] ^ named[1] <= {"`license`"}
