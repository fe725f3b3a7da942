"""A lyrics prior that has learnt one sung song shows when its words are sung (the commands of docs/alignment.md)."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- tested: a song -->\n((?:    .*\n)+)")


def commands(page: str) -> list[list[str]]:
    """The words of each command of the block."""
    found = BLOCK.search((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert found
    return [shlex.split(line) for line in found[1].replace("\\\n", " ").splitlines()]


def test_both_languages_give_the_same_commands() -> None:
    assert commands("alignment.md") == commands("alignment_ja.md")


@pytest.mark.slow
def test_a_head_is_within_a_quarter_second_of_nine_phonemes_in_ten(tmp_path: Path) -> None:
    for program, *rest in commands("alignment.md"):
        assert program == "python"
        if rest[0].endswith(".py"):
            rest[0] = str(ROOT / rest[0])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *rest], cwd=tmp_path, env=environment, check=True, timeout=1800)
    choice = json.loads((tmp_path / "logs/align_prior/checkpoint_latest.alignment.json").read_text())
    assert (choice["layer"], choice["head"]) == (3, 0)
    assert choice["found"]["judged"] > 60 and choice["found"]["right"] >= 0.9
