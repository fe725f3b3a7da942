"""Magnitude spectrograms against torch.stft, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.audio import spectral
from songbloom.audio.spectral import STFT
from songbloom.errors import UserError


def _audio(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _reference(audio: torch.Tensor, stft: STFT) -> torch.Tensor:
    """The plain way, through torch.stft: ``[N, T]`` → ``[N, frames, frequencies]``."""
    spectrum = torch.stft(
        audio,
        stft.n_fft,
        stft.hop_length,
        win_length=stft.window_size,
        window=torch.hann_window(stft.window_size),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    return spectrum.abs().transpose(1, 2)


@settings(deadline=None, max_examples=60)
@given(
    n_fft=st.integers(2, 80),
    hop=st.integers(1, 90),
    window=st.integers(1, 80),
    extra=st.integers(1, 200),
    batch=st.integers(1, 2),
)
def test_values_and_gradients_are_those_of_torch(n_fft: int, hop: int, window: int, extra: int, batch: int) -> None:
    stft = STFT(n_fft, hop, min(window, n_fft))
    audio = _audio(batch, n_fft // 2 + extra, seed=n_fft).requires_grad_()
    got, want = spectral.magnitudes(audio, stft), _reference(audio, stft)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    weights = _audio(*want.shape, seed=1)
    (one,) = torch.autograd.grad((got * weights).sum(), audio)
    (other,) = torch.autograd.grad((want * weights).sum(), audio)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "stft", [spectral.DEFAULT_STFT, STFT(2048, 240, 1200), STFT(1024, 120, 600), STFT(512, 50, 240)]
)
def test_the_published_sizes(stft: STFT) -> None:
    audio = _audio(2, 8192)
    torch.testing.assert_close(spectral.magnitudes(audio, stft), _reference(audio, stft), atol=1e-4, rtol=1e-4)


def test_channels_are_averaged_first() -> None:
    audio = _audio(2, 3000, 2)
    torch.testing.assert_close(spectral.magnitudes(audio), spectral.magnitudes(audio.mean(dim=2)))


def test_losses_follow_their_formulas() -> None:
    x, y = _audio(3, 4000, 1), _audio(3, 4000, 1, seed=1)
    x[2] *= 1e-7  # below the floor
    a, b = (_reference(audio[:, :, 0], spectral.DEFAULT_STFT) for audio in (x, y))
    distance = (a - b).flatten(1).norm(dim=1)
    torch.testing.assert_close(spectral.spectral_loss(x, y), distance, atol=1e-3, rtol=1e-5)
    converged = spectral.spectral_convergence(x, y)
    torch.testing.assert_close(converged[:2], distance[:2] / a[:2].flatten(1).norm(dim=1), atol=1e-5, rtol=1e-5)
    assert converged[2] == 0
    want = ((a + 1e-4).log() - (b + 1e-4).log()).abs().mean()
    torch.testing.assert_close(spectral.log_magnitude_loss(x, y), want, atol=1e-4, rtol=1e-4)
    transforms = spectral.stfts((512, 256), (50, 30), (240, 100))
    want = sum(spectral.spectral_loss(x, y, one) for one in transforms) / 2
    torch.testing.assert_close(spectral.multispectral_loss(x, y, transforms), want)


def test_one_target_for_several_outputs() -> None:
    x, outputs = _audio(2, 3000, 1), _audio(3, 2, 3000, 1, seed=1).requires_grad_()
    target = spectral.Target(x)
    distances = target.distances(outputs)
    want = torch.stack([spectral.spectral_loss(x, output) for output in outputs])
    torch.testing.assert_close(distances, want, atol=1e-3, rtol=1e-5)
    (one,) = torch.autograd.grad(distances.sum(), outputs)
    (other,) = torch.autograd.grad(want.sum(), outputs)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_equal_signals_have_no_distance_and_a_finite_gradient() -> None:
    x = _audio(1, 3000, 1)
    y = x.clone().requires_grad_()
    loss = spectral.spectral_loss(x, y).sum()
    assert loss.item() == 0
    loss.backward()
    assert y.grad is not None and y.grad.isfinite().all()


def test_silence_has_a_finite_gradient() -> None:
    y = torch.zeros(1, 3000, 1, requires_grad=True)
    spectral.spectral_loss(_audio(1, 3000, 1), y).sum().backward()
    assert y.grad is not None and y.grad.isfinite().all()


def test_float32_under_autocast() -> None:
    audio = _audio(1, 3000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = spectral.magnitudes(audio.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, spectral.magnitudes(audio.bfloat16().float()))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="audio of 1024 samples is too short"):
        spectral.magnitudes(_audio(1, 1024))
    with pytest.raises(UserError, match="have 2, 1 and 2 values"):
        spectral.stfts((512, 256), (50,), (240, 100))
    with pytest.raises(UserError, match="window must be"):
        STFT(512, 50, 513)
