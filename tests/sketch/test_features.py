"""Extractors: lengths at every rate, alignment, pieces, and what the built-in ones hear."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.sketch.builtin import STEPS, BuiltinConfig, BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook
from songbloom.sketch.extractors import REGISTRY, make_features, register
from songbloom.sketch.features import Features, frame_count, samples_of, to_mono_at
from songbloom.sketch.tokeniser import SketchTokeniser
from tests.sketch.tiny import SIZES, muq_features, sound

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60000), st.sampled_from([*RATES, 12345]), st.integers(1, 3), st.booleans())
def test_as_many_codes_as_whole_frames(samples: int, rate: int, channels: int, is_muq: bool) -> None:
    features = muq_features() if is_muq else BuiltinFeatures(SIZES)
    vectors = torch.randn(5, features.width, generator=torch.Generator().manual_seed(0))
    tokeniser = SketchTokeniser(features, SketchCodebook(vectors, features.identity()))
    audio = 0.1 * torch.randn(2, samples, channels, generator=torch.Generator().manual_seed(samples))
    codes = tokeniser.encode(audio, rate)
    assert codes.shape == (2, samples * 25 // rate) and codes.dtype == torch.int64
    assert tokeniser.length(samples, rate) == samples * 25 // rate


def test_every_length_around_whole_frames() -> None:
    """At 48 kHz as many as the VAE's latents: ``T // 1920``."""
    features = {"builtin": BuiltinFeatures(SIZES), "muq": muq_features()}
    audio = sound(1, 0.5, 48000)
    for samples in [0, 1, 959, 960, 961, *(1920 * k + d for k in (1, 2, 3, 5, 8) for d in (-1, 0, 1))]:
        for extractor in features.values():
            assert extractor.extract(audio[:, :samples], 48000).shape[1] == samples // 1920
    for rate in RATES:
        for frames in range(1, 50):
            assert frame_count(samples_of(frames, rate), rate) == frames
            assert frame_count(samples_of(frames, rate) - 1, rate) == frames - 1


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_frames_stand_where_their_sound_is(rate: int) -> None:
    """A click in the middle of frame 20 moves that frame most; the same at every sample rate."""
    views = BuiltinFeatures(SIZES).views
    quiet = 1e-3 * torch.randn(1, 2 * rate, 1, generator=torch.Generator().manual_seed(0))
    loud = quiet.clone()
    middle = int(20.5 * rate / 25)
    loud[:, middle - rate // 200 : middle + rate // 200] *= 300
    before, after = (views(to_mono_at(x, rate, 8000))[0, :, :16] for x in (quiet, loud))
    energy = (after - before).abs().sum(dim=1).view(-1, STEPS).sum(dim=1)
    assert int(energy.argmax()) == 20
    features = muq_features(layer=0)
    change = (features.extract(loud, rate) - features.extract(quiet, rate)).abs().sum(dim=2)[0]
    assert abs(int(change.argmax()) - 20) <= 1  # its convolutions weigh as they like


def test_rates_and_channels_are_one_sound() -> None:
    """The same song at 48 kHz stereo and at 8 kHz mono: nearly the same features."""
    audio = torch.from_numpy(_resampled(sound(1, 2.0, 8000)[0, :, 0].numpy(), 8000, 48000))
    stereo = torch.stack([1.3 * audio, 0.7 * audio], dim=1)[None]
    features = BuiltinFeatures(SIZES)
    high, low = features.extract(stereo, 48000), features.extract(sound(1, 2.0, 8000), 8000)
    assert high.shape == low.shape
    assert (high - low).square().mean() < 0.02 * low.var()


def _resampled(x, rate, wanted):  # type: ignore[no-untyped-def]
    import soxr

    return soxr.resample(x, rate, wanted, quality="VHQ")


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 30))
def test_built_in_features_in_pieces(frames: int, piece: int) -> None:
    features = BuiltinFeatures(SIZES).eval()
    views = features.views(sound(1, frames / 25, 8000)[..., 0])
    whole = features.encode_views(views, piece=10**6)
    assert whole.shape == (1, frames, SIZES.width)
    torch.testing.assert_close(features.encode_views(views, piece=piece), whole, atol=2e-5, rtol=1e-4)


def test_loudness_is_not_heard_but_pitch_and_shape_are() -> None:
    features = BuiltinFeatures()
    time = torch.arange(24000) / 24000

    def tone(hertz: float, tilt: float = 1.0) -> torch.Tensor:
        return 0.2 * sum(torch.sin(2 * torch.pi * hertz * h * time) * h**-tilt for h in range(1, 9))[None]  # type: ignore

    bands = features.config.sketch_bands
    for hertz in (82.4, 146.8, 220.0, 440.0, 659.3):
        sung = tone(hertz) + 0.02 * torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
        view = features.views(sung)[0, 50]
        quarter_tones = 24 * torch.log2(torch.tensor(hertz / features.config.sketch_lowest_pitch))
        assert abs(int(view[bands:].argmax()) - float(quarter_tones)) <= 1
        softer = features.views(0.25 * sung)[0, 50]
        assert (softer - view).abs().mean() < 0.15 * view.abs().mean()
    dull, bright = features.views(tone(220.0, 2.0))[0, 50], features.views(tone(220.0, 0.5))[0, 50]
    assert (dull - bright)[:bands].abs().mean() > (dull - bright)[bands:].abs().mean()
    assert not features.views(torch.zeros(1, 24000)).any()


def test_audio_that_is_none() -> None:
    features = BuiltinFeatures(SIZES)
    with pytest.raises(UserError, match=r"\[batch, time, channels\]"):
        features.extract(torch.zeros(100, 1), 8000)
    with pytest.raises(UserError, match="no numbers"):
        features.extract(torch.full((1, 8000, 1), float("nan")), 8000)
    with pytest.raises(UserError, match="sample rate of 0"):
        to_mono_at(torch.zeros(1, 10, 1), 0, 8000)


def test_sizes_that_make_no_features() -> None:
    for change, told in (
        ({"sketch_sr": 22050}, "multiple of 100"),
        ({"sketch_cepstra": 0}, "sketch_cepstra is 0"),
        ({"sketch_octaves": 9}, "beyond half of sketch_sr"),
        ({"sketch_n_fft": 100}, "at least 240"),
        ({"sketch_dilations": []}, "sketch_dilations"),
    ):
        with pytest.raises(UserError, match=told):
            BuiltinConfig.from_hps(change)


def test_built_in_features_compute_where_they_were_put() -> None:
    """Without a network they have no weights to tell it by; "meta" is another device that every machine has."""
    features = BuiltinFeatures(replace(SIZES, sketch_hidden=0)).to("meta")
    assert features.device.type == "meta"
    assert features.extract(torch.zeros(1, 10, 1), 8000).device.type == "meta"


def test_features_of_ones_own() -> None:
    class Loudness(Features):
        name, width, sample_rate = "loudness", 1, 1000

        def hear(self, mono: torch.Tensor) -> torch.Tensor:
            return mono.unfold(1, 40, 40).abs().mean(dim=2, keepdim=True)

    register("loudness", Loudness)
    try:
        made = make_features("loudness").extract(torch.ones(1, 48000, 2), 48000)
        assert made.shape == (1, 25, 1) and made[0, 12].item() == pytest.approx(1.0, abs=0.01)
        with pytest.raises(ValueError, match="already"):
            register("loudness", Loudness)
    finally:
        del REGISTRY["loudness"]
    with pytest.raises(UserError, match="did you mean 'builtin'"):
        make_features("buildin")
