"""Kiritan's layout: numbered recordings, scores and labels in folders of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from songbloom.data.check import check_songs
from songbloom.data.prepare import kiritan
from songbloom.data.prepare.kiritan import partner
from songbloom.errors import UserError
from tests.data.prepare.made import LINES, lines_of, score, text, voice

LAB = """0.0 2.5 pau
2.5 3.0 s\n3.0 3.5 a\n3.5 4.0 k\n4.0 4.5 u\n4.5 5.0 r\n5.0 5.5 a\n5.5 6.0 s\n6.0 6.5 a\n6.5 7.0 i\n7.0 7.5 t\n7.5 8.5 a
8.5 10.5 br
10.5 11 h\n11 11.5 a\n11.5 12 r\n12 12.5 u\n12.5 12.8 n\n12.8 13 o\n13 13.3 k\n13.3 14 a\n14 14.2 z\n14.2 15.5 e
15.5 17.0 sil
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "kiritan_singing"
    voice(root / "wav" / "01.wav", rate=96_000)
    voice(root / "wav" / "10.wav", seed=1)
    voice(root / "wav" / "02.wav", seed=2)
    text(root / "musicxml" / "01.xml", score(rest=1))  # its tempo is not the singer's
    text(root / "mono_label" / "01.lab", LAB)
    text(root / "musicxml" / "10.xml", score())
    return root


def test_labels_time_what_scores_say(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kiritan.main(["--input-dir", str(corpus), "--output-dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Art. 30-4" in out
    assert "left out: kiritan_02: has no score" in out
    first, tenth = lines_of(tmp_path / "out" / "kiritan.jsonl")
    assert (first["idx"], tenth["idx"]) == ("kiritan_01", "kiritan_10")
    assert first["phrases"] == [
        {"start": 2.5, "end": 8.5, "text": LINES[0]},
        {"start": 10.5, "end": 15.5, "text": LINES[1]},
    ]
    assert first["lyrics"] == "[verse 17s]\nさくらさいた\nはるのかぜ\n"
    assert tenth["phrases"][1] == {"start": 10.0, "end": 15.0, "text": LINES[1]}
    assert Path(first["lab_path"]).name == "01.lab"
    assert "Art. 30-4" in first["licence"]
    report = check_songs(tmp_path / "out" / "kiritan.jsonl")
    assert {finding.kind for finding in report.findings} == {"mono", "rates"}


def test_numbers_are_whole_numbers():
    files = [Path("10.xml"), Path("01.xml"), Path("kiritan02.xml")]
    assert partner(Path("1.wav"), files) == Path("01.xml")
    assert partner(Path("10.wav"), files) == Path("10.xml")
    assert partner(Path("2.wav"), files) == Path("kiritan02.xml")
    assert partner(Path("itako02.wav"), files) is None
    assert partner(Path("3.wav"), files) is None
    assert partner(Path("song.wav"), files) is None


def test_folders_elsewhere_and_mistakes(corpus: Path, tmp_path: Path):
    (corpus / "wav").rename(tmp_path / "downloaded")
    options = ["--input_dir", str(corpus), "--output_dir", str(tmp_path / "out"), "--prompt_sec=0"]
    with pytest.raises(UserError, match="no recordings; the layout is wav"):
        kiritan.main(options)
    with pytest.raises(UserError, match="--label_dir=nowhere: no such folder"):
        kiritan.main([*options, "--label_dir=nowhere"])
    more = [f"--wav_dir={tmp_path / 'downloaded'}", "--name=itako", "--artist=Itako", "--no-skip-empty-lyrics"]
    kiritan.main([*options, *more])
    rows = lines_of(tmp_path / "out" / "itako.jsonl")
    assert [(row["idx"], row["artist"], row["lyrics"][:6]) for row in rows] == [
        ("itako_01", "Itako", "[verse"), ("itako_02", "Itako", "[inst]"), ("itako_10", "Itako", "[verse"),
    ]  # fmt: skip
