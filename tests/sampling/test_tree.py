"""The family of a run: found wherever its folders are, and shown on all of their pages."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from songbloom.sampling import tree
from songbloom.sampling.tree import collect, renew, run_id


def write_run(folder: Path, parent: Path | None = None, *, register: bool = True, **changes: Any) -> Path:
    """A run of two items as far as its family is concerned; what it was asked for is told apart by its name."""
    settings = {
        "model": "tiny",
        "mode": "ancestral",
        "seed": 0,
        "n_samples": 2,
        "sample_length": 16000,
        "who": folder.name,
    }
    record: dict[str, Any] = {"settings": settings, "sample_rate": 8000, "parent": None}
    if parent is not None:
        settings["mode"] = "continue"
        there = tree.read_record(parent)
        record["parent"] = {
            "folder": os.path.relpath(parent, folder),
            "title": parent.name,
            "id": run_id(there["settings"]) if there else "",
            "mode": "continue",
            "kept_seconds": 1.5,
            "items": [{"item": 1, "branch": branch, "seed": 7} for branch in (0, 1)],
            **changes,
        }
    (folder / "level_1").mkdir(parents=True)
    for item in (0, 1):
        (folder / "level_1" / f"item_{item}.wav").write_bytes(b"RIFF")
    (folder / "index.html").write_text("page")
    (folder / "run.json").write_text(json.dumps(record))
    if register:
        renew(folder)
    return folder


def shape(folder: Path) -> dict[str, str]:
    """From each title to its parent's."""
    nodes = collect(folder)
    return {node["title"]: nodes[node["parent"]]["title"] if node["parent"] >= 0 else "" for node in nodes}


def shown(folder: Path) -> list[dict[str, Any]]:
    """What the page of a run shows."""
    text = (folder / tree.SCRIPT).read_text()
    assert text.startswith("window.songbloomTree = ") and text.endswith(";\n")
    return json.loads(text.removeprefix("window.songbloomTree = ").removesuffix(";\n"))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """first → second → third, and first → other."""
    place = tmp_path / "samples"
    first = write_run(place / "first")
    second = write_run(place / "second", first)
    write_run(place / "other", first)
    write_run(place / "third", second)
    return place


FAMILY = {"first": "", "second": "first", "third": "second", "other": "first"}


def test_everybody_knows_the_whole_family(samples: Path) -> None:
    for name in FAMILY:
        assert shape(samples / name) == FAMILY
        nodes = shown(samples / name)  # written when the last of them came
        assert [node["title"] for node in nodes if node["here"]] == [name]
        assert len(nodes) == 4


def test_what_a_page_is_told_of_a_run(samples: Path) -> None:
    nodes = {node["title"]: node for node in shown(samples / "first")}
    second = nodes["second"]
    assert second["page"] == "../second/index.html"
    assert (second["level"], second["mode"], second["kept"], second["seconds"]) == (1, "continue", 1.5, 2.0)
    assert [item["sound"] for item in second["items"]] == [f"../second/level_1/item_{i}.wav" for i in (0, 1)]
    assert [item["from"] for item in second["items"]] == [1, 1]
    assert len({item["seed"] for item in second["items"]}) == 2
    assert nodes["first"]["items"][0]["from"] is None


def test_a_family_moves_as_a_whole(samples: Path, tmp_path: Path) -> None:
    moved = samples.rename(tmp_path / "somewhere else")
    for name in FAMILY:
        assert shape(moved / name) == FAMILY
    renew(moved / "third")
    assert "../first/index.html" in [node["page"] for node in shown(moved / "third")]


def test_runs_in_folders_of_their_own(tmp_path: Path) -> None:
    """Far from each other: children are known because they told their parent."""
    first = write_run(tmp_path / "a" / "first")
    second = write_run(tmp_path / "b" / "c" / "second", first)
    assert shape(first) == shape(second) == {"first": "", "second": "first"}
    assert shown(first)[1]["page"] == "../../b/c/second/index.html"


