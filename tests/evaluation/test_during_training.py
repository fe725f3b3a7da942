"""The probe that training calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils.data import default_collate

import train
from hparams import training_command
from songbloom.audio.files import read_audio
from songbloom.data.manifest import songs_from
from songbloom.errors import UserError
from songbloom.evaluation.during_training import LyricProbe, expected_of, hear_samples
from songbloom.training import checkpoint
from songbloom.training.logger import Logger
from songbloom.training.tasks import evaluating
from tests.songs import write_codec, write_corpus
from tests.training.runs import built, write_songs


def test_what_is_sung_is_logged_with_its_error_rate(lines: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    songs = songs_from(data_jsonl=lines)[:2]
    sounds = [torch.from_numpy(read_audio(song.path, sample_rate=48000)) for song in songs]
    longest = max(map(len, sounds))
    audio = torch.stack([torch.nn.functional.pad(sound, (0, 0, 0, longest - len(sound))) for sound in sounds])
    asked: list[list[str]] = []

    def sample(lyrics: Sequence[str]) -> torch.Tensor:
        asked.append(list(lyrics))
        return audio.expand(-1, -1, 2)

    probe = LyricProbe([song.lyrics or "" for song in songs], every=50)
    assert [step for step in range(201) if probe.due(step)] == [50, 100, 150, 200]
    logger = Logger(tmp_path, sample_rate=48000)
    values = probe.log(logger, 50, sample, 48000)
    logger.close()
    assert asked == [probe.lyrics]
    assert values["voice_presence"] > 0.3 and values["per"] < values["per_shuffled"] - 0.15
    events = EventAccumulator(str(tmp_path), size_guidance={"audio": 0}).Reload()
    assert events.Scalars("sung/per")[0].value == pytest.approx(values["per"])
    assert events.Scalars("sung/voice_presence")[0].step == 50
    assert {"0/sung", "1/sung"} <= set(events.Tags()["audio"]) and "0/sung" in events.Tags()["images"]


def test_no_vocals_is_said_at_once() -> None:
    quiet = 0.05 * torch.randn(2, 32000, 1, generator=torch.Generator().manual_seed(0))
    sung = hear_samples(quiet, 16000, ["さくら", None])
    assert sung.verdict.startswith("no vocals") and sung.values["voice_presence"] < 0.05
    assert sung.scores[1] is None and sung.values["per"] > 0.7
    with pytest.raises(ValueError, match="at least one"):
        LyricProbe([], every=5)


def test_words_may_be_symbols() -> None:
    assert expected_of(["[verse]", "s", "a", "cl", "k", "a", ".", ","]) == ("s", "a", "cl", "k", "a")
    assert expected_of("さっか") == ("s", "a", "cl", "k", "a")
    assert expected_of(["HH", "AH0", "L", "OW1"]) == () == expected_of(None)


def test_samples_of_a_songbloom_prior_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny prior of random weights is sampled with words of its own; what is heard of them is logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_corpus(tmp_path)
    write_codec(tmp_path)
    (tmp_path / "words.txt").write_text("[verse]\nさくら\n[chorus]\nさいた", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["--hps=tiny_songbloom", "--prior", "--train", "--data-jsonl=songs.jsonl", "--name=x", "--bs_sample=2"]
    trainer = train.build(training_command([*words, "--eval_lyrics=words.txt"]).hps)
    task, data = trainer.task, trainer.train_set
    batch = task.batch_of(default_collate([data[0], data[1]]), torch.device("cpu"))
    logger = Logger(tmp_path / "told", sample_rate=8000)
    with evaluating(task):
        task.log_samples(logger, 7, batch)
    logger.close()
    events = EventAccumulator(str(tmp_path / "told"), size_guidance={"tensors": 0}).Reload()
    assert 0 <= events.Scalars("sample/voice_presence")[0].value <= 1
    assert events.Scalars("sample/per")[0].value > 0.5
    told = b"".join(events.Tensors("1/sample/text_summary")[0].tensor_proto.string_val).decode()
    assert "[verse] s a k u r a" in told and "heard: " in told
    with pytest.raises(UserError, match=r"--eval_lyrics=none\.txt: cannot be read as text"):
        train.build(training_command([*words, "--eval_lyrics=none.txt"]).hps)


def test_samples_sing_the_words_of_the_first_songs_to_evaluate_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch is, and with the same random numbers at every step."""
    write_corpus(tmp_path)
    write_codec(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--hps=tiny_songbloom", "--prior", "--train", "--data-jsonl=songs.jsonl", "--name=x", "--val-split=0.5"]
    trainer = train.build(training_command(words).hps)
    task, data = trainer.task, trainer.train_set
    told: list[tuple[str, bytes]] = []
    for step, number in ((3, 0), (9, 1)):
        batch = task.batch_of(default_collate([data[number]]), torch.device("cpu"))
        logger = Heard(tmp_path)
        with evaluating(task):
            task.log_samples(logger, step, batch)
        told.append((logger.said, logger.sound))
    assert told[0] == told[1]
    symbols = task.hps["lyric_symbols"]
    item = trainer.test_set[0]
    assert " ".join(symbols[i] for i in item["lyrics"][: item["words"]]) in told[0][0]


class Heard:
    """What is logged of the first item."""

    def __init__(self, folder: Path) -> None:
        self.values: dict[str, float] = {}
        self.said, self.sound = "", b""

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.values |= values

    def text(self, tag: str, text: str, step: int = 0) -> None:
        self.said += text if tag == "0/sample" else ""

    def audio(self, tag: str, audio: torch.Tensor, step: int) -> None:
        self.sound += audio.numpy().tobytes()


def test_samples_of_a_prior_with_lyrics_are_heard(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    for number in range(5):
        (songs / f"song_{number}.json").write_text('{"artist": "Mei", "lyrics": "やよいのそらはみわたすかぎり"}')
    built("tiny_vqvae", "c", tmp_path, songs, train_steps=1).run()
    (tmp_path / "words.txt").write_text("さくら", encoding="utf-8")
    of_codec = {"prior": True, "restore_vqvae": str(tmp_path / "c" / checkpoint.LATEST), "bs_sample": 2}
    given: dict[str, Any] = {**of_codec, "lyrics_vocab": "ja_phonemes", "eval_lyrics": str(tmp_path / "words.txt")}
    found = []
    for values in (given, {**given, "eval_lyrics": ""}):
        trainer = built("tiny_vqvae,tiny_lyrics_prior", "p", tmp_path, songs, **values)
        task = trainer.task
        batch = task.batch_of(default_collate([trainer.train_set[i] for i in (0, 1)]), torch.device("cpu"))
        logger = Heard(tmp_path)
        with evaluating(task), patch.object(task.model, "sample", wraps=task.model.sample) as sample:
            task.log_samples(logger, 2, batch)
        row = sample.call_args.kwargs["labels"][0]
        found.append((logger, task.labeller.describe(row), row))
    fixed, plain = found
    assert 0 <= fixed[0].values["sample/voice_presence"] <= 1 and fixed[0].values["sample/per"] > 0.5
    assert fixed[1]["artist"] == "mei" and "".join(fixed[1]["lyrics"].split()) == "sakura"
    assert fixed[2][:3].tolist() == [4800, 0, task.labeller.sample_length]  # the shortest song that it knows
    assert set(plain[0].values) == {"sample/voice_presence"} and "sakura" not in plain[1]["lyrics"]
    for sets in ("tiny_labelled_prior", "tiny_upsampler"):
        with pytest.raises(UserError, match="this prior reads no words"):
            built(f"tiny_vqvae,{sets}", "q", tmp_path, songs, **of_codec, eval_lyrics=str(tmp_path / "words.txt"))
