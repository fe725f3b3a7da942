"""jaCappella, in the layout that its users have."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from songbloom.audio.files import probe
from songbloom.data.check import CheckSettings, check_songs
from songbloom.data.prepare import jacappella
from songbloom.errors import UserError
from tests.data.prepare.made import LINES, lines_of, score, text, voice


def choir(first: str) -> str:
    """An ensemble's score: a soprano who sings syllables, then the lead vocal with two verses and marks."""
    lead = first.replace('id="P1"', 'id="P2"')
    soprano = score(("du du du du du du", "du du du du du"), part="Soprano")
    names = "<part-list>" + soprano.split("<part-list>")[1].split("</part-list>")[0]
    names += lead.split("<part-list>")[1].split("</part-list>")[0] + "</part-list>"
    parts = "".join("<part id=" + one.split("<part id=")[1].split("</part>")[0] + "</part>" for one in (soprano, lead))
    return f"<score-partwise>{names}{parts}</score-partwise>"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus" / "jaCappella"
    for number, (subset, song) in enumerate((("jazz", "donguri"), ("enka", "momiji"))):
        folder = root / subset / song
        voice(folder / "lead_vocal.wav", seed=number)
        voice(folder / "mixture.wav", ((0.5, 16.0),), seed=10 + number)
        voice(folder / "soprano.wav", seed=20 + number)
        text(folder / f"{song}_SVS.musicxml", choir(score(marks=("A", "サビ"))))
        text(folder / f"{song}_romaji.musicxml", score(("sa ku ra sa i ta", "ha ru no ka ze")))
        text(folder / f"{song}.musicxml", choir(score((LINES[0] + "X", LINES[1]))))
    text(root / "jazz" / "scatonly" / "scatonly_SVS.musicxml", score(("du bi du",)))
    voice(root / "jazz" / "scatonly" / "lead_vocal.wav", ((2, 5),), 8.0, seed=40)
    text(root / "jazz" / "novocal" / "novocal_SVS.musicxml", score())
    text(root / "meta.csv", "song,title,composer\ndonguri,どんぐりころころ,梁田貞\n")
    return tmp_path / "corpus"


def prepare(corpus: Path, output: Path, *more: str) -> int:
    return jacappella.main(["--output_dir", str(output), "--download_dir", str(corpus), "--no_download", *more])


