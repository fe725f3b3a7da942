"""Lists of songs with everything that can be wrong with them: one clear line each, and none for what is right."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from songbloom.audio.files import write_wav
from songbloom.data import sound_facts
from songbloom.data.check import CheckSettings, check_before_training, check_songs
from songbloom.data.fields import ALIASES, FIELDS
from songbloom.data.findings import Finding
from songbloom.data.sound_facts import Memory, measure
from songbloom.errors import UserError
from tests import programs

ROOT = Path(__file__).parents[2]
RATE = 48_000
SETTINGS = CheckSettings(prompt_seconds=2.0)
LYRICS = "[verse]\nさくらの花がゆれて\n[chorus]\n春の風がわらう\n"


def sound(seed: int, seconds: float = 3.0, channels: int = 2, level: float = 0.3, rate: int = RATE) -> np.ndarray:
    """Noise ``[T, channels]``, another for each seed."""
    return np.random.default_rng(seed).uniform(-level, level, (round(seconds * rate), channels)).astype(np.float32)


class Folder:
    """Songs in a folder; each line gets a sound of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def write(self, name: str, audio: np.ndarray, rate: int = RATE) -> str:
        write_wav(self.path / name, audio, rate)
        return name

    def row(self, **changes: Any) -> dict[str, Any]:
        """A right line; a change to ``None`` leaves a field out."""
        self.count += 1
        row = {
            "idx": f"song_{self.count}",
            "audio_path": self.write(f"{self.count}.wav", sound(self.count)),
            "lyrics": LYRICS,
            "language": "ja",
            "group": f"group_{self.count}",
            "licence": "CC0",
            "phrases": [
                {"start": 0.2, "end": 1.2, "text": "さくらの花がゆれて"},
                {"start": 1.5, "end": 2.5, "text": "春の風がわらう"},
            ],
        } | changes
        return {key: value for key, value in row.items() if value is not None}

    def jsonl(self, *rows: dict[str, Any] | str | bytes, name: str = "songs.jsonl") -> Path:
        lines = [
            row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            for row in rows
        ]
        (self.path / name).write_bytes(b"\n".join(lines) + b"\n")
        return self.path / name


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def half_silent(folder: Folder) -> str:
    audio = sound(90)
    audio[:, 1] = 0
    return folder.write("half.wav", audio)


def clipped(folder: Folder) -> str:
    return folder.write("clipped.wav", np.clip(sound(91, level=3.0), -1, 1))


def broken(folder: Folder) -> str:
    (folder.path / "broken.wav").write_bytes(b"RIFF this is no sound")
    return "broken.wav"


def phrases(*times: tuple[float, float]) -> list[dict[str, Any]]:
    texts = ["さくらの花がゆれて", "春の風がわらう"]
    return [{"start": a, "end": b, "text": text} for (a, b), text in zip(times, texts, strict=True)]


def sketch(folder: Folder, length: int, highest: int = 16_383) -> str:
    np.save(folder.path / f"sketch_{length}_{highest}.npy", np.linspace(0, highest, length).astype(np.int64))
    return f"sketch_{length}_{highest}.npy"


def timed_file(folder: Folder) -> str:
    (folder.path / "other.lrc").write_text("[00:00.50]まったくちがう言葉です\n[00:01.00]なにも同じでない\n", "utf-8")
    return "other.lrc"


