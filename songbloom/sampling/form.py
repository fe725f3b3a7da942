"""How codes lie while a run writes them, and what is kept of them and heard: the difference between the two families.

A model that writes one level at a time has codes ``[items, codes]`` everywhere. One that writes a sketch and latents in
turns has frames: while a run is written, a frame's token and its latents are one row of the finest level, so that
windows, batches, journals and ranks treat both families alike; ``data.pth.tar`` keeps them as two levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Form:
    """Codes of levels that are written one at a time: the same everywhere."""

    def kept(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The codes of all levels as ``data.pth.tar`` keeps them, on the CPU."""
        return [each.cpu() for each in codes]

    def length(self, codes: Tensor) -> int:
        """How many codes of one item are sound, of ``[codes]`` or ``[codes, width]``."""
        return len(codes)

    def heard(self, codes: Tensor) -> Tensor:
        """What the codec decodes of one item's codes: ``[1, length, …]``."""
        return codes[None]


class Frames(Form):
    """Frames of a sketch (level 1) and latents (level 0), ``[items, frames, 1 + latent_width]`` float32.

    The token stands first; float32 holds whole numbers up to 2**24 exactly. A song that ended has the end-of-song
    token in all frames that follow.

    Args:
        eos: the end-of-song token.
    """

    def __init__(self, eos: int) -> None:
        self.eos = eos

    @staticmethod
    def joined(latents: Tensor, sketch: Tensor) -> Tensor:
        """``[…, frames, latent_width]`` and ``[…, frames]`` → frames, as many as both have."""
        frames = min(latents.shape[-2], sketch.shape[-1])
        token = sketch[..., :frames, None].to(torch.float32)
        return torch.cat([token, latents[..., :frames, :].float()], dim=-1)

    @staticmethod
    def latents(frames: Tensor) -> Tensor:
        """``[…, frames, latent_width]``."""
        return frames[..., 1:]

    @staticmethod
    def sketch(frames: Tensor) -> Tensor:
        """``[…, frames]`` int64."""
        return frames[..., 0].long()

    def kept(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Latents and sketch, up to where the longest item ends."""
        frames = codes[0].cpu()
        frames = frames[:, : max(map(self.length, frames), default=0)]
        return [self.latents(frames).contiguous(), self.sketch(frames)]

    def length(self, codes: Tensor) -> int:
        return self.sounding(self.sketch(codes))

    def sounding(self, sketch: Tensor) -> int:
        """Frames of ``sketch [frames]`` before the song's end."""
        ended = (sketch == self.eos).nonzero()
        return int(ended[0]) if len(ended) else len(sketch)

    def heard(self, codes: Tensor) -> Tensor:
        return self.latents(codes[None, : self.length(codes)])
