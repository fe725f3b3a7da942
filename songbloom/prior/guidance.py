"""Teaching one head of a prior to look at the words that are being sung.

A prior learns by itself to follow the words only from many songs: where it can tell the next code from the codes before
it, nothing asks it to look. Where the times of the words are known, one head can be told. After guided attention
(Tachibana et al. 2018, *Efficiently Trainable Text-to-Speech System Based on Deep Convolutional Networks with Guided
Attention*, section 4.1), but with the true times in place of a diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.prior.config import PriorConfig
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

    def weights(self) -> Tensor:
        """Its softmax weights in the last forward pass, ``[N, n_ctx - first_query, keys]`` float32, with a gradient;
        dropout left out."""
        x, source = (*self._inputs, None)[:2]
        self._inputs = ()
        layer = self.transformer.stack[self.layer]
        query, key, _ = layer.attention.project(layer.attention_norm(x), source)
        function, geometry = self.transformer.funcs[self.layer], layer.attention.geometry
        positions = self.transformer.config.n_ctx  # behind them blocks may have been filled up
        where = {"head": self.head, "first_query": self.first_query, "keys": self.keys}
        return head_weights(function, query[:, :positions], key, geometry, **where)


def taught_head(config: PriorConfig, heads: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The layer and head that are taught: those that are set, or the first head of the last layer that reads lyrics.

    Args:
        config: of the prior.
        heads: its (layer, head) pairs that read lyrics.

    Raises:
        UserError: there is no such head.
    """
    if not heads:
        raise UserError(
            f"alignment_loss_fraction={config.alignment_loss_fraction:g} teaches a head to follow lyrics, but no layer"
            " of this prior reads any: give it lyrics and an attn_order that reads them, or set it to 0"
        )
    layer, head = config.alignment_layer, config.alignment_head
    if layer is None and head is None:
        return heads[-config.heads]
    if layer is None or head is None or (layer, head) not in heads:
        layers = ", ".join(map(str, sorted({layer for layer, _ in heads})))
        raise UserError(
            f"alignment_layer={layer} and alignment_head={head}: this prior reads lyrics in layers {layers} with heads"
            f" 0 to {config.heads - 1}; set both to one of these, or neither"
        )
    return layer, head


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
