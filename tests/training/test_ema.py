"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch

from songbloom.training.ema import WeightAverage, default_mu, make_average


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator).half()]
    return [torch.nn.Parameter(p) for p in made]


def drift(ps: list[torch.nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in ps:
        p.data += torch.randn(p.shape, generator=generator).to(p.dtype) * 0.1


def test_is_the_weighted_sum_of_the_past() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.9)
    want = [p.detach().double() for p in ps]
    for number in range(20):
        drift(ps, number)
        average.step()
        want = [0.9 * w + 0.1 * p.detach().double() for w, p in zip(want, ps, strict=True)]
    for shadow, w in zip(average.shadow, want, strict=True):
        torch.testing.assert_close(shadow.double(), w, atol=1e-6, rtol=1e-6)


def test_swapping_there_and_back_keeps_every_bit() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.9)
    for number in range(5):
        drift(ps, number)
        average.step()
    raw, shadow = [p.detach().clone() for p in ps], [s.clone() for s in average.shadow]
    with average.averaged():
        for p, s in zip(ps, shadow, strict=True):
            assert torch.equal(p.detach(), s.to(p.dtype))
        with pytest.raises(RuntimeError, match="in use"):
            average.state_dict()
    for p, r in zip(ps, raw, strict=True):
        assert torch.equal(p.detach(), r)
    for mine, s in zip(average.shadow, shadow, strict=True):
        assert torch.equal(mine, s)


def test_rounding_on_swap_is_a_choice() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.9, round_on_swap=True)
    drift(ps, 0)
    average.step()
    exact = average.shadow[1].clone()
    with average.averaged():
        pass
    assert torch.equal(average.shadow[1], exact.half().float()) and not torch.equal(average.shadow[1], exact)


def test_an_error_inside_swaps_back() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.5)
    drift(ps, 0)
    raw = ps[0].detach().clone()
    with pytest.raises(ZeroDivisionError), average.averaged():
        raise ZeroDivisionError
    assert torch.equal(ps[0].detach(), raw) and not average.swapped


def test_every_nth_step_decays_by_the_nth_power() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.9, every=3, device="cpu")
    start = average.shadow[0].clone()
    for number in range(2):
        drift(ps, number)
        average.step()
    assert torch.equal(average.shadow[0], start)
    average.step()
    torch.testing.assert_close(average.shadow[0], 0.9**3 * start + (1 - 0.9**3) * ps[0].detach())


def test_goes_on_in_the_middle_of_a_stretch() -> None:
    ps = parameters()
    average = WeightAverage(ps, 0.9, every=3)
    other = WeightAverage(ps, 0.9, every=3)
    average.step()
    average.step()
    other.load_state_dict(average.state_dict())
    drift(ps, 0)
    average.step()
    other.step()
    assert torch.equal(average.shadow[0], other.shadow[0])


def test_default_decay_follows_the_global_batch() -> None:
    assert default_mu(1, 1) == pytest.approx(0.999875)
    assert default_mu(4, 8) == pytest.approx(0.996)
    assert default_mu(10**6, 8) == 0.0


def test_what_hyperparameters_choose() -> None:
    hps = {"ema": True, "mu": None, "bs": 4, "cpu_ema": False, "cpu_ema_freq": 100, "iters_before_update": 2}
    average = make_average(parameters(), hps, ranks=2)
    assert average is not None and average.mu == pytest.approx(default_mu(8, 2)) and average.every == 1
    average = make_average(parameters(), hps | {"cpu_ema": True, "mu": 0.5}, ranks=1)
    assert average is not None and average.mu == 0.5 and average.every == 100
    assert make_average(parameters(), hps | {"ema": False}, ranks=1) is None
