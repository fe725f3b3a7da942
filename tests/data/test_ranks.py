"""The index and the batches under real ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.audio.recordings import song

RATE = 8000
PROGRAM = textwrap.dedent("""
    import hashlib, json, sys
    from pathlib import Path
    import songbloom.data.index as index
    from songbloom import distributed
    from songbloom.data.dataset import ChunkDataset
    from songbloom.data.loader import make_loader

    def main():
        world = distributed.start("cpu")
        index._WORD_EVERY = 0.0  # it tells how far it is after each file
        opened = []
        real = index.examine
        index.examine = lambda path: opened.append(path.name) or real(path)
        hps = dict(audio_files_dir=sys.argv[1], sr=8000, channels=2, sample_length=2000, aug_shift=True,
                   train_test_split=0.8, seed=1)
        dataset = ChunkDataset(hps)
        batches = list(make_loader(dataset, batch=4 // world.size, epoch=1, workers=1))
        report = {
            "opened": len(opened),
            "songs": [one.song.path.name for one in dataset.songs],
            "audio": [[hashlib.sha256(a.numpy().tobytes()).hexdigest() for a in b["audio"]] for b in batches],
        }
        Path(sys.argv[2], f"{world.size}_{world.rank}.json").write_text(json.dumps(report))

    distributed.run(main)
""")


def _launch(size: int, program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), *map(str, arguments)]
    if size > 1:
        mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
        if mpiexec is None:
            pytest.skip("mpiexec is not installed")
        command = [mpiexec, "-n", str(size), *command]
    root = Path(__file__).parent.parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)


def test_ranks_see_the_same_songs_and_share_the_same_batches(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for number in range(5):
        soundfile.write(data / f"song{number}.wav", song(2.1 + number / 3, RATE, 2, number), RATE)
    (data / "empty.mp3").touch()
    reports: dict[int, list[dict[str, Any]]] = {}
    for size in (1, 2):
        (data / ".songbloom_index.json").unlink(missing_ok=True)
        done = _launch(size, program, data, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("dropped ") == 2  # once as a line, once in the summary
        reports[size] = [json.loads((tmp_path / f"{size}_{rank}.json").read_text()) for rank in range(size)]
    alone, (first, second) = reports[1][0], reports[2]
    assert alone["songs"] == first["songs"] == second["songs"]
    assert (alone["opened"], first["opened"], second["opened"]) == (6, 6, 0)
    assert alone["audio"] == [a + b for a, b in zip(first["audio"], second["audio"], strict=True)]
    assert len(alone["audio"]) > 3


def test_a_mistake_is_told_once_and_ends_all_ranks(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "empty.wav").touch()
    done = _launch(2, program, tmp_path / "data", tmp_path)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert output.count("none of 1 song can be used: 1 is empty (empty.wav)") == 1
    assert "Traceback" not in output
