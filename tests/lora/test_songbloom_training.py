"""Adapters of a SongBloom prior through the program: words that its base has not, a stop, drawing with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import make_models
import train
from hparams import setup_hparams, training_command
from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lyrics.phoneme_vocabulary import named
from songbloom.training import checkpoint
from songbloom.training.loop import Trainer
from tests.songs import write_codec, write_corpus
from tests.training.runs import differences, latest

RUN = ["--hps=tiny_songbloom", "--train", "--data-jsonl=songs.jsonl", "--log_steps=2", "--sample_iters=0"]
BASE = f"--restore_prior=logs/base/{checkpoint.LATEST}"
LORA = [*RUN, "--lora", "--lora-rank=4", BASE, "--lyrics_vocab=songbloom_ja", "--lora_train_rows=auto"]


def built(*words: str) -> Trainer:
    made = train.build(training_command(list(words)).hps)
    assert made is not None
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Songs, a codec and a base prior that knows the published symbols; it is the working directory."""
    write_corpus(tmp_path, licence="CC BY 4.0")
    write_codec(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert built(*RUN, "--prior", "--name=base", "--train_steps=1", "--lyrics_vocab=songbloom").run() == 0
    return tmp_path


def test_new_symbols_and_adapters_are_all_that_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "logs/base" / checkpoint.LATEST).read_bytes()
    assert built(*LORA, "--name=whole", "--train_steps=4").run() == 0
    assert built(*LORA, "--name=parts", "--train_steps=2").run() == 0
    assert built(*LORA, "--name=parts", "--train_steps=4", "--save_iters=20000").run() == 0
    assert (folder / "logs/base" / checkpoint.LATEST).read_bytes() == before
    whole, parts = latest(folder / "logs", "whole"), latest(folder / "logs", "parts")
    assert differences(whole, parts) == []

    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols
    names = {name for name in whole["model"] if ".lora." not in name}
    assert names == {"lyrics.tokens.rows.ids", "lyrics.tokens.rows.values"}
    assert whole["model"]["lyrics.tokens.rows.ids"].tolist() == list(range(len(known), len(wanted)))
    adapter = files.read(folder / "logs/whole")
    assert adapter.about["licences"] == whole["hps"]["licences"] == ["CC BY 4.0"]
    assert "licences of what is learned from: CC BY 4.0 (4 songs)" in capsys.readouterr().out
    assert tuple(adapter.about["vocabulary"]) == wanted and adapter.about["known_rows"] == len(known)
    assert all(key.endswith((".q_proj", ".v_proj")) for key in adapter.entries)
    assert any(entry.B.any() for entry in adapter.entries.values())
    ids, values = adapter.rows["condition_provider.conditioners.lyrics.output_proj"]
    assert torch.equal(values, whole["model"]["lyrics.tokens.rows.values"]) and len(ids) == len(values)


def test_weights_must_be_named(folder: Path) -> None:
    with pytest.raises(UserError, match="--lora needs the weights that are adapted"):
        built(*RUN, "--lora", "--lora-rank=4", "--name=never", "--restore_prior=")


def test_a_base_of_this_codebook_is_not_told_to_have_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = torch.load(folder / "logs/base" / checkpoint.LATEST, weights_only=True)
    base["model"]["classifier.output.bias"][0] = 50.0  # it expects one code everywhere
    base["ema"] = None
    torch.save(base, folder / "logs/base" / checkpoint.LATEST)
    built(*LORA, "--name=heart", "--train_steps=1")
    told = capsys.readouterr().out
    assert "does not expect these songs" in told and "mean nothing" not in told


def test_a_base_of_another_vae_is_refused(folder: Path) -> None:
    hps = setup_hparams("tiny_songbloom_vae", {"seed": 5})
    make_models.save(make_models.make_vae(hps), folder / "logs/tiny_songbloom_vae" / checkpoint.LATEST, "vae", hps)
    with pytest.raises(UserError, match="was trained on the latents of another VAE"):
        built(*LORA, "--name=other", "--train_steps=1")
