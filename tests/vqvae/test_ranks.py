"""Real processes: the number of ranks doesn't change what is learned, and ranks stay alike to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def _run(folder: Path, ranks: int) -> list[dict]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launch, sys.executable, str(program), str(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{ranks}_{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_learn_the_same_codebooks(tmp_path: Path, ranks: int) -> None:
    (alone,) = _run(tmp_path, 1)
    several = _run(tmp_path, ranks)
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
