"""What a run goes on from: files of any make, kept items, and seeds."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from make_models import MODELS
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.sampling import request
from songbloom.sampling.origin import Origin, data_file, items_of, open_origin, seeds_of
from songbloom.sampling.sampler import item_seeds
from songbloom.vqvae.vqvae import VQVAE
from tests.sampling.tiny import tiny_models


def options(line: str) -> Hyperparams:
    return request.command_line(shlex.split("--model=tiny --name=out " + line), MODELS)


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return tiny_models()[0]


def content(items: int = 3, **run: Any) -> dict[str, Any]:
    """What a ``data.pth.tar`` holds; the codes of item i are i."""
    codes = torch.arange(items)[:, None]
    return {
        "zs": [codes.repeat(1, 40), codes.repeat(1, 10)],
        "labels": [None, None],
        "sampling_kwargs": [{"temp": 0.9, "run": run}, {}] if run else [{}, {}],
        "x": torch.zeros(items, 320, 1),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that wrote both levels."""
    for level in (0, 1):
        (tmp_path / "run" / f"level_{level}").mkdir(parents=True)
        there = content(seed=4, n_samples=3)
        if level:
            there["zs"][0] = there["zs"][0][:, :0]
        torch.save(there, tmp_path / "run" / f"level_{level}" / "data.pth.tar")
    return tmp_path / "run"


def opened(vqvae: VQVAE, line: str, finest: int = 0) -> Origin:
    origin = open_origin(options(line), vqvae, finest)
    assert origin is not None
    return origin


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_run_does_not_remove_what_it_goes_on_from(folder: Path, vqvae: VQVAE) -> None:
    line = f"--mode=continue --codes_file={folder} --sample_length_in_seconds=1 --overwrite"
    assert opened(vqvae, line).items == [0, 1, 2]
    again = options(line)
    again.name = os.path.relpath(folder)
    for asks in (lambda: open_origin(again, vqvae, 0), lambda: items_of(again, 0)):
        with pytest.raises(UserError, match=r"--overwrite would remove .*choose another --name"):
            asks()
    again.overwrite = False
    assert open_origin(again, vqvae, 0) is not None


def test_items_are_counted_without_a_codec(folder: Path) -> None:
    there = f"--mode=continue --codes_file={folder} --sample_length_in_seconds=1"
    counts = {"": 1, "--n_samples=5": 5, there: 3, f"{there} --pick=0,2 --branch=4": 8, f"{there} --n_samples=7": 7}
    counts |= {"--mode=primed --audio_file=a.wav,b.wav": 2, "--mode=primed --audio_file=a.wav --n_samples=3": 3}
    assert {line: items_of(options(line), 0) for line in counts} == counts


def test_a_folder_stands_for_its_file(folder: Path, tmp_path: Path) -> None:
    coarse, fine = (folder / f"level_{level}" / "data.pth.tar" for level in (1, 0))
    assert data_file(folder) == fine
    assert data_file(folder / "level_1") == coarse
    assert data_file(coarse) == coarse
    assert data_file(folder, above=0) == coarse  # to write level 0 again
    assert data_file(folder, above=1) == fine
    with pytest.raises(UserError, match=r"--codes_file=.*missing: no such file or folder; give the folder of a run"):
        data_file(tmp_path / "missing")
    with pytest.raises(UserError, match="is no folder of a run that has written a level"):
        data_file(tmp_path)


def test_upsampling_a_finished_run_begins_from_its_top(folder: Path, vqvae: VQVAE) -> None:
    origin = opened(vqvae, f"--mode=upsample --codes_file={folder}")
    assert [each.shape[1] for each in origin.codes] == [0, 10]
    assert origin.folder == folder
    assert opened(vqvae, f"--mode=continue --codes_file={folder}").codes[0].shape[1] == 40
    assert opened(vqvae, f"--mode=continue --codes_file={folder / 'level_1'}").folder == folder


