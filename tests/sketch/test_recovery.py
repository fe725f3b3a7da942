"""Codebooks recovered from songs and their codes: those of a model that was trained here, whose codebook is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from songbloom.audio.files import write_wav
from songbloom.errors import UserError
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.sketch.builtin import BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook, load_codebook
from songbloom.sketch.files import write_sketch
from songbloom.sketch.recovery import Candidate, Sung, recover
from songbloom.training.recover import songs_with_codes, written_songs
from tests.sketch.tiny import SIZES, sound

RATE, HOP, CODES, WIDTH = 8000, 320, 8, 4


def _known(features: BuiltinFeatures, audio: Tensor, codes: int) -> SketchCodebook:
    """A codebook by a few rounds of k-means, the very thing that is to be recovered."""
    rows = features.extract(audio, RATE).flatten(0, 1)
    vectors = rows[:: len(rows) // codes][:codes].clone()
    for _ in range(8):
        nearest = torch.cdist(rows, vectors).argmin(dim=1)
        for code in range(codes):
            if (nearest == code).any():
                vectors[code] = rows[nearest == code].mean(dim=0)
    return SketchCodebook(vectors, features.identity(), state=features.state_dict())


@pytest.fixture(scope="module")
def features() -> BuiltinFeatures:
    return BuiltinFeatures(SIZES, torch.Generator().manual_seed(1)).eval()


def _songs(features: BuiltinFeatures, book: SketchCodebook, count: int, seconds: float) -> Iterator[Sung]:
    for number in range(count):
        audio = sound(1, seconds, RATE, seed=100 + number)
        yield Sung(book.encode(features.extract(audio, RATE))[0], audio[0], RATE)


def test_songs_with_their_codes_give_the_codebook_back(features: BuiltinFeatures) -> None:
    book = _known(features, sound(6, 4.0, RATE, seed=1), 24)
    candidates = [Candidate(features, way) for way in ("standard", "none", "layer")]
    found = recover(_songs(features, book, 20, 4.0), candidates, 24, source="known")
    assert found.agreement is not None and found.agreement > 0.85 and found.agreement > 3 * found.chance
    assert found.codebook.normalisation == "none" and len(found.told) == 3  # as the known one was
    assert int(found.counts.sum()) == 16 * 100 and found.codebook.trained["recovered_from"] == "known"
    audio = sound(4, 4.0, RATE, seed=999)
    heard = features.extract(audio, RATE)
    seen = found.counts[book.encode(heard)] > 0
    assert (found.codebook.encode(heard) == book.encode(heard))[seen].float().mean() > 0.85
    # Each vector is the mean of its code's frames.
    rows = [features.extract(song.audio[None], RATE)[0] for song in _songs(features, book, 20, 4.0)]
    kept = [row for number, row in enumerate(rows) if number % 5 != 4]
    frames = torch.cat(kept)
    code = int(found.counts.argmax())
    torch.testing.assert_close(
        found.codebook.vectors[code], frames[book.encode(frames[None])[0] == code].mean(dim=0), atol=1e-4, rtol=1e-4
    )


def test_codes_that_were_never_seen_are_told_and_never_chosen(features: BuiltinFeatures, tmp_path: Path) -> None:
    book = _known(features, sound(6, 4.0, RATE, seed=1), 24)
    for distance in ("euclidean", "cosine"):
        found = recover(_songs(features, book, 6, 4.0), [Candidate(features)], 40, distance=distance)
        never = (found.counts == 0).nonzero()[:, 0].tolist()
        assert set(range(24, 40)) <= set(never)
        chosen = found.codebook.encode(features.extract(sound(3, 4.0, RATE, seed=7), RATE))
        assert not set(chosen.flatten().tolist()) & set(never)
        assert any(f"{len(never)} codes were never seen" in line for line in found.report())
        found.codebook.save(tmp_path / "book.pt")
        again = load_codebook(tmp_path / "book.pt", size=40)
        assert torch.equal(again.vectors, found.codebook.vectors)
        assert torch.equal(again.trained["counts"], found.counts)


def test_codes_that_say_nothing_of_the_sound_are_told(features: BuiltinFeatures) -> None:
    draw = torch.Generator().manual_seed(0)
    songs = [
        Sung(torch.randint(16, (100,), generator=draw), sound(1, 4.0, RATE, seed=number)[0], RATE)
        for number in range(10)
    ]
    found = recover(songs, [Candidate(features)], 16)
    assert found.agreement is not None and found.agreement < 0.2
    assert any("hardly follow the sound" in line for line in found.report())


def test_mistakes_are_told(features: BuiltinFeatures, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no songs"):
        recover([], [Candidate(features)], 8)
    with pytest.raises(UserError, match="code 9 of a song is not one of the model's 8"):
        recover([Sung(torch.tensor([1, 9]), torch.zeros(800, 1), RATE)], [Candidate(features)], 8)
    with pytest.raises(UserError, match="no audio has its codes beside it"):
        list(songs_with_codes(tmp_path, 8))
    write_wav(tmp_path / "a.wav", sound(1, 1.0, RATE)[0].numpy(), RATE)
    write_sketch(tmp_path / "a.npy", torch.arange(25) % 8)
    (song,) = songs_with_codes(tmp_path, 8)
    assert song.codes.tolist() == [i % 8 for i in range(25)] and song.sample_rate == 48000
    with pytest.raises(UserError, match="not one of 0 to 4"):
        list(songs_with_codes(tmp_path, 5))


# --- a small model ---------------------------------------------------------------------------------------------------


class Bells:
    """A codec whose latents are how loud each of four sounds is, a frame at a time."""

    sample_rate = RATE

    def decode(self, codes: list[Tensor]) -> Tensor:
        (latents,) = codes
        loud = latents.clamp(0, 2).repeat_interleave(HOP, dim=1)  # [1, T, 4]
        time = torch.arange(loud.shape[1]) / RATE
        made = torch.zeros(1, loud.shape[1])
        for bell, hertz in enumerate((110.0, 196.0, 349.0, 622.0)):
            wave = sum(torch.sin(2 * math.pi * hertz * h * time) / h ** (0.5 + bell / 2) for h in (1, 2, 3))
            made = made + 0.1 * loud[..., bell] * wave
        return made[..., None]


def _taught() -> tuple[SongBloomPrior, Tensor]:
    """A prior whose codes stay for four frames and say which bells sound: it has learned that in some seconds."""
    config = SongBloomConfig(
        patch_size=4,
        latent_width=WIDTH,
        l_bins=CODES,
        prior_width=32,
        heads=1,
        prior_depth=1,
        dit_depth=1,
        m_mlp=2.0,
        time_features=16,
        lyric_vocabulary=16,
        lyric_tokens=4,
        prompt_frames=2,
        init_std=0.1,
        flow_loss_fraction=1.0,
    )
    prior = SongBloomPrior(config, torch.Generator().manual_seed(0)).train()
    bells = torch.tensor([[(code + 1 >> bell) & 1 for bell in range(WIDTH)] for code in range(CODES)]).float()
    draw = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for _ in range(250):
        tokens = torch.randint(CODES, (8, 8), generator=draw).repeat_interleave(4, dim=1)
        latents = bells[tokens] + 0.02 * torch.randn(8, 32, WIDTH, generator=draw)
        loss, _ = prior(tokens, latents, torch.full((8,), 32), [[]] * 8, generator=draw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return prior.eval(), bells


def test_a_model_that_writes_songs_gives_its_codebook_back(features: BuiltinFeatures) -> None:
    prior, bells = _taught()
    codec = Bells()
    tokens = torch.randint(CODES, (200,), generator=torch.Generator().manual_seed(5)).repeat_interleave(4)
    heard = features.extract(codec.decode([bells[tokens][None]]), RATE)
    means = torch.stack([heard[0, tokens == code].mean(dim=0) for code in range(CODES)])
    known = SketchCodebook(means, features.identity(), state=features.state_dict())  # as the model was taught with
    settings = GenerationSettings(
        max_frames=100, min_frames=100, steps=8, top_k=0, penalty=1.0, cfg_lm=1.0, cfg_diffusion=1.0
    )
    songs = list(written_songs(prior, codec, settings, [((), None)] * 10, seed=3))
    assert len(songs) == 10 and all(len(song.codes) == 100 for song in songs)
    found = recover(songs, [Candidate(features)], CODES, source="bells")
    assert (found.counts > 0).all() and found.agreement is not None
    assert found.agreement > 0.6 and found.agreement > 2 * found.chance
    true = known.encode(heard)
    assert (found.codebook.encode(heard) == true).float().mean() > 0.75
    again = list(written_songs(prior, codec, settings, [((), None)] * 10, seed=3, at_once=10))
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(songs, again, strict=True))
