"""Checks of ``jukebox_dataset*``: which chunk lies where, which songs are kept, how items are split."""

from __future__ import annotations

import numpy as np
import torch

from songbloom.data.dataset import chunk_count, locate, split_size
from songbloom.data.index import usable_durations
from tests.golden.report import Golden


def check_dataset(golden: Golden) -> None:
    if golden.has("index_offset"):
        _check_places(golden)
    if golden.has("filter"):
        _check_filter(golden)
    if golden.has("train_test_split"):
        for key in golden.look("train_test_split"):
            length, fraction = key.split(",")
            golden.expect("train_test_split", key, got=split_size(int(length), float(fraction)), name="split sizes")


def _check_places(golden: Golden) -> None:
    sample_length = golden.given("index_offset", "sample_length")
    durations = golden.given("index_offset", "durations")
    golden.expect("index_offset", "length", got=chunk_count(durations, sample_length), name="number of chunks")
    ends = np.cumsum(np.asarray(durations, np.int64))
    for row in range(len(golden.look("index_offset", "rows"))):
        item, shift = (golden.given("index_offset", "rows", row, key) for key in ("item", "shift"))
        song, offset = locate(int(item), int(shift), sample_length, ends)
        golden.expect("index_offset", "rows", row, "index", got=song, name="song of a chunk")
        golden.expect("index_offset", "rows", row, "offset", got=offset, name="offset of a chunk")


def _check_filter(golden: Golden) -> None:
    given = {key: golden.given("filter", key) for key in ("sr", "min_duration", "max_duration", "durations_samples")}
    durations = [float(samples) for samples in given["durations_samples"]]
    kept, lengths = usable_durations(durations, given["sr"], given["min_duration"], given["max_duration"])
    names = (
        golden.given("filter", "files") if golden.has("filter", "files") else [f"f{i}" for i in range(len(durations))]
    )
    golden.expect("filter", "kept_files", got=[names[i] for i in kept])
    golden.expect("filter", "kept_durations", got=lengths)
    golden.expect("filter", "cumsum", got=torch.from_numpy(np.cumsum(np.asarray(lengths, np.int64))))


CHECKS = {"jukebox_dataset": check_dataset}
