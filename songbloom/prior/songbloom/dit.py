"""The diffusion transformer: from a patch's noisy latents to their velocity.

Source: Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*; the sequence of one patch is the diffusion
time (where it is prepended), the language model's vector, the patch's sketch, the latents before it and its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.layers import (
    GatedMLP,
    LayerNorm,
    Linear,
    merge_heads,
    rotary_table,
    turned_heads,
)
from songbloom.transformer.halves import attention
from songbloom.transformer.recomputation import Recomputation


class TimeEmbedding(nn.Module):
    """Diffusion time ``[...]`` → ``[..., W]`` by learned Fourier features and two maps, in float32."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(config.time_features // 2, 1))
        self.hidden = Linear(config.time_features, config.prior_width, std=config.init_std)
        self.output = Linear(config.prior_width, config.prior_width, std=config.init_std, bias=True)

    def features(self, t: Tensor) -> Tensor:
        """Cosines, then sines, of ``2π t`` times each frequency: ``[..., time_features]``."""
        angles = 2.0 * math.pi * t.float()[..., None] * self.frequencies.float()[:, 0]
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        return self.output(F.silu(self.hidden(self.features(t))))


class DiffusionLayer(nn.Module):
    """One layer over a patch's sequence, each position seeing all: pre-norm attention, then a gated feed-forward."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        width, std = config.prior_width, config.init_std
        self.heads = config.heads
        self.attention_norm = LayerNorm(width)
        self.query_key_value = Linear(width, 3 * width, std=std)
        self.attention_output = Linear(width, width, std=std)
        self.mlp_norm = LayerNorm(width)
        self.mlp = GatedMLP(width, config.mlp_width, std=std)
        self.modulation: Linear | None = None
        if config.time_conditioning == "adaln":
            self.modulation = Linear(width, 6 * width, std=std)

    def forward(self, x: Tensor, table: Tensor, time: Tensor | None, last: int | None = None) -> Tensor:
        """``x [N, T, W]`` → ``[N, T, W]``, or only the ``last`` positions of it.

        Args:
            time: ``[N, W]``, for ``adaln`` only.
        """
        gates: tuple[Tensor, ...] = ()
        x, normed = self.attention_norm.of_sum(x)
        if self.modulation is not None and time is not None:
            gates = self.modulation(F.silu(time)).to(x.dtype)[:, None].chunk(6, dim=-1)
            normed = normed * (1 + gates[0]) + gates[1]
        query, key, value = turned_heads(self.query_key_value(normed), table, self.heads)
        if last is not None:  # nothing reads the other positions of the last layer
            query, x = query[:, :, -last:], x[:, -last:]
        branch = self.attention_output(merge_heads(attention(query, key, value)))
        x, normed = self.mlp_norm.of_sum(x, branch * torch.sigmoid(1 - gates[2]) if gates else branch)
        if gates:
            normed = normed * (1 + gates[3]) + gates[4]
        branch = self.mlp(normed)
        return x + (branch * torch.sigmoid(1 - gates[5]) if gates else branch)


class DiffusionTransformer(nn.Module):
    """Noisy latents, time and what is known of a patch → velocity."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.config = config
        width, std = config.prior_width, config.init_std
        self.project_in = Linear(config.latent_width, width, std=std, bias=True)
        self.project_out = Linear(width, config.latent_width, std=std, bias=True)
        self.time = TimeEmbedding(config)
        self.layers = nn.ModuleList(DiffusionLayer(config) for _ in range(config.dit_depth))
        self.recomputation = Recomputation(config.c_res, config.kept_numbers, config.dit_depth)
        self._tables: dict[tuple[int, torch.device], Tensor] = {}

    def diffusion_layers(self) -> Iterator[DiffusionLayer]:
        """The layers, first to last."""
        for layer in self.layers:
            assert isinstance(layer, DiffusionLayer)
            yield layer

    def rotary(self, positions: int, device: torch.device) -> Tensor:
        """The rotary table ``[2, positions, rotated]``, made once a device."""
        if (positions, device) not in self._tables:
            config = self.config
            with torch.inference_mode(False):  # training may use it after sampling made it
                place = torch.arange(positions, device=device)
                self._tables[positions, device] = rotary_table(place, config.rotated, config.dit_rotary_base)
        return self._tables[positions, device]

    def known(self, hidden: Tensor, sketch: Tensor, previous: Tensor) -> Tensor:
        """What does not change over the steps of a patch: ``[N, 1 + 2 patch_size, W]``.

        Args:
            hidden: ``[N, W]``, the language model's vector; its dtype is what the transformer computes in.
            sketch: ``[N, patch_size, W]``, embeddings of the patch's tokens.
            previous: ``[N, patch_size, latent_width]``, clean latents of the patch before; zeros for the first.
        """
        return torch.cat([hidden[:, None], sketch, self.project_in(previous.to(hidden.dtype))], dim=1)

    def velocity(self, x: Tensor, time: Tensor, known: Tensor) -> Tensor:
        """``x [N, patch_size, latent_width]``, ``time [N, W]`` embedded, ``known`` → velocity like x, float32.

        Many steps of one patch are faster with :class:`songbloom.prior.songbloom.steps.DiffusionSteps`.
        """
        config, time = self.config, time.to(known.dtype)
        parts = [known, self.project_in(x.to(known.dtype))]
        if config.time_conditioning == "prepend":
            parts.insert(0, time[:, None])
        y = torch.cat(parts, dim=1)
        table = self.rotary(y.shape[1], y.device)
        again = self.training and self.recomputation.wanted(y)
        for index, layer in enumerate(self.layers):
            last = config.patch_size if index + 1 == config.dit_depth else None
            if again:
                y = checkpoint(layer, y, table, time, last, use_reentrant=False)
            else:
                y = layer(y, table, time, last)
        return self.project_out(y).float()

    def forward(self, x: Tensor, t: Tensor, hidden: Tensor, sketch: Tensor, previous: Tensor) -> Tensor:
        """Velocity of ``x [N, patch_size, latent_width]`` at times ``t [N]``."""
        return self.velocity(x, self.time(t), self.known(hidden, sketch, previous))
