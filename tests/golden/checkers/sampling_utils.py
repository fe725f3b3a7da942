"""Golden window tables and traces: where the sampler's calls fall, against :mod:`songbloom.sampling`."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.sampling import sampler, windows
from tests.golden.report import Golden


class CountingPrior:
    """Writes a code's own position as its value, and notes how it was called."""

    def __init__(self, n_ctx: int):
        self.level, self.n_ctx, self.cond_downsample = 0, n_ctx, None
        self.calls: list[dict[str, Any]] = []
        self.window = (0, 0)
        self.label_start = 0

    def window_of(self, codes_by_level: Any, start: int, end: int) -> None:
        self.window = (start, end)

    def labels(self, start: int, items: slice) -> None:
        self.label_start = start

    def sample(self, n_samples: int, *, prompt=None, sample_tokens=None, temperature=None, **others: Any):
        start, end = self.window
        have = 0 if prompt is None else prompt.shape[1]
        given = {"sample_tokens": sample_tokens, "temp": temperature}
        self.calls.append(
            {
                "start": start,
                "end": end,
                "y_start": self.label_start,
                "n_samples": n_samples,
                "cond_tokens": have,
                "sample_tokens": sample_tokens,
                "kwargs": sorted(key for key, value in given.items() if value is not None),
            }
        )
        written = torch.arange(start, start + (sample_tokens or self.n_ctx)).expand(n_samples, -1)
        if prompt is not None:
            assert torch.equal(written[:, :have], prompt), "the prompt is not the codes that precede"
        return written


def trace(settings: dict[str, int]) -> dict[str, Any]:
    """The calls and codes of one traced level."""
    prior = CountingPrior(settings["n_ctx"])
    total, have = settings["total"], settings["have"]
    codes = [torch.arange(have).expand(settings["n"], -1)]
    hop_fraction = min(
        (settings["hop"] + 0.5) / settings["n_ctx"], 1.0
    )  # half a code more: int() must not round it down
    how = sampler.LevelSettings(hop_fraction=hop_fraction, max_batch_size=settings["max_bs"], temperature=1.0)
    seeds = sampler.item_seeds(0, range(settings["n"]))
    if total < settings["n_ctx"] and have:
        # The traced program asks its partial window for `total` codes more, prompt or no prompt; ours stops at `total`.
        # The window itself is the same, so it is compared as it was called.
        window = windows.partial_window(have, total, settings["n_ctx"])
        new = sampler.sample_window(prior, codes, window, how, seeds=seeds, labels=prior.labels)
        final = torch.cat([codes[0], new], dim=1)
    else:
        final = sampler.sample_level(prior, codes, total, how, seeds=seeds, labels=prior.labels)
    return {"calls": prior.calls, "final": final}


def check_sampling_utils(golden: Golden) -> None:
    """Window starts, batch splits and whole traces, all exact."""
    for key in golden.look("get_starts"):
        total, n_ctx, hop = map(int, key.split(","))
        golden.expect("get_starts", key, got=windows.starts(total, n_ctx, hop), name="get_starts")
    for key, shapes in golden.look("split_batch").items():
        items, largest = map(int, key.split(","))
        whole = torch.zeros(items, *shapes[0][1:])
        got = [list(whole[part].shape) for part in windows.batches(items, largest)]
        golden.expect("split_batch", key, got=got, name="split_batch")
    for key in golden.look("split_batch_none"):
        items, largest = map(int, key.split(","))
        golden.expect("split_batch_none", key, got=len(list(windows.batches(items, largest))), name="split_batch_none")
    by_part = golden.look("split_batch_list")
    items = sum(part[0][0] for part in by_part)
    tensors = [torch.zeros(items, *shape[1:]) for shape in by_part[0]]
    parts = windows.batches(items, by_part[0][0][0])
    golden.expect("split_batch_list", got=[[list(each[part].shape) for each in tensors] for part in parts])
    for key in golden.look("sample_level_trace"):
        settings = {name: int(value) for name, value in (pair.split("=") for pair in key.split(","))}
        golden.expect("sample_level_trace", key, got=trace(settings), name="sample_level_trace")


CHECKS = {"jukebox_sampling_utils": check_sampling_utils}
