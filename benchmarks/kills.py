"""Does sampling survive being killed? ``python benchmarks/kills.py [--kills=50] [--ranks=1] [--items=3] …``

A small model with random weights is sampled once undisturbed. Then the same command is started, killed (SIGKILL) at a
random moment and started again, until it is done; and all that from the beginning, until so many kills have been. Codes
of every level and bytes of every sound are compared with those of the undisturbed run.

Prints one JSON object: kills, how many of them fell between two windows of a level (at least one window was kept, and
not all), runs that were brought to their end, windows that were taken up from a journal, and differences. The exit
status is 1 when there is any difference.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from hparams import setup_hparams
from make_models import MODELS, make_prior, make_vqvae, save
from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.sampling.journal import count_records

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Knobs(
    group(
        "benchmark",
        "what to do",
        kills=Knob(50, "kills, all runs together", minimum=1),
        items=Knob(3, "items of a run", minimum=1),
        ranks=Knob((1,), "numbers of processes, one drawn for every start", kind="ints", minimum=1),
        max_batch_size=Knob(2, "items sampled together", minimum=1),
        seconds=Knob(0.6, "length of an item", minimum=0),
        seed=Knob(0, "of the moments"),
        help=Knob(False, "print this, and stop"),
    )
)


@dataclass
class Report:
    """What happened.

    Attributes:
        kills: processes that were killed.
        between: kills that left a level of which some windows were kept, and not all.
        runs: runs that came to their end.
        taken_up: windows of items that were kept when a killed run was started again.
        differences: files or levels that were not as in the undisturbed run, in words.
        seconds: that the undisturbed run took.
    """

    kills: int = 0
    between: int = 0
    runs: int = 0
    taken_up: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


def write_model(logs: Path, seed: int = 7) -> None:
    """Checkpoints of the model ``tiny`` with random weights, large enough that codes depend on what came before."""
    codec_set, *prior_sets = MODELS["tiny"]
    generator = torch.Generator().manual_seed(seed)

    def settings(name: str) -> dict[str, object]:
        return setup_hparams((codec_set, name), {"restore_vqvae": "", "restore_prior": ""})

    vqvae = make_vqvae(settings(codec_set))
    for name, buffer in vqvae.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    parts = {codec_set: vqvae} | {name: make_prior(settings(name), vqvae) for name in prior_sets}
    for name, part in parts.items():
        if name != codec_set:
            for parameter in part.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
        (logs / name).mkdir(parents=True)
        save(part, logs / name / "checkpoint_latest.pth.tar", "vqvae" if name == codec_set else "prior", settings(name))


class Started(Protocol):
    """A start of ``sample.py``; :class:`subprocess.Popen` is one."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or :class:`subprocess.TimeoutExpired` when it has not ended by then."""
        ...


def start(folder: Path, name: str, arguments: Sequence[str], ranks: int) -> subprocess.Popen[bytes]:
    """Start ``sample.py`` in ``folder``, in a process group of its own."""
    launch = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    command = [*launch, sys.executable, str(ROOT / "sample.py"), "--model=tiny", f"--name={name}", *arguments]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    log = (folder / f"{name}.log").open("wb")
    with log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill(process: Started) -> None:
    """SIGKILL to all processes of a start, at once."""
    for child in [*_descendants(process.pid), process.pid]:  # mpiexec gives every rank a process group of its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()


def _descendants(parent: int) -> list[int]:
    """The processes under one, as Linux tells."""
    found: list[int] = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def kept(run: Path) -> int:
    """Windows in the journals of a run."""
    return sum(count_records(path) for path in run.glob("journal/*/*.journal"))


def compare(run: Path, other: Path) -> list[str]:
    """In words, which codes and sounds of two runs differ."""
    found = []
    for level in sorted(path.name for path in other.glob("level_*")):
        if not (run / level).is_dir():
            found.append(f"{level} is missing")
            continue
        codes, expected = (
            torch.load(each / level / "data.pth.tar", weights_only=True, map_location="cpu")["zs"]
            for each in (run, other)
        )
        for number, (a, b) in enumerate(zip(codes, expected, strict=True)):
            if not torch.equal(a, b):
                found.append(f"{level}: codes of level {number} differ")
        for sound in sorted((other / level).glob("item_*.wav")):
            if sound.read_bytes() != (run / level / sound.name).read_bytes():
                found.append(f"{level}/{sound.name} differs")
    left = [path.name for path in run.iterdir() if path.name in ("journal", "preview") or ".partial" in path.name]
    return found + [f"{name} is left" for name in left]


def torment(
    folder: Path,
    arguments: Sequence[str],
    kills: int,
    ranks: Sequence[int] = (1,),
    seed: int = 0,
    start: Callable[[Path, str, Sequence[str], int], Started] = start,
) -> Report:
    """Kill runs of ``sample.py`` at random moments.

    Args:
        folder: with the model's checkpoints in ``logs``; runs are written into it.
        arguments: of the command, but for the model and the name.
        kills: how many.
        ranks: numbers of processes, one of which is drawn for every start.
        seed: of the moments.
        start: starts the command in a folder, with the name of the run, the arguments and the number of processes.

    Raises:
        UserError: a run that nobody killed failed.
    """
    report, chance = Report(), random.Random(seed)
    began = time.monotonic()
    finish(start(folder, "undisturbed", arguments, 1), folder / "undisturbed.log")
    report.seconds = time.monotonic() - began
    while report.kills < kills:
        run = folder / "tormented"
        shutil.rmtree(run, ignore_errors=True)
        left = kept(run)
        while True:
            report.taken_up += left
            process = start(folder, run.name, arguments, chance.choice(list(ranks)))
            try:
                # No kill when there have been enough: the last run comes to its end too.
                wait = chance.uniform(0, 1.2 * report.seconds) if report.kills < kills else None
                process.wait(wait)
            except subprocess.TimeoutExpired:
                kill(process)
                report.kills += 1
                left = kept(run)
                report.between += bool(left)
                continue
            finish(process, folder / f"{run.name}.log")
            break
        report.runs += 1
        report.differences += compare(run, folder / "undisturbed")
    return report


def finish(process: Started, log: Path) -> None:
    """Wait for a start that must come to its end.

    Raises:
        UserError: it failed; its last line is told.
    """
    if status := process.wait():
        lines = log.read_text(errors="replace").strip().splitlines()
        raise UserError(f"sample.py ended with status {status}: {lines[-1] if lines else 'no word'}")


def main() -> int:
    options = COMMAND.merge({}, "", COMMAND.parse(sys.argv[1:]))
    if options.help:
        print(COMMAND.help("usage: python benchmarks/kills.py [--key=value] …").rstrip())
        return 0
    arguments = [
        f"--n_samples={options['items']}",
        f"--sample_length_in_seconds={options.seconds}",
        f"--max_batch_size={options.max_batch_size}",
        "--hop_fraction=.125,.125",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "logs")
        report = torment(Path(folder), arguments, options.kills, options.ranks, options.seed)
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.differences else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
