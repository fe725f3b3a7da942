"""Programs read what they use: nothing that takes seconds and that only some runs need."""

from __future__ import annotations

import json
from pathlib import Path

from tests import programs
from tests.training.runs import SMALLER, write_songs

# What takes from a tenth of a second to several, beside torch.
HEAVY = {
    *("librosa", "scipy", "numba", "sklearn", "matplotlib", "pandas", "pyopenjtalk", "pyworld", "pysinsy", "music21"),
    *("jieba", "pypinyin", "muq", "transformers", "torch._dynamo", "torch._inductor", "mpi4py", "av"),
}
LOGS = {"tensorboardX", "tensorboard"}

HELP = """
import contextlib, io, json, sys
import align, evaluate, sample, train
for program in (align, evaluate, sample, train):
    sys.argv = [program.__file__, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert program.main() == 0
    assert said.getvalue().count("--") > 20, program
print(json.dumps([*sys.modules]))
"""

TRAIN = """
import json, sys
import train
assert train.main() == 0
print(json.dumps([*sys.modules]))
"""


def modules(folder: Path, *words: str) -> set[str]:
    """The modules that a fresh Python has read when it has run a program."""
    done = programs.run(folder, *words, fresh=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_reads_nothing_that_takes_long(tmp_path: Path) -> None:
    read = modules(tmp_path, "-c", HELP)
    assert "torch" in read and not read & (HEAVY | LOGS)


def test_training_reads_no_compiler_and_no_toolbox(tmp_path: Path) -> None:
    """Pictures of sound go into the logs, and an optimiser is made."""
    write_songs(tmp_path / "songs")
    small = [f"--{key}={value}" for key, value in SMALLER.items()]
    words = ["--hps=tiny_vqvae", "--name=x", "--audio_files_dir=songs", "--train", "--test", "--train_steps=2", *small]
    read = modules(tmp_path, "-c", TRAIN, *words)
    assert "tensorboardX" in read and not read & HEAVY
    assert list((tmp_path / "logs" / "x" / "logs").iterdir())
