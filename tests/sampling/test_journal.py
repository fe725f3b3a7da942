"""Whatever a dying process leaves of a journal, the windows before count and nothing else is taken for one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.prior.prior import Prior
from songbloom.sampling import journal
from songbloom.sampling.journal import ItemJournal, LevelJournal, Owner, Record
from songbloom.sampling.prompts import empty_codes
from songbloom.sampling.sampler import LevelSettings, Work, item_seeds, sample_level
from songbloom.sampling.windows import plan
from tests.sampling.tiny import tiny_models

OWNER = Owner(b"0123456789abcdef", 1, 4, 3, 2**63 - 1)
CHAINS = st.lists(st.lists(st.integers(0, 65535), max_size=12), max_size=5)


def chain(windows: list[list[int]], begin: int = OWNER.begin) -> list[Record]:
    """Records of windows that follow one another."""
    records = []
    for number, codes in enumerate(windows):
        records.append(Record(7 * number, begin, torch.tensor(codes, dtype=torch.int64), number / 4))
        begin += len(codes)
    return records


def content_of(records: list[Record], owner: Owner = OWNER) -> tuple[bytes, list[int]]:
    """A whole file, and where its header and each of its records end."""
    parts = [owner.header(), *(journal.encode(owner, record) for record in records)]
    ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
    return b"".join(parts), ends


def same(a: list[Record], b: list[Record]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.codes, y.codes) and (x.window, x.start, x.seconds) == (y.window, y.start, y.seconds)
        for x, y in zip(a, b, strict=True)
    )


@given(CHAINS, st.sampled_from([2, 4]))
def test_what_is_written_is_read(windows: list[list[int]], code_bytes: int) -> None:
    owner, records = replace(OWNER, code_bytes=code_bytes), chain(windows)
    content, ends = content_of(records, owner)
    found, good = journal.decode(owner, content)
    assert same(found, records) and good == ends[-1]


@given(CHAINS, st.data())
def test_any_beginning_of_a_file_holds_the_windows_that_are_whole_in_it(
    windows: list[list[int]], data: st.DataObject
) -> None:
    records = chain(windows)
    content, ends = content_of(records)
    length = data.draw(st.integers(0, len(content)))
    found, good = journal.decode(OWNER, content[:length])
    whole = sum(end <= length for end in ends) - 1
    assert same(found, records[: max(whole, 0)])
    assert good == (ends[whole] if whole >= 0 else 0)


@given(CHAINS.filter(bool), st.data())
def test_a_damaged_byte_ends_what_counts_before_its_window(windows: list[list[int]], data: st.DataObject) -> None:
    records = chain(windows)
    content, ends = content_of(records)
    place = data.draw(st.integers(ends[0], len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    found, good = journal.decode(OWNER, bytes(damaged))
    whole = sum(end <= place for end in ends) - 1
    assert same(found, records[:whole]) and good == ends[whole]


@given(CHAINS, st.binary(max_size=80))
def test_anything_behind_the_last_window_is_cut_off(windows: list[list[int]], tail: bytes) -> None:
    records = chain(windows)
    content, ends = content_of(records)
    more = Record(9, records[-1].start + len(records[-1].codes) if records else OWNER.begin, torch.arange(3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a" / "item_4.journal"
        path.parent.mkdir()
        path.write_bytes(content + tail)
        opened = ItemJournal(path, OWNER)
        assert same(opened.records, records) and path.stat().st_size == ends[-1]
        opened.append(more)
        opened.close()
        assert same(journal.read(path, OWNER), [*records, more])
        assert journal.count_records(path) == len(records) + 1


@pytest.mark.parametrize(
    "other",
    [
        replace(OWNER, identity=b"another.identity"),
        replace(OWNER, level=0),
        replace(OWNER, item=5),
        replace(OWNER, begin=0),
        replace(OWNER, seed=1),
        replace(OWNER, code_bytes=4),
    ],
)
def test_the_journal_of_another_is_refused_and_left_alone(tmp_path: Path, other: Owner) -> None:
    content, _ = content_of(chain([[1, 2], [3]]))
    path = tmp_path / "item_4.journal"
    path.write_bytes(content)
    for attempt in (ItemJournal, journal.read):
        with pytest.raises(UserError, match=r"item_4\.journal: it belongs to other settings, weights or codes; .*--ov"):
            attempt(path, other)
    assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "item_0.journal"
    first = ItemJournal(path, OWNER)
    monkeypatch.setattr(journal, "_LOCK_SECONDS", 0.1)
    with pytest.raises(UserError, match="another process is sampling there"):
        ItemJournal(path, OWNER)
    first.close()
    ItemJournal(path, OWNER).close()


def test_a_window_that_cannot_be_written_leaves_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, records = tmp_path / "item_4.journal", chain([[1, 2, 3], [4, 5]])
    opened = ItemJournal(path, OWNER)
    opened.append(records[0])
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as context, pytest.raises(UserError, match=r"\(No space left on device\); free space"):
        context.setattr(os, "fsync", full)
        opened.append(records[1])
    opened.close()
    assert path.read_bytes() == before
    again = ItemJournal(path, OWNER)
    again.append(records[1])
    again.close()
    assert same(journal.read(path, OWNER), records)


# --- a level ----------------------------------------------------------------------------------------------------------

SETTINGS = LevelSettings(hop_fraction=0.25, temperature=1.0, max_batch_size=2)
TOTAL = 200  # over windows of 128


@pytest.fixture(scope="module")
def top() -> Prior:
    return tiny_models()[1][1]


def keeper(folder: Path, items: range = range(3), name: str = "run") -> LevelJournal:
    codes = empty_codes(len(items), 2)
    return LevelJournal(folder, 1, items, settings={"name": name}, codes=codes, seeds=item_seeds(0, items), l_bins=32)


@pytest.fixture(scope="module")
def undisturbed(top: Prior, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    kept = keeper(folder)
    codes = sample_level(top, empty_codes(3, 2), TOTAL, SETTINGS, seeds=item_seeds(0, range(3)), keeper=kept)
    kept.close()
    return codes, folder


def test_a_journal_holds_the_level(undisturbed: tuple[torch.Tensor, Path]) -> None:
    codes, folder = undisturbed
    assert journal.levels_in(folder) == [1] and not journal.is_empty(folder)
    kept = keeper(folder)
    assert torch.equal(torch.stack(kept.restore(plan(TOTAL, 128, 32))), codes)
    kept.close()
    assert journal.count_records(journal.path_of(folder, 1, 0)) == len(plan(TOTAL, 128, 32)) == 4


@pytest.mark.parametrize("lengths", [(1, 0, 0), (2, 1, 4), (3, 3, 2)])
def test_items_that_got_differently_far_are_brought_to_the_same_end(
    top: Prior, undisturbed: tuple[torch.Tensor, Path], tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    """Windows of an item that are there are not drawn again, and its batch is the one that it always was."""
    codes, folder = undisturbed
    for item, windows in enumerate(lengths):
        content = journal.path_of(folder, 1, item).read_bytes()
        owner = journal.owner_of({"name": "run"}, 1, item, [codes[0, :0]], item_seeds(0, [item])[0], 32)
        records = journal.decode(owner, content)[0][:windows]
        path = journal.path_of(tmp_path, 1, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(owner.header() + b"".join(journal.encode(owner, record) for record in records) + b"torn")
    kept, works, batches = keeper(tmp_path), [], []
    prior_sample = top.sample

    def watched(items: int, **keywords: object) -> torch.Tensor:
        batches.append(items)
        return prior_sample(items, **keywords)

    class Watched:
        level, n_ctx, cond_downsample, window_of = (
            top.level,
            top.n_ctx,
            top.cond_downsample,
            staticmethod(top.window_of),
        )
        sample = staticmethod(watched)

    counts: list[int] = []
    seeds = item_seeds(0, range(3))
    again = sample_level(
        Watched(),
        empty_codes(3, 2),
        TOTAL,
        SETTINGS,
        seeds=seeds,
        keeper=kept,
        on_begin=works.append,
        on_codes=counts.append,
    )
    kept.close()
    assert torch.equal(again, codes)
    new = [window.new for window in plan(TOTAL, 128, 32)]
    missing = sum(sum(new[windows:]) for windows in lengths)
    assert works == [Work(3 * TOTAL - missing, missing, sum(new[min(lengths[:2]) :]) + sum(new[lengths[2] :]))]
    assert sum(counts) == missing
    assert sorted(batches) == [1] * (4 - lengths[2]) + [2] * (4 - min(lengths[:2]))
    for item in range(3):  # the same records; the seconds that they tell may differ
        assert journal.count_records(journal.path_of(tmp_path, 1, item)) == 4


def test_windows_of_another_plan_are_refused(undisturbed: tuple[torch.Tensor, Path]) -> None:
    _, folder = undisturbed
    kept = keeper(folder)
    for windows in (plan(TOTAL, 128, 64), plan(160, 128, 32)):
        with pytest.raises(UserError, match=r"written in other windows|more than is asked for"):
            kept.restore(windows)
    kept.close()
    with pytest.raises(UserError, match="belongs to other settings"):
        keeper(folder, name="another")


def test_time_adds_up_over_sessions(tmp_path: Path) -> None:
    clock = iter([0.0, 10.0, 25.0, 100.0, 200.0, 207.0])
    windows, zeros = plan(8, 4, 4), torch.zeros(1, 4, dtype=torch.int64)
    for window in windows:
        kept = LevelJournal(
            tmp_path, 0, range(1), settings={}, codes=empty_codes(1, 1), seeds=[1], l_bins=32, now=lambda: next(clock)
        )
        kept.restore(windows)
        kept.append([0], window, zeros)
        kept.close()
    assert keeper_seconds(tmp_path) == [15.0, 22.0]


def keeper_seconds(folder: Path) -> list[float]:
    owner = journal.owner_of({}, 0, 0, [torch.zeros(0, dtype=torch.int64)], 1, 32)
    return [record.seconds for record in journal.read(journal.path_of(folder, 0, 0), owner)]


def test_removing_a_level_leaves_the_others(tmp_path: Path) -> None:
    for level in (0, 1):
        ItemJournal(journal.path_of(tmp_path, level, 0), OWNER).close()
    assert journal.is_empty(tmp_path) and journal.levels_in(tmp_path) == [0, 1]
    journal.remove(tmp_path, 1)
    assert journal.levels_in(tmp_path) == [0]
    journal.remove(tmp_path, 0)
    assert not (tmp_path / journal.FOLDER).exists()
    journal.remove(tmp_path, 0)


def test_the_codes_above_are_part_of_the_identity() -> None:
    above = torch.arange(5)
    assert journal.identity_of({}, 0, [above[:0], above]) != journal.identity_of({}, 0, [above[:0], above.flip(0)])
    assert journal.identity_of({"a": 1}, 0, [above]) == journal.identity_of({"a": 1}, 0, [above.clone()])
