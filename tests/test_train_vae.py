"""Training the stereo VAE through the real command: resuming, ranks, both sides of adversarial training, weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import make_models
import train
from hparams import setup_hparams, training_command
from songbloom.audio.files import write_wav
from songbloom.data.dataset import ChunkDataset
from songbloom.errors import UserError
from songbloom.published.songbloom import vae as published_vae
from songbloom.training import checkpoint
from songbloom.training.tasks import VAETask
from songbloom.vae.vae import VAE, VAEConfig
from tests.test_train import run
from tests.training.runs import RATE, differences, latest, weight_difference

# Steps of tiny_vae take some ten milliseconds.
VAE_RUN = ["--hps=tiny_vae", "--vq", "--train", "--audio_files_dir=songs", "--lr_warmup=3", "--log_steps=4"]
VAE_RUN += ["--aug_shift", "--save_iters=100"]
JUDGED = ["--vae_adversarial=0.1", "--vae_discriminator_lr=0.004", "--vae_adversarial_start=2"]


def write_stereo_songs(folder: Path) -> None:
    """Stereo files: a tone on each side, and noise in between."""
    draw = np.random.default_rng(0)
    t = np.arange(int(RATE * 1.5)) / RATE
    for song in range(5):
        sides = [0.3 * np.sin(2 * np.pi * draw.uniform(100, 1500) * t) for _ in range(2)]
        write_wav(folder / f"song_{song}.wav", np.stack(sides, 1) + 0.02 * draw.standard_normal((len(t), 1)), RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_stereo_songs(tmp_path / "songs")
    yield tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and a VAE of 9 steps with a discriminator, in ``logs/vae``."""
    folder = tmp_path_factory.mktemp("vae")
    write_stereo_songs(folder / "songs")
    done = run(folder, *VAE_RUN, *JUDGED, "--name=vae", "--train_steps=9", "--test")
    assert done.returncode == 0, done.stderr
    assert "spectral_loss" in done.stdout and "discriminator_loss" in done.stdout and "test at step 9" in done.stdout
    return folder


def test_a_run_leaves_a_vae(trained: Path) -> None:
    content = latest(trained / "logs", "vae")
    assert set(content) == set(checkpoint.KEYS) and content["kind"] == "vae" and content["step"] == 9
    assert content["codebook"] == {"steps": 9}
    codec, judge = content["optimizer"]["param_groups"]
    assert codec["lr"] == pytest.approx(0.002) and judge["lr"] == pytest.approx(0.004)
    hps = setup_hparams("tiny_vae", {"restore_vae": str(trained / "logs" / "vae" / checkpoint.LATEST)})
    vae = make_models.make_vae(hps)
    assert (vae.sample_rate, vae.channels, vae.hop_lengths, vae.discriminator) == (8000, 2, (32,), None)
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    name = "encoder.input.direction"
    assert torch.equal(vae.state_dict()[name], content["ema"][name])
    assert not torch.equal(content["ema"][name], content["model"][name])
    audio = vae.decode(vae.encode(torch.randn(1, 320, 2)))
    assert audio.shape == (1, 320, 2)


def test_tensorboard_holds_stereo_and_pictures(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "logs" / "vae" / "logs"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "spectral_loss", "l1_loss", "kl", "gn", "gn_discriminator", "lr"} <= set(tags["scalars"])
    assert {"0/train_x_in", "0/train_x_out"} <= set(tags["audio"]) & set(tags["images"])
    (clip,) = events.Audio("0/train_x_out")
    assert clip.sample_rate == 8000 and clip.length_frames == 2048


