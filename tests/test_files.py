"""Files appear whole or not at all, and a folder has one owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from songbloom.errors import UserError
from songbloom.files import hold, whole_file, write_text


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "file"
    write_text(place, "old あ")
    with pytest.raises(ZeroDivisionError), whole_file(place) as file:
        file.write(b"half")
        _ = 1 / 0
    assert place.read_text(encoding="utf-8") == "old あ"
    with pytest.raises(UserError, match=r"file: cannot be written .*No space left"), whole_file(place) as file:
        raise OSError(28, "No space left on device")
    assert place.read_text(encoding="utf-8") == "old あ"
    with whole_file(place) as file:
        file.write(b"new")
    assert place.read_bytes() == b"new"
    assert [path.name for path in place.parent.iterdir()] == ["file"]


def test_a_file_is_as_open_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_cannot_be_made_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    with pytest.raises(UserError, match=r"in the way.*cannot be written"):
        write_text(tmp_path / "in the way" / "file", "")
    with pytest.raises(UserError, match=r"cannot be written .*; choose another --name"):
        hold(tmp_path / "in the way" / "folder", busy="training", instead="--name")


def test_a_folder_is_held_until_its_process_ends(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    code = (
        "import sys; from songbloom.files import hold; hold(sys.argv[1], busy='training', instead='--name'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"run: another process is training there; .* choose another --name"):
            hold(tmp_path / "run", busy="training", instead="--name")
        other.kill()
    hold(tmp_path / "run", busy="training", instead="--name")
    hold(tmp_path / "run", busy="training", instead="--name")  # its own lock is no hindrance


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    killed = """
import os, sys
from songbloom.files import whole_file
with whole_file(sys.argv[1]) as file:
    os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", killed, str(tmp_path / "file")]) as ended:
        assert ended.wait() == -9
    (_,) = tmp_path.glob(f".file.*.{ended.pid}.partial")
    elsewhere = tmp_path / f".file.another-machine.{ended.pid}.partial"  # there it may be alive
    elsewhere.touch()
    write_text(tmp_path / "file", "new")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", elsewhere])
