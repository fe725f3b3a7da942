"""Small models of both families, with random weights, for the tests of adapters."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hparams import setup_hparams
from make_models import make_prior, make_vqvae
from songbloom.lora.training import LoRASettings, attach
from songbloom.prior.prior import Prior
from songbloom.prior.songbloom.prior import SongBloomConfig, SongBloomPrior
from songbloom.transformer.lora import LowRank

_Model = TypeVar("_Model", bound=nn.Module)
SETTINGS = LoRASettings(rank=3, alpha=6.0, dropout=0.0)


def jukebox(sets: str = "tiny_vqvae,tiny_prior", **values: Any) -> Prior:
    """A prior of the Jukebox family in eval mode."""
    given = {"restore_vqvae": "", "restore_prior": "", "labels": False, **values}
    hps = setup_hparams(sets, given)
    return make_prior(hps, make_vqvae(hps))


def with_lyrics(**values: Any) -> Prior:
    """One with an encoder of lyrics."""
    given = {"labels": True, "y_bins": (4, 5), "n_vocab": 79}
    return jukebox("tiny_vqvae,tiny_lyrics_prior", **given, **values)


def songbloom(**values: Any) -> SongBloomPrior:
    """A prior of the SongBloom family in eval mode."""
    given = {"prior_width": 32, "heads": 1, "prior_depth": 2, "dit_depth": 2, "l_bins": 48, "latent_width": 8}
    given |= {"patch_size": 4, "lyric_tokens": 12, "prompt_frames": 6, "time_features": 8}
    config = SongBloomConfig(**{**given, **values})
    return SongBloomPrior(config, torch.Generator().manual_seed(0)).eval().requires_grad_(False)


def codes_for(prior: Prior, seed: int = 0) -> Tensor:
    """Random codes for a prior, ``[2, n_ctx]``."""
    return torch.randint(0, prior.l_bins, (2, prior.n_ctx), generator=torch.Generator().manual_seed(seed))


def songbloom_loss(prior: SongBloomPrior, seed: int = 0) -> Tensor:
    """The loss of two random songs of two and three patches, the same for one seed."""
    draw, config = torch.Generator().manual_seed(seed), prior.config
    frames = 3 * config.patch_size
    tokens = torch.randint(0, config.l_bins, (2, frames), generator=draw)
    latents = torch.randn(2, frames, config.latent_width, generator=draw)
    prompt = torch.randn(2, config.prompt_frames, config.latent_width, generator=draw)
    lengths = torch.tensor([frames, 2 * config.patch_size])
    loss, _ = prior(tokens, latents, lengths, [[3, 40, 41, 1], [5, 60]], prompt, generator=draw)
    return loss


def adapted(model: _Model, settings: LoRASettings = SETTINGS, *, seed: int = 7) -> _Model:
    """The model with adapters that do something: B is random."""
    attach(model, settings)
    stir(model, seed)
    return model


@torch.no_grad()
def stir(model: nn.Module, seed: int = 7) -> None:
    """Make every B random."""
    draw = torch.Generator().manual_seed(seed)
    for adapter in low_ranks(model):
        adapter.B.copy_(torch.randn(adapter.B.shape, generator=draw) * 0.3)


def low_ranks(model: nn.Module) -> list[LowRank]:
    """Every adapter of a model."""
    return [module for module in model.modules() if isinstance(module, LowRank)]
