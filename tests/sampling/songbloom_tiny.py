"""The model ``tiny_songbloom`` with random weights, written as the checkpoints that training would leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hparams import setup_hparams
from make_models import fingerprint, make_songbloom_prior, make_vae, save
from songbloom.hyperparams import Hyperparams
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.sketch.builtin import BuiltinConfig, BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook
from songbloom.vae.vae import VAE

RATE = 8000
FRAME = 320
PATCH = 4 * FRAME


def settings(name: str) -> Hyperparams:
    empty = {"restore_vae": "", "restore_prior": "", "restore_sketch": ""}
    return setup_hparams(dict.fromkeys(("tiny_songbloom_vae", name)), empty)


def tiny_vae(seed: int = 3) -> VAE:
    vae = make_vae(settings("tiny_songbloom_vae"))
    generator = torch.Generator().manual_seed(seed)
    for parameter in vae.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return vae


def tiny_prior(seed: int = 7, ending: float = -9.0) -> SongBloomPrior:
    """Weights large enough that codes depend on what came before; ``ending`` is how gladly songs end."""
    prior = make_songbloom_prior(settings("tiny_songbloom"))
    generator = torch.Generator().manual_seed(seed)
    for parameter in prior.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    assert prior.classifier.output.bias is not None
    prior.classifier.output.bias[prior.config.eos] += ending
    return prior


def tiny_codebook(seed: int = 5, size: int = 16) -> SketchCodebook:
    generator = torch.Generator().manual_seed(seed)
    features = BuiltinFeatures(BuiltinConfig(), generator)
    vectors = torch.randn(size, features.width, generator=generator)
    state = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    return SketchCodebook(vectors=vectors, features=features.identity(), state=state)


def write_tiny(logs: Path, *, ending: float = -9.0, codebook: bool = True) -> None:
    """Checkpoints in ``logs``, as training under the sets' names leaves them."""
    vae, prior = tiny_vae(), tiny_prior(ending=ending)
    for name, module, kind, more in [
        ("tiny_songbloom_vae", vae, "vae", {}),
        ("tiny_songbloom", prior, "prior", {"codec": fingerprint(vae)}),
    ]:
        (logs / name).mkdir(parents=True, exist_ok=True)
        save(module, logs / name / "checkpoint_latest.pth.tar", kind, {**settings(name), **more})
    if codebook:
        (logs / "tiny_sketch").mkdir(exist_ok=True)
        tiny_codebook().save(logs / "tiny_sketch" / "sketch_codebook.pt")


def stereo(seconds: float, seed: int = 0) -> np.ndarray:
    """Some sound ``[T, 2]`` at the model's rate."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * random.uniform(100, 900) * time + phase) for phase in (0.0, 1.0)]
    return (0.3 * np.stack(tones, axis=1) + 0.05 * random.standard_normal((len(time), 2))).astype(np.float32)
