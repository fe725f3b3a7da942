"""Samplers on fields whose paths are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.prior.songbloom.samplers import ddim, euler, integrate, pingpong, spiral, time_grid

CLEAN = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def straight(x, t):
    """The field whose every path ends in CLEAN: at (x, t) the noise was (x − (1 − t) clean) / t."""
    return (x - CLEAN) / t.clamp(min=1e-3)


def decay(x, t):
    return 0.5 * x


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_follows_straight_paths_exactly(steps):
    torch.testing.assert_close(euler(straight, NOISE, steps), CLEAN, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.95, 0.6, 0.1, 0.0])
def test_a_start_temperature_ends_in_the_same_place_where_there_is_only_one(temperature):
    found = euler(straight, NOISE, 12, temperature=temperature)
    torch.testing.assert_close(found, CLEAN, rtol=1e-3, atol=1e-3)


def test_the_published_estimate_is_exact_only_at_the_first_step():
    def after(temperature, steps, at_one):
        return euler(straight, NOISE, steps, temperature=temperature, estimate_at_one=at_one)

    torch.testing.assert_close(after(0.9, 5, True), after(0.9, 5, False))  # the noise enters at t = 1
    seen = []

    def watched(x, t):
        seen.append((float(t), x))
        return straight(x, t)

    for at_one in (True, False):
        euler(watched, NOISE, 4, temperature=0.6, estimate_at_one=at_one)
    noisy = [x for t, x in seen if t == 0.5]
    torch.testing.assert_close(noisy[1], 0.5 * CLEAN + 0.5 * NOISE, rtol=1e-4, atol=1e-4)
    assert (noisy[0] - noisy[1]).abs().max() > 0.05


def test_noise_enters_at_the_step_that_crosses_the_temperature():
    entered = []

    def zero(x, t):
        entered.append((round(float(t), 6), bool(x.any())))
        return torch.zeros_like(x)

    euler(zero, NOISE, 36, temperature=0.95)
    assert [t for t, there in entered if not there] == [1.0, round(35 / 36, 6)]
    assert entered[2] == (round(34 / 36, 6), True)


@pytest.mark.parametrize("sampler", [euler, pingpong])
def test_more_steps_are_nearer(sampler):
    exact = NOISE * math.exp(-0.5)
    errors = [float((sampler(decay, NOISE, steps) - exact).abs().max()) for steps in (8, 16, 32)]
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


def test_without_its_swing_pingpong_is_heun():
    exact = NOISE * math.exp(-0.5)
    errors = [float((pingpong(decay, NOISE, n, amplitude=0.0) - exact).abs().max()) for n in (4, 8)]
    assert errors[0] > 3.5 * errors[1]


@given(steps=st.integers(1, 9))
def test_ddim_recovers_the_clean_latents_of_a_true_v(steps):
    def v(x, t):
        alpha, sigma = torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)
        return alpha * (x - alpha * CLEAN) / sigma - sigma * CLEAN

    torch.testing.assert_close(ddim(v, NOISE, steps), CLEAN, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ensemble", ["mean", "least_variance", "inverse_variance"])
def test_a_spiral_is_an_ensemble_item_by_item(ensemble):
    found = spiral(decay, NOISE, 8, paths=3, strength=0.3, ensemble=ensemble)
    alone = spiral(decay, NOISE[1:], 8, paths=3, strength=0.3, ensemble=ensemble)
    torch.testing.assert_close(found[1:], alone)
    torch.testing.assert_close(spiral(decay, NOISE, 8, strength=0.0, ensemble=ensemble), euler(decay, NOISE, 8))
    assert (found - euler(decay, NOISE, 8)).abs().max() > 1e-3


def test_grids_go_from_noise_to_clean():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_unknown_samplers_are_refused():
    with pytest.raises(UserError, match=r"did you mean|one of"):
        integrate("rectified_flow", "spiralll", decay, NOISE, 2)
    with pytest.raises(UserError, match="v objective"):
        integrate("v", "pingpong", decay, NOISE, 2)
    torch.testing.assert_close(integrate("v", "euler", decay, NOISE, 3), ddim(decay, NOISE, 3))
