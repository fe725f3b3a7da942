"""Songs of one's own: whatever lies beside the audio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from songbloom.data.check import check_songs
from songbloom.data.prepare import folder
from songbloom.errors import UserError
from songbloom.lyrics.timing import Timed, TimedText, from_phrases, write_lrc
from tests.data.prepare.made import LINES, ROOT, SPANS, lines_of, run, score, text, voice
from tests.data.prepare.test_kiritan import LAB


def prepare(tmp_path: Path, *more: str) -> dict[str, dict[str, Any]]:
    folder.main(["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), *more])
    return {row["idx"]: row for row in lines_of(tmp_path / "out" / "songs.jsonl")}


def test_every_kind_of_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = tmp_path / "in"
    for number, name in enumerate(("text", "lrc", "label", "score", "both", "nothing")):
        voice(home / "a" / f"{name}.wav", seed=number)
    text(home / "a" / "text.txt", "桜咲いた\n\n春の風\n")
    lines = [Timed(line, *span) for line, span in zip(LINES, SPANS, strict=True)]
    write_lrc(home / "a" / "lrc.lrc", lines_as_timed(lines))
    text(home / "a" / "label.lab", LAB)
    text(home / "a" / "score.musicxml", score(marks=("", "サビ")))
    text(home / "a" / "both.txt", "[Aメロ]\n桜咲いた\n[サビ]\n春の風\n")
    text(home / "a" / "both.lab", LAB)
    about = {"artist": "わたし", "group": 7, "idx": "mine"}
    text(home / "a" / "both.json", json.dumps(about, ensure_ascii=False))
    rows = prepare(tmp_path, "--licence=my own", "--genre=pop")
    assert "left out: a_nothing: has no words" in capsys.readouterr().out
    assert rows["a_text"]["lyrics"] == "[verse]\n桜咲いた\n[verse]\n春の風\n"
    assert "phrases" not in rows["a_text"]
    for name, words in (("a_lrc", LINES), ("a_label", LINES), ("a_score", LINES), ("mine", ("桜咲いた", "春の風"))):
        assert [p["text"] for p in rows[name]["phrases"]] == list(words), name
    assert rows["mine"]["lyrics"] == "[verse 10.5s]\n桜咲いた\n[chorus 6.5s]\n春の風\n"
    assert rows["a_score"]["lyrics"] == "[verse 10s]\nさくらさいた\n[chorus 7s]\nはるのかぜ\n"
    assert (rows["mine"]["artist"], rows["mine"]["group"], rows["mine"]["genre"]) == ("わたし", 7, "pop")
    assert rows["a_lrc"]["licence"] == "my own"
    report = check_songs(tmp_path / "out" / "songs.jsonl")
    assert report.errors == []


def test_the_last_line_of_lrc_lasts_until_the_song_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """LRC does not say for how long; that a guess is too long is no reason to do without times."""
    voice(tmp_path / "in" / "a.wav")
    text(tmp_path / "in" / "a.lrc", f"[00:01.00]さくらさいた\n[00:16.00]{'はるのかぜ' * 3}\n")
    (row,) = prepare(tmp_path).values()
    assert [(p["start"], p["end"]) for p in row["phrases"]] == [(1.0, 5.2), (16.0, row["seconds"])]
    said = capsys.readouterr().out
    assert "times are left out" not in said and "words end at" not in said


def test_words_in_the_encodings_of_windows(tmp_path: Path):
    for name, encoding in (("a", "utf-16"), ("b", "utf-8-sig"), ("c", "cp932")):
        voice(tmp_path / "in" / f"{name}.wav", seed=ord(name))
        (tmp_path / "in" / f"{name}.txt").write_bytes("[verse]\r\nさくら\r\n".encode(encoding))
    assert {row["lyrics"] for row in prepare(tmp_path).values()} == {"[verse]\nさくら\n"}


def lines_as_timed(lines: list[Timed]) -> TimedText:
    return from_phrases([line._asdict() for line in lines])


def test_languages_groups_and_names(tmp_path: Path):
    home = tmp_path / "in"
    for number, (name, words) in enumerate({"x/live": "Hello", "x/studio": "Hello", "y/live": "你好"}.items()):
        voice(home / f"{name}.wav", ((0.0, 4.0),), 4.0, seed=number)
        text(home / f"{name}.txt", words)
    rows = prepare(tmp_path, "--group_by=folder", "--artist=folder", "--prompt_sec=0")
    assert [(i, row["language"], row["group"], row["artist"]) for i, row in rows.items()] == [
        ("x_live", "en", "x", "x"), ("x_studio", "en", "x", "x"), ("y_live", "zh", "y", "y"),
    ]  # fmt: skip


def test_one_broken_song_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = tmp_path / "in"
    for number, name in enumerate(("good", "badjson", "badscore", "badtag")):
        voice(home / f"{name}.wav", seed=number)
        text(home / f"{name}.txt", "さくら\n")
    text(home / "badjson.json", '{"artst": "x"}')
    text(home / "badscore.musicxml", "<score-partwise><part")
    text(home / "badtag.txt", "[verse\nさくら\n")
    (home / "broken.wav").write_bytes(b"RIFF")
    text(home / "broken.txt", "さくら\n")
    assert list(prepare(tmp_path)) == ["good"]
    out = capsys.readouterr().out.splitlines()
    for name, says in (
        ("badjson", "'artst' is no field (did you mean 'artist'?)"), ("badscore", "line 1: is no XML"),
        ("badtag", "line 1, column 1: '[verse' is not closed"), ("broken", "broken.wav: "),
    ):  # fmt: skip
        assert sum(line.startswith(f"left out: {name}: ") and says in line for line in out) == 1, name


def test_the_command_and_folders_without_songs(tmp_path: Path):
    voice(tmp_path / "in" / "a.wav", ((0.0, 3.0),), 3.0)
    text(tmp_path / "in" / "a.txt", "さくら")
    module = "songbloom.data.prepare.folder"
    done = run(module, "--input-dir", "in", "--output-dir", "in", "--prompt_sec=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = lines_of(tmp_path / "in" / "songs.jsonl")
    assert (row["audio_path"], row["prompt_wav"]) == ("a.wav", "prompts/a_prompt.wav")
    done = run(module, "--input-dir", "in", "--output-dir", "in", "--prompt_sec=2", cwd=tmp_path)
    assert [row["idx"] for row in lines_of(tmp_path / "in" / "songs.jsonl")] == ["a"]  # its own prompts are no songs
    assert "1 song, 1 of them there already" in done.stdout
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no audio file"):
        folder.main(["--input_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "o")])
    with pytest.raises(UserError, match="no song can be used"):
        voice(tmp_path / "none" / "a.wav", ((0.0, 1.0),), 1.0)
        folder.main(["--input_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "o")])


def test_killed_and_taken_up_again_is_as_undisturbed(tmp_path: Path):
    for number in range(8):
        voice(tmp_path / "in" / f"{number}.wav", ((0.0, 12.0),), 12.0, seed=number)
        text(tmp_path / "in" / f"{number}.txt", f"さくら{LINES[number % 2]}")
    command = [sys.executable, "-m", "songbloom.data.prepare.folder", "--input_dir", "in", "--output_dir", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    songs = tmp_path / "out" / "songs"
    while process.poll() is None and not (songs.is_dir() and list(songs.glob("*.json"))):
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in songs.glob("*.json")}
    assert before
    again = run("songbloom.data.prepare.folder", "--input_dir", "in", "--output_dir", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in songs.glob("*.json")}.items()
    folder.main(["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "fresh")])
    assert (tmp_path / "out" / "songs.jsonl").read_bytes() == (tmp_path / "fresh" / "songs.jsonl").read_bytes()
    for path in (tmp_path / "fresh" / "prompts").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "prompts" / path.name).read_bytes()