def of_jukebox(path: Path, *, old: bool = False, items: int = 2) -> None:
    """As Jukebox saves its runs (behaviour described in the specification of its sampling): labels are batches of label
    vectors with what they mean, or for a level without labels vectors of width 0 with empty words."""
    told = {"artist": "unknown", "genre": "rock", "lyrics": "la la", "full_tokens": [12, 1, 12, 1]}
    none = {"artist": "n/a", "genre": "n/a", "lyrics": [], "full_tokens": []}
    y = torch.tensor([[8000 * 60, 0, 8192, 0, 3, -1, 12, 1]] * items)
    keywords = {"temp": 0.99, "fp16": True, "chunk_size": 32, "max_batch_size": 16}
    there = {
        "zs": [torch.zeros(items, 0, dtype=torch.int64), torch.arange(items)[:, None].repeat(1, 10)],
        "labels": [
            {"y": torch.zeros(items, 0, dtype=torch.int64), "info": [none] * items},
            {"y": y, "info": [told] * items},
        ],
        "sampling_kwargs": [keywords, {**keywords, "sample_tokens": 5}],
        "x": torch.zeros(items, 320, 1, dtype=torch.float16),
    }
    torch.save(there, path, _use_new_zipfile_serialization=not old)


@pytest.mark.parametrize("old", [False, True])
def test_files_of_jukebox(tmp_path: Path, vqvae: VQVAE, old: bool) -> None:
    of_jukebox(tmp_path / "data.pth.tar", old=old)
    origin = opened(vqvae, f"--mode=continue --codes_file={tmp_path / 'data.pth.tar'} --pick=1")
    assert torch.equal(origin.codes[1], torch.full((1, 10), 1))
    assert origin.seeds_before() == item_seeds(0, range(2))[1:]
    labels = origin.labels
    assert labels[1]["info"][0]["lyrics"] == "la la" and labels[1]["y"].shape == (1, 8)
    assert labels[0]["y"].shape == (1, 0)
    assert origin.folder == tmp_path


