"""``train.py`` as people start it: real commands, ranks, kills and mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from songbloom.training import checkpoint
from tests import programs
from tests.training.runs import SMALLER, differences, latest, weight_difference, write_songs

ROOT = Path(__file__).parents[1]
SMALL = [f"--{key}={value}" for key, value in SMALLER.items()]
CODEC = ["--hps=tiny_vqvae", *SMALL, "--train", "--lr_warmup=3", "--log_steps=4", "--aug_shift"]
PRIOR = ["--hps=tiny_vqvae,tiny_upsampler", *SMALL, "--prior", "--train", "--lr_warmup=3", "--log_steps=4"]


def run(
    folder: Path, *words: str, ranks: int = 1, what: list[str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``train.py`` (or, given ``what``, tests.training.ranks) in ``folder``."""
    program = ["-m", "tests.training.ranks", *what] if what else [str(ROOT / "train.py")]
    return programs.run(folder, *program, *words, ranks=ranks, fresh=fresh)


def started(folder: Path, *words: str, ranks: int = 1, what: list[str] | None = None) -> subprocess.Popen[str]:
    program = ["-m", "tests.training.ranks", *what] if what else [str(ROOT / "train.py")]
    return subprocess.Popen(
        programs.command(*program, *words, ranks=ranks),
        cwd=folder,
        env=programs.ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> list[str]:
    """Read the process's output until a line holds ``words``; the lines."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} never came: {''.join(lines)} {process.stderr and process.stderr.read()}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_songs(tmp_path / "songs")
    yield tmp_path


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and a codec of 12 steps in ``logs/codec``."""
    folder = tmp_path_factory.mktemp("codec")
    write_songs(folder / "songs")
    words = [*CODEC, "--name=codec", "--audio_files_dir=songs", "--train_steps=12", "--save_iters=4"]
    done = run(folder, *words, fresh=True)
    assert done.returncode == 0, done.stderr
    return folder


def restored(codec: Path) -> str:
    return f"--restore_vqvae={codec}/logs/codec/{checkpoint.LATEST}"


# ---------------------------------------------------------------------------------------------------- the command line


def test_a_run_leaves_what_it_should(codec: Path) -> None:
    run_folder = codec / "logs" / "codec"
    found = {path.name for path in run_folder.iterdir()}
    steps = {f"checkpoint_step_{step}{suffix}" for step in (4, 8, 12) for suffix in (".pth.tar", ".json")}
    assert found == steps | {checkpoint.LATEST, "checkpoint_latest.json", "argv.txt", "logs", ".lock"}
    content = latest(codec / "logs", "codec")
    assert set(content) == set(checkpoint.KEYS) and content["kind"] == "vqvae" and content["step"] == 12
    assert set(content["hps"]["bandwidth"]) == {"l1", "l2", "spec"}
    assert "--train_steps=12" in (run_folder / "argv.txt").read_text()
    beside = json.loads((run_folder / "checkpoint_latest.json").read_text())
    assert beside["hps"]["width"] == SMALLER["width"] and "--name=codec" in beside["argv"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hps=tiny_vqvae", "--name=x"], "nothing to do: give --train, --test or both"),
        (["--hps=tiny_vqvae", "--train"], "the run needs a name: give --name=NAME"),
        (["--hps=tiny_vqvae", "--name=x", "--train", "--audio_files_dir=nowhere"], "nowhere: no such folder"),
        (["--hps=tiny_vqvae", "--name=x", "--train", "--audio_files_dir=empty"], "empty"),
        (["--hps=tiny_vqva", "--name=x", "--train"], "did you mean 'tiny_vqvae'?"),
        (["--hps=tiny_vqvae", "--name=x", "--train", "--lora"], "--lora needs the weights that are adapted"),
        (["--hps=tiny_vqvae", "--name=x", "--train", "--precision=fp15"], "precision"),
        (
            ["--hps=tiny_vqvae,tiny_prior", "--name=x", "--train", "--prior", "--audio_files_dir=songs"],
            "logs/tiny_vqvae/checkpoint_latest.pth.tar: no such checkpoint file; train the codec first (python "
            "train.py --hps=tiny_vqvae --name=tiny_vqvae --vq --audio_files_dir=SONGS --train …, see "
            "docs/training.md), or give --restore_vqvae=FILE",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder: Path, words: list[str], told: str) -> None:
    (folder / "empty").mkdir()
    done = run(folder, *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (folder / "logs").exists()


SMALL_LABELLED = {
    "small_labelled_prior": [],
    "small_single_enc_dec_prior": ["--n_tokens=32"],
    "small_sep_enc_dec_prior": ["--n_tokens=32", "--prime_width=16", "--prime_depth=2", "--prime_blocks=8"],
}


@pytest.mark.parametrize("name", SMALL_LABELLED)
def test_small_priors_with_labels_train(name: str, codec: Path, folder: Path) -> None:
    """The commands that are given for these sets, with everything made tiny; songs have JSON files beside them."""
    for number, row in enumerate([{"artist": "Mei", "genre": "folk", "lyrics": "la la la"}, {"lyrics": "さくら"}]):
        (folder / "songs" / f"song_{number}.json").write_text(json.dumps(row))
    sizes = ["--n_ctx=64", "--prior_width=32", "--prior_depth=16", "--blocks=8", "--min_duration=1"]
    words = [f"--hps=tiny_vqvae,{name},all_fp16,cpu_ema", *SMALL, f"--name={name}", *sizes, *SMALL_LABELLED[name]]
    words += ["--sample_length=2048", "--bs=3", "--nworkers=1", "--audio_files_dir=songs", "--labels=True", "--train"]
    words += ["--test", "--aug_shift", "--prior", "--levels=2", "--level=1", "--weight_decay=0.01", "--train_steps=2"]
    done = run(folder, *words, restored(codec), "--log_steps=1")
    assert done.returncode == 0, done.stderr
    assert "labels: 1 artist and 1 genre from the songs (y_bins=(10, 100))" in done.stdout
    assert ("prime_loss" in done.stdout) is (name != "small_labelled_prior")
    content = latest(folder / "logs", name)
    assert content["step"] == 2 and content["hps"]["label_ids"]["artists"] == {"unknown": 0, "mei": 1}
    assert any(key.startswith("label_conditioner.") for key in content["model"])


def test_a_prior_stays_with_its_codec(codec: Path, folder: Path) -> None:
    """Codes of another codec mean something else: neither training nor sampling goes on with them unasked."""
    prior = [*PRIOR, "--name=prior", "--audio_files_dir=songs", "--train_steps=2"]
    assert run(folder, *prior, restored(codec)).returncode == 0
    other = run(folder, *CODEC, "--name=other", "--audio_files_dir=songs", "--train_steps=2", "--seed=5")
    assert other.returncode == 0, other.stderr
    done = run(folder, *prior, f"--restore_vqvae=logs/other/{checkpoint.LATEST}", "--train_steps=4")
    assert done.returncode == 2 and "was trained on the codes of another codec" in done.stderr

    import make_models
    from hparams import setup_hparams
    from songbloom.errors import UserError

    content = latest(folder / "logs", "prior")
    hps = setup_hparams("tiny_vqvae,tiny_upsampler", SMALLER)
    hps.restore_prior = str(folder / "logs" / "prior" / checkpoint.LATEST)
    for name, fits in (("codec", True), ("other", False)):
        hps.restore_vqvae = str((codec if fits else folder) / "logs" / name / checkpoint.LATEST)
        vqvae = make_models.make_vqvae(hps)
        assert (make_models.fingerprint(vqvae) == content["hps"]["codec"]) is fits
        if fits:
            make_models.make_prior(hps, vqvae)
        else:
            with pytest.raises(UserError, match="codes of another codec"):
                make_models.make_prior(hps, vqvae)


def test_evaluating_needs_something_trained(folder: Path) -> None:
    done = run(folder, *SMALL, "--hps=tiny_vqvae", "--test", "--name=new", "--audio_files_dir=songs")
    assert done.returncode == 2 and "there are no trained weights in logs/new" in done.stderr
    assert not (folder / "logs").exists()


def test_two_runs_of_one_name_do_not_mix(folder: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (folder / "logs" / "x").mkdir(parents=True)
    with (folder / "logs" / "x" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(folder, *CODEC, "--name=x", "--audio_files_dir=songs", "--train_steps=2")
    assert done.returncode == 2 and "another process is training there" in done.stderr


def test_settings_of_the_optimiser_may_change_on_a_restart(folder: Path) -> None:
    words = [*CODEC, "--name=x", "--audio_files_dir=songs"]
    assert run(folder, *words, "--train_steps=2").returncode == 0
    assert run(folder, *words, "--train_steps=4", "--weight_decay=0.5", "--beta2=0.9").returncode == 0
    (group,) = latest(folder / "logs", "x")["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5 and group["betas"][1] == 0.9


def test_help_and_print_hps(folder: Path) -> None:
    told = run(folder, "--help", fresh=True)
    assert told.returncode == 0 and "--sample_length" in told.stdout
    shown = run(folder, "--hps=tiny_vqvae", "--bs=3", "--print_hps")
    assert shown.returncode == 0 and "set 'tiny_vqvae'" in shown.stdout and "command line" in shown.stdout


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.slow
def test_killed_in_mid_training_the_same_command_ends_the_same(codec: Path, folder: Path) -> None:
    words = [*CODEC, "--name=codec", "--audio_files_dir=songs", "--train_steps=12", "--save_iters=4"]
    process = started(folder, *words)
    wait_for(process, "step 8 ")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = run(folder, *words)
    assert again.returncode == 0, again.stderr
    assert "going on from logs/codec" in again.stdout
    assert differences(latest(codec / "logs", "codec"), latest(folder / "logs", "codec")) == []


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_the_same_command_ends_the_same(codec: Path, folder: Path) -> None:
    words = [*CODEC, "--name=codec", "--audio_files_dir=songs", "--train_steps=12", "--save_iters=4"]
    process = started(folder, *words, what=["stall", "0"])
    wait_for(process, "half a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run_folder = folder / "logs" / "codec"
    assert len(list(run_folder.glob(".checkpoint_*.partial"))) == 1
    again = run(folder, *words)
    assert again.returncode == 0, again.stderr
    assert "(step 8, " in again.stdout
    assert not list(run_folder.glob(".checkpoint_*.partial"))
    assert differences(latest(codec / "logs", "codec"), latest(folder / "logs", "codec")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)])
def test_a_signal_saves_and_stops(codec: Path, folder: Path, number: signal.Signals, ranks: int) -> None:
    words = [*PRIOR, restored(codec), "--name=p", "--audio_files_dir=songs", "--emb_dropout=0.1"]
    words += ["--bs=1"] * (ranks > 1)
    process = started(folder, *words, "--train_steps=100000", ranks=ranks)
    wait_for(process, "step 8 ")
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert f"{number.name}: saving and stopping after this step" in out and "interrupted" in out
    step = latest(folder / "logs", "p")["step"]
    assert step >= 8
    done = run(folder, *words, f"--train_steps={step + 3}", ranks=ranks)
    assert f"(step {step}, " in done.stdout
    whole = run(folder, *words, f"--train_steps={step + 3}", "--local_logdir=whole", ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    one, other = latest(folder / "logs", "p"), latest(folder / "whole", "p")
    del one["hps"], other["hps"]
    assert differences(one, other) == []


# --------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codec", "prior"])
def test_any_number_of_ranks_trains_the_same_weights(codec: Path, folder: Path, kind: str) -> None:
    words = CODEC if kind == "codec" else [*PRIOR, restored(codec)]
    contents: dict[int, Any] = {}
    for ranks in (1, 2, 4):
        name = f"r{ranks}"
        options = [
            *words,
            f"--name={name}",
            "--audio_files_dir=songs",
            "--train_steps=5",
            "--test",
            f"--bs={4 // ranks}",
        ]
        done = run(folder, *options, ranks=ranks, what=["nothing", "0"])
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert len(told["hashes"]) == ranks and len(set(told["hashes"])) == 1, "ranks differ in some bit"
        contents[ranks] = latest(folder / "logs", name)
    for ranks in (2, 4):
        assert contents[ranks]["hps"].get("bandwidth") == contents[1]["hps"].get("bandwidth")
        assert weight_difference(contents[1], contents[ranks]) < 2e-3
        one, other = (contents[n]["optimizer"]["state"][0]["exp_avg"] for n in (1, ranks))
        assert float((one - other).norm() / one.norm()) < 1e-2


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(codec: Path, folder: Path) -> None:
    words = [*PRIOR, restored(codec), "--audio_files_dir=songs", "--emb_dropout=0.1", "--bs=1"]
    run(folder, *words, "--name=whole", "--train_steps=9", ranks=2)
    run(folder, *words, "--name=parts", "--train_steps=4", ranks=2)
    done = run(folder, *words, "--name=parts", "--train_steps=9", ranks=2)
    assert done.returncode == 0 and "(step 4, " in done.stdout, done.stderr
    assert differences(latest(folder / "logs", "whole"), latest(folder / "logs", "parts")) == []


@pytest.mark.slow
def test_nan_on_one_rank_is_skipped_by_all(codec: Path, folder: Path) -> None:
    words = [*CODEC, "--name=x", "--audio_files_dir=songs", "--train_steps=4", "--bs=1"]
    done = run(folder, *words, ranks=2, what=["nan", "1"])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["skipped"] == 1 and len(set(told["hashes"])) == 1
    assert done.stdout.count("skipping step 2: the loss is not finite") == 1
    assert all(bool(tensor.isfinite().all()) for tensor in latest(folder / "logs", "x")["model"].values())


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_with_one_message(codec: Path, folder: Path) -> None:
    words = [*CODEC, "--name=x", "--audio_files_dir=songs", "--train_steps=1000", "--bs=1"]
    process = started(folder, *words, ranks=2, what=["raise", "1"])
    out, err = process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    assert err.count("RuntimeError: something broke on purpose") == 1 and "rank 1 of 2" in err, err
    assert "step 4 " not in out
