"""The commands in ``docs/sampling.md``, in their order, with the smallest model and lengths that are a twentieth."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch

import sample as sample_program
from songbloom.errors import UserError
from songbloom.sampling.sampler import item_seeds
from tests.sampling.tiny import write_tiny

DOCUMENT = Path(__file__).parents[2] / "docs" / "sampling.md"
SCALE = 0.05
_TIME = re.compile(r"(--(?:cut_at|\w+_in_seconds)=)([\d.]+)")


def documented() -> list[list[str]]:
    """The arguments of every ``python sample.py`` in the text."""
    blocks = re.findall(r"(?m)^    .*(?:\n    .*)*", DOCUMENT.read_text(encoding="utf-8"))
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.partition("python sample.py ")[2] for line in text.splitlines() if "python sample.py " in line]
    shorter = [_TIME.sub(lambda match: f"{match[1]}{float(match[2]) * SCALE:g}", line) for line in lines]
    return [shlex.split(line.replace("--model=demo_ja ", "--model=tiny ").replace("=16", "=4")) for line in shorter]


def sample(folder: Path, *arguments: str) -> None:
    with contextlib.chdir(folder), patch.object(sys, "argv", ["sample.py", *arguments]):
        assert sample_program.main() == 0


def codes(run: Path, level: int) -> list[torch.Tensor]:
    return torch.load(run / f"level_{level}" / "data.pth.tar", weights_only=True)["zs"]


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the document was run."""
    folder = tmp_path_factory.mktemp("documented")
    write_tiny(folder / "logs")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8000)).astype(np.float32)
    for name, sound in zip(("a.wav", "b.wav"), noise, strict=True):
        soundfile.write(folder / name, sound, 8000)
    commands = documented()
    assert len(commands) >= 9
    for arguments in commands:
        sample(folder, *arguments)
    return folder / "samples"


def test_a_draft_and_its_finer_level_are_the_run_in_one_go(workplace: Path) -> None:
    whole = codes(workplace / "all", 0)
    assert torch.equal(codes(workplace / "first", 1)[1], whole[1])
    fine = codes(workplace / "first-fine", 0)
    assert torch.equal(fine[0], whole[0][3:]) and torch.equal(fine[1], whole[1][3:])


def test_items_are_kept_cut_and_branched(workplace: Path) -> None:
    first, grown = codes(workplace / "first", 1)[1], codes(workplace / "grown", 1)[1]
    kept = int(5.5 * SCALE * 8000) // 32
    assert grown.shape == (8, int(12 * SCALE * 8000) // 32)
    for item in range(8):
        assert torch.equal(grown[item, :kept], first[[0, 3][item // 4], :kept])
    assert len({tuple(each.tolist()) for each in grown}) == 8
    longer, fine = codes(workplace / "longer", 1)[1], codes(workplace / "longer-fine", 0)
    assert torch.equal(longer[:, : grown.shape[1]], grown[[6, 6]])
    assert torch.equal(fine[1], longer[1:]) and fine[0].shape == (1, 4 * longer.shape[1])


def test_runs_record_what_they_go_on_from(workplace: Path) -> None:
    parent = record(workplace / "grown")["parent"]
    assert (parent["folder"], parent["title"], parent["mode"]) == ("../first", "first", "continue")
    assert parent["kept_seconds"] == int(5.5 * SCALE * 8000) // 32 * 32 / 8000
    assert [each["item"] for each in parent["items"]] == [0] * 4 + [3] * 4
    seeds = [each["seed"] for each in parent["items"]]
    assert seeds == record(workplace / "grown")["settings"]["seeds"] and len(set(seeds)) == 8
    assert (
        record(workplace / "longer-fine")["parent"]["items"][0]["seed"]
        == record(workplace / "longer")["settings"]["seeds"][1]
    )
    assert record(workplace / "first")["parent"] is None
    page = (workplace / "grown" / "index.html").read_text()
    assert all(str(seed) in page for seed in seeds)


def test_pages_show_how_the_song_grew(workplace: Path) -> None:
    text = (workplace / "first" / "tree.js").read_text()
    nodes = json.loads(text.removeprefix("window.songbloomTree = ").removesuffix(";\n"))
    above = {node["title"]: nodes[node["parent"]]["title"] if node["parent"] >= 0 else None for node in nodes}
    assert above == {
        **{"first": None, "first-fine": "first", "grown": "first", "longer": "grown", "longer-fine": "longer"}
    }
    for node in nodes:
        assert (workplace / "first" / node["page"]).is_file()
        assert all((workplace / "first" / item["sound"]).is_file() for item in node["items"])


def test_seeds_make_the_item(workplace: Path) -> None:
    assert record(workplace / "settings")["settings"]["seeds"] == [1, 5, 9]
    seed = item_seeds(0, [2])[0]  # as its page states it
    short = f"--sample_length_in_seconds={8 * SCALE}"
    sample(workplace.parent, "--model=tiny", "--name=alone", short, f"--seeds={seed}", "--levels_to_sample=1")
    assert torch.equal(codes(workplace.parent / "alone", 1)[1], codes(workplace / "first", 1)[1][2:3])


def test_the_batch_that_was_chosen_is_kept(workplace: Path) -> None:
    assert record(workplace / "first")["chosen"] == {"max_batch_size": {"1": 4}}
    assert record(workplace / "settings")["chosen"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--pick=4", r"--pick=4: .*samples/first/level_1/data\.pth\.tar has items 0 to 3"),
        ("--cut_at=12.5", r"--cut_at=12\.5: .* ends at 0\.40 s"),
        ("--pick=0 --branch=3 --seeds=1,2", "--seeds has 2 seeds, but 3 items"),
        ("--pick=0 --branch=0", "branch must be at least 1"),
        ("--codes_file=samples", "is no folder of a run that has written a level"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(workplace: Path, arguments: str, words: str) -> None:
    line = ["--model=tiny", "--name=never", "--mode=continue", "--codes_file=samples/first", *arguments.split()]
    with pytest.raises(UserError, match=words) as caught:
        sample(workplace.parent, *line)
    assert "\n" not in str(caught.value)
    assert not (workplace.parent / "never").exists()