Broken = Callable[[Folder], "dict[str, Any] | str | bytes"]
BROKEN: dict[str, tuple[Broken, str, str]] = {
    # what is wrong: (the line, level, what the message must say)
    "no json": (lambda f: '{"audio_path": "a.wav",', "error", "is not JSON (Expecting property name"),
    "a list": (lambda f: '["a.wav"]', "error", "is a list, not an object"),
    "not utf-8": (lambda f: '{"lyrics": "さくら"}'.encode("cp932"), "error", "is not UTF-8 text (byte 13"),
    "no audio_path": (lambda f: f.row(audio_path=None), "error", "lacks audio_path"),
    "misspelt field": (lambda f: f.row(lyrics=None, lyrcs=LYRICS), "error", "no field is named 'lyrcs'"),
    "misspelt prompt": (lambda f: f.row(promt_wav="1.wav"), "error", "(did you mean 'prompt_wav'?)"),
    "unknown field": (lambda f: f.row(zzzz=1), "warning", "nothing reads the field 'zzzz'"),
    "wrong type": (lambda f: f.row(artist=3), "error", "artist must be text, not a number"),
    "unknown language": (lambda f: f.row(language="jp"), "error", "language is 'jp'"),
    "missing audio": (lambda f: f.row(audio_path="nowhere.wav"), "error", "audio_path nowhere.wav is not there"),
    "broken audio": (lambda f: f.row(audio_path=broken(f)), "error", "audio_path broken.wav: "),
    "low rate": (lambda f: f.row(audio_path=f.write("a.wav", sound(50, rate=8000), 8000)), "error", "has 8000 Hz"),
    "lower rate": (
        lambda f: f.row(audio_path=f.write("b.wav", sound(51, rate=22_050), 22_050)), "warning",
        "nothing above 11.025 kHz",
    ),
    "too short": (
        lambda f: f.row(audio_path=f.write("c.wav", sound(52, 0.3)), phrases=None, lyrics="[verse]\nあ\n"), "error",
        "lasts 0.30 s; at least 0.64 s",
    ),
    "silent": (lambda f: f.row(audio_path=f.write("d.wav", sound(53, level=1e-4))), "error", "is silent from"),
    "quiet": (lambda f: f.row(audio_path=f.write("e.wav", sound(54, level=0.01))), "warning", "its peak is -40 dBFS"),
    "clipped": (lambda f: f.row(audio_path=clipped(f)), "warning", "is clipped in"),
    "one channel empty": (lambda f: f.row(audio_path=half_silent(f)), "warning", "silent in its right channel"),
    "no lyrics": (lambda f: f.row(lyrics=None, phrases=None), "error", "lacks lyrics"),
    "unknown tag": (
        lambda f: f.row(lyrics=LYRICS.replace("chorus", "chrous")), "error",
        "line 3, column 1: '[chrous]' is no structure tag (did you mean 'chorus'?)",
    ),
    "tag not closed": (lambda f: f.row(lyrics=LYRICS.replace("[chorus]", "[chorus")), "error", "line 3, column 1"),
    "no tags": (lambda f: f.row(lyrics="さくらの花がゆれて\n春の風がわらう\n"), "warning", "have no structure tag"),
    "unknown letters": (
        lambda f: f.row(lyrics=LYRICS.replace("花", "花한")), "error", "line 2, column 6: '한'",
    ),
    "unknown sign": (lambda f: f.row(lyrics=LYRICS.replace("て\n", "て♡\n")), "warning", "line 2, column 10: '♡'"),
    "too many tokens": (
        lambda f: f.row(lyrics="[verse]\n" + "さくら" * 101, phrases=None), "error", "607 tokens, and the model",
    ),
    "too many words": (lambda f: f.row(lyrics=LYRICS + "花" * 40, phrases=None), "warning", "are too many"),
    "tags longer than the song": (
        lambda f: f.row(lyrics=LYRICS.replace("[verse]", "[verse 30s]")), "error", "ask for 30.0 s",
    ),
    "phrase beyond the end": (
        lambda f: f.row(phrases=phrases((0.2, 1), (2, 9))), "error", "entry 2: ends at 9 s, and the song at 3.00",
    ),
    "falling times": (lambda f: f.row(phrases=phrases((1, 2), (0.5, 1))), "error", "entry 2: starts at 0.5 s, before"),
    "end before start": (lambda f: f.row(phrases=phrases((1, 0.5), (1.5, 2))), "error", "lasts from 1 to 0.5 s"),
    "a section too few": (
        lambda f: f.row(sections=[{"tag": "[verse]", "start": 0, "end": 3}]), "warning",
        "sections has 1 entry, and the lyrics have 2 tags",
    ),
    "times of other words": (
        lambda f: f.row(phrases=None, lrc_path=timed_file(f)), "error", "lrc_path: the times are of other words",
    ),
    "sketch missing": (lambda f: f.row(sketch_path="none.npy"), "error", "sketch_path none.npy is not there"),
    "sketch of another codebook": (
        lambda f: f.row(sketch_path=sketch(f, 75, 20_000)), "error", "is not one of 0 to 16383",
    ),
    "sketch codes that are none": (lambda f: f.row(sketch_tokens=[None] * 75), "error", "None is no sketch code"),
    "sketch too long": (lambda f: f.row(sketch_path=sketch(f, 100)), "error", "100 codes, which is 4.00 s"),
    "prompt missing": (lambda f: f.row(prompt_wav="none.wav"), "error", "prompt_wav none.wav is not there"),
    "prompt too short": (
        lambda f: f.row(prompt_wav=f.write("p.wav", sound(60, 0.5))), "error", "prompt_wav lasts 0.50 s, too short",
    ),
    "prompt shorter than usual": (
        lambda f: f.row(prompt_wav=f.write("q.wav", sound(61, 1.5))), "warning", "lasts 1.50 s; 2 s are usual",
    ),
}  # fmt: skip


