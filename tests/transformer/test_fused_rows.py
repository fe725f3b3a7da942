"""Norms, SwiGLU and rotary positions in one pass: against float64, in all layouts, and torch's where they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from songbloom.transformer import fused_rows, halves
from songbloom.transformer.layers import LayerNorm

needs_halves = pytest.mark.skipif(not halves.available(), reason="this processor does not multiply halves")


@pytest.fixture
def all_sizes(monkeypatch) -> None:
    monkeypatch.setattr(fused_rows, "FEWEST", 1)


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def rounded_once(found: torch.Tensor, right: torch.Tensor, size: float | None = None) -> bool:
    """Whether each number is the right one rounded to bfloat16, but for float32's own errors, which are in proportion
    to the largest, or to ``size``, where summands cancel."""
    assert found.dtype == torch.bfloat16 and found.shape == right.shape
    size = float(right.abs().max()) if size is None else size
    return bool(((found.double() - right).abs() <= 2**-7.99 * right.abs() + 2e-6 * size).all())


def run(function: Callable, inputs: list[torch.Tensor], gradients: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """What a function gives of these, and their gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    given = function(*inputs)
    given = given if isinstance(given, tuple) else (given,)
    pairs = [(y, gradient.to(y.dtype)) for y, gradient in zip(given, gradients, strict=True) if gradient is not None]
    torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
    return [*(y.detach() for y in given), *(x.grad for x in inputs)]


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def turned_heads(rows: torch.Tensor, table: torch.Tensor, heads: int) -> tuple[torch.Tensor, ...]:
    """Channel i and its partner as a complex number, multiplied by another."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in rows.chunk(3, dim=-1))
    half = table.shape[-1] // 2
    angles = torch.complex(table[0, :, :half].double(), table[1, :, :half].double())

    def turned(x: torch.Tensor) -> torch.Tensor:
        there = torch.complex(x[..., :half], x[..., half : 2 * half]) * angles
        return torch.cat([there.real, there.imag, x[..., 2 * half :]], dim=-1)

    return turned(query), turned(key), value


def rotary(positions: int, channels: int) -> torch.Tensor:
    angles = torch.arange(positions)[:, None] * 0.7 ** torch.arange(channels // 2)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


@needs_halves
@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 20), max_size=2), hidden=st.integers(1, 100), seed=st.integers(0, 1000))
def test_swiglu_and_its_gradient(shape, hidden, seed) -> None:
    x, gradient = (
        draw(*shape, 40, 2 * hidden, seed=seed, scale=4.0),
        draw(*shape, 40, hidden, seed=seed + 1, scale=1e-7),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_rows, "FEWEST", 1)
        found = run(fused_rows.swiglu, [x], [gradient])
    right = run(swiglu, [x.double()], [gradient])
    for ours, wanted in zip(found, right, strict=True):
        assert rounded_once(ours, wanted) and ours.is_contiguous()


@needs_halves
def test_swiglu_far_from_zero(all_sizes) -> None:
    gate = torch.tensor([-3e38, -300.0, -60.0, 0.0, 60.0, 300.0, 3e38, float("inf"), float("nan")])
    both = torch.cat([gate, torch.full_like(gate, 0.5)])[None].bfloat16().requires_grad_()
    y = fused_rows.swiglu(both)
    y.backward(torch.ones_like(y))
    gate = gate.bfloat16().double()
    torch.testing.assert_close(y[0, 1:7].double(), gate.sigmoid()[1:7] * gate[1:7] / 2, rtol=4e-3, atol=1e-25)
    assert abs(y[0, 0]) < 1e5 and y[0, 7].isinf() and y[0, 8].isnan()  # next to nothing of something huge
    slopes = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.5, 0.5])
    torch.testing.assert_close(both.grad[0, 1:7].float(), slopes, rtol=4e-3, atol=1e-20)
    assert both.grad[0, 8].isnan() and both.grad[0, 17].isnan()


@needs_halves
@pytest.mark.parametrize("shape", [(3, 40, 70), (5, 16), (200, 1024), (1, 1), (2, 3, 7)])
@pytest.mark.parametrize("branched", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("used", ["both", "norm", "sum"])
def test_norms_of_sums_and_their_gradients(shape, branched, centered, used, all_sizes) -> None:
    x, branch = draw(*shape, seed=1, scale=3.0) + 2, draw(*shape, seed=2, scale=3.0)
    own = [draw(shape[-1], seed=seed).float() for seed in (3, 4)[: 1 + centered]]
    gradients = [draw(*shape, seed=5) if used != "norm" else None, draw(*shape, seed=6) if used != "sum" else None]
    total = (x + branch) if branched else x

    def ours(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        other, (weight, *bias) = (rest[0], rest[1:]) if branched else (None, rest)
        if centered:
            return fused_rows.layer_norm(x, weight, *bias, 1e-5, branch=other)
        return fused_rows.rms_norm(x, weight, 1e-6, branch=other)

    def right(total: torch.Tensor, *own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return total, (layer_norm if centered else rms_norm)(total, *own)

    found = run(ours, [x, *([branch] if branched else []), *own], gradients)
    wanted = run(right, [total.double(), *(each.double() for each in own)], gradients)
    assert torch.equal(found[0], total) and found[1].dtype == torch.bfloat16
    if branched:  # the sum's gradient is the one of both
        assert torch.equal(found[2], found[3])
        del found[3]
    if used == "sum":
        assert torch.equal(found[2], gradients[0]) and all(each is None for each in found[3:])
        return
    assert rounded_once(found[1], wanted[1], size=3.0)
    assert rounded_once(found[2], wanted[2], size=3.0)  # that of a single number's norm is nothing
    for of_own, right_one in zip(found[3:], wanted[3:], strict=True):
        assert of_own.dtype == torch.float32 and (of_own - right_one).norm() <= 1e-5 * right_one.norm() + 1e-5


@needs_halves
@pytest.mark.parametrize(("heads", "width", "turned"), [(3, 64, 64), (2, 64, 32), (5, 10, 10), (1, 40, 34), (4, 3, 2)])
def test_turned_heads_and_their_gradient(heads, width, turned, all_sizes) -> None:
    rows, table = draw(2, 23, 3 * heads * width, seed=7), rotary(23, turned)
    gradients = [draw(2, heads, 23, width, seed=seed) for seed in (8, 9, 10)]
    found = run(lambda x: fused_rows.turned_heads(x, table, heads), [rows], gradients)
    right = run(lambda x: turned_heads(x, table, heads), [rows.double()], gradients)
    for ours, wanted in zip(found, right, strict=True):
        assert rounded_once(ours, wanted)
    assert torch.equal(found[2], right[2].bfloat16())  # values are only moved
    assert all(part.transpose(1, 2).is_contiguous() for part in found[:3])  # so that merging heads copies nothing


@needs_halves
def test_angles_may_differ_within_a_pair(all_sizes) -> None:
    rows, table = draw(1, 9, 3 * 2 * 20, seed=11), torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(12))
    gradients = [draw(1, 2, 9, 20, seed=seed) for seed in (13, 14, 15)]

    def right(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in rows.chunk(3, dim=-1))
        made = []
        for x in (query, key):
            swapped = torch.cat([-x[..., 8:16], x[..., :8]], dim=-1)
            made.append(torch.cat([x[..., :16] * table[0] + swapped * table[1], x[..., 16:]], dim=-1))
        return *made, value

    found = run(lambda x: fused_rows.turned_heads(x, table, 2), [rows], gradients)
    for ours, wanted in zip(found, run(right, [rows.double()], gradients), strict=True):
        assert rounded_once(ours, wanted)


@needs_halves
def test_any_layout_of_what_is_given(all_sizes) -> None:
    weight, table = draw(24, seed=16).float(), rotary(6, 8)
    functions = (
        (fused_rows.swiglu, 1),
        (lambda x: fused_rows.rms_norm(x, weight, 1e-6), 2),
        (lambda x: fused_rows.rms_norm(x, weight, 1e-6, branch=x.flip(1)), 2),
        (lambda x: fused_rows.turned_heads(x, table, 1), 3),
    )
    plain = draw(5, 6, 24, seed=17)
    layouts = (
        plain.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([plain, plain], dim=-1)[..., :24],
        plain.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    )
    for function, outputs in functions:
        given = function(plain)
        shapes = [y.shape for y in (given if isinstance(given, tuple) else (given,))]
        assert len(shapes) == outputs
        right = run(function, [plain], [draw(*shape, seed=18) for shape in shapes])
        for x in layouts:
            # Gradients too: numbers that do not lie together, and ones that all are the same number.
            spread = [torch.cat([draw(*shape, seed=18)[..., None]] * 2, dim=-1)[..., 0] for shape in shapes]
            for ours, wanted in zip(run(function, [x], spread), right, strict=True):
                assert torch.equal(ours, wanted)
        same = run(function, [plain], [torch.ones(1).bfloat16().expand(shape) for shape in shapes])
        ones = run(function, [plain], [torch.ones(shape).bfloat16() for shape in shapes])
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(same, ones, strict=True))


@needs_halves
def test_the_number_of_threads_and_other_rows_change_no_bit(all_sizes) -> None:
    x, weight, table = draw(3, 100, 48, seed=19), draw(48, seed=20).float(), rotary(100, 16)
    functions = (
        (fused_rows.swiglu, [draw(3, 100, 24, seed=21)]),
        (lambda x, w: fused_rows.rms_norm(x, w, 1e-6), [draw(3, 100, 48, seed=seed) for seed in (22, 23)]),
        (lambda x, w: fused_rows.layer_norm(x, w, w, 1e-6), [draw(3, 100, 48, seed=seed) for seed in (22, 23)]),
        (lambda x: fused_rows.turned_heads(x, table, 1), [draw(3, 1, 100, 16, seed=seed) for seed in (24, 25, 26)]),
    )
    before = torch.get_num_threads()
    for number, (function, gradients) in enumerate(functions):
        inputs = [x, weight] if number in (1, 2) else [x]
        found = []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                found.append(run(function, inputs, gradients))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))
        alone = run(function, [x[1:2], *inputs[1:]], [gradient[1:2] for gradient in gradients])
        for one, together in zip(alone, found[0], strict=True):
            if together.ndim > 1:  # not the weights' own gradients
                assert torch.equal(one, together[1:2])


@needs_halves
def test_the_first_familys_layer_norm_is_this_one(all_sizes, monkeypatch) -> None:
    calls = []
    real = fused_rows._NormOfSum.apply
    monkeypatch.setattr(fused_rows._NormOfSum, "apply", lambda *inputs: calls.append(1) or real(*inputs))
    norm, x, gradient = LayerNorm(70), draw(3, 40, 70, seed=27) + 5, draw(3, 40, 70, seed=28)
    norm.weight.data.copy_(draw(70, seed=29))
    norm.bias.data.copy_(draw(70, seed=30))
    found = run(norm, [x], [gradient])
    right = run(layer_norm, [x.double(), norm.weight.double(), norm.bias.double()], [gradient])
    assert calls
    assert rounded_once(found[0], right[0], size=3.0) and rounded_once(found[1], right[1], size=3.0)
    torch.testing.assert_close(norm.weight.grad.double(), right[2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(norm.bias.grad.double(), right[3], rtol=1e-5, atol=1e-4)


@needs_halves
def test_only_what_is_wanted_has_a_gradient(all_sizes) -> None:
    x, branch, weight, bias = draw(9, 20, seed=31), draw(9, 20, seed=32), torch.ones(20), torch.zeros(20)
    for wanting in (bias, branch):
        wanting.requires_grad_()
        total, y = fused_rows.layer_norm(x, weight, bias, 1e-5, branch=branch)
        (total + 2 * y).sum().backward()
        assert [each.grad is not None for each in (x, branch, weight, bias)] == [
            False,
            wanting is branch,
            False,
            wanting is bias,
        ]
        gradient, wanting.grad = wanting.grad, None
        wanting.requires_grad_(False)
        if wanting is bias:
            assert gradient.tolist() == [18.0] * 20
        else:  # sums of a layer norm have no gradient
            torch.testing.assert_close(gradient, torch.ones(9, 20).bfloat16(), rtol=0, atol=1e-2)
    frozen = fused_rows.swiglu(x)
    assert not frozen.requires_grad and rounded_once(frozen, swiglu(x.double()))


@needs_halves
def test_gradients_of_gradients_are_refused_instead_of_being_wrong(all_sizes) -> None:
    table = rotary(30, 4)
    made = {
        "swiglu": fused_rows.swiglu,
        "norm": lambda x: sum(fused_rows.rms_norm(x, torch.ones(24), 1e-6)),
        "heads": lambda x: sum(fused_rows.turned_heads(x, table, 2)),
    }
    for name, function in made.items():
        x = draw(1, 30, 24, seed=33).requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).float().square().sum(), x, create_graph=True)
        assert gradient.requires_grad, name
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.float().sum().backward()


def test_without_gradients_and_elsewhere_it_is_torchs(all_sizes, monkeypatch) -> None:
    def theirs(x: torch.Tensor) -> None:
        own, table = torch.ones(24), rotary(30, 4)
        assert torch.equal(fused_rows.swiglu(x), swiglu(x))
        assert fused_rows.rms_norm(x, own, 1e-6) is None and fused_rows.layer_norm(x, own, own, 1e-5) is None
        assert fused_rows.turned_heads(x, table, 2) is None

    x = draw(1, 30, 24, seed=34)
    with torch.no_grad():
        theirs(x)
    for dtype in (torch.float32, torch.float64, torch.float16):
        theirs(x.to(dtype).requires_grad_())
    monkeypatch.setattr(halves, "available", lambda: False)
    theirs(x.requires_grad_())


def test_few_numbers_are_torchs() -> None:
    x = draw(1, 30, 24, seed=35).requires_grad_()
    assert x.numel() < fused_rows.FEWEST
    assert torch.equal(fused_rows.swiglu(x), swiglu(x)) and fused_rows.rms_norm(x, torch.ones(24), 1e-6) is None
    assert fused_rows.turned_heads(x, rotary(30, 4), 2) is None


def test_what_would_be_read_beyond_its_end_or_elsewhere_is_not_for_here(all_sizes) -> None:
    x, own = draw(1, 30, 24, seed=36).requires_grad_(), torch.ones(24)
    for weight in (
        torch.ones(23),
        torch.ones(25),
        torch.ones(1, 24),
        own.bfloat16(),
        own.to("meta"),
        torch.ones(48)[::2],
    ):
        assert fused_rows.rms_norm(x, weight, 1e-6) is None
        assert fused_rows.layer_norm(x, own, weight, 1e-5) is None
    for branch in (x[..., :23], x[:, :1], x[0], x.float(), x.to("meta")):
        assert fused_rows.rms_norm(x, own, 1e-6, branch=branch) is None
    tables = (
        rotary(29, 4),
        rotary(31, 4),
        rotary(30, 6),
        rotary(30, 4)[:1],
        rotary(30, 4).double(),
        rotary(30, 4)[..., :3],
    )
    for table in (*tables, rotary(30, 4).to("meta"), rotary(30, 4).requires_grad_()):
        assert fused_rows.turned_heads(x, table, 2) is None
    assert (
        fused_rows.turned_heads(x, rotary(30, 4), 5) is None and fused_rows.turned_heads(x[0], rotary(30, 4), 2) is None
    )
    odd = x[..., :23]  # a gate of twelve channels and eleven to multiply it by
    with pytest.raises(RuntimeError, match="must match the size"):
        fused_rows.swiglu(odd)
    for width in (16, 64):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            LayerNorm(width)(x)
