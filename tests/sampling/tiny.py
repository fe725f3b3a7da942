"""The model ``tiny`` with random weights, written as the checkpoints that training would leave."""

from __future__ import annotations

from pathlib import Path

import torch

from hparams import setup_hparams
from make_models import MODELS, make_prior, make_vqvae, save
from songbloom.prior.prior import Prior
from songbloom.vqvae.vqvae import VQVAE


def tiny_models(seed: int = 7) -> tuple[VQVAE, list[Prior]]:
    """Codec and priors, finest first; weights large enough that codes depend on what came before."""
    codec_set, *prior_sets = MODELS["tiny"]
    nothing = {"restore_vqvae": "", "restore_prior": ""}
    generator = torch.Generator().manual_seed(seed)
    vqvae = make_vqvae(setup_hparams(codec_set, nothing))
    for name, buffer in vqvae.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    priors = [make_prior(setup_hparams((codec_set, name), nothing), vqvae) for name in prior_sets]
    for prior in priors:
        for parameter in prior.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return vqvae, priors


def write_tiny(logs: Path, seed: int = 7) -> None:
    """Checkpoints of every part in ``logs/{set}/checkpoint_latest.pth.tar``."""
    codec_set, *prior_sets = MODELS["tiny"]
    vqvae, priors = tiny_models(seed)
    for name, module, kind in [
        (codec_set, vqvae, "vqvae"),
        *((name, prior, "prior") for name, prior in zip(prior_sets, priors, strict=True)),
    ]:
        (logs / name).mkdir(parents=True, exist_ok=True)
        hps = setup_hparams((codec_set, name))
        save(module, logs / name / "checkpoint_latest.pth.tar", kind, hps)
