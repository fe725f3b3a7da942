"""The model ``tiny`` with random weights, written as the checkpoints that training would leave."""

from __future__ import annotations

from pathlib import Path

import torch

from hparams import setup_hparams
from make_models import MODELS, make_prior, make_vqvae, save
from songbloom.data.manifest import Song
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.training.labelling import complete_labels, complete_vocabulary
from songbloom.vqvae.vqvae import VQVAE

SONGS = [Song(Path("/a.wav"), "Mei", "folk"), Song(Path("/b.wav"), "Ken", "rock")]


def settings(codec_set: str, name: str) -> Hyperparams:
    """The settings of a part without weights; of a prior with labels those that training would have found."""
    hps = setup_hparams((codec_set, name), {"restore_vqvae": "", "restore_prior": ""})
    if name != codec_set and hps.labels:
        complete_vocabulary(hps)
        complete_labels(hps, {}, lambda: SONGS)
    return hps


def tiny_models(seed: int = 7, model: str = "tiny") -> tuple[VQVAE, list[Prior]]:
    """Codec and priors, finest first; weights large enough that codes depend on what came before."""
    codec_set, *prior_sets = MODELS[model]
    generator = torch.Generator().manual_seed(seed)
    vqvae = make_vqvae(settings(codec_set, codec_set))
    for name, buffer in vqvae.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    priors = [make_prior(settings(codec_set, name), vqvae) for name in prior_sets]
    for prior in priors:
        for parameter in prior.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return vqvae, priors


def write_tiny(logs: Path, seed: int = 7, model: str = "tiny") -> None:
    """Checkpoints of every part in ``logs/{set}/checkpoint_latest.pth.tar``."""
    codec_set, *prior_sets = MODELS[model]
    vqvae, priors = tiny_models(seed, model)
    for name, module, kind in [
        (codec_set, vqvae, "vqvae"),
        *((name, prior, "prior") for name, prior in zip(prior_sets, priors, strict=True)),
    ]:
        (logs / name).mkdir(parents=True, exist_ok=True)
        hps = settings(codec_set, name)
        save(module, logs / name / "checkpoint_latest.pth.tar", kind, hps)
