"""The judge learns to tell, and the two sides' gradients don't mix."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.vae.discriminator import Discriminator
from tests.vae.tiny import sound


def _judge() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(2, 4, (64, 32))


def test_losses_are_the_papers_formulas() -> None:
    judge, real, made = _judge(), sound(2, 300, 2), sound(2, 300, 2, seed=7)
    got = judge.losses(real, made)
    good, bad = judge(real), judge(made)
    hinge = [F.relu(1 - g[0]).mean() + F.relu(1 + b[0]).mean() for g, b in zip(good, bad, strict=True)]
    torch.testing.assert_close(got.discriminator, sum(hinge) / 2)
    torch.testing.assert_close(got.adversarial, sum(F.relu(1 - b[0]).mean() for b in bad) / 2)
    pairs = [pair for g, b in zip(good, bad, strict=True) for pair in zip(g[1], b[1], strict=True)]
    apart = [(x[i] - y[i]).abs().mean() / x[i].abs().mean() for x, y in pairs for i in range(2)]
    torch.testing.assert_close(got.features, sum(apart) / len(apart))


def test_a_batch_means_the_same_however_it_is_divided() -> None:
    judge, real, made = _judge(), sound(4, 300, 2), sound(4, 300, 2, seed=7)
    real[2:] *= 0.1
    whole = judge.losses(real, made)
    halves = [judge.losses(real[part], made[part]) for part in (slice(2), slice(2, 4))]
    for number, one, other in zip(whole, *halves, strict=True):
        torch.testing.assert_close(number, (one + other) / 2)


def test_gradients_do_not_mix() -> None:
    judge, real = _judge(), sound(2, 300, 2)
    made = sound(2, 300, 2, seed=7).requires_grad_()
    losses = judge.losses(real, made)
    (losses.adversarial + losses.features).backward(retain_graph=True)
    assert made.grad is not None and made.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in judge.parameters())
    made.grad = None
    losses.discriminator.backward()
    assert made.grad is None
    for name, parameter in judge.named_parameters():
        assert parameter.grad is not None
        if not name.endswith("output.bias"):  # where both margins are open, real and made pull it alike
            assert parameter.grad.abs().sum() > 0


def test_it_learns_to_tell_two_sounds_apart() -> None:
    judge, real, made = _judge(), sound(2, 300, 2), 0.1 * sound(2, 300, 2, seed=7)
    optimiser = torch.optim.Adam(judge.parameters(), lr=3e-3)
    first = judge.losses(real, made).discriminator.item()
    for _ in range(30):
        optimiser.zero_grad()
        judge.losses(real, made).discriminator.backward()
        optimiser.step()
    assert judge.losses(real, made).discriminator.item() < 0.5 * first


def test_audio_too_short_for_it() -> None:
    with pytest.raises(UserError, match="32 samples is too short for a discriminator of size 64"):
        _judge()(sound(1, 32, 2))
