"""A few tiny songs with words, and an untrained codec for them, for tests of the SongBloom family's commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import make_models
from hparams import setup_hparams
from songbloom.audio.files import write_wav
from songbloom.sketch.builtin import BuiltinConfig, BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook

RATE = 8000
LINES = ("さくら", "やよい", "そらは", "みわたす", "かすみか", "くもか")


def write_corpus(folder: Path, *, songs: int = 4, seconds: float = 2.0, **extra: Any) -> Path:
    """Stereo wav files of two tones that change every half second, and ``songs.jsonl``; each song is two groups' half.

    Args:
        extra: fields of every line.
    """
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    rows = []
    for number in range(songs):
        t = np.arange(int(RATE * (seconds + 0.37 * number))) / RATE
        pitch = np.repeat(draw.uniform(100, 1500, 1 + int(t[-1] * 2)), RATE // 2)[: len(t)]
        tone = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
        audio = np.stack([tone, 0.7 * tone], 1) + 0.01 * draw.standard_normal((len(t), 2))
        write_wav(folder / "wav" / f"song_{number}.wav", audio, RATE)
        first, second = LINES[number % len(LINES)], LINES[(number + 1) % len(LINES)]
        lyrics = f"[verse] {first}. {second} , [outro]"
        row = {"idx": f"song_{number}", "audio_path": f"wav/song_{number}.wav", "lyrics": lyrics, "language": "ja"}
        rows.append({**row, "group": f"group_{number // 2}", **extra})
    path = folder / "songs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_codec(folder: Path, codes: int = 16) -> None:
    """``logs/tiny_songbloom_vae`` and ``logs/tiny_sketch`` as training would leave them, with random weights."""
    hps = setup_hparams("tiny_songbloom_vae")
    vae = make_models.make_vae(hps)
    path = folder / "logs" / "tiny_songbloom_vae" / "checkpoint_latest.pth.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_models.save(vae, path, "vae", hps)
    codebook(codes).save(folder / "logs" / "tiny_sketch" / "sketch_codebook.pt")


def codebook(codes: int = 16, seed: int = 0) -> SketchCodebook:
    """A random codebook for built-in features of tiny_sketch's sizes."""
    generator = torch.Generator().manual_seed(seed)
    features = BuiltinFeatures(BuiltinConfig.from_hps(setup_hparams("tiny_sketch")), generator)
    rows = features.extract(torch.randn(1, RATE * 4, 1, generator=generator), RATE)[0]
    vectors = rows[torch.randperm(len(rows), generator=generator)[:codes]].clone()
    return SketchCodebook(
        vectors=vectors + 1e-3 * torch.randn(vectors.shape, generator=generator),
        features=features.identity(),
        state={name: tensor.clone() for name, tensor in features.state_dict().items()},
    )
