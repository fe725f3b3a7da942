"""Does sampling survive being killed? ``python benchmarks/kills.py [--kills=50] [--ranks=1,2,4] [--items=4] …``

A small model with random weights is sampled undisturbed, by one process and by each number of ranks. Then the same
command is started, killed (SIGKILL) at a random moment and started again with another number of ranks, until it is
done; and all that from the beginning, until so many kills have been. Codes of every level and bytes of every sound are
compared with those of the one undisturbed process.

What takes longest is reading the modules, seconds for a run of one. So ranks are by default forked from a process that
has read them, and find each other as those of ``torchrun`` do. ``--launch=command`` starts ``python sample.py``, and
``mpiexec -n N python sample.py``, as a person does.

Prints one JSON object: kills, how many of them fell between two windows of a level (at least one window was kept, and
not all), runs that were brought to their end, windows that were taken up from a journal, and differences. The exit
status is 1 when there is any difference, and 2 when it cannot be measured.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import torch

import sample as sample_program
from hparams import setup_hparams
from make_models import MODELS, make_prior, make_vqvae, save
from songbloom import distributed
from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.sampling.journal import count_records

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Knobs(
    group(
        "benchmark",
        "what to do",
        kills=Knob(50, "kills, all runs together", minimum=1),
        items=Knob(4, "items of a run", minimum=1),
        ranks=Knob((1,), "numbers of processes, one drawn for every start", kind="ints", minimum=1),
        launch=Knob("fork", "how they are started: fork, or command (mpiexec where they are several)"),
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
        seconds: that undisturbed runs took, by their number of ranks.
        starts: of a number of ranks, how many there were that were to be killed.
    """

    kills: int = 0
    between: int = 0
    runs: int = 0
    taken_up: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)


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


def start(folder: Path, name: str, arguments: Sequence[str], ranks: int) -> Started:
    """Start ``sample.py`` in ``folder``, in a process group of its own."""
    launch = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    command = [*launch, sys.executable, str(ROOT / "sample.py"), "--model=tiny", f"--name={name}", *arguments]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    log = (folder / f"{name}.log").open("wb")
    with log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


class Forked:
    """A child of this process, as :class:`subprocess.Popen` would have it."""

    def __init__(self, pid: int):
        self.pid: int = pid
        self.status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or :class:`subprocess.TimeoutExpired`."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.status is None:
            pid, status = os.waitpid(self.pid, 0 if until is None else os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("sample.py", timeout or 0.0)
            else:
                time.sleep(0.005)
        return self.status


def fork(folder: Path, name: str, arguments: Sequence[str], ranks: int) -> Started:
    """Run ``sample.py`` in children of this process, which has read its modules already.

    The child that is given back starts the ranks, each a process of its own, and waits for them.
    """
    port = _free_port()
    pid = os.fork()
    if pid:
        return Forked(pid)
    os.setsid()
    os.chdir(folder)
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["sample.py", "--model=tiny", f"--name={name}", *arguments]
    distributed._world = None  # this process is a rank of another run
    if ranks == 1:
        _sample()
    here = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in here.items()}
    children = []
    for rank in range(ranks):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if not (child := os.fork()):
            _sample()
        children.append(child)
    os._exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


def _sample() -> NoReturn:
    try:
        distributed.run(sample_program.main)
    except SystemExit as ending:
        os._exit(int(ending.code or 0))
    os._exit(9)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def kill(process: Started) -> None:
    """SIGKILL to all processes of a start, at once."""
    for child in [*_descendants(process.pid), process.pid]:  # mpiexec gives every rank a process group of its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # ranks that were forked meanwhile are of the start's own group
        os.killpg(process.pid, signal.SIGKILL)
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
    report, chance, numbers = Report(), random.Random(seed), sorted({1, *ranks})
    for number in numbers:
        name = f"undisturbed_{number}"
        began = time.monotonic()
        finish(start(folder, name, arguments, number), folder / f"{name}.log")
        report.seconds[number] = round(time.monotonic() - began, 3)
        report.differences += compare(folder / name, folder / "undisturbed_1")
    while report.kills < kills:
        run = folder / "tormented"
        shutil.rmtree(run, ignore_errors=True)
        left = kept(run)
        while True:
            report.taken_up += left
            number = chance.choice(list(ranks))
            process = start(folder, run.name, arguments, number)
            try:
                # No kill when there have been enough: the last run comes to its end too.
                wait = chance.uniform(0, 1.2 * report.seconds[number]) if report.kills < kills else None
                report.starts[number] = report.starts.get(number, 0) + (wait is not None)
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
        report.differences += compare(run, folder / "undisturbed_1")
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
    launches = {"fork": fork, "command": start}
    if options.launch not in launches:
        raise UserError(f"--launch={options.launch}: it is fork or command")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "logs")
        if options.launch == "fork":
            with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):  # what is read once, once
                sys.argv = ["sample.py", "--model=tiny", "--name=first", *arguments, "--sample_length_in_seconds=.2"]
                sample_program.main()
        launch = launches[options.launch]
        report = torment(Path(folder), arguments, options.kills, options.ranks, options.seed, launch)
    told = {key: value for key, value in options.items() if key != "help"}
    print(json.dumps({"config": told, **asdict(report)}, indent=1))
    return 1 if report.differences else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
