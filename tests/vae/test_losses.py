"""Losses against numbers that are known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from songbloom.audio import spectral
from songbloom.audio.spectral import STFT
from songbloom.vae import losses
from tests.vae.tiny import sound

TRANSFORMS = (STFT(64, 16, 64), STFT(32, 8, 32))


def _spectral(target: torch.Tensor, output: torch.Tensor, perceptual: bool = False) -> torch.Tensor:
    return losses.spectral_losses(target, output, transforms=TRANSFORMS, sample_rate=8000, perceptual=perceptual)


def test_kl_is_twice_that_of_two_normal_laws() -> None:
    mean, std = sound(2, 5, 3), sound(2, 5, 3, seed=2).abs() + 0.1
    ours = losses.kl_divergence(mean, std)
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    reference = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), normal)
    torch.testing.assert_close(ours, 2 * reference.sum(dim=-1).mean())
    assert losses.kl_divergence(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)) == 0


def test_views_of_stereo_and_of_other_sounds() -> None:
    audio = torch.tensor([[[1.0, 2.0], [0.5, -0.5]]])
    wanted = torch.tensor([[[3.0, 0.0], [-1.0, 1.0], [1.0, 0.5], [2.0, -0.5]]])
    assert torch.equal(losses.stereo_views(audio), wanted)
    assert torch.equal(losses.stereo_views(audio[..., :1]), audio[..., :1].transpose(1, 2))


@pytest.mark.parametrize(("hertz", "decibels"), [(1000, 0.0), (100, -19.1), (250, -8.6), (4000, 1.0), (15849, -6.6)])
def test_a_weighting_is_the_standards_table(hertz: int, decibels: float) -> None:
    gain = losses.a_weighting(48000, 48000)[hertz]  # a hertz a bin
    assert 20 * math.log10(gain) == pytest.approx(decibels, abs=0.1)


def test_the_spectral_loss_of_a_quieter_copy() -> None:
    """Convergence is 1 - gain and log magnitudes differ by log gain, but for the floors."""
    target = 30 * sound(2, 400, 2)
    got = _spectral(target, 0.5 * target)
    assert torch.allclose(got, torch.full((4,), 0.5 + math.log(2)), atol=5e-3)


def test_what_is_quieter_than_the_floor_hardly_counts() -> None:
    target = sound(1, 400, 1)

    def loss(quiet: float, floor: float) -> float:
        """Of twice as loud an output, where the target is multiplied by ``quiet``."""
        settings = {"transforms": TRANSFORMS, "sample_rate": 8000, "perceptual": False}
        made = losses.spectral_losses(quiet * target, 2 * quiet * target, **settings, floor=floor)
        return float(made)

    assert loss(1e-3, 1e-6) > math.log(2) > 0.4 > loss(1e-3, 1.0)  # ln 2 of a ratio of two, or nearly nothing
    assert loss(100.0, 1e-6) == pytest.approx(loss(100.0, 0.1), rel=0.02)


def _mel(target: torch.Tensor, output: torch.Tensor, floor: float = 1e-4) -> float:
    made = losses.mel_loss(target, output, transforms=TRANSFORMS, sample_rate=8000, floor=floor)
    return float(made)


def test_the_mel_loss_is_the_ratio_of_strengths_whatever_the_noise() -> None:
    target = 30 * sound(2, 4000, 1)
    assert _mel(target, target) == 0
    assert _mel(target, 0.5 * target) == pytest.approx(math.log(2), abs=5e-3)
    other = 30 * sound(2, 4000, 1, seed=7)  # another noise of the same strength
    assert _mel(target, other) < 0.75 * float(_spectral(target, other).mean())
    assert _mel(target, other) < _mel(target, 4 * other)


def test_the_mel_loss_heeds_its_floor_and_pulls_towards_the_target() -> None:
    target = sound(1, 400, 2)
    assert _mel(target, 2 * target, floor=1e3) < 0.01 < _mel(target, 2 * target, floor=1e-6)
    output = sound(1, 400, 2, seed=5).requires_grad_()
    before = losses.mel_loss(target, output, transforms=TRANSFORMS, sample_rate=8000)
    before.backward()
    assert output.grad is not None
    with torch.no_grad():
        nearer = output - 1e-3 * output.grad / output.grad.abs().max()
    assert _mel(target, nearer) < before.item()


@pytest.mark.parametrize("perceptual", [False, True])
def test_the_spectral_loss_is_zero_for_the_same_and_pulls_towards_it(perceptual: bool) -> None:
    target = sound(2, 400, 2)
    assert torch.equal(_spectral(target, target, perceptual), torch.zeros(4))
    output = sound(2, 400, 2, seed=5).requires_grad_()
    before = _spectral(target, output, perceptual).mean()
    before.backward()
    assert output.grad is not None and output.grad.isfinite().all()
    with torch.no_grad():
        after = _spectral(target, output - 0.05 * output.grad / output.grad.norm(), perceptual).mean()
    assert after < before


def test_a_difference_that_only_the_difference_signal_hears() -> None:
    target = sound(1, 400, 1).expand(1, 400, 2)
    sway = 0.1 * sound(1, 400, 1, seed=3)
    views = _spectral(target, target + torch.cat([sway, -sway], dim=2))
    assert views[0] < 1e-4 and views[1] > 1


def test_silence_has_finite_loss_and_gradient() -> None:
    output = torch.zeros(1, 400, 2, requires_grad=True)
    _spectral(torch.zeros(1, 400, 2), output).sum().backward()
    assert output.grad is not None and output.grad.isfinite().all()


def test_a_pause_does_not_decide_the_step() -> None:
    """What is inaudible counts by how loud it is, not by how much louder than nothing."""
    generator = torch.Generator().manual_seed(0)
    hiss = torch.randn(1, 4000, 2, generator=generator)
    pause = _convergence(1e-7 * hiss, 1e-5 * hiss.flip(1))
    assert (pause < 0.05).all()
    limit = losses.SILENCE * hiss  # sum and difference are louder by the root of two
    assert _convergence(limit, 0 * hiss).tolist() == pytest.approx([1, 1, 1, 1], abs=0.03)
    assert _convergence(0 * hiss, limit).tolist() == pytest.approx([2**0.5, 2**0.5, 1, 1], abs=0.05)


def test_a_loud_target_is_measured_relative_to_itself() -> None:
    target = sound(2, 4000, 2)
    torch.testing.assert_close(_convergence(target, 0.5 * target), torch.full((4,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(_convergence(0.2 * target, 0.1 * target), torch.full((4,), 0.5), atol=1e-3, rtol=0)


def _convergence(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The spectral loss without its logarithms."""
    logarithms = []
    for stft in TRANSFORMS:
        views = [losses.stereo_views(audio).flatten(0, 1) for audio in (target, output)]
        logs = [(spectral.magnitudes(view, stft) + spectral.LOG_FLOOR).log() for view in views]
        logarithms.append((logs[0] - logs[1]).abs().flatten(1).mean(dim=1).view(len(target), -1).mean(dim=0))
    return _spectral(target, output) - torch.stack(logarithms).mean(dim=0)
