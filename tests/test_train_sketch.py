"""Training a sketch codebook through the real command: its file, resuming, ranks, others' names of options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import make_tasks
import train
from hparams import setup_hparams, training_command
from songbloom.audio.files import write_wav
from songbloom.errors import UserError
from songbloom.sketch.builtin import BuiltinConfig, BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook, load_codebook
from songbloom.sketch.files import write_sketch
from songbloom.sketch.tokeniser import SketchTokeniser, load_tokeniser
from songbloom.training import checkpoint
from songbloom.training.recover import features_to_try, recover_codebook
from songbloom.training.sketch import make_sketch
from tests.sketch.tiny import sound
from tests.songs import write_codec, write_corpus
from tests.test_train import run
from tests.training.runs import differences, latest

RUN = ["--hps=tiny_sketch", "--vq", "--train", "--audio_files_dir=songs", "--log_steps=4", "--save_iters=100"]
RUN += ["--min_duration=1", "--aug_shift"]
NETWORK = ["--sketch_hidden=12", "--sketch_start_step=2"]


def write_sung(folder: Path, songs: int = 5) -> None:
    for song in range(songs):
        write_wav(folder / f"song_{song}.wav", sound(1, 3.0, 8000, seed=song)[0].numpy(), 8000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_sung(tmp_path / "songs")
    yield tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and a codebook of 9 steps with a network, in ``logs/sketch``."""
    folder = tmp_path_factory.mktemp("sketch")
    write_sung(folder / "songs")
    done = run(folder, *RUN, *NETWORK, "--name=sketch", "--train_steps=9", "--test")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout and "perplexity" in done.stdout and "test at step 9" in done.stdout
    assert "the codebook of 16 codes has started" in done.stdout
    return folder


def test_a_run_leaves_a_codebook_and_a_checkpoint(trained: Path) -> None:
    content = latest(trained / "logs", "sketch")
    assert set(content) == set(checkpoint.KEYS) and content["kind"] == "sketch" and content["step"] == 9
    book = load_codebook(trained / "logs" / "sketch" / "sketch_codebook.pt", size=16)
    assert torch.equal(book.vectors, content["model"]["quantiser.vectors"]) and book.trained["steps"] == 9
    tokeniser = load_tokeniser(trained / "logs" / "sketch" / "sketch_codebook.pt", size=16)
    codes = tokeniser.encode(sound(1, 3.0, 8000, seed=77), 8000)
    assert codes.shape == (1, 75) and len(codes.unique()) > 4
    hps = setup_hparams("tiny_sketch", {"sketch_hidden": 12})
    model = make_sketch(hps)
    model.load_state_dict(content["model"])
    model.load_codebook_state(content["codebook"])
    assert model.codebook().digest == book.digest


def test_tensorboard_holds_usage_perplexity_and_error(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "logs" / "sketch" / "logs"))
    events.Reload()
    tags = events.Tags()
    wanted = {"usage", "perplexity", "error", "shape_error", "pitch_error", "melody", "revived", "test_perplexity"}
    assert wanted <= set(tags["scalars"]) and "0/train_x_in" in tags["audio"]
    assert events.Scalars("perplexity")[-1].value > 3


def test_going_on_is_as_if_there_had_been_no_stop(trained: Path, folder: Path) -> None:
    """Stopped before the codebook has started, with frames waiting, and again after."""
    words = [*RUN, *NETWORK, "--name=sketch"]
    for steps in (3, 9):
        done = run(folder, *words, f"--train_steps={steps}")
        assert done.returncode == 0, done.stderr
        assert ("no codebook's file yet" in done.stdout) is (steps == 3)
        assert (folder / "logs" / "sketch" / "sketch_codebook.pt").exists() is (steps > 3)
    one, other = latest(trained / "logs", "sketch"), latest(folder / "logs", "sketch")
    one["hps"] |= {"test": False}
    assert differences(one, other) == []
    files = [load_codebook(place / "logs" / "sketch" / "sketch_codebook.pt") for place in (trained, folder)]
    assert files[0].digest == files[1].digest


def test_ranks_hold_one_codebook_to_the_bit(folder: Path) -> None:
    for ranks in (1, 2):
        options = [*RUN, *NETWORK, f"--name=r{ranks}", "--train_steps=6", f"--bs={4 // ranks}"]
        done = run(folder, *options, ranks=ranks, what=["nothing", "0"])
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert len(set(told["hashes"])) == 1, "ranks differ in some bit"
    one, two = (latest(folder / "logs", f"r{ranks}") for ranks in (1, 2))
    assert one["codebook"]["quantiser"]["ready"]
    for part in ("sums", "uses"):
        torch.testing.assert_close(
            one["codebook"]["quantiser"][part], two["codebook"]["quantiser"][part], atol=1e-2, rtol=1e-2
        )
    assert torch.equal(one["codebook"]["quantiser"]["random"], two["codebook"]["quantiser"]["random"])


