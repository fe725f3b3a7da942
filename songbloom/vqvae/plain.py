"""The VQ-VAE's arithmetic written the plain way: the reference that the fast paths are tested and timed against.

Nothing here is needed to train or sample. It runs a model's own weights through ``conv1d``, ``conv_transpose1d`` and
``torch.stft``, a level at a time, as the specification reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from songbloom.audio.spectral import CONVERGENCE_FLOOR, DEFAULT_STFT, STFT
from songbloom.vqvae.blocks import (
    Decoder,
    DownsamplingBlock,
    DownsamplingStage,
    Encoder,
    ResidualBlock,
    ResidualStack,
    UpsamplingBlock,
    UpsamplingStage,
)
from songbloom.vqvae.convolution import Convolution, TransposedConvolution
from songbloom.vqvae.losses import reconstruction_loss
from songbloom.vqvae.vqvae import VQVAE


def convolve(conv: Convolution, x: Tensor) -> Tensor:
    """A convolution of ``[N, C, T]``."""
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def transpose_convolve(conv: TransposedConvolution, x: Tensor) -> Tensor:
    """A transposed convolution of ``[N, C, T]``."""
    return F.conv_transpose1d(x, conv.weight, conv.bias, conv.stride, int(conv.padding[0]), conv.output_padding)


def residual(stack: ResidualStack, x: Tensor) -> Tensor:
    """A residual stack on ``[N, C, T]``."""
    for block in stack.blocks:
        block = cast(ResidualBlock, block)
        x = x + block.scale * convolve(block.pointwise, F.relu(convolve(block.dilated, F.relu(x))))
    return x


def encoder(module: Encoder, x: Tensor) -> Tensor:
    """``[N, 1, T]`` → ``[N, emb_width, T / hop]``."""
    for block in module.blocks:
        block = cast(DownsamplingBlock, block)
        for stage in block.stages:
            stage = cast(DownsamplingStage, stage)
            x = residual(stage.residual, convolve(stage.resample, x))
        x = convolve(block.project, x)
    return x


def decoder(module: Decoder, x: Tensor) -> Tensor:
    """``[N, emb_width, T]`` → ``[N, 1, T * hop]``."""
    for block in reversed(module.blocks):
        block = cast(UpsamplingBlock, block)
        x = convolve(block.project, x)
        for stage in block.stages:
            stage = cast(UpsamplingStage, stage)
            x = transpose_convolve(stage.resample, residual(stage.residual, x))
    return convolve(module.output, x)


@torch.no_grad()
def encode(model: VQVAE, x: Tensor) -> list[Tensor]:
    """Audio ``[N, T, 1]`` → the codes of every level."""
    audio = x.transpose(1, 2)
    return [model.bottleneck.encode(encoder(cast(Encoder, e), audio), level) for level, e in enumerate(model.encoders)]


@torch.no_grad()
def decode(model: VQVAE, codes: Tensor, level: int) -> Tensor:
    """One level's codes → audio ``[N, T, 1]``."""
    return decoder(cast(Decoder, model.decoders[level]), model.bottleneck.decode(codes, level)).transpose(1, 2)


def magnitudes(audio: Tensor, stft: STFT) -> Tensor:
    """``[N, T, 1]`` → magnitudes ``[N, n_fft // 2 + 1, frames]``."""
    window = torch.hann_window(stft.window_size, device=audio.device)
    spectrum = torch.stft(
        audio.mean(dim=2), stft.n_fft, stft.hop_length, stft.window_size, window, center=True, return_complex=True
    )
    return spectrum.abs()


def spectral_distance(x: Tensor, y: Tensor, stft: STFT) -> Tensor:
    """One number a sample: the norm of the difference of magnitudes."""
    return torch.linalg.vector_norm((magnitudes(x, stft) - magnitudes(y, stft)).flatten(1), dim=1)


def loss(model: VQVAE, x: Tensor, bandwidth: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss and the metrics of level 0's sums; the codebooks learn if the model is in training mode."""
    config, audio = model.config, x.transpose(1, 2)
    encoded = [encoder(cast(Encoder, module), audio) for module in model.encoders]
    _, quantised, commits, _ = model.bottleneck(encoded)
    outputs = [
        decoder(cast(Decoder, module), value).transpose(1, 2)
        for module, value in zip(model.decoders, quantised, strict=True)
    ]

    def reconstruction(name: str, output: Tensor) -> Tensor:
        weights = {"lmix_l1": config.lmix_l1, "lmix_l2": config.lmix_l2, "lmix_linf": config.lmix_linf}
        return reconstruction_loss(name, x - output, bandwidth, linf_k=config.linf_k, **weights)

    def spectral(output: Tensor) -> Tensor:
        distance = spectral_distance(x, output, DEFAULT_STFT)
        if config.use_nonrelative_specloss:
            return distance.mean() / bandwidth["spec"]
        norm = torch.linalg.vector_norm(magnitudes(x, DEFAULT_STFT).flatten(1), dim=1)
        return ((norm > CONVERGENCE_FLOOR) * distance / norm.clamp_min(CONVERGENCE_FLOOR)).mean()

    def multispectral(output: Tensor) -> Tensor:
        distances = [spectral_distance(x, output, stft).mean() for stft in config.transforms]
        return torch.stack(distances).mean() / bandwidth["spec"]

    metrics = {
        "recons_loss": torch.stack([reconstruction(config.loss_fn, output) for output in outputs]).sum(),
        "spectral_loss": torch.stack([spectral(output) for output in outputs]).sum(),
        "multispectral_loss": torch.stack([multispectral(output) for output in outputs]).sum(),
        "commit_loss": torch.stack(commits).sum(),
    }
    total = (
        metrics["recons_loss"]
        + config.spectral * metrics["spectral_loss"]
        + config.multispectral * metrics["multispectral_loss"]
        + config.commit * metrics["commit_loss"]
    )
    metrics |= {f"{name}_loss": reconstruction(name, outputs[0]) for name in ("l1", "l2", "linf")}
    return total, {name: value.detach() for name, value in metrics.items()}