def test_neighbours_are_found_without_having_told(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    write_run(tmp_path / "second", first, register=False)
    assert shape(first) == {"first": "", "second": "first"}


def test_a_renamed_parent_is_known_again(samples: Path) -> None:
    (samples / "second").rename(samples / "favourite")
    assert shape(samples / "third") == {"first": "", "favourite": "first", "third": "favourite", "other": "first"}
    assert shape(samples / "first") == shape(samples / "third")


def test_missing_relatives_are_told_or_left_out(samples: Path) -> None:
    shutil.rmtree(samples / "first")
    assert shape(samples / "third") == {"first": "", "second": "first", "third": "second"}
    nodes = collect(samples / "third")
    assert [node["gone"] for node in nodes] == [True, False, False]
    renew(samples / "third")
    shutil.rmtree(samples / "third")
    assert shape(samples / "second") == {"first": "", "second": "first"}


def test_another_run_in_the_parents_place_is_not_taken_for_it(samples: Path) -> None:
    shutil.rmtree(samples / "second")
    write_run(samples / "second2").rename(samples / "second")
    assert shape(samples / "third") == {"second": "", "third": "second"}
    assert collect(samples / "third")[0]["gone"]
    assert shape(samples / "second") == {"second": ""}  # third is no child of this one


def test_a_codes_file_without_a_run(tmp_path: Path) -> None:
    """The parent's folder has no run.json: it is told by its name."""
    (tmp_path / "published").mkdir()
    child = write_run(tmp_path / "child", tmp_path / "published")
    assert shape(child) == {"published": "", "child": "published"}


@pytest.mark.parametrize(
    "parent",
    [
        *(3, [], {}, {"folder": 3}, {"folder": "../first", "id": 4, "items": 5}, {"folder": ".", "id": ""}),
        {"folder": "../first", "items": [3, {"item": "x"}], "kept_seconds": "x"},
    ],
)
def test_strange_records_break_nothing(tmp_path: Path, parent: Any) -> None:
    first = write_run(tmp_path / "first")
    (first / tree.CHILDREN).write_text('[3, "../second", "../nowhere"]')
    second = write_run(tmp_path / "second")
    record = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**record, "parent": parent}))
    renew(second)
    renew(first)
    assert any(node["here"] for node in shown(second))
    (first / tree.CHILDREN).write_text("{")
    (second / "run.json").write_text("[")
    assert shape(first) == {"first": ""}


def test_a_circle_ends(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", first)
    record = json.loads((first / "run.json").read_text())
    record["parent"] = {"folder": "../second", "id": run_id(json.loads((second / "run.json").read_text())["settings"])}
    (first / "run.json").write_text(json.dumps(record))
    assert set(shape(first)) == {"first", "second"}


def test_a_large_family_is_cut_but_keeps_ones_own_line(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "LARGEST_FAMILY", 3)
    assert shape(samples / "third") == {"first": "", "second": "first", "third": "second"}
    renew(samples / "other")
    assert [node["title"] for node in shown(samples / "other") if node["here"]] == ["other"]


def test_relatives_that_cannot_be_written_keep_what_they_have(samples: Path) -> None:
    before = (samples / "first" / tree.SCRIPT).read_bytes()
    (samples / "first" / tree.SCRIPT).unlink()
    (samples / "first" / tree.SCRIPT).mkdir()  # nothing can take its place
    (samples / "first" / tree.SCRIPT / "kept").write_bytes(before)
    renew(samples / "third")
    assert len(shown(samples / "third")) == 4


def test_names_stay_text(tmp_path: Path) -> None:
    name = "</script><b>'\"さくら #?%"
    first = write_run(tmp_path / name)
    write_run(tmp_path / "second", first)
    text = (first / tree.SCRIPT).read_text()
    assert "</script>" not in text
    assert shown(tmp_path / "second")[0]["title"] == name.rpartition("/")[2]
    assert "#" not in shown(tmp_path / "second")[0]["page"] and "?" not in shown(tmp_path / "second")[0]["page"]
