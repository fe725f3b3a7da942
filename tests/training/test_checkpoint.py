"""Checkpoints: whole or not there, plain data, and never lost to a kill."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from songbloom.errors import UserError
from songbloom.training import checkpoint, foreign


def content(step: int, size: int = 1000) -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(checkpoint.KEYS)
    made |= {"format": 1, "kind": "vqvae", "hps": {"width": 3, "downs_t": (1, 2)}, "step": step, "argv": ["train.py"]}
    return made | {"version": "0", "model": {"w": torch.full((size,), float(step))}}


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)


def zipped(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save_in_run(tmp_path / "run", content(7))
    assert path.name == "checkpoint_step_7.pth.tar"
    for found in (checkpoint.load(path), checkpoint.load(path.parent / checkpoint.LATEST)):
        assert found["step"] == 7 and found["hps"]["downs_t"] == (1, 2)
        assert torch.equal(found["model"]["w"], torch.full((1000,), 7.0))
    for name in ("checkpoint_step_7.json", "checkpoint_latest.json"):
        beside = json.loads((path.parent / name).read_text())
        assert beside["hps"]["width"] == 3 and beside["argv"] == ["train.py"] and beside["version"]


def test_only_plain_data_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"content\.hps\.where is a PosixPath"):
        checkpoint.save(tmp_path / "x.pth.tar", {"hps": {"where": tmp_path}})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(UserError, match="can be read safely"):
        checkpoint.load(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "made").exists()


def test_too_little_memory_is_not_told_as_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that has objects of another program in it, and so is read twice."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": tmp_path}, path)
    assert list(checkpoint.load(path, verify=False)) == ["state_dict"]

    def read(path: Path, *, mmap: bool) -> None:
        raise MemoryError

    monkeypatch.setattr(foreign, "read", read)
    with pytest.raises(MemoryError):
        checkpoint.load(path, verify=False)


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_wrong_byte_is_noticed(tmp_path: Path, where: float) -> None:
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(1, size=20000))
    flip(path, where)
    with pytest.raises(UserError, match=r"x\.pth\.tar"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_noticed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(1))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"x\.pth\.tar"):
        checkpoint.load(path)


@pytest.mark.parametrize("verify", [True, False])
def test_of_a_cut_file_its_size_is_told_and_what_to_do(tmp_path: Path, verify: bool) -> None:
    for step in (2, 5, 9):
        checkpoint.save_in_run(tmp_path, content(step, 20000))
    latest, first, last = (tmp_path / f"checkpoint_{name}.pth.tar" for name in ("latest", "step_2", "step_9"))

    def told(path: Path) -> str:
        with pytest.raises(checkpoint.Damaged) as caught:
            checkpoint.load(path, verify=verify)
        begins = f"{path}: damaged or cut short (it has 12,345 bytes); copy or download it again"
        assert str(caught.value).startswith(begins)
        return str(caught.value).removeprefix(begins)

    with latest.open("r+b") as file:
        file.truncate(12345)  # checkpoint_step_9 is the same file, so that it is no help
    assert told(latest) == told(last) == ", or take checkpoint_step_5.pth.tar beside it"
    first.write_bytes(last.read_bytes())
    assert told(first) == ""
    latest.unlink()
    latest.write_bytes(last.read_bytes())
    assert told(latest) == ", or take checkpoint_step_9.pth.tar beside it"


OTHERS = {
    "text": "# 歌\n".encode() * 1500,  # cut within a letter, too, where it is looked at
    "a zip archive": zipped({"x/a.txt": "hello"}),
    "a TorchScript program": zipped({"x/data.pkl": "", "x/constants.pkl": ""}),
    "other data": b"RIFF" + bytes(range(256)) * 20,
    "an empty file": b"",
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.open_file])
def test_a_file_that_is_something_else(tmp_path: Path, what: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x"
    path.write_bytes(OTHERS[what])
    with pytest.raises(checkpoint.NotACheckpoint, match=f"x: no checkpoint, but {what}$"):
        read(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_of_other_programs_are_named(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"where": tmp_path}, tmp_path / "x", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"read safely \(it holds objects of another program: pathlib\.PosixPath\)$"):
        checkpoint.load(tmp_path / "x")


def test_missing_newer_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint file"):
        checkpoint.load(tmp_path / "x.pth.tar")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.load(tmp_path)
    torch.save({"format": 2}, tmp_path / "new.pth.tar")
    with pytest.raises(UserError, match="newer version"):
        checkpoint.load(tmp_path / "new.pth.tar")
    torch.save([1, 2], tmp_path / "list.pth.tar")
    with pytest.raises(UserError, match="holds a list"):
        checkpoint.load(tmp_path / "list.pth.tar")


def test_old_ones_are_pruned(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save_in_run(tmp_path, content(step), keep=2)
    assert [step for step, _ in checkpoint.step_files(tmp_path)] == [5, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("checkpoint_latest.json", "checkpoint_latest.pth.tar", "checkpoint_step_4.json"),
        *("checkpoint_step_4.pth.tar", "checkpoint_step_5.json", "checkpoint_step_5.pth.tar"),
    ]


def test_without_a_number_only_latest_changes(tmp_path: Path) -> None:
    checkpoint.save_in_run(tmp_path, content(4))
    checkpoint.save_in_run(tmp_path, content(6), numbered=False)
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["step"] == 6
    assert checkpoint.load(tmp_path / "checkpoint_step_4.pth.tar")["step"] == 4


def test_a_damaged_latest_falls_back_with_one_line(tmp_path: Path) -> None:
    checkpoint.save_in_run(tmp_path, content(1, 20000))
    checkpoint.save_in_run(tmp_path, content(2, 20000))
    flip(tmp_path / checkpoint.LATEST, 0.5)  # a hard link, so checkpoint_step_2 is damaged with it
    told: list[str] = []
    found = checkpoint.newest(tmp_path, told.append)
    assert found is not None and found[1]["step"] == 1
    assert len(told) == 1 and "checkpoint_latest" in told[0]
    assert told[0].endswith("bytes); trying the one before")


def test_a_step_file_newer_than_latest_is_gone_on_from(tmp_path: Path) -> None:
    """As after a kill between the two."""
    checkpoint.save_in_run(tmp_path, content(1))
    checkpoint.save_in_run(tmp_path, content(2))
    latest = tmp_path / checkpoint.LATEST
    latest.unlink()
    latest.write_bytes((tmp_path / "checkpoint_step_1.pth.tar").read_bytes())
    os.utime(latest, ns=(0, 0))
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == 2


def test_nothing_readable_is_an_error_and_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    (tmp_path / checkpoint.LATEST).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        checkpoint.newest(tmp_path, lambda line: None)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "x.pth.tar", content(1))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(1))
    code = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from tests.training.test_checkpoint import content\n"
        "from songbloom.training import checkpoint\n"
        "from songbloom.errors import UserError\n"
        "try: checkpoint.save(sys.argv[1], content(2, 100000))\n"
        "except UserError as error: print('told', error)\n"
    )
    command = [sys.executable, "-B", "-c", code, str(path)]  # -B: the limit would cut bytecode short, for all who come
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "told" in done.stdout and "cannot be written" in done.stdout, done.stderr
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth.tar"]


WRITER = """
import sys
from pathlib import Path
from tests.training.test_checkpoint import content
from songbloom.training import checkpoint
folder = Path(sys.argv[1])
found = checkpoint.newest(folder)
step = found[1]["step"] if found else 0
checkpoint.remove_partial(folder)
print("ready", flush=True)
while True:
    step += 1
    checkpoint.save_in_run(folder, content(step, 500_000), keep=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_writing_loses_nothing(tmp_path: Path) -> None:
    """A process that does nothing but save is killed at random moments, 8 times."""
    draw = random.Random(0)
    partial_seen = 0
    told = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(draw.uniform(0.05, 0.25))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.wait()
        told = max([told, *map(int, lines)])
        partial_seen += any(tmp_path.glob(".checkpoint_*.partial"))
        found = checkpoint.newest(tmp_path, pytest.fail)
        if told:
            assert found is not None and found[1]["step"] >= told
            weights = found[1]["model"]["w"]
            assert torch.equal(weights, torch.full_like(weights, float(found[1]["step"])))
    assert told > 0 and partial_seen > 0, "no kill fell into the writing of a file"
    checkpoint.remove_partial(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert len(checkpoint.step_files(tmp_path)) <= 3
