"""Songs cut into their lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from songbloom.data.check import check_songs
from songbloom.data.prepare import lines
from songbloom.errors import UserError
from tests.data.prepare.made import LINES, RATE, SPANS, lines_of, voice


def write_list(folder: Path, **more: object) -> Path:
    voice(folder / "song.wav")
    phrases = [{"text": words, "start": a, "end": b} for words, (a, b) in zip(LINES, SPANS, strict=True)]
    lyrics = f"[verse 9s]\n{LINES[0]}\n[chorus]\n{LINES[1]}"
    row = {"audio_path": "song.wav", "idx": "a", "lyrics": lyrics, "language": "ja", "group": 3, "licence": "mine"}
    path = folder / "songs.jsonl"
    path.write_text(json.dumps({**row, "phrases": phrases, **more}, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def cut(tmp_path: Path, *more: str, **fields: object) -> list[dict]:
    source = write_list(tmp_path, **fields)
    lines.main(["--input_jsonl", str(source), "--output_dir", str(tmp_path / "out"), *more])
    return lines_of(tmp_path / "out" / "lines.jsonl")


def test_each_line_is_a_song_with_its_words_and_sound(tmp_path: Path) -> None:
    rows = cut(tmp_path)
    assert [row["lyrics"] for row in rows] == [f"[verse]\n{LINES[0]}", f"[chorus]\n{LINES[1]}"]
    assert [row["idx"] for row in rows] == ["a_00", "a_01"]
    assert all((row["group"], row["licence"], row["language"]) == (3, "mine", "ja") for row in rows)
    whole, _ = soundfile.read(tmp_path / "song.wav")
    for row, (start, _) in zip(rows, SPANS, strict=True):
        sound, rate = soundfile.read(tmp_path / "out" / row["audio_path"])
        assert rate == RATE and len(sound) % round(0.64 * RATE) == 0
        first, fade = round((start - 0.2) * RATE), RATE // 100
        inside = sound[fade : 4 * RATE]
        np.testing.assert_allclose(inside, whole[first + fade : first + 4 * RATE], atol=1e-4)
        assert abs(sound[0]) == 0
    assert check_songs(tmp_path / "out" / "lines.jsonl").errors == []


@pytest.mark.parametrize(
    "lyrics",
    [
        "[intro 4s] [verse 2]\n{0}\n[guitar solo 3s]\n[pre-chorus]\n{1}",
        "[intro] [intro] , [verse] {0} , [inst] , [pre-chorus] {1}",
        "[Verse 9.5s] {0} [Pre Chorus] {1} [outro]",
    ],
)
def test_words_stand_under_the_tag_before_them(tmp_path: Path, lyrics: str) -> None:
    rows = cut(tmp_path, lyrics=lyrics.format(*LINES))
    assert [row["lyrics"] for row in rows] == [f"[verse]\n{LINES[0]}", f"[prechorus]\n{LINES[1]}"]


def test_lengths_between_two_samples(tmp_path: Path) -> None:
    """A hundredth of a second is 110.25 samples, and what is heard of a line may round to one more than its length."""
    phrases = [{"text": LINES[0], "start": 1, "end": 2.52}, {"text": LINES[1], "start": 6, "end": 7}]
    options = ("--multiple=0.01", "--sample_rate=11025")
    first, _ = cut(tmp_path, *options, phrases=phrases)
    sound, _ = soundfile.read(tmp_path / "out" / first["audio_path"])
    assert len(sound) == round(2.02 * 11025)


def test_the_next_line_is_never_heard(tmp_path: Path) -> None:
    phrases = [{"text": LINES[0], "start": 2, "end": 4}, {"text": LINES[1], "start": 4, "end": 8}]
    first, _ = cut(tmp_path, "--multiple=5", "--sample_rate=8000", phrases=phrases)
    sound, rate = soundfile.read(tmp_path / "out" / first["audio_path"])
    assert rate == 8000 and len(sound) == 5 * rate
    assert abs(sound[round(0.3 * rate) : round(2.1 * rate)]).mean() > 0.05 and not sound[round(2.2 * rate) + 1 :].any()


def test_the_same_words_once_and_a_prompt(tmp_path: Path) -> None:
    prompt = voice(tmp_path / "prompt.wav")
    phrases = [{"text": LINES[0], "start": a, "end": b} for a, b in SPANS]
    more = {"phrases": phrases, "lyrics": f"{LINES[0]}\n{LINES[0]}"}
    rows = cut(tmp_path, "--distinct", "--multiple=0", f"--prompt-wav={prompt}", **more)
    assert [row["lyrics"] for row in rows] == [f"[verse]\n{LINES[0]}"]
    assert (tmp_path / "out" / rows[0]["prompt_wav"]).resolve() == prompt.resolve()
    sound, _ = soundfile.read(tmp_path / "out" / rows[0]["audio_path"])
    assert len(sound) == round((SPANS[0][1] - SPANS[0][0] + 0.5) * RATE)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing says when its lines are sung"):
        cut(tmp_path, phrases=None)
    with pytest.raises(UserError, match=r"--prompt_wav=no\.wav: no such file"):
        cut(tmp_path, "--prompt_wav=no.wav")
    with pytest.raises(UserError, match="--before is -1"):
        cut(tmp_path, "--before=-1")
    label = tmp_path / "song.lab"
    label.write_text("0 20000000 sil\n20000000 30000000 s\n30000000 40000000 a\n", encoding="utf-8")
    with pytest.raises(UserError, match="its lyrics have 2 lines, and the file of times 1"):
        cut(tmp_path, phrases=None, lab_path="song.lab")
