"""The part of ``torch.cuda`` by which steps are recorded, on a CPU: operations are noted and then done again.

A function that looks at a number from the host, or makes memory of another size than at first, gives wrong numbers
here as it would on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Noting(TorchDispatchMode):
    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, made))
        return made


def install(patch: pytest.MonkeyPatch) -> list[str]:
    """Put it in the place of the real one; gives the list in which what is done with it will be told, in order."""
    told: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

    class Graph:
        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

        def replay(self) -> None:
            told.append("replay")
            for function, args, kwargs, made in self.calls:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    @contextlib.contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        told.append(f"on {entered.name}")
        yield
        told.append(f"off {entered.name}")

    @contextlib.contextmanager
    def graph(recorded: Graph) -> Iterator[None]:
        told.append("record")
        with _Noting(recorded.calls):
            yield
        told.append("recorded")

    for name, value in {"Stream": Stream, "CUDAGraph": Graph, "stream": stream, "graph": graph}.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    return told
