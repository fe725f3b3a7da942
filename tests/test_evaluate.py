"""``evaluate.py`` as people run it, on sung lines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import evaluate
from hparams import setup_hparams
from make_models import make_vqvae, save
from songbloom.data.manifest import songs_from
from songbloom.errors import UserError
from songbloom.evaluation import practice
from tests import programs

ROOT = Path(__file__).parent.parent


def run_program(folder: Path, *arguments: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    return programs.run(folder, str(ROOT / "evaluate.py"), *arguments, fresh=fresh)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``songs``: two sung lines with words beside them, and noise; ``songs.jsonl``: the lines."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows = songs_from(data_jsonl=practice.render(folder, 2, 31337, ["mei"]))
    (folder / "songs").mkdir()
    for row in rows:
        shutil.copy(row.path, folder / "songs")
        (folder / "songs" / row.path.name).with_suffix(".txt").write_text(row.lyrics or "", encoding="utf-8")
    noise = 0.05 * np.random.default_rng(0).standard_normal((16000 * 3, 2))
    soundfile.write(folder / "songs" / "noise.flac", noise, 16000)
    return folder


def numbers(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run_program(folder, *arguments, "--json=numbers.json")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "numbers.json").read_text(encoding="utf-8"))


def test_a_folder_of_songs_and_words(place: Path) -> None:
    told = numbers(place, "--audio_files_dir=songs", "--reference_dir=songs", "--device=cpu")
    items = {Path(item["path"]).name: item for item in told["items"]}
    for name in ("00000.wav", "00001.wav"):
        assert items[name]["voice_presence"] > 0.5 and items[name]["per"] < items[name]["per_shuffled"] - 0.15
        assert 54 < items[name]["pitch"]["median"] < 78
    assert items["noise.flac"]["voice_presence"] < 0.05 and items["noise.flac"]["note"] == "no lyrics are known"
    assert items["noise.flac"]["per"] is None and items["noise.flac"]["pitch"] is None
    assert told["all"]["items_without_voice"] == 1 and told["all"]["items_with_lyrics"] == 2
    expected = sum(items[name]["phonemes_expected"] for name in items if name != "noise.flac")
    assert told["all"]["phonemes_expected"] == expected
    for name, found in told["reference"]["embeddings"].items():
        assert found["distance"] == 0 and found["frechet"] is None and found["fewest"] > found["vectors"], name
    assert told["reference"]["pitch"]["median"] == 0


def test_a_file_that_cannot_be_read_is_left_out_and_told(place: Path, tmp_path: Path) -> None:
    for name in ("00000.wav", "00000.txt"):
        shutil.copy(place / "songs" / name, tmp_path / f"歌 {name}")
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVEjunk")
    told = evaluate.evaluate(evaluate.command_line([f"--audio_files_dir={tmp_path}", "--no_pitch"]))
    assert [Path(item["path"]).name for item in told["items"]] == ["歌 00000.wav"] and told["all"]["items"] == 1
    assert f"\nleft out: {tmp_path / 'broken.wav'}: " in evaluate.text_of(told)
    assert "what the columns mean: docs/evaluation.md\n" in evaluate.text_of(told)
    (tmp_path / "歌 00000.wav").unlink()
    with pytest.raises(UserError, match=r"broken\.wav: "):
        evaluate.evaluate(evaluate.command_line([f"--audio_files_dir={tmp_path}", "--no_pitch"]))


def test_lists_words_for_all_and_text(place: Path) -> None:
    done = run_program(place, "--data_jsonl=songs.jsonl", "--songs=1", "--change_cost=2", "--no-pitch", "--device=cpu")
    assert done.returncode == 0 and "the words are heard better than chance" in done.stdout
    assert done.stdout.startswith("recogniser recogniser-") and "00000.wav" in done.stdout
    (place / "other.txt").write_text("[verse]\nちがうことばをうたうから\nきみはきこえないよね", encoding="utf-8")
    (place / "wordless").mkdir(exist_ok=True)
    shutil.copy(place / "songs" / "00000.wav", place / "wordless")
    told = numbers(place, "--audio_files_dir=wordless", "--lyrics_file=other.txt", "--no_pitch", "--device=cpu")
    assert told["all"]["per"] > 0.6  # other words than were sung
    done = run_program(place, "--data_jsonl=songs.jsonl", "--no-pitch", "--device=cpu")
    assert "  shuffled less PER: 0." in done.stdout and "over 2 songs, 2 of them above 0)" in done.stdout


def test_what_a_codec_loses(place: Path, tmp_path: Path) -> None:
    hps = setup_hparams("tiny_vqvae", {"train": False})
    save(make_vqvae(hps), tmp_path / "codec.pth.tar", "vqvae", hps=hps)
    arguments = ["--data_jsonl=songs.jsonl", f"--codec={tmp_path / 'codec.pth.tar'}", "--codec_seconds=1", "--no_pitch"]
    told = numbers(place, *arguments, "--songs=1", "--device=cpu")
    lost = told["items"][0]["codec"]
    assert lost["log_mel"] > 0 and lost["multi_resolution_stft"] > 0 and told["all"]["codec"] == lost
    assert "per" not in lost  # a second of the song is not all of its words


def test_what_is_still_heard_after_a_codec(place: Path, tmp_path: Path) -> None:
    hps = setup_hparams("tiny_vqvae", {"train": False})
    save(make_vqvae(hps), tmp_path / "codec.pth.tar", "vqvae", hps=hps)
    arguments = ["--data_jsonl=songs.jsonl", f"--codec={tmp_path / 'codec.pth.tar'}", "--no_pitch", "--device=cpu"]
    told = numbers(place, *arguments, "--songs=1")
    item = told["items"][0]
    assert item["per"] < 0.6 < item["codec"]["per"]  # nothing that is understood comes out of an untrained codec
    assert item["codec"]["voice_presence"] < item["voice_presence"]
    done = run_program(place, *arguments, "--songs=1")
    assert f"{item['codec']['per']:.2f}" in done.stdout.splitlines()[2] and "PER after" in done.stdout


def test_by_how_much_words_are_heard_is_told_with_its_error() -> None:
    rows = [{"per": per, "per_shuffled": 0.7} for per in (0.3, 0.5, 0.7, 0.9)]
    rows.append({"per": None, "per_shuffled": None})
    (line,) = evaluate.margin_lines(rows)  # margins .4 .2 0 -.2: mean .1, deviation sqrt(.2 / 3), error half of that
    assert "shuffled less PER: 0.100 ± 0.129 " in line and "over 4 songs, 2 of them above 0" in line
    assert evaluate.margin_lines(rows[:1]) == []
    coded = [{**row, "codec": {"per": 0.6, "per_shuffled": 0.7}} for row in rows[:2]]
    assert evaluate.margin_lines(coded)[1].startswith("  after the codec, shuffled less PER: 0.100 ± 0.000 ")


def test_luck_is_not_called_hearing() -> None:
    told = {"items_without_voice": 0, "items": 3, "per": 0.5, "per_shuffled": 0.7, "per_part": None}

    def verdict(*margins: float) -> str:
        return evaluate.verdicts(told, [{"per": 0.5, "per_shuffled": 0.5 + margin} for margin in margins])[0]

    assert verdict(0.2, 0.21, 0.19) == "the words are heard better than chance"
    assert verdict(0.7, 0.0, -0.1) == "the words seem to be heard, but so few songs may be luck: give more of them"
    told["per"] = 0.68
    assert verdict(0.02, 0.02, 0.02) == "the words are not heard: shuffled lyrics fit as well"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give one of --data_jsonl, --audio_files_dir and --name, not none"),
        (["--data_jsonl=a", "--name=b"], "not --data_jsonl and --name"),
        (["--data_jsonl=a", "--model=dem"], "no model is named 'dem'"),
        (["--data_jsonl=a", "--model=demo", "--codec=b"], "both name a codec"),
        (["--data_jsonl=a", "--level=1"], "--level belongs to --name"),
        (["--data_jsonl=a", "--embedings=b"], "did you mean"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line) as told:
        evaluate.command_line(arguments)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--audio_files_dir=nowhere"], "--audio_files_dir=nowhere: no such folder"),
        (["--data_jsonl=songs.jsonl", "--reference_dir=nowhere"], "--reference_dir=nowhere: no such file or folder"),
        (["--name=songs"], "no run of sample.py"),
        (["--data_jsonl=songs.jsonl", "--lyrics_file=none.txt"], "--lyrics_file=none.txt: cannot be read"),
        (["--data_jsonl=songs.jsonl", "--recogniser=none.npz"], "none.npz: no recogniser can be read there"),
    ],
)
def test_what_is_not_there_is_told(
    place: Path, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=line):
        evaluate.evaluate(evaluate.command_line([*arguments, "--songs=1", "--no_pitch"]))


def test_help() -> None:
    done = run_program(ROOT, "--help", fresh=True)
    assert done.returncode == 0 and "--reference_dir" in done.stdout
