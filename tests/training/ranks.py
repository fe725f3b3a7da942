"""``train.py`` with something done to it, for tests with several processes.

``python -m tests.training.ranks WHAT RANK OPTION…`` trains as ``train.py OPTION…`` would and prints, on rank 0, a JSON
object with the hash of every rank's weights. WHAT happens on rank RANK: ``nan`` makes its second loss NaN, ``raise``
raises at its third batch, ``stall`` stays for ever in the middle of writing its third checkpoint; ``nothing`` doesn't.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

import train
from hparams import training_command
from songbloom import distributed
from songbloom.training.loop import Trainer


def state_hash(trainer: Trainer) -> str:
    """Of every weight, average, moment and codebook number, to the last bit."""
    found = hashlib.sha256()
    state = trainer.state
    tensors = [*trainer.task.model.state_dict().values(), *(state.average.shadow if state.average else [])]
    for moments in state.adam.state.values():
        tensors += [value for value in moments.values() if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def spoil(trainer: Trainer, what: str) -> None:
    forward, seen = trainer.task.forward, [0]

    def replaced(*inputs: Any) -> Any:
        seen[0] += 1
        if what == "raise" and seen[0] == 3:
            raise RuntimeError("something broke on purpose")
        loss, metrics = forward(*inputs)
        return (loss * math.nan if what == "nan" and seen[0] == 2 else loss), metrics

    trainer.task.forward = replaced  # type: ignore[method-assign]


def stall_in_the_third_checkpoint() -> None:
    save, seen = torch.save, [0]

    def replaced(content: Any, path: Any, *arguments: Any, **named: Any) -> None:
        seen[0] += 1
        if seen[0] < 3:
            return save(content, path, *arguments, **named)
        buffer = io.BytesIO()
        save(content, buffer)
        whole = buffer.getvalue()
        Path(path).write_bytes(whole[: len(whole) // 2])
        print("half a checkpoint is written", flush=True)
        time.sleep(600)

    torch.save = replaced


def main() -> int:
    what, rank = sys.argv[1], int(sys.argv[2])
    command = training_command(sys.argv[3:])
    place = distributed.start(command.hps.device or None)
    trainer = train.build(command.hps, sys.argv)
    if place.rank == rank:
        if what == "stall":
            stall_in_the_third_checkpoint()
        elif what != "nothing":
            spoil(trainer, what)
    status = trainer.run()
    told = {"hashes": distributed.gather_objects(state_hash(trainer)), "skipped": trainer.state.skipped}
    distributed.say(json.dumps(told))
    return status


if __name__ == "__main__":
    distributed.run(main)
