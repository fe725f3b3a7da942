"""Ranks: who takes part, where they are, how they speak, and how they all end together.

Three ways to start are understood: ``mpiexec -n N python …`` (any MPI with mpi4py, on one host or many), the
environment that ``torchrun`` sets, and plain ``python``. MPI is used to find the others (ranks, local ranks, the
address of rank 0); tensors then travel through ``torch.distributed``: NCCL for CUDA tensors, Gloo for the others.

``mpiexec python x.py`` alone hangs for ever when one rank raises, because the others wait inside a collective
operation. Here each rank holds a *lifeline* (see :mod:`songbloom.lifeline`) to rank 0, so that an exception, a SIGTERM
or a SIGKILL on any rank ends all of them within seconds, with the first error printed once.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from songbloom.errors import UserError
from songbloom.lifeline import Lifeline, interface_of

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # of a collective on tensors, which all ranks reach at about the same time
# Of a collective on objects: rank 0 may read a hundred thousand songs or download ten gigabytes while the others wait.
# Nobody waits for a dead rank, whose end ends all.
PATIENCE = timedelta(days=30)
_CONNECTION_WORDS = ("connection closed", "connection reset", "broken pipe", "socket", "gloo", "nccl", "tcpstore")


@dataclass(frozen=True)
class World:
    """Where this process stands among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this host
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that prints and writes."""
        return self.rank == 0


_world: World | None = None
_lifeline: Lifeline | None = None
_mpi: Any = None  # mpi4py.MPI once it is in use
_patient: dist.ProcessGroup | None = None  # of all ranks, for objects; None: the default group


def world() -> World:
    """This process's place; a single process on the CPU until :func:`start` has been called."""
    return _world or World()


def start(device: str | None = None) -> World:
    """Join the run that this process was launched in; a second call only changes the device.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; by default CUDA where there is any, else the CPU (MPS
            only when asked for).

    Raises:
        UserError: the device is not there, or MPS is asked for with several ranks.
    """
    global _world, _patient
    if _world is None:
        rank, size, local_rank, local_size = _join()
        if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
        if size > 1:
            _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        _world = World(rank, size, local_rank, local_size)
        _world = _with_device(_world, None)
    if device:
        _world = _with_device(_world, device)
    return _world


def _with_device(place: World, name: str | None) -> World:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device={name}: no such kind of device; use cpu, cuda or mps") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        index = place.local_rank % max(count, 1) if chosen.index is None else chosen.index
        if index >= count:
            raise UserError(f"--device={name}: this machine shows {count} CUDA devices; use --device=cpu")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device=mps: this machine has no Metal device; use --device=cpu")
        if place.size > 1:
            raise UserError("--device=mps: Metal works in a single process only; start without mpiexec")
    elif chosen.type != "cpu":
        raise UserError(f"--device={name}: not supported; use cpu, cuda or mps")
    return World(place.rank, place.size, place.local_rank, place.local_size, chosen)


# ---------------------------------------------------------------------------------------------------- joining


