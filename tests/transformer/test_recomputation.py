"""When layers are computed again: by what is asked for, and on a CPU by what is free."""

from __future__ import annotations

import pytest
import torch

from songbloom.transformer import recomputation
from songbloom.transformer.recomputation import ALWAYS, IF_NEEDED, Recomputation

X = torch.zeros(2, 50, 16)  # 100 positions
NEEDED = 100 * 30 * 4 * 4  # of 30 numbers in each of 4 layers, in float32


@pytest.fixture(autouse=True)
def enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda device: 4 * NEEDED)


def free(monkeypatch: pytest.MonkeyPatch, amount: int | None) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda device: amount)


def test_with_memory_enough_nothing_is_computed_again_unless_always() -> None:
    assert not Recomputation(0, 30, 4).wanted(X)
    assert not Recomputation(IF_NEEDED, 30, 4).wanted(X)
    assert Recomputation(ALWAYS, 30, 4).wanted(X)


def test_a_quarter_of_what_is_free_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 4 * NEEDED - 1)
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X)
    assert not Recomputation(IF_NEEDED, 30, 4).wanted(X.bfloat16())
    assert not Recomputation(0, 30, 4).wanted(X)
    free(monkeypatch, None)
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X)


def test_a_shape_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for one batch is not free at the next, and is used by it again."""
    choice = Recomputation(IF_NEEDED, 30, 4)
    assert not choice.wanted(X)
    free(monkeypatch, 0)
    assert not choice.wanted(X)
    assert choice.wanted(X[:, :40])


def test_other_devices_and_no_gradients() -> None:
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X.to("meta"))
    with torch.no_grad():
        assert not Recomputation(ALWAYS, 30, 4).wanted(X)
