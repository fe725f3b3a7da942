"""The shape of every learning-rate schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.training.schedule import Schedule, learning_rate

BASE: dict[str, Any] = {
    "lr": 0.0003,
    "lr_warmup": 10.0,
    "lr_decay": 100.0,
    "lr_gamma": 1.0,
    "lr_scale": 1.0,
    "lr_use_linear_decay": False,
    "lr_start_linear_decay": 20,
    "lr_use_cosine_decay": False,
}


def test_warmup_begins_at_zero_and_ends_at_the_peak() -> None:
    rates = [learning_rate(step, BASE) for step in range(12)]
    assert rates[0] == 0.0 and rates[10] == rates[11] == BASE["lr"]
    assert rates == sorted(rates)


def test_no_warmup() -> None:
    assert learning_rate(0, BASE | {"lr_warmup": 0}) == BASE["lr"]


def test_gamma_falls_in_stairs() -> None:
    hps = BASE | {"lr_gamma": 0.5, "lr_warmup": 0}
    assert [learning_rate(step, hps) for step in (0, 99, 100, 200)] == [3e-4, 3e-4, 1.5e-4, 7.5e-5]


@pytest.mark.parametrize("key", ["lr_use_linear_decay", "lr_use_cosine_decay"])
def test_decay_ends_at_exactly_zero(key: str) -> None:
    hps = BASE | {key: True}
    schedule = Schedule(hps)
    while not schedule.finished:
        assert schedule.count < 1000
        schedule.step()
    assert schedule.count == 120 and schedule.lr == 0.0
    assert learning_rate(20, hps) == BASE["lr"]
    assert learning_rate(70, hps) == pytest.approx(BASE["lr"] / 2)


def test_cosine_is_flat_at_both_ends() -> None:
    hps = BASE | {"lr_use_cosine_decay": True, "lr_warmup": 0}
    fall = [learning_rate(20 + step, hps) - learning_rate(21 + step, hps) for step in range(100)]
    assert fall[0] < fall[49] / 10 and fall[99] < fall[49] / 10


def test_the_first_step_of_warmup_is_not_the_end() -> None:
    schedule = Schedule(BASE)
    assert schedule.lr == 0.0 and not schedule.finished


@given(step=st.integers(0, 10**9), key=st.sampled_from(["", "lr_use_linear_decay", "lr_use_cosine_decay"]))
def test_never_negative_nor_above_the_peak(step: int, key: str) -> None:
    assert 0.0 <= learning_rate(step, BASE | ({key: True} if key else {})) <= BASE["lr"] * (1 + 1e-12)


def test_goes_on_where_it_was() -> None:
    schedule, other = Schedule(BASE), Schedule(BASE)
    for _ in range(5):
        schedule.step()
    other.load_state_dict(schedule.state_dict())
    assert other.lr == schedule.lr
