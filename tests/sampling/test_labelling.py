"""What items are told, from the command line to the vectors of windows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from make_models import MODELS
from songbloom.data.label_tables import LabelTables
from songbloom.data.labels import Labeller
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.lyrics.timing import from_phrases
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.sampling import labelling, prompts, request
from songbloom.sampling.labelling import Asked, asked_of, carried, digest, level_labels
from songbloom.sampling.run import LevelData, read_data
from songbloom.training import checkpoint

RATE = 8000


def options(line: str) -> Hyperparams:
    return request.command_line(shlex.split("--model=tiny_lyrics --name=out " + line), MODELS)


def labeller(n_tokens: int = 8) -> Labeller:
    tables = LabelTables(3, {"unknown": 0, "mei": 1}, {"unknown": 0, "folk": 1})
    return Labeller(*(tables, vocabulary("v3")), max_bow_genre_size=1, n_tokens=n_tokens, sample_length=RATE, sr=RATE)


PRIOR: Any = SimpleNamespace(level=1, hop_length=32, sample_length=RATE)


def told(asked: list[Asked], totals: list[float], n_tokens: int = 8, **more: Any) -> dict[int, labelling.LevelLabels]:
    return level_labels({1: (labeller(n_tokens), PRIOR)}, asked, totals, model="m", complete=True, **more)


# --- the command line -----------------------------------------------------------------------------------------------


def test_options_tell_every_item() -> None:
    line = r"--artist=Mei --genre=folk --lyrics='one\ntwo' --n_samples=2"
    assert asked_of(options(line), 2) == [Asked("Mei", "folk", "one\ntwo")] * 2
    assert asked_of(options(""), 1) == [Asked()]


def test_lyrics_of_files(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffさくら\nさくら\n", encoding="utf-8")
    (tmp_path / "words.lrc").write_text("[00:01.00]la\n[00:02.00]lu\n")
    (asked,) = asked_of(options(f"--lyrics_file={tmp_path / 'words.txt'}"), 1)
    assert asked == Asked(lyrics="さくら\nさくら\n")
    (asked,) = asked_of(options(f"--lyrics_file={tmp_path / 'words.lrc'}"), 1)
    assert asked.timed is not None and asked.lyrics == asked.timed.text and "la" in asked.lyrics


def prompts_file(folder: Path, *rows: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_an_item(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("from a file")
    phrases = [{"text": "la", "start": 0.5, "end": 1.0}]
    rows = [
        {"artist": "Ken", "lyrics": "one", "audio_path": "ignored.wav"},
        "",
        {"lyrics_file": "words.txt", "total_sample_length_in_seconds": 60},
        {"phrases": phrases},
    ]
    asked = options(f"--prompts_jsonl={prompts_file(tmp_path, *rows)} --artist=Mei --genre=folk")
    assert asked.n_samples == 3
    first, second, third, fourth = asked_of(asked, 4)
    assert first == fourth == Asked("Ken", "folk", "one")
    assert second == Asked("Mei", "folk", "from a file", None, 60.0)
    assert third.lyrics == "la" and third.timed is not None
    assert options(f"--prompts_jsonl={asked.prompts_jsonl} --n_samples=2").n_samples == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lyrics=a --lyrics_file=b", "--lyrics and --lyrics_file are both given"),
        ("--lyrics=", "--lyrics is empty: give some text, or leave it out"),
        ("--lyrics=' '", "--lyrics is empty"),
        ("--artist=", "--artist is empty"),
        ("--lyrics_file=nowhere.txt", "nowhere.txt cannot be read"),
        ("--lyrics_file=blank.txt", "blank.txt holds no lyrics"),
        ("--lyrics_file=old.txt", "old.txt is not UTF-8 text"),
        ("--lyrics_file=p.lab", "p.lab holds phonemes and no words"),
    ],
)
def test_mistakes_in_options(line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text(" \n")
    Path("old.txt").write_bytes("さくら".encode("cp932"))
    Path("p.lab").write_text("0 1.5 a\n1.5 2.5 i\n")
    with pytest.raises(UserError, match=says) as caught:
        asked_of(options(line), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", r"prompts\.jsonl:1: is not JSON"),
        ([1], "is no object"),
        ({"artst": "Mei"}, r"has none of artist, .* \(did you mean 'artist'\?\)"),
        ({"artist": 3}, "artist must be text"),
        ({"lyrics": "a", "lyrics_file": "b"}, "has both lyrics and lyrics_file"),
        ({"lyrics_file": 3}, "lyrics_file must be the path of a file"),
        ({"phrases": {"text": "a"}}, "phrases must be a list"),
        ({"phrases": [{"text": "a"}]}, r"prompts\.jsonl:1, phrases, entry 1: start is None"),
        ({"total_sample_length_in_seconds": -1}, "must be a number of seconds, not -1"),
        ({"total_sample_length_in_seconds": float("inf")}, "must be a number of seconds, not inf"),
        ('{"seed": 1' + "0" * 5000 + "}", r"prompts\.jsonl:1: is not JSON \(a number of too many digits\)"),
        ("", "holds no line"),
    ],
)
def test_mistakes_in_rows(row: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        asked_of(options(f"--prompts_jsonl={prompts_file(tmp_path, row)}"), 1)
    assert "\n" not in str(caught.value)


def test_total_lengths_that_a_model_knows() -> None:
    assert request.total_length(options(""), 10, Asked(), (5.0, 300.0)) == 240
    assert request.total_length(options(""), 10, Asked(), (5.0, 120.0)) == 10
    assert request.total_length(options(""), 2, Asked(), (5.0, 120.0)) == 5
    assert request.total_length(options("--total_sample_length_in_seconds=60"), 10, Asked(total=50.0)) == 50
    for line, asked in [("--total_sample_length_in_seconds=130", Asked()), ("", Asked(total=120.0))]:
        with pytest.raises(UserError, match="knows songs of 5 s up to, not including, 120 s"):
            request.total_length(options(line), 10, asked, (5.0, 120.0))
    with pytest.raises(UserError, match="is less than --sample_length_in_seconds=10"):
        request.total_length(options(""), 10, Asked(total=9.0))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_windows_of_some_items() -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    asked = [Asked("Mei", "folk", text), Asked(lyrics="z" + text), Asked()]
    labels = told(asked, [10.0, 20.0, 5.0])[1]
    assert labels.labels.y[:, 0].tolist() == [80000, 160000, 40000]
    assert labels.labels.y[:, 3].tolist() == [1, 0, 0]
    of_items = labels.windows(range(1, 3))
    y = of_items(500, slice(0, 2))
    assert y[:, 1].tolist() == [16000, 16000] and y[:, 2].tolist() == [RATE, RATE]
    whole = labels.labeller.shifted(labels.labels, 500, PRIOR)[0]
    assert torch.equal(y, whole[1:]) and torch.equal(of_items(500, slice(1, 2)), whole[2:])


def test_what_a_person_hears(capsys: pytest.CaptureFixture[str]) -> None:
    told([Asked("Nobody", "folk", "a😀b"), Asked("Nobody", None, None), Asked(lyrics="x" * 800)], [10.0] * 3)
    assert capsys.readouterr().out.splitlines() == [
        "note: artist 'Nobody' is in no table of this model: it counts as unknown (id 0)",
        "note: lyrics, line 1, column 2: '😀' has no letters in vocabulary v3 and is left out",
        "note: no lyrics are given: the model is shown no words (--lyrics, --lyrics_file or --prompts_jsonl)",
        "note: lyrics are too long for it: 800 tokens in 10.0 s are 80 in the 1.0 s of a window, which shows 8; "
        "shorten them or give a longer --total_sample_length_in_seconds",
    ]
    told([Asked(lyrics="★" * 300)], [10.0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and "more such places" in lines[5]


def test_a_hundred_thousand_characters_are_one_notice_more(capsys: pytest.CaptureFixture[str]) -> None:
    told([Asked(lyrics="la 😀\n" * 20000)], [10.0])
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_too_many_genre_words() -> None:
    tables = LabelTables(2, {}, {"indie": 1, "folk": 2})
    maker = Labeller(tables, vocabulary("v2"), max_bow_genre_size=1, n_tokens=0, sample_length=RATE)
    with pytest.raises(UserError, match="genre 'indie folk' has 2 words, and the model takes 1"):
        level_labels({1: (maker, PRIOR)}, [Asked(genre="indie folk")], [10.0], model="m", complete=True)


def test_what_no_level_hears_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="model 'm' knows no artists, genres or lyrics: leave them out"):
        level_labels({}, [Asked("Mei")], [], model="m", complete=True)
    with pytest.raises(UserError, match="model 'm' knows artists and genres, but reads no lyrics"):
        told([Asked(lyrics="la")], [10.0], n_tokens=0)
    assert level_labels({}, [Asked("Mei")], [], model="m", complete=False) == {}
    assert "at the levels that are written" in capsys.readouterr().out
    assert level_labels({}, [Asked()], [], model="m", complete=True) == {}


def test_a_run_goes_on_with_its_words(tmp_path: Path) -> None:
    labels = told([Asked("Mei", None, "one"), Asked(None, "folk", None)], [10.0, 20.0])[1]
    codes = [torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int64)]
    data = LevelData(codes, torch.zeros(2, 288, 1), [None, labels.labels.plain()], [{}, {}])
    checkpoint.save(tmp_path / "data.pth.tar", data.plain())
    earlier = prompts.labels_of_items(read_data(tmp_path / "data.pth.tar").labels, [0, 1, 0])
    assert carried(options(""), [Asked()] * 3, earlier, RATE) == [
        *(Asked("Mei", None, "one", total=10.0), Asked(None, "folk", None, total=20.0)),
        Asked("Mei", None, "one", total=10.0),
    ]
    # What is asked for counts; the rest is as before.
    assert carried(options(""), [Asked("Ken", seed=3)], earlier, RATE) == [Asked("Ken", None, "one", None, 10, 3)]
    assert carried(options(""), [Asked(lyrics="two")], earlier, RATE)[0].lyrics == "two"
    assert carried(options("--total_sample_length_in_seconds=30"), [Asked()], earlier, RATE)[0].total is None
    assert carried(options(""), [Asked()], [], RATE) == [Asked()]
    (longer,) = carried(options(""), [Asked()], earlier, RATE)
    says = r"was told to begin a song of 10 s, and this one goes on to 12\.5 s: give --total_sample_length.*=13 or more"
    with pytest.raises(UserError, match=says):
        request.total_length(options(""), 12.5, longer)
    with pytest.raises(UserError, match="a part of the whole"):
        request.total_length(options("--total_sample_length_in_seconds=11"), 12.5, Asked())
    none, kept = earlier
    assert none is None and kept["y"].shape == (3, labels.labeller.width) and len(kept["info"]) == 3
    assert prompts.labels_of_items([{"y": torch.zeros(2, 0)}, 4, labels.labels.plain()], [2]) == [None] * 3


def test_a_run_goes_on_with_the_times_of_its_words() -> None:
    sung = from_phrases([{"text": "la", "start": 1.0, "end": 2.0}], source="here")
    labels = told([Asked(lyrics="la", timed=sung)], [10.0])[1]
    before = labels.labels.plain()
    assert before["info"][0]["times"] is not None
    (again,) = carried(options(""), [Asked()], [before], RATE)
    assert again.plain() != Asked(lyrics="la", total=10.0).plain()
    assert told([again], [10.0])[1].labels.plain()["info"] == before["info"]


def test_seeds_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"seed": 5}\n{"lyrics": "la"}\n')
    rows = asked_of(options(f"--prompts_jsonl={path}"), 3)
    assert [each.seed for each in rows] == [5, None, None]  # once only: it would be the same song
    assert not rows[0].anything
    for seed in ("-1", "true", '"5"', "1.5", str(2**63)):
        path.write_text(f'{{"seed": {seed}}}\n')
        with pytest.raises(UserError, match=r"prompts\.jsonl:1: seed: a seed is a whole number from 0 to"):
            asked_of(options(f"--prompts_jsonl={path}"), 1)


def test_digests_tell_words_apart() -> None:
    some = [Asked("Mei", lyrics="la"), Asked("Mei", lyrics="lu"), Asked("Mei"), Asked("Mei", total=3.0)]
    assert len({digest([each]) for each in some}) == 4 and digest(some[:1]) == digest([Asked("Mei", lyrics="la")])
