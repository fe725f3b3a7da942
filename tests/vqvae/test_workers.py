"""Pieces on threads: in order, without gradients, the same to the bit, and safe across forks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from songbloom.vqvae import rows, workers
from songbloom.vqvae.blocks import DownsamplingBlock, UpsamplingBlock, reset_convolutions


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_results_come_in_order_without_gradients_on_single_threads() -> None:
    found = workers.each(lambda n: (n * n, torch.is_grad_enabled(), torch.get_num_threads()), range(50))
    assert found == [(n * n, False, 1) for n in range(50)]
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()


def test_a_single_piece_stays_here() -> None:
    assert workers.each(lambda n: torch.get_num_threads(), [0]) == [3]


def test_an_error_in_a_piece_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        workers.each(lambda n: 1 // n, [2, 1, 0])


def test_another_number_of_threads_is_followed() -> None:
    workers.each(lambda n: n, range(3))
    torch.set_num_threads(2)
    assert workers.each(lambda n: torch.get_num_threads(), range(4)) == [1] * 4
    assert torch.get_num_threads() == 2


def test_scratch_memory_is_kept_and_grows() -> None:
    small = workers.scratch("test", 3, 4)
    assert workers.scratch("test", 2, 2).data_ptr() == small.data_ptr()
    assert workers.scratch("test", 30, 4).shape == (30, 4)
    assert workers.scratch("other", 3, 4).data_ptr() != workers.scratch("test", 3, 4).data_ptr()


def test_a_forked_process_has_threads_of_its_own() -> None:
    workers.each(lambda n: n, range(3))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        fine = workers.each(lambda n: n + 1, range(3)) == [1, 2, 3] and workers._pool is None
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_same_numbers_to_the_bit_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE_NUMBERS", 1 << 10)
    monkeypatch.setattr(rows, "SHORTEST_PIECE", 32)
    sizes = {"down_t": 2, "stride_t": 2, "width": 16, "depth": 3, "dilation_growth_rate": 3}
    down, up = DownsamplingBlock(1, 8, **sizes), UpsamplingBlock(8, 8, **sizes)
    for block in (down, up):
        reset_convolutions(block, torch.Generator().manual_seed(0))
    x = torch.randn(2, 1, 4096, generator=torch.Generator().manual_seed(1))
    parameters = [*down.parameters(), *up.parameters()]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(up(down(x)).square().sum(), parameters)

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(gradients(), first, strict=True))
    torch.set_num_threads(1)
    for one, other in zip(gradients(), first, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_inference_mode_holds_in_all_threads_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE_NUMBERS", 1 << 10)
    monkeypatch.setattr(rows, "SHORTEST_PIECE", 32)
    torch.set_num_threads(2)
    block = DownsamplingBlock(1, 8, down_t=2, stride_t=2, width=16, depth=3)
    reset_convolutions(block, torch.Generator().manual_seed(0))
    x = torch.randn(2, 1, 4096, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        first = block(x)
    with torch.no_grad():
        again = block(x)
    assert torch.equal(first, again) and torch.equal(block(x), again)
