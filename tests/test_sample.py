"""``sample.py`` as people run it, with the model ``tiny`` and random weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import sample as sample_program
from songbloom.errors import UserError
from songbloom.published import fetch
from songbloom.sampling import request
from tests import programs
from tests.sampling.tiny import write_tiny

ROOT = Path(__file__).parent.parent
SECONDS = "--sample_length_in_seconds=.6"  # 600 codes over windows of 256, and 150 over windows of 128


def sample(folder: Path, *arguments: str, ranks: int = 1, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder``, in which ``logs`` holds the model."""
    return programs.run(folder, str(ROOT / "sample.py"), "--model=tiny", *arguments, ranks=ranks, fresh=fresh)


def sample_here(folder: Path, *arguments: str) -> None:
    """The same program inside this process, which saves the seconds that importing torch takes."""
    with contextlib.chdir(folder), patch.object(sys, "argv", ["sample.py", "--model=tiny", *arguments]):
        assert sample_program.main() == 0


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def codes(folder: Path, level: int = 0) -> list[torch.Tensor]:
    return torch.load(folder / f"level_{level}" / "data.pth.tar", weights_only=True)["zs"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model's checkpoints in ``logs`` and a run of three items in ``three``."""
    folder = tmp_path_factory.mktemp("sampling")
    write_tiny(folder / "logs")
    words = ["--name=three", SECONDS, "--n_samples=3", "--hop_fraction=.5,.25", "--sr=8000"]
    output = done(sample(folder, *words, fresh=True))
    assert "listen: three/index.html" in output
    assert "level 1: 450 codes in" in output
    return folder


def test_what_a_run_leaves(workplace: Path) -> None:
    three = workplace / "three"
    content = torch.load(three / "level_0" / "data.pth.tar", weights_only=True)
    assert sorted(content) == ["labels", "sampling_kwargs", "x", "zs"]
    assert [tuple(each.shape) for each in content["zs"]] == [(3, 600), (3, 150)]
    assert content["x"].shape == (3, 4800, 1)
    assert (content["x"][0] - content["x"][1]).abs().max() > 0.01
    assert not torch.equal(content["x"][0, :2400], content["x"][0, 2400:])
    assert [each["hop_fraction"] for each in content["sampling_kwargs"]] == [0.5, 0.25]
    assert content["sampling_kwargs"][0]["run"]["seed"] == 0
    top = codes(three, level=1)
    assert [each.shape[1] for each in top] == [0, 150]
    assert torch.equal(top[1], content["zs"][1])
    page = (three / "index.html").read_text()
    assert page.count("<audio") == 3
    assert "--hop_fraction=.5,.25" in page


def test_the_seed_gives_the_same_again_however_many_items_and_ranks(workplace: Path) -> None:
    three = workplace / "three"
    again = ["--hop_fraction=.5,.25", SECONDS]
    sample_here(workplace, "--name=one", "--n_samples=1", *again)
    output = done(sample(workplace, "--name=two_ranks", "--n_samples=3", "--max_batch_size=1", *again, ranks=2))
    assert output.count("listen:") == 1
    for item, other in [(0, "one"), (0, "two_ranks"), (1, "two_ranks"), (2, "two_ranks")]:
        for level in (0, 1):
            assert torch.equal(codes(three)[level][item], codes(workplace / other)[level][item])
            name = f"level_{level}/item_{item}.wav"
            assert (three / name).read_bytes() == (workplace / other / name).read_bytes()
    assert not (workplace / "two_ranks" / "level_0" / "item_3.wav").exists()


def test_more_ranks_than_items(workplace: Path) -> None:
    done(sample(workplace, "--name=spare_rank", SECONDS, "--hop_fraction=.5,.25", ranks=2))
    for level in (0, 1):
        assert torch.equal(codes(workplace / "spare_rank")[level], codes(workplace / "three")[level][:1])


def test_loading_a_prior_needs_no_other_rank(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks without items load none, so weights given as addresses must have been fetched by all ranks before."""
    shutil.copytree(workplace / "logs", tmp_path / "logs")
    monkeypatch.setenv("SONGBLOOM_CACHE", str(tmp_path))
    addresses = [
        f"{fetch.REMOTE_PREFIX}logs/{name}/checkpoint_latest.pth.tar" for name in ("tiny_upsampler", "tiny_prior")
    ]
    words = ["--model=tiny", "--name=never", SECONDS, f"--restore_prior={','.join(addresses)}"]
    with contextlib.chdir(workplace):
        job = sample_program.prepare(request.command_line(words, ["tiny"]))
        monkeypatch.setattr(fetch, "gather_objects", None)
        assert job.load_prior(1).level == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot share them")
def test_ranks_of_a_machine_share_the_weights_that_they_convert(workplace: Path) -> None:
    options = (SECONDS, "--n_samples=2", "--precision=bf16", "--hop_fraction=.5,.25", "--max_batch_size=1")
    done(sample(workplace, "--name=alone", "--cache_dir=own", *options))
    done(sample(workplace, "--name=together", "--cache_dir=shared", *options, ranks=2))
    assert not (workplace / "own" / "converted").exists()
    assert len(list((workplace / "shared" / "converted").glob("*.safetensors"))) == 2  # one a level
    for level in (0, 1):
        for own, shared in zip(*(codes(workplace / name, level) for name in ("alone", "together")), strict=True):
            assert torch.equal(own, shared)


def test_what_cannot_be_built_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A published model without id tables, which lie beside the weights or nowhere."""
    monkeypatch.setenv("SONGBLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "_download", None)
    with pytest.raises(
        UserError, match=r"put v2_artist_ids\.txt and v2_genre_ids\.txt into .*/5b, or give --label_tables"
    ):
        sample_program.prepare(request.command_line(["--model=5b", "--name=never"], ["5b"]))


def test_the_same_command_goes_on(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--name=again", SECONDS, "--seed=5"]
    sample_here(workplace, *command)
    written = (workplace / "again" / "level_0" / "item_0.wav").read_bytes()
    sound = workplace / "again" / "level_1" / "item_0.wav"
    before = sound.stat().st_mtime_ns
    (workplace / "again" / "level_0" / "data.pth.tar").unlink()
    sample_here(workplace, *command)
    assert "again: goes on below level 1" in capsys.readouterr().out
    assert sound.stat().st_mtime_ns == before
    assert (workplace / "again" / "level_0" / "item_0.wav").read_bytes() == written
    sample_here(workplace, *command)
    assert "again: is complete already" in capsys.readouterr().out


def test_another_command_is_refused_once_by_all_ranks(workplace: Path) -> None:
    refused = sample(workplace, "--name=three", SECONDS, "--n_samples=3", "--temp=.5", ranks=2)
    assert refused.returncode == 2
    assert refused.stderr.count("error:") == 1
    assert "level_0.temp is 0.99 there, 0.5 here" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_choosing_a_top_and_going_on_from_it(workplace: Path) -> None:
    hops = "--hop_fraction=.5,.25"
    sample_here(workplace, "--name=top", SECONDS, "--n_samples=3", hops, "--levels_to_sample=1")
    top = workplace / "top" / "level_1" / "data.pth.tar"
    sample_here(workplace, "--name=up", "--mode=upsample", f"--codes_file={top}", hops)
    for level in (0, 1):
        assert torch.equal(codes(workplace / "up")[level], codes(workplace / "three")[level])
    assert not (workplace / "up" / "level_1").exists()
    # The first item goes on: what there was stays.
    further = ["--n_samples=1", "--sample_length_in_seconds=1", "--levels_to_sample=1"]
    sample_here(workplace, "--name=longer", "--mode=continue", f"--codes_file={top}", *further)
    longer = codes(workplace / "longer", level=1)[1]
    assert longer.shape == (1, 250)
    assert torch.equal(longer[:, :150], codes(workplace / "top", level=1)[1][:1])


def test_beginning_from_sound(workplace: Path) -> None:
    sound = workplace / "three" / "level_0" / "item_1.wav"
    arguments = [f"--audio_file={sound}", "--prompt_length_in_seconds=.3", "--n_samples=2", SECONDS]
    sample_here(workplace, "--name=primed", "--mode=primed", *arguments)
    fine, top = codes(workplace / "primed")
    assert (fine.shape, top.shape) == ((2, 600), (2, 150))
    assert torch.equal(fine[0, :300], fine[1, :300])
    assert not torch.equal(top[0], top[1])


def test_a_name_with_markup_stays_text(workplace: Path) -> None:
    name = "<script>alert(1)<b>"
    sample_here(workplace, f"--name={name}", "--sample_length_in_seconds=.1")
    page = (workplace / name / "index.html").read_text()
    assert page.count("<script") == 2
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page


def test_a_missing_part_is_told_before_work(workplace: Path) -> None:
    with pytest.raises(UserError, match=r"^nowhere.pth.tar: no such file; it should hold the weights of tiny_prior$"):
        sample_here(workplace, "--name=never", SECONDS, "--restore_prior=,nowhere.pth.tar")
    with pytest.raises(UserError, match="names 1 file, but 'tiny' has 2 levels"):
        sample_here(workplace, "--name=never", "--restore_prior=logs/tiny_prior/checkpoint_latest.pth.tar")
    assert not (workplace / "never").exists()


def test_other_weights_make_another_run(workplace: Path) -> None:
    """A model that was trained on since then is not mixed into an earlier run."""
    logs = workplace / "logs2"
    write_tiny(logs, seed=8)
    with pytest.raises(UserError, match=r"weights\.tiny_prior is"):
        sample_here(
            workplace, "--name=three", SECONDS, "--n_samples=3", "--hop_fraction=.5,.25", f"--local_logdir={logs}"
        )


def test_help(workplace: Path) -> None:
    assert "--hop_fraction=None" in done(sample(workplace, "--help", fresh=True))


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def singer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model ``tiny_lyrics`` and a run of its top level, two items from a file of prompts."""
    folder = tmp_path_factory.mktemp("words")
    write_tiny(folder / "logs", model="tiny_lyrics")
    rows = [{"artist": "Mei", "genre": "folk", "lyrics": "la la la"}, {"lyrics": "lu lu", "artist": "Nobody"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    top = ["--prompts_jsonl=prompts.jsonl", "--levels_to_sample=1", SECONDS]
    with contextlib.chdir(folder), patch.object(sys, "argv", ["sample.py", "--model=tiny_lyrics", "--name=top", *top]):
        assert sample_program.main() == 0
    return folder


def sing(folder: Path, *arguments: str) -> None:
    sample_here(folder, "--model=tiny_lyrics", *arguments)


def test_items_are_told_what_their_prompts_say(singer: Path) -> None:
    content = torch.load(singer / "top" / "level_1" / "data.pth.tar", weights_only=True)
    none, told = content["labels"]
    assert none is None and told["y"].shape == (2, 37) and told["y"][:, 0].tolist() == [240 * 8000] * 2
    assert told["y"][:, 3:5].tolist() == [[2, 1], [0, 0]]
    assert [info["lyrics"] for info in told["info"]] == ["la la la", "lu lu"]
    assert content["zs"][1].shape == (2, 150)


def test_an_item_hears_its_own_words_only(singer: Path) -> None:
    words = ["--levels_to_sample=1", SECONDS]
    sing(singer, "--name=alone", "--artist=Mei", "--genre=folk", "--lyrics=la la la", *words)
    sing(
        singer, "--name=other", "--artist=Mei", "--genre=folk", "--lyrics=ZYXWVUTSRQPONMLKJIHGFEDCBA9876543210", *words
    )
    first = codes(singer / "top", level=1)[1][:1]
    assert torch.equal(codes(singer / "alone", level=1)[1], first)
    assert not torch.equal(codes(singer / "other", level=1)[1], first)


def test_words_stay_with_the_codes(singer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"--codes_file={singer}/top/level_1/data.pth.tar"
    sing(singer, "--name=fine", "--mode=upsample", source)
    _, told = torch.load(singer / "fine" / "level_0" / "data.pth.tar", weights_only=True)["labels"]
    assert [info["lyrics"] for info in told["info"]] == ["la la la", "lu lu"]
    longer = ["--mode=continue", "--levels_to_sample=1", "--sample_length_in_seconds=.7"]
    sing(singer, "--name=longer", source, *longer)
    _, told = torch.load(singer / "longer" / "level_1" / "data.pth.tar", weights_only=True)["labels"]
    assert [info["artist"] for info in told["info"]] == ["Mei", "Nobody"]
    capsys.readouterr()
    with pytest.raises(UserError, match="words is"):
        sing(singer, "--name=longer", source, *longer, "--lyrics=something else")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--artist=Mei", "--lyrics="], "--lyrics is empty"),
        (["--total_sample_length_in_seconds=300"], "knows songs of 0.6 s up to, not including, 300 s"),
        (["--prompts_jsonl=nowhere"], "--prompts_jsonl: nowhere cannot be read"),
    ],
)
def test_words_that_are_refused(singer: Path, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        sing(singer, "--name=never", SECONDS, *words)
    assert not (singer / "never").exists()


def test_a_model_without_labels_takes_no_words(workplace: Path) -> None:
    with pytest.raises(UserError, match="model 'tiny' knows no artists, genres or lyrics"):
        sample_here(workplace, "--name=never", SECONDS, "--artist=Mei")
