import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from songbloom.prior import losses
from songbloom.prior.losses import linear_cross_entropy


def plain(hidden, weight, targets, row_weights):
    bits = F.cross_entropy(hidden @ weight.T, targets, reduction="none") / math.log(2)
    return (bits * row_weights).sum(), bits


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 9),
    bins=st.integers(1, 40),
    group=st.integers(1, 700),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_the_written_out_loss(rows, width, bins, group, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = torch.randn(bins, width, generator=generator).requires_grad_()
    targets = torch.randint(bins, (rows,), generator=generator)
    row_weights = torch.rand(rows, generator=generator)
    want, want_bits = plain(hidden, weight, targets, row_weights)
    wanted = torch.autograd.grad(3.0 * want, (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_GROUP_ELEMENTS", group)
        got, bits = linear_cross_entropy(hidden, weight, targets, row_weights)
        grads = torch.autograd.grad(3.0 * got, (hidden, weight))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bits, want_bits, rtol=1e-5, atol=1e-5)
    for grad, wanted_grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-5)
    assert not bits.requires_grad


def test_only_the_gradient_that_is_wanted():
    hidden, weight = torch.randn(4, 3), torch.randn(5, 3).requires_grad_()
    targets, row_weights = torch.tensor([0, 1, 2, 4]), torch.full((4,), 0.25)
    loss, _ = linear_cross_entropy(hidden, weight, targets, row_weights)
    loss.backward()
    want = torch.autograd.grad(plain(hidden, weight, targets, row_weights)[0], weight)[0]
    torch.testing.assert_close(weight.grad, want)
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, targets, row_weights)
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_lose_no_small_gradient(dtype):
    """The mean over many rows makes gradients that a float16 cannot hold; they must not vanish on the way."""
    generator = torch.Generator().manual_seed(0)
    rows, width, bins = 600, 8, 300
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = (0.1 * torch.randn(bins, width, generator=generator)).requires_grad_()
    targets = torch.randint(bins, (rows,), generator=generator)
    row_weights = torch.full((rows,), 1e-7)
    want = torch.autograd.grad(plain(hidden, weight, targets, row_weights)[0], (hidden, weight))
    loss, _ = linear_cross_entropy(hidden, weight, targets, row_weights, dtype=dtype)
    for grad, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), want, strict=True):
        assert grad.dtype == torch.float32
        assert float((grad - wanted).norm() / wanted.norm()) < 0.02


def test_weight_in_half_keeps_its_dtype():
    hidden, weight = torch.randn(4, 3).requires_grad_(), torch.randn(5, 3).half().requires_grad_()
    loss, _ = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2, 4]), torch.full((4,), 0.25))
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float16
