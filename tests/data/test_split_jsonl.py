"""No song is on both sides, whatever makes two lines one song."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data import combine, split_jsonl
from songbloom.data.split_jsonl import split_songs, together
from songbloom.errors import UserError


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ten_songs(tmp_path: Path):
    source = write(tmp_path / "a.jsonl", *({"idx": f"{i}", "audio_path": f"{i}.wav"} for i in range(10)))
    options = ["--input-jsonl", str(source), "--train-jsonl", str(tmp_path / "new" / "t.jsonl")]
    options += ["--val-jsonl", str(tmp_path / "v.jsonl"), "--val-ratio=0.2"]
    assert split_jsonl.main(options) == 0
    train, val = read(tmp_path / "new" / "t.jsonl"), read(tmp_path / "v.jsonl")
    assert (len(train), len(val)) == (8, 2)
    assert {row["idx"] for row in train}.isdisjoint(row["idx"] for row in val)
    assert [int(row["idx"]) for row in train] == sorted(int(row["idx"]) for row in train)
    assert val[0]["audio_path"] == f"{val[0]['idx']}.wav"  # beside the input: still relative
    assert train[0]["audio_path"] == str(tmp_path / f"{train[0]['idx']}.wav")
    first = (tmp_path / "v.jsonl").read_bytes()
    split_jsonl.main([*options, "--seed=1234"])
    assert (tmp_path / "v.jsonl").read_bytes() == first
    split_jsonl.main([*options, "--seed=1"])
    assert (tmp_path / "v.jsonl").read_bytes() != first


ROWS = st.lists(st.integers(0, 7), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_groups_are_never_divided_and_nothing_is_lost(groups: list[int], ratio: float, seed: int):
    rows = [{"group": group, "audio_path": f"{i}.wav"} for i, group in enumerate(groups)]
    if len(set(groups)) == 1:
        with pytest.raises(UserError, match="are one song"):
            split_songs(rows, Path("/nowhere"), ratio, seed)
        return
    train, val = split_songs(rows, Path("/nowhere"), ratio, seed)
    assert sorted(train + val) == list(range(len(rows)))
    assert train
    assert val
    assert {groups[i] for i in train}.isdisjoint(groups[i] for i in val)
    largest = max(groups.count(group) for group in groups)
    assert abs(len(val) - ratio * len(rows)) <= largest


def test_what_makes_two_lines_one_song(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "copy.wav").write_bytes(b"sound")
    (tmp_path / "other.wav").write_bytes(b"sonud")
    words = "[verse]\nさくらのはながゆれてはるのかぜがわらう\n[chorus]\nラララララ"
    rows: list[dict[str, Any]] = [
        {"audio_path": "a.wav", "group": "x"},
        {"audio_path": "b.wav", "song_group": "x"},
        {"audio_path": "copy.wav"},
        {"audio_path": "other.wav"},
        {"audio_path": "./b.wav", "group": "y"},
        {"audio_path": "c.wav", "lyrics": words},
        {"audio_path": "d.wav", "lyrics": words.replace("\n", " ").replace("[verse]", "[Verse 2]")},
        {"audio_path": "e.wav", "lyrics": words, "group": "z"},
        {"audio_path": "f.wav", "lyrics": "ラララ"},
        {"audio_path": "g.wav", "lyrics": "ラララ"},
    ]
    assert sorted(together(rows, tmp_path)) == [[0, 1, 2, 4], [3], [5, 6], [7], [8], [9]]


def test_everything_or_nothing_for_validation(tmp_path: Path):
    rows = [{"audio_path": f"{i}.wav"} for i in range(4)]
    assert split_songs(rows, tmp_path, 0.0, 1) == ([0, 1, 2, 3], [])
    assert split_songs(rows, tmp_path, 1.0, 1) == ([], [0, 1, 2, 3])


def test_mistakes(tmp_path: Path):
    source = write(tmp_path / "a.jsonl", {"audio_path": "a.wav"}, {"audio_path": "b.wav"})
    for train, val, says in (("a.jsonl", "v.jsonl", "is the input file"), ("t.jsonl", "t.jsonl", "are both")):
        with pytest.raises(UserError, match=says):
            split_jsonl.split_jsonl(source, tmp_path / train, tmp_path / val)
    source.write_text('{"a": 1}\nno json\n')
    with pytest.raises(UserError, match=r"a.jsonl:2: is not JSON"):
        split_jsonl.split_jsonl(source, tmp_path / "t", tmp_path / "v")
    with pytest.raises(UserError, match=r"--input_jsonl=.*none: no such file"):
        split_jsonl.split_jsonl(tmp_path / "none", tmp_path / "t", tmp_path / "v")
    assert not (tmp_path / "t").exists()


def test_lists_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = write(
        tmp_path / "one" / "a.jsonl",
        {"idx": "x", "audio_path": "x.wav", "prompt_wav": "p.wav", "licence": "CC0"},
        {"idx": 3, "audio_path": "/far/y.wav", "extra": "kept"},
    )
    two = write(
        tmp_path / "b.jsonl",
        {"idx": "x", "audio_path": "x.wav", "license": "own"},
        {"idx": "x_1", "audio_path": "z.wav"},
        {"idx": "same", "audio_path": "one/../one/x.wav"},
    )
    assert combine.main(["--input-jsonls", str(one), str(two), "--output-jsonl", str(tmp_path / "all.jsonl")]) == 0
    rows = read(tmp_path / "all.jsonl")
    assert [row["idx"] for row in rows] == ["x", 3, "x_1", "x_1_1"]
    assert [row["audio_path"] for row in rows] == ["one/x.wav", "/far/y.wav", "x.wav", "z.wav"]
    assert rows[0]["prompt_wav"] == "one/p.wav"
    assert rows[1]["extra"] == "kept"
    out = capsys.readouterr().out
    assert "b.jsonl: 2 lines; 1 recording was there already; 2 idx were taken and got a number; licence: not" in out
    with pytest.raises(UserError, match="is one of the input files"):
        combine.combine([one], one)
    with pytest.raises(UserError, match=r"--input_jsonls=.*none.jsonl: no such file"):
        combine.combine([one, tmp_path / "none.jsonl"], tmp_path / "o.jsonl")
