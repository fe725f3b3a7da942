"""Small real runs of the training program, for the tests of the loop and of the program."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train
from hparams import setup_hparams
from songbloom.training import checkpoint
from songbloom.training.loop import Trainer

RATE = 8000
SMALLER = {"width": 4, "depth": 1, "sample_length": 2048}  # than tiny_vqvae: a step takes some ten milliseconds


def write_songs(folder: Path, *, songs: int = 5, seconds: float = 1.5) -> Path:
    """Mono wav files of drifting tones with a little noise."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    t = np.arange(int(RATE * seconds)) / RATE
    for song in range(songs):
        tones = [0.2 * np.sin(2 * np.pi * draw.uniform(100, 1500) * t + draw.uniform(0, 6)) for _ in range(3)]
        audio = np.clip(sum(tones) + 0.02 * draw.standard_normal(len(t)), -1, 1)
        with wave.open(str(folder / f"song_{song}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((audio * 32767).astype("<i2").tobytes())
    return folder


def built(sets: str, name: str, folder: Path, songs: Path, **values: Any) -> Trainer:
    """What ``train.py --hps=sets --name=name --train …`` builds, with its logs in ``folder``."""
    settings = SMALLER | {"train": True, "sample_iters": 0, "log_steps": 4, "lr_warmup": 3} | values
    hps = setup_hparams(sets, {"name": name, "local_logdir": str(folder), "audio_files_dir": str(songs), **settings})
    return train.build(hps, ["train.py"])


def latest(folder: Path, name: str) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return checkpoint.load(folder / name / checkpoint.LATEST)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ in any bit, but for the time taken and the names of the runs."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f"{where}: {sorted(set(a) ^ set(b))}"]
        skipped = {".position": {"seconds"}, ".hps": {"name", "train_steps"}}.get(where, set())
        skipped |= {"argv"} if not where else set()
        return [line for key in a if key not in skipped for line in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [line for i in range(len(a)) for line in differences(a[i], b[i], f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"]


def weight_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    worst = 0.0
    for name, tensor in a["model"].items():
        largest = float(tensor.abs().max()) or 1.0
        worst = max(worst, float((tensor - b["model"][name]).abs().max()) / largest)
    return worst