def _join() -> tuple[int, int, int, int]:
    """(rank, size, local rank, local size), with the process group and the lifeline up when there are several ranks."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        return _join_torchrun()
    if _launched_by_mpi():
        return _join_mpi()
    return 0, 1, 0, 1


def _launched_by_mpi() -> bool:
    return _announced_size() > 1 or "PMIX_RANK" in os.environ


def _announced_size() -> int:
    """How many processes the launcher says that it has started, whichever MPI it belongs to; 1 if it says nothing."""
    names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS")
    told = [os.environ.get(name, "") for name in names]
    return max((int(size) for size in told if size.isdecimal()), default=1)


def _refuse_foreign_launcher() -> None:
    """Processes that an mpiexec of another MPI started cannot see each other: each would train alone, into one folder.

    Raises:
        UserError: several processes were started, and this is the first of them; the others end in silence.
    """
    started = _announced_size()
    if started <= 1:
        return
    ranks = [os.environ.get(name) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")]
    if any(rank not in (None, "", "0") for rank in ranks):
        raise SystemExit(2)
    raise UserError(
        f"mpiexec started {started} processes, but it belongs to another MPI than this Python's mpi4py, so they cannot "
        f"see each other: use {Path(sys.executable).parent / 'mpiexec'}"
    )


def _join_mpi() -> tuple[int, int, int, int]:
    global _mpi, _lifeline
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            "started by mpiexec, but mpi4py cannot be imported: pip install mpi4py mpich, "
            f"and use the mpiexec of the same environment ({error})"
        ) from error
    communicator = MPI.COMM_WORLD
    rank, size = communicator.Get_rank(), communicator.Get_size()
    if size == 1:
        _refuse_foreign_launcher()
        return 0, 1, 0, 1
    _mpi = MPI
    local = communicator.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank, local_size = local.Get_rank(), local.Get_size()

    _lifeline = Lifeline(rank, size)
    _lifeline.on_end = _end
    # Rank 0 offers every address that it has; each rank tries which of them lead to it, and the first that works for
    # all is used. Host names are not trusted: on clusters and in containers they often resolve to a loopback address.
    offers, secret = communicator.bcast(_lifeline.listen() if rank == 0 else None)
    works = [rank == 0 or _lifeline.reaches(offer, secret) for offer in offers]
    communicator.Barrier()  # unlike the collectives on objects, it lets rank 0's other threads answer meanwhile
    common = [all(column) for column in zip(*communicator.allgather(works), strict=True)]
    if not any(common):
        if rank:
            _lifeline.settled = True
            raise SystemExit(2)
        tried = ", ".join(f"{host}:{port}" for host, port in offers)
        raise UserError(f"some ranks cannot reach rank 0 at any of {tried}; is there a firewall between the hosts?")
    host, port = offers[common.index(True)]
    if rank:
        _lifeline.connect((host, port), secret)
    communicator.Barrier()
    listener = None
    if rank == 0:
        listener = socket.create_server(("", 0))
    store_port = communicator.bcast(listener.getsockname()[1] if listener else None)
    _choose_interface(communicator.bcast(host), rank)
    _make_group(host, store_port, rank, size, listener)
    return rank, size, local_rank, local_size


def _join_torchrun() -> tuple[int, int, int, int]:
    global _lifeline
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1, 0, 1
    host = os.environ["MASTER_ADDR"]
    dist.init_process_group(_backend(), rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    _lifeline = Lifeline(rank, size)
    _lifeline.on_end = _end
    offers, secret = _broadcast_plain(_lifeline.listen() if rank == 0 else None)
    if rank:
        port = offers[0][1]
        candidates = [(host, port), *offers]
        reachable = [offer for offer in candidates if _lifeline.reaches(offer, secret)]
        if not reachable:
            raise UserError(f"rank {rank} cannot reach rank 0 at {host}:{port}; is a firewall between the hosts?")
        _lifeline.connect(reachable[0], secret)
    dist.barrier()
    return rank, size, local_rank, local_size


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _choose_interface(host: str, rank: int) -> None:
    """Let Gloo and NCCL use the interface on which rank 0 is reached, unless the person has chosen one."""
    name = interface_of(host if rank == 0 else _lifeline.local_address if _lifeline else "")
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if not host.startswith("127."):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _make_group(host: str, port: int, rank: int, size: int, listener: socket.socket | None) -> None:
    # The listening socket is handed over open, so no other program can take the port in between.
    store = dist.TCPStore(
        host,
        port,
        size,
        is_master=rank == 0,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener else None,
    )
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)


# ---------------------------------------------------------------------------------------------------- speaking


def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum ``tensor`` over ranks, in place; returns it."""
    if world().size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max_(tensor: torch.Tensor) -> torch.Tensor:
    """Maximum over ranks, in place; returns it. For integers only: a floating-point maximum swallows NaN."""
    if tensor.is_floating_point():
        raise TypeError("reduce an integer flag: a floating-point maximum over ranks swallows NaN")
    if world().size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def _broadcast_plain(value: Any, source: int = 0) -> Any:
    box = [value]
    dist.broadcast_object_list(box, source, group=_patient)
    return box[0]


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The object that rank ``source`` gave (pickled between the ranks of one run, never from a file); the others wait
    for it as long as it takes."""
    return _broadcast_plain(value, source) if world().size > 1 else value


def gather_objects(value: Any) -> list[Any]:
    """What every rank gave, in the order of ranks, on every rank; all wait for the last as long as it takes."""
    if world().size == 1:
        return [value]
    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, value, group=_patient)
    return found


def require_own_devices() -> None:
    """Refuse ranks that share a GPU: gradients travel by NCCL, which has one rank a device.

    Raises:
        UserError: two ranks do, on all ranks alike.
    """
    place = world()
    if place.size == 1 or place.device.type != "cuda":
        return
    mine = socket.gethostname(), str(torch.cuda.get_device_properties(place.device).uuid)
    ranks = Counter(gather_objects(mine))
    (host, _), most = max(ranks.items(), key=lambda each: each[1])
    if most > 1:
        there = sum(name == host for name, _ in ranks)
        raise UserError(
            f"{most} ranks share a GPU of {host}, and training needs one for each: start at most {there} there, "
            "or give --device=cpu"
        )


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank."""
    if world().size == 1:
        return bool(flag)
    return bool(all_reduce_max_(torch.tensor(int(flag), dtype=torch.int32, device=world().device)).item())


def barrier() -> None:
    """Wait until every rank is here, as long as it takes."""
    if world().size > 1:
        # Of a sum by NCCL only the device would wait: this process would go on before the others are here.
        dist.all_reduce(torch.zeros(()), group=_patient)


