"""``jukebox_bottleneck``: one codebook alone, with the random draws that were recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from songbloom.vqvae.bottleneck import Codebook
from tests.golden.report import Golden

LOSS = 1e-5
VALUES = {"abs": 2e-5, "rel": 1e-5}


class RecordedRandomness:
    """Gives recorded draws in their order, and complains when a draw differs in kind or size from what was recorded.

    Args:
        calls: ``(kind, tensor)`` in the order of the draws; ``kind`` is ``"perm"`` or ``"noise"``.
    """

    def __init__(self, calls: Iterable[tuple[str, Tensor]]) -> None:
        self.calls = list(calls)

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        assert self.calls, f"one draw ({kind} {shape}) more than were recorded"
        recorded, tensor = self.calls.pop(0)
        found = (recorded, tuple(tensor.shape))
        assert found == (kind, shape), f"drew {(kind, shape)}, but {found} was recorded"
        return tensor

    def permutation(self, n: int) -> Tensor:
        return self._next("perm", (n,))

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        return self._next("noise", shape)


def _begin(golden: Golden, case: str) -> Codebook:
    book = Codebook(golden.given("k_bins"), golden.given("emb_width"), golden.given("mu"))
    book.threshold = golden.given("cases", case, "threshold")
    before = golden.given("cases", case, "before")
    if before is not None:
        book.codebook.copy_(before["k"])
        book.k_sum.copy_(before["k_sum"])
        book.k_elem.copy_(before["k_elem"])
        book.initialised = True
    return book


def _expect_result(golden: Golden, path: tuple[Any, ...], result: tuple[Any, ...], case: str) -> None:
    codes, quantised, commit_loss, metrics = result
    golden.expect(*path, "codes", got=codes, name=f"{case}.codes")
    golden.expect(*path, "quantised", got=quantised, **VALUES, name=f"{case}.quantised")
    golden.expect(*path, "commit_loss", got=commit_loss, rel=LOSS, abs=1e-12, name=f"{case}.commit_loss")
    for metric in golden.look(*path, "metrics"):
        exact = {"got": metrics.pop(metric)} if metric in ("used_curr", "usage") else None
        tolerance = exact or {"got": metrics.pop(metric), "rel": LOSS, "abs": 1e-7}
        golden.expect(*path, "metrics", metric, **tolerance, name=f"{case}.{metric}")
    assert not metrics, f"metrics that the file doesn't have: {sorted(metrics)}"


def check_bottleneck(golden: Golden) -> None:
    """Everything in a ``jukebox_bottleneck`` file."""
    for case in golden.look("cases"):
        at = ("cases", case)
        book = _begin(golden, case)
        x = golden.given(*at, "x")
        randomness = RecordedRandomness(golden.given(*at, "random_calls"))
        book.train()
        for step in range(len(golden.look(*at, "steps"))):
            path = (*at, "steps", step)
            _expect_result(golden, path, book(x, randomness, update=True), case)
            for name, got in (("k", book.codebook), ("k_sum", book.k_sum), ("k_elem", book.k_elem)):
                golden.expect(*path, name, got=got, **VALUES, name=f"{case}.{name}")
        assert not randomness.calls, f"{len(randomness.calls)} recorded draws were not drawn"
        book.eval()
        with torch.no_grad():
            _expect_result(golden, (*at, "eval"), book(x, randomness, update=False), f"{case}.eval")


CHECKS = {"jukebox_bottleneck": check_bottleneck}
