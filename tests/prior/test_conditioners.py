import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.prior.conditioners import RangeEmbedding, UpsamplingConditioner


@settings(max_examples=12, deadline=None)
@given(down_t=st.integers(1, 3), stride_t=st.integers(2, 5), length=st.integers(1, 9))
def test_any_stride_gives_this_levels_rate(down_t, stride_t, length):
    conditioner = UpsamplingConditioner(7, 6, down_t=down_t, stride_t=stride_t, cond_width=4, cond_depth=2)
    codes = torch.randint(7, (2, length))
    out = conditioner(codes)
    assert out.shape == (2, length * stride_t**down_t, 6)
    torch.testing.assert_close(out.mean(-1), torch.zeros(out.shape[:2]), atol=1e-5, rtol=0)  # a norm comes last


def test_a_condition_from_above_is_added_to_the_embedding():
    torch.manual_seed(0)
    conditioner = UpsamplingConditioner(7, 6, down_t=1, stride_t=2, cond_width=4, cond_depth=2)
    codes = torch.randint(7, (2, 5))
    above = torch.randn(2, 5, 6)
    want = conditioner(torch.zeros_like(codes), conditioner.embedding(codes) - conditioner.embedding.weight[0] + above)
    torch.testing.assert_close(conditioner(codes, above), want)


def test_recomputing_activations_changes_no_gradient():
    grads = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        conditioner = UpsamplingConditioner(
            7, 6, down_t=2, stride_t=2, cond_width=4, cond_depth=3, checkpoint=checkpoint, res_scale=True
        ).train()
        conditioner(torch.arange(7)[None]).square().sum().backward()
        grads.append([p.grad for p in conditioner.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_operations_are_those_of_the_convolutions():
    conditioner = UpsamplingConditioner(7, 6, down_t=2, stride_t=3, cond_width=4, cond_depth=2)
    out = conditioner(torch.zeros(1, 5, dtype=torch.int64))
    project = 5 * (6 * 4 * 3)
    residual_blocks = (5 + 15) * 2 * (4 * 4 * 3 + 4 * 4)
    resample = 5 * (4 * 4 * 6) + 15 * (4 * 6 * 6)
    assert conditioner.operations_per_token() == pytest.approx(
        2 * (project + residual_blocks + resample) / out.shape[1]
    )


@settings(max_examples=50, deadline=None)
@given(
    bins=st.integers(1, 130),
    n_time=st.integers(2, 40),
    low=st.floats(-100, 100),
    size=st.floats(0.5, 1e6),
    ends=st.tuples(st.floats(0, 0.99), st.floats(0, 1)),
)
def test_bins_are_even_shares_of_the_range(bins, n_time, low, size, ends):
    embedding = RangeEmbedding(n_time, bins, low, low + size, width=2)
    start, end = (torch.tensor([[low + size * share]]) for share in ends)
    if not (embedding.low <= start < embedding.high and embedding.low <= end <= embedding.high):
        return  # float32 has rounded an end out of the range
    found = embedding.bin_index(start, end)[0].double()
    positions = start.double() + (end - start).double() * torch.arange(n_time) / n_time
    exact = bins * ((positions - low) / size)[0]
    assert found.shape == (n_time,)
    # Up to float32's rounding, which grows with the distance of the range from zero.
    slack = bins * 1e-5 * (1 + abs(low) / size)
    assert bool(((found <= exact + slack) & (found >= exact - 1 - slack)).all())


def test_one_number_needs_no_end():
    embedding = RangeEmbedding(1, 4, 0.0, 8.0, width=3)
    assert embedding.bin_index(torch.tensor([[0.0], [3.9], [7.99]])).tolist() == [[0], [1], [3]]
    assert embedding(torch.tensor([[0.0], [3.9]])).shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("start", "end", "clamp", "message"),
    [
        (-1.0, 3.0, False, "start -1 lies outside the range 0 to 8"),
        (8.0, 8.0, False, "start 8 lies"),
        (1.0, 9.0, False, "end 9 lies"),
        (1.0, None, False, "needs an end"),
        (8.5, 9.0, True, "start 8.5"),
    ],
)
def test_numbers_outside_the_range_are_named(start, end, clamp, message):
    embedding = RangeEmbedding(5, 4, 0.0, 8.0, width=3, clamp=clamp)
    with pytest.raises(UserError, match=message):
        embedding.bin_index(torch.tensor([[start]]), None if end is None else torch.tensor([[end]]))


def test_clamping_brings_the_end_into_the_range():
    embedding = RangeEmbedding(4, 4, 0.0, 8.0, width=3, clamp=True)
    assert embedding.bin_index(torch.tensor([[4.0]]), torch.tensor([[12.0]])).tolist() == [[2, 2, 3, 3]]
