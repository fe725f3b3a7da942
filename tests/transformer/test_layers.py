from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from songbloom.errors import UserError
from songbloom.transformer.layers import ACTIVATIONS, MLP, LayerNorm, Linear, activation_named, layer_norm, quick_gelu

HALVES = [torch.float16, torch.bfloat16]


def wide(seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(64, 33, generator=torch.Generator().manual_seed(seed))


def test_quick_gelu_and_its_derivative() -> None:
    x = wide().double().requires_grad_()
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(quick_gelu, (x[:4, :5].detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", HALVES)
def test_quick_gelu_in_half_is_as_good_as_its_input(dtype: torch.dtype) -> None:
    x = wide().to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    quick_gelu(x).sum().backward()
    (exact * torch.sigmoid(1.702 * exact)).sum().backward()
    assert x.grad is not None and exact.grad is not None
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(quick_gelu(x).double(), quick_gelu(exact), rtol=4 * eps, atol=eps)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * eps, atol=2 * eps)


def test_quick_gelu_keeps_one_tensor() -> None:
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        quick_gelu(wide().requires_grad_())
    assert sum(t.numel() for t in kept) == 64 * 33


@pytest.mark.parametrize("dtype", HALVES)
def test_layer_norm_works_in_float32(dtype: torch.dtype) -> None:
    x = (wide() + 300).to(dtype).requires_grad_()  # squares would leave float16
    norm = LayerNorm(33)
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, F.layer_norm(x.float(), (33,)).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)
    y.float().pow(2).sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.isfinite().all()


def test_layer_norm_with_half_weights() -> None:
    weight, bias = torch.full((33,), 2.0).half(), torch.ones(33).half()
    torch.testing.assert_close(layer_norm(wide(), weight, bias), 2 * F.layer_norm(wide(), (33,)) + 1)


def test_linear_follows_its_input() -> None:
    linear = Linear(33, 5, std=0.5, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, *HALVES):
        y = linear(wide().to(dtype))
        assert y.dtype == dtype
        want = wide().to(dtype).float() @ linear.weight.to(dtype).float().t()
        torch.testing.assert_close(y.float(), want, rtol=0.01, atol=0.01)
    linear.half()  # stored in half, computed in the input's dtype
    assert linear(wide()).dtype == torch.float32


def test_starting_weights() -> None:
    linear = Linear(200, 300, std=0.014, generator=torch.Generator().manual_seed(1))
    assert linear.weight.std().item() == pytest.approx(0.014, rel=0.02)
    assert not linear.bias.any()
    assert not Linear(20, 30, std=0.014, zero=True).weight.any()
    again = Linear(200, 300, std=0.014, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear.weight, again.weight)


def test_mlp_width_activation_and_dropout() -> None:
    mlp = MLP(8, 20, activation="relu", dropout=0.5, generator=torch.Generator().manual_seed(1))
    x = wide()[:, :8]
    assert mlp.up.weight.shape == (20, 8)
    mlp.eval()
    torch.testing.assert_close(mlp(x), mlp.down(mlp.up(x).relu()))
    mlp.train()
    assert 0.3 < (mlp(x) == 0).float().mean() < 0.7


def test_an_unknown_activation_is_named() -> None:
    assert set(ACTIVATIONS) == {"quick_gelu", "gelu", "swish", "relu"}
    with pytest.raises(UserError, match="did you mean 'swish'"):
        activation_named("swihs")
