"""Which tokens may be drawn: the most likely k (top-k), or the fewest that hold a share p of the probability (top-p).

Top-p is nucleus sampling, Holtzman et al. 2019.
"""

from __future__ import annotations

import torch

from songbloom.errors import UserError


def check_filters(top_k: int, top_p: float) -> None:
    """Whether the two settings make sense together.

    Raises:
        UserError: both are set, or one is out of its range.
    """
    if top_k < 0:
        raise UserError(f"top_k={top_k}: it must be 0 (off) or the number of tokens to keep")
    if not 0.0 <= top_p <= 1.0:
        raise UserError(f"top_p={top_p}: it must lie between 0 (off) and 1")
    if top_k and top_p:
        raise UserError(f"top_k={top_k} and top_p={top_p} exclude each other; set one of them to 0")


def filter_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0) -> torch.Tensor:
    """Logits ``[..., bins]`` with those that may not be drawn at -inf.

    ``top_k`` keeps every logit that is not below the k-th largest (so ties stay); ``top_p`` goes down from the most
    likely token and keeps each one whose predecessors together hold at most ``top_p`` (so the first always stays).
    0 turns a filter off; with both off the logits come back as they are.

    Raises:
        UserError: both filters are set, or one is out of its range.
    """
    check_filters(top_k, top_p)
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < kth, float("-inf"))
    if top_p:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[..., 0] = 0.0
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        return logits.masked_fill(dropped, float("-inf"))
    return logits
