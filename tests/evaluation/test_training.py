"""Practice lines, what is drawn from them, and training of the recogniser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.data.manifest import Song, songs_from
from songbloom.errors import UserError
from songbloom.evaluation import phonemes, practice, train_recogniser
from songbloom.evaluation.recogniser import RecogniserConfig, load_recogniser
from songbloom.evaluation.recogniser_data import Practice, frame_classes, lines_of, read_phonemes, read_song, split
from songbloom.lyrics.morae import PHONEMES


def test_practice_lines_are_the_same_again_and_go_on(lines: Path, tmp_path: Path) -> None:
    practice.render(tmp_path, 1, 90210, ["mei"])
    more = practice.render(tmp_path, 2, 90210, ["mei"])
    for name in ("00000.wav", "00001.wav", "00000.json"):
        assert (tmp_path / "lines" / name).read_bytes() == (lines.parent / "lines" / name).read_bytes()
    assert len(songs_from(data_jsonl=more)) == 2
    with pytest.raises(UserError, match="another seed"):
        practice.render(tmp_path, 2, 1, ["mei"])


def test_practice_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert practice.main([]) == 2 and "--output_dir is missing" in capsys.readouterr().err
    assert practice.main(["--output_dir=x", "--voices=bob"]) == 2 and "no voice 'bob'" in capsys.readouterr().err
    assert practice.main(["--help"]) == 0 and "--lines" in capsys.readouterr().out


def test_every_phoneme_is_practised() -> None:
    drawn = {practice.draw_reading(np.random.default_rng(seed)) for seed in range(400)}
    from songbloom.data.prepare.sung.words import mora_table, split_morae

    sung = {phoneme for reading in drawn for mora in split_morae(reading) for phoneme in mora_table()[mora]}
    assert sung == set(PHONEMES)


@given(st.lists(st.tuples(st.sampled_from(range(1, 41)), st.integers(3, 9)), max_size=20))
def test_classes_of_frames_are_a_path_of_the_phonemes(drawn: list[tuple[int, int]]) -> None:
    ends = np.cumsum([0, *(length for _, length in drawn)]) * 0.02
    edges = np.stack([ends[:-1], ends[1:]], 1)
    labels = frame_classes(edges, np.array([index for index, _ in drawn], np.int64), 200)
    path = np.full((200, 41), -9.0)
    path[np.arange(200), labels] = 0
    assert phonemes.decode(path, 0) == tuple(PHONEMES[index - 1] for index, _ in drawn)


def test_no_line_is_both_learnt_and_held_out() -> None:
    words = ["[verse]\na1\na2", "a2\na3", "[chorus]\nb1", "b1\nb2", "c1", "d1", "[inst]"]
    songs = [Song(Path(f"/{i}.wav"), lyrics=text) for i, text in enumerate(words)]
    for seed in range(6):
        kept, held = split(songs, 0.3, seed)
        assert len(kept) + len(held) == 7 and len(held) >= 3 and kept
        assert not {line for s in kept for line in lines_of(s.lyrics or "")} & {
            line for s in held for line in lines_of(s.lyrics or "")
        }
    assert split(songs, 0.0, 0)[1] == []


def test_lessons_are_drawn_from_their_seed_alone(lines: Path) -> None:
    songs = [read_song(song, 16000) for song in songs_from(data_jsonl=lines)]
    first, second = (Practice(songs, RecogniserConfig(), 2.0, 5) for _ in range(2))
    second.lesson(0, 3)
    a, b = first.lesson(4, 6), second.lesson(4, 6)
    assert a.audio.shape == (6, 32000) and a.labels.shape == (6, 100)
    assert a.audio.equal(b.audio) and a.labels.equal(b.labels) and a.voice.equal(b.voice)
    assert not a.audio.equal(first.lesson(5, 6).audio)
    assert a.labels.any() and (a.voice[a.labels > 0] == 1).all()


def test_songs_that_cannot_be_learnt_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs vocals_path and phonemes_path"):
        read_song(Song(tmp_path / "a.wav"), 16000)
    (tmp_path / "p.json").write_text(json.dumps({"phonemes": [{"phoneme": "AH0", "start": 0, "end": 1}]}))
    with pytest.raises(UserError, match="phoneme 'AH0' is none of Japanese"):
        read_phonemes(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(UserError, match="no phonemes with times"):
        read_phonemes(tmp_path / "p.json")


def test_the_command_trains_the_same_again(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = []
    for name in ("a", "b"):
        arguments = [f"--data_jsonl={lines}", f"--output={tmp_path / name}.npz", "--steps=4", "--bs=2", "--seconds=1.5"]
        assert train_recogniser.main([*arguments, "--log_steps=2", "--held_out=0.25"]) == 0
        about = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        digests.append(about["sha256"])
        assert about["trained_with"]["steps"] == 4 and about["measured"]["practice vocals"]["items"] == 1
        assert load_recogniser(tmp_path / f"{name}.npz").config == RecogniserConfig()
    assert digests[0] == digests[1]
    assert "step 4: loss" in capsys.readouterr().out
    assert train_recogniser.main(["--output=x.npz"]) == 2 and "--data_jsonl is missing" in capsys.readouterr().err
