"""The probe that training calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from songbloom.audio.files import read_audio
from songbloom.data.manifest import songs_from
from songbloom.evaluation.during_training import LyricProbe, expected_of, hear_samples
from songbloom.training.logger import Logger


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
    assert values["voice_presence"] > 0.3 and values["per"] < 0.5 < values["per_shuffled"]
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