def test_names_of_other_trainers(folder: Path) -> None:
    words = ["--hps=tiny_sketch", "--vq", "--train", "--name=x", "--data-dir=songs", "--output=made/book.pt"]
    words += ["--codebook-size", "12", "--decay=0.9", "--commitment-weight", "0.5", "--epochs=2", "--lr=0.001"]
    words += ["--chunk-size", "25", "--min-frames=25", "--save-every=1", "--device=cpu", "--embedding-dim=104"]
    hps = training_command([*words, "--muq-sr=8000"]).hps
    assert (hps.audio_files_dir, hps.sketch_codes, hps.sketch_decay, hps.sketch_commit) == ("songs", 12, 0.9, 0.5)
    assert (hps.sample_length_in_seconds, hps.min_duration, hps.save_epochs, hps.sr) == (1, 1, 1, 8000)
    assert training_command([*words[:4], "--muq-model-id=folder"]).hps.sketch_muq_path == "folder"
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert load_codebook(folder / "made" / "book.pt").size == 12
    kept = sorted(path.name for path in (folder / "logs" / "x").glob("checkpoint_step_*.pth.tar"))
    assert len(kept) == 2  # one a pass


def test_recovered_from_songs_with_their_codes(folder: Path) -> None:
    """The codes are a known codebook's, whose features the recovered one carries in its file too."""
    features = BuiltinFeatures(
        BuiltinConfig.from_hps(setup_hparams("tiny_sketch")), torch.Generator().manual_seed(0)
    ).eval()
    rows = features.extract(sound(4, 3.0, 8000, seed=1), 8000).flatten(0, 1)
    tokeniser = SketchTokeniser(
        features, SketchCodebook(rows[::20][:12], features.identity(), state=features.state_dict())
    )
    for number in range(10):
        audio = sound(1, 3.0, 48000, seed=200 + number)
        write_wav(folder / "pairs" / f"{number}.wav", audio[0].numpy(), 48000)
        write_sketch(folder / "pairs" / f"{number}.npz", tokeniser.encode(audio, 48000)[0])
    words = ["--hps=tiny_sketch", "--sketch_codes=12", "--vq", "--name=back", "--recover_tokens=pairs"]
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert "get their codes back" in done.stdout and "codes seen" in done.stdout
    again = load_tokeniser(folder / "logs" / "back" / "sketch_codebook.pt", size=12)
    audio = sound(4, 3.0, 8000, seed=999)
    assert (again.encode(audio, 8000) == tokeniser.encode(audio, 8000)).float().mean() > 0.7


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prior"], "--prior with a sketch codebook"),
        (["--vae"], "--vae with a sketch codebook"),
        (["--ema"], "averaged weights don't fit"),
        (["--labels"], "labels=True"),
        (["--sketch_features=muqq"], "muqq"),
        (["--sketch_features=muq"], "config.json inside"),
        (["--sketch_width=7"], "sketch_width=7: features"),
        (["--sketch_cepstra=16"], "sketch_cepstra is 16: it must be less than sketch_bands"),
        (["--sketch_distance=taxi"], "sketch_distance"),
        (
            ["--recover_from=tiny_songblom"],
            "--recover_from=tiny_songblom: no model is named so (did you mean 'tiny_songbloom'?)",
        ),
        (["--recover_tokens=nowhere"], "no audio has its codes beside it"),
    ],
)
def test_mistakes_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as caught:
        hps = training_command([*RUN, "--name=wrong", *words]).hps
        if hps.recover_from:
            make_tasks.songs_of_model(hps, torch.device("cpu"))
        elif hps.recover_tokens:
            recover_codebook(hps, features_to_try(hps))
        else:
            train.build(hps)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (folder / "logs" / "wrong").exists()


def test_another_shape_does_not_go_on(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(UserError, match="sketch_codes is 16 in the checkpoint, 20 asked for"):
        train.build(training_command([*RUN, *NETWORK, "--name=sketch", "--sketch_codes=20"]).hps)
    with pytest.raises(UserError, match="sketch_features is 'builtin' in the checkpoint, 'muq' asked for"):
        train.build(training_command([*RUN, *NETWORK, "--name=sketch", "--muq-model-id=muq"]).hps)
    with pytest.raises(UserError, match="recovers a sketch codebook"):
        training_command(["--hps=tiny_vqvae", "--name=x", "--recover_from=tiny_songbloom"])


def test_recovered_from_a_model_by_its_name(tmp_path: Path) -> None:
    """The whole way through the commands; what six steps of training have taught is too little to recover anything."""
    write_corpus(tmp_path)
    write_codec(tmp_path)
    words = ["--hps=tiny_songbloom", "--prior", "--train", "--data_jsonl=songs.jsonl", "--sample_iters=0"]
    done = run(tmp_path, *words, "--name=tiny_songbloom", "--train_steps=2")
    assert done.returncode == 0, done.stderr
    words = ["--hps=tiny_sketch", "--vq", "--name=back", "--recover_from=tiny_songbloom", "--data_jsonl=songs.jsonl"]
    done = run(tmp_path, *words, "--recover_songs=5", "--recover_seconds=2", "--recover_steps=2")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 songs are written" in done.stdout and "kept frames get their codes back" in done.stdout
    book = load_codebook(tmp_path / "logs" / "back" / "sketch_codebook.pt", size=16)
    # Two seconds are filled up to whole patches of four frames; four of five songs are counted.
    assert book.trained["recovered_from"] == "tiny_songbloom" and int(book.trained["counts"].sum()) == 4 * 52
