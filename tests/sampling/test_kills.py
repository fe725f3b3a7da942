"""Sampling that is killed, whenever it may be, ends with the codes of sampling that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import programs
from tests.sampling import kills

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).parent / "mpiexec"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torment(folder: Path, count: int, seed: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.sampling.kills", str(folder), str(count), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(report: dict[str, object], count: int) -> None:
    assert report["differences"] == []
    assert report["kills"] == count and report["runs"] >= 1
    assert report["between"] >= count // 5 and report["taken_up"] >= count // 5  # they did fall into the work


def test_ten_kills(tmp_path: Path) -> None:
    check(torment(tmp_path, 10, seed=0), 10)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    check(torment(tmp_path, 50, seed=1), 50)


# --- processes and ranks ----------------------------------------------------------------------------------------------

SHORT = ("-m", "tests.sampling.short", "--model=tiny", *kills.ARGUMENTS)


def command(*arguments: str, ranks: int = 1) -> list[str]:
    launch = [str(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []
    return [*launch, sys.executable, *SHORT, *arguments]


def sample(folder: Path, *arguments: str, ranks: int = 1, **others: object) -> subprocess.CompletedProcess[str]:
    """Run the program with the short contexts of :mod:`tests.sampling.kills`, in ``folder``."""
    if not others:
        return programs.run(folder, *SHORT, *arguments, ranks=ranks)
    return subprocess.run(
        command(*arguments, ranks=ranks),
        cwd=folder,
        # Limits would cut bytecode short, for all who come.
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **others,
    )


def codes(run: Path, level: int = 0) -> list[torch.Tensor]:
    return torch.load(run / f"level_{level}" / "data.pth.tar", weights_only=True)["zs"]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("level_*/item_*"))}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in ``logs`` and an undisturbed run of three items."""
    folder = tmp_path_factory.mktemp("kills")
    kills.shorten()
    try:
        kills.write_model(folder / "logs")
    finally:
        kills.restore()
    done = sample(folder, "--name=whole")
    assert done.returncode == 0, done.stderr
    return folder


def killed_with_windows(folder: Path, name: str, windows: int, *arguments: str, ranks: int = 1) -> None:
    """Start the program and kill it when its journals hold so many windows."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command(f"--name={name}", *arguments, ranks=ranks),
            cwd=folder,
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + 200
    while process.poll() is None and kills.kept(folder / name) < windows and time.monotonic() < until:
        time.sleep(0.002)
    kills.kill(process)
    assert kills.kept(folder / name) >= windows, (folder / f"{name}.log").read_text()


def test_a_run_that_was_killed_on_some_ranks_goes_on_with_others(workplace: Path) -> None:
    killed_with_windows(workplace, "ranks", 5, ranks=2)
    killed_with_windows(workplace, "ranks", 12, ranks=1)
    done = sample(workplace, "--name=ranks", ranks=4)  # one of them has no item
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks: goes on at level" in done.stdout and done.stdout.count("listen:") == 1
    for level in (0, 1):
        assert all(
            torch.equal(a, b) for a, b in zip(*(codes(workplace / n, level) for n in ("ranks", "whole")), strict=True)
        )
    assert files(workplace / "ranks") == files(workplace / "whole")
    left = sorted(path.name for path in (workplace / "ranks").iterdir() if not path.name.startswith("tree"))
    assert left == sorted(path.name for path in (workplace / "whole").iterdir() if not path.name.startswith("tree"))


def test_a_run_that_was_killed_is_heard_refused_and_replaced(workplace: Path) -> None:
    killed_with_windows(workplace, "heard", 4)
    run = workplace / "heard"
    before = {path: path.read_bytes() for path in run.rglob("*.journal")}
    other = sample(workplace, "--name=heard", "--seed=1")
    assert other.returncode == 2 and "seed is 0 there, 1 here" in other.stderr
    done = sample(workplace, "--name=heard", "--preview")
    assert done.returncode == 0 and "listen: heard/preview/index.html" in done.stdout, done.stderr
    page = (run / "preview" / "index.html").read_text()
    sounds = sorted(path.name for path in (run / "preview").glob("*.wav"))
    assert sounds and all(f'src="{name}"' in page for name in sounds)
    level, item = (int(word) for word in sounds[0].removesuffix(".wav").split("_")[1::2])
    heard, whole = (
        (folder / name).read_bytes()[44:]
        for folder, name in [(run / "preview", sounds[0]), (workplace / "whole" / f"level_{level}", f"item_{item}.wav")]
    )
    assert 0 < len(heard) <= len(whole)
    inner = len(heard) * 3 // 4 // 2 * 2  # the end of what is there is decoded without what follows
    assert len(heard) == len(whole) or heard[: inner // 4] == whole[: inner // 4]
    assert {path: path.read_bytes() for path in run.rglob("*.journal")} == before
    assert sample(workplace, "--name=heard", "--seed=1", "--overwrite").returncode == 0
    assert not (run / "journal").exists() and not (run / "preview").exists()
    assert not torch.equal(codes(run)[0], codes(workplace / "whole")[0])


@pytest.mark.slow
def test_nothing_to_preview(workplace: Path) -> None:
    done = sample(workplace, "--name=whole", "--preview")
    assert done.returncode == 2 and "nothing to preview" in done.stderr
    done = sample(workplace, "--name=never", "--preview")
    assert done.returncode == 2 and "never: has no run.json" in done.stderr
    assert not (workplace / "never").exists()


@pytest.mark.slow
def test_previews_while_it_is_written(workplace: Path) -> None:
    """One after every window; the level that comes removes them."""
    process = subprocess.Popen(
        command("--name=previews", "--preview_minutes=0.0001"),
        cwd=workplace,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    seen = set()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            seen |= {path.name for path in (workplace / "previews" / "preview").iterdir()}
        time.sleep(0.002)
    assert process.returncode == 0
    assert {"index.html", "level_1_item_0.wav", "level_0_item_2.wav"} <= seen
    assert not (workplace / "previews" / "preview").exists()
    assert files(workplace / "previews") == files(workplace / "whole")


@pytest.mark.slow
def test_a_signal_asks_for_a_preview(workplace: Path) -> None:
    process = subprocess.Popen(
        command("--name=signal"),
        cwd=workplace,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    run, there = workplace / "signal", False
    while process.poll() is None:
        if not there and kills.kept(run):
            process.send_signal(signal.SIGUSR1)
        there = there or (run / "preview" / "index.html").is_file()
        time.sleep(0.002)
    assert process.returncode == 0 and there


@pytest.mark.slow
@pytest.mark.parametrize("largest", [200, 2_000, 9_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(workplace: Path, largest: int) -> None:
    """Files cannot grow beyond a limit: the record of a run, a sound, a file of codes in turn."""
    name = f"full_{largest}"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    done = sample(workplace, f"--name={name}", preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "cannot be written" in done.stderr
    again = sample(workplace, f"--name={name}")
    assert again.returncode == 0, again.stderr
    assert files(workplace / name) == files(workplace / "whole")
