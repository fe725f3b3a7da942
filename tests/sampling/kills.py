"""Kill ``sample.py`` again and again, in a process that has read all its modules already and forks it.

``python -m tests.sampling.kills FOLDER KILLS SEED`` prints the report of ``benchmarks/kills.py`` as JSON. The model
is ``tiny`` with shorter contexts, so that a short song has many windows.
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
from hparams import HPARAMS_REGISTRY
from songbloom.hyperparams import Hyperparams

ARGUMENTS = ("--n_samples=3", "--max_batch_size=2", "--sample_length_in_seconds=.16", "--hop_fraction=.5,.25")
CONTEXTS = {"tiny_prior": (16, 32), "tiny_upsampler": (64, 8)}  # context in codes, and samples a code


_AS_THEY_WERE = {name: HPARAMS_REGISTRY[name] for name in CONTEXTS}
kill, kept, write_model, fork = kills.kill, kills.kept, kills.write_model, kills.fork


def shorten() -> None:
    """Give the model contexts in which a sixth of a second is several windows."""
    for name, (context, hop) in CONTEXTS.items():
        HPARAMS_REGISTRY[name] = Hyperparams({**_AS_THEY_WERE[name], "n_ctx": context, "sample_length": context * hop})


def restore() -> None:
    """Take :func:`shorten` back."""
    HPARAMS_REGISTRY.update(_AS_THEY_WERE)


def main() -> None:
    torch.set_num_threads(1)
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    shorten()
    kills.write_model(folder / "logs")
    with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):  # what is read and built once, once
        sys.argv = ["sample.py", "--model=tiny", "--name=first", *ARGUMENTS]
        sample_program.main()
    print(json.dumps(asdict(kills.torment(folder, ARGUMENTS, count, seed=seed, start=fork))))


if __name__ == "__main__":
    main()