def test_a_right_list_gives_no_finding(folder: Folder):
    prompt = folder.write("prompt.wav", sound(70, 2.0))
    torch.save({"sketch": torch.arange(75)}, folder.path / "s.pt")
    rows = [folder.row(prompt_wav=prompt, sketch_path="s.pt"), folder.row(song_group="x", group=None)]
    report = check_songs(folder.jsonl(*rows), settings=SETTINGS)
    assert [str(finding) for finding in report.findings] == []
    assert [song.seconds for song in report.songs] == [3.0, 3.0]
    assert report.songs[1].group == "x"
    assert report.songs[0].tokens > 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Finding]]:
    """A list with a right line before each broken one, and all that is found in it."""
    folder = Folder(tmp_path_factory.mktemp("broken"))
    lines = [line for make, _, _ in BROKEN.values() for line in (folder.row(), make(folder))]
    path = folder.jsonl(*lines)
    return path, check_songs(path, settings=SETTINGS, remember=False).findings


@pytest.mark.parametrize("name", BROKEN)
def test_each_mistake_gives_a_clear_line(found: tuple[Path, list[Finding]], name: str):
    path, findings = found
    line = 2 * list(BROKEN).index(name) + 2
    _, level, says = BROKEN[name]
    assert [str(finding) for finding in findings if finding.line == line - 1] == []
    here = [finding for finding in findings if finding.line == line]
    mine = [finding for finding in here if says in finding.message]
    assert len(mine) == 1, [str(finding) for finding in here]
    assert mine[0].level == level
    assert str(mine[0]).startswith(f"{path}:{line}: {level}: ")
    assert "\n" not in mine[0].message
    others = [finding for finding in here if finding.level == "error" and finding is not mine[0]]
    assert len(others) <= 1, [str(finding) for finding in others]  # one mistake is not told again and again


def test_all_mistakes_at_once_through_the_command(folder: Folder):
    path = folder.jsonl(*[make(folder) for make, _, _ in BROKEN.values()])
    report = folder.path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "songbloom.data.check", path, "--prompt-sec=2", f"--json={report}", "--all", "--show"],
        cwd=folder.path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for number, (_, level, says) in enumerate(BROKEN.values(), start=1):
        assert any(line.startswith(f"{path}:{number}: {level}: ") and says in line for line in lines), says
    assert "s a k u r a n o h a n a g a y u r e t e" in done.stdout
    content = json.loads(report.read_text("utf-8"))
    assert content["errors"] == sum(f["level"] == "error" for f in content["findings"]) > 20
    assert {f["line"] for f in content["findings"]} >= set(range(1, len(BROKEN) + 1))
    assert len(BROKEN) >= 30


def test_warnings_alone_are_no_failure(folder: Folder):
    path = folder.jsonl(folder.row(zzzz=1))
    done = programs.run(ROOT, "-m", "songbloom.data.check", str(path))
    assert done.returncode == 0
    assert "1 song, 0.1 minutes: 0 errors, 1 warning" in done.stdout
    mistyped = programs.run(ROOT, "-m", "songbloom.data.check", str(path), "--max_token=3")
    assert mistyped.returncode == 2
    assert mistyped.stderr.startswith("error: unrecognized arguments: --max_token=3 (did you mean '--max_tokens'?)")


