"""Sampling as one would write it on a blackboard: a full forward pass for each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from songbloom.prior.autoregressive import AutoregressiveModel
from songbloom.prior.filters import filter_logits


@torch.no_grad()
def sample_slowly(
    model: AutoregressiveModel,
    n_samples: int,
    *,
    prompt: Tensor | None = None,
    sample_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    generators: Sequence[torch.Generator] = (),
    **conditions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Tokens [N, sample_tokens] and the logits that they were drawn from [N, sample_tokens, bins]."""
    total = model.n_ctx if sample_tokens is None else sample_tokens
    tokens = torch.zeros(n_samples, model.n_ctx, dtype=torch.int64)
    known = 0 if prompt is None else prompt.shape[1]
    if prompt is not None:
        tokens[:, :known] = prompt
    for position in range(known, total):
        logits = model.logits(tokens, **conditions)[:, position]
        for item in range(n_samples):
            if temperature == 0:
                tokens[item, position] = logits[item].argmax()
                continue
            scores = filter_logits(logits[item] / temperature, top_k, top_p)
            uniform = torch.rand(model.bins, generator=generators[item], dtype=torch.float64)
            gumbel = -torch.log(-torch.log(uniform))
            tokens[item, position] = (scores + gumbel).argmax()
    return tokens[:, :total], model.logits(tokens, **conditions)[:, :total]
