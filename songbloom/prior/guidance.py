"""Teaching one head of a prior to look at the words that are being sung.

A prior learns by itself to follow the words only from many songs: where it can tell the next code from the codes before
it, nothing asks it to look. Where the times of the words are known, one head can be told. After guided attention
(Tachibana et al. 2018, *Efficiently Trainable Text-to-Speech System Based on Deep Convolutional Networks with Guided
Attention*, section 4.1), but with the true times in place of a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from songbloom.transformer.attention import head_weights
from songbloom.transformer.blocks import Transformer

TOLERANCE = 0.5  # codes by which a word may be early or late, so that a word shorter than a code has one
_LEAST = 1e-6  # smallest share whose logarithm is taken


@dataclass
class WatchedHead:
    """One head of a transformer and what it saw in the last forward pass.

    Attributes:
        transformer: it is part of.
        layer, head: which.
        first_query, keys: as in :func:`songbloom.transformer.attention.head_weights`.
    """

    transformer: Transformer
    layer: int
    head: int
    first_query: int
    keys: int
    _inputs: tuple[Any, ...] = field(default=(), repr=False)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward passes within are seen."""

        def keep(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inputs = inputs

        hook = self.transformer.stack[self.layer].register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def weights(self, positions: int) -> Tensor:
        """Its softmax weights in the last forward pass of ``positions`` positions, ``[N, positions - first_query,
        keys]`` float32, with a gradient; dropout left out."""
        x, source = (*self._inputs, None)[:2]
        self._inputs = ()
        layer = self.transformer.stack[self.layer]
        query, key, _ = layer.attention.project(layer.attention_norm(x), source)
        function, geometry = self.transformer.funcs[self.layer], layer.attention.geometry
        where = {"head": self.head, "first_query": self.first_query, "keys": self.keys}
        return head_weights(function, query[:, :positions], key, geometry, **where)


def alignment_loss(weights: Tensor, sung: Tensor) -> Tensor:
    """How little a head looks at what is being sung, in bits a code; 0 where no time is known.

    The mean of -log2 of the share of attention on the lyric positions of that moment, over the codes that have any.

    Args:
        weights: ``[N, codes, n_tokens]``, shares of attention.
        sung: ``[N, n_tokens, 2]``, beginning and end of each position's time in codes; NaN where nobody knows.
    """
    at = torch.arange(weights.shape[1], device=weights.device)[None, :, None]
    begin, end = sung.to(weights.device)[:, None].unbind(-1)
    now = (at >= begin - TOLERANCE) & (at < end + TOLERANCE)  # NaN compares as false
    judged = now.any(-1)
    missed = -torch.where(now, weights, 0.0).sum(-1).clamp_min(_LEAST).log2()
    return torch.where(judged, missed, 0.0).sum() / judged.sum().clamp_min(1)
