"""How many items are sampled together where nobody says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from songbloom.prior.prior import Prior
from songbloom.sampling import memory
from tests.sampling.tiny import tiny_models


@pytest.fixture(scope="module")
def priors() -> list[Prior]:
    return tiny_models()[1]


def test_a_batch_fills_what_is_free(priors: list[Prior]) -> None:
    top = priors[1]
    weights, item = memory.weight_bytes(top, "fp32"), memory.item_bytes(top, "fp32")
    assert item > top.cost("fp32")["cache_bytes"] > 0
    assert weights == 4 * sum(parameter.numel() for parameter in top.parameters())

    def batch(free: float | None, items: int = 100, precision: str = "fp32") -> int:
        return memory.largest_batch(top, precision, free, items)

    assert batch((weights + 5.5 * item) / memory.USED_SHARE) == 5
    assert batch((weights + 5.5 * item) / memory.USED_SHARE, items=3) == 3
    assert batch(weights / memory.USED_SHARE / 2) == 1  # too little for one; it may still go
    assert batch(1e15) == memory.LARGEST_BATCH
    assert batch(None) == memory.LARGEST_BATCH
    assert batch(0) == 1
    assert memory.weight_bytes(top, "bf16") < weights  # matrices are kept in what they are computed in


def test_the_upsampler_counts_its_conditioning(priors: list[Prior]) -> None:
    fine = priors[0]
    assert fine.conditioner is not None
    assert memory.item_bytes(fine, "fp32") > fine.cost("fp32")["cache_bytes"] + 4 * fine.n_ctx


def test_a_run_keeps_its_choice(priors: list[Prior], tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    chosen = memory.choose_batches(priors, "fp32", cpu, 3, memory.chosen_before(tmp_path))
    assert chosen == {"0": 3, "1": 3}
    (tmp_path / "run.json").write_text(json.dumps({"chosen": {"max_batch_size": {"1": 2}}}))
    assert memory.chosen_before(tmp_path) == {}  # it was stopped before its first window
    (tmp_path / "journal" / "level_1").mkdir(parents=True)
    kept = tmp_path / "journal" / "level_1" / "item_0.journal"
    kept.write_bytes(bytes(20))  # not even a header
    assert memory.chosen_before(tmp_path) == {}
    kept.write_bytes(bytes(200))
    assert memory.choose_batches(priors, "fp32", cpu, 3, memory.chosen_before(tmp_path)) == {"0": 3, "1": 2}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"chosen": 3}', '{"chosen": {"max_batch_size": {"x": 1}}}', "\xff"])
def test_a_choice_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "level_1").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"chosen": {"max_batch_size": {"1": 2}}}))
    assert memory.chosen_before(tmp_path) == {"1": 2}
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    assert memory.chosen_before(tmp_path) == {}
