"""The whole model through its fast paths and written the plain way: the same codes, audio, losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from songbloom.vqvae import plain, rows
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

CONFIG = VQVAEConfig(
    sample_length=3000,
    levels=2,
    downs_t=(2, 1),
    strides_t=(2, 3),
    hvqvae_multipliers=(1, 2),
    emb_width=4,
    l_bins=8,
    width=6,
    depth=3,
    m_conv=0.5,
    dilation_growth_rate=3,
    loss_fn="lmix",
    lmix_l1=0.5,
    lmix_linf=0.1,
    linf_k=20,
    spectral=0.3,
    multispec_loss_n_fft=(256, 128),
    multispec_loss_hop_length=(40, 30),
    multispec_loss_window_size=(200, 100),
)
BANDWIDTH = {"l1": 0.3, "l2": 0.1, "spec": 5.0}


def _model(config: VQVAEConfig) -> VQVAE:
    model = VQVAE(config, torch.Generator().manual_seed(1))
    with torch.no_grad():  # loud outputs: the phase of a bin that holds only rounding, and its gradient, are chance
        for parameter in model.parameters():
            parameter.mul_(2.5)
    for level in range(model.levels):
        book = model.bottleneck.codebook(level).codebook
        book.copy_(torch.randn(book.shape, generator=torch.Generator().manual_seed(level)))
    return model


def _audio() -> Tensor:
    return torch.randn(2, 3000, 1, generator=torch.Generator().manual_seed(0)) * 0.3


@pytest.fixture(params=["rows in small pieces", "rows at once", "images"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which convolutions can go, whatever this machine would choose."""
    if request.param == "images":
        monkeypatch.setattr(rows, "usable", lambda x: False)
    else:
        monkeypatch.setattr(rows, "PIECE_NUMBERS", 1 << 9 if "small" in request.param else 1 << 20)
        monkeypatch.setattr(rows, "SHORTEST_PIECE", 64)
    return request.param


@pytest.mark.parametrize("relative", [False, True])
def test_losses_and_gradients(path: str, relative: bool) -> None:
    config = replace(CONFIG, use_nonrelative_specloss=not relative)
    fast, slow = _model(config).train(), _model(config).train()
    _, loss, metrics = fast(_audio(), bandwidth=BANDWIDTH)
    want, numbers = plain.loss(slow, _audio(), BANDWIDTH)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    for name, number in numbers.items():
        torch.testing.assert_close(metrics[name], number, rtol=1e-5, atol=1e-6)
    loss.backward()
    want.backward()
    for (name, one), other in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    for level in range(2):
        one, other = fast.bottleneck.codebook(level), slow.bottleneck.codebook(level)
        torch.testing.assert_close(one.codebook, other.codebook, rtol=1e-5, atol=1e-6)


def test_codes_and_audio(path: str) -> None:
    model = _model(CONFIG).eval()
    codes = model.encode(_audio())
    for one, other in zip(codes, plain.encode(model, _audio()), strict=True):
        assert torch.equal(one, other)
    for level in range(2):
        audio = model.decode(codes[level:], start_level=level)
        want = plain.decode(model, codes[level], level)
        torch.testing.assert_close(audio, want, rtol=1e-5, atol=1e-5 * float(want.std()))
