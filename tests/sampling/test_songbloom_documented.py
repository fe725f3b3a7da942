"""The commands in ``docs/songbloom.md``, in their order, with the smallest model and lengths that are an eighth."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import soundfile
import torch

import sample as sample_program
from tests.sampling.songbloom_tiny import RATE, stereo, write_tiny

DOCUMENT = Path(__file__).parents[2] / "docs" / "songbloom.md"
_TIME = re.compile(r"(--(?:cut_at|\w+_in_seconds)=)([\d.]+)")


def documented() -> list[list[str]]:
    """The arguments of every ``python sample.py`` in the text."""
    blocks = re.findall(r"(?m)^    .*(?:\n    .*)*", DOCUMENT.read_text(encoding="utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.partition("python sample.py ")[2] for line in lines if "python sample.py " in line]
    shorter = [_TIME.sub(lambda match: f"{match[1]}{float(match[2]) / 8:g}", line) for line in found]
    return [shlex.split(line.replace("demo_songbloom", "tiny_songbloom")) for line in shorter]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the document was run."""
    folder = tmp_path_factory.mktemp("documented")
    write_tiny(folder / "logs")
    soundfile.write(folder / "style.wav", stereo(1.0), RATE)
    soundfile.write(folder / "song.wav", stereo(1.0, 1), RATE)
    row = {"idx": "one", "lyrics": "[verse] la la", "prompt_wav": "style.wav"}
    (folder / "songs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    commands = documented()
    assert len(commands) == 5
    for arguments in commands:
        with contextlib.chdir(folder), patch.object(sys, "argv", ["sample.py", "--device=cpu", *arguments]):
            assert sample_program.main() == 0
    return folder / "samples"


def codes(run: Path) -> list[torch.Tensor]:
    found: list[torch.Tensor] = torch.load(run / "level_0" / "data.pth.tar", weights_only=True)["zs"]
    return found


def test_the_commands_do_what_the_page_says(workplace: Path) -> None:
    first, grown, fine = (codes(workplace / name) for name in ("bloom", "bloom-2", "bloom-fine"))
    assert first[1].shape == (4, 24) and grown[1].shape[0] == 4
    assert torch.equal(grown[1][:, :16], first[1][2, :16].expand(4, -1))
    assert torch.equal(fine[1][0], first[1][2]) and not torch.equal(fine[0][0], first[0][2])
    assert codes(workplace / "after")[1].shape[1] == 24
    assert (workplace / "list" / "one_s1.flac").is_file()


def test_pages_offer_what_goes_on(workplace: Path) -> None:
    record = json.loads((workplace / "bloom-fine" / "run.json").read_text())
    assert "--steps=60" in record["going_on"]["continue"] and "--cfg_coef=1.5,2.0" in record["going_on"]["continue"]
    assert "bloom-2" in (workplace / "bloom" / "tree.js").read_text()
