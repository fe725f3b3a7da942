from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.audio.files import read_audio
from songbloom.data.dataset import ChunkDataset, chunk_count, duration_limits, locate, split_songs
from songbloom.errors import UserError
from tests.audio.recordings import encode, song, write

RATE = 8000
LENGTH = 4096


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten songs of different kinds and lengths."""
    data = tmp_path_factory.mktemp("songs")
    for number in range(7):
        soundfile.write(data / f"song{number}.wav", song(1.5 + 0.37 * number, RATE, 2, number), RATE)
    write("mp3", data, song(2.2, 44100, seed=10))
    write("vorbis", data, song(3.3, 44100, seed=11))
    encode(data / "mono.m4a", song(2.7, 22050, 1, 12), 22050, "aac", container="ipod")
    return data


def _hps(folder: Path, **more: Any) -> dict[str, Any]:
    common = {
        "audio_files_dir": str(folder), "data_jsonl": "", "sr": RATE, "channels": 2, "sample_length": LENGTH, "seed": 0,
        "min_duration": None, "max_duration": None, "aug_shift": False, "aug_blend": False, "train_test_split": 0.8,
    }  # fmt: skip
    return common | more


# --- the arithmetic --------------------------------------------------------------------------------------------------


def _locate_slowly(item: int, shift: int, length: int, durations: list[int]) -> tuple[int, int]:
    """The same rule, walked song by song."""
    half, offset = length // 2, item * length + shift
    start, number = 0, 0
    while start + durations[number] < offset + half:
        start += durations[number]
        number += 1
    end = start + durations[number]
    if offset > end - length:
        offset = max(start, offset - half)
    elif offset < start:
        offset = min(end - length, offset + half)
    return number, min(offset, end - length) - start


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 50), st.lists(st.integers(0, 200), min_size=1, max_size=6), st.data())
def test_every_chunk_lies_inside_one_song(length: int, extra: list[int], data: st.DataObject) -> None:
    durations = [length + more for more in extra]
    ends = np.cumsum(durations)
    for item in range(chunk_count(durations, length)):
        shift = data.draw(st.integers(-(length // 2), length // 2 - 1))
        number, offset = locate(item, shift, length, ends)
        assert 0 <= offset <= durations[number] - length
        assert (number, offset) == _locate_slowly(item, shift, length, durations)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sets(st.text(max_size=5), min_size=1, max_size=40), st.floats(0, 1), st.integers(-3, 10**12))
def test_songs_are_divided(names: set[str], fraction: float, seed: int) -> None:
    listed = sorted(names)
    train, test = split_songs(listed, fraction, seed)
    assert sorted(train + test) == list(range(len(listed)))
    assert len(train) == max(1, int(len(listed) * fraction))
    assert split_songs(listed, fraction, seed) == (train, test)


def test_added_songs_move_few_others() -> None:
    names = [f"song {i}" for i in range(100)]
    before = {names[i] for i in split_songs(names, 0.9, 0)[1]}
    more = [*names, *[f"other {i}" for i in range(10)]]
    after = {more[i] for i in split_songs(more, 0.9, 0)[1]}
    assert len(before & after) >= 7
    assert split_songs(names, 0.9, 1)[1] != split_songs(names, 0.9, 0)[1]


# --- the data set ----------------------------------------------------------------------------------------------------


def test_items_are_the_audio_of_their_place(folder: Path) -> None:
    dataset = ChunkDataset(_hps(folder))
    assert len(dataset) == sum(one.total_length for one in dataset.songs) // LENGTH > 20
    seen = set()
    for number in range(len(dataset)):
        item = dataset[number]
        assert set(item) == {"audio", "song", "offset", "replaced"}
        assert item["audio"].shape == (LENGTH, 1)
        assert item["audio"].dtype == np.float32
        one = dataset.songs[item["song"]]
        assert 0 <= item["offset"] <= one.total_length - LENGTH
        stereo = read_audio(one.song.path, sample_rate=RATE, offset=item["offset"], length=LENGTH, channels=2)
        assert np.abs(item["audio"][:, 0] - stereo.mean(axis=1)).max() < 1e-6
        seen.add(item["song"])
    assert seen == set(range(len(dataset.songs)))
    assert np.array_equal(dataset[-1]["audio"], dataset[len(dataset) - 1]["audio"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_train_and_test_share_no_song(folder: Path) -> None:
    train, test = (ChunkDataset(_hps(folder), split) for split in ("train", "test"))
    assert (len(train.songs), len(test.songs)) == (8, 2)
    assert not {one.song.path for one in train.songs} & {one.song.path for one in test.songs}
    other = ChunkDataset(_hps(folder, seed=5), "test")
    assert {one.song.path for one in other.songs} != {one.song.path for one in test.songs}


def test_shifts_depend_on_seed_epoch_and_item_alone(folder: Path) -> None:
    dataset = ChunkDataset(_hps(folder, aug_shift=True))
    plain = ChunkDataset(_hps(folder))
    places = {epoch: [dataset.place(epoch, i)[:2] for i in range(len(dataset))] for epoch in (0, 1)}
    assert places[0] != places[1]
    items = (dataset.item(1, i) for i in reversed(range(len(dataset))))
    backwards = [(item["song"], item["offset"]) for item in items]
    assert backwards[::-1] == places[1]
    again = ChunkDataset(_hps(folder, aug_shift=True))
    assert [again.place(1, i)[:2] for i in range(len(again))] == places[1]
    seeded = ChunkDataset(_hps(folder, aug_shift=True, seed=1, train_test_split=1.0))
    whole = ChunkDataset(_hps(folder, aug_shift=True, train_test_split=1.0))
    assert [seeded.place(0, i) for i in range(9)] != [whole.place(0, i) for i in range(9)]
    for i, (number, offset) in enumerate(places[0]):
        there, where = plain.place(0, i)[:2]
        assert number != there or abs(offset - where) <= LENGTH  # moved, but not far


def test_test_chunks_are_neither_shifted_nor_blended(folder: Path) -> None:
    plain = ChunkDataset(_hps(folder), "test")
    augmented = ChunkDataset(_hps(folder, aug_shift=True, aug_blend=True), "test")
    assert [augmented.place(3, i) for i in range(len(plain))] == [plain.place(0, i) for i in range(len(plain))]


def test_blending_weighs_left_and_right(folder: Path) -> None:
    dataset = ChunkDataset(_hps(folder, aug_blend=True))
    mixes = []
    for number in range(len(dataset)):
        _, offset, mix = dataset.place(0, number)
        item = dataset[number]
        stereo = read_audio(
            dataset.songs[item["song"]].song.path, sample_rate=RATE, offset=offset, length=LENGTH, channels=2
        )
        assert np.abs(item["audio"][:, 0] - (mix * stereo[:, 0] + (1 - mix) * stereo[:, 1])).max() < 1e-6
        mixes.append(mix)
    assert 0 <= min(mixes) < 0.25
    assert 0.75 < max(mixes) <= 1
    assert dataset.place(0, 0)[2] != dataset.place(1, 0)[2]


def test_one_channel_is_read_as_mono(folder: Path) -> None:
    mono, stereo = (ChunkDataset(_hps(folder, channels=n, aug_blend=n == 1)) for n in (1, 2))
    assert np.abs(mono[3]["audio"] - stereo[3]["audio"]).max() < 1e-6


def test_songs_keep_what_the_manifest_says(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text(
        "".join(
            f'{{"audio_path": "{folder / f"song{i}.wav"}", "artist": "a{i}", "lyrics": "l{i}", "x": {i}}}\n'
            for i in range(5)
        )
    )
    dataset = ChunkDataset(_hps(folder, audio_files_dir="", data_jsonl=str(manifest), train_test_split=0.9))
    item = dataset[5]
    one = dataset.songs[item["song"]]
    number = one.song.path.stem[-1]
    assert (one.song.artist, one.song.lyrics, one.song.extra) == (f"a{number}", f"l{number}", {"x": int(number)})
    assert one.total_length == len(read_audio(one.song.path))


def test_data_that_moves_is_divided_the_same(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    here, there = (ChunkDataset(_hps(place), "test") for place in (folder, tmp_path))
    assert [one.song.path.name for one in here.songs] == [one.song.path.name for one in there.songs]


# --- what does not work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_duration": 0.1}, "min_duration=0.1 s is shorter than a chunk (sample_length 4096 at 8000 Hz = 0.512 s)"),
        ({"max_duration": 1.0}, "max_duration=1 s leaves no song"),
        ({"min_duration": 60.0}, "none of 10 songs can be used: 10 shorter than min_duration 60 s"),
        ({"min_duration": 60.0}, "lower --min_duration (--sample_length=4096 at 8000 Hz is 0.5 s, the least)"),
        ({"sample_length": 768_000}, "--sample_length=768000 at 8000 Hz is 96.0 s: lower --sample_length for"),
        (
            {"sample_length": 768_000, "prior": True, "n_ctx": 8000},
            "--n_ctx=8000 codes of 96 samples at 8000 Hz are 96.0 s: lower --n_ctx for shorter songs",
        ),
        ({"sample_length": 0}, "sample_length=0"),
        ({"channels": 3}, "channels=3"),
        ({"train_test_split": 1.5}, "train_test_split=1.5"),
        ({"audio_files_dir": ""}, "neither is given"),
        ({"data_jsonl": "x.jsonl"}, "both are given"),
    ],
)
def test_settings_that_cannot_work_are_told(settings: dict[str, Any], says: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        ChunkDataset(_hps(folder, **settings))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_test_set_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_test_split=1 of 10 songs leaves none"):
        ChunkDataset(_hps(folder, train_test_split=1.0), "test")
    (tmp_path / "only.wav").write_bytes((folder / "song5.wav").read_bytes())
    assert len(ChunkDataset(_hps(tmp_path)).songs) == 1
    with pytest.raises(UserError, match="of 1 song leaves none"):
        ChunkDataset(_hps(tmp_path), "test")
    with pytest.raises(UserError, match="did you mean 'test'"):
        ChunkDataset(_hps(tmp_path), "tset")


def test_limits_by_default_are_whole_seconds_that_hold_a_chunk() -> None:
    assert duration_limits({"sr": 8000, "sample_length": 8001}) == (2.0, None)
    assert duration_limits({"sr": 8000, "sample_length": 16000, "max_duration": 9}) == (2.0, 9.0)
    assert duration_limits({"sr": 8000, "sample_length": 16000, "min_duration": 2.5}) == (2.5, None)


@pytest.fixture
def fragile(folder: Path, tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"song{number}.wav").write_bytes((folder / f"song{number}.wav").read_bytes())
    return tmp_path


@pytest.mark.parametrize("harm", ["remove", "empty", "cut", "garbage"])
def test_a_file_that_goes_bad_is_replaced(harm: str, fragile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = ChunkDataset(_hps(fragile, train_test_split=1.0))
    reference = [dataset[i] for i in range(len(dataset))]
    victim = fragile / "song1.wav"
    if harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes({"empty": b"", "cut": victim.read_bytes()[:100], "garbage": b"\1" * 9999}[harm])
    capsys.readouterr()
    items = [dataset[i] for i in range(len(dataset))]
    lost = [i for i, item in enumerate(reference) if dataset.songs[item["song"]].song.path == victim]
    assert len(lost) >= 2
    for i, (before, after) in enumerate(zip(reference, items, strict=True)):
        assert after["replaced"] == int(i in lost)
        if i in lost:
            assert dataset.songs[after["song"]].song.path != victim
            assert after["audio"].shape == (LENGTH, 1)
        else:
            assert np.array_equal(before["audio"], after["audio"])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {victim}: ")
    again = ChunkDataset.__new__(ChunkDataset)
    again.__dict__.update(dataset.__dict__)
    assert all(np.array_equal(again[i]["audio"], items[i]["audio"]) for i in lost)  # the same one steps in each time


def test_data_that_vanishes_altogether_ends_training(fragile: Path) -> None:
    dataset = ChunkDataset(_hps(fragile, train_test_split=1.0))
    for path in fragile.glob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match="20 chunks in a row cannot be read") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)


def test_misspelt_fields_are_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in folder.glob("*.wav"))
    path = folder / "songs.jsonl"
    rows = [{"audio_path": name, "lyrcs": "la", "mood": "glad", "lyrics": None} for name in names[:5]]
    path.write_text("\n".join(map(json.dumps, rows)))
    for split in ("train", "test"):
        ChunkDataset(_hps(folder) | {"audio_files_dir": "", "data_jsonl": str(path), "train_test_split": 0.5}, split)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert told == [
        *(f"note: {path}:{line}: nothing reads the field 'lyrcs' (did you mean 'lyrics'?)" for line in (1, 2, 3)),
        "note: 2 more fields like these: python -m songbloom.data.check lists all",
    ]
