"""Products in half precision: against float64, in all layouts, and what torch does where a processor cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from songbloom.transformer import halves
from songbloom.transformer.layers import MLP, Linear

needs_halves = pytest.mark.skipif(not halves.available(), reason="this processor does not multiply halves")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(rows: int, columns: int, seed: int, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (columns, rows) if transposed else (rows, columns)
    x = torch.randn(shape, generator=generator).to(dtype)
    return x.t() if transposed else x


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@needs_halves
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150), st.integers(1, 300)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    transposed=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
def test_any_product_is_nearer_to_the_true_one_than_bfloat16_products_are(shape, dtypes, transposed, seed) -> None:
    rows, columns, depth = shape
    a = draw(rows, depth, seed, dtypes[0], transposed[0])
    b = draw(depth, columns, seed + 1, dtypes[1], transposed[1])
    bias = draw(1, columns, seed + 2, torch.float32, False)[0]
    sums = torch.empty(rows)
    found = halves.multiply(a, b, dtype=dtypes[2], bias=bias, row_sums=sums)
    right = a.double() @ b.double() + bias
    size = a.double().abs() @ b.double().abs() + bias.abs()  # what rounding errors are in proportion to
    assert found.dtype == dtypes[2] and found.is_contiguous()
    assert ((found.double() - right).abs() <= 2**-8 * right.abs() + 2**-9 * size).all()
    torch.testing.assert_close(sums, a.float().sum(1), rtol=1e-5, atol=1e-4)


@needs_halves
@pytest.mark.parametrize("depth", [64, 1500, 9000])
def test_the_error_does_not_grow_with_the_number_of_products(depth) -> None:
    a, b = draw(100, depth, 0, torch.float32, False), draw(depth, 70, 1, torch.float32, True)
    right = a.double() @ b.double()
    bfloat16 = (a.bfloat16().double()) @ (b.bfloat16().double())  # operands rounded, all else exact
    assert error(halves.multiply(a, b), right) < 1.4e-3 < error(bfloat16, right)
    assert error(halves.multiply(a, b, dtype=torch.bfloat16), right) < 2.2e-3


@needs_halves
@pytest.mark.parametrize(("left", "right"), [(1e30, 1e-30), (1e-30, 1e-8), (3e5, 3e5), (1e-20, 1e30), (1e-40, 1e30)])
def test_sizes_beyond_a_halfs_reach_are_scaled(left, right) -> None:
    a, b = draw(40, 90, 3, torch.float32, False) * left, draw(90, 80, 4, torch.float32, False) * right
    assert error(halves.multiply(a, b), a.double() @ b.double()) < 1.5e-3


@needs_halves
def test_rows_and_columns_of_very_different_sizes_keep_their_own() -> None:
    scale = torch.logspace(-12, 12, 240)
    a, b = draw(240, 64, 5, torch.float32, False) * scale[:, None], draw(64, 128, 6, torch.float32, False)
    b = b * torch.logspace(-9, 9, 128)
    size = a.double().abs() @ b.double().abs()
    found = halves.multiply(a, b).double()
    assert ((found - a.double() @ b.double()).abs() <= 2**-8 * size).all()
    for rows in (slice(0, 1), slice(3, 30), slice(100, 240)):  # a row's result depends on no other row
        assert torch.equal(halves.multiply(a[rows], b).double(), found[rows])


@needs_halves
@pytest.mark.parametrize("size", [1.999, 7.99e-20])
def test_the_largest_sums_of_halves_do_not_overflow(size) -> None:
    a, b = torch.full((30, 3000), size), torch.full((3000, 70), -1.999)
    torch.testing.assert_close(halves.multiply(a, b), torch.full((30, 70), -1.999 * size * 3000), rtol=8e-3, atol=0)


@needs_halves
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_infinities_and_nan_are_not_lost(dtype, transposed) -> None:
    a, b = torch.ones(30, 50, dtype=dtype), torch.ones(50, 70, dtype=dtype)
    a[3, 7], a[20, 9] = float("inf"), float("nan")
    if transposed:  # the numbers of one k lie together
        a = a.t().contiguous().t()
    a[3, 8], a[5, 1] = -1e4, 6e4  # beside an infinity, and large by itself
    found = halves.multiply(a, b)
    assert found[3].isinf().all() and found[20].isnan().all()
    torch.testing.assert_close(found[5], torch.full((70,), float(a[5].float().sum())), rtol=1e-3, atol=0)
    others = [row for row in range(30) if row not in (3, 5, 20)]
    assert (found[others] == 50).all()


@needs_halves
def test_nothing_and_zeros() -> None:
    bias = torch.tensor([1.0, 2.0])
    assert halves.multiply(torch.ones(0, 5), torch.ones(5, 2)).shape == (0, 2)
    assert halves.multiply(torch.ones(3, 0), torch.ones(0, 2), bias=bias).tolist() == [[1.0, 2.0]] * 3
    assert halves.multiply(torch.zeros(3, 5), torch.ones(5, 2), bias=bias).tolist() == [[1.0, 2.0]] * 3
    before = torch.full((3, 2), 7.0)
    assert (
        halves.multiply(torch.ones(3, 0), torch.ones(0, 2), before=before).tolist()
        == before.tolist()
        == [[0.0] * 2] * 3
    )
    with pytest.raises(ValueError, match=r"\[3, 5\] does not go with \[4, 2\]"):
        halves.multiply(torch.zeros(3, 5), torch.ones(4, 2))


@needs_halves
def test_the_number_of_threads_changes_no_bit() -> None:
    a, b = draw(333, 2100, 7, torch.bfloat16, True), draw(2100, 200, 8, torch.float32, False)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(halves.multiply(a, b))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_halves
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_a_linear_map(with_bias, monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    x, weight = draw(400, 96, 9, torch.bfloat16, False).view(4, 100, 96), draw(130, 96, 10, torch.float32, False)
    bias = draw(1, 130, 11, torch.float32, False)[0]
    gradient = draw(400, 130, 12, torch.bfloat16, False).view(4, 100, 130) * 1e-7

    def run(dtype: torch.dtype, linear) -> list[torch.Tensor]:
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        if dtype != torch.float64:
            inputs = [x.detach().requires_grad_(), *(t.detach().requires_grad_() for t in (weight, bias))]
        y = linear(inputs[0], inputs[1], inputs[2] if with_bias else None)
        y.backward(gradient.to(y.dtype))
        return [y.detach(), *(t.grad for t in inputs[: 2 + with_bias])]

    found, right = run(torch.bfloat16, halves.linear), run(torch.float64, F.linear)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32][: 3 + with_bias]
    for ours, wanted in zip(found, right, strict=True):
        assert error(ours, wanted) < 2.5e-3


@needs_halves
@pytest.mark.parametrize("rows", [(1, 77), (3, 130)])
def test_a_feed_forward_half_and_its_gradients(rows, monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    mlp = MLP(40, 70, generator=torch.Generator().manual_seed(17))
    for parameter in mlp.parameters():
        parameter.data.copy_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.3
        )
    x, gradient = (
        draw(rows[0] * rows[1], 40, 18, torch.bfloat16, False),
        draw(rows[0] * rows[1], 40, 19, torch.bfloat16, False),
    )
    x, gradient = x.view(*rows, 40), gradient.view(*rows, 40) * 1e-6

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        mlp.zero_grad()
        mlp.to(torch.float64 if dtype == torch.float64 else torch.float32)
        given = x.detach().to(dtype).requires_grad_()
        y = mlp(given)
        y.backward(gradient.to(dtype))
        return [y.detach(), given.grad, *(p.grad.clone() for p in mlp.parameters())]

    right = run(torch.float64)
    calls = []
    real = halves._QuickGELUMLP.apply
    monkeypatch.setattr(halves._QuickGELUMLP, "apply", lambda *inputs: calls.append(1) or real(*inputs))
    found = run(torch.bfloat16)
    assert calls
    for ours, wanted in zip(found, right, strict=True):
        assert error(ours, wanted) < 4e-3
    monkeypatch.setattr(halves, "available", lambda: False)
    for ours, wanted in zip(run(torch.bfloat16), right, strict=True):  # torch's own, rounded more often
        assert error(ours, wanted) < 1e-2


@needs_halves
def test_quick_gelu_and_its_slope_far_from_zero() -> None:
    x = torch.tensor([-3e38, -300.0, -60.0, -9.0, -0.0, 9.0, 60.0, 300.0, 3e38, float("inf"), float("nan")])
    one = torch.ones(1, 1)
    before = torch.empty(1, len(x))
    found = halves.multiply(one, torch.zeros(1, len(x)), bias=x, before=before)[0]
    assert torch.equal(before[0].isnan(), x.isnan()) and found[-2].isinf() and found[-1].isnan()
    torch.testing.assert_close(found[1:8], x[1:8] * torch.sigmoid(1.702 * x[1:8]), rtol=1e-6, atol=1e-30)
    assert abs(found[0]) < 1e5 and found[8] == x[8]  # next to nothing of something huge
    slope = halves.multiply(one, torch.ones(1, len(x)), slope_at=x[None])[0]
    torch.testing.assert_close(slope[1:8], torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]), rtol=1e-4, atol=5e-6)


@needs_halves
def test_a_result_deeper_than_a_block_is_activated_as_well() -> None:
    a, b = draw(20, 9000, 20, torch.bfloat16, False), draw(9000, 30, 21, torch.float32, False)
    before = torch.empty(20, 30, dtype=torch.bfloat16)
    found = halves.multiply(a, b, dtype=torch.bfloat16, before=before)
    right = a.double() @ b.double()
    assert error(before, right) < 3e-3 and error(found, right * torch.sigmoid(1.702 * right)) < 8e-3
    places = draw(20, 30, 22, torch.bfloat16, False)
    slopes = places.double().requires_grad_()
    (slopes * torch.sigmoid(1.702 * slopes)).sum().backward()
    found = halves.multiply(a, b, dtype=torch.bfloat16, slope_at=places)
    assert error(found, right * slopes.grad) < 8e-3


@needs_halves
def test_only_what_is_wanted_has_a_gradient(monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    x, weight, bias = torch.randn(30, 20).bfloat16(), torch.randn(40, 20), torch.zeros(40, requires_grad=True)
    y = halves.linear(x, weight, bias)
    y.backward(torch.ones_like(y))
    assert bias.grad.tolist() == [30.0] * 40
    x.requires_grad_()
    y = halves.linear(x, weight)
    y.backward(torch.ones_like(y))
    assert error(x.grad, weight.double().sum(0).expand(30, 20)) < 3e-3


def test_where_a_processor_cannot_it_is_torchs(monkeypatch) -> None:
    monkeypatch.setattr(halves, "_library", lambda: None)
    monkeypatch.setattr(halves, "FEWEST", 1)
    linear = Linear(20, 30, std=1.0, generator=torch.Generator().manual_seed(0))
    x = draw(8, 20, 13, torch.bfloat16, False)
    assert torch.equal(linear(x), F.linear(x, linear.weight.bfloat16(), linear.bias.bfloat16()))
    assert not halves.available()
    with pytest.raises(RuntimeError, match="does not multiply halves"):
        halves.multiply(x, x.t())


def test_few_rows_are_torchs_and_float32_always_is() -> None:
    weight = draw(30, 20, 14, torch.float32, False)
    x = draw(8, 20, 15, torch.bfloat16, False)
    assert torch.equal(halves.linear(x, weight), F.linear(x, weight.bfloat16()))
    wide = draw(4096, 20, 16, torch.float32, False)
    assert torch.equal(halves.linear(wide, weight), F.linear(wide, weight))
    assert not halves.usable(torch.float32, torch.device("cpu")) and not halves.usable(
        torch.bfloat16, torch.device("meta")
    )


def test_without_gradients_no_rows_company_decides_its_numbers() -> None:
    weight = draw(512, 512, 28, torch.float32, False)
    x = draw(600, 512, 29, torch.bfloat16, False)
    with torch.no_grad():
        assert torch.equal(halves.linear(x, weight), F.linear(x, weight.bfloat16()))


def test_a_matrix_unit_is_preferred(monkeypatch) -> None:
    monkeypatch.setattr(halves.loader, "cpu_features", lambda: "flags : avx512_fp16 amx_bf16")
    halves._library.cache_clear()
    try:
        assert not halves.available()
    finally:
        monkeypatch.undo()
        halves._library.cache_clear()


@pytest.mark.parametrize("causal", [True, False])
def test_attention_without_gradients_is_torchs_of_float32(causal) -> None:
    generator = torch.Generator().manual_seed(23)
    query, key, value = (torch.randn(2, 3, 50, 16, generator=generator).bfloat16() for _ in range(3))
    right = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=causal)
    with torch.no_grad():
        found = halves.attention(query, key, value, causal=causal)
    assert found.dtype == torch.bfloat16 and error(found, right) < (2e-3 if halves.available() else 1e-2)
    wide = [x.float() for x in (query, key, value)]
    assert torch.equal(halves.attention(*wide, causal=causal), F.scaled_dot_product_attention(*wide, is_causal=causal))


def attended(function, inputs, gradient, dtype) -> list[torch.Tensor]:
    """What comes of queries, keys and values in a dtype, and the three gradients."""
    given = [x.detach().to(dtype).requires_grad_() for x in inputs]
    found = function(*given)
    found.backward(gradient.to(dtype))
    return [found.detach(), *(x.grad for x in given)]


ATTENTIONS = {  # N, heads, queries, keys, width
    "one": (1, 1, 1, 1, 1),
    "few": (1, 2, 5, 5, 8),
    "tiles and a row": (1, 2, 29, 29, 64),
    "more keys": (2, 3, 100, 130, 64),
    "fewer keys": (1, 2, 64, 30, 16),
    "keys beyond a reach": (1, 2, 600, 600, 24),
    "odd and wide": (1, 1, 150, 150, 200),
}


@needs_halves
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharp", [False, True])
def test_softmax_attention_and_its_gradients(shape, causal, dtype, sharp) -> None:
    items, heads, queries, keys, width = ATTENTIONS[shape]
    generator = torch.Generator().manual_seed(24)
    # As projections give them: positions of all heads together, slices of something longer.
    query, key, value = (
        torch.randn(items, n, 3 * heads * width, generator=generator)[..., : heads * width]
        .to(dtype)
        .unflatten(-1, (heads, width))
        .transpose(1, 2)
        for n in (queries, keys, keys)
    )
    if sharp:
        query[..., : queries // 2, :] *= 6  # some attend to few keys only
    gradient = torch.randn(items, heads, queries, width, generator=generator) * 1e-4
    gradient[..., ::3, :] *= 1e-3
    inputs, gradient = (query, key, value), gradient.to(dtype)
    right = attended(lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), inputs, gradient, torch.float64)
    found = attended(lambda *x: halves.softmax_attention(*x, causal=causal), inputs, gradient, dtype)
    bfloat16 = attended(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), inputs, gradient, torch.bfloat16
    )
    for ours, wanted, torchs in zip(found, right, bfloat16, strict=True):
        assert ours.dtype == dtype and ours.shape == wanted.shape
        if shape == "one":  # scores of a single key have no gradient, but for rounding
            assert (ours - wanted).norm() <= 4e-3 * wanted.norm() + 1e-10
        elif dtype == torch.float32:
            assert error(ours, wanted) < min(1.1 * error(torchs, wanted), 1.5e-2 if sharp else 4e-3)
        else:
            assert error(ours, wanted) < (1.5e-2 if sharp else 5e-3)


@needs_halves
def test_a_heads_attention_depends_on_no_other() -> None:
    query, key, value = (draw(4 * 3 * 40, 16, seed, torch.bfloat16, False).view(4, 3, 40, 16) for seed in (25, 26, 27))
    gradient = draw(4 * 3 * 40, 16, 28, torch.bfloat16, False).view(4, 3, 40, 16)
    query[1], key[2], value[3, 1] = query[1] * 1e4, key[2] * 1e4, float("nan")
    before = torch.get_num_threads()

    def run(*at: slice) -> list[torch.Tensor]:
        parts = [x[at] for x in (query, key, value)]
        return attended(lambda *x: halves.softmax_attention(*x, causal=True), parts, gradient[at], torch.bfloat16)

    try:
        together = run()
        torch.set_num_threads(3)
        for at in ((slice(0, 1), slice(0, 1)), (slice(1, 3), slice(1, 3)), (slice(3, 4), slice(2, 3))):
            for alone, all_of_them in zip(run(*at), together, strict=True):
                assert torch.equal(alone, all_of_them[at])
    finally:
        torch.set_num_threads(before)
    assert together[0][3, 1].isnan().all() and not together[0][3, 0].isnan().any()


@needs_halves
def test_training_attends_in_halves_where_there_is_a_head_for_each_thread(monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    query, key, value = (draw(2 * 50, 16, seed, torch.bfloat16, False).view(1, 2, 50, 16) for seed in (29, 30, 31))
    mask = torch.ones(50, 50, dtype=torch.bool)
    before = torch.get_num_threads()

    def made_of(**how) -> str:
        given = query.clone().requires_grad_()
        return halves.attention(given, key, value, **how).grad_fn.name()

    try:
        torch.set_num_threads(2)
        assert "SoftmaxAttention" in made_of() and "SoftmaxAttention" in made_of(causal=True)
        assert "SoftmaxAttention" not in made_of(mask=mask) and "SoftmaxAttention" not in made_of(dropout=0.1)
        torch.set_num_threads(3)
        assert "SoftmaxAttention" not in made_of()
    finally:
        torch.set_num_threads(before)


@needs_halves
def test_attention_that_does_not_go_together_is_refused() -> None:
    x = torch.zeros(1, 2, 5, 8)
    for key, value in ((x[:, :1], x[:, :1]), (x, x[:, :, :4]), (x[..., :4], x[..., :4])):
        with pytest.raises(ValueError, match="does not attend to"):
            halves.softmax_attention(x, key, value)
    with pytest.raises(ValueError, match=r"attention of torch\.float32 to torch\.bfloat16"):
        halves.softmax_attention(x, x.bfloat16(), x)
    with pytest.raises(ValueError, match="on a CPU"):
        halves.softmax_attention(*[x.to("meta")] * 3)
    assert halves.softmax_attention(x[:, :, :0], x, x).shape == (1, 2, 0, 8)
    given = torch.ones(1, 1, 5, 8, requires_grad=True)
    (first,) = torch.autograd.grad(halves.softmax_attention(given, given, given).sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.sum().backward()


@needs_halves
def test_a_bfloat16_map_may_give_and_take_float32(monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    generator = torch.Generator().manual_seed(24)
    x = torch.randn(90, 30, generator=generator).bfloat16().requires_grad_()
    first, second = (torch.randn(n, m, generator=generator, requires_grad=True) for n, m in ((50, 30), (20, 50)))
    wide = halves.linear(x, first, dtype=torch.float32)
    y = halves.linear(wide, second, dtype=torch.bfloat16)
    assert wide.dtype == torch.float32 and y.dtype == torch.bfloat16
    y.backward(torch.ones_like(y))
    inputs = [t.detach().double().requires_grad_() for t in (x, first, second)]
    F.linear(F.linear(inputs[0], inputs[1]), inputs[2]).sum().backward()
    for ours, right in zip((x, first, second), inputs, strict=True):
        assert error(ours.grad, right.grad) < 3e-3


def test_few_rows_may_as_well() -> None:
    x, weight = draw(3, 20, 25, torch.bfloat16, False), draw(30, 20, 26, torch.float32, False)
    wide = halves.linear(x, weight, dtype=torch.float32)
    assert torch.equal(wide, F.linear(x.float(), weight))
    assert halves.linear(wide, weight.t().contiguous(), dtype=torch.bfloat16).dtype == torch.bfloat16


@needs_halves
def test_gradients_of_gradients_are_refused_instead_of_being_wrong(monkeypatch) -> None:
    monkeypatch.setattr(halves, "FEWEST", 1)
    x, weight = torch.randn(30, 20).bfloat16().requires_grad_(), torch.randn(40, 20, requires_grad=True)
    made = {"linear": halves.linear, "mlp": lambda x, _: MLP(20, 40)(x)}
    for name, function in made.items():
        (gradient,) = torch.autograd.grad(function(x, weight).float().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.float().sum().backward()
        assert gradient.requires_grad, name


@needs_halves
def test_what_would_be_read_beyond_its_end_or_elsewhere_is_refused() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 4)
    for bias in (torch.ones(3), torch.ones(1, 4), torch.ones(())):
        with pytest.raises(ValueError, match="is no bias of 4 columns"):
            halves.multiply(a, b, bias=bias)
    with pytest.raises(ValueError, match="on a CPU"):
        halves.multiply(a, b.to("meta"))
