"""Where the random choices of a run come from: a generator a song, so that no song depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.prior.draws import draw

Generators = Sequence[torch.Generator]


class Draws(Protocol):
    """What generation asks for, patch by patch, for the songs (``items``) that still go on."""

    def begin_patch(self, index: int) -> None:
        """Told before the draws of each patch."""

    def tokens(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        """One token a song: ``[n, bins]``, what may not be drawn at -inf → ``[n]``."""

    def noise(self, shape: tuple[int, int], items: Sequence[int]) -> Tensor:
        """Normal noise ``[n, *shape]``, float32."""


class RandomDraws:
    """Draws from one generator a song.

    Args:
        generators: one a song; or a function that gives them for a patch, so that a patch's draws depend on nothing
            but the patch, and a run can be taken up again between any two.
    """

    def __init__(self, generators: Generators | Callable[[int], Generators], songs: int) -> None:
        self.source = generators
        self.songs = songs
        self.generators: Generators = ()
        if not callable(generators):
            self._use(generators)

    def _use(self, generators: Generators) -> None:
        if len(generators) != self.songs:
            raise UserError(f"{len(generators)} generators for {self.songs} songs: give one generator a song")
        self.generators = generators

    def begin_patch(self, index: int) -> None:
        """Take the patch's own generators, where there are such."""
        if callable(self.source):
            self._use(self.source(index))

    def tokens(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        """One token a song by the Gumbel maximum, which rounding of the logits hardly ever changes."""
        return draw(logits, temperature=1.0, generators=[self.generators[item] for item in items])

    def noise(self, shape: tuple[int, int], items: Sequence[int]) -> Tensor:
        """Normal noise ``[n, *shape]``."""
        chosen = [self.generators[item] for item in items]
        return torch.stack([torch.randn(shape, generator=generator, device=generator.device) for generator in chosen])
