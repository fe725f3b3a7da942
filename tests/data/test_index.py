from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import songbloom.data.index as index_module
from songbloom.data.index import Facts, Index, build_index, cache_for, usable_durations
from songbloom.data.manifest import Song, songs_from
from songbloom.errors import UserError
from tests.audio.recordings import song, write

RATE = 8000


def _write(path: Path, seconds: float, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, song(seconds, RATE, 1, seed), RATE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for number in range(3):
        _write(data / f"song{number}.wav", 2 + number, number)
    return data


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were opened, in order of name."""
    names: list[str] = []
    real = index_module.examine

    def spy(path: Path) -> Facts:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(index_module, "examine", spy)
    return names


def _build(folder: Path, **settings: float) -> Index:
    return build_index(
        songs_from(audio_files_dir=folder),
        sample_rate=RATE,
        cache=cache_for(audio_files_dir=folder),
        where="here",
        **settings,  # type: ignore[arg-type]
    )


def test_lengths_are_exact_and_at_the_wanted_rate(folder: Path) -> None:
    write("mp3_vbr", folder, song(3.5, 44100))
    index = _build(folder)
    lengths = {one.song.path.name: one.total_length for one in index.songs}
    assert lengths == {"song0.wav": 16000, "song1.wav": 24000, "song2.wav": 32000, "mp3_vbr.mp3": 28000}
    assert index.songs[0].file_rate == 44100
    assert index.songs[0].duration == 3.5


def test_every_drop_is_told_in_one_line_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.mp3").touch()
    (folder / "noise.ogg").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.flac").write_text("no audio")
    soundfile.write(folder / "none.wav", np.zeros((0, 1)), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(30000), RATE)
    soundfile.write(folder / "hiss.wav", 0.0009 * np.ones(30000), RATE, subtype="FLOAT")
    soundfile.write(folder / "quiet.wav", np.r_[np.zeros(20000), 0.0012 * np.ones(30000)], RATE, subtype="FLOAT")
    _write(folder / "short.wav", 0.5)
    _write(folder / "long.wav", 9)
    index = _build(folder, min_duration=1, max_duration=8)
    assert [one.song.path.name for one in index.songs] == ["quiet.wav", "song0.wav", "song1.wav", "song2.wav"]
    kinds = {one.song.path.name: one.kind for one in index.dropped}
    assert kinds == {
        "empty.mp3": "empty", "none.wav": "empty", "noise.ogg": "unreadable", "text.flac": "unreadable",
        "silent.wav": "silent", "hiss.wav": "silent", "short.wav": "too short", "long.wav": "too long",
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    for name in kinds:
        assert sum(line.startswith(f"dropped {folder / name}: ") for line in lines) == 1
    assert f"dropped {folder / 'short.wav'}: 0.50 s is shorter than min_duration 1 s" in lines
    assert f"dropped {folder / 'long.wav'}: 9.00 s is not shorter than max_duration 8 s" in lines
    assert len(lines) == len(kinds) + 1
    assert lines[-1].startswith("data: 4 songs, 0.3 minutes; dropped 8 of 12: ")
    assert "2 silent" in lines[-1]


def test_the_same_report_is_printed_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_told", set())
    _build(folder)
    assert capsys.readouterr().out.count("data: 3 songs") == 1
    _build(folder)
    assert capsys.readouterr().out == ""


def test_who_reads_how_far_it_is_reads_that_it_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells after the first file; the others wait for that, and are too quick to be told of one by one."""
    told, asked, real = threading.Event(), itertools.count(1), index_module.examine

    def after_the_first(path: Path) -> Facts:
        assert path.name == "song0.wav" or told.wait(60)
        return real(path)

    def seconds() -> float:
        number = next(asked)
        if number == 3:  # the line is out
            told.set()
        return 0.0 if number == 1 else 1000.0

    monkeypatch.setattr(index_module, "examine", after_the_first)
    monkeypatch.setattr(index_module, "time", SimpleNamespace(monotonic=seconds))
    _build(folder)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" new files examined")]
    assert lines == ["data: 1 of 3 new files examined", "data: 3 of 3 new files examined"]


def test_a_missing_file_of_a_manifest_is_dropped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = folder / "songs.jsonl"
    manifest.write_text('{"audio_path": "gone.wav"}\n{"audio_path": "song1.wav"}\n{"audio_path": "song1.wav"}\n')
    index = build_index(songs_from(data_jsonl=manifest), sample_rate=RATE, cache=cache_for(data_jsonl=manifest))
    assert [one.song.path.name for one in index.songs] == ["song1.wav", "song1.wav"]
    assert [one.kind for one in index.dropped] == ["missing"]
    assert f"dropped {folder / 'gone.wav'}: no such file or directory" in capsys.readouterr().out


def test_nothing_usable_says_what_was_found_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        _write(tmp_path / f"short{number}.wav", 0.5)
    (tmp_path / "empty.ogg").touch()
    soundfile.write(tmp_path / "silent.flac", np.zeros(30000), RATE)
    with pytest.raises(UserError) as caught:
        _build(tmp_path, min_duration=2)
    assert capsys.readouterr().out == ""  # the error says all of it
    assert str(caught.value) == (
        "here: none of 7 songs can be used: 1 is empty (empty.ogg); "
        "5 shorter than min_duration 2 s (short0.wav, short1.wav, short2.wav and 2 more); "
        "1 is silent (nowhere above -60 dBFS) (silent.flac)"
    )


