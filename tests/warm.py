"""Processes of Python that have read torch and the project already: what tests start by the hundred.

``python -m tests.warm DESCRIPTOR`` reads all modules once and then, for each request that comes through the socket,
forks a process that becomes the program asked for: with memory, a folder, an environment, standard streams, signals and
an end of its own, as one started afresh; only the seconds in which Python reads torch are behind it. Chance begins anew
too, or two processes that draw without a seed would seem to be the same.

What it shares with its siblings is what was settled when Python began: the seed of hashes, and variables of the
environment that are looked at while modules are read. Tests of such things start Python afresh
(``programs.run(…, fresh=True)``), and so does everything under ``mpiexec``; ``SONGBLOOM_TESTS_FRESH=1`` in the
environment starts all so.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
MODULES = ("train", "sample", "align", "evaluate", "tensorboardX")
LARGEST_REQUEST = 1 << 17
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # before any test changes it


def run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python words…`` to its end; words are a program's path, or ``-m`` and a module, and arguments.

    Raises:
        subprocess.TimeoutExpired: it ran for so many seconds, and was killed.
    """
    request = json.dumps([list(words), str(folder), dict(environment)]).encode()
    assert len(request) < LARGEST_REQUEST
    answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with answers, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with Path(os.devnull).open() as nothing, theirs:
            socket.send_fds(_server(), [request], [file.fileno() for file in (nothing, out, err, theirs)])
        pid = int(answers.recv(100))
        answers.settimeout(timeout)
        try:
            status = int(answers.recv(100))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(words), timeout) from None
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read())
    return subprocess.CompletedProcess(list(words), status, *said)


@functools.cache
def _server() -> socket.socket:
    """The way to this process's own server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=ENVIRONMENT)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> list[str]:
    """Fork a process for every request; returns, in that process, the words of its program."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
        with contextlib.suppress(ChildProcessError):  # the keepers of programs that have ended
            while os.waitpid(-1, os.WNOHANG if message else 0)[0]:
                pass
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _begin(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _begin(request: tuple[list[str], str, dict[str, str]], descriptors: Sequence[int]) -> list[str]:
    """In a keeper, who waits for the program and tells its status: fork the program, and return in it."""
    *streams, answers = descriptors
    pid = os.fork()
    if pid:
        os.write(answers, str(pid).encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(answers, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.close(answers)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    words, folder, environment = request
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.default_generator.seed()  # Python's own has begun anew
    np.random.seed()  # noqa: NPY002 - what a program must not draw from
    return words


def main() -> None:
    """Serve; where a program begins, become it."""
    words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(Path.cwd())
        sys.modules.pop(words[1], None)  # it begins anew
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(words), str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