@pytest.mark.parametrize("judged", [False, True])
def test_going_on_is_as_if_there_had_been_no_stop(trained: Path, folder: Path, judged: bool) -> None:
    words = [*VAE_RUN, *(JUDGED if judged else []), "--name=vae"]
    if not judged:
        whole = run(folder, *words, "--local_logdir=whole", "--train_steps=9")
        assert whole.returncode == 0, whole.stderr
    assert run(folder, *words, "--train_steps=4").returncode == 0
    again = run(folder, *words, "--train_steps=9")
    assert again.returncode == 0 and "going on from" in again.stdout, again.stderr
    one, other = latest(trained / "logs" if judged else folder / "whole", "vae"), latest(folder / "logs", "vae")
    if judged:
        one["hps"] |= {"test": False}  # which the run that was not stopped did besides
    else:
        one["hps"]["local_logdir"] = other["hps"]["local_logdir"]
    assert differences(one, other) == []


@pytest.mark.slow
@pytest.mark.parametrize("judged", [False, True])
def test_any_number_of_ranks_trains_the_same_weights(folder: Path, judged: bool) -> None:
    contents: dict[int, Any] = {}
    judge = ["--vae_adversarial=0.1", "--vae_discriminator_lr=0.004"] if judged else []
    for ranks in (1, 2):
        # Some gradients (of the logarithms of bins that are nearly empty) jump at the slightest difference, so what
        # ranks compute is compared after two steps, before rounding has grown.
        options = [*VAE_RUN, *judge, f"--name=r{ranks}", "--train_steps=2", f"--bs={4 // ranks}"]
        done = run(folder, *options, ranks=ranks, what=["nothing", "0"])
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert len(set(told["hashes"])) == 1, "ranks differ in some bit"
        contents[ranks] = latest(folder / "logs", f"r{ranks}")
    assert weight_difference(contents[1], contents[2]) < 1e-3
    for index in contents[1]["optimizer"]["state"]:
        one, other = (contents[n]["optimizer"]["state"][index]["exp_avg"] for n in (1, 2))
        assert float((one - other).norm()) <= 1e-3 * float(one.norm()) + 1e-7  # where both margins are open it is 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prior"], "--prior with --vae"),
        (["--restore_vqvae=x.pth.tar"], "weights of a VAE are named by --restore_vae"),
        (["--restore_vae=nowhere.ckpt"], "nowhere.ckpt: no such checkpoint file"),
        (["--vae_strides=4,8,2"], "vae_strides has 3 values"),
        (["--sample_length=100"], "sample_length is 100 samples, no multiple"),
        (["--vae_strides=4,1"], "vae_strides"),
    ],
)
def test_mistakes_leave_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=told):
        train.build(training_command([*VAE_RUN, "--name=x", *words]).hps)
    assert not (folder / "logs").exists()


