"""From noise to latents along a velocity field.

Each sampler takes ``velocity(x, t)`` with ``x [N, P, C]`` and t a scalar tensor (1 is noise, 0 is clean), the noise
``[N, P, C]`` and the number of steps, and gives the clean latents. Those for ``rectified_flow`` know a start
temperature: below 1, the path starts from the mean of the noise, zero, and the noise enters at the step that crosses
the temperature, which spends the first steps on a draw that is likelier than most (Yang et al. 2025's published code;
not in the paper).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from songbloom.errors import UserError, did_you_mean

Velocity = Callable[[Tensor, Tensor], Tensor]


def time_grid(steps: int) -> Tensor:
    """``[steps + 1]`` times from 1 to 0, evenly spread; on the CPU, where looking at one waits for no device."""
    return torch.linspace(1.0, 0.0, steps + 1)


def enter_noise(x: Tensor, v: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, *, estimate_at_one: bool) -> Tensor:
    """The clean latents estimated at ``(x, t)``, mixed with noise to the time ``t_next``.

    On the straight path x = (1 − t) x0 + t ε the velocity is ε − x0, so x0 = x − t v. ``estimate_at_one`` takes x − v,
    which is that at t = 1 only.
    """
    clean = x - v if estimate_at_one else x - t * v
    return (1 - t_next) * clean + t_next * noise


def _crosses(t: Tensor, t_next: Tensor, temperature: float) -> bool:
    return bool(t > temperature) and bool(temperature >= t_next)


def euler(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    estimate_at_one: bool = False,
    times: Tensor | None = None,
) -> Tensor:
    """Euler's method; ``temperature`` below 1 starts it from zero (see above).

    Args:
        times: a grid of its own, ``[steps + 1]``.
    """
    times = time_grid(steps) if times is None else times
    x = noise if temperature >= 1 else torch.zeros_like(noise)
    for t, t_next in pairwise(times):
        v = velocity(x, t)
        if temperature < 1 and _crosses(t, t_next, temperature):
            x = enter_noise(x, v, noise, t, t_next, estimate_at_one=estimate_at_one)
        else:
            x = x + (t_next - t) * v
    return x


def ddim(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """DDIM without added noise (Song et al. 2021) for the ``v`` objective."""
    times = time_grid(steps)[:-1]
    x = clean = noise
    for index, t in enumerate(times):
        alpha, sigma = torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2))
        v = velocity(x, t)
        clean, epsilon = alpha * x - sigma * v, sigma * x + alpha * v
        if index + 1 < len(times):
            t = times[index + 1]
            x = torch.cos(t * (math.pi / 2)) * clean + torch.sin(t * (math.pi / 2)) * epsilon
    return clean


def pingpong(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    estimate_at_one: bool = False,
    amplitude: float = 0.1,
) -> Tensor:
    """Heun's method (the mean of the velocities at both ends of a step) with a probe that goes ``amplitude`` too far
    and too near in turns, as in the ComfyUI forks; two evaluations a step."""
    times = time_grid(steps)
    x = noise if temperature >= 1 else torch.zeros_like(noise)
    for index, (t, t_next) in enumerate(pairwise(times)):
        dt, v = t_next - t, velocity(x, t)
        probe = x + dt * (1 + amplitude * math.sin(index * 3.14159 * 0.5)) * v
        x = x + dt * (v + velocity(probe, t_next)) * 0.5
        if temperature < 1 and _crosses(t, t_next, temperature):
            at = t if estimate_at_one else t_next  # x stands at t_next by now
            x = enter_noise(x, v, noise, at, t_next, estimate_at_one=estimate_at_one)
    return x


def spiral(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    estimate_at_one: bool = False,
    paths: int = 2,
    strength: float = 0.1,
    ensemble: str = "mean",
) -> Tensor:
    """Several runs of :func:`euler` from one noise over grids that wind about the even one, then their ensemble.

    The grids are ``t + strength · sin(θ + phase) · t`` within [0, 1], θ going twice around, the phases evenly spread
    (as in the ComfyUI forks); ``ensemble`` is ``mean``, ``least_variance`` or ``inverse_variance`` (weights
    1 / (1 + variance) of each path's latents).
    """
    even = time_grid(steps)
    turns = torch.linspace(0.0, 4.0 * math.pi, steps + 1)
    runs = []
    for path in range(paths):
        wound = even + strength * torch.sin(turns + 2.0 * math.pi * path / paths) * even
        runs.append(
            euler(
                velocity,
                noise,
                steps,
                temperature=temperature,
                estimate_at_one=estimate_at_one,
                times=wound.clamp(0.0, 1.0),
            )
        )
    stacked = torch.stack(runs)
    if ensemble == "mean":
        return stacked.mean(0)
    variance = stacked.flatten(2).var(-1)  # [paths, N]: an item's result does not depend on the others
    if ensemble == "least_variance":
        best = variance.argmin(0)
        return stacked[best, torch.arange(len(best), device=best.device)]
    weights = 1.0 / (1.0 + variance)
    return ((weights / weights.sum(0))[..., None, None] * stacked).sum(0)


FLOW_SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "pingpong": pingpong, "spiral": spiral}


def integrate(
    objective: str,
    sampler: str,
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    estimate_at_one: bool = False,
) -> Tensor:
    """Run the named sampler; the ``v`` objective has DDIM only, which knows no start temperature.

    Raises:
        UserError: the objective has no such sampler.
    """
    if objective == "v":
        if sampler not in ("ddim", "euler"):
            raise UserError(f"sampler {sampler!r} is for rectified_flow; a prior of the v objective samples with ddim")
        return ddim(velocity, noise, steps)
    if sampler not in FLOW_SAMPLERS:
        known = ", ".join(FLOW_SAMPLERS)
        raise UserError(f"sampler is {sampler!r}: it must be one of {known}{did_you_mean(sampler, FLOW_SAMPLERS)}")
    return FLOW_SAMPLERS[sampler](velocity, noise, steps, temperature=temperature, estimate_at_one=estimate_at_one)
