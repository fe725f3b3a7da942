"""The recogniser's shapes and files, and how well the shipped one hears."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from songbloom.audio.files import read_audio
from songbloom.data.manifest import songs_from
from songbloom.errors import UserError
from songbloom.evaluation import phonemes, recogniser
from songbloom.evaluation.recogniser import Recogniser, RecogniserConfig, gathered, load_recogniser, save_recogniser
from songbloom.evaluation.recogniser_data import read_phonemes
from songbloom.lyrics.morae import PHONEMES

SMALL = RecogniserConfig(width=16, hidden=8, dilations=(1, 2))


def untrained() -> Recogniser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Recogniser(SMALL).eval()


@pytest.mark.parametrize("length", [0, 319, 320, 16000, 3 * 16000 + 77])
def test_fifty_frames_a_second(length: int) -> None:
    heard = untrained().hear(np.full(length, 0.01, np.float32))
    frames = length // 320
    assert heard.phonemes.shape == (frames, 41) and heard.voice.shape == (frames,)
    if frames:
        assert heard.hidden.shape == (frames, 8) and np.allclose(np.exp(heard.phonemes).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.54])
def test_pieces_give_what_the_whole_gives(tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * 16000 + 200).astype(np.float32)
    whole = model.hear(sound)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    monkeypatch.setattr(recogniser, "PIECE_SECONDS", seconds)
    pieces = list(model.hear_file(tmp_path / "a.wav"))
    assert len(pieces) > 2
    for one, other in zip(whole, gathered(iter(pieces)), strict=True):
        assert np.abs(one - other).max() < 2e-5


def test_a_frame_depends_on_no_more_than_its_reach() -> None:
    model = untrained()
    sound = np.random.default_rng(1).uniform(-0.5, 0.5, 2 * 16000).astype(np.float32)
    changed = sound.copy()
    changed[16000:] = 0.3
    first, second = model.hear(sound), model.hear(changed)
    same = np.abs(first.phonemes - second.phonemes).max(1) == 0
    assert same[: 50 - SMALL.reach - 2].all() and not same[50:].any()


def test_files_keep_the_weights_and_tell_damage(tmp_path: Path) -> None:
    model = untrained()
    save_recogniser(tmp_path / "r.npz", model, {"data": {"songs": 3}})
    again = load_recogniser(tmp_path / "r.npz")
    assert again.config == SMALL and again.about["data"] == {"songs": 3} and again.name.startswith("r-")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.half().float(), again.state_dict()[name])
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype(np.float16)}
    content = bytearray((tmp_path / "r.npz").read_bytes())
    content[-40] ^= 1
    (tmp_path / "r.npz").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"r\.npz: is not the file that r\.json describes"):
        load_recogniser(tmp_path / "r.npz")
    with pytest.raises(UserError, match=r"none\.npz: no recogniser can be read there"):
        load_recogniser(tmp_path / "none.npz")
    (tmp_path / "r.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="no recogniser can be read there"):
        load_recogniser(tmp_path / "r.npz")


def test_the_shipped_one_is_small_and_says_what_it_was_made_of() -> None:
    assert recogniser.SHIPPED.stat().st_size < 3_000_000
    about = json.loads(recogniser.SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["data"]["phonemes_missing"] == [] and about["data"]["credits"]
    measured = about["measured"]
    assert measured["vocals"]["per"] < measured["vocals"]["per_shuffled"] - 0.3
    assert measured["backing"]["voice_presence"] < 0.05 < 0.3 < measured["mix"]["voice_presence"]
    load_recogniser()  # and the digest is right


def test_the_shipped_one_hears_lines_that_it_never_heard(lines: Path) -> None:
    model = load_recogniser()
    scores = []
    for song in songs_from(data_jsonl=lines):
        heard = model.hear(read_audio(song.path, sample_rate=16000)[:, 0])
        edges, classes = read_phonemes(song.path.with_suffix(".json"))
        sung = np.zeros(len(heard.voice), bool)
        for start, end in np.rint(edges * 50).astype(int):
            sung[start:end] = True
        assert ((heard.voice > 0.5) == sung).mean() > 0.85
        scores.append(phonemes.score(phonemes.decode(heard.phonemes), [PHONEMES[c - 1] for c in classes]))
    found = phonemes.together(scores)
    assert found.per < 0.6 and found.per < found.per_shuffled - 0.2


@pytest.mark.parametrize("kind", ["silence", "noise", "chord", "clicks"])
def test_the_shipped_one_hears_no_voice_where_there_is_none(kind: str) -> None:
    time = np.arange(5 * 16000) / 16000
    sounds = {
        "silence": np.zeros(len(time)),
        "noise": 0.1 * np.random.default_rng(0).standard_normal(len(time)),
        "chord": 0.1 * sum(np.sin(2 * np.pi * f * time) * np.exp(-2 * (time % 1)) for f in (220, 277, 330)),
        "clicks": 0.5 * (np.arange(len(time)) % 8000 == 0),
    }
    heard = load_recogniser().hear(np.asarray(sounds[kind], np.float32))
    assert (heard.voice > 0.5).mean() < 0.05
