from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.audio.mix import match_channels, to_mono

GOLDEN = Path(__file__).parent.parent / "golden" / "jukebox_losses.pt"


def test_preprocessing_matches_published_numbers() -> None:
    golden = torch.load(GOLDEN, weights_only=True)["preprocess"]
    stereo = golden["x"]
    assert torch.allclose(to_mono(stereo), golden["mono_half"], atol=1e-7)
    assert torch.allclose(to_mono(stereo, golden["mix"]), golden["mono_blend"], atol=1e-7)
    assert torch.equal(to_mono(stereo[:, :, :1], golden["mix"]), stereo[:, :, :1])


@pytest.mark.parametrize("mix", [0.25, np.array([0.25, 0.25, 0.25]), np.array([[0.25], [0.25], [0.25]])])
def test_a_mix_may_be_a_number_or_one_an_item(mix: float | np.ndarray) -> None:
    audio = np.random.default_rng(0).standard_normal((3, 10, 2))
    assert np.allclose(to_mono(audio, mix)[:, :, 0], 0.25 * audio[:, :, 0] + 0.75 * audio[:, :, 1])


@pytest.mark.parametrize("shape", [(10, 2), (2, 10, 3), (2, 10, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="audio to mix"):
        to_mono(np.zeros(shape))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_any_number_of_channels_becomes_any_other(have: int, want: int, samples: int) -> None:
    audio = np.random.default_rng(have).uniform(-1, 1, (samples, have)).astype(np.float32)
    mixed = match_channels(audio, want)
    assert mixed.shape == (samples, want)
    assert mixed.dtype == np.float32
    assert np.abs(mixed).max(initial=0) <= 1 + 1e-6  # nothing clips
    if have == want:
        assert np.array_equal(mixed, audio)
    if have == 1:
        assert np.array_equal(mixed, np.repeat(audio, want, axis=1))


def test_stereo_is_symmetric_in_surround_sound() -> None:
    """Mirroring the room mirrors the result."""
    mirror = {3: [1, 0, 2], 4: [1, 0, 3, 2], 5: [1, 0, 2, 4, 3], 6: [1, 0, 2, 3, 5, 4], 8: [1, 0, 2, 3, 5, 4, 7, 6]}
    for channels, order in mirror.items():
        audio = np.random.default_rng(channels).standard_normal((20, channels)).astype(np.float32)
        assert np.allclose(match_channels(audio[:, order], 2), match_channels(audio, 2)[:, ::-1], atol=1e-6)


def test_no_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 channels"):
        match_channels(np.zeros((5, 2), np.float32), 0)
