"""``sample.py --lora`` for both families: what is drawn, what a run is known by, what is refused."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import sample as sample_program
from make_models import restore
from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lora.training import LoRA, LoRASettings
from songbloom.sampling.run import read_data
from tests.lora.models import jukebox, stir
from tests.sampling import songbloom_tiny, tiny


def sample_here(folder: Path, model: str, *arguments: str) -> None:
    words = ["sample.py", f"--model={model}", *arguments]
    with contextlib.chdir(folder), patch.object(sys, "argv", words):
        assert sample_program.main() == 0


def codes(folder: Path, level: int) -> torch.Tensor:
    return read_data(folder / f"level_{level}" / "data.pth.tar").codes[level]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the tiny models, and adapters for the top prior."""
    folder = tmp_path_factory.mktemp("lora")
    tiny.write_tiny(folder / "logs")
    for name, seed in (("first", 1), ("second", 2)):
        prior = jukebox("tiny_vqvae,tiny_prior")
        restore(prior, folder / "logs/tiny_prior/checkpoint_latest.pth.tar", "prior")
        lora = LoRA(prior, LoRASettings(rank=4, alpha=16.0, targets=("all-linear",)), about={"level": 1})
        stir(prior, seed)
        lora.export(folder / name, 1, numbered=False)
    return folder


SHORT = ("--sample_length_in_seconds=0.6", "--n_samples=2", "--levels_to_sample=1")


def test_what_is_drawn_with_adapters(workplace: Path) -> None:
    sample_here(workplace, "tiny", "--name=plain", *SHORT)
    sample_here(workplace, "tiny", "--name=with", *SHORT, "--lora=first")
    sample_here(workplace, "tiny", "--name=none", *SHORT, "--lora=first:0")
    sample_here(workplace, "tiny", "--name=both", *SHORT, "--lora=first:0.5,second/adapter")
    drawn = {name: codes(workplace / name, 1) for name in ("plain", "with", "none", "both")}
    assert torch.equal(drawn["plain"], drawn["none"])
    assert not torch.equal(drawn["plain"], drawn["with"])
    assert not torch.equal(drawn["with"], drawn["both"])


def test_a_run_is_known_by_its_adapters(workplace: Path) -> None:
    name = "--name=known"
    sample_here(workplace, "tiny", name, *SHORT, "--lora=first")
    sample_here(workplace, "tiny", name, *SHORT, "--lora=first/adapter:1.0")  # the same
    for other in ("--lora=second", "--lora=first:0.9", "--lora="):
        with pytest.raises(UserError, match="lora"):
            sample_here(workplace, "tiny", name, *SHORT, other)


def test_adapters_of_other_models_are_refused_before_anything_is_drawn(workplace: Path, tmp_path: Path) -> None:
    wide = LoRA(jukebox(prior_width=64), LoRASettings(rank=2, targets=("mlp.up",)), about={"level": 1})
    wide.export(tmp_path / "wide", 1, numbered=False)
    other = LoRA(jukebox(seed=9), LoRASettings(rank=2, targets=("mlp.up",)), about={"level": 1})
    other.export(tmp_path / "other", 1, numbered=False)
    song = LoRA(songbloom_tiny.tiny_prior(), LoRASettings(rank=2, targets=("v_proj",)))
    song.export(tmp_path / "song", 1, numbered=False)
    # of a level that is not written: adapters of this model's own would be passed over
    song0 = LoRA(songbloom_tiny.tiny_prior(), LoRASettings(rank=2, targets=("v_proj",)), about={"level": 0})
    song0.export(tmp_path / "song0", 1, numbered=False)
    for name, words in (
        (f"{tmp_path}/wide", "does not fit this model: prior.transformer._attn_mods.0.mlp.c_fc is"),
        (f"{tmp_path}/other", "was trained on other weights"),
        (f"{tmp_path}/song", "does not fit this model: has an adapter for ar_transformer"),
        (f"{tmp_path}/song0", "it was made for a SongBloom prior, and this is a Jukebox prior"),
        ("nothing", "nothing: no adapter is there"),
    ):
        with pytest.raises(UserError) as told:
            sample_here(workplace, "tiny", "--name=never", *SHORT, f"--lora={name}")
        assert words in str(told.value) and "\n" not in str(told.value)
    assert not codes_there(workplace / "never")


def codes_there(folder: Path) -> bool:
    return folder.exists() and any(folder.rglob("data.pth.tar"))


def test_an_adapter_of_a_level_that_is_not_written_is_passed_over(workplace: Path) -> None:
    sample_here(workplace, "tiny", "--name=top", *SHORT, "--lora=first")
    sample_here(workplace, "tiny", "--name=fine", "--mode=upsample", "--codes_file=top", "--lora=first")
    kept = read_data(workplace / "fine/level_0/data.pth.tar").codes[1]
    assert torch.equal(kept, codes(workplace / "top", 1))
    assert codes(workplace / "fine", 0).shape[1] > codes(workplace / "top", 1).shape[1]


def test_the_songbloom_family(tmp_path: Path) -> None:
    songbloom_tiny.write_tiny(tmp_path / "logs")
    prior = songbloom_tiny.tiny_prior()
    lora = LoRA(prior, LoRASettings(rank=4, alpha=16.0, targets=("q_proj", "v_proj", "o_proj", "down_proj", "to_qkv")))
    stir(prior)
    lora.export(tmp_path / "ad", 1, numbered=False)
    short = ("--sample_length_in_seconds=0.6", "--seed=3")
    sample_here(tmp_path, "tiny_songbloom", "--name=plain", *short)
    sample_here(tmp_path, "tiny_songbloom", "--name=with", *short, "--lora=ad")
    sample_here(tmp_path, "tiny_songbloom", "--name=none", *short, "--lora=ad:0")
    drawn = {name: read_data(tmp_path / name / "level_0" / "data.pth.tar").codes for name in ("plain", "with", "none")}
    assert all(torch.equal(a, b) for a, b in zip(drawn["plain"], drawn["none"], strict=True))
    assert not torch.equal(drawn["plain"][0], drawn["with"][0])
    with pytest.raises(UserError, match="lora"):
        sample_here(tmp_path, "tiny_songbloom", "--name=with", *short)
    assert files.read(tmp_path / "ad").about["base"]
