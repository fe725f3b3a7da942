from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from songbloom.errors import UserError
from songbloom.prior.filters import filter_logits


def kept(logits: Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


def test_off_changes_nothing() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(filter_logits(logits), logits)


def test_top_k_keeps_ties_and_any_k() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert kept(filter_logits(logits, top_k=1)) == [1, 2]
    assert kept(filter_logits(logits, top_k=3)) == [0, 1, 2]
    assert kept(filter_logits(logits, top_k=99)) == [0, 1, 2, 3]


def test_top_p_counts_what_stands_before() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert kept(filter_logits(logits, top_p=0.01)) == [1]
    assert kept(filter_logits(logits, top_p=0.4)) == [1]
    assert kept(filter_logits(logits, top_p=0.6)) == [1, 2]
    assert kept(filter_logits(logits, top_p=0.9)) == [0, 1, 2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.floats(0.01, 1.0))
def test_top_p_against_a_plain_loop(seed: int, bins: int, top_p: float) -> None:
    logits = 3 * torch.randn(2, 1, bins, generator=torch.Generator().manual_seed(seed))
    got = filter_logits(logits, top_p=top_p)
    for row, filtered in zip(logits.view(-1, bins).tolist(), got.view(-1, bins), strict=True):
        weights = [math.exp(x) for x in row]
        before, wanted = 0.0, []
        for index in sorted(range(bins), key=lambda i: -row[i]):
            if not wanted or before <= top_p:
                wanted.append(index)
            before += weights[index] / sum(weights)
        assert kept(filtered) == sorted(wanted)
        assert filtered[wanted].tolist() == [row[i] for i in wanted]


@pytest.mark.parametrize(
    ("top_k", "top_p", "words"), [(1, 0.5, "exclude"), (-1, 0.0, "top_k=-1"), (0, 1.5, "top_p=1.5"), (0, -0.1, "top_p")]
)
def test_senseless_settings_are_named(top_k: int, top_p: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        filter_logits(torch.zeros(3), top_k, top_p)