def test_the_lead_part_in_japanese_with_times_and_sections(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert prepare(corpus, tmp_path / "out", "--clean_japanese") == 0
    out = capsys.readouterr().out
    assert "jaCappella: jaCappella corpus licence" in out
    assert "left out: jazz_novocal: has no lead_vocal.wav" in out
    assert "left out: jazz_scatonly: has no words" in out
    rows = lines_of(tmp_path / "out" / "jacappella.jsonl")
    assert [row["idx"] for row in rows] == ["enka_momiji", "jazz_donguri"]
    row = rows[1]
    assert row["lyrics"] == "[verse 10s]\nさくらさいた\n[chorus 7s]\nはるのかぜ\n"
    assert row["phrases"] == [
        {"start": 2.0, "end": 8.0, "text": LINES[0]},
        {"start": 10.0, "end": 15.0, "text": LINES[1]},
    ]
    assert row["sections"] == [
        {"tag": "[verse]", "start": 0.0, "end": 10.0},
        {"tag": "[chorus]", "start": 10.0, "end": 17.0},
    ]
    assert (row["genre"], row["group"], row["title"]) == ("jazz", "jacappella_donguri", "どんぐりころころ")
    assert row["meta"]["composer"] == "梁田貞"
    assert "rights" in row["licence"]
    assert Path(row["audio_path"]).is_absolute()
    prompt = probe(tmp_path / "out" / row["prompt_wav"])
    assert (prompt.duration, prompt.sample_rate) == (10.0, 48_000)
    report = check_songs(tmp_path / "out" / "jacappella.jsonl")
    assert [finding.kind for finding in report.findings] == ["mono"]


def test_kinds_of_scores_recordings_and_subsets(corpus: Path, tmp_path: Path):
    prepare(
        corpus, tmp_path / "r", "--musicxml-type=romaji", "--subsets=jazz", "--audio_type=mixture", "--prompt_sec=3"
    )
    (row,) = lines_of(tmp_path / "r" / "jacappella.jsonl")
    assert row["lyrics"] == "[verse 17s]\nさくらさいた\nはるのかぜ\n"
    assert Path(row["audio_path"]).name == "mixture.wav"
    assert probe(tmp_path / "r" / row["prompt_wav"]).duration == 3.0
    prepare(corpus, tmp_path / "d", "--musicxml_type", "default", "--prompt_sec=0", "--no_lengths")
    rows = lines_of(tmp_path / "d" / "jacappella.jsonl")  # one line a song, though three scores end in .musicxml
    assert [row["lyrics"] for row in rows] == ["[verse]\nさくらさいた X\nはるのかぜ\n"] * 2
    assert "prompt_wav" not in rows[0]
    with pytest.raises(UserError, match=r"no subset 'jaz' \(did you mean 'jazz'\?\); .* has enka, jazz"):
        prepare(corpus, tmp_path / "x", "--subsets=jaz")


def test_songs_without_words_can_be_kept(corpus: Path, tmp_path: Path):
    prepare(corpus, tmp_path / "out", "--clean-japanese", "--no-skip-empty-lyrics", "--subsets=jazz")
    rows = {row["idx"]: row for row in lines_of(tmp_path / "out" / "jacappella.jsonl")}
    assert rows["jazz_scatonly"]["lyrics"] == "[inst]\n"
    report = check_songs(tmp_path / "out" / "jacappella.jsonl", settings=CheckSettings(need_lyrics=False))
    assert report.errors == []


def test_a_stopped_run_goes_on_and_changes_are_seen(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    cut = []
    from songbloom.data.prepare import corpus as shared

    original = shared._cut_prompt

    def counted(audio: Path, *rest: object) -> None:
        cut.append(audio.parent.name)
        original(audio, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shared, "_cut_prompt", counted)
    prepare(corpus, out, "--subsets=enka")
    assert cut == ["momiji"]
    prepare(corpus, out)
    assert cut == ["momiji", "donguri", "scatonly"]
    first = (out / "jacappella.jsonl").read_bytes()
    prepare(corpus, out)
    assert len(cut) == 3
    assert (out / "jacappella.jsonl").read_bytes() == first
    assert "3 songs, 3 of them there already" in capsys.readouterr().out
    text(corpus / "jaCappella/jazz/donguri/donguri_SVS.musicxml", choir(score((LINES[1], LINES[1]))))
    prepare(corpus, out)
    assert cut[3:] == ["donguri"]
    shutil.rmtree(out / "prompts")
    prepare(corpus, out, "--overwrite")
    assert len(cut) == 7


def test_a_score_that_lies_beside_the_voice_is_moved_or_loses_its_times(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    voice(corpus / "jaCappella/jazz/donguri/lead_vocal.wav", ((3.0, 9.0), (11.0, 16.0)), seed=5)
    voice(corpus / "jaCappella/enka/momiji/lead_vocal.wav", ((0.0, 1.0), (9.0, 9.5)), 12.0, seed=6)
    prepare(corpus, tmp_path / "out")
    out = capsys.readouterr().out
    assert "jazz_donguri: the voice is 1.0 s later than the score" in out
    assert "enka_momiji: times are left out" in out
    rows = {row["idx"]: row for row in lines_of(tmp_path / "out" / "jacappella.jsonl")}
    assert rows["jazz_donguri"]["phrases"][0]["start"] == 3.0
    assert "phrases" not in rows["enka_momiji"]
    assert rows["enka_momiji"]["lyrics"] == "[verse]\nさくらさいた\n[chorus]\nはるのかぜ\n"


HUB = """
import json, pathlib
def snapshot_download(**how):
    if pathlib.Path("refuse").exists():
        raise RuntimeError("403: you are not in the list\\nmore")
    pathlib.Path("asked.json").write_text(json.dumps(how))
"""


def test_the_hub_is_asked_only_when_it_may_be(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text(tmp_path / "fake" / "huggingface_hub.py", HUB)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    options = ["--output_dir=out", "--download_dir", str(corpus)]
    assert jacappella.main([*options, "--subsets=enka"]) == 0
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked["repo_id"] == "jaCappella/jaCappella"
    assert asked["allow_patterns"] == ["*lead_vocal.wav", "*_SVS.musicxml", "*meta.csv"]
    (tmp_path / "refuse").touch()
    with pytest.raises(UserError, match=r"cannot be downloaded \(403: you are not in the list\); accept its terms"):
        jacappella.main(options)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids downloads"):
        jacappella.main(options)
    sys.modules.pop("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        jacappella.main(options)


def test_mistakes_are_one_line(tmp_path: Path):
    for arguments, says in (
        (["--output_dir", "o", "--no_download", "--download_dir", "nowhere"], "--download_dir=nowhere: no such folder"),
        (["--no_download"], "the following arguments are required: --output_dir"),
        (["--out_dir=x"], "no option is named --out_dir (did you mean '--output_dir'?)"),
        (["--output_dir=o", "--audio_type=lead"], "argument --audio_type/--audio-type: invalid choice: 'lead'"),
    ):
        with pytest.raises(UserError) as told:
            jacappella.main(arguments)
        assert str(told.value).startswith(says)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no songs; the layout is SUBSET/SONG"):
        prepare(tmp_path / "empty", tmp_path / "o")
