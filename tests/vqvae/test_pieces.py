"""A song decoded piece by piece is the song decoded whole, and no more is read than must be."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from songbloom.errors import UserError
from songbloom.vqvae import pieces, plain
from songbloom.vqvae.blocks import Decoder
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

GEOMETRIES = st.fixed_dictionaries(
    {
        "downs_t": st.lists(st.integers(1, 2), min_size=2, max_size=2).map(tuple),
        "strides_t": st.lists(st.integers(2, 5), min_size=2, max_size=2).map(tuple),
        "depth": st.integers(0, 3),
        "dilation_growth_rate": st.integers(1, 3),
        "dilation_cycle": st.none() | st.integers(1, 2),
        "vqvae_reverse_decoder_dilation": st.booleans(),
        "hvqvae_multipliers": st.sampled_from([None, (2, 1)]),
    }
)


def _model(geometry: dict, width: int = 5) -> VQVAE:
    top = 1
    for down, stride in zip(geometry["downs_t"], geometry["strides_t"], strict=True):
        top *= stride**down
    config = VQVAEConfig(sr=8000, sample_length=top, levels=2, emb_width=4, l_bins=16, width=width, **geometry)
    model = VQVAE(config, torch.Generator().manual_seed(0)).eval()
    for level in range(model.levels):
        book = model.bottleneck.codebook(level).codebook
        book.copy_(torch.randn(book.shape, generator=torch.Generator().manual_seed(level)))
    return model


def _codes(model: VQVAE, frames: int, items: int = 2) -> Tensor:
    return torch.randint(model.l_bins, (items, frames), generator=torch.Generator().manual_seed(frames))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(geometry=GEOMETRIES, frames=st.integers(1, 150), piece=st.integers(1, 60), level=st.integers(0, 1))
def test_pieces_are_the_whole(geometry: dict, frames: int, piece: int, level: int) -> None:
    model = _model(geometry)
    codes = _codes(model, frames)
    above = [codes] * (model.levels - level)  # those of coarser levels aren't looked at
    whole = model.decode(above, start_level=level)
    parts = list(model.decode_pieces(above, level, piece=piece))
    assert [part.shape[1] for part in parts[:-1]] == [piece * model.hop_lengths[level]] * (len(parts) - 1)
    assert torch.cat(parts, dim=1).shape == whole.shape
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-6 * max(1.0, float(whole.abs().max()))
    assert not parts[0].requires_grad


@settings(deadline=None, max_examples=40, derandomize=True)
@given(geometry=GEOMETRIES, level=st.integers(0, 1), data=st.data())
def test_exactly_what_is_read_matters(geometry: dict, level: int, data: st.DataObject) -> None:
    model = _model(geometry, width=2)
    for parameter in model.parameters():
        parameter.data.abs_()  # so that no rectifier hides anything
    decoder, hop = cast(Decoder, model.decoders[level]), model.hop_lengths[level]
    margin = -pieces.reads(decoder, (0, 1))[0]
    start = data.draw(st.integers(margin * hop, (margin + 2) * hop))
    end = start + data.draw(st.integers(1, 2 * hop))
    first, last = pieces.reads(decoder, (start, end))
    frames = last + 2
    embedded = torch.rand(1, 4, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    embedded.requires_grad_()
    audio = plain.decoder(decoder.double(), embedded)
    (gradient,) = torch.autograd.grad(audio[..., start:end].sum(), embedded)
    heard = gradient.abs().sum(dim=(0, 1)).nonzero()[:, 0].tolist()
    assert first >= 0 and (heard[0], heard[-1] + 1) == (first, last)


JUKEBOX = {"downs_t": (3, 2), "strides_t": (2, 2), "depth": 4, "dilation_growth_rate": 3}


def test_a_usual_piece_is_long_enough_that_little_is_done_twice() -> None:
    model = _model(JUKEBOX)
    for level, hop in enumerate(model.hop_lengths):
        decoder = cast(Decoder, model.decoders[level])
        length = pieces.usual_piece(decoder, hop)
        first, last = pieces.reads(decoder, (0, length * hop))
        assert length * hop >= pieces.PIECE_SAMPLES * 0.99
        assert (last - first) / length < 1.3
    assert len(list(model.decode_pieces([_codes(model, 100)] * 2))) == 1


def test_memory_of_pieces_does_not_grow_with_the_song() -> None:
    model = _model(JUKEBOX)

    def peak(frames: int) -> int:
        """The most bytes of tensors that live at once while the pieces come (without the codes)."""
        most, codes = 0, [_codes(model, frames, items=1)] * 2
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            for part in model.decode_pieces(codes, piece=200):
                assert part.shape[1] <= 200 * 8
        held = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    few, many = peak(1000), peak(8000)
    assert many < 1.1 * few


@pytest.mark.parametrize(
    ("level", "codes", "piece", "words"),
    [
        (2, [], None, "levels from 2"),
        (0, [], None, "no codes to decode"),
        (0, [torch.zeros(1, 4, dtype=torch.long)], 0, "piece is 0 codes"),
    ],
)
def test_mistakes_are_told_before_anything_is_decoded(level: int, codes: list, piece: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        _model(JUKEBOX).decode_pieces(codes, level, piece=piece)


def test_no_codes_are_no_pieces() -> None:
    assert list(_model(JUKEBOX).decode_pieces([torch.zeros(1, 0, dtype=torch.long)] * 2)) == []
