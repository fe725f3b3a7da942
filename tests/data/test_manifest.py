from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from songbloom.data.manifest import Song, songs_from
from songbloom.errors import UserError


def _jsonl(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "songs.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_folder_gives_every_audio_file_in_it_sorted(tmp_path: Path) -> None:
    for name in ("b.wav", "a/歌.mp3", "a/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    songs = songs_from(audio_files_dir=str(tmp_path))
    assert songs == [Song(tmp_path / "a" / "歌.mp3"), Song(tmp_path / "b.wav")]


def test_a_jsonl_line_is_a_song_with_all_its_fields(tmp_path: Path) -> None:
    record = {
        "audio_path": "sub/歌.wav", "artist": "Mei", "genre": "ballad", "lyrics": "さくら\nさくら", "idx": 7,
        "bpm": 90, "voices": ["a"],
    }  # fmt: skip
    songs = songs_from(data_jsonl=_jsonl(tmp_path, json.dumps(record, ensure_ascii=False)))
    assert songs == [
        Song(tmp_path / "sub" / "歌.wav", "Mei", "ballad", "さくら\nさくら", 7, {"bpm": 90, "voices": ["a"]})
    ]


def test_paths_may_be_absolute_or_go_up(tmp_path: Path) -> None:
    lines = '{"audio_path": "/music/a.wav"}\n{"audio_path": "../b.wav", "artist": null}\n'
    songs = songs_from(data_jsonl=_jsonl(tmp_path, lines))
    assert [song.path for song in songs] == [Path("/music/a.wav"), tmp_path.parent / "b.wav"]


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeff\r\n{"audio_path": "a.wav"}\r\n\r\n   \r\n{"audio_path": "b.wav", "lyrics": "x\u2028y"}'
    songs = songs_from(data_jsonl=_jsonl(tmp_path, text))
    assert [song.path.name for song in songs] == ["a.wav", "b.wav"]
    assert songs[1].lyrics == "x\u2028y"


GOOD = b'{"audio_path": "a.wav"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"audio_path": "a.wav"', "is not JSON"),
        (b"audio_path: a.wav", "is not JSON (Expecting value at column 1)"),
        (b"[1, 2]", "is a list, not an object"),
        (b'"a.wav"', "is text, not an object"),
        (b"12", "is a number, not an object"),
        (b"null", "is null, not an object"),
        (b"true", "is true, not an object"),
        (b'{"audio_file": "a.wav"}', "lacks audio_path"),
        (b'{"audiopath": "a.wav"}', "did you mean 'audio_path'"),
        (b"{}", "lacks audio_path; nothing is there"),
        (b'{"audio_path": 3}', "audio_path must be the path of a file, not a number"),
        (b'{"audio_path": ""}', "audio_path must be the path of a file, not empty text"),
        (b'{"audio_path": null}', "audio_path must be the path of a file, not null"),
        (b'{"audio_path": "a.wav", "artist": ["x"]}', "artist must be text, not a list"),
        (b'{"audio_path": "a.wav", "genre": {}}', "genre must be text, not an object"),
        (b'{"audio_path": "a.wav", "lyrics": 1.5}', "lyrics must be text, not a number"),
        (b'{"audio_path": "a.wav", "idx": [1]}', "idx must be a whole number or text, not a list"),
        (b'{"audio_path": "a.wav", "idx": 1.5}', "idx must be a whole number or text"),
        (b'{"audio_path": "\xff.wav"}', "is not UTF-8 text (byte 17"),
        (b"[" * 100000, "is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: bytes, says: str, tmp_path: Path) -> None:
    path = _jsonl(tmp_path, b"\n".join([GOOD, b"", line, GOOD]))
    with pytest.raises(UserError) as caught:
        songs_from(data_jsonl=path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "neither is given"),
        ({"audio_files_dir": "a", "data_jsonl": "b"}, "both are given"),
        ({"audio_files_dir": "nowhere"}, "nowhere: no such folder"),
        ({"audio_files_dir": "file"}, "is a file, not a folder"),
        ({"audio_files_dir": "folder"}, "no audio file (wav, flac, ogg, opus, mp3, m4a, aac) among 1 file in it"),
        ({"data_jsonl": "nowhere.jsonl"}, "no such file or directory"),
        ({"data_jsonl": "folder"}, "is a directory"),
        ({"data_jsonl": "blank.jsonl"}, "holds no line"),
    ],
)
def test_a_source_without_songs_is_told(
    arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder/readme.txt").touch()
    Path("blank.jsonl").write_text("\n  \n")
    with pytest.raises(UserError) as caught:
        songs_from(**arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
