"""A connection from every rank to rank 0, whose only job is to notice that somebody has gone.

When a process dies, however it dies, the system closes its sockets at once. So rank 0 sees within milliseconds that a
rank has ended, prints the first error, tells the others, and all end; and every rank sees the end of rank 0. No
polling, no timeout. Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Address = tuple[str, int]
_ANSWER_SECONDS = 3.0  # how long a rank waits for an address to answer
_FIRST_SECONDS = 1.0  # how long rank 1 has to tell the end of rank 0 before the others go


def own_addresses() -> list[tuple[str, str]]:
    """(interface name, IPv4 address) of this host, loopback first; names are empty where the system does not tell."""
    found: list[tuple[str, str]] = []
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(probe.fileno(), 0x8915 if sys.platform == "linux" else 0xC0206921, request)
                    found.append((name, socket.inet_ntoa(answer[20:24])))
    with contextlib.suppress(OSError):
        for *_, address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET):
            if str(address[0]) not in [known for _, known in found]:
                found.append(("", str(address[0])))
    if "127.0.0.1" not in [address for _, address in found]:
        found.append(("", "127.0.0.1"))
    return sorted(found, key=lambda pair: not pair[1].startswith("127."))


def interface_of(address: str) -> str:
    """The name of the interface that has ``address``, or an empty string."""
    return next((name for name, known in own_addresses() if known == address), "")


class Lifeline:
    """This rank's end of the lifeline; on rank 0, the hub that all others hold on to."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.on_end: Callable[[int], Any] = os._exit
        self.local_address = "127.0.0.1"
        self._secret = ""
        self._sockets: dict[int, socket.socket] = {}  # on rank 0: one a rank; elsewhere: only that to rank 0
        self._listener: socket.socket | None = None
        self._gone: set[int] = set()  # ranks that said goodbye (elsewhere than on rank 0: only this one)
        self._lock = threading.Lock()
        self._status: int | None = None  # set by the first error
        self._told = threading.Event()  # the main thread ends this process, not the watching one
        self._answered = threading.Event()  # rank 0 has said how all end; on rank 0: to every rank
        self._all_gone = threading.Event()
        self._held: set[int] = set()  # on rank 0: the ranks whose line is open
        self._released = threading.Condition(self._lock)
        self.settled = False  # rank 0 has told how all end, and will be the last to go
        self.whole = True  # no rank was killed
        os.register_at_fork(after_in_child=self._forget)  # a data worker must not keep its dead parent's line open

    def _forget(self) -> None:
        for line in [*self._sockets.values(), self._listener]:
            if line is not None:
                with contextlib.suppress(OSError):
                    os.close(line.fileno())
        self._sockets, self._listener = {}, None

    # ----------------------------------------------------------------------------------------- making contact

    def listen(self) -> tuple[list[Address], str]:
        """On rank 0: start listening; the addresses to offer and the secret that a rank must know."""
        self._secret = secrets.token_hex(16)
        self._listener = socket.create_server(("", 0), backlog=max(self.size, 16))
        port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="lifeline").start()
        return [(address, port) for _, address in own_addresses()], self._secret

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and listener.fileno() >= 0:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        """Hold one connection: answer a probe, or serve a rank until it goes."""
        reader = line.makefile("r", encoding="utf-8")
        hello = _read(reader)
        if hello is None or hello.get("secret") != self._secret:
            line.close()
            return
        _send(line, {"welcome": self._secret})
        rank = hello.get("rank")
        if rank is None:  # only asked whether this address leads here
            line.close()
            return
        _keep_alive(line)
        with self._lock:
            self._sockets[rank] = line
            self._held.add(rank)
        what = f"rank {rank} (process {hello.get('process')} on {hello.get('host')})"
        while True:
            message = _read(reader)
            if message is None:
                with self._released:
                    self._held.discard(rank)
                    self._released.notify_all()
                if rank not in self._gone and self._status is None:
                    text = f"error: {what} ended without a word: it was killed, or ran out of memory"
                    self._first_error(1, text, whole=False)
                return
            if "bye" in message:
                self._gone.add(rank)
                if len(self._gone) == self.size - 1:
                    self._all_gone.set()
            elif "fail" in message:
                self._first_error(message["fail"], message["text"])

    def reaches(self, address: Address, secret: str) -> bool:
        """Whether ``address`` leads from this host to rank 0 of this very run."""
        try:
            with socket.create_connection(address, timeout=_ANSWER_SECONDS) as line:
                _send(line, {"secret": secret})
                answer = _read(line.makefile("r", encoding="utf-8"))
        except OSError:
            return False
        return answer is not None and answer.get("welcome") == secret

    def connect(self, address: Address, secret: str) -> None:
        """Take hold of rank 0's lifeline."""
        line = socket.create_connection(address, timeout=30)
        line.settimeout(None)
        _keep_alive(line)
        self.local_address = line.getsockname()[0]
        _send(line, {"secret": secret, "rank": self.rank, "process": os.getpid(), "host": socket.gethostname()})
        reader = line.makefile("r", encoding="utf-8")
        if _read(reader) is None:
            raise OSError(f"rank 0 at {address[0]}:{address[1]} hung up")
        self._sockets[0] = line
        threading.Thread(target=self._watch, args=(reader,), daemon=True, name="lifeline").start()

    def _watch(self, reader: Any) -> None:
        """Elsewhere than on rank 0: wait for word from rank 0, or for its end."""
        message = _read(reader)
        if self._gone:  # this rank has said goodbye
            return
        self._status = 1 if message is None else int(message["end"])
        self.settled = message is not None
        self.whole = message is not None and bool(message["whole"])
        if message is None and self.rank == 1:  # one tells it for all
            print(
                "error: rank 0 ended without a word: it was killed, or ran out of memory", file=sys.stderr, flush=True
            )
        elif message is None:
            time.sleep(_FIRST_SECONDS)  # a launcher that sees another rank's end first would kill rank 1 before that
        self._answered.set()
        if not self._told.is_set():
            self.on_end(self._status)

    # ------------------------------------------------------------------------------------------------- ending

    def _first_error(self, status: int, text: str, *, whole: bool = True) -> None:
        """On rank 0: print the first error and let every rank end; later errors are consequences and stay silent."""
        with self._lock:
            first = self._status is None
            if first:
                self._status, self.whole = status, whole
        if not first:
            self._answered.wait(timeout=3.0)  # another thread is telling it, and must come to the end of that
            return
        if text:
            print(text, file=sys.stderr, flush=True)
        for line in list(self._sockets.values()):
            with contextlib.suppress(OSError):
                _send(line, {"end": status, "whole": whole})
        self.settled = True
        self._answered.set()
        if not self._told.is_set():  # in a thread of its own: this one may be needed to see a rank go
            threading.Thread(target=self.on_end, args=(status,), daemon=True, name="end").start()

    def everybody_left(self, seconds: float) -> bool:
        """On rank 0: wait until the processes of all other ranks have ended; whether they have."""
        with self._released:
            return self._released.wait_for(lambda: not self._held, timeout=seconds)

    def fail(self, status: int, text: str) -> int:
        """Report an error of this rank; returns the status with which all ranks end."""
        self._told.set()
        if self.rank == 0:
            self._first_error(status, text)
        else:
            with contextlib.suppress(OSError, KeyError):
                _send(self._sockets[0], {"fail": status, "text": text})
            if not self._answered.wait(timeout=3.0):  # rank 0 is silent, so nobody else will say it
                print(text, file=sys.stderr, flush=True)
        return status if self._status is None else self._status

    def farewell(self) -> None:
        """Say that this rank ends in peace; rank 0 stays until all have said so."""
        if self.rank == 0:
            self._all_gone.wait(timeout=10.0)
            return
        self._gone.add(self.rank)
        with contextlib.suppress(OSError, KeyError):
            _send(self._sockets[0], {"bye": self.rank})


def _keep_alive(line: socket.socket) -> None:
    """Notice within half a minute that the other host has lost power or network, which closes no socket."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _read(reader: Any) -> dict[str, Any] | None:
    """The next message, or None when the other side has gone."""
    try:
        text = reader.readline()
    except (OSError, ValueError):
        return None
    if not text.endswith("\n"):
        return None
    try:
        message = json.loads(text)
    except json.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None
