"""Kill sampling of the SongBloom family again and again, as :mod:`tests.sampling.kills` does of the other.

``python -m tests.sampling.songbloom_kills FOLDER KILLS SEED`` prints the report of ``benchmarks/kills.py`` as JSON.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import sample as sample_program
from benchmarks import kills
from tests.sampling.kills import fork
from tests.sampling.songbloom_tiny import write_tiny

ARGUMENTS = (
    *("--model=tiny_songbloom", "--device=cpu", "--steps=2", "--window_patches=1", "--n_samples=3"),
    *("--max_batch_size=2", "--sample_length_in_seconds=4", "--lyrics=[verse] la la", "--cfg_coef=1.2", "--temp=1.1"),
)


def main() -> None:
    torch.set_num_threads(1)
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    write_tiny(folder / "logs", ending=-2.0)
    with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):  # what is read and built once, once
        sys.argv = ["sample.py", "--name=first", *ARGUMENTS]
        sample_program.main()
    print(json.dumps(asdict(kills.torment(folder, ARGUMENTS, count, seed=seed, start=fork))))


if __name__ == "__main__":
    main()
