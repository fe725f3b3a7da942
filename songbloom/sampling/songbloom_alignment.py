"""Where a SongBloom prior looks in its lyrics while it writes: weights of its heads, and the one that follows best.

Lyrics stand before the song, a position a token, so every frame can look at all of them. Which head follows the words
is not known beforehand; it is the one whose weights lie along one monotone path most
(:func:`songbloom.sampling.alignment.path_share`), measured on the songs themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.sampling import alignment
from songbloom.sampling.alignment import Times
from songbloom.sampling.form import Frames
from songbloom.sampling.heads import Head, HeadScore
from songbloom.sampling.songbloom_writer import Told

_MEMORY = 1 << 30  # bytes of weights at a time


@torch.no_grad()
def matrices(
    prior: SongBloomPrior, latents: Tensor, sketch: Tensor, told: Told, wanted: Sequence[Head], *, memory: int = _MEMORY
) -> Iterator[tuple[Head, NDArray[np.float32]]]:
    """The weights of each wanted head over one song, ``[frames, lyric tokens]``, up to the song's end.

    Args:
        prior: on its device.
        latents, sketch: ``[frames, latent_width]`` and ``[frames]``, whole patches.
        told: what the prior was told.
        wanted: heads of ``prior.lyric_heads()``.
        memory: bytes that the weights of the heads that are computed together may take.
    """
    config, device = prior.config, prior.start.device
    end = Frames(config.eos).sounding(sketch)
    prompt = None if told.prompt is None else told.prompt[None].to(device)
    conditions = prior.conditions([told.ids], prompt)
    heard = min(len(told.ids), config.lyric_tokens)
    positions = config.prefix + 1 + (config.patch_size + 1) * (end // config.patch_size)
    together = max(1, memory // (4 * positions**2))
    song = sketch[None, :end].to(device), latents[None, :end].to(device)
    for first in range(0, len(wanted), together):
        group = list(wanted[first : first + together])
        weights = prior.lyric_attention(*song, conditions, wanted=group)[:, 0, :, :heard].float().cpu().numpy()
        for head, each in zip(group, weights, strict=True):
            whole = np.zeros((end, len(told.ids)), np.float32)  # tokens beyond the model's positions are never seen
            whole[:, :heard] = each
            yield head, whole


def rank(
    prior: SongBloomPrior, songs: Sequence[tuple[Tensor, Tensor, Told]], *, longest: int, memory: int = _MEMORY
) -> list[HeadScore]:
    """All heads by how monotone they are, the best first.

    Args:
        prior: on its device.
        songs: latents, sketch and what was told, as :func:`matrices` takes them.
        longest: frames of each song that are looked at.
        memory: as there.
    """
    size = prior.config.patch_size
    scores = {head: HeadScore(*head) for head in prior.lyric_heads()}
    for latents, sketch, told in songs:
        end = max(size, longest // size * size)
        for head, weights in matrices(prior, latents[:end], sketch[:end], told, list(scores), memory=memory):
            scores[head].look(weights)
    return sorted(scores.values(), key=lambda score: score.order)


def token_times(weights: NDArray[np.float32], frame_seconds: float, *, shift: float = 0.0) -> list[Times | None]:
    """When each token is sung, in seconds; None where it is not."""
    return alignment.times_of(alignment.monotone_segments(weights), frame_seconds, shift=shift)
