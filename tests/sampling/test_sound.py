"""Sound on disk, piece by piece: the files of the whole, in memory that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from songbloom.audio.files import write_wav
from songbloom.audio.mel import mel_picture, png_bytes
from songbloom.sampling import sound
from songbloom.sampling.page import wave_path

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("length", [1, 300, 640, 5000, 200_000])
def test_pieces_make_the_files_of_the_whole(tmp_path: Path, length: int) -> None:
    audio = 2 * torch.rand(1, length, 1, generator=torch.Generator().manual_seed(length)) - 1
    pieces = list(sound.write_item(tmp_path, 3, audio.split(777, dim=1), length, 8000))
    assert torch.equal(torch.cat(pieces, dim=1), audio)
    write_wav(tmp_path / "whole.wav", audio[0].numpy(), 8000)
    assert (tmp_path / "item_3.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    assert (tmp_path / "item_3.png").read_bytes() == png_bytes(mel_picture(audio[0, :, 0].numpy(), 8000))
    samples = np.frombuffer((tmp_path / "item_3.wav").read_bytes()[44:], "<i2").astype(np.float32) / 32768
    told = sound.heard(tmp_path / "item_3.wav")
    assert told.seconds == length / 8000
    if length > 1:
        assert told.wave == wave_path(samples) or length < 640  # shorter ones are drawn in other columns
    assert told.wave.startswith("M") and told.wave.endswith("Z")


def test_a_sound_that_is_gone_or_broken_is_told_as_nothing(tmp_path: Path) -> None:
    assert sound.heard(tmp_path / "none.wav") == sound.Heard()
    (tmp_path / "text.wav").write_text("no sound")
    assert sound.heard(tmp_path / "text.wav") == sound.Heard()


MEASURE = """
import songbloom, json, resource, sys, torch
from hparams import setup_hparams
from make_models import make_vqvae
from songbloom.sampling import sound
from songbloom.sampling.run import LevelData, Run
codec = make_vqvae(setup_hparams(("small_vqvae",), {"restore_vqvae": ""}))
hop, rate = codec.hop_lengths[0], codec.sample_rate
count = int(float(sys.argv[1]) * rate) // hop
codes = [torch.randint(0, codec.l_bins, (1, count))] + [torch.zeros(1, 0, dtype=torch.int64)] * (codec.levels - 1)
run = Run(sys.argv[2], {"levels": [0]}, sample_rate=rate)
run.open()
for _ in sound.write_item(run.begin_level(0), 0, sound.decoded(codec, codes, 0), count * hop, rate):
    pass
run.write_level(0, LevelData(codes, None, [None] * codec.levels, [{}] * codec.levels), 1.0)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_song(tmp_path: Path) -> None:
    """Twenty seconds against four minutes: within a tenth."""
    peaks = {}
    for seconds in (20, 240):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(seconds), str(tmp_path / str(seconds))],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        peaks[seconds] = json.loads(done.stdout)
    assert peaks[240] < 1.1 * peaks[20]
