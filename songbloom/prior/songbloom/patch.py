"""Between tokens, latents and the language model: classifier of the next token, encoder of a finished patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.layers import Linear
from songbloom.transformer import halves


class TokenClassifier(nn.Module):
    """Hidden vectors ``[..., W]`` → logits ``[..., l_bins + 1]`` in float32, end-of-song last.

    The last map is in float32 whatever the rest: three digits are too few to tell the likeliest of 16385 tokens. Only
    in training on a CPU that multiplies halves (``transformer/halves.py``) it loses a little before its float32 sums.
    """

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.hidden = Linear(config.prior_width, config.prior_width, std=config.init_std)
        self.output = Linear(config.prior_width, config.l_bins + 1, std=config.init_std, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.hidden(x))
        if not torch.is_grad_enabled() or not halves.usable(hidden.dtype, hidden.device):
            hidden = hidden.float()
        return self.output(hidden, torch.float32)


class PatchEncoder(nn.Module):
    """The latents of a patch ``[..., patch_size, latent_width]`` → one vector ``[..., W]`` for the language model.

    The paper calls it a convolutional encoder; the published model has two linear maps over the frames end to end.
    """

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        width = config.prior_width
        self.hidden = Linear(config.patch_size * config.latent_width, width, std=config.init_std, bias=True)
        self.output = Linear(width, width, std=config.init_std, bias=True)

    def forward(self, latents: Tensor) -> Tensor:
        return self.output(F.silu(self.hidden(latents.flatten(-2))))
