"""Folders and repositories laid out as the published SongBloom models are, through the real ``sample.py``."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

import make_models
import sample as sample_program
from hparams import training_command
from songbloom.errors import UserError
from songbloom.lora.files import write_safetensors
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.published.songbloom import files
from songbloom.published.songbloom import prior as published_prior
from songbloom.published.songbloom import vae as published_vae
from songbloom.sampling.run import read_data
from tests.sampling.songbloom_tiny import RATE, stereo, tiny_prior, tiny_vae

# As the released file is written, with the tiny model's sizes; 20 positions for lyrics, where the set has 24.
SETTINGS = """
max_dur: 2
sr: 8000
train_dataset: {lyric_processor: phoneme, prompt_len: 10, folder: "${eval:'1'}"}
model:
  block_size: 4
  latent_dim: 4
  dim: 32
  num_heads: 1
  lm_layers: 2
  diff_layers: 1
  num_pitch: 16
  hidden_scale: 2
  time_cond_type: prepend
  timestep_features_dim: 8
  diffusion_objective: rectified_flow
  rotary_base_val: 20000
  condition_provider_cfg:
    prompt_wav: {type: audio_tokenizer_wrapper, output_dim: "${model.dim}", max_len: 6}
    lyrics:
      type: phoneme_tokenizer
      output_dim: ${model.dim}
      vocab_list: ${load_yaml:${dynamic_path:???/vocab_g2p.yaml}}
      max_len: 20
      max_sentence_per_structure: 4
      mode: sum
  fuser_cfg: {sum: [], cross: [], prepend: [lyrics, prompt_wav], input_interpolate: []}
inference: {cfg_coef: 1.5, temp: 0.9, diff_temp: 0.95, top_k: 10, penalty_repeat: true, penalty_window: 50, steps: 3}
"""
USUAL = (
    "--model=tiny_songbloom",
    "--device=cpu",
    "--prompt_wav=style.wav",
    "--lyrics=[verse] hello world , [chorus] la",
)


def write_beside(folder: Path, name: str) -> Path:
    """A folder with settings and vocabulary for weights called ``name``."""
    folder.mkdir(parents=True)
    (folder / f"{name}.yaml").write_text(SETTINGS, encoding="utf-8")
    (folder / files.VOCABULARY).write_text(json.dumps(list(vocabulary("songbloom_ja").symbols)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in every layout that there is."""
    folder = tmp_path_factory.mktemp("published")
    state, codec = published_prior.to_published(tiny_prior().state_dict()), tiny_vae().state_dict()
    whole = {**state, **published_vae.to_published(codec, prefix=published_vae.BUNDLED)}
    torch.save(whole, write_beside(folder / "whole", "song") / "song.pt")
    torch.save(state, write_beside(folder / "apart", "song") / "song.pt")
    torch.save({"state_dict": published_vae.to_published(codec)}, folder / "apart" / files.CODEC)
    write_safetensors(write_beside(folder / "fork", "song") / "song.safetensors", whole, {})
    torch.save(whole, write_beside(folder / "cache" / "somebody" / "songs" / "sub", "song") / "sub.pt")
    (folder / "cache/somebody/songs/sub/song.yaml").rename(folder / "cache/somebody/songs/sub/sub.yaml")
    soundfile.write(folder / "style.wav", stereo(1.0), RATE)
    return folder


def sample(name: str, *arguments: str) -> list[torch.Tensor]:
    """Run the program here; the codes of its run."""
    sys.argv = ["sample.py", *USUAL, f"--name={name}", *arguments]
    assert sample_program.main() == 0
    return list(read_data(Path(name) / "level_0" / "data.pth.tar").codes)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_every_layout_gives_the_same_songs(here: Path) -> None:
    latents, sketch = sample("whole_song", "--restore_prior=whole/song.pt")
    assert sketch.shape == (1, 300), "max_dur and ten seconds more, as the settings beside the weights have it"
    told = json.loads((here / "whole_song/run.json").read_text())["settings"]["level_0"]
    assert (told["steps"], told["top_k"]) == (3, 10)
    named = ("whole", "apart/song.pt", "apart", "fork/song.safetensors", "fork", "hf://somebody/songs/sub/sub.pt")
    for number, weights in enumerate(named):
        cache = (f"--cache_dir={here / 'cache'}",) if weights.startswith("hf") else ()
        short = sample(f"song_{number}", f"--restore_prior={weights}", "--sample_length_in_seconds=.48", *cache)
        assert torch.equal(short[1], sketch[:, :12]), weights
        torch.testing.assert_close(short[0], latents[:, :12], atol=1e-4, rtol=1e-4)


def test_sizes_come_with_the_weights(here: Path) -> None:
    for weights in ("whole", "fork"):
        _, prior = make_models.make_songbloom("tiny_songbloom", checkpoints={"tiny_songbloom": weights})
        assert prior.config.lyric_tokens == 20