# --- the cache -------------------------------------------------------------------------------------------------------


def test_files_are_opened_once(folder: Path, examined: list[str]) -> None:
    (folder / "broken.mp3").write_bytes(b"x" * 999)
    first = _build(folder)
    assert sorted(examined) == ["broken.mp3", "song0.wav", "song1.wav", "song2.wav"]
    assert sum(1 for _ in folder.glob(".songbloom*")) == 1
    examined.clear()
    second = _build(folder)
    assert examined == []
    assert second == first


def test_only_what_changed_is_opened_again(folder: Path, examined: list[str]) -> None:
    _build(folder)
    examined.clear()
    _write(folder / "song1.wav", 5)
    _write(folder / "new.wav", 3)
    kept = (folder / "song2.wav").stat()
    os.utime(folder / "song2.wav", ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))  # another time, however close
    (folder / "song0.wav").unlink()
    index = _build(folder)
    assert sorted(examined) == ["new.wav", "song1.wav", "song2.wav"]
    assert {one.song.path.name: one.total_length for one in index.songs}["song1.wav"] == 5 * RATE


def test_other_limits_and_rates_need_no_file(folder: Path, examined: list[str]) -> None:
    _build(folder)
    examined.clear()
    index = build_index(
        songs_from(audio_files_dir=folder), sample_rate=16000, min_duration=2.5, cache=cache_for(audio_files_dir=folder)
    )
    assert [one.total_length for one in index.songs] == [48000, 64000]
    assert examined == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'{"format": 0, "files": {}}', b'{"format": 1}', b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"song0.wav": 3, "song1.wav": [1], "song2.wav": {"a": 1}}}', b"[" * 99999,
    ],
)  # fmt: skip
def test_a_damaged_cache_is_built_anew(content: bytes, folder: Path, examined: list[str]) -> None:
    whole = _build(folder)
    examined.clear()
    cache_for(audio_files_dir=folder).write_bytes(content)
    assert _build(folder) == whole
    assert len(examined) == 3
    examined.clear()
    assert _build(folder) == whole
    assert examined == []


def test_a_damaged_entry_is_looked_up_again(folder: Path, examined: list[str]) -> None:
    whole = _build(folder)
    path = cache_for(audio_files_dir=folder)
    cache = json.loads(path.read_text())
    cache["files"]["song0.wav"][2:] = [0, 0, 0, False, ""]
    cache["files"]["song1.wav"][2:] = ["many", 8000, 1, False, ""]
    path.write_text(json.dumps(cache))
    examined.clear()
    assert _build(folder) == whole
    assert sorted(examined) == ["song0.wav", "song1.wav"]


def test_a_folder_that_moves_keeps_its_index(folder: Path, examined: list[str]) -> None:
    _build(folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    examined.clear()
    assert [one.song.path.parent for one in _build(moved).songs] == [moved] * 3
    assert examined == []


def test_a_place_that_cannot_be_written_to(
    folder: Path, examined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the cache's place stands for a read-only disk, which root would not notice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    cache_for(audio_files_dir=folder).mkdir()
    (cache_for(audio_files_dir=folder) / "x").touch()
    whole = _build(folder)
    assert len(list((tmp_path / "elsewhere" / "songbloom").iterdir())) == 1
    examined.clear()
    assert _build(folder) == whole
    assert examined == []
    (tmp_path / "elsewhere" / "songbloom").rename(tmp_path / "aside")
    (tmp_path / "elsewhere" / "songbloom").touch()  # now there is no place at all
    assert _build(folder) == whole


def test_an_interrupted_search_goes_on(folder: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = index_module.examine

    def stop_at_the_last(path: Path) -> Facts:
        if path.name == "song2.wav":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(index_module, "examine", stop_at_the_last)
    songs = songs_from(audio_files_dir=folder)
    with pytest.raises(KeyboardInterrupt):
        build_index(songs, sample_rate=RATE, cache=cache_for(audio_files_dir=folder), threads=1)
    monkeypatch.setattr(index_module, "examine", real)
    known = json.loads(cache_for(audio_files_dir=folder).read_text())["files"]
    assert sorted(known) == ["song0.wav", "song1.wav"]
    assert len(_build(folder).songs) == 3


def test_a_file_that_may_not_be_read_is_asked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the disk refuses today it may give tomorrow: only what files hold is remembered."""
    real = index_module.examine

    def refuse(path: Path) -> Facts:
        if path.name == "song1.wav":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(index_module, "examine", refuse)
    assert len(_build(folder).songs) == 2
    assert f"dropped {folder / 'song1.wav'}: permission denied" in capsys.readouterr().out
    monkeypatch.setattr(index_module, "examine", real)
    assert len(_build(folder).songs) == 3


def test_without_a_cache_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.parent.rglob("*"))
    build_index([Song(folder / "song0.wav")], sample_rate=RATE)
    assert sorted(folder.parent.rglob("*")) == before


def test_durations_at_the_limits() -> None:
    kept, lengths = usable_durations([999.0, 1000.0, 1000.5, 2999.9, 3000.0], 100, 10, 30)
    assert (kept, lengths) == ([1, 2, 3], [1000, 1000, 2999])
    assert usable_durations([1e9], 100, 10, None) == ([0], [10**9])
