"""Real processes: the number of ranks doesn't change what is learned, and ranks stay alike to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.programs import results_of_ranks

PROGRAM = """
import sys, torch
from songbloom import distributed
from songbloom.vqvae.bandwidth import measure_bandwidth
from songbloom.vqvae.bottleneck import Bottleneck

def main():
    place = distributed.start("cpu")
    model = Bottleneck(12, 4, 0.6, 2, seed=5).train()
    metrics = []
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        wide = torch.randn(4, 4, 16, generator=generator) * 3  # more rows than bins
        narrow = torch.randn(4, 4, 2, generator=generator)  # fewer: repeated with noise
        share = 4 // place.size
        mine = slice(place.rank * share, (place.rank + 1) * share)
        metrics.append(model([wide[mine], narrow[mine]])[3])
    generator = torch.Generator().manual_seed(9)
    audio = [torch.randn(3000, 1, generator=generator) for _ in range(7)]
    torch.save(
        {"state": model.state_dict(), "statistics": model.state(), "metrics": metrics,
         "bandwidth": measure_bandwidth(audio, sample_rate=1000, duration=15, step=2)},
        f"{sys.argv[1]}/{place.size}_{place.rank}.pt",
    )

distributed.run(main)
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_learn_the_same_codebooks(tmp_path: Path, ranks: int) -> None:
    (alone,) = results_of_ranks(PROGRAM, tmp_path, 1)
    several = results_of_ranks(PROGRAM, tmp_path, ranks)
    for one in several:
        assert one["bandwidth"] == alone["bandwidth"]
        for name, tensor in one["state"].items():
            assert torch.equal(tensor, several[0]["state"][name]), "ranks differ"
            torch.testing.assert_close(tensor, alone["state"][name], atol=1e-6, rtol=1e-5)
        for level in (0, 1):
            mine, whole = one["statistics"]["levels"][level], alone["statistics"]["levels"][level]
            torch.testing.assert_close(mine["k_sum"], whole["k_sum"], atol=1e-5, rtol=1e-5)
            assert torch.equal(mine["k_sum"], several[0]["statistics"]["levels"][level]["k_sum"])
        assert torch.equal(one["statistics"]["random"], alone["statistics"]["random"])
        for step, metrics in enumerate(one["metrics"]):
            for level in (0, 1):
                for name in ("entropy", "used_curr", "usage", "dk"):
                    want = alone["metrics"][step][level][name]
                    torch.testing.assert_close(metrics[level][name], want, atol=1e-5, rtol=1e-5)