def say(*words: object) -> None:
    """Print on rank 0 only, at once."""
    if world().is_main:
        print(*words, flush=True)


# ---------------------------------------------------------------------------------------------------- ending


def run(main: Callable[[], int | None], *, interrupted: str = "interrupted") -> NoReturn:
    """Run a program on all ranks and end all of them together.

    The exit status is what ``main`` returns (None counts as 0); 2 with one printed line after a
    :class:`~songbloom.errors.UserError`; 1 with a traceback after any other exception; 130 after Ctrl-C; 141, in
    silence, when nobody reads any more what one process prints (``| head``). Whatever ends one rank ends all, and the
    first error is printed once.

    Args:
        main: the program.
        interrupted: the line that Ctrl-C is answered with.
    """
    status = 0
    try:
        start()
        status = main() or 0
        if status:
            status = _fail(status, "")
        elif world().size > 1:
            barrier()
            dist.destroy_process_group()
    except UserError as error:
        status = _fail(2, f"error: {error}")
    except KeyboardInterrupt:
        status = _fail(130, interrupted)
    except SystemExit as error:
        code = error.code
        if code is None or isinstance(code, int):
            status = code or 0
        else:
            print(code, file=sys.stderr)
            status = 1
        if status:
            status = _fail(status, "")
    except BaseException as error:  # the end of the program: whatever it was, all ranks must hear of it
        if _unread(error):
            _end(141)  # as a program that the system ends for it
        if world().size > 1 and any(word in str(error).lower() for word in _CONNECTION_WORDS):
            time.sleep(1.5)  # most likely another rank broke first: let its error be the one that is printed
        where = f"rank {world().rank} of {world().size}: " if world().size > 1 else ""
        status = _fail(1, where + traceback.format_exc().rstrip())
    if _lifeline is not None and status == 0:
        _lifeline.farewell()
    _end(status)


def _unread(error: BaseException) -> bool:
    """Whether what one process prints is not read any more; then what else it prints goes nowhere."""
    if not isinstance(error, BrokenPipeError) or world().size > 1 or not hasattr(select, "poll"):
        return False
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in asked.poll(0)):
        return False  # another pipe, such as one to a worker
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(status: int, text: str) -> int:
    """Tell everyone, and come back when rank 0 has printed the first error; the status to end with."""
    sys.stdout.flush()
    if _lifeline is not None:
        return _lifeline.fail(status, text)
    if text:
        print(text, file=sys.stderr, flush=True)
    return status


_ending = threading.Lock()  # the first thread that comes to the end takes the process with it


def _end(status: int) -> NoReturn:
    """End this process, from whichever thread, without waiting for one that hangs in a collective operation."""
    if not _ending.acquire(timeout=-1 if threading.current_thread() is not threading.main_thread() else 10.0):
        os._exit(status or 1)
    sys.stdout.flush()
    sys.stderr.flush()
    if status and _lifeline is not None and _mpi is not None:
        status = _leave_launcher(status, _lifeline)
        os._exit(status)
    if _mpi is not None and not _mpi.Is_finalized():
        _mpi.Finalize()
    if threading.current_thread() is threading.main_thread() and (status == 0 or world().size == 1):
        sys.exit(status)  # in peace, files, pools and loggers close in the ordinary way
    os._exit(status)


def _leave_launcher(status: int, lifeline: Lifeline) -> int:
    """Come to an end with an error so that ``mpiexec`` ends with ``status``; the status for this process to exit with.

    A launcher kills all others as soon as one process exits without having finished with MPI, or with an error, and
    what it returns is then a matter of luck: the status, or 9 of a process that it killed while it was exiting too. So
    all ranks but 0 take leave of it and exit with 0, and rank 0, which has printed the error, exits last, with the
    status. MPI's own way of taking leave waits for all ranks and lets no other thread run meanwhile, so it is used
    only where the launcher is not Hydra.
    """
    if not lifeline.settled:
        return status  # nobody else will say it
    quiet = _finish_with_hydra()
    if not quiet and lifeline.whole and not _mpi.Is_finalized():
        _mpi.Finalize()
    if lifeline.rank == 0:
        lifeline.everybody_left(2.0)
        return status
    return 0 if quiet else status


def _finish_with_hydra() -> bool:
    """Tell Hydra (the mpiexec of MPICH and its kin) that this process needs it no more; whether it has understood.

    It is the last message of PMI-1, the protocol on the descriptor that Hydra gave this process; MPICH itself sends it
    only from an exit handler of the C library, where ``os._exit`` does not pass.
    """
    descriptor = os.environ.get("PMI_FD", "")
    if not descriptor.isdecimal():
        return False
    try:
        os.write(int(descriptor), b"cmd=finalize\n")
        readable, _, _ = select.select([int(descriptor)], [], [], 1.0)
        return bool(readable) and b"finalize_ack" in os.read(int(descriptor), 4096)
    except (OSError, ValueError):
        return False
