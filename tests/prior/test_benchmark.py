import json
import subprocess
import sys
from pathlib import Path

from songbloom.transformer import halves
from songbloom.transformer.native import loader
from tests import programs

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "prior.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)


def test_the_benchmark_prints_one_object_with_every_figure():
    done = run("--quick", "--n_samples_list=1,2", "--prior_depth=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["config"]["prior_depth"] == 1 and result["config"]["level"] == 1
    assert result["machine"]["cpu"] and len(result["machine"]["load_average"]) == 3
    rates = result["limits"]["gemm_gflops"]
    here = ["bf16, as multiplied here"] if halves.available() else []
    assert list(rates) == ["fp32", "bf16", *here]
    assert set(result["limits"]["instruction_gflops"]) <= {"floats", "halves"}
    for precision, rate in (("fp32", rates["fp32"]), ("bf16", rates[(here or ["bf16"])[0]])):
        train = result["train"][precision]
        assert abs(train["tokens_per_second"] - 64 / train["seconds_median"]) <= 0.01 * train["tokens_per_second"]
        share = train["model_operations"] / (train["seconds_median"] * rate * 1e9)
        # The rate is told to a tenth, which is much of a few where others use the machine.
        assert abs(train["share_of_gemm_peak"] - share) <= share * 0.06 / rate + 1e-3
        for n in (1, 2):
            paths = result["sample"][f"{precision}, n_samples {n}"]
            assert paths["fast"]["tokens_per_second"] > 0 and paths["plain"]["tokens_per_second"] > 0
            ratio = paths["fast"]["tokens_per_second"] / paths["plain"]["tokens_per_second"]
            assert abs(paths["fast_over_plain"] - ratio) < 0.01


def test_the_benchmark_names_a_typo():
    done = programs.run(ROOT, str(ROOT / "benchmarks" / "prior.py"), "--quick", "--prior_dept=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "prior_depth" in done.stderr and "Traceback" not in done.stderr


def test_the_sampling_benchmark_prints_every_path():
    program = [sys.executable, str(ROOT / "benchmarks" / "sampling.py")]
    options = ["--quick", "--shapes=upsampler"]
    done = subprocess.run([*program, *options], capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    measured = result["shapes"]["upsampler"]["measured"]
    assert set(measured) == {f"{p}, n_samples {n}" for p in ("fp32", "bf16", "int8") for n in (1, 4)}
    for name, figures in measured.items():
        assert ("plain" in figures) == ("int8" not in name) and "packed" in figures
        for path in figures.keys() & {"native", "packed", "plain"}:
            assert 0 < figures[path]["tokens_per_second"] <= figures[path]["tokens_per_second_best"]
            assert figures[path]["bound_tokens_per_second"] > 0
    assert result["config"]["quick"] and result["machine"]["cpu"]
    assert result["config"]["read_by"] == ("reading.cpp" if loader.library() is not None else "torch.sum")


def test_the_sampling_benchmark_names_a_typo():
    done = programs.run(ROOT, str(ROOT / "benchmarks" / "sampling.py"), "--shapes=smal_prior")
    assert done.returncode == 2 and done.stderr.startswith("error: --shapes: 'smal_prior' is not one of small_prior")


def test_a_whole_song_is_timed_level_by_level():
    program = [sys.executable, str(ROOT / "benchmarks" / "whole_song.py"), "--quick", "--device=cpu", "--profiled=2"]
    for windows in ([], ["--windows=1"]):
        command = [*program, "--seconds=.4", *windows]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert list(result["levels"]) == ["2", "1", "0"]
        codes = [result["levels"][level]["codes"] for level in "012"]
        assert codes == [137 * 16, 137 * 4, 137]  # 0.4 s of 44.1 kHz in whole codes of the top
        for level in result["levels"].values():
            assert (level["codes_written"] == level["codes"]) == (not windows or level["codes"] <= 256)
            assert level["profile"]["kernels_per_step"] > 0 and level["profile"]["largest"]
        total = sum(level["seconds_for_all"] for level in result["levels"].values()) + result["decoding_seconds"]
        assert abs(result["seconds"] - total) < 0.01 and result["within_aim"] == (total <= 300)


def test_a_whole_song_of_an_unknown_model():
    done = programs.run(ROOT, str(ROOT / "benchmarks" / "whole_song.py"), "--model=5b_lyric")
    assert done.returncode == 2 and "did you mean '5b_lyrics'" in done.stderr
