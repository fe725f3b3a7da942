"""What is known about songs: sidecars, hooks and times of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from songbloom.data.manifest import Song, songs_from
from songbloom.data.metadata import asked, described, import_hook, timed_text
from songbloom.errors import UserError


def song_with(folder: Path, name: str, content: Any) -> None:
    (folder / name).touch()
    text = content if isinstance(content, (str, bytes)) else json.dumps(content, ensure_ascii=False)
    (folder / name).with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_json_file_beside_a_song_tells_about_it(tmp_path: Path) -> None:
    song_with(tmp_path, "a.wav", {"artist": "Mei", "genre": "folk", "lyrics": "さくら", "tempo": 90})
    (tmp_path / "b.mp3").touch()
    first, second = songs_from(audio_files_dir=tmp_path, sidecars=True)
    assert first == Song(tmp_path / "a.wav", "Mei", "folk", "さくら", extra={"tempo": 90})
    assert second == Song(tmp_path / "b.mp3")
    assert songs_from(audio_files_dir=tmp_path)[0] == Song(tmp_path / "a.wav")
    assert described(tmp_path, None) == [first, second]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "a.json: is not JSON"),
        ([1], 'is a list, not an object like {"artist": "Mei"}'),
        ({"artist": 3}, "artist must be text, not a number"),
        (b"\xff", "is not UTF-8"),
        ('{"lyrics": "\\ud83d"}', "lyrics has half of a character"),
    ],
)
def test_a_file_beside_a_song_that_cannot_be_read(content: Any, says: str, tmp_path: Path) -> None:
    song_with(tmp_path, "a.wav", content)
    with pytest.raises(UserError) as caught:
        songs_from(audio_files_dir=tmp_path, sidecars=True)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert songs_from(audio_files_dir=tmp_path) == [Song(tmp_path / "a.wav")]  # who wants no labels is not bothered


def test_a_hook_counts_more_than_the_file() -> None:
    song = Song(Path("/x/a.wav"), "Mei", "folk", "la", extra={"bpm": 3})
    calls = []

    def hook(path: str, test: bool) -> tuple[str, None, str]:
        calls.append((path, test))
        return "Ken", None, "lu"

    assert asked(song, hook, test=True) == Song(Path("/x/a.wav"), "Ken", "folk", "lu", extra={"bpm": 3})
    assert calls == [("/x/a.wav", True)]
    phrases = [{"text": "a", "start": 0, "end": 1}]
    told = asked(song, lambda path, test: {"genre": "jazz", "phrases": phrases}, test=False)
    assert (told.artist, told.genre, told.extra) == ("Mei", "jazz", {"bpm": 3, "phrases": phrases})
    assert asked(song, lambda path, test: None, test=False) is song
    assert asked(song, None, test=False) is song


@pytest.mark.parametrize("answer", ["Mei", ("Mei", "folk"), 3, ("Mei", 3, None)])
def test_a_hook_that_gives_something_else(answer: Any) -> None:
    with pytest.raises(UserError, match=r"get_metadata (gave|for)"):
        asked(Song(Path("/a.wav")), lambda path, test: answer, test=False)


def test_hooks_are_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook_of_mine.py").write_text("def tell(path, test):\n    return path, None, None\n")
    monkeypatch.chdir(tmp_path)
    assert import_hook("hook_of_mine:tell")("x", False) == ("x", None, None)
    for name, says in [
        ("hook_of_mine", "give module:function"),
        ("no_such_hooks:tell", "'no_such_hooks' cannot be imported"),
        ("hook_of_mine:tel", r"no function 'tel' \(did you mean 'tell'\?\)"),
    ]:
        with pytest.raises(UserError, match=says):
            import_hook(name)


# --- times ----------------------------------------------------------------------------------------------------------

PHRASES = [{"text": "la la", "start": 1.0, "end": 2.0}, {"text": "lu", "start": 3, "end": 3.5}]


def test_times_are_found_where_they_are_written(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    assert timed_text(Song(audio)) is None
    timed = timed_text(Song(audio, extra={"phrases": PHRASES}))
    assert timed is not None and timed.text == "la la\nlu" and timed.times == ((1.0, 2.0), (3.0, 3.5))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.lrc").write_text("[00:01.50]la\n[00:02.50]lu\n")
    jsonl = Song(audio, extra={"lrc_path": "words/a.lrc"}, folder=tmp_path)
    timed = timed_text(jsonl)
    assert timed is not None and [start for start, _ in timed.times] == [1.5, 2.5]
    (tmp_path / "a.lrc").write_text("[00:09.00]beside\n")
    timed = timed_text(Song(audio))
    assert timed is not None and timed.text.strip() == "beside"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"phrases": "la"}, "phrases must be a list"),
        ({"phrases": [{"text": "la", "start": 1.0}]}, r"/a\.wav, phrases, entry 1: end is None"),
        ({"phrases": [{"start": 1.0, "end": 2.0}]}, "entry 1: has no text"),
        ({"lrc_path": 3}, "lrc_path must be the path of a file"),
        ({"lab_path": "nowhere.lab"}, "nowhere.lab"),
        ({"timed_path": "a.txt"}, "no reader of timed words"),
    ],
)
def test_times_that_cannot_be_read(extra: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        timed_text(Song(tmp_path / "a.wav", extra=extra, folder=tmp_path))
    assert "\n" not in str(caught.value)
