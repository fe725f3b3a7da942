"""VAEs small enough for tests."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.vae.vae import VAE, VAEConfig

SIZES: dict[str, Any] = {
    "sr": 8000,
    "sample_length": 240,
    "vae_width": 3,
    "vae_multipliers": (1, 2),
    "vae_strides": (2, 3),
    "vae_latent_dim": 2,
    "vae_spectral_n_fft": (64, 32),
    "vae_discriminator_width": 4,
    "vae_discriminator_n_fft": (64, 32),
}


def tiny_vae(seed: int = 0, **changes: Any) -> VAE:
    """A VAE of six samples a latent whose numbers, activations' too, are all drawn."""
    generator = torch.Generator().manual_seed(seed)
    model = VAE(VAEConfig(**{**SIZES, **changes}), generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def sound(*shape: int, seed: int = 1) -> torch.Tensor:
    """Quiet noise of ``shape``."""
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
