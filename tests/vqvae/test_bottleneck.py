"""Codebooks: nearest vectors, moving averages, restarts, states, and no dependence on the number of ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from songbloom.errors import UserError
from songbloom.vqvae import bottleneck
from songbloom.vqvae.bottleneck import Bottleneck, Codebook, NoBottleneck, SeededRandomness


def _batch(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 32), generator=torch.Generator().manual_seed(seed))


def _trained(bins: int = 8, steps: int = 3) -> Codebook:
    book, randomness = Codebook(bins, 4, 0.9).train(), SeededRandomness(1)
    for step in range(steps):
        book(_batch(step), randomness, update=True)
    return book


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 60), bins=st.integers(1, 12), chunk=st.integers(1, 200), seed=st.integers(0, 99))
def test_nearest_is_the_nearest_in_whatever_chunks(rows: int, bins: int, chunk: int, seed: int) -> None:
    book = Codebook(bins, 4, 0.99)
    book.codebook.copy_(_batch(seed, bins, 4))
    x = _batch(seed + 1, rows, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bottleneck, "CHUNK_ELEMENTS", chunk)
        codes, distances = book.nearest(x)
    want = torch.cdist(x.double(), book.codebook.double()).square()
    torch.testing.assert_close(distances.double(), want.min(dim=1).values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(want[torch.arange(rows), codes], want.min(dim=1).values, atol=1e-5, rtol=1e-5)


def test_the_first_batch_fills_the_codebook_with_its_own_rows() -> None:
    book = Codebook(8, 4, 0.9).train()
    book._begin(book.rows(_batch())[0], SeededRandomness(0))
    rows = _batch().transpose(1, 2).reshape(-1, 4)
    assert torch.cdist(book.codebook, rows).min(dim=1).values.max() < 1e-5
    assert len(book.codebook.unique(dim=0)) == 8
    assert book.initialised
    assert torch.equal(book.k_elem, torch.ones(8))


def test_fewer_rows_than_bins_are_repeated_with_noise() -> None:
    book = Codebook(10, 4, 0.9).train()
    book(_batch(0, 1, 4, 3), SeededRandomness(0), update=True)
    rows = _batch(0, 1, 4, 3)[0].T
    distances = torch.cdist(book.codebook, rows).min(dim=1).values
    assert len(book.codebook.unique(dim=0)) == 10
    assert 0 < distances.max() < 0.1


def test_dead_codes_restart_at_rows_of_the_batch() -> None:
    book = Codebook(6, 4, 0.5).train()
    book.codebook.copy_(_batch(9, 6, 4))
    book.codebook[3] = 1000.0  # nothing is ever near
    book.restore(num_tokens=64, threshold=1.0)
    usages = [book(_batch(step), SeededRandomness(step), update=True)[3]["usage"] for step in range(8)]
    assert usages[0] == 6  # the average still remembers even use
    assert min(usages) == 5
    rows = torch.cat([_batch(step).transpose(1, 2).reshape(-1, 4) for step in range(8)])
    assert torch.cdist(book.codebook[3:4], rows).min() < 5


def test_moving_averages_follow_their_formula() -> None:
    book = _trained()
    sums, counts, x = book.k_sum.clone(), book.k_elem.clone(), _batch(5)
    codes, quantised, commit, metrics = book(x, SeededRandomness(2), update=True)
    rows, flat = x.transpose(1, 2).reshape(-1, 4), codes.flatten()
    hot = torch.nn.functional.one_hot(flat, 8).float()
    torch.testing.assert_close(book.k_sum, 0.9 * sums + 0.1 * hot.T @ rows)
    torch.testing.assert_close(book.k_elem, 0.9 * counts + 0.1 * hot.sum(dim=0))
    alive = book.k_elem >= 1
    torch.testing.assert_close(book.codebook[alive], (book.k_sum / book.k_elem[:, None])[alive])
    torch.testing.assert_close(commit, (quantised - x).square().mean())
    p = hot.mean(dim=0)
    torch.testing.assert_close(metrics["entropy"], -(p * (p + 1e-8).log()).sum())
    assert metrics["used_curr"] == (hot.sum(dim=0) >= 1).sum()


def test_gradients_go_straight_through() -> None:
    book = _trained()
    x = _batch(3).requires_grad_()
    _, quantised, commit, _ = book(x, SeededRandomness(0), update=False)
    (gradient,) = torch.autograd.grad((quantised * 3).sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.full_like(x, 3))
    (gradient,) = torch.autograd.grad(commit, x)
    torch.testing.assert_close(gradient, 2 * (x - quantised).detach() / x.numel())
    book.eval()
    assert not book(x, SeededRandomness(0), update=False)[1].requires_grad


def test_a_doubled_input_is_summed_and_another_width_refused() -> None:
    book = _trained()
    x, y = _batch(3), _batch(4)
    assert torch.equal(book.encode(torch.cat([x, y], dim=1)), book.encode(x + y))
    with pytest.raises(UserError, match="5 channels reach a codebook of width 4"):
        book.encode(_batch(0, 1, 5, 3))


def test_loaded_weights_without_statistics_are_restored_from_the_batch_and_kept() -> None:
    book = Codebook(8, 4, 0.99, revival_threshold=0.5).train()
    book.codebook.copy_(_batch(9, 8, 4))
    before = book.codebook.clone()
    book(_batch(), SeededRandomness(0), update=True)
    assert book.threshold == 0.5
    assert (book.codebook - before).abs().max() < 0.1
    torch.testing.assert_close(book.k_elem.sum(), torch.tensor(64.0))


def test_state_makes_the_next_steps_the_same() -> None:
    def steps(model: Bottleneck, start: int) -> list[Tensor]:
        out = []
        for step in range(start, start + 4):
            model([_batch(step), _batch(step, 2, 4, 8)])
            out += [model.codebook(level).codebook.clone() for level in (0, 1)]
        return out

    straight = Bottleneck(6, 4, 0.5, 2, seed=3).train()
    steps(straight, 0)
    weights = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    state = straight.state()
    want = steps(straight, 4)
    resumed = Bottleneck(6, 4, 0.5, 2, seed=77).train()
    resumed.load_state_dict(weights)
    resumed.load_state(state)
    for one, other in zip(steps(resumed, 4), want, strict=True):
        assert torch.equal(one, other)


def test_state_of_another_model_is_refused() -> None:
    state = Bottleneck(6, 4, 0.5, 2).state()
    with pytest.raises(UserError, match="2 levels for a model of 3"):
        Bottleneck(6, 4, 0.5, 3).load_state(state)
    with pytest.raises(UserError, match=r"\[6, 4\] for a codebook of shape \[7, 4\]"):
        Bottleneck(7, 4, 0.5, 2).load_state(state)


def test_an_overflowed_batch_teaches_nothing() -> None:
    book = _trained()
    before = [book.codebook.clone(), book.k_sum.clone(), book.k_elem.clone()]
    broken = _batch(8)
    broken[0, 0, 0] = float("inf")
    book(broken, SeededRandomness(0), update=True)
    for one, other in zip((book.codebook, book.k_sum, book.k_elem), before, strict=True):
        assert torch.equal(one, other)


def test_an_overflowed_first_batch_begins_nothing() -> None:
    book = Codebook(8, 4, 0.9).train()
    book(torch.full((1, 4, 16), float("nan")), SeededRandomness(0), update=True)
    assert not book.initialised
    book(_batch(), SeededRandomness(0), update=True)
    assert book.initialised and book.codebook.isfinite().all()


def test_runs_in_float32_under_autocast() -> None:
    book = _trained()
    want = book(_batch(3), SeededRandomness(0), update=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = book(_batch(3), SeededRandomness(0), update=False)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and got[2].dtype == torch.float32


def test_without_a_bottleneck_everything_passes() -> None:
    xs = [_batch(), _batch(1)]
    codes, quantised, commits, metrics = NoBottleneck().train()(xs)
    assert all(a is b is c for a, b, c in zip(codes, quantised, xs, strict=True))
    assert not any(commit.item() for commit in commits)
    assert set(metrics[0]) == {"fit", "pn", "entropy", "used_curr", "usage", "dk"}


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 3000), count=st.integers(1, 40), seed=st.integers(0, 9))
def test_chosen_rows_differ_and_exist(n: int, count: int, seed: int) -> None:
    count = min(n, count)
    chosen = SeededRandomness(seed).choose(n, count)
    assert len(chosen) == count == len(chosen.unique())
    assert int(chosen.min()) >= 0 and int(chosen.max()) < n
    assert torch.equal(chosen, SeededRandomness(seed).choose(n, count))