def test_tensors_of_a_gpu_are_read_without_one(tmp_path: Path, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.pth.tar"
    for old in (False, True):
        with monkeypatch.context() as saving:
            saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
            of_jukebox(path, old=old)
        assert b"cuda:0" in path.read_bytes()
        origin = opened(vqvae, f"--mode=continue --codes_file={path}")
        assert all(each.device.type == "cpu" for each in origin.codes)
        assert torch.equal(origin.codes[1][1], torch.full((10,), 1))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["labels", "sampling_kwargs", "zs"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, vqvae: VQVAE, place: str, old: bool) -> None:
    path = tmp_path / "data.pth.tar"
    there = {**content(), place: [Bomb(tmp_path / "boom"), None]}
    torch.save(there, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"data\.pth\.tar: not a checkpoint that can be read safely") as caught:
        opened(vqvae, f"--mode=continue --codes_file={path}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "boom").exists()


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path, vqvae: VQVAE) -> None:
    path = tmp_path / "data.pth.tar"
    with pytest.raises(UserError, match="no such"):
        opened(vqvae, f"--mode=continue --codes_file={path}")
    torch.save(content(), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="damaged or cut short") as caught:
        opened(vqvae, f"--mode=continue --codes_file={path}")
    assert "\n" not in str(caught.value)


# --- items ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "items", "branches"),
    [
        ("", [0, 1, 2], [0, 0, 0]),
        ("--n_samples=5", [0, 1, 2, 0, 1], [0, 0, 0, 1, 1]),
        ("--pick=2,0", [2, 0], [0, 0]),
        ("--pick=1 --branch=4", [1, 1, 1, 1], [0, 1, 2, 3]),
        ("--branch=2", [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]),
        ("--pick=0,2 --branch=2 --n_samples=4", [0, 0, 2, 2], [0, 1, 0, 1]),
    ],
)
def test_picking_and_branching(folder: Path, vqvae: VQVAE, line: str, items: list[int], branches: list[int]) -> None:
    origin = opened(vqvae, f"--mode=continue --codes_file={folder} {line}")
    assert (origin.items, origin.branches) == (items, branches)
    assert origin.codes[1][:, 0].tolist() == items


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--pick=3", r"--pick=3: .*data\.pth\.tar has items 0 to 2"),
        ("--pick=0,1,0", "--pick names item 0 twice: give --branch=2"),
        ("--pick=0 --branch=2 --n_samples=3", "--n_samples=3, but --pick and --branch make 2: leave --n_samples out"),
    ],
)
def test_choices_that_cannot_be(folder: Path, vqvae: VQVAE, line: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        opened(vqvae, f"--mode=continue --codes_file={folder} {line}")
    assert "\n" not in str(caught.value)


# --- seeds ----------------------------------------------------------------------------------------------------------


def seeds(vqvae: VQVAE, line: str) -> list[int]:
    asked = options(line)
    origin = open_origin(asked, vqvae, 0)
    return seeds_of(asked, len(origin.items) if origin else asked.n_samples or 1, origin)


def test_seeds_of_a_beginning(vqvae: VQVAE) -> None:
    assert seeds(vqvae, "--seed=3 --n_samples=2") == item_seeds(3, range(2))
    assert seeds(vqvae, "--seeds=1,5,9") == [1, 5, 9]
    largest = 2**63 - 1
    assert seeds(vqvae, f"--seeds={largest}") == [largest]


def test_upsampling_keeps_the_seeds_of_its_items(folder: Path, vqvae: VQVAE) -> None:
    """So item 2 becomes what it would have been in one go."""
    line = f"--mode=upsample --codes_file={folder} "
    before = item_seeds(4, range(3))
    assert seeds(vqvae, line) == before
    assert seeds(vqvae, line + "--pick=2") == before[2:]
    assert seeds(vqvae, line + "--pick=2 --seed=9") == item_seeds(9, [2])
    four = seeds(vqvae, line + "--pick=2 --branch=4")
    assert four[0] == before[2] and len(set(four)) == 4


def test_going_on_has_new_seeds(folder: Path, vqvae: VQVAE) -> None:
    line = f"--mode=continue --codes_file={folder} "
    four = seeds(vqvae, line + "--pick=2 --branch=4")
    assert len({*four, *item_seeds(4, range(3)), *item_seeds(0, range(3))}) == 4 + 6
    assert seeds(vqvae, line + "--pick=2 --branch=2") == four[:2]
    assert seeds(vqvae, line + "--branch=2")[4:] == four[:2]
    assert not set(seeds(vqvae, line + "--pick=2 --branch=4 --seed=1")) & set(four)
    assert seeds(vqvae, line + "--pick=2 --branch=2 --seeds=7,8") == [7, 8]


def test_seeds_that_were_given_are_known_again(tmp_path: Path, vqvae: VQVAE) -> None:
    torch.save(content(seed=0, seeds=[7, 8, 9], n_samples=3), tmp_path / "data.pth.tar")
    assert seeds(vqvae, f"--mode=upsample --codes_file={tmp_path / 'data.pth.tar'} --pick=1") == [8]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--seeds=1,5 --n_samples=3", "--seeds has 2 seeds, but 3 items are asked for: give one an item"),
        ("--seeds=5 --n_samples=3", "--seeds has 1 seed, but 3 items"),
        ("--seeds=1,5 --seed=3", "--seed and --seeds are both given"),
        ("--seeds=-1", "a seed is a whole number from 0 to 9223372036854775807, not -1"),
        (f"--seeds={2**63}", "a seed is a whole number"),
    ],
)
def test_seeds_that_are_refused(vqvae: VQVAE, line: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        seeds(vqvae, line)


def test_seeds_of_rows() -> None:
    usual = item_seeds(0, range(3))
    assert seeds_of(options(""), 3, None, [None, 5, None]) == [usual[0], 5, usual[2]]
    with pytest.raises(UserError, match="--seeds and seeds in --prompts_jsonl are both given"):
        seeds_of(options("--seeds=1,2,3"), 3, None, [None, 5, None])
    assert seeds_of(options("--seeds=1,2,3"), 3, None, [None, None, None]) == [1, 2, 3]
