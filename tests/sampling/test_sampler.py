"""Codes of an item depend on seed, item, level and window, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.prior.prior import Prior
from songbloom.sampling import sampler
from songbloom.sampling.prompts import empty_codes
from songbloom.sampling.sampler import LevelSettings, item_seeds, sample_level, share
from tests.sampling.tiny import tiny_models

SETTINGS = LevelSettings(hop_fraction=0.5, temperature=1.0)
TOTALS = {1: 150, 0: 600}


@pytest.fixture(scope="module")
def priors() -> list[Prior]:
    return tiny_models()[1]


def run(priors: list[Prior], items: range, settings: LevelSettings = SETTINGS, seed: int = 0, **others: Any):
    return sampler.sample(
        lambda level: priors[level],
        empty_codes(len(items), 2),
        TOTALS,
        {0: settings, 1: settings},
        seeds=item_seeds(seed, items),
        **others,
    )


@pytest.fixture(scope="module")
def three(priors: list[Prior]) -> list[Tensor]:
    return run(priors, range(3))


def test_shapes_and_variety(three: list[Tensor]) -> None:
    assert [tuple(codes.shape) for codes in three] == [(3, 600), (3, 150)]
    assert all(codes.dtype == torch.int64 for codes in three)
    assert not torch.equal(three[1][0], three[1][1])
    assert three[0].unique().numel() > 4


@pytest.mark.parametrize("items", [range(1), range(1, 3), range(2, 3)])
def test_an_item_does_not_depend_on_the_others(priors: list[Prior], three: list[Tensor], items: range) -> None:
    some = run(priors, items)
    for level in (0, 1):
        assert torch.equal(some[level], three[level][items.start : items.stop])


def test_nor_on_batches_and_chunks(priors: list[Prior], three: list[Tensor]) -> None:
    split = run(priors, range(3), replace(SETTINGS, max_batch_size=2, chunk_size=7))
    assert all(torch.equal(a, b) for a, b in zip(split, three, strict=True))


def test_another_seed_gives_other_codes(priors: list[Prior], three: list[Tensor]) -> None:
    assert not torch.equal(run(priors, range(1), seed=1)[1], three[1][:1])


def test_a_level_goes_on_from_any_window(priors: list[Prior], three: list[Tensor]) -> None:
    seen: list[Tensor] = []
    run(priors, range(3), on_window=lambda level, window, codes: seen.append(codes.clone()))
    lengths = [codes.shape[1] for codes in seen]
    assert lengths == [128, 150, 256, 384, 512, 600]
    for codes in seen[2:5]:
        again = sample_level(priors[0], [codes, three[1]], 600, SETTINGS, seeds=item_seeds(0, range(3)))
        assert torch.equal(again, three[0])


def test_a_prompt_is_never_rewritten(priors: list[Prior]) -> None:
    prompt = torch.arange(40).remainder(32).expand(2, -1)
    codes = sample_level(priors[1], [*empty_codes(2, 1), prompt], 60, SETTINGS, seeds=item_seeds(0, range(2)))
    assert codes.shape == (2, 60)
    assert torch.equal(codes[:, :40], prompt)


def test_a_song_shorter_than_every_window(priors: list[Prior]) -> None:
    settings = {0: SETTINGS, 1: SETTINGS}
    codes = sampler.sample(
        lambda level: priors[level], empty_codes(1, 2), {1: 10, 0: 40}, settings, seeds=item_seeds(0, range(1))
    )
    assert [each.shape[1] for each in codes] == [40, 10]


def test_no_temperature_no_chance(priors: list[Prior]) -> None:
    cold = replace(SETTINGS, temperature=0.0)
    a, b = (run(priors, range(2), cold, seed=seed) for seed in (0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(a[1][0], a[1][1])


def test_codes_are_counted_as_they_are_written(priors: list[Prior]) -> None:
    counts: list[int] = []
    run(priors, range(3), replace(SETTINGS, max_batch_size=2), on_codes=counts.append)
    assert sum(counts) == 3 * (600 + 150)


def test_a_hop_between_two_codes_above_is_refused(priors: list[Prior]) -> None:
    codes = [*empty_codes(1, 1), torch.zeros(1, 150, dtype=torch.int64)]
    with pytest.raises(UserError, match="multiple of 4 codes"):
        sample_level(priors[0], codes, 600, replace(SETTINGS, hop_fraction=0.505), seeds=[0])


def test_no_items_need_no_prior() -> None:
    def load(level: int) -> Prior:
        raise AssertionError("loaded for nothing")

    codes = sampler.sample(load, empty_codes(0, 2), TOTALS, {0: SETTINGS, 1: SETTINGS}, seeds=[])
    assert [tuple(each.shape) for each in codes] == [(0, 600), (0, 150)]


def test_seeds_are_the_same_everywhere() -> None:
    assert item_seeds(0, range(2)) == [8276071391966839989, 7943988140625713155]
    (generator,) = sampler.window_generators([1], level=2, start=3)
    assert generator.initial_seed() == sampler.stable_seed("window", 1, 2, 3)


def test_shares_are_even_and_the_first_rank_is_never_idle() -> None:
    for items in range(1, 12):
        for size in range(1, 6):
            shares = [share(items, rank, size) for rank in range(size)]
            assert [item for each in shares for item in each] == list(range(items))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert len(shares[0]) == max(map(len, shares))
