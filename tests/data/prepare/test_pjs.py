"""PJS's layout: a folder a song, with recording, speech, labels, score and words."""

from __future__ import annotations

from pathlib import Path

import pytest

from songbloom.data.check import check_songs
from songbloom.data.prepare import pjs
from songbloom.errors import UserError
from tests.data.prepare.made import LINES, lines_of, score, text, voice
from tests.data.prepare.test_kiritan import LAB


def in_hts_units(lab: str) -> str:
    rows = [line.split() for line in lab.splitlines()]
    return "".join(f"{round(float(a) * 1e7)} {round(float(b) * 1e7)} {name}\n" for a, b, name in rows)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "PJS_corpus_ver1.1"
    for number in (1, 2, 3):
        folder = root / f"pjs{number:03d}"
        voice(folder / f"pjs{number:03d}_song.wav", seed=number)
        voice(folder / f"pjs{number:03d}_speech.wav", ((1.0, 3.0),), 4.0, seed=10 + number)
        text(folder / f"pjs{number:03d}.musicxml", score())
    text(root / "pjs001" / "pjs001.txt", "桜咲いた\n春の風\n")
    text(root / "pjs001" / "pjs001.lab", in_hts_units(LAB))
    (root / "pjs003" / "pjs003_song.wav").unlink()
    (root / "background_noise").mkdir()
    return root


def test_words_times_and_terms(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert pjs.main(["--input_dir", str(corpus.parent), "--output_dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "PJS: CC BY-SA 4.0" in out
    assert "left out: pjs003: has no pjs003_song.wav" in out
    first, second = lines_of(tmp_path / "out" / "pjs.jsonl")
    assert [(p["start"], p["end"], p["text"]) for p in first["phrases"]] == [
        (2.5, 8.5, "桜咲いた"),
        (10.5, 15.5, "春の風"),
    ]
    assert [(p["start"], p["end"], p["text"]) for p in second["phrases"]] == [(2, 8, LINES[0]), (10, 15, LINES[1])]
    assert Path(first["audio_path"]).name == "pjs001_song.wav"
    assert first["licence"].startswith("CC BY-SA 4.0")
    assert [finding.kind for finding in check_songs(tmp_path / "out" / "pjs.jsonl").findings] == ["mono"]


def test_words_from_scores_and_no_corpus(corpus: Path, tmp_path: Path):
    pjs.main(["--input_dir", str(corpus), "--output_dir", str(tmp_path / "out"), "--words=score"])
    assert lines_of(tmp_path / "out" / "pjs.jsonl")[0]["phrases"][0]["text"] == LINES[0]
    with pytest.raises(UserError, match="no songs; the layout is pjs001/pjs001_song"):
        pjs.main(["--input_dir", str(tmp_path / "out"), "--output_dir", str(tmp_path / "o")])
