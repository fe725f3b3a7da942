"""``python -m songbloom.lyrics show FILE``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from songbloom.lyrics.__main__ import main

SCORES = Path(__file__).parent / "scores"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main([*arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_lines_with_reading_phonemes_and_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "song.txt"
    path.write_text("[Verse]\n夢を見て、\n\n君と😀歩く\n", encoding="utf-8")
    status, out, err = run(capsys, "show", str(path))
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "[Verse]",
        "    reading   [verse]",
        "    phonemes",
        "    tokens    [verse]",
        "    ids       7",
        "夢を見て、",
        "    reading   ユメヲミテ,",
        "    phonemes  y u m e o m i t e",
        "    tokens    y u m e o m i t e ,",
        "    ids       77 43 75 44 45 75 42 58 44 2",
        "君と😀歩く",
        "    reading   キミトアルク",
        "    phonemes  k i m i t o a r u k u",
        "    tokens    k i m i t o a r u k u",
        "    ids       48 42 75 42 58 45 41 78 43 48 43",
        "",
        "ja_phonemes: 23 tokens of 81 kinds, 1 problem",
        "  line 4, column 3: '😀' is not sung and is left out",
    ]


def test_other_vocabularies_and_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "song.txt"
    path.write_text("Love は", encoding="utf-8")
    assert (
        "    tokens    Love ha\n    ids       12 41 48 31 77 34 27\n"
        in run(capsys, "show", str(path), "--lyrics_vocab=v2")[1]
    )
    assert "reading   ラブワ" in run(capsys, "show", str(path), "--lyrics-vocab", "ja_kana")[1]
    assert "reading   <l><o><v><e>ハ" in run(capsys, "show", str(path), "--english=keep", "--reading=kana")[1]


def test_times_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    status, out, _ = run(capsys, "show", str(SCORES / "ja_song_02.musicxml"), "--lyrics_vocab=ja_kana")
    assert status == 0
    assert out.startswith("    2.00 – 6.00 s  きっとまたあえる\n")
    path = tmp_path / "song.txt"
    path.write_text("きっとまた会える", encoding="utf-8")
    assert run(capsys, "show", str(path), "--times", str(SCORES / "ja_song_02.lab"))[1].startswith("    2.00 – 6.00 s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["show"], "FILE"),
        (["show", "a", "--lyric_vocab=v2"], "did you mean '--lyrics_vocab'"),
        (["show", str(SCORES / "ja_song_02.lab")], "holds phonemes, not words"),
        (["show", str(SCORES / "ja_song_02.musicxml"), "--lyrics_vocab=v4"], "no vocabulary 'v4'"),
        (["show", str(SCORES / "ja_song_02.musicxml"), "--english=no"], "english is 'no'"),
        (["sing", "a"], "invalid choice: 'sing'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_the_program(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "songbloom.lyrics", "show", "-", "--lyrics_vocab=v3"],
        input="la 夢\n", capture_output=True, encoding="utf-8", timeout=600, check=True,
    )  # fmt: skip
    assert "    tokens    la Meng\n" in done.stdout
    help_text = subprocess.run(
        [sys.executable, "-m", "songbloom.lyrics", "show", "--help"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout
    assert all(option in help_text for option in ("--lyrics_vocab", "--english", "--reading", "--times"))
