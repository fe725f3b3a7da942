"""Labels of a data set's songs, and what a person hears about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from songbloom.data.dataset import ChunkDataset, duration_limits
from songbloom.data.index import IndexedSong
from songbloom.data.label_tables import LabelTables
from songbloom.data.labels import Labeller
from songbloom.data.loader import make_loader
from songbloom.data.manifest import Song
from songbloom.data.song_labels import known_of, prepared, unfitting
from songbloom.errors import UserError
from songbloom.lyrics.tokens import Tokens
from songbloom.lyrics.vocabulary import vocabulary
from tests.training.runs import RATE, write_songs

LENGTH = 2048
ROWS: list[dict[str, Any]] = [
    {"artist": "Mei", "genre": "folk", "lyrics": "la la la lu"},
    {"artist": "Ken", "genre": "rock", "lyrics": "abcdefghijklmnopqrstuvwxyz"},
    {"artist": "Mei"},
]


def labeller(n_tokens: int = 4, bow: int = 1) -> Labeller:
    tables = LabelTables(3, {"unknown": 0, "ken": 1, "mei": 2}, {"unknown": 0, "folk": 1, "rock": 2})
    return Labeller(
        *(tables, vocabulary("v3")), max_bow_genre_size=bow, n_tokens=n_tokens, sample_length=LENGTH, sr=RATE
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_songs(tmp_path / "songs", songs=3)
    lines = [{"audio_path": f"songs/song_{i}.wav", **row} for i, row in enumerate(ROWS)]
    (tmp_path / "songs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def dataset(folder: Path, **more: Any) -> ChunkDataset:
    hps = {"data_jsonl": str(folder / "songs.jsonl"), "sr": RATE, "sample_length": LENGTH, "train_test_split": 1.0}
    return ChunkDataset(hps | {"aug_shift": True, "channels": 1}, labeller=labeller(), **more)


def test_items_have_the_labels_of_their_chunk(folder: Path) -> None:
    data = dataset(folder)
    maker = labeller()
    for item in range(len(data)):
        found = data.item(3, item)
        song, row = data.songs[found["song"]], ROWS[found["song"]]
        label = maker.label(row.get("artist"), row.get("genre"), row.get("lyrics"), song.total_length, found["offset"])
        assert torch.equal(found["labels"], label.y)
        assert found["labels"].shape == (maker.width,) and found["labels"][0] == 12000


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_stacks_them(folder: Path, workers: int) -> None:
    data = dataset(folder)
    for batch in make_loader(data, batch=2, workers=workers):
        assert batch["labels"].shape == (2, 9) and batch["labels"].dtype == torch.int64
        assert batch["labels"][:, 1].tolist() == batch["offset"].tolist()


def test_a_hook_knows_more(folder: Path) -> None:
    calls = []

    def hook(path: str, test: bool) -> tuple[str, None, None]:
        calls.append(test)
        return "Ken", None, None

    data = dataset(folder, get_metadata=hook)
    assert {int(data[item]["labels"][3]) for item in range(len(data))} == {1} and calls == [False] * 3


def test_without_a_labeller_there_are_no_labels(folder: Path) -> None:
    hps = {"data_jsonl": str(folder / "songs.jsonl"), "sr": RATE, "sample_length": LENGTH, "train_test_split": 1.0}
    assert "labels" not in ChunkDataset(hps)[0]


def labeller_that_cannot_read(monkeypatch: pytest.MonkeyPatch) -> Labeller:
    """One whose vocabulary fails where there are words."""
    made = labeller()
    empty = made.vocabulary.tokenize("")

    def tokenize(text: str, **options: Any) -> Tokens:
        assert not text, "it was read again"
        return empty

    monkeypatch.setattr(made.vocabulary, "tokenize", tokenize)
    return made


def test_words_are_read_again_when_anything_else_is_asked_and_the_file_may_go(tmp_path: Path) -> None:
    cache = tmp_path / "words.npz"
    song = IndexedSong(Song(Path("/a.wav"), lyrics="la la"), 8000, RATE, 1, 8000)
    (first,) = prepared(labeller(), [song], cache=cache)
    other = Labeller(
        *(labeller().tables, vocabulary("v2")), max_bow_genre_size=1, n_tokens=4, sample_length=LENGTH, sr=RATE
    )
    (second,) = prepared(other, [song], cache=cache)
    assert first.ids.tolist() != second.ids.tolist()
    for content in (b"no archive", b""):
        cache.write_bytes(content)
        assert prepared(labeller(), [song], cache=cache)[0].ids.tolist() == first.ids.tolist()
    (tmp_path / "file").write_text("where a folder should be")
    assert prepared(labeller(), [song], cache=tmp_path / "file" / "words.npz")[0].ids.tolist() == first.ids.tolist()


def test_remarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [{"text": "la", "start": 1.0, "end": 12.0}]
    others = [{"text": "zzzzzz zzzz", "start": 1.0, "end": 2.0}]
    songs = [
        Song(Path("/emoji.wav"), "Mei", "folk", "la 😀\nlu ★"),
        Song(Path("/long.wav"), "Mei", "folk", "x" * 100),
        Song(Path("/late.wav"), "Mei", "folk", "la", extra={"phrases": times}),
        Song(Path("/other.wav"), "Mei", "folk", "wholly different", extra={"phrases": others}),
        Song(Path("/none.wav"), "Mei", "folk"),
    ]
    said: list[str] = []
    ready = prepared(labeller(), [IndexedSong(song, 80000, RATE, 1, 80000) for song in songs], say=said.append)
    assert [len(each.ids) for each in ready] == [7, 100, 2, 16, 0]
    assert [each.times is not None for each in ready] == [False, False, True, False, False]
    text = "\n".join(said)
    assert "/emoji.wav: line 1, column 4: '😀' has no letters in vocabulary v3 and is left out" in text
    assert "/emoji.wav: line 2, column 4: '★'" in text
    assert "/late.wav: its last word ends at 12.00 s, and the song at 10.00 s" in text
    assert "/other.wav: its times are not used, and its words are spread evenly: the times are of other words" in text
    more: list[str] = []
    for others, rest in ((1, "; 1 other is for testing"), (3, "; 3 others are for testing")):
        prepared(labeller(), [IndexedSong(songs[0], 80000, RATE, 1, 80000)], others=others, say=more.append)
        assert more[-1] == f"lyrics: 1 of 1 song to train on has some, 0 with times; 7 tokens of v3{rest}"
    prepared(labeller(), [], test=True, others=5, say=more.append)
    assert more[-1] == "lyrics: 0 of 0 songs to test on have some, 0 with times; 0 tokens of v3"
    assert said[-1] == "lyrics: 4 of 5 songs to train on have some, 1 with times; 125 tokens of v3"
    cache = tmp_path / "words.npz"
    for make in (labeller, lambda: labeller_that_cannot_read(monkeypatch)):
        maker = make()
        told: list[str] = []
        again = prepared(
            maker, [IndexedSong(song, 80000, RATE, 1, 80000) for song in songs], cache=cache, say=told.append
        )
        assert told == said
        for one, other in zip(ready, again, strict=True):
            assert (one.artist_id, one.genre_ids) == (other.artist_id, other.genre_ids)
            np.testing.assert_array_equal(one.ids, other.ids)
            assert (one.times is None) == (other.times is None)
            if one.times is not None and other.times is not None:
                np.testing.assert_array_equal(one.times, other.times)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^/other\.wav: the times are of other words"):
        known_of(labeller(), songs[3])


def test_lyrics_longer_than_the_song() -> None:
    maker = labeller(n_tokens=16)
    known = maker.known(None, None, "x" * 1000)
    assert unfitting(known, 10 * LENGTH, maker) == (
        "its lyrics are too long for it: 1000 tokens in 2.6 s are 100 in the 0.3 s of a window, which shows 16"
    )
    assert unfitting(known, 100 * LENGTH, maker) == ""
    assert unfitting(maker.known(None, None, ""), 10, maker) == ""


def test_many_remarks_are_counted() -> None:
    songs = [IndexedSong(Song(Path(f"/{i}.wav"), lyrics="★"), 8000, RATE, 1, 8000) for i in range(9)]
    said: list[str] = []
    prepared(labeller(), songs, say=said.append)
    assert sum("'★'" in line for line in said) == 5
    assert "note: … and 4 more such symbols of lyrics" in said


def test_a_genre_of_too_many_words_names_its_song() -> None:
    tables = LabelTables(2, {}, {"indie": 1, "folk": 2})
    maker = Labeller(tables, vocabulary("v2"), max_bow_genre_size=1, n_tokens=0, sample_length=LENGTH)
    song = IndexedSong(Song(Path("/a.wav"), genre="indie folk"), 8000, RATE, 1, 8000)
    with pytest.raises(UserError, match=r"^/a\.wav: genre 'indie folk' has 2 words, and the model takes 1"):
        prepared(maker, [song])


def test_shortest_songs_of_a_prior_with_labels_hold_a_chunk() -> None:
    """Its min_duration is that of the timing labels, which may be less than its window."""
    hps = {"sr": 22050, "sample_length": 2097152, "min_duration": 60.0, "max_duration": 600.0}
    assert duration_limits({**hps, "prior": True, "labels": True}) == (96.0, 600.0)
    with pytest.raises(UserError, match="is shorter than a chunk"):
        duration_limits({**hps, "prior": True, "labels": False})
