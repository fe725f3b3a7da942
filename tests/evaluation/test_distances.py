"""Distances between sounds, between sets of vectors, and pitch: numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hparams import setup_hparams
from make_models import make_vqvae
from songbloom.errors import UserError
from songbloom.evaluation import distances, embeddings, pitch
from songbloom.evaluation.recogniser import Recogniser, RecogniserConfig

RNG = np.random.default_rng


def tone(hertz: float, seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return sum(0.2 / k * np.sin(2 * np.pi * k * hertz * time) for k in range(1, 9))  # type: ignore[return-value]


def test_ratio_of_signal_to_distortion() -> None:
    sound, other = RNG(0).standard_normal((2, 4096))
    sound -= sound.mean()
    other -= other.mean() + (other @ sound) / (sound @ sound) * sound  # apart from the sound, and without a mean
    other -= other.mean()
    other -= (other @ sound) / (sound @ sound) * sound
    other *= np.linalg.norm(sound) / np.linalg.norm(other)
    assert distances.si_sdr(sound, sound + 0.1 * other) == pytest.approx(20, abs=1e-3)
    assert distances.si_sdr(sound, 7 * (sound + 0.1 * other)) == pytest.approx(20, abs=1e-3)  # whatever the scale
    assert distances.si_sdr(sound, -2 * sound) == np.inf
    assert distances.si_sdr(sound, np.zeros(4096)) == -np.inf


def test_what_is_worse_is_farther() -> None:
    sound = tone(220)[:, None] @ np.ones((1, 2))
    noise = RNG(1).standard_normal(len(sound))[:, None]
    found = [distances.compare(sound, sound + scale * noise, 16000) for scale in (0.0, 0.003, 0.03)]
    assert found[0].multi_resolution_stft == 0 == found[0].log_mel and found[0].si_sdr == np.inf
    assert found[0].multi_resolution_stft < found[1].multi_resolution_stft < found[2].multi_resolution_stft
    assert found[0].log_mel < found[1].log_mel < found[2].log_mel and found[1].si_sdr > found[2].si_sdr
    with pytest.raises(ValueError, match="too few"):
        distances.compare(sound[:500], sound[:500], 16000)


def test_a_louder_copy_is_as_many_decibels_away() -> None:
    sound = RNG(2).standard_normal(32000) * 0.1
    assert distances.compare(sound, sound * 10 ** (6 / 20), 16000).log_mel == pytest.approx(6, abs=0.01)


def test_long_sound_is_compared_in_pieces() -> None:
    sound = RNG(3).standard_normal(8000 * 45).astype(np.float32) * 0.1
    worse = sound + 0.01 * RNG(4).standard_normal(len(sound)).astype(np.float32)
    parts = [distances.compare(sound[a : a + 160000], worse[a : a + 160000], 8000).log_mel for a in (0, 160000, 320000)]
    assert distances.compare(sound, worse, 8000).log_mel == pytest.approx(
        np.average(parts, weights=[4, 4, 1]), rel=1e-5
    )


def test_sound_through_a_codec() -> None:
    codec = make_vqvae(setup_hparams("tiny_vqvae", {"train": False}))
    sound = tone(220, 1.0, 8000)[:, None].astype(np.float32)
    for level in (0, 1):
        made = distances.reconstruction(codec, level)(sound)
        assert made.shape == (8000 // codec.hop_lengths[-1] * codec.hop_lengths[-1], 1)
        with torch.no_grad():
            audio = torch.from_numpy(sound[: len(made)])[None]
            codes = codec.encode(audio, start_level=level, end_level=level + 1)
            wanted = codec.decode(codes, start_level=level, end_level=level + 1)[0]
        assert torch.equal(torch.from_numpy(made), wanted)
        assert np.isfinite(distances.compare(sound, made, 8000).log_mel)


def test_frechet_distance_of_known_laws() -> None:
    rng = RNG(5)
    a = rng.standard_normal((20000, 3)) * [1, 2, 3] + [0, 0, 1]
    b = rng.standard_normal((20000, 3)) * [2, 2, 1] + [1, 0, 0]
    wanted = 1 + 1 + (2 - 1) ** 2 + (3 - 1) ** 2  # means apart, and of diagonal laws the deviations
    assert embeddings.frechet_distance(a, b) == pytest.approx(wanted, rel=0.03)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert embeddings.frechet_distance(a @ turn, b @ turn) == pytest.approx(embeddings.frechet_distance(a, b))
    assert embeddings.frechet_distance(a, b) == pytest.approx(embeddings.frechet_distance(b, a))
    assert embeddings.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="Fréchet distance of"):
        embeddings.frechet_distance(a[:1], b)


def test_distance_to_a_reference() -> None:
    reference = RNG(6).standard_normal((5000, 4)) * 2
    assert embeddings.distance_to(reference + 6, reference) == pytest.approx(3, rel=0.03)
    parts = np.array_split(reference, 5)
    own = embeddings.own_distance(parts)
    assert own is not None and own < 0.1
    assert embeddings.own_distance(parts[:1]) is None


def test_embeddings_have_names_widths_and_leave_silence_out() -> None:
    recogniser = Recogniser(RecogniserConfig(width=16, hidden=8, dilations=(1,)), name="small-1").eval()
    sound = np.concatenate([tone(220, 2.2), np.zeros(16000 * 3)]).astype(np.float32)
    heard = recogniser.hear(sound)
    heard = heard._replace(voice=np.ones_like(heard.voice))
    from pathlib import Path

    for name, width in (("recogniser", 8), ("log_mel", 64), ("voice", 64)):
        made = embeddings.make_embedding(name, recogniser)
        vectors = made.of(embeddings.Piece(Path("x.wav"), 0.0, heard))
        assert vectors.shape == (3, width) and made.width == width and made.fewest == 2 * width
    assert embeddings.make_embedding("recogniser", recogniser).name == "small-1"
    with pytest.raises(UserError, match=r"none is named 'voise'.*voice"):
        embeddings.make_embedding("voise", recogniser)
    with pytest.raises(UserError, match="muq_path"):
        embeddings.make_embedding("muq", recogniser)


@pytest.mark.parametrize("midi", [50, 57, 69, 76])
def test_pitch_of_a_tone(midi: int) -> None:
    track = pitch.track(tone(440 * 2 ** ((midi - 69) / 12)), 16000, 100)
    found = pitch.statistics(track, np.ones(100))
    assert found is not None and found.median == pytest.approx(midi, abs=0.11)
    assert found.range < 0.5


def test_pitch_counts_sung_frames_alone() -> None:
    track = np.concatenate([np.full(100, 60.0), np.full(100, 72.0)])
    voice = np.concatenate([np.ones(100), np.zeros(100)])
    found = pitch.statistics(track, voice)
    assert found is not None and (found.median, found.range, found.frames) == (60.0, 0.0, 100)
    assert pitch.statistics(track, np.zeros(200)) is None
    assert np.isnan(pitch.track(np.zeros(16000), 16000, 50)).all()
