"""Threads that each work through pieces of their own.

PyTorch's threads wait for each other at the end of every operation. Where thousands of short ones follow one another,
each a few dozen microseconds, that waiting adds up, and on a busy machine, where a thread may be off its core for
milliseconds, it is most of the time. So pieces that don't depend on each other are handed out whole: each thread takes
the next piece when it has finished one, with PyTorch single-threaded in it, and all meet once at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_own = threading.local()  # each thread's scratch memory


def each(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """``[work(piece) for piece in pieces]``, on as many threads as PyTorch has, without gradients.

    Results come in the order of the pieces, whichever was finished first. One piece, or one thread, runs right here.
    """
    pieces, threads = list(pieces), torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def without_gradients(piece: Piece) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # which are each thread's own settings
            return work(piece)

    if len(pieces) == 1 or threads == 1:
        return [without_gradients(piece) for piece in pieces]
    return list(_threads(threads).map(without_gradients, pieces))


def scratch(name: str, *shape: int) -> Tensor:
    """Uninitialised float32 memory of this thread, the same at each call with this name; it only ever grows."""
    kept: dict[str, Tensor] = _own.__dict__.setdefault("kept", {})
    size = 1
    for length in shape:
        size *= length
    if name not in kept or kept[name].numel() < size:
        with torch.inference_mode(False):  # or it could not be used outside inference mode
            kept[name] = torch.empty(size)
    return kept[name][:size].view(shape)


def _threads(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size != size:
        if _pool is not None:
            _pool.shutdown()
        meet = threading.Barrier(size)

        def begin() -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()  # makes the setting this thread's own

        _pool, _pool_size = ThreadPoolExecutor(size, "rows", begin), size
        list(_pool.map(lambda _: meet.wait(), range(size)))  # all have begun
        torch.set_num_threads(size)  # the setting of threads to come, and this one's
    return _pool


def _forget() -> None:
    """A forked process (a data worker) has the pool but not its threads."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
