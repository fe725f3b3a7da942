"""Reconstruction losses and the spectral terms of several levels."""

from __future__ import annotations

import pytest
import torch

from songbloom.audio import spectral
from songbloom.audio.spectral import STFT
from songbloom.errors import UserError
from songbloom.vqvae.losses import multispectral_losses, reconstruction_loss, spectral_losses

BANDWIDTH = {"l1": 0.5, "l2": 0.25, "spec": 4.0}


def _audio(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_each_reconstruction_loss() -> None:
    d = _audio(3, 50, 1)
    l1 = reconstruction_loss("l1", d, BANDWIDTH, linf_k=5)
    l2 = reconstruction_loss("l2", d, BANDWIDTH, linf_k=5)
    linf = reconstruction_loss("linf", d, BANDWIDTH, linf_k=5)
    torch.testing.assert_close(l1, d.abs().mean() / 0.5)
    torch.testing.assert_close(l2, d.pow(2).mean() / 0.25)
    largest = torch.stack([row.pow(2).sort().values[-5:].mean() for row in d.flatten(1)]).mean() / 0.25
    torch.testing.assert_close(linf, largest)
    mixed = reconstruction_loss("lmix", d, BANDWIDTH, linf_k=5, lmix_l1=0.1, lmix_l2=0.2, lmix_linf=0.3)
    torch.testing.assert_close(mixed, 0.1 * l1 + 0.2 * l2 + 0.3 * linf)


def test_a_short_sample_uses_all_it_has() -> None:
    d = _audio(2, 10, 1)
    torch.testing.assert_close(
        reconstruction_loss("linf", d, BANDWIDTH, linf_k=2048), reconstruction_loss("l2", d, BANDWIDTH, linf_k=1)
    )


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'lmx'.*did you mean 'lmix'"):
        reconstruction_loss("lmx", _audio(1, 10, 1), BANDWIDTH, linf_k=1)


def test_levels_together_are_levels_one_by_one() -> None:
    target, outputs = _audio(2, 3000, 1), _audio(3, 2, 3000, 1).requires_grad_()
    transforms = [STFT(256, 40, 200), STFT(128, 30, 100)]
    spec, converged = spectral_losses(target, outputs, BANDWIDTH, relative=False, differentiate=True)
    multi = multispectral_losses(target, outputs, BANDWIDTH, transforms=transforms, differentiate=True)
    for level in range(3):
        torch.testing.assert_close(spec[level], spectral.spectral_loss(target, outputs[level]).mean() / 4)
        one = spectral.multispectral_loss(target, outputs[level], transforms).mean() / 4
        torch.testing.assert_close(multi[level], one)
    torch.testing.assert_close(converged, spectral.spectral_convergence(target, outputs[0]).mean().detach())
    relative, _ = spectral_losses(target, outputs, BANDWIDTH, relative=True, differentiate=True)
    torch.testing.assert_close(relative[0].detach(), converged)


def test_a_term_that_is_only_logged_has_no_gradient() -> None:
    target, outputs = _audio(1, 3000, 1), _audio(1, 1, 3000, 1).requires_grad_()
    transforms = [STFT(256, 40, 200)]
    assert not spectral_losses(target, outputs, BANDWIDTH, relative=False, differentiate=False)[0].requires_grad
    multi = multispectral_losses(target, outputs, BANDWIDTH, transforms=transforms, differentiate=False)
    assert not multi.requires_grad
