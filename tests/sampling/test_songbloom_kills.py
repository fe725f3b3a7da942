"""Songs of the SongBloom family that are killed, previewed, or shared over ranks are the undisturbed ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from benchmarks.kills import kept, kill
from songbloom.sampling import journal
from songbloom.sampling.form import Frames
from songbloom.sampling.windows import Window, whole_windows
from tests import programs
from tests.sampling.songbloom_kills import ARGUMENTS
from tests.sampling.songbloom_tiny import RATE, stereo, write_tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
EOS = 16


def torment(folder: Path, count: int, seed: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.sampling.songbloom_kills", str(folder), str(count), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


def test_six_kills(tmp_path: Path) -> None:
    report = torment(tmp_path, 6, seed=0)
    assert report["differences"] == [] and report["kills"] == 6
    assert int(str(report["between"])) >= 1 and int(str(report["taken_up"])) >= 1  # they did fall into the work


@pytest.mark.slow
def test_forty_kills(tmp_path: Path) -> None:
    report = torment(tmp_path, 40, seed=1)
    assert report["differences"] == [] and report["kills"] == 40 and int(str(report["between"])) >= 8


def sample(folder: Path, name: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return programs.run(folder, str(ROOT / "sample.py"), *ARGUMENTS, f"--name={name}", *arguments, ranks=ranks)


def codes(run: Path) -> list[torch.Tensor]:
    found: list[torch.Tensor] = torch.load(run / "level_0" / "data.pth.tar", weights_only=True)["zs"]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    write_tiny(folder / "logs", ending=-2.0)
    soundfile.write(folder / "style.wav", stereo(1.0), RATE)
    done = sample(folder, "whole", "--max_batch_size=1")
    assert done.returncode == 0, done.stderr
    return folder


def test_ranks_write_what_one_writes(place: Path) -> None:
    done = sample(place, "ranks", "--max_batch_size=1", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("listen:") == 1
    for ours, theirs in zip(codes(place / "ranks"), codes(place / "whole"), strict=True):
        assert torch.equal(ours, theirs)
    for item in range(3):
        sounds = [(place / run / f"level_0/item_{item}.wav").read_bytes() for run in ("ranks", "whole")]
        assert sounds[0] == sounds[1]


def test_a_killed_run_is_heard_refused_and_goes_on_with_other_ranks(place: Path) -> None:
    with (place / "killed.log").open("w") as log:
        line = programs.command(str(ROOT / "sample.py"), *ARGUMENTS, "--name=killed", "--max_batch_size=1")
        process = subprocess.Popen(line, cwd=place, env=ENVIRONMENT, stdout=log, stderr=log)
    until = time.monotonic() + 200
    while process.poll() is None and kept(place / "killed") < 8 and time.monotonic() < until:
        time.sleep(0.002)
    kill(process)
    windows = kept(place / "killed")
    assert windows >= 8 and not (place / "killed/level_0").exists()
    refused = sample(place, "killed", "--max_batch_size=1", "--steps=3")
    assert refused.returncode == 2 and "steps is 2 there, 3 here" in refused.stderr
    heard = sample(place, "killed", "--max_batch_size=1", "--preview")
    assert heard.returncode == 0 and "listen: killed/preview/index.html" in heard.stdout, heard.stderr
    sound, rate = soundfile.read(place / "killed/preview/level_0_item_0.wav")
    assert rate == RATE and sound.ndim == 2 and len(sound)
    done = sample(place, "killed", "--max_batch_size=1", ranks=2)
    assert done.returncode == 0 and "killed: goes on at level 0" in done.stdout, done.stderr
    for ours, theirs in zip(codes(place / "killed"), codes(place / "whole"), strict=True):
        assert torch.equal(ours, theirs)
    assert not (place / "killed/journal").exists() and not (place / "killed/preview").exists()


# --- parts ------------------------------------------------------------------------------------------------------------


def test_frames_are_both_levels_in_one_row() -> None:
    latents, sketch = torch.randn(2, 8, 3), torch.randint(0, EOS, (2, 8))
    sketch[1, 4:] = EOS
    form = Frames(EOS)
    frames = form.joined(latents, sketch)
    assert frames.shape == (2, 8, 4)
    assert torch.equal(form.latents(frames), latents) and torch.equal(form.sketch(frames), sketch)
    assert [form.length(item) for item in frames] == [8, 4]
    assert form.heard(frames[1]).shape == (1, 4, 3)
    kept_latents, kept_sketch = form.kept([frames[1:], sketch[1:]])
    assert kept_latents.shape == (1, 4, 3) and kept_sketch.shape == (1, 4)
    large = torch.tensor([[2**24 - 1, 16384]])
    assert torch.equal(form.sketch(form.joined(torch.zeros(1, 2, 3), large)), large)


def test_windows_begin_at_whole_multiples() -> None:
    assert whole_windows(20, 8) == [Window(0, 8, 0), Window(8, 16, 0), Window(16, 24, 0, 4)]
    assert whole_windows(20, 8, 12) == [Window(8, 16, 4), Window(16, 24, 0, 4)]
    assert whole_windows(8, 8, 8) == []
    for have in range(21):
        assert sum(window.new for window in whole_windows(20, 8, have)) == 20 - have


def test_a_journal_keeps_rows(tmp_path: Path) -> None:
    frames = torch.randn(3, 10, 5)
    beginning = [[torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)]] * 3
    owner = journal.owner_of({"a": 1}, 0, 0, beginning[0], 7, 1 << 20)
    assert owner.width == 5 and owner.bytes_a_code == 20
    path = tmp_path / "journal" / "level_0" / "item_0.journal"
    kept_by = journal.ItemJournal(path, owner)
    kept_by.append(journal.Record(0, 0, frames[0, :6], 1.0))
    kept_by.append(journal.Record(6, 6, frames[0, 6:], 2.0))
    kept_by.close()
    assert torch.equal(journal.joined(journal.read(path, owner), owner), frames[0])
    assert journal.count_records(path) == 2 and not journal.is_empty(tmp_path)
    content = path.read_bytes()
    for cut in range(len(owner.header()), len(content)):
        found, good = journal.decode(owner, content[:cut])
        assert good <= cut and all(torch.equal(a.codes, frames[0, :6]) for a in found)
    plain = journal.Owner(owner.identity, 0, 0, 0, 7, 4)
    with pytest.raises(ValueError, match="other settings"):
        journal.decode(plain, content + bytes(50))
