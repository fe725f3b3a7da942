"""The set of noise: exact lengths, every kind of sketch file, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from songbloom.audio.files import probe
from songbloom.data.check import CheckSettings, check_songs
from songbloom.data.prepare import dummy
from songbloom.errors import UserError
from songbloom.sketch.files import read_sketch
from tests.data.prepare.made import lines_of

SMALL = ["--num-samples=2", "--duration-sec=1", "--prompt_sec=0.5"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_lengths_and_files(tmp_path: Path, suffix: str):
    assert dummy.main([*SMALL, f"--output_dir={tmp_path}", f"--sketch_ext={suffix}", "--codebook-size=64"]) == 0
    rows = lines_of(tmp_path / "dummy.jsonl")
    assert [row["audio_path"] for row in rows] == ["audio/dummy_0000.wav", "audio/dummy_0001.wav"]
    info = probe(tmp_path / rows[0]["audio_path"])
    assert (info.frames, info.sample_rate, info.channels) == (48_000, 48_000, 1)
    assert probe(tmp_path / rows[1]["prompt_wav"]).frames == 24_000
    codes = read_sketch(tmp_path / rows[0]["sketch_path"], 64)
    assert len(codes) == 25
    assert int(codes.max()) > 32


def test_it_passes_the_check_and_is_the_same_each_time(tmp_path: Path):
    for name in ("a", "b"):
        dummy.main(["--num_samples=3", "--duration_sec=12", f"--output_dir={tmp_path / name}"])
    settings = CheckSettings(need_sketch=True, need_prompt=True)
    report = check_songs(tmp_path / "a" / "dummy.jsonl", settings=settings)
    assert [finding.kind for finding in report.findings] == ["mono"]
    for path in sorted((tmp_path / "a").rglob("*.*")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        if path.is_file() and not path.name.startswith("."):
            assert path.read_bytes() == other.read_bytes(), path
    dummy.main(["--num_samples=1", "--duration_sec=12", f"--output_dir={tmp_path / 'c'}", "--seed=5"])
    sound = "audio/dummy_0000.wav"
    assert (tmp_path / "c" / sound).read_bytes() != (tmp_path / "a" / sound).read_bytes()


def test_the_list_can_lie_elsewhere(tmp_path: Path):
    dummy.main([*SMALL, f"--output_dir={tmp_path / 'data'}", f"--jsonl-path={tmp_path / 'list.jsonl'}"])
    assert lines_of(tmp_path / "list.jsonl")[0]["audio_path"] == "data/audio/dummy_0000.wav"
    with pytest.raises(UserError, match="--num_samples is 0; it must be 1 or more"):
        dummy.main([f"--output_dir={tmp_path}", "--num_samples=0"])
