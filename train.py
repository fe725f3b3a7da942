"""Train a codec or a prior, or evaluate one.

    python train.py --hps=small_vqvae --name=codec --audio_files_dir=songs --labels=False --bs=4 --train --aug_shift
    mpiexec -n 4 python train.py --hps=small_vqvae,small_prior,all_fp16,cpu_ema --name=prior --prior --level=1 \\
        --restore_vqvae=logs/codec/checkpoint_latest.pth.tar --audio_files_dir=songs --labels=False --bs=4 --train --test

``--help`` tells every option. The same command again goes on from the last checkpoint in ``logs/{name}``.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from hparams import training_command
from make_models import derive_sample_length, fetch, make_prior, make_vqvae
from songbloom import distributed
from songbloom.data.dataset import ChunkDataset
from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.training.loop import Trainer, describe
from songbloom.training.precision import codec_precision, resolve_precision
from songbloom.training.resume import Beginning, begin, find_beginning, restore_key
from songbloom.training.state import TrainingState, rank_seed
from songbloom.training.tasks import PriorTask, Task, VQVAETask
from songbloom.vqvae.bandwidth import measure_bandwidth


def main() -> int:
    command = training_command(sys.argv[1:])
    if command.text:
        say(command.text.rstrip())
        return 0
    hps = command.hps
    check(hps)
    place = distributed.start(hps.device or None)
    for line in command.notices:
        say(line)
    kind = "prior" if hps.prior else "vqvae"
    folder = Path(hps.local_logdir) / hps.name
    choose_matrix_products(hps)
    hps.sample_length = chunk_length(hps)

    beginning = find_beginning(folder, hps, kind)
    train_set = ChunkDataset(hps, split="train")
    test_set = ChunkDataset(hps, split="test") if hps.test else None
    task = make_task(hps, beginning, train_set, place.device)
    state = TrainingState(task, hps, [sys.executable, *sys.argv])
    torch.manual_seed(rank_seed(hps))  # for dropout; all other choices have generators of their own
    begin(state, beginning, fetch)
    if hps.torch_compile:
        task.model.compile()

    if place.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "argv.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(sys.argv) + "\n")
    say(describe(hps, state))
    trainer = Trainer(state, folder, train_set, test_set)
    trainer.logger.settings(hps, state.step)
    return trainer.run()


def check(hps: Hyperparams) -> None:
    """What must be known before anything is read or written."""
    if not (hps.train or hps.test):
        raise UserError("nothing to do: give --train, --test or both")
    if not hps.name:
        raise UserError(f"--name is missing: it names the run's folder, {hps.local_logdir}/NAME")


def choose_matrix_products(hps: Hyperparams) -> None:
    """On CUDA, float32 products may round their factors to TF32's 10 bits, unless ``--precision=fp32`` asks for all 23."""
    exact = hps.precision == "fp32"
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact


def chunk_length(hps: Hyperparams) -> int:
    """Samples of a chunk: what was asked for with a codec; with a prior, exactly its context."""
    if not hps.prior:
        return derive_sample_length(hps)
    hop = math.prod(s**d for s, d in zip(hps.strides_t[: hps.level + 1], hps.downs_t[: hps.level + 1], strict=True))
    length = hps.n_ctx * hop
    if hps.sample_length not in (0, length):
        say(f"sample_length: {length} (n_ctx={hps.n_ctx} codes of {hop} samples) in place of {hps.sample_length}")
    return length


def make_task(hps: Hyperparams, beginning: Beginning, train_set: ChunkDataset, device: torch.device) -> Task:
    """The codec or prior with its data's measures, on its device."""
    resumed = beginning.content is not None
    # What a checkpoint of this run will overwrite need not be read (or downloaded) first.
    trained: Any = hps.copy()
    if resumed:
        trained[restore_key("prior" if hps.prior else "vqvae")] = ""
    if hps.prior:
        vqvae = make_vqvae(hps, device)
        return PriorTask(make_prior(trained, vqvae, device), vqvae, hps, resolve_precision(hps, device, say))
    vqvae = make_vqvae(trained, device)
    saved = beginning.content["hps"].get("bandwidth") if beginning.content is not None else None
    hps.bandwidth = saved or measure_bandwidth(train_set)
    vqvae.bandwidth = hps.bandwidth
    return VQVAETask(vqvae, hps, codec_precision(hps, device, say))


if __name__ == "__main__":
    distributed.run(main)
