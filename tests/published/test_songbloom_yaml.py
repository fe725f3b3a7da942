"""References of published settings files, followed but never run."""

import builtins
from pathlib import Path

import pytest

from songbloom.errors import UserError
from songbloom.published.songbloom.yaml_files import read_settings, read_yaml, resolve

FOLDER = Path("weights")


def no_file(path):
    raise AssertionError(path)


def test_references_are_followed():
    content = {
        "model": {"dim": 8, "lyrics": {"output_dim": "${model.dim}", "same": "${..dim}"}, "twin": "${.lyrics}"},
        "name": "run_${model.dim}_${names.1}",
        "names": ["a", "b"],
        "half": 0.5,
    }
    found = resolve(content, FOLDER, reader=no_file)
    lyrics = {"output_dim": 8, "same": 8}
    assert found == {
        "model": {"dim": 8, "lyrics": lyrics, "twin": lyrics},
        "name": "run_8_b",
        "names": ["a", "b"],
        "half": 0.5,
    }


def test_files_beside_the_weights_are_read():
    read = []

    def reader(path):
        read.append(path)
        return (
            ["", "[verse]"] if path.name == "vocab.yaml" else {"vocab": "${load_yaml:${dynamic_path:???/vocab.yaml}}"}
        )

    assert read_settings(FOLDER / "model.yaml", reader=reader) == {"vocab": ["", "[verse]"]}
    assert read == [FOLDER / "model.yaml", FOLDER / "vocab.yaml"]


@pytest.mark.parametrize("name", ["vocab.yaml", "'???/vocab.yaml'", '${dynamic_path:"???/vocab.yaml"}'])
def test_names_of_files_may_be_bare_or_quoted(name):
    read = []
    resolve({"vocab": f"${{load_yaml:{name}}}"}, FOLDER, reader=lambda path: read.append(path))
    assert read == [FOLDER / "vocab.yaml"]


def test_parts_that_are_not_wanted_need_not_be_followed():
    content = {"model": {"dim": "${width}"}, "width": 8, "train": {"folder": "${eval:'1'}", "root": "${oc.env:HOME}"}}
    assert resolve(content, FOLDER, only=("model", "max_dur"), reader=no_file) == {"model": {"dim": 8}}
    bare = {"dim": "${width}", "width": 8}
    assert resolve(bare, FOLDER, only=("model",), reader=no_file) == {"dim": 8, "width": 8}
    with pytest.raises(UserError, match="would be run"):
        resolve(content, FOLDER, reader=no_file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": {"b": "${c.d}"}}, r"a\.b: \$\{c\.d\} leads nowhere"),
        ({"a": "${b}", "b": "${a}"}, "circle"),
        ({"a": "x${a}"}, "circle"),
        ({"a": '${eval:\'__import__("os").remove("x")\'}'}, "would be run"),
        ({"a": ["${a.7}"]}, "leads nowhere"),
    ],
)
def test_what_leads_nowhere_or_would_be_run_is_refused(content, words):
    with pytest.raises(UserError, match=words):
        resolve(content, FOLDER, reader=no_file)


def test_a_file_must_hold_names_and_values():
    with pytest.raises(UserError, match="no settings file"):
        read_settings(FOLDER / "list.yaml", reader=lambda path: ["a"])


def test_without_pyyaml_the_command_that_installs_it_is_named(monkeypatch):
    given = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "yaml":
            raise ImportError(name)
        return given(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pyyaml"):
        read_yaml(FOLDER / "model.yaml")


def test_yaml_files_are_plain_data(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "model.yaml"
    path.write_text("model:\n  dim: 8\n  heads: ${model.dim}\n")
    assert read_settings(path) == {"model": {"dim": 8, "heads": 8}}
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="no plain YAML"):
        read_yaml(path)
    with pytest.raises(UserError, match="beside the weights"):
        read_yaml(tmp_path / "missing.yaml")
