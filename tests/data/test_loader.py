from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data import loader as loader_module
from songbloom.data.dataset import ChunkDataset
from songbloom.data.loader import batches_in_epoch, epoch_order, make_loader, share_of
from songbloom.distributed import World
from songbloom.errors import UserError
from tests.audio.recordings import song

RATE = 8000
LENGTH = 2000


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("songs")
    for number in range(4):
        soundfile.write(data / f"song{number}.wav", song(2.1 + number, RATE, 2, number), RATE)
    return data


def _dataset(folder: Path, **more: Any) -> ChunkDataset:
    hps = {
        "audio_files_dir": str(folder), "sr": RATE, "channels": 2, "sample_length": LENGTH, "aug_shift": True,
        "aug_blend": True, "train_test_split": 1.0, "seed": 3,
    }  # fmt: skip
    return ChunkDataset(hps | more)


def _worlds(size: int) -> list[World]:
    return [World(rank=rank, size=size, local_rank=rank, local_size=size) for rank in range(size)]


def _batches(dataset: Any, **settings: Any) -> list[dict[str, torch.Tensor]]:
    return list(make_loader(dataset, **settings))


class Numbers:
    """A data set of its own indices, that remembers which were asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict[str, int]:
        self.asked.append(item)
        return {"item": item}


# --- the order -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 4))
def test_the_global_batch_is_the_same_for_any_number_of_ranks(
    length: int, unit: int, epoch: int, shuffle: bool, drop_last: bool, skip: int
) -> None:
    by_size = {}
    for size in (1, 2, 4):
        shares = [
            share_of(
                length, global_batch=4 * unit, world=world, seed=7, epoch=epoch, skip_batches=skip, shuffle=shuffle,
                drop_last=drop_last,
            )
            for world in _worlds(size)
        ]  # fmt: skip
        assert len({len(share) for share in shares}) == 1
        by_size[size] = [[item for share in shares for item in share[step]] for step in range(len(shares[0]))]
        for share in shares:
            assert all(share)  # nobody is left without an item, or it would leave the others waiting
            assert not drop_last or all(len(batch) == 4 * unit // size for batch in share)
    for size in (2, 4):
        for alone, together in zip(by_size[1], by_size[size], strict=True):
            assert together[: len(alone)] == alone
            assert len(together) == max(len(alone), size)


def test_an_epoch_visits_every_item_once_in_its_own_order() -> None:
    orders = [epoch_order(50, 0, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[0].tolist() != epoch_order(50, 1, 0).tolist()
    assert orders[0].tolist() == epoch_order(50, 0, 0).tolist()
    assert epoch_order(4, 0, 0, shuffle=False).tolist() == [0, 1, 2, 3]
    assert epoch_order(3, -5, 0).tolist() == epoch_order(3, -5, 0).tolist()


def test_training_drops_what_fills_no_batch_and_testing_does_not() -> None:
    train = _batches(Numbers(11), batch=4)
    assert [len(batch["item"]) for batch in train] == [4, 4]
    test = _batches(Numbers(11), batch=4, shuffle=False, drop_last=False)
    assert torch.cat([batch["item"] for batch in test]).tolist() == list(range(11))
    assert batches_in_epoch(11, 4) == 2
    assert batches_in_epoch(11, 4, drop_last=False) == 3


def test_a_data_set_smaller_than_a_batch_fills_it_with_repetitions() -> None:
    batches = _batches(Numbers(3), batch=8)
    assert len(batches) == batches_in_epoch(3, 8) == 1
    counts = np.bincount(batches[0]["item"].numpy())
    assert sorted(counts.tolist()) == [2, 3, 3]


def test_an_uneven_last_batch_leaves_no_rank_without_an_item() -> None:
    shares = [_batches(Numbers(9), batch=2, world=world, shuffle=False, drop_last=False) for world in _worlds(4)]
    assert [[batch["item"].tolist() for batch in share] for share in shares] == [
        [[0, 1], [8]], [[2, 3], [0]], [[4, 5], [1]], [[6, 7], [2]],
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 1, "workers": -1}, {"batch": 1, "skip_batches": -1}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="3 items"):
        make_loader(Numbers(3), **wrong)  # type: ignore[arg-type]


# --- real audio ------------------------------------------------------------------------------------------------------


def test_batches_are_equal_for_any_number_of_ranks_and_workers(folder: Path) -> None:
    dataset = _dataset(folder)
    alone = _batches(dataset, batch=4, epoch=2)
    assert alone[0]["audio"].shape == (4, LENGTH, 1)
    assert alone[0]["audio"].dtype == torch.float32
    assert alone[0]["song"].dtype == torch.int64
    for size in (1, 2, 4):
        for workers in (0, 2):
            shares = [
                _batches(dataset, batch=4 // size, world=world, epoch=2, workers=workers) for world in _worlds(size)
            ]
            for step, batch in enumerate(alone):
                for key, value in batch.items():
                    assert torch.equal(torch.cat([share[step][key] for share in shares]), value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_restart_goes_on_where_it_was(workers: int, folder: Path) -> None:
    dataset = _dataset(folder)
    whole = _batches(dataset, batch=4, epoch=1)
    loader = make_loader(dataset, batch=4, epoch=1, skip_batches=3, workers=workers)
    assert [batch["batch"].tolist() for batch in loader] == [[3 + i] * 4 for i in range(len(loader))]
    assert len(loader) == len(whole) - 3
    rest = list(loader)
    for before, after in zip(whole[3:], rest, strict=True):
        assert torch.equal(before["audio"], after["audio"])
    assert _batches(dataset, batch=4, epoch=1, skip_batches=len(whole)) == []


def test_skipped_batches_are_not_read() -> None:
    numbers = Numbers(20)
    batches = _batches(numbers, batch=4, skip_batches=3)
    assert numbers.asked == torch.cat([batch["item"] for batch in batches]).tolist()
    assert len(numbers.asked) == 8


def test_workers_stay_for_the_next_epoch_and_end_with_the_data_set(folder: Path) -> None:
    dataset = _dataset(folder)
    reference = [_batches(_dataset(folder), batch=4, epoch=epoch) for epoch in (0, 1)]
    processes: list[list[int]] = []
    for epoch in (0, 1):
        for before, after in zip(reference[epoch], _batches(dataset, batch=4, epoch=epoch, workers=2), strict=True):
            assert torch.equal(before["audio"], after["audio"])
        iterator: Any = loader_module._kept[dataset].loader._iterator
        processes.append([worker.pid for worker in iterator._workers])
    assert processes[0] == processes[1]
    del iterator
    del dataset
    gc.collect()
    deadline = time.monotonic() + 60
    while any(map(_runs, processes[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, processes[0]))


def test_a_pass_that_is_left_early_disturbs_no_later_one(folder: Path) -> None:
    dataset = _dataset(folder)
    reference = _batches(dataset, batch=4, epoch=1)
    for workers in (0, 2):
        for batch in make_loader(dataset, batch=4, epoch=0, workers=workers):
            assert len(batch["audio"]) == 4
            break
        after = _batches(dataset, batch=4, epoch=1, workers=workers)
        assert [b["offset"].tolist() for b in after] == [b["offset"].tolist() for b in reference]


def test_two_passes_at_once_do_not_mix(folder: Path) -> None:
    dataset = _dataset(folder)
    pair = [make_loader(dataset, batch=4, epoch=epoch, workers=1) for epoch in (0, 1)]
    together = list(zip(*pair, strict=True))
    for epoch in (0, 1):
        alone = _batches(dataset, batch=4, epoch=epoch)
        assert [batches[epoch]["offset"].tolist() for batches in together] == [b["offset"].tolist() for b in alone]


@pytest.mark.parametrize("workers", [0, 1])
def test_replaced_items_are_counted(workers: int, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.wav"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = _dataset(tmp_path)
    (tmp_path / "song2.wav").unlink()
    loader = make_loader(dataset, batch=2, workers=workers)
    batches = list(loader)
    assert loader.replaced == sum(int(batch["replaced"].sum()) for batch in batches) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_worker_stays_one_line(workers: int, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "only.wav").write_bytes((folder / "song3.wav").read_bytes())
    dataset = _dataset(tmp_path)
    (tmp_path / "only.wav").unlink()
    with pytest.raises(UserError) as caught:
        _batches(dataset, batch=2, workers=workers)
    assert str(caught.value).startswith("20 chunks in a row cannot be read")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc and uses a Linux system call")
def test_workers_do_not_outlive_a_killed_rank(folder: Path) -> None:
    """They would hold the rank's connections open, and the other ranks would wait for it."""
    program = textwrap.dedent(f"""
        import os, time
        from tests.data.test_loader import _dataset
        from pathlib import Path
        from songbloom.data.loader import make_loader, _kept
        dataset = _dataset(Path({str(folder)!r}))
        batches = iter(make_loader(dataset, batch=1, workers=2))
        next(batches)
        print("workers", *[w.pid for w in _kept[dataset].loader._iterator._workers], flush=True)
        time.sleep(1800)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids: list[int] = []
    for line in process.stdout:
        if line.startswith("workers"):
            pids = [int(word) for word in line.split()[1:]]
            break
    assert len(pids) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    """Whether a process still runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
