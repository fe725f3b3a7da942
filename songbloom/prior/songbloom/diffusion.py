"""Objectives of the diffusion and how training draws its times.

``rectified_flow`` (Liu et al. 2022; Lipman et al. 2022): x_t = (1 − t) x0 + t ε, target ε − x0.
``v`` (Salimans and Ho 2022): x_t = cos(πt/2) x0 + sin(πt/2) ε, target cos ε − sin x0. t = 1 is noise in both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRUNCATED_BELOW = 0.075  # least time of trunc_logit_normal


def mix(objective: str, clean: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity that the model must find: ``[N, P, C]`` twice, for times ``t [N]``."""
    t = t[:, None, None]
    if objective == "rectified_flow":
        return (1 - t) * clean + t * noise, noise - clean
    alpha, sigma = torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2))
    return alpha * clean + sigma * noise, alpha * noise - sigma * clean


def draw_times(sampler: str, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Diffusion times ``[count]`` in (0, 1), float32.

    ``logit_normal`` is the sigmoid of N(0, 1) (Esser et al. 2024, section 3.1); ``trunc_logit_normal`` the same, given
    that it is at least 0.075; ``uniform`` puts one time in each of ``count`` equal parts of (0, 1), in random order.
    That covers the range as evenly as a Sobol sequence and needs no state between calls, so a resumed run draws what
    an undisturbed one would.
    """
    where = generator.device if generator is not None else device
    if sampler == "logit_normal":
        t = torch.sigmoid(torch.randn(count, generator=generator, device=where))
    elif sampler == "uniform":
        place = torch.randperm(count, generator=generator, device=where)
        t = (place + torch.rand(count, generator=generator, device=where)) / max(count, 1)
    else:
        normal = torch.distributions.Normal(0.0, 1.0)
        least = float(normal.cdf(torch.logit(torch.tensor(TRUNCATED_BELOW, dtype=torch.float64))))
        share = torch.rand(count, generator=generator, device=where, dtype=torch.float64)
        t = torch.sigmoid(normal.icdf((least + (1 - least) * share).clamp(1e-12, 1 - 1e-12))).float()
    return t.to(device)
