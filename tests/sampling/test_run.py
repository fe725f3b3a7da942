"""What a run leaves on disk, and when it goes on, refuses, or replaces."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from songbloom.errors import UserError
from songbloom.sampling import sound
from songbloom.sampling.run import LevelData, Run, differences, fingerprint, read_data

SETTINGS = {"model": "tiny", "seed": 0, "levels": [0, 1], "level_0": {"temp": 0.9}, "hop": (1, 2)}


def data(level: int) -> LevelData:
    generator = torch.Generator().manual_seed(level)
    codes = [torch.randint(0, 32, (2, 40), generator=generator), torch.randint(0, 32, (2, 10), generator=generator)]
    if level == 1:
        codes[0] = codes[0][:, :0]
    audio = 2 * torch.rand(2, 320, 1, generator=generator) - 1
    return LevelData(codes, audio, [None, None], [{"temp": 0.9}, {"temp": 0.9}])


def make_run(folder: Path, **changes: Any) -> Run:
    details = {level: [("temp", "0.9")] for level in (0, 1)}
    return Run(
        folder,
        {**SETTINGS, **changes},
        sample_rate=8000,
        facts=[("seed", "0")],
        details=details,
        argv=["sample.py", "--name=<b>"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "a run")
    assert run.open() == {}
    run.write_level(1, data(1), took=3.0)
    run.write_level(0, data(0), took=65.0)
    return run.folder


def test_files_of_a_run(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    level = ["data.pth.tar", "index.html", "item_0.png", "item_0.wav", "item_1.png", "item_1.wav"]
    assert names == [
        ".lock",
        "index.html",
        *(f"level_{n}/{name}" for n in (0, 1) for name in level),
        "run.json",
        "tree.js",
    ]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"] == []
    with wave.open(str(folder / "level_0" / "item_1.wav")) as file:
        samples = np.frombuffer(file.readframes(400), "<i2")
        assert (file.getframerate(), file.getnchannels()) == (8000, 1)
    assert np.abs(samples / 32768 - data(0).audio[1, :, 0].numpy()).max() <= 0.5 / 32768 + 1e-7


def test_data_is_plain_and_complete(folder: Path) -> None:
    content = torch.load(folder / "level_1" / "data.pth.tar", weights_only=True)
    assert sorted(content) == ["labels", "sampling_kwargs", "x", "zs"]
    assert [tuple(codes.shape) for codes in content["zs"]] == [(2, 0), (2, 10)]
    assert torch.equal(content["x"], data(1).audio)
    assert torch.equal(read_data(folder / "level_0" / "data.pth.tar").codes[0], data(0).codes[0])


def test_pages_lead_to_each_other(folder: Path) -> None:
    first, coarse = (folder / "index.html").read_text(), (folder / "level_1" / "index.html").read_text()
    assert 'src="level_0/item_0.wav"' in first
    assert 'href="level_1/index.html"' in first
    assert 'href="../level_0/index.html"' in coarse  # written before that level was there, and renewed
    for page, own in ((first, "1:05"), (coarse, "0:03")):
        assert re.findall(r'data-word="(took\w*)">.*?<b>(.+?)</b>', page) == [("took_level", own), ("took_all", "1:08")]
    assert "<h1>a run</h1>" in first


def test_a_level_alone_has_no_sum_of_times(tmp_path: Path) -> None:
    run = make_run(tmp_path / "half")
    run.open()
    run.write_level(1, data(1), took=3.0)
    assert re.findall(r'data-word="(took\w*)"', (run.folder / "index.html").read_text()) == ["took_level"]
    run = make_run(tmp_path / "one", levels=[1])
    run.open()
    run.write_level(1, data(1), took=3.0)
    assert re.findall(r'data-word="(took\w*)"', (run.folder / "index.html").read_text()) == ["took"]


def test_the_same_settings_find_what_is_there(folder: Path) -> None:
    run = make_run(folder)
    there = run.open()
    assert sorted(there) == [0, 1]
    assert torch.equal(there[0].audio, data(0).audio)
    assert run.took == {1: 3.0, 0: 65.0}
    before = (folder / "index.html").read_text()
    run.write_pages()
    assert (folder / "index.html").read_text() == before


def test_other_settings_are_refused_and_named(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_run(folder, seed=1, level_0={"temp": 1.0}).open()
    text = str(caught.value)
    assert "seed is 0 there, 1 here; level_0.temp is 0.9 there, 1.0 here" in text
    assert "--overwrite" in text
    assert (folder / "level_0" / "data.pth.tar").is_file()


def test_overwriting_removes_the_run_and_nothing_else(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert make_run(folder, seed=1).open(overwrite=True) == {}
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == ["notes.txt", "run.json"]
    assert json.loads((folder / "run.json").read_text())["settings"]["seed"] == 1


def test_levels_of_nobody_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "level_0").mkdir()
    with pytest.raises(UserError, match=r"has no run\.json, so it is not a run to go on with"):
        make_run(tmp_path).open()
    assert (tmp_path / "level_0").is_dir()


@pytest.mark.parametrize("text", ["", "[]", '{"settings": 3}', '{"settings": {}, "took": {"x": 1}}'])
def test_a_broken_record_is_told(folder: Path, text: str) -> None:
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: cannot be read|other settings"):
        make_run(folder).open()


def test_a_level_is_there_wholly_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "level_0")
    run = make_run(folder)
    assert sorted(run.open()) == [1]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "item_1.wav")

    written = sound.write_png
    monkeypatch.setattr(sound, "write_png", full)
    with pytest.raises(UserError, match=r"item_1\.wav: cannot be written \(No space left on device\)"):
        run.write_level(0, data(0), took=1.0)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "index.html", "level_1", "run.json", "tree.js"]
    monkeypatch.setattr(sound, "write_png", written)

    (folder / ".level_0.99.partial").mkdir()  # left by a process that was killed
    run = make_run(folder)
    assert sorted(run.open()) == [1]
    run.write_level(0, data(0), took=1.0)
    there = [".lock", "index.html", "level_0", "level_1", "run.json", "tree.js"]
    assert sorted(path.name for path in folder.iterdir()) == there


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(5)}, tmp_path / "one.pt")
    torch.save({"a": torch.arange(5)}, tmp_path / "two.pt")
    torch.save({"a": torch.arange(1, 6)}, tmp_path / "other.pt")
    (tmp_path / "text").write_text("no archive")
    assert fingerprint(tmp_path / "one.pt") == fingerprint(tmp_path / "two.pt")
    assert fingerprint(tmp_path / "one.pt") != fingerprint(tmp_path / "other.pt")
    assert fingerprint(tmp_path / "text") != fingerprint(tmp_path / "one.pt")
    with pytest.raises(UserError, match="missing"):
        fingerprint(tmp_path / "missing")
    whole = fingerprint(tmp_path / "text")
    digest = hashlib.sha256(b"no archive").hexdigest()
    status = (tmp_path / "text").stat()
    comment = f"# right when it had {status.st_size} bytes and was changed at {status.st_mtime_ns} ns"
    for line, expected in ((comment, "0" * 32), ("# right when it had 9 bytes and was changed at 1 ns", whole)):
        (tmp_path / "text.sha256").write_text(f"{'0' * 64}  text\n{line}\n")
        assert fingerprint(tmp_path / "text") == expected
    assert whole == digest[:32]


@pytest.mark.parametrize("key", ["labels", "sampling_kwargs"])
@pytest.mark.parametrize("value", [[1], [{}, {}], {"a": 1}, "x"])
def test_labels_and_settings_of_other_files_are_looked_at(tmp_path: Path, key: str, value: Any) -> None:
    torch.save({"zs": [torch.zeros(1, 4, dtype=torch.long)], key: value}, tmp_path / "file.pt")
    with pytest.raises(UserError, match=f"its {key} are not one mapping a level"):
        read_data(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [{}, {"zs": [], "x": torch.zeros(1, 1, 1)}, {"zs": [torch.zeros(3)]}, {"zs": 4}])
def test_other_files_hold_no_codes(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(UserError, match="holds no codes"):
        read_data(tmp_path / "file.pt")


def test_differences_name_what_only_one_side_has() -> None:
    assert differences({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2], "d": None}, "e": "x"}) == [
        "a is 1 there, null here",
        "b.c is [1] there, [2] here",
        'e is null there, "x" here',
    ]


def test_the_record_is_for_people_too(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert record["argv"] == ["sample.py", "--name=<b>"]
    assert record["settings"]["hop"] == [1, 2]
