"""The benchmark runs as people start it, and its figures fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "vqvae.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)


def test_the_benchmark_prints_one_object_with_every_figure() -> None:
    done = _run("--quick", "--depth=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["config"]["depth"] == 2 and result["config"]["sample_length"] == 4096
    assert result["machine"]["cpu"] and len(result["load_average_after"]) == 3
    gemm = result["limits"]["gemm_gflops"]["fp32"] * 1e9
    for what in ("encode", "decode_level_0", "training_step"):
        figures = result[what]
        for way in ("fast", "plain"):
            one = figures[way]
            best = one["seconds_best"]
            assert one["audio_seconds_per_second"] == pytest.approx(4096 / 22050 / best, rel=0.05)
            assert one["seconds_median"] >= best > 0
        assert figures["fast_over_plain"] == pytest.approx(
            figures["plain"]["seconds_best"] / figures["fast"]["seconds_best"], rel=0.01
        )
    operations = sum(result["cost"]["encode_operations"]) * 4096
    encode = result["encode"]["fast"]
    assert encode["share_of_gemm"] == pytest.approx(operations / encode["seconds_best"] / gemm, abs=2e-3)


def test_the_benchmark_names_a_typo() -> None:
    done = programs.run(ROOT, str(ROOT / "benchmarks" / "vqvae.py"), "--quick", "--dept=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "depth" in done.stderr and "Traceback" not in done.stderr
