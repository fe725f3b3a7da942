"""The whole command: files, determinism, resuming, what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from songbloom.data.manifest import songs_from
from songbloom.data.prepare import sung_corpus
from songbloom.data.prepare.sung import render, voices
from songbloom.data.prepare.sung.render import Recipe
from songbloom.data.prepare.sung.styles import STYLES
from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.words import VOWELS, split_morae
from songbloom.errors import UserError
from tests.data.prepare.conftest import ROOT, SMALL, command, environment, run_command

SONG_FILES = {"mix.flac", "vocals.flac", "backing.flac", "score.musicxml", "phonemes.json", "phonemes.lab", "song.json"}


def lines_of(corpus: Path) -> list[dict]:
    return [json.loads(line) for line in (corpus / "songs.jsonl").read_text(encoding="utf-8").splitlines()]


def bytes_of(corpus: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(corpus)): p.read_bytes()
        for p in sorted(corpus.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_the_list_can_name_the_singer_alone(corpus: Path, tmp_path: Path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    for what in ("vocals", "mix"):
        done = run_command("--output_dir", copy, *SMALL, f"--audio_type={what}")
        assert done.returncode == 0, done.stderr
        assert [Path(line["audio_path"]).name for line in lines_of(copy)] == [f"{what}.flac"] * 3
    assert bytes_of(copy) == bytes_of(corpus)  # no song was made anew


def test_every_song_is_described_and_its_files_exist(corpus: Path):
    lines = lines_of(corpus)
    assert [line["idx"] for line in lines] == [0, 1, 2]
    for line in lines:
        for key in (
            "audio_path",
            "vocals_path",
            "backing_path",
            "musicxml_path",
            "phonemes_path",
            "lab_path",
            "song_path",
        ):
            assert not Path(line[key]).is_absolute()
            assert (corpus / line[key]).is_file()
        assert {p.name for p in (corpus / line["song_path"]).parent.iterdir()} == SONG_FILES
        assert line["artist"].startswith("Mei")
        assert line["genre"] in STYLES
        assert line["language"] == "ja"
        assert line["lyrics"].startswith("[verse]\n")
        assert line["licence"] == "CC BY 3.0"
        assert "Nagoya Institute of Technology" in line["voice_credit"]
        low, high = STYLES[line["genre"]].tempo
        assert low <= line["tempo"] <= high
        assert 4 < line["seconds"] < 9
    assert len({line["lyrics"] for line in lines}) == 3
    assert len({line["genre"] for line in lines}) == 3
    assert len({line["artist"] for line in lines}) == 3
    assert len({line["group"] for line in lines}) == 3


def test_the_list_is_what_the_data_room_reads(corpus: Path):
    songs = songs_from(data_jsonl=str(corpus / "songs.jsonl"))
    assert [song.idx for song in songs] == [0, 1, 2]
    for song, line in zip(songs, lines_of(corpus), strict=True):
        assert Path(song.path) == corpus / line["audio_path"]
        assert (song.artist, song.genre, song.lyrics) == (line["artist"], line["genre"], line["lyrics"])
        assert song.extra["group"] == line["group"]


def test_the_mix_is_vocals_and_backing_and_does_not_clip(corpus: Path):
    for line in lines_of(corpus):
        assert soundfile.info(corpus / line["audio_path"]).subtype == "PCM_16"
        mix, rate = soundfile.read(corpus / line["audio_path"])
        vocals, _ = soundfile.read(corpus / line["vocals_path"])
        backing, _ = soundfile.read(corpus / line["backing_path"])
        assert rate == 48000
        assert mix.shape == backing.shape == (len(vocals), 2)
        assert len(mix) / rate == pytest.approx(line["seconds"], abs=1e-3)
        assert np.abs(mix - vocals[:, None] - backing).max() < 2 / 32768
        assert max(np.abs(x).max() for x in (mix, vocals, backing)) < 0.9
        level = 20 * np.log10(np.sqrt(np.mean(mix**2)))
        assert -26 < level < -14
        assert abs(mix.mean()) < 1e-3
        side = (backing[:, 0] - backing[:, 1]) / 2
        assert np.sqrt(np.mean(side**2)) > 0.03 * np.sqrt(np.mean(backing**2))  # stereo
        sung = np.abs(vocals) > 0.01
        ratio = 20 * np.log10(np.sqrt(np.mean(vocals[sung] ** 2)) / np.sqrt(np.mean(backing**2)))
        assert 0 < ratio < 14


def test_phoneme_times_cover_the_song_and_agree_with_the_lab(corpus: Path):
    for line in lines_of(corpus):
        times = json.loads((corpus / line["phonemes_path"]).read_text(encoding="utf-8"))
        about = json.loads((corpus / line["song_path"]).read_text(encoding="utf-8"))
        rows = times["phonemes"]
        assert times["exact"] is True
        assert times["onset"] == "vowel starts on the beat"
        assert rows[0]["start"] == 0
        assert rows[-1]["end"] == pytest.approx(line["seconds"], abs=1e-9)
        assert all(a["end"] == b["start"] and a["start"] < a["end"] for a, b in pairwise(rows))
        assert all((row["midi"] is None) == (row["phoneme"] == "pau") for row in rows)
        lab = [text.split() for text in (corpus / line["lab_path"]).read_text(encoding="utf-8").splitlines()]
        assert [(int(a) / 1e7, int(b) / 1e7, p) for a, b, p in lab] == [
            (r["start"], r["end"], r["phoneme"]) for r in rows
        ]
        nuclei = [row for row in rows if row["phoneme"] in VOWELS or row["phoneme"] == "N"]
        morae = [m for lyric in about["lines"] for m in split_morae(lyric["reading"]) if m != "っ"]
        assert len(nuclei) == len(morae)
        for number, lyric in enumerate(about["lines"]):
            mine = [row for row in nuclei if row["line"] == number]
            assert mine[0]["start"] == pytest.approx(lyric["start"], abs=0.0026)
            assert mine[-1]["end"] == pytest.approx(lyric["end"], abs=0.0026)


def test_phoneme_times_agree_with_the_sound(corpus: Path):
    """The contrast in level between vowels and all else is sharpest at the given times, not before or after."""
    contrast = {}
    for shift in (-0.08, -0.04, 0.0, 0.04, 0.08):
        inside, outside = [], []
        for line in lines_of(corpus):
            vocals, rate = soundfile.read(corpus / line["vocals_path"])
            hop = rate // 200
            frames = vocals[: len(vocals) // hop * hop].reshape(-1, hop)
            level = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-8)
            time = (np.arange(len(level)) + 0.5) / 200
            vowel = np.zeros(len(level), bool)
            for row in json.loads((corpus / line["phonemes_path"]).read_text(encoding="utf-8"))["phonemes"]:
                if row["phoneme"] in VOWELS:
                    vowel |= (time >= row["start"] + shift) & (time < row["end"] + shift)
            inside.append(level[vowel])
            outside.append(level[~vowel])
        contrast[shift] = np.concatenate(inside).mean() - np.concatenate(outside).mean()
    assert contrast[0.0] > 20
    assert max(contrast, key=contrast.__getitem__) == 0.0


def test_the_voice_sings_the_score(corpus: Path):
    music21 = pytest.importorskip("music21")
    for line in lines_of(corpus):
        about = json.loads((corpus / line["song_path"]).read_text(encoding="utf-8"))
        assert about["quality"]["median_error_cents"] < 20
        assert about["quality"]["within_50_cents"] > 0.9
        assert about["quality"]["voiced_share"] > 0.8
        assert about["melody_by_frames"] is True
        part = music21.converter.parse(corpus / line["musicxml_path"]).parts[0]
        assert part.recurse().getElementsByClass("MetronomeMark")[0].number == line["tempo"]
        assert part.recurse().getElementsByClass("TimeSignature")[0].ratioString == line["meter"]
        key = part.recurse().getElementsByClass("KeySignature")[0]
        assert key.asKey(line["key"].split()[1]).tonic.name.replace("-", "b") == line["key"].split()[0]
        joined = part.stripTies()
        notes = list(joined.recurse().notes)
        assert "".join(note.lyric for note in notes) == about["lyrics_kana"].replace("\n", "")
        rows = json.loads((corpus / line["phonemes_path"]).read_text(encoding="utf-8"))["phonemes"]
        for number, note in enumerate(notes):
            start = float(note.getOffsetInHierarchy(joined)) * 60 / line["tempo"]
            of_note = [row for row in rows if row["midi"] is not None]
            keys = list(dict.fromkeys((row["line"], row["note"]) for row in of_note))
            mine = [row for row in of_note if (row["line"], row["note"]) == keys[number]]
            nucleus = next(row for row in mine if row["phoneme"] in VOWELS or row["phoneme"] == "N")
            assert nucleus["start"] == pytest.approx(start, abs=0.0026)
            assert nucleus["midi"] == note.pitch.midi
            assert nucleus["kana"] == note.lyric
        assert part.recurse().getElementsByClass("Rest")


def test_the_manifest_and_notice_credit_every_voice(corpus: Path):
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parameters"]["seed"] == 7
    assert manifest["songs"] == 3
    assert manifest["failed"] == {}
    assert [credit["voice"] for credit in manifest["credits"]] == ["Mei"]
    assert manifest["seconds"] == pytest.approx(sum(line["seconds"] for line in lines_of(corpus)))
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for info in voices.VOICES.values():
        assert info.credit.split('"')[1] in notice
        assert info.licence_url in notice


def test_killed_and_run_again_it_ends_with_the_same_bytes(corpus: Path, tmp_path: Path):
    """Kill -9 between songs, with workers; the rest of the songs, the lists and every file are those of a quiet run."""
    folder = tmp_path / "corpus"
    arguments = ["--output_dir", folder, *SMALL, "--workers", "2"]
    process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("songs/0*/song.json")):
        time.sleep(0.01)
    children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == process.pid]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob("songs/0*/song.json"))
    (folder / "songs" / ".partial-00002-1").mkdir()  # what a kill in the middle of a song leaves
    deadline = time.monotonic() + 60
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)
    again = run_command(*arguments)
    assert again.returncode == 0, again.stderr
    assert bytes_of(folder) == bytes_of(corpus)
    assert "of 3 songs are there already" in again.stdout
    assert "3 of 3" not in again.stdout  # the kill came before the end


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_at_once_in_one_line(number: signal.Signals, status: int, tmp_path: Path):
    """Ctrl-C goes to the command and its workers, in the middle of songs of minutes; nobody finishes his first."""
    folder = tmp_path / "corpus"
    process = subprocess.Popen(
        command("--output_dir", folder, "--songs", "4", "--seconds", "300", "--workers", "2", "--voices", "mei"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background of a script has had SIGINT ignored, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children: list[int] = []
    while process.poll() is None and len(children) < 3:  # two workers and the tracker of shared things
        children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == process.pid]
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (status, "")
    assert err == "sung_corpus: stopped; the same command goes on from here\n"
    assert not list(folder.glob("songs/0*"))
    deadline = time.monotonic() + 60
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def parent_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return -1


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_finished_songs_are_kept_damaged_ones_are_made_again(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    before = bytes_of(folder)
    (folder / "manifest.json").unlink()
    (folder / "songs.jsonl").unlink()
    (folder / "songs/00001/mix.flac").write_bytes(b"short")
    kept = (folder / "songs/00000/mix.flac").stat()
    assert sung_corpus.main(["--output_dir", str(folder), *SMALL]) == 0
    assert bytes_of(folder) == before
    assert (folder / "songs/00000/mix.flac").stat().st_mtime_ns == kept.st_mtime_ns
    assert "2 of 3 songs are there already" in capsys.readouterr().out


def test_another_seed_gives_other_songs_and_more_songs_keep_the_first(corpus: Path, tmp_path: Path):
    arguments = ["--output_dir", str(tmp_path / "a"), "--songs", "1", "--seconds", "6", "--voices", "mei"]
    assert sung_corpus.main([*arguments, "--seed", "8"]) == 0
    one, other = bytes_of(corpus), bytes_of(tmp_path / "a")
    assert one["songs/00000/mix.flac"] != other["songs/00000/mix.flac"]
    assert lines_of(corpus)[0]["lyrics"] != lines_of(tmp_path / "a")[0]["lyrics"]
    with pytest.raises(UserError, match=r"made with seed=8, not 9; choose another --output_dir"):
        sung_corpus.main([*arguments, "--seed", "9"])
    assert bytes_of(tmp_path / "a") == other
    assert sung_corpus.main([*arguments, "--seed", "8", "--songs", "2"]) == 0
    more = bytes_of(tmp_path / "a")
    assert [line["idx"] for line in lines_of(tmp_path / "a")] == [0, 1]
    assert all(more[name] == content for name, content in other.items() if name.startswith("songs/"))


def test_versions_share_a_composition_in_other_keys_by_other_singers(tmp_path: Path):
    recipe = Recipe(3, 6.0, ("mei",), tuple(STYLES), 2, 16)
    loaded: dict[str, voices.Voice] = {}
    first, second, third = (render.perform(recipe, index, 0, loaded) for index in range(3))
    assert first.composition == second.composition != third.composition
    assert first.timbre != second.timbre
    about = [render.describe(recipe, i, song, []) for i, song in enumerate((first, second, third))]
    assert about[0]["group"] == about[1]["group"] != about[2]["group"]


class _Unreliable:
    """A singer whose first phrases come out wrong."""

    def __init__(self, singer: voices.Voice, failures: int, spoil):
        self.singer, self.failures, self.spoil = singer, failures, spoil
        self.info, self.engine = singer.info, singer.engine

    def sing(self, notes, timbre, rng):
        if self.failures > 0:
            self.failures -= 1
            return self.spoil(self.singer.sing(notes, timbre, rng))
        return self.singer.sing(notes, timbre, rng)


def _diverge(phrase):
    raise UnusableRendering("engine", "peak 537 is above 4: the synthesis filter diverged")


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("quiet", lambda phrase: replace(phrase, wave=phrase.wave * 1e-4)),
        ("unvoiced", lambda phrase: replace(phrase, wave=np.random.default_rng(0).normal(size=len(phrase.wave)) * 0.1)),
        ("engine", _diverge),
    ],
)
def test_unusable_renderings_are_drawn_again_and_counted(tmp_path: Path, reason: str, spoil):
    recipe = Recipe(4, 5.0, ("mei",), ("pop", "march"), 1, 16)
    singer = _Unreliable(voices.load_voice("mei"), 2, spoil)
    about = render.render_song(tmp_path, recipe, 0, {"mei": singer})
    assert [redraw["reason"] for redraw in about["redraws"]] == [reason, reason]
    assert about["quality"]["median_error_cents"] < 20
    sung_corpus._write_lists(tmp_path, recipe, [0], {}, "mix")
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["redrawn"] == {reason: 2}


def test_a_song_that_never_works_is_given_up_and_reported(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    hopeless = _Unreliable(voices.load_voice("mei"), 10**6, _diverge)
    monkeypatch.setattr(sung_corpus, "_voices", {"mei": hopeless})
    assert sung_corpus.main(["--output_dir", str(tmp_path), "--songs", "1", "--seconds", "5", "--voices", "mei"]) == 1
    assert "song 0 is given up: engine: 8 drawings failed" in capsys.readouterr().out
    assert "peak 537" in json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["failed"]["0"]
    assert lines_of(tmp_path) == []
    assert not list((tmp_path / "songs").iterdir()) if (tmp_path / "songs").exists() else True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--songs", "0"], "--songs is 0; it must be 1 or more"),
        (["--songs", "many"], "argument --songs: invalid int value: 'many'"),
        (["--seconds", "2"], "--seconds is 2; it must be between 5 and 300"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--styles", "pop,walz"], "no style 'walz' (did you mean 'waltz'?)"),
        (["--voices", "miku"], "no voice 'miku'"),
        (["--song", "3"], "no option is named --song (did you mean '--songs'?)"),
        (["--verions=3"], "no option is named --verions (did you mean '--versions'?)"),
        (["zzz"], "'zzz' belongs to no option"),
        (["--bits", "12"], "--bits"),
        (["--output-dir", "/dev/null/x"], "cannot write there"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(UserError) as caught:
        sung_corpus.main(["--output_dir", str(tmp_path), *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--songs", "3"], "--output_dir is missing: give a folder for the corpus; --help lists the options"),
        (["--sons", "3"], "no option is named --sons (did you mean '--songs'?); --help lists the options"),
        (["--outputdir=x"], "no option is named --outputdir (did you mean '--output_dir'?); --help lists the options"),
    ],
)
def test_the_command_prints_one_line_and_status_2(arguments: list[str], message: str):
    done = run_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"sung_corpus: {message}\n"


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mix.flac")

    monkeypatch.setattr(sung_corpus, "main", full)
    with pytest.raises(SystemExit) as caught:
        sung_corpus.run()
    assert caught.value.code == 2
    assert "No space left on device" in capsys.readouterr().err


def test_help_names_every_option_voice_and_style(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        sung_corpus.main(["--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in (
        "--output_dir",
        "--songs",
        "--seed",
        "--seconds",
        "--voices",
        "--styles",
        "--workers",
        "--versions",
        "--bits",
    ):
        assert word in out
    for name in (*STYLES, *voices.VOICES):
        assert name in out


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_runs_do_not_write_into_one_folder(tmp_path: Path):
    with sung_corpus._alone_in(tmp_path), pytest.raises(UserError, match="another run is writing there"):
        sung_corpus.main(["--output_dir", str(tmp_path), "--songs", "1", "--voices", "mei"])


@pytest.mark.skipif("song070" not in voices.available_voices(), reason="pysinsy is not installed")
def test_song070_gives_whole_songs_too(tmp_path: Path):
    assert (
        sung_corpus.main(["--output_dir", str(tmp_path), "--songs", "1", "--seconds", "8", "--voices", "song070"]) == 0
    )
    (line,) = lines_of(tmp_path)
    assert line["artist"].startswith("SONG070")
    times = json.loads((tmp_path / line["phonemes_path"]).read_text(encoding="utf-8"))
    assert times["onset"] == "consonant starts on the beat"
    about = json.loads((tmp_path / line["song_path"]).read_text(encoding="utf-8"))
    assert about["quality"]["median_error_cents"] < 20
    rows = times["phonemes"]
    assert all(a["end"] == b["start"] for a, b in pairwise(rows))
    for lyric in about["lines"]:
        first = next(row for row in rows if row.get("line") == about["lines"].index(lyric))
        assert first["start"] == pytest.approx(lyric["start"], abs=0.011)
    vocals, _ = soundfile.read(tmp_path / line["vocals_path"])
    assert np.abs(vocals).max() > 0.1
