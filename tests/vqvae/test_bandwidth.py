"""How loud a data set is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songbloom.audio.spectral import STFT
from songbloom.errors import UserError
from songbloom.vqvae.bandwidth import measure_bandwidth, spectral_norm, visited


def _items(count: int, seed: int = 0, channels: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((3000, channels)).astype(np.float32) * (i + 1) for i in range(count)]


@given(count=st.integers(0, 200), step=st.integers(1, 20))
def test_every_item_is_visited_once(count: int, step: int) -> None:
    order = list(visited(count, step))
    assert sorted(order) == list(range(count))
    assert order[: -(-count // step)] == list(range(0, count, step))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_a_tiny_data_set_is_measured_whole(count: int) -> None:
    items = _items(count)
    got = measure_bandwidth(items, sample_rate=100, duration=1e6)
    audio = np.concatenate(items).astype(np.float64)
    assert got["l1"] == pytest.approx(np.abs(audio).mean(), rel=1e-12)
    assert got["l2"] == pytest.approx(audio.var(), rel=1e-10)


def test_only_as_much_as_asked_is_read() -> None:
    class Counting(list):
        seen: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            self.seen.append(index)
            return super().__getitem__(index)

    items = Counting(_items(40))
    measure_bandwidth(items, sample_rate=1000, duration=7)
    assert items.seen == [0, 16, 32]


@pytest.mark.parametrize("padding", ["reflect", "constant"])
def test_the_spectral_norm_is_that_of_torch(padding: str) -> None:
    audio = _items(1)[0][:, 0].astype(np.float64)
    spectrum = torch.stft(
        torch.from_numpy(audio),
        512,
        100,
        win_length=300,
        window=torch.hann_window(300, dtype=torch.float64),
        center=True,
        pad_mode=padding,
        return_complex=True,
    )
    assert spectral_norm(audio, STFT(512, 100, 300), padding) == pytest.approx(float(spectrum.abs().norm()), rel=1e-10)


def test_items_may_be_what_the_data_room_gives() -> None:
    items = _items(3, channels=2)
    plain = measure_bandwidth(items, sample_rate=1000)
    assert measure_bandwidth([{"audio": torch.from_numpy(i), "song": 0} for i in items], sample_rate=1000) == plain


def test_nothing_to_measure() -> None:
    with pytest.raises(UserError, match="empty data set"):
        measure_bandwidth([], sample_rate=1000)
    with pytest.raises(UserError, match="nothing but silence"):
        measure_bandwidth([np.zeros((3000, 1))], sample_rate=1000)
    with pytest.raises(UserError, match="items of 1000 samples are too short"):
        measure_bandwidth([np.ones((1000, 1))], sample_rate=1000)
    with pytest.raises(UserError, match="padding"):
        measure_bandwidth(_items(1), sample_rate=1000, padding="wrap")
