"""Id tables, label vectors, and the words that windows show."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data import labels as labels_module
from songbloom.data.label_tables import LabelTables, normal_name, parse_table
from songbloom.data.labels import Labeller
from songbloom.data.manifest import Song
from songbloom.errors import UserError
from songbloom.lyrics.vocabulary import vocabulary

SONGS = [
    Song(Path("/a.wav"), "Mei Light", "Hip-Hop/Rap", "la"),
    Song(Path("/b.wav"), "mei light", "new wave", None),
    Song(Path("/c.wav"), "宇多田ヒカル", None, None),
    Song(Path("/d.wav"), None, "New Wave", None),
]


def labeller(version: int = 3, *, bow: int = 1, n_tokens: int = 8, heard: list[str] | None = None, **more: Any):
    return Labeller(
        LabelTables.build(SONGS, version),
        vocabulary(f"v{version}"),
        max_bow_genre_size=bow,
        n_tokens=n_tokens,
        sample_length=100,
        notice=(heard if heard is not None else []).append,
        **more,
    )


# --- names and tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "second", "third"),
    [
        ("Mei Light", "mei_light", "mei light"),
        ("  AC/DC!! ", "ac_dc", "  ac/dc!! "),
        ("Beyoncé", "beyonc", "beyoncé"),
        ("宇多田ヒカル", "", "宇多田ヒカル"),
    ],
)
def test_names_are_spelt_by_version(name: str, second: str, third: str) -> None:
    assert (normal_name(name, 2), normal_name(name, 3)) == (second, third)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_names_of_version_2_are_ascii_words_and_stay(name: str) -> None:
    normal = normal_name(name, 2)
    assert set(normal) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert "__" not in normal and normal == normal.strip("_") == normal_name(normal, 2)


def test_tables_are_built_from_songs() -> None:
    assert LabelTables.build(SONGS, 3) == LabelTables(
        3,
        {"unknown": 0, "mei light": 1, "宇多田ヒカル": 2},
        {"unknown": 0, "hip-hop/rap": 1, "new wave": 2},
    )
    second = LabelTables.build(SONGS, 2)
    assert second.artists == {"unknown": 0, "mei_light": 1}
    assert second.genres == {"unknown": 0, "hip": 1, "hop": 2, "new": 3, "rap": 4, "wave": 5}
    assert second.y_bins == (6, 2)
    assert second.genre_ids("Hip-Hop/Rap") == [1, 2, 4] and second.genre_name([1, 2, 4, -1]) == "hip_hop_rap"
    with pytest.raises(UserError, match=r"/x\.wav: its artist 'a\\nb' has a line break"):
        LabelTables.build([Song(Path("/x.wav"), "a\nb")], 3)


def test_tables_are_written_and_read(tmp_path: Path) -> None:
    tables = LabelTables.build(SONGS, 3)
    artist, genre = tables.write(tmp_path / "tables")
    assert artist.read_text(encoding="utf-8") == "unknown;0\nmei light;1\n宇多田ヒカル;2\n"
    assert genre.name == "v3_genre_ids.txt"
    assert LabelTables.read_folder(tmp_path / "tables", 3) == tables
    assert LabelTables.from_plain(json.loads(json.dumps(tables.plain()))) == tables
    with pytest.raises(UserError, match=r"lacks v2_artist_ids\.txt \(it has v3_artist_ids\.txt, v3_genre_ids\.txt\)"):
        LabelTables.read_folder(tmp_path / "tables", 2)
    with pytest.raises(UserError, match=r"no such folder; it should hold v3_artist_ids\.txt and v3_genre_ids\.txt"):
        LabelTables.read_folder(tmp_path / "nowhere", 3)
    genre.write_bytes("new wave;1\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"v3_genre_ids\.txt: is not UTF-8"):
        LabelTables.read_folder(tmp_path / "tables", 3)


def test_names_may_share_an_id_and_hold_a_semicolon() -> None:
    table = parse_table("Unknown;0\r\n\r\ntin fox;3\nalso; tin fox;3\n")
    assert table == {"unknown": 0, "tin fox": 3, "also; tin fox": 3}
    assert LabelTables(3, table, {}).artist_name(3) == "also; tin fox_tin fox"


@pytest.mark.parametrize("line", ["tin fox", "tin fox;", "tin fox;x", "tin fox;-1", "tin fox;1.5"])
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(UserError, match=r"ids\.txt:2: .* is not a line of the form name;id"):
        parse_table(f"a;1\n{line}\n", "ids.txt")


def test_a_name_with_two_ids() -> None:
    with pytest.raises(UserError, match="table:3: 'A' has two ids, 1 and 2"):
        parse_table("a;1\nb;2\nA;2\n")


def test_rows_of_embeddings_must_suffice() -> None:
    tables = LabelTables.build(SONGS, 3)
    tables.check_fits((3, 3))
    with pytest.raises(UserError, match=r"y_bins=\(3, 2\) has room for 2 artists.*--y_bins=3,3"):
        tables.check_fits((3, 2))


# --- vectors --------------------------------------------------------------------------------------------------------


def test_a_label_vector() -> None:
    label = labeller().label("MEI LIGHT", "new wave", "Hello", 1000, 200)
    h, e, l, o = (vocabulary("v3").symbols.index(c) for c in "Helo")
    assert label.y.dtype == torch.int64
    assert label.y.tolist() == [1000, 200, 100, 1, 2, 0, 0, 0, h, e, l, l, o]
    assert label.indices == [-1, -1, -1, 0, 1, 2, 3, 4]
    assert labeller().describe(label.y) == {"artist": "mei light", "genre": "new wave", "lyrics": "Hello"}
    assert labeller(2, bow=4).label("Mei Light", "Rap/Hip", "", 1000, 0).y.tolist()[3:8] == [1, 4, 1, -1, -1]


def test_what_is_unknown_is_told_once() -> None:
    heard: list[str] = []
    maker = labeller(2, bow=3, heard=heard)
    for _ in range(2):
        assert maker.label("Nobody", "new jazz", "", 1000, 0).y.tolist()[3:7] == [0, 3, 0, -1]
    assert heard == [
        "note: artist 'Nobody' is in no table of this model: it counts as unknown (id 0)",
        "note: genre word 'jazz' is in no table of this model: it counts as unknown (id 0)",
    ]
    assert maker.label(None, None, None, 1000, 0).y.tolist()[3:7] == [0, 0, -1, -1]
    assert maker.label("", "unknown", "", 1000, 0).y.tolist()[3:7] == [0, 0, -1, -1]
    assert len(heard) == 2


def test_too_many_genre_words() -> None:
    with pytest.raises(UserError, match="genre 'Hip-Hop/Rap' has 3 words, and the model takes 2: leave some out"):
        labeller(2, bow=2).label("Mei", "Hip-Hop/Rap", "", 1000, 0)
    with pytest.raises(UserError, match=r"^/a\.wav: genre"):
        labeller(2, bow=2).known("Mei", "Hip-Hop/Rap", "", where="/a.wav")


def test_words_are_spread_evenly_without_times() -> None:
    maker = labeller(n_tokens=4)
    text = "abcdefghijklmnopqrst"
    for offset, shown in [(0, "abcd"), (450, "ijkl"), (900, "qrst"), (999, "qrst")]:
        label = maker.label(None, None, text, 1000, offset)
        assert "".join(text[i] for i in label.indices) == shown == maker.describe(label.y)["lyrics"]
    with pytest.raises(UserError, match="starts at 1000 of a song of length 1000"):
        maker.label(None, None, text, 1000, 1000)


def test_words_follow_their_times() -> None:
    maker = labeller(n_tokens=4, sr=100)
    times = [(5.0 + i * 0.1, 5.1 + i * 0.1) for i in range(10)] + [(9.0 + i * 0.1, 9.1 + i * 0.1) for i in range(10)]
    text = "abcdefghijklmnopqrst"
    shown = [maker.describe(maker.label(None, None, text, 1000, offset, times).y)["lyrics"] for offset in (0, 500, 880)]
    assert shown == ["abcd", "defg", "mnop"]
    song = maker.compact(maker.known(None, None, text, times=[None, *times[1:]]))
    assert torch.equal(maker.vector(song, 1000, 500), maker.label(None, None, text, 1000, 500, times).y)
    nothing_timed = maker.label(None, None, text, 1000, 450, [None] * 20)
    assert nothing_timed.indices == maker.label(None, None, text, 1000, 450).indices


def test_when_each_lyric_position_is_to_be_looked_at() -> None:
    maker = labeller(n_tokens=4, sr=100)
    # Position n has read the tokens before n: it stands for token n - 1, until the next token begins.
    song = maker.compact(maker.known(None, None, "abcdef", times=[None, (1, 2), (3, 4), None, (6, 7), (8, 9)]))
    assert [maker.vector(song, 1000, offset)[-4:].tolist() for offset in (0, 500)] == [
        song.ids[:4].tolist(),
        song.ids[2:].tolist(),
    ]
    inf, nan = math.inf, math.nan
    expected = {
        0: [(-inf, 100), (-inf, 100), (100, 300), (300, 600)],
        500: [(-400, -200), (-200, 100), (nan, nan), (100, 300)],
    }
    for offset, times in expected.items():
        torch.testing.assert_close(maker.sung(song, 1000, offset), torch.tensor(times), equal_nan=True)
    short = maker.compact(maker.known(None, None, "ab", times=[(1, 2), (3, 4)]))
    padded = torch.tensor([(nan, nan), (nan, nan), (-inf, 100), (100, 300)])
    torch.testing.assert_close(maker.sung(short, 1000, 0), padded, equal_nan=True)
    timeless = maker.compact(maker.known(None, None, "abcdef"))
    assert maker.sung(timeless, 1000, 0).isnan().all()


def test_a_batch_says_of_each_item_what_it_knows() -> None:
    maker = labeller()
    requests = [
        {"artist": "Mei Light", "genre": "new wave", "lyrics": "A😀b", "total_length": 1000, "offset": 0},
        {"artist": None, "genre": None, "lyrics": None, "total_length": 500, "offset": 100},
    ]
    labels = maker.batch(requests)
    assert labels.y.shape == (2, maker.width) == (2, 13)
    assert torch.equal(labels.y[0], maker.label("Mei Light", "new wave", "A😀b", 1000, 0).y)
    info = labels.infos[0]
    assert (info["artist"], info["genre"], info["lyrics"], info["text"]) == ("Mei Light", "new wave", "Ab", "A😀b")
    assert info["full_tokens"] == [1, 28] and info["spans"] == [[0, 1], [2, 3]] and info["times"] is None
    assert labels.infos[1]["artist"] == "unknown" and labels.infos[1]["full_tokens"] == []
    assert json.loads(json.dumps(labels.infos)) == labels.infos
    assert len(labels[1:]) == 1 and labels[1:].infos[0] is labels.infos[1]
    assert maker.batch([]).y.shape == (0, 13)


def test_windows_move_in_float32() -> None:
    """Where float32 and float64 place words differently, a moved window follows float32."""
    maker = labeller(n_tokens=4)
    count, total = 2999, 26460000
    text = "a" * count
    labels = maker.batch([{"lyrics": text, "total_length": total, "offset": 0}])
    prior = SimpleNamespace(sample_length=1048576, hop_length=1)
    differing = 0
    for token in range(100, 2900, 7):  # offsets at which one token gives way to the next
        start = offset = round(token * total / count - 1048576 / 2)
        y, (indices,) = maker.shifted(labels, start, prior)
        assert y[0, :3].tolist() == [total, offset, 1048576]
        where = torch.tensor(offset) + torch.tensor(1048576) / 2.0
        middle = int(count * where / torch.tensor(total))
        assert where.dtype == torch.float32
        assert indices[0] == min(max(middle, 2), count - 2) - 2
        exact = int(count * (offset + 1048576 / 2.0) / total)
        differing += exact != middle
    assert differing  # else this test would hold for float64 as well
    assert labels.y[0, 1] == 0


def test_windows_move_by_times_where_there_are_any() -> None:
    maker = labeller(n_tokens=4, sr=100)
    times = [(float(i), i + 1.0) for i in range(10)]
    labels = maker.batch([{"lyrics": "abcdefghij", "total_length": 1000, "offset": 0, "times": times}])
    y, (indices,) = maker.moved(labels, 400, 300)
    assert indices == [3, 4, 5, 6] and maker.describe(y[0])["lyrics"] == "defg"


def test_models_without_lyrics_or_labels() -> None:
    maker = labeller(n_tokens=0)
    labels = maker.batch([{"artist": "Mei Light", "lyrics": "abc", "total_length": 1000, "offset": 0}])
    assert labels.y.tolist() == [[1000, 0, 100, 1, 0]]
    y, indices = maker.moved(labels, 10, 50)
    assert y.tolist() == [[1000, 10, 50, 1, 0]] and indices == [[]]
    blank = labeller(wordless=True)
    assert not blank.reads_lyrics and blank.label(None, None, "abc", 1000, 0).y.tolist()[5:] == [0] * 8


def test_a_hundred_thousand_characters() -> None:
    maker = labeller()
    label = maker.label("Mei Light", "new wave", "la 😀\n" * 20000, 1000, 500)
    assert len(label.tokens.ids) == 80000 and label.indices[0] == 43996
    assert len(label.tokens.problems) <= 101


# --- the command ----------------------------------------------------------------------------------------------------


def write_songs(folder: Path) -> Path:
    lines = [
        {"audio_path": "a.wav", "artist": "Mei", "genre": "indie folk"},
        {"audio_path": "b.wav", "artist": "宇多田ヒカル"},
    ]
    path = folder / "songs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_writes_tables(tmp_path: Path) -> None:
    songs = write_songs(tmp_path)
    words = ["build", f"--data_jsonl={songs}", f"--output={tmp_path / 'tables'}"]
    done = subprocess.run(
        [sys.executable, "-m", "songbloom.data.labels", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "version 2: 1 artist, 2 genre words (y_bins=3,2, max_bow_genre_size=2)" in done.stdout
    assert "warning: version 2 spells names in ASCII, which leaves nothing of 1 of them (宇多田ヒカル)" in done.stdout
    assert "version 3: 2 artists, 1 genre (y_bins=2,3, max_bow_genre_size=1)" in done.stdout
    assert "2 songs, 0 without an artist, 1 without a genre" in done.stdout
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        *("v2_artist_ids.txt", "v2_genre_ids.txt", "v3_artist_ids.txt", "v3_genre_ids.txt")
    ]
    assert LabelTables.read_folder(tmp_path / "tables", 3).artists["宇多田ヒカル"] == 2
    assert not done.stderr


def test_the_command_asks_a_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook_for_labels.py").write_text("def tell(path, test):\n    return 'Someone', 'noise', None\n")
    monkeypatch.chdir(tmp_path)
    songs = write_songs(tmp_path)
    words = ["build", f"--data_jsonl={songs}", "--output=t", "--get_metadata=hook_for_labels:tell", "--labels_v3"]
    assert labels_module.main(words) == 0
    assert LabelTables.read_folder("t", 3).artists == {"unknown": 0, "someone": 1}
    assert not Path("t/v2_artist_ids.txt").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bild"], "the command is build, not 'bild'"),
        (["build"], "--output is missing"),
        (["build", "--output=x"], "neither is given"),
        (["build", "--output=x", "--data_jsonl=nowhere.jsonl"], "no such file or directory"),
        (["build", "--data_json=x"], r"no option is named --data_json \(did you mean '--data_jsonl'\?\)"),
        (["build", "--output=x", "--data_jsonl=y", "--get_metadata=z"], "give module:function"),
    ],
)
def test_mistakes_in_the_command(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        labels_module.main(words)
    assert "\n" not in str(caught.value)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert labels_module.main(["--help"]) == 0
    assert "--data_jsonl" in capsys.readouterr().out
