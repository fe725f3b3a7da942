"""Real ranks under mpiexec, torchrun and plain python: they find each other, and they end together."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from songbloom import distributed
from songbloom.errors import UserError
from songbloom.lifeline import Lifeline, own_addresses

BIN = Path(sys.executable).parent
PROGRAM = """
import json, os, signal, sys
import torch
from songbloom import distributed
from songbloom.errors import UserError

def main():
    what, who = sys.argv[1], int(sys.argv[2])
    world = distributed.world()
    total = distributed.all_reduce_(torch.tensor([float(world.rank + 1)]))
    found = distributed.gather_objects((world.rank, world.local_rank))
    flag = distributed.any_rank(world.rank == world.size - 1)
    first = distributed.broadcast_object(f"from {world.rank}")
    distributed.say(json.dumps([world.size, total.item(), found, flag, first]))
    if what == "late" and world.rank == who:
        import time
        time.sleep(7)
    if what == "late":
        heard = f"heard {distributed.gather_objects(world.rank)} {distributed.broadcast_object('it')}\\n"
        print(heard, end="", flush=True)  # at once: the launcher may put another rank's words between two pieces
        return 0
    if what == "everybody":
        raise UserError("a mistake of everybody: mend it")
    if what == "fork" and world.rank == who:
        worker = os.fork()
        if worker == 0:  # a data worker that outlives its parent, and all others
            import time
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            time.sleep(20)  # longer than the others may need; mpiexec waits for it
            os._exit(0)
        with open(sys.argv[0] + ".worker", "w") as file:
            file.write(str(worker))
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == who:
        if what == "mistake":
            raise UserError("a mistake of one: mend it")
        if what == "exception":
            raise ValueError("this is the first error")
        if what == "pipe":
            raise BrokenPipeError("of a worker")
        if what in ("SIGTERM", "SIGKILL"):
            os.kill(os.getpid(), getattr(signal, what))
        if what == "exit":
            sys.exit(7)
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "return":
            return 5
    if what != "peace":
        distributed.all_reduce_(torch.zeros(1))  # the others wait here for ever
    return 0

if sys.argv[1] == "late":
    from datetime import timedelta
    join = distributed.dist.init_process_group
    shorter = {"timeout": timedelta(seconds=4)}
    distributed.dist.init_process_group = lambda *words, **settings: join(*words, **settings | shorter)