def test_a_discriminator_may_come_later(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name a run keeps what it has; a new run may begin from weights without one."""
    begun = [*VAE_RUN, "--name=plain", "--train_steps=2"]
    assert run(folder, *begun).returncode == 0
    with monkeypatch.context() as context, pytest.raises(UserError, match="vae_adversarial makes a discriminator"):
        context.chdir(folder)
        train.build(training_command([*begun, *JUDGED]).hps)
    given = f"--restore_vae=logs/plain/{checkpoint.LATEST}"
    done = run(folder, *VAE_RUN, *JUDGED, "--name=later", "--train_steps=1", "--lr=0", given)
    assert done.returncode == 0 and "discriminator and optimiser begin afresh" in done.stdout, done.stderr
    plain, later = latest(folder / "logs", "plain")["model"], latest(folder / "logs", "later")["model"]
    assert all(torch.equal(later[name], tensor) for name, tensor in plain.items()) and len(later) > len(plain)
    whole = f"--restore_vae={trained}/logs/vae/{checkpoint.LATEST}"
    done = run(folder, *VAE_RUN, *JUDGED, "--name=whole", "--train_steps=10", whole)
    assert done.returncode == 0 and "weights, optimiser, step 9" in done.stdout, done.stderr


def _same_codec(one: VAE, other: VAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_published_files_are_read_and_written(trained: Path, tmp_path: Path) -> None:
    ours = str(trained / "logs" / "vae" / checkpoint.LATEST)
    hps = setup_hparams("tiny_vae", {"restore_vae": ours})
    vae = make_models.make_vae(hps)
    make_models.save(vae, tmp_path / "vae.ckpt", "vae", hps, published=True)
    theirs = torch.load(tmp_path / "vae.ckpt", weights_only=True)["state_dict"]
    assert {"encoder.layers.0.weight_g", "decoder.layers.4.weight_v"} <= set(theirs)
    checkpoint.save(tmp_path / "flat.ckpt", theirs)
    song = {"model": {**{f"vae.vae.{name}": tensor for name, tensor in theirs.items()}, "lm.x": torch.zeros(1)}}
    checkpoint.save(tmp_path / "song.pt", song)
    make_models.save(vae, tmp_path / "ours.pth.tar", "vae", hps)
    for name in ("vae.ckpt", "flat.ckpt", "song.pt", "ours.pth.tar"):
        hps.restore_vae = str(tmp_path / name)
        assert _same_codec(make_models.make_vae(hps), vae), name
    hps.restore_vae, hps.vae_width = str(tmp_path / "vae.ckpt"), 5
    with pytest.raises(UserError, match=r"vae\.ckpt: weights of another VAE"):
        make_models.make_vae(hps)


def test_a_vq_vae_is_no_vae(tmp_path: Path) -> None:
    hps = setup_hparams("tiny_vqvae", {"width": 4, "depth": 1, "sample_length": 2048})
    make_models.save(make_models.make_vqvae(hps), tmp_path / "codec.pth.tar", "vqvae", hps)
    with pytest.raises(UserError, match="is the checkpoint of a codec"):
        make_models.make_vae(setup_hparams("tiny_vae", {"restore_vae": str(tmp_path / "codec.pth.tar")}))


@pytest.mark.parametrize("name", ["songbloom_vae", "small_vae", "tiny_vae"])
def test_sets_make_vaes(name: str) -> None:
    hps = setup_hparams(name)
    vae = make_models.make_vae(hps, "meta")
    assert vae.channels == 2 and hps.sample_length == vae.sample_length > max(hps.vae_spectral_n_fft) / 2
    if name != "tiny_vae":
        assert (vae.sample_rate, vae.hop_lengths, vae.latent_dim) == (48000, (1920,), 64)
    if name == "songbloom_vae":
        assert vae.cost()["parameters"] == 84_281_344 + 84_414_082 and vae.discriminator is not None


def test_the_published_configuration_round_trips() -> None:
    for config in (VAEConfig(), VAEConfig(sr=24000, vae_channels=1, vae_width=3, vae_final_tanh=True)):
        assert published_vae.config_from_published(published_vae.config_to_published(config)) == config
    with pytest.raises(UserError, match="vae_dilations"):
        published_vae.config_to_published(VAEConfig(vae_dilations=(1, 3)))


def test_songs_are_read_in_stereo(folder: Path) -> None:
    data = {"audio_files_dir": str(folder / "songs")}
    stereo = ChunkDataset(setup_hparams("tiny_vae", data | {"aug_blend": True}), "train")
    chunk = stereo[1]["audio"]
    assert chunk.shape == (2048, 2) and np.abs(chunk[:, 0] - chunk[:, 1]).max() > 0.1
    alone = ChunkDataset(setup_hparams("tiny_vae", data | {"vae_channels": 1}), "train")[1]["audio"]
    assert alone.shape == (2048, 1) and np.allclose(alone[:, 0], chunk.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_learns_and_measures_in_float32(dtype: str) -> None:
    from songbloom.training.precision import codec_precision

    audio = 0.3 * torch.randn(2, 2048, 2, generator=torch.Generator().manual_seed(0))
    found = {}
    for precision in ("fp32", dtype):
        hps = setup_hparams("tiny_vae", {"train": True, "vae_adversarial": 0.1, "precision": precision})
        task = VAETask(make_models.make_vae(hps), hps, codec_precision(hps, torch.device("cpu")))
        loss, metrics = task(audio)
        assert loss.dtype == torch.float32 and all(m.dtype == torch.float32 for m in metrics.values())
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
        found[precision] = float(loss.detach())
    assert found[dtype] == pytest.approx(found["fp32"], rel=0.03)
