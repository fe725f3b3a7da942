"""Adam against its formula written out in float64, and what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.training.optim import Adam, clipped_scale, gradient_norm, make_adam


def reference(
    start: torch.Tensor, grads: list[torch.Tensor], *, lr: float, b1: float, b2: float, eps: float, wd: float
) -> torch.Tensor:
    """The module docstring's formula, one operation after the other, in float64."""
    p, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, grad in enumerate(grads, 1):
        g = grad.double()
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        s = lr * (1 - b2**t) ** 0.5 / (1 - b1**t)
        p = p - s * (m / (v.sqrt() + eps) + wd * p)
    return p


def trained(start: torch.Tensor, grads: list[torch.Tensor], scale: float = 1.0, **settings_: object) -> torch.Tensor:
    parameter = torch.nn.Parameter(start.clone())
    adam = Adam([parameter], **settings_)  # type: ignore[arg-type]
    for grad in grads:
        parameter.grad = (grad * scale).to(parameter.dtype)
        adam.step(scale=scale)
    return parameter.detach()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    b2=st.sampled_from([0.9, 0.925, 0.999]),
    eps=st.sampled_from([1e-8, 1e-3, 0.1]),
    wd=st.sampled_from([0.0, 0.01, 0.5]),
    steps=st.integers(1, 12),
    implementation=st.sampled_from(["foreach", "fused"]),
    scale=st.sampled_from([1.0, 128.0]),
)
def test_follows_the_formula(
    seed: int, b2: float, eps: float, wd: float, steps: int, implementation: str, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(7, 5, generator=generator)
    grads = [torch.randn(7, 5, generator=generator) for _ in range(steps)]
    want = reference(start, grads, lr=0.01, b1=0.9, b2=b2, eps=eps, wd=wd)
    got = trained(
        start, grads, scale, lr=0.01, betas=(0.9, b2), eps=eps, weight_decay=wd, implementation=implementation
    )
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=2e-6)


def test_eps_stands_outside_the_bias_correction() -> None:
    start, grads = torch.ones(3), [torch.full((3,), 1e-3)]
    ours = trained(start, grads, lr=0.1, eps=1e-2)
    parameter = torch.nn.Parameter(start.clone())
    parameter.grad = grads[0].clone()
    torch.optim.AdamW([parameter], lr=0.1, eps=1e-2, weight_decay=0.0).step()
    assert not torch.allclose(ours, parameter.detach(), atol=1e-3)


def test_a_state_taken_and_given_back_changes_nothing() -> None:
    def make() -> tuple[torch.nn.Sequential, Adam]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2).half())
        return model, Adam(model.parameters(), lr=0.01, half_moments=True)

    def step(model: torch.nn.Sequential, adam: Adam, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        adam.step()

    model, adam = make()
    for number in range(3):
        step(model, adam, number)
    other, other_adam = make()
    other.load_state_dict(model.state_dict())
    other_adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    for number in range(3, 6):
        step(model, adam, number)
        step(other, other_adam, number)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for key, value in adam.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_adam.state[q][key])), key
    half = adam.state[next(model[1].parameters())]
    assert half["exp_avg"].dtype == torch.float16 and half["scale_exp_avg"].dtype == torch.float32


def test_float32_moments_of_half_parameters_are_not_rounded_by_loading() -> None:
    parameter = torch.nn.Parameter(torch.ones(3).half())
    adam = Adam([parameter])
    parameter.grad = torch.tensor([1e-3, 2e-5, 1.0]).half()
    adam.step()
    before = adam.state[parameter]["exp_avg_sq"].clone()
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert adam.state[parameter]["exp_avg_sq"].dtype == torch.float32
    assert torch.equal(adam.state[parameter]["exp_avg_sq"], before)


def test_another_models_state_is_one_line() -> None:
    adam = Adam([torch.nn.Parameter(torch.ones(3))])
    other = torch.nn.Parameter(torch.ones(4))
    other_adam = Adam([other])
    other.grad = torch.ones(4)
    other_adam.step()
    with pytest.raises(UserError, match="another model"):
        adam.load_state_dict(other_adam.state_dict())
    with pytest.raises(UserError, match="other parameters"):
        adam.load_state_dict(Adam([torch.nn.Parameter(torch.ones(1)) for _ in range(2)]).state_dict())


def test_parameters_without_gradient_stay() -> None:
    still, moved = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    adam = Adam([still, moved], weight_decay=0.1)
    moved.grad = torch.ones(2)
    adam.step()
    assert torch.equal(still.detach(), torch.ones(2)) and not torch.equal(moved.detach(), torch.ones(2))
    assert not adam.state[still]


def test_half_gradients_do_not_overflow_the_norm() -> None:
    parameter = torch.nn.Parameter(torch.zeros(64).half())
    parameter.grad = torch.full((64,), 60000.0).half()
    assert float(gradient_norm([parameter])) == pytest.approx(60000.0 * 8, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_shows_in_the_norm(bad: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.ones(3)
    parameters[1].grad[2] = bad  # type: ignore[index]
    assert not torch.isfinite(gradient_norm(parameters))


@given(norm=st.floats(1e-3, 1e6), clip=st.floats(1e-3, 1e6), scale=st.floats(1, 1e6))
def test_clipped_norm_is_at_most_clip(norm: float, clip: float, scale: float) -> None:
    divided = norm * scale / clipped_scale(norm, clip, scale)
    assert divided <= max(clip, 0) * (1 + 1e-9) or divided == pytest.approx(norm)
    assert divided <= norm * (1 + 1e-9)


def test_no_clip() -> None:
    assert clipped_scale(100.0, 0, 8.0) == clipped_scale(100.0, None, 8.0) == 8.0


def test_apex_missing_is_one_line() -> None:
    hps = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "use_apex": True}
    with pytest.raises(UserError, match="apex was asked for and is not installed"):
        make_adam([torch.nn.Parameter(torch.ones(1))], hps)
