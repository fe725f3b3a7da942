"""The whole path of docs/songbloom_proof.md in short, through the commands: from sung songs to an adapter's samples.

Four low lines of the synthesised singer are the base's songs, four high ones the adapter's. In twenty seconds a VAE
learns nothing that can be listened to (that takes the page's time), so codes are compared, not sound.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import make_models
from songbloom.audio.files import read_audio
from songbloom.sampling.origin import data_file
from songbloom.sampling.run import read_data
from tests.programs import ROOT, run

# A lower rate and shorter pieces than the set's own: half its time.
CODEC = ["--sr=8000", "--vae_strides=16,20"]
SIZES = ["--prior_width=128", "--heads=2", "--prior_depth=2", "--dit_depth=3", "--sample_length=51200"]
SKETCH_LOSS = re.compile(r"sketch_loss ([\d.]+)")


def command(folder: Path, *words: str) -> str:
    """What a command says, which must succeed."""
    program = [words[0], *words[1:]] if words[0] == "-m" else [str(ROOT / words[0]), *words[1:]]
    done: subprocess.CompletedProcess[str] = run(folder, *program)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_lists(folder: Path) -> None:
    """``low.jsonl``, ``high.jsonl`` and ``both.jsonl``: the four lowest and the four highest of the sung lines."""
    command(
        folder,
        *("-m", "songbloom.data.prepare.sung_corpus", "--output_dir=corpus", "--songs=16", "--seconds=8"),
        *("--voices=mei", "--seed=61", "--audio_type=vocals"),
    )
    lines = ("--input_jsonl=corpus/songs.jsonl", "--output_dir=lines", "--sample_rate=8000", "--distinct")
    command(folder, "-m", "songbloom.data.prepare.lines", *lines)
    rows = [json.loads(line) for line in (folder / "lines/lines.jsonl").read_text(encoding="utf-8").splitlines()]

    def height(row: dict[str, Any]) -> float:
        song = int(str(row["idx"]).split("_")[0])
        told = json.loads((folder / f"corpus/songs/{song:05d}/phonemes.json").read_text(encoding="utf-8"))
        return float(np.median([each["midi"] for each in told["phonemes"] if each["midi"]]))

    rows.sort(key=height)
    for name, chosen in (("low", rows[:4]), ("high", rows[-4:]), ("both", rows[:4] + rows[-4:])):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"lines/{name}.jsonl").write_text(content, encoding="utf-8")


@pytest.mark.slow
def test_from_songs_to_an_adapter_that_sings_like_its_target(tmp_path: Path) -> None:
    write_lists(tmp_path)
    assert " 0 errors" in command(tmp_path, "-m", "songbloom.data.check", "lines/both.jsonl", "--sr=8000")
    quiet = ["--sample_iters=0", "--log_steps=20", "--train"]
    command(
        tmp_path,
        *("train.py", "--vq", "--hps=voice_vae", "--name=voice_vae", "--data_jsonl=lines/both.jsonl", *CODEC, *quiet),
        *("--sample_length=5120", "--train_steps=250", "--lr_decay=250", "--mu=0.9"),
    )
    command(
        tmp_path,
        *("train.py", "--vq", "--hps=voice_sketch", "--name=voice_sketch", "--data_jsonl=lines/both.jsonl", *quiet),
        *("--sr=8000", "--sketch_start_rows=1200", "--train_steps=12"),
    )
    base = ["train.py", "--prior", "--hps=voice_songbloom", "--name=voice_songbloom", "--data_jsonl=lines/low.jsonl"]
    learned = ["--bs=4", "--train_steps=150", "--lr_decay=150", "--lr=0.002", "--lr_warmup=10", "--mu=0.9"]
    said = command(tmp_path, *base, *CODEC, *SIZES, *quiet, *learned)
    last = float(SKETCH_LOSS.findall(said)[-1])
    frequencies = float(re.findall(r"how often each is used ([\d.]+)", said)[0])
    assert last < frequencies < math.log(128), "the sketch's loss is no better than knowing how often codes are used"
    said = command(
        tmp_path,
        *("train.py", "--lora", "--hps=voice_songbloom", "--name=higher", "--data_jsonl=lines/high.jsonl", *CODEC),
        *("--restore_prior=logs/voice_songbloom/checkpoint_latest.pth.tar", "--lora-target-modules=all-linear"),
        *(*SIZES, *quiet, *learned, "--lora-rank=16"),
    )
    assert float(SKETCH_LOSS.findall(said)[-1]) < frequencies

    codec, _ = make_models.make_songbloom("voice_songbloom", hps={"local_logdir": str(tmp_path / "logs")})
    targets = [json.loads(line) for line in (tmp_path / "lines/high.jsonl").read_text(encoding="utf-8").splitlines()]
    known: dict[str, float] = {}  # share of the codes that are drawn which the adapter's songs have as well
    for name, adapter in (("base", []), ("adapter", ["--lora=logs/higher"])):
        command(
            tmp_path,
            *("sample.py", "--model=voice_songbloom", f"--name=samples/{name}", "--input_jsonl=lines/high.jsonl"),
            *("--sample_length_in_seconds=3.2", "--min_length_in_seconds=3.2", "--steps=8", *adapter),
        )
        _, sketch = read_data(data_file(str(tmp_path / f"samples/{name}"))).codes
        shares = []
        for row, target in enumerate(targets):
            sound = read_audio(tmp_path / "lines" / target["audio_path"], sample_rate=8000, channels=1)
            codes = codec.encode(torch.from_numpy(sound)[None])[1][0]
            shares.append(float(torch.isin(sketch[row], codes).float().mean()))
        known[name] = float(np.mean(shares))
        told = [f"--name=samples/{name}", "--reference_dir=lines/high.jsonl", f"--json={name}.json", "--no_pitch"]
        command(tmp_path, "evaluate.py", *told, "--embeddings=log_mel,voice")
        found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["reference"]["embeddings"]
        assert math.isfinite(found["log_mel"]["distance"]) and found["voice"]["reference_vectors"] > 10
    assert known["adapter"] > known["base"] + 0.1, known
