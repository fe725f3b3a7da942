"""Steps on a GPU as CUDA graphs: recorded once, and then replayed, one launch instead of some twenty a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def record(
    run: Callable[[], Tensor], *, warm_up: Callable[[], object], times: int
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """``run`` as a graph on the current CUDA device, and the tensor that each replay of it fills.

    A graph replays recorded kernels with recorded addresses: ``run`` has to be the same operations on the same memory
    each time, without a look at a number from the host. Recording computes nothing; the first replay does.

    Args:
        run: what to record.
        warm_up: what is called before on a stream of its own: libraries take their memory on the first calls, which
            must not be recorded. It is ``run``, and what puts back what ``run`` has changed.
        times: how often.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()
    return graph, made