def test_duplicates_by_idx_path_and_content(folder: Folder):
    first = folder.row()
    again = folder.row(audio_path="./" + first["audio_path"])
    copy = folder.row()
    (folder.path / copy["audio_path"]).write_bytes((folder.path / first["audio_path"]).read_bytes())
    same_idx = folder.row(idx=first["idx"])
    report = check_songs(folder.jsonl(first, again, copy, same_idx), settings=SETTINGS)
    assert [(f.line, f.kind, f.message) for f in report.errors] == [
        (2, "duplicate path", "audio_path is the file of line 1, too"),
        (3, "duplicate sound", "audio_path has the same sound as that of line 1"),
        (4, "duplicate idx", "idx 'song_1' is that of line 1, too"),
    ]


def test_the_same_sound_in_another_format_is_found(folder: Folder):
    import soundfile

    audio = sound(5)
    write_wav(folder.path / "a.wav", audio, RATE)
    samples, _ = soundfile.read(folder.path / "a.wav", dtype="int16")
    soundfile.write(folder.path / "a.flac", samples, RATE, subtype="PCM_16")
    assert measure(folder.path / "a.wav").digest == measure(folder.path / "a.flac").digest != ""
    soundfile.write(folder.path / "b.flac", samples[1:], RATE, subtype="PCM_16")
    assert measure(folder.path / "b.flac").digest != measure(folder.path / "a.flac").digest


def test_splits_share_no_song_group(folder: Folder):
    train = folder.jsonl(folder.row(group="g1"), folder.row(group="g2"), name="train.jsonl")
    val = folder.jsonl(folder.row(group="g3"), folder.row(group="g2"), name="val.jsonl")
    report = check_songs(train, val, settings=SETTINGS)
    assert len(report.errors) == 1
    assert (report.errors[0].file, report.errors[0].line) == (str(val), 2)
    assert f"group 'g2' is in another split, too (line 2 of {train})" in report.errors[0].message
    one = folder.jsonl(folder.row(group="a", split="train"), folder.row(group="a", split="val"))
    assert ["group 'a'" in f.message for f in check_songs(one, settings=SETTINGS).errors] == [True]
    alike = folder.jsonl(folder.row(group="a"), folder.row(group="a"))
    assert check_songs(alike, settings=SETTINGS).errors == []  # two recordings of one song, on one side
    without = folder.jsonl(folder.row(group=None), name="other.jsonl")
    assert [f.kind for f in check_songs(train, without, settings=SETTINGS).warnings] == ["group"]


def test_settings_change_what_is_wrong(folder: Folder):
    path = folder.jsonl(folder.row())
    for change, kind in (
        ({"need_sketch": True}, "missing field"),
        ({"need_prompt": True}, "missing field"),
        ({"min_seconds": 4.0}, "length"),
        ({"sample_rate": 192_000}, "rate"),
    ):
        assert [f.kind for f in check_songs(path, settings=CheckSettings(**change)).errors] == [kind], change
    limited = check_songs(path, settings=CheckSettings(max_tokens=10))
    assert [(f.level, f.kind) for f in limited.findings] == [("warning", "tokens")]  # phrases tell what a crop holds
    assert [f.kind for f in check_songs(path, settings=CheckSettings(max_seconds=2)).findings] == ["long"]
    plain = folder.jsonl(folder.row(phrases=None), name="plain.jsonl")
    assert [f.kind for f in check_songs(plain, settings=CheckSettings(max_tokens=10)).errors] == ["tokens"]
    assert check_songs(plain, settings=CheckSettings(max_tokens=10, max_seconds=2)).errors == []  # a crop is seen
    jukebox = folder.jsonl({"audio_path": "1.wav", "artist": "a", "lyrics": "Hello world"}, name="j.jsonl")
    assert check_songs(jukebox, settings=CheckSettings(lyrics_vocab="v3")).findings == []
    with pytest.raises(UserError, match="no vocabulary 'songblom'"):
        check_songs(path, settings=CheckSettings(lyrics_vocab="songblom"))


def test_training_is_refused_with_the_first_error(folder: Folder, capsys: pytest.CaptureFixture[str]):
    good, bad = folder.row(), folder.row(audio_path="nowhere.wav", lyrics=None)
    path = folder.jsonl(good, bad)
    with pytest.raises(UserError) as refused:
        check_before_training(path, settings=SETTINGS)
    assert str(refused.value).startswith(f"{path}:2: audio_path nowhere.wav is not there (and 1 more error")
    assert f"{path}:2: error: lacks lyrics" in capsys.readouterr().out
    assert len(check_before_training(folder.jsonl(folder.row()), settings=SETTINGS).songs) == 1
    capsys.readouterr()
    with pytest.raises(UserError, match=r"none\.jsonl: no such file or directory$"):
        check_before_training(folder.path / "none.jsonl", settings=SETTINGS)
    assert capsys.readouterr().out == ""  # it is one line