def test_training_begins_with_what_is_in_a_folder(here: Path) -> None:
    words = ["--hps=tiny_songbloom", "--name=x", "--prior", "--train", "--data_jsonl=x.jsonl", "--restore_prior=whole"]
    hps = training_command([*words, "--restore_vae="]).hps
    make_models.complete_songbloom(hps)
    assert hps.restore_prior == hps.restore_vae == "whole/song.pt" and hps.lyric_tokens == 20


def test_what_is_assumed_without_settings_beside_the_weights_is_said_once(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copyfile("whole/song.pt", tmp_path / "bare/song.pt")
    shutil.copyfile(f"whole/{files.VOCABULARY}", tmp_path / "bare" / files.VOCABULARY)
    assumed = (
        "note: song.pt: there is no song.yaml beside it; taken are rotary_base=20000, lyric_tokens=24 and songs of"
    )
    length = "--sample_length_in_seconds=.16"
    for number, place in enumerate(("whole", str(tmp_path / "bare"))):
        sample(f"assumed_{number}", f"--restore_prior={place}", length)
        said = capsys.readouterr().out
        assert said.count(assumed) == number and said.count("give --model=") == number
        words = ["--hps=tiny_songbloom", "--name=x", "--prior", "--train", "--data_jsonl=x.jsonl"]
        make_models.complete_songbloom(training_command([*words, f"--restore_prior={place}"]).hps)
        said = capsys.readouterr().out
        assert said.count(assumed) == number and said.count("give --hps=songbloom_150s or ") == number


def test_settings_that_never_come_to_rest_are_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes beside the weights while they are read."""
    made, sizes = sample_program.make_songbloom, itertools.count(20)

    def changing(*given: Any, **named: Any) -> Any:
        codec, prior = made(*given, **named)
        prior.config = replace(prior.config, lyric_tokens=next(sizes))
        return codec, prior

    monkeypatch.setattr(sample_program, "make_songbloom", changing)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"song\.pt: its settings change while") as told:
        patch.setattr(sys, "argv", ["sample.py", *USUAL, "--name=never", "--restore_prior=whole/song.pt"])
        sample_program.main()
    assert "\n" not in str(told.value) and next(sizes) == 24


def test_a_download_brings_its_settings(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came with the weights counts in the very run that downloads them."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("style.wav", stereo(1.0), RATE)
    hub, asked = ModuleType("huggingface_hub"), []

    def download(repository: str, name: str, local_dir: str) -> None:
        asked.append((repository, name))
        there = place / "cache" / repository / name
        if not there.is_file():
            raise OSError("no such file there")
        target = Path(local_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(there.read_bytes())

    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    kept = (f"--cache_dir={tmp_path / 'kept'}", "--restore_prior=hf://somebody/songs/sub/sub.pt")
    codes = sample("song", *kept)
    assert asked[0] == ("somebody/songs", "sub/sub.pt") and ("somebody/songs", "sub/vocab_g2p.yaml") in asked
    assert (tmp_path / "kept/somebody/songs/sub/sub.yaml").is_file()
    assert codes[1].shape == (1, 300)
    count = len(asked)
    assert torch.equal(sample("again", *kept)[1], codes[1]) and len(asked) == count


def test_what_belongs_to_the_long_model_is_in_the_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, there = ModuleType("huggingface_hub"), {"SongBloom": files.COMPANIONS, "SongBloom_long": ("x.pt", "x.yaml")}

    def download(repository: str, name: str, local_dir: str) -> None:
        if name not in there[repository.removeprefix("CypressYang/")]:
            raise OSError("no such file there")
        (Path(local_dir) / name).write_text(repository)

    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    weights = files.fetch("hf://CypressYang/SongBloom_long/x.pt", tmp_path)
    assert {each.name: each.read_text() for each in weights.parent.iterdir()} == {
        **dict.fromkeys(("x.pt", "x.yaml"), "CypressYang/SongBloom_long"),
        **dict.fromkeys(files.COMPANIONS, "CypressYang/SongBloom"),
    }
    assert files.codec_of(weights, {}) == str(weights.parent / files.CODEC)


def test_what_a_path_names(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    assert files.file_of("hf://a/b", "song.pt") == files.file_of("hf://a/b/", "song.pt") == "hf://a/b/song.pt"
    assert files.file_of("hf://a/b/c.pt", "song.pt") == "hf://a/b/c.pt"
    assert files.file_of("some.pt", "song.pt") == "some.pt" and files.file_of("", "song.pt") == ""
    with pytest.raises(UserError, match=r"two: a folder with no \.pt and no \.safetensors: name"):
        files.file_of(str(tmp_path / "two"), "song.pt")
    for name in ("b.pt", "a.safetensors", "c.ckpt"):
        (tmp_path / "two" / name).touch()
    with pytest.raises(UserError, match=r"several files of weights \(a\.safetensors, b\.pt\): name"):
        files.file_of(str(tmp_path / "two"), "song.pt", "")
    assert files.file_of(str(tmp_path / "two"), "song.pt", "b.pt") == str(tmp_path / "two/b.pt")