distributed.run(main, interrupted="interrupted; so what")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def launch(
    launcher: list[str], program: Path, what: str, who: int = 0
) -> tuple[subprocess.CompletedProcess[str], float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    done = subprocess.run(
        [*launcher, str(program), what, str(who)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    return done, time.monotonic() - begun


def mpiexec(ranks: int) -> list[str]:
    return [str(BIN / "mpiexec"), "-n", str(ranks), sys.executable]


LAUNCHERS = {
    "mpiexec": mpiexec(3),
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "3"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_find_each_other(launcher: str, program: Path) -> None:
    done, _ = launch(LAUNCHERS[launcher], program, "peace")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [json.loads(line) for line in lines] == [[3, 6.0, [[0, 0], [1, 1], [2, 2]], True, "from 0"]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_objects_are_waited_for_longer_than_tensors(launcher: str, program: Path) -> None:
    """As a download is on rank 0, or a look through all songs."""
    done, _ = launch(LAUNCHERS[launcher], program, "late")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heard [0, 1, 2] it") == 3


def test_a_single_process_needs_no_launcher(program: Path) -> None:
    done, _ = launch([sys.executable], program, "peace")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 1.0, [[0, 0]], True, "from 0"]


def test_a_reader_who_has_read_enough_is_no_error(program: Path) -> None:
    """As of ``| head``; a worker's pipe that breaks is one."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(program), "peace", "0"]
    with os.fdopen(writing, "w") as nowhere:
        done = subprocess.run(words, stdout=nowhere, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (141, "")
    done, _ = launch([sys.executable], program, "pipe")
    assert done.returncode == 1 and "BrokenPipeError: of a worker" in done.stderr


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_processes_of_another_mpi_do_not_work_alone(
    rank: int, lines: int, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Open MPI's mpiexec tells its processes, which this Python's MPI takes for one process each."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    done, _ = launch([sys.executable, "-W", "ignore"], program, "peace")
    assert (done.returncode, done.stdout) == (2, "")
    told = [line for line in done.stderr.splitlines() if "mpiexec started 2 processes" in line]
    assert len(told) == lines and "Traceback" not in done.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_everybodys_mistake_is_one_line_and_status_2(ranks: int, program: Path) -> None:
    done, _ = launch(mpiexec(ranks), program, "everybody")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: a mistake of everybody: mend it"


@pytest.mark.parametrize("who", [0, 2])
def test_the_mistake_of_one_rank_ends_all(who: int, program: Path) -> None:
    done, _ = launch(mpiexec(3), program, "mistake", who)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: a mistake of one: mend it"


@pytest.mark.parametrize("who", [0, 2])
def test_an_exception_is_printed_once(who: int, program: Path) -> None:
    done, _ = launch(mpiexec(3), program, "exception", who)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.startswith(f"rank {who} of 3: Traceback")
    assert "ValueError: this is the first error" in done.stderr


# (launcher, how it dies, which rank): each value of each at least once, not every combination
DEATHS = [
    ("mpiexec", "SIGTERM", 2),
    ("mpiexec", "SIGKILL", 0),
    ("mpiexec", "SIGKILL", 2),
    ("torchrun", "SIGTERM", 0),
    ("torchrun", "fork", 2),
    ("mpiexec", "fork", 2),
]


@pytest.mark.parametrize(("launcher", "what", "who"), DEATHS)
def test_a_killed_rank_ends_all(launcher: str, what: str, who: int, program: Path) -> None:
    done, seconds = launch(LAUNCHERS[launcher], program, what, who)
    if what == "fork":
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(program.with_name("program.py.worker").read_text()), signal.SIGKILL)
    assert done.returncode not in (0, None)
    # Whoever is first tells it: rank 0, or the launcher, which may have killed rank 0 before it could.
    ours = f"error: rank {who} " in done.stderr and "ended without a word" in done.stderr
    assert ours or "BAD TERMINATION" in done.stdout or "exitcode: -" in done.stderr, done.stderr
    assert seconds < 300, "something else than the lifeline ended it"


@pytest.mark.parametrize(
    ("what", "status", "said"), [("exit", 7, ""), ("return", 5, ""), ("interrupt", 130, "interrupted; so what\n")]
)
def test_an_exit_status_is_kept(what: str, status: int, said: str, program: Path) -> None:
    done, _ = launch(mpiexec(2), program, what, 1)
    assert (done.returncode, done.stderr) == (status, said)


TWO_HOSTS = """
set -eu
a=$1; b=$2; shift 2
work=$(mktemp -d)
trap 'ip netns del $a 2>/dev/null || true; ip netns del $b 2>/dev/null || true; rm -rf "$work"' EXIT
ip netns add $a; ip netns add $b
ip link add eth0 netns $a type veth peer name eth0 netns $b
ip -n $a addr add 10.77.0.1/24 dev eth0; ip -n $b addr add 10.77.0.2/24 dev eth0
for n in $a $b; do ip -n $n link set lo up; ip -n $n link set eth0 up; done
cat > "$work/enter" <<'EOS'
#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
host=$1; shift
case $host in 10.77.0.1) n=$HOST_A;; *) n=$HOST_B;; esac
exec ip netns exec "$n" bash -c "$*"
EOS
chmod +x "$work/enter"
export HOST_A=$a HOST_B=$b UCX_NET_DEVICES=eth0 UCX_TLS=tcp,self,sm UCX_LOG_LEVEL=error FI_TCP_IFACE=eth0
timeout 100 ip netns exec $a "$MPIEXEC" -launcher ssh -launcher-exec "$work/enter" -localhost nowhere \\
  -hosts 10.77.0.1:1,10.77.0.2:1 -iface eth0 -n 2 "$@"
"""


def network_namespaces() -> bool:
    """Whether this system lets us make hosts of our own."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"sbprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


@pytest.mark.slow
@pytest.mark.skipif(not network_namespaces(), reason="needs root and iproute2 to make two hosts")
@pytest.mark.parametrize(("what", "status"), [("peace", 0), ("mistake", 2)])
def test_two_hosts(what: str, status: int, program: Path) -> None:
    names = [f"sb{os.getpid()}a", f"sb{os.getpid()}b"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPIEXEC": str(BIN / "mpiexec")}
    done = subprocess.run(
        ["bash", "-c", TWO_HOSTS, "two_hosts", *names, sys.executable, str(program), what, "1"],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert '[2, 3.0, [[0, 0], [1, 0]], true, "from 0"]' in done.stdout or what != "peace"
    assert ("error: a mistake of one" in done.stderr) == (what == "mistake")


def test_one_process_speaks_with_itself() -> None:
    assert distributed.world().size == 1
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.gather_objects("x") == ["x"]


def test_a_float_maximum_is_refused() -> None:
    import torch

    with pytest.raises(TypeError, match="NaN"):
        distributed.all_reduce_max_(torch.zeros(1))


def test_a_lifeline_answers_only_to_its_secret() -> None:
    hub = Lifeline(0, 2)
    offers, secret = hub.listen()
    assert Lifeline(1, 2).reaches(offers[0], secret)
    assert not Lifeline(1, 2).reaches(offers[0], "another run")
    assert own_addresses()[0][1].startswith("127.")


def test_hydra_is_told_that_a_process_needs_it_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, hydra = socket.socketpair()
    with ours, hydra:
        monkeypatch.setenv("PMI_FD", str(ours.fileno()))
        hydra.sendall(b"cmd=finalize_ack\n")
        assert distributed._finish_with_hydra()
        assert hydra.recv(100) == b"cmd=finalize\n"
        hydra.sendall(b"cmd=who_are_you\n")
        assert not distributed._finish_with_hydra()
        hydra.close()
        assert not distributed._finish_with_hydra()
    monkeypatch.delenv("PMI_FD")
    assert not distributed._finish_with_hydra()


def linked(hub: Lifeline) -> Lifeline:
    """Rank 1 on a lifeline to ``hub``, in this process; neither end ends the process."""
    offers, secret = hub.listen()
    other = Lifeline(1, 2)
    hub.on_end = other.on_end = lambda status: None
    other.connect(offers[0], secret)
    return other


def test_the_first_error_is_told_before_a_later_one_may_end_rank_0(capsys: pytest.CaptureFixture[str]) -> None:
    """A rank's error is being told when rank 0 fails too: rank 0 must not go before all have heard."""
    hub = Lifeline(0, 2)
    other = linked(hub)
    assert other.fail(5, "error: the first") == 5
    assert hub.fail(2, "error: a later one") == 5
    assert hub.settled and other.settled and other.whole
    assert capsys.readouterr().err == "error: the first\n"


def test_rank_0_knows_who_has_left() -> None:
    hub = Lifeline(0, 2)
    other = linked(hub)
    other.fail(2, "")
    assert not hub.everybody_left(0.0)
    other._sockets[0].shutdown(socket.SHUT_RDWR)  # what the end of a process does
    assert hub.everybody_left(10.0)


def test_the_end_of_rank_0_is_told_before_any_other_rank_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """A launcher kills all that are left when one has gone, so the rank that tells it goes first."""
    hub, ended, both = Lifeline(0, 3), [], threading.Barrier(3)
    offers, secret = hub.listen()
    hub.on_end = lambda status: None
    others = {rank: Lifeline(rank, 3) for rank in (1, 2)}
    for rank, other in others.items():
        other.on_end = lambda status, rank=rank: (ended.append((rank, capsys.readouterr().err)), both.wait(30))
        other.connect(offers[0], secret)
    hub._status = 1  # rank 0 is gone, and tells nothing any more
    for rank in (2, 1):
        hub._sockets[rank].shutdown(socket.SHUT_RDWR)
    both.wait(30)
    line = "error: rank 0 ended without a word: it was killed, or ran out of memory\n"
    assert ended == [(1, line), (2, "")]


def test_an_unknown_device_is_named() -> None:
    from songbloom.errors import UserError

    with pytest.raises(UserError, match="--device=quantum"):
        distributed.start("quantum")


def test_a_barrier_holds_the_process_and_not_only_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of a GPU's numbers is waited for by the GPU alone; and who waits may wait for a download."""
    summed = []
    monkeypatch.setattr(distributed, "_world", distributed.World(0, 2, 0, 2, torch.device("meta")))
    monkeypatch.setattr(distributed, "_patient", "the patient group")
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group=None: summed.append((tensor.device.type, group)))
    distributed.barrier()
    assert summed == [("cpu", "the patient group")]


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        ([("a", "1"), ("a", "2"), ("b", "1")], ""),
        ([("a", "1"), ("a", "2"), ("a", "1")], "2 ranks share a GPU of a.*start at most 2 there"),
    ],
)
def test_ranks_that_share_a_gpu_are_refused(
    devices: list[tuple[str, str]], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = distributed.World(0, 3, 0, 3, torch.device("cuda", 0))
    asked: list[object] = []
    monkeypatch.setattr(distributed, "_world", place)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(distributed, "gather_objects", lambda value: asked.append(value) or devices)
    with pytest.raises(UserError, match=line) if line else contextlib.nullcontext():
        distributed.require_own_devices()
    assert asked == [(socket.gethostname(), "1")]
    monkeypatch.setattr(distributed, "_world", distributed.World(0, 3))
    distributed.require_own_devices()  # on CPUs nobody is asked
    assert len(asked) == 1
