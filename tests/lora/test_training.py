"""Adapters trained through the real command: resumed, small, the base untouched, on any number of ranks."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from hparams import training_command
from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.training import checkpoint
from tests import programs
from tests.training.runs import SMALLER, differences, latest, write_songs

ROOT = Path(__file__).parents[2]
SMALL = [*(f"--{key}={value}" for key, value in SMALLER.items()), "--sample_iters=0", "--lr_warmup=1", "--log_steps=4"]
DATA = ["--audio_files_dir=songs", "--labels=False"]


def run(folder: Path, *words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return programs.run(folder, str(ROOT / "train.py"), *SMALL, *DATA, *words, ranks=ranks)


def trained(folder: Path, *words: str, ranks: int = 1) -> str:
    done = run(folder, *words, "--train", ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs, a codec and a prior."""
    folder = tmp_path_factory.mktemp("base")
    write_songs(folder / "songs")
    trained(folder, "--hps=tiny_vqvae", "--name=codec", "--train_steps=2")
    words = ["--hps=tiny_vqvae,tiny_prior", "--prior", f"--restore_vqvae=logs/codec/{checkpoint.LATEST}"]
    trained(folder, *words, "--name=prior", "--train_steps=2")
    return folder


def adapters(folder: Path) -> list[str]:
    return [
        "--hps=tiny_vqvae,tiny_prior",
        *("--use-lora", "--lora-rank", "4", "--lora-alpha=8", "--lora-dropout=0.1"),
        f"--restore_vqvae={folder}/logs/codec/{checkpoint.LATEST}",
        f"--restore_prior={folder}/logs/prior/{checkpoint.LATEST}",
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_adapters_alone_are_trained_and_kept_and_a_stop_changes_nothing(base: Path) -> None:
    prior = base / "logs/prior" / checkpoint.LATEST
    before = digest(prior)
    told = trained(base, *adapters(base), "--name=whole", "--train_steps=6", "--save_iters=3")
    assert "lora: 6 adapters of rank 4, 960 of" in told
    trained(base, *adapters(base), "--name=parts", "--train_steps=2")
    trained(base, *adapters(base), "--name=parts", "--train_steps=6", "--save_iters=3")
    assert digest(prior) == before

    whole, parts = latest(base / "logs", "whole"), latest(base / "logs", "parts")
    assert differences(whole, parts, "") == []
    assert whole["kind"] == "lora" and whole["ema"] is None
    assert all(name.rpartition(".")[2] in "AB" and ".lora." in name for name in whole["model"])
    assert sum(tensor.numel() for tensor in whole["model"].values()) == 960
    assert any(tensor.any() for name, tensor in whole["model"].items() if name.endswith(".B"))
    size = (base / "logs/whole" / checkpoint.LATEST).stat().st_size
    assert size < prior.stat().st_size / 4

    ours = [files.read(base / "logs" / name) for name in ("whole", "parts")]
    assert ours[0].digest == ours[1].digest != files.read(base / "logs/whole/adapter_step_3").digest
    assert ours[0].about["step"] == 6 and ours[0].about["level"] == 1
    assert (base / "logs/whole/adapter/adapter_model.safetensors").stat().st_size < 10_000


@pytest.mark.slow
def test_two_ranks_train_what_one_does(base: Path) -> None:
    words = [*adapters(base), "--train_steps=3", "--lora-dropout=0"]
    trained(base, *words, "--name=one", "--bs=2")
    trained(base, *words, "--name=two", "--bs=1", ranks=2)
    one, two = latest(base / "logs", "one")["model"], latest(base / "logs", "two")["model"]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_averages_half_precision_and_training_on_from_a_file(base: Path) -> None:
    halves = ["--hps=tiny_vqvae,tiny_prior,all_fp16", *adapters(base)[1:], "--c_res=2", "--ema", "--mu=0.5"]
    trained(base, *halves, "--name=half", "--train_steps=3")
    saved = latest(base / "logs", "half")
    assert set(saved["ema"]) == set(saved["model"])
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}
    adapter = files.read(base / "logs/half")
    entry = adapter.entries["prior.transformer._attn_mods.0.attn.c_attn"]
    name = "autoregressive.transformer.layers.0.attention.query_key_value.lora.query"
    assert torch.equal(entry.A[:4], saved["ema"][f"{name}.A"])  # files hold the averages
    told = trained(base, *adapters(base), "--name=on", "--train_steps=1", "--restore_lora=logs/half", "--lr=0")
    assert "lora: begins from logs/half/adapter" in told
    assert files.read(base / "logs/on").entries.keys() == adapter.entries.keys()
    again = files.read(base / "logs/on").entries["prior.transformer._attn_mods.0.attn.c_attn"]
    torch.testing.assert_close(again.A, entry.A)
    torch.testing.assert_close(again.B, entry.B)


@pytest.mark.slow
def test_train_all_trains_the_rest_too(base: Path) -> None:
    trained(base, *adapters(base), "--name=all", "--train_steps=2", "--lora-train-all")
    saved = latest(base / "logs", "all")["model"]
    start = latest(base / "logs", "prior")["ema"]
    moved = [name for name in start if name in saved and not torch.equal(saved[name], start[name])]
    assert "autoregressive.embedding.weight" in moved
    frozen = [f"autoregressive.transformer.layers.{layer}.attention.query_key_value.weight" for layer in range(3)]
    assert set(start) - set(saved) == {*frozen, *(name.replace(".weight", ".bias") for name in frozen)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lora-target-modules=qproj"], "'qproj' matches no linear layer of this model (did you mean 'q_proj'?)"),
        (["--lora-rank=9"], "--lora_rank=9 is larger than"),
        (["--restore_prior="], "--lora needs the weights that are adapted"),
        (["--vq"], "--lora adapts a prior"),
        (["--restore_lora=nothing"], "nothing: no adapter is there"),
    ],
)
def test_mistakes(base: Path, words: list[str], told: str) -> None:
    with contextlib.chdir(base), pytest.raises(UserError) as mistake:
        train.build(training_command([*SMALL, *DATA, *adapters(base), "--name=wrong", "--train", *words]).hps)
    assert told in str(mistake.value) and "\n" not in str(mistake.value)
    assert not (base / "logs/wrong").exists()


@pytest.mark.slow
def test_going_on_with_another_base_or_other_adapters_is_refused(base: Path) -> None:
    trained(base, *adapters(base), "--name=kept", "--train_steps=1")
    more = ["--hps=tiny_vqvae,tiny_prior", "--prior", f"--restore_vqvae=logs/codec/{checkpoint.LATEST}"]
    trained(base, *more, "--name=other", "--train_steps=1", "--seed=5")
    other = [*adapters(base)[:-1], f"--restore_prior=logs/other/{checkpoint.LATEST}"]
    for words, told in (
        (other, "belong to other weights"),
        ([*adapters(base), "--lora-rank=2"], "lora_rank is 4 in the checkpoint, 2 asked for"),
        (more, "is the checkpoint of adapters"),
    ):
        done = run(base, *words, "--name=kept", "--train", "--train_steps=2")
        assert done.returncode == 2 and told in done.stderr + done.stdout, done.stderr + done.stdout


def test_the_fields_that_decide_a_run_are_kept(base: Path) -> None:
    if not (base / "logs/kept").is_dir():
        trained(base, *adapters(base), "--name=kept", "--train_steps=1")
    hps: dict[str, Any] = latest(base / "logs", "kept")["hps"]
    assert (hps["lora"], hps["prior"], hps["lora_rank"], hps["ema"]) == (True, True, 4, False)
    assert len(hps["lora_base"]) == 16
