"""Tiny priors with weights drawn so wide that every part matters."""

from dataclasses import replace

import torch

from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings

CONFIG = SongBloomConfig(
    patch_size=3,
    latent_width=4,
    l_bins=12,
    prior_width=64,
    heads=2,
    prior_depth=2,
    dit_depth=2,
    m_mlp=1.0,
    time_features=8,
    lyric_vocabulary=16,
    lyric_tokens=6,
    structure_tokens=(1, 2, 3),
    section_token=4,
    sentence_token=5,
    sentences=4,
    prompt_frames=5,
)
SETTINGS = GenerationSettings(max_frames=9, steps=3, top_k=0, temperature=1.0, diffusion_temperature=1.0)


def tiny_prior(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    prior = SongBloomPrior(replace(CONFIG, **changes), generator).eval()
    with torch.no_grad():
        for name, tensor in prior.state_dict().items():
            wide = "frequencies" not in name
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                tensor.add_(0.2 * noise)
            elif wide:
                tensor.copy_(0.1 * noise)
        assert prior.classifier.output.bias is not None
        prior.classifier.output.weight.mul_(16.0)  # logits far apart, so that rounding decides nothing
    return prior


def with_end(prior, bias):
    """Make the end of a song as likely as ``bias`` has it."""
    with torch.no_grad():
        prior.classifier.output.bias[prior.config.eos] = bias
    return prior


def forbid_end(prior):
    """Make the end of a song next to impossible."""
    return with_end(prior, -100.0)


def some_conditions(prior, songs=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lyrics = [torch.randint(0, 16, (length,), generator=generator).tolist() for length in range(2, 2 + songs)]
    prompt = torch.randn(songs, 5, prior.config.latent_width, generator=generator)
    return prior.conditions(lyrics, prompt)


def some_codes(prior, songs, frames, seed=2):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, prior.config.l_bins, (songs, frames), generator=generator)
    return tokens, torch.randn(songs, frames, prior.config.latent_width, generator=generator)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]
