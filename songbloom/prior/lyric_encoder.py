"""The separate encoder of lyrics, which the music's decoder attends to.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4.2 (lyrics conditioning): an encoder
that is itself trained to predict the lyrics, a projection to the decoder's width, and a norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from songbloom.prior.autoregressive import AutoregressiveModel
from songbloom.prior.losses import linear_cross_entropy
from songbloom.transformer.blocks import TransformerConfig
from songbloom.transformer.layers import LayerNorm, Linear
from songbloom.transformer.lora import effective_weight


class LyricEncoder(nn.Module):
    """Lyric tokens ``[N, n_tokens]`` → what the decoder attends to, ``[N, n_tokens, W]``.

    It is a language model of the lyrics: position t has read the tokens before t only, and is asked for token t.

    Args:
        transformer: the encoder's own; its ``init_scale`` also scales the projection.
        bins: size of the vocabulary.
        width: W, the decoder's width.
        init_scale: the decoder's, of the output layer.
        emb_dropout: dropout of the embeddings.
        pos_init: start the position embedding as sinusoids.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        *,
        bins: int,
        width: int,
        init_scale: float = 1.0,
        emb_dropout: float = 0.0,
        pos_init: bool = False,
    ) -> None:
        super().__init__()
        self.model = AutoregressiveModel(
            transformer, bins=bins, only_encode=True, emb_dropout=emb_dropout, pos_init=pos_init
        )
        self.project = Linear(transformer.width, width, std=0.02 * transformer.init_scale)
        self.norm = LayerNorm(width)
        self.output = nn.Linear(width, bins, bias=False)
        nn.init.normal_(self.output.weight, std=0.02 * init_scale)

    def forward(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """``tokens`` [N, n_tokens] int64 → [N, n_tokens, W] float32; ``dtype`` is what the transformer computes in."""
        return self.norm(self.project(self.model.hidden(tokens, dtype=dtype)))

    def loss(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Bits a token of ``tokens`` [N, n_tokens], predicted from what :meth:`forward` made of them."""
        rows = tokens.numel()
        weights = states.new_full((rows,), 1 / rows)
        loss, _ = linear_cross_entropy(states.flatten(0, 1), effective_weight(self.output), tokens.reshape(-1), weights)
        return loss

    def operations(self) -> float:
        """Operations of encoding one item (its loss left out)."""
        positions = self.model.n_ctx
        return positions * (self.model.transformer.cost()["operations_per_token"] + 2.0 * self.project.weight.numel())
