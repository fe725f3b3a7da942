"""The training forward and its losses (Yang et al. 2025, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.songbloom.conditioners import Conditions
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.diffusion import draw_times


@dataclass(frozen=True)
class TrainingDraws:
    """What one training forward draws, for all real patches of the batch, song after song.

    Attributes:
        t: ``[patches]`` diffusion times.
        noise: ``[patches, patch_size, latent_width]``.
        hide_hidden, hide_sketch: ``[patches]`` bool, whose hidden vector or sketch the diffusion does not see.
    """

    t: Tensor
    noise: Tensor
    hide_hidden: Tensor
    hide_sketch: Tensor


@dataclass(frozen=True)
class TrainingOutputs:
    """What the losses compare.

    Attributes:
        logits: ``[N, T + 1, l_bins + 1]``.
        targets: ``[N, T + 1]``: the tokens, end-of-song at each length, and ignored behind it.
        velocity, velocity_target: ``[patches, patch_size, latent_width]`` of the real patches, song after song.
        t: ``[patches]``.
    """

    logits: Tensor
    targets: Tensor
    velocity: Tensor
    velocity_target: Tensor
    t: Tensor


def _chances(count: int, probability: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    where = generator.device if generator is not None else device
    return (torch.rand(count, generator=generator, device=where) < probability).to(device)


def draw_for_training(
    config: SongBloomConfig, patches: int, *, training: bool, generator: torch.Generator | None, device: torch.device
) -> TrainingDraws:
    """Times, noise and, while training, what is hidden."""
    hidden_chance = config.patch_dropout if training else 0.0
    where = generator.device if generator is not None else device
    t = draw_times(config.timestep_sampler, patches, generator, device)
    noise = torch.randn(patches, config.patch_size, config.latent_width, generator=generator, device=where).to(device)
    hide_hidden = _chances(patches, hidden_chance, generator, device)
    return TrainingDraws(t, noise, hide_hidden, _chances(patches, hidden_chance, generator, device))


def drop_conditions(
    config: SongBloomConfig, given: Conditions, null: Conditions, generator: torch.Generator | None
) -> Conditions:
    """Replace conditions by their null forms at random: both together, then each of the two (Copet et al. 2023).

    Args:
        given: N songs' conditions.
        null: one song's null conditions.
    """
    n, device = len(given), given.prompt.device
    count = 1 if config.dropout_by_batch else n
    both = _chances(count, config.condition_dropout, generator, device)
    lyrics = both | _chances(count, config.lyric_dropout, generator, device)
    prompt = both | _chances(count, config.prompt_dropout, generator, device)
    return Conditions(
        prompt=torch.where(prompt.expand(n)[:, None, None], null.prompt, given.prompt),
        lyrics=torch.where(lyrics.expand(n)[:, None, None], null.lyrics, given.lyrics),
    )


def check_lengths(config: SongBloomConfig, tokens: Tensor, latents: Tensor, lengths: Tensor) -> None:
    """Refuse a batch that is not whole patches.

    Raises:
        UserError: what does not fit.
    """
    size, frames = config.patch_size, tokens.shape[1]
    if latents.shape != (*tokens.shape, config.latent_width):
        raise UserError(
            f"latents of shape {tuple(latents.shape)} for sketch tokens of shape {tuple(tokens.shape)}: this prior"
            f" needs {config.latent_width} floats for each token"
        )
    if frames % size or bool((lengths % size).any()) or int(lengths.min()) < size or int(lengths.max()) > frames:
        raise UserError(
            f"songs of {lengths.tolist()} frames in a batch of {frames}: each must have whole patches of {size} frames"
            " and at least one"
        )


def losses(outputs: TrainingOutputs, config: SongBloomConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its parts as detached metrics."""
    logits, targets = outputs.logits.flatten(0, 1), outputs.targets.flatten()
    sketch = F.cross_entropy(logits, targets, ignore_index=config.ignored)
    flow = F.mse_loss(outputs.velocity, outputs.velocity_target)
    loss = sketch + config.flow_loss_fraction * flow
    counted = targets != config.ignored
    right = (logits.argmax(-1) == targets)[counted].float().mean()
    metrics = {"loss": loss, "sketch_loss": sketch, "flow_loss": flow, "sketch_accuracy": right}
    return loss, {name: value.detach() for name, value in metrics.items()}
