"""What the VQ-VAE's outputs are measured and trained by.

Source: Dhariwal et al. 2020, *Jukebox*, section 3.2 and appendix B.1. Every loss is divided by the data set's own
``bandwidth`` (:mod:`songbloom.vqvae.bandwidth`), so that one weight suits loud and quiet collections alike. All of it
runs in float32 even under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from songbloom.audio import spectral
from songbloom.errors import UserError, did_you_mean

LOSS_FUNCTIONS = ("l1", "l2", "linf", "lmix")


def l1_loss(difference: Tensor, bandwidth: Mapping[str, float]) -> Tensor:
    """Mean ``|d|`` relative to the data's mean magnitude; ``difference [N, T, C]``."""
    return difference.abs().mean() / bandwidth["l1"]


def l2_loss(difference: Tensor, bandwidth: Mapping[str, float]) -> Tensor:
    """Mean ``d²`` relative to the data's variance."""
    return difference.square().mean() / bandwidth["l2"]


def linf_loss(difference: Tensor, bandwidth: Mapping[str, float], linf_k: int) -> Tensor:
    """Mean over each sample's ``linf_k`` largest ``d²`` (all of them in a shorter sample), relative to the variance."""
    squares = difference.square().flatten(1)
    return squares.topk(min(linf_k, squares.shape[1]), dim=1, sorted=False).values.mean() / bandwidth["l2"]


def check_loss_function(name: str) -> None:
    """Raise a UserError unless ``name`` is a reconstruction loss."""
    if name not in LOSS_FUNCTIONS:
        options = ", ".join(LOSS_FUNCTIONS)
        raise UserError(f"loss_fn is {name!r}{did_you_mean(name, LOSS_FUNCTIONS)}: choose one of {options}")


def reconstruction_loss(
    name: str,
    difference: Tensor,
    bandwidth: Mapping[str, float],
    *,
    linf_k: int,
    lmix_l1: float = 0.0,
    lmix_l2: float = 0.0,
    lmix_linf: float = 0.0,
) -> Tensor:
    """The loss called ``name`` of ``difference = target - output``, ``[N, T, C]`` → a number.

    ``lmix`` is the weighted sum of the three others; terms of weight 0 aren't computed.

    Raises:
        UserError: no loss has this name.
    """
    if name == "l1":
        return l1_loss(difference, bandwidth)
    if name == "l2":
        return l2_loss(difference, bandwidth)
    if name == "linf":
        return linf_loss(difference, bandwidth, linf_k)
    check_loss_function(name)
    loss = torch.zeros((), device=difference.device)
    if lmix_l1:
        loss = loss + lmix_l1 * l1_loss(difference, bandwidth)
    if lmix_l2:
        loss = loss + lmix_l2 * l2_loss(difference, bandwidth)
    if lmix_linf:
        loss = loss + lmix_linf * linf_loss(difference, bandwidth, linf_k)
    return loss


def spectral_losses(
    target: Tensor, outputs: Tensor, bandwidth: Mapping[str, float], *, relative: bool, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """The single-size spectral loss of every level's output, and the convergence of the first.

    Args:
        target: ``[N, T, 1]``.
        outputs: ``[levels, N, T, 1]``.
        bandwidth: ``spec`` divides a loss that isn't relative.
        relative: measure by spectral convergence (``use_nonrelative_specloss`` off).
        differentiate: False computes without gradient, for a loss that is only logged.

    Returns:
        ``[levels]`` losses averaged over the batch, and the convergence of ``outputs[0]``.
    """
    transformed = spectral.Target(target)
    with torch.set_grad_enabled(differentiate and torch.is_grad_enabled()):
        distances = transformed.distances(outputs)
        convergences = spectral.convergence(distances, transformed.norms())
        losses = convergences if relative else distances / bandwidth["spec"]
        return losses.mean(dim=1), convergences[0].detach().mean()


def multispectral_losses(
    target: Tensor,
    outputs: Tensor,
    bandwidth: Mapping[str, float],
    *,
    transforms: Sequence[spectral.STFT],
    differentiate: bool,
) -> Tensor:
    """The spectral loss averaged over several transforms and the batch, for every level's output: ``[levels]``.

    Arguments as in :func:`spectral_losses`.
    """
    with torch.set_grad_enabled(differentiate and torch.is_grad_enabled()):
        distances = [spectral.Target(target, stft).distances(outputs).mean(dim=1) for stft in transforms]
        return torch.stack(distances).mean(dim=0) / bandwidth["spec"]