def test_files_that_are_not_there_or_hold_nothing(folder: Folder):
    empty = folder.jsonl("")
    report = check_songs(empty, folder.path / "none.jsonl", settings=SETTINGS)
    assert [str(f) for f in report.findings] == [
        f"{empty}: error: holds no line; each line is an object with audio_path",
        f"{folder.path / 'none.jsonl'}: error: no such file or directory",
    ]


def test_what_was_heard_is_remembered_until_the_file_changes(folder: Folder):
    row = folder.row(group="a")
    path = folder.jsonl(row)
    check_songs(path, settings=SETTINGS)
    memory = folder.path / ".songs.jsonl.check.json"
    audio = folder.path / row["audio_path"]
    content = json.loads(memory.read_text())
    content["files"][str(audio)][2]["seconds"] = 99.0  # as it would have been heard
    memory.write_text(json.dumps(content))
    assert check_songs(path, settings=SETTINGS).songs[0].seconds == 99.0
    assert check_songs(path, settings=SETTINGS, remember=False).songs[0].seconds == 3.0
    write_wav(audio, sound(99, 4.0), RATE)
    assert check_songs(path, settings=SETTINGS).songs[0].seconds == 4.0
    memory.write_text("damaged")
    assert Memory(memory).look([audio])[audio].seconds == 4.0


def test_listening_tells_that_it_is_done(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If it has told how far it was."""
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for seed, path in enumerate(paths):
        write_wav(path, sound(seed), RATE)
    told: list[str] = []
    Memory(None).look(paths, told.append)
    assert told == []
    times = itertools.chain([0.0], itertools.repeat(20.0))
    monkeypatch.setattr(sound_facts, "time", SimpleNamespace(monotonic=lambda: next(times)))
    Memory(None).look(paths, told.append)
    assert told == ["listened to 1 of 3 files", "listened to 3 of 3 files"]


def test_many_findings_of_a_kind_are_summed_up(folder: Folder):
    path = folder.jsonl(*[{"audio_path": f"{number}.wav", "lyrics": LYRICS} for number in range(30)])
    lines = list(check_songs(path, settings=SETTINGS).lines())
    assert len(lines) == 21
    assert lines[-1] == "… and 10 more errors of this kind (missing); --json lists all"


def test_a_path_seen_from_the_working_folder_is_explained(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    row = folder.row()
    (tmp_path / "lists").mkdir()
    path = folder.jsonl(row, name="lists/songs.jsonl")
    monkeypatch.chdir(tmp_path)
    assert "it is there seen from the working folder" in check_songs(path, settings=SETTINGS).errors[0].message


ODD = ("", " ", "[verse", "a.wav", "\0", "\ud800", "さくら\ud800.wav")
KEYS = st.sampled_from(("start", "end", "text"))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.sampled_from(ODD)
    | st.text(st.sampled_from("さ花[]{}verse 12.5s\n{♡｜\ud800"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@example({"lyrics": "さ\ud800", "audio_path": "\ud800.wav", "prompt_wav": "a\udc80", "\ud800": 1, "idx": "\ud800"}, b"")
@given(st.dictionaries(st.sampled_from((*FIELDS, *ALIASES, "odd")), JSON_VALUES, max_size=6), st.binary(max_size=12))
def test_nothing_in_a_line_breaks_the_check(folder: Folder, record: dict[str, Any], noise: bytes):
    (folder.path / "a.wav").write_bytes(b"RIFF" + noise)
    path = folder.jsonl(record, noise)
    report = check_songs(path, settings=SETTINGS, remember=False)
    lines = 3 + noise.count(b"\n") + noise.count(b"\r")
    assert all(0 <= finding.line < lines and "\n" not in str(finding) for finding in report.findings)
    assert json.loads(report.text().encode("utf-8"))["errors"] == len(report.errors)
    assert [finding for finding in report.errors if finding.line == 1]  # a song that cannot be right
