"""Train a codec (a VQ-VAE or a stereo VAE) or a prior, or evaluate one.

    python train.py --hps=small_vqvae --name=codec --audio_files_dir=songs --labels=False --bs=4 --train --aug_shift
    python train.py --hps=small_vae --name=vae --vq --audio_files_dir=songs --train --aug_shift
    python train.py --hps=small_songbloom --name=song --prior --data_jsonl=songs.jsonl --val_split=0.1 --train
    mpiexec -n 4 python train.py --hps=small_vqvae,small_prior,all_fp16,cpu_ema --name=prior --prior --level=1 \\
        --restore_vqvae=logs/codec/checkpoint_latest.pth.tar --audio_files_dir=songs --labels=False --bs=4 --train

``--help`` tells every option. The same command again goes on from the last checkpoint in ``logs/{name}``.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hparams import metadata_hook, training_command
from make_models import fetch, make_vocabulary
from make_tasks import (
    find_labels,
    kind_of,
    make_songbloom_codec,
    make_songbloom_task,
    make_task,
    require_weights,
    saved_as,
    songs_of_model,
    start_of,
)
from songbloom import allocator, distributed
from songbloom.data.dataset import ChunkDataset
from songbloom.distributed import say
from songbloom.hyperparams import Hyperparams
from songbloom.lora.training import adapt
from songbloom.training.labelling import complete_vocabulary
from songbloom.training.loop import Trainer, describe
from songbloom.training.models import SKETCH_DIGEST
from songbloom.training.recover import features_to_try, recover_codebook
from songbloom.training.resume import begin, claim, find_beginning
from songbloom.training.songbloom_data import checked_songs, encoded_sets, look_before
from songbloom.training.state import TrainingState, rank_seed
from songbloom.vqvae.bandwidth import measure_bandwidth


class NothingToTrain(Exception):
    """The command has done all that it was asked for."""


def main() -> int:
    command = training_command(sys.argv[1:])
    if command.text:
        say(command.text.rstrip())
        return 0
    place = distributed.start(command.hps.device or None)
    if place.device.type == "cpu":  # elsewhere large tensors are not malloc's
        allocator.keep_memory()
    for line in command.notices:
        say(line)
    if command.hps.recover_from or command.hps.recover_tokens:
        features = features_to_try(command.hps, place.device)
        written = songs_of_model(command.hps, place.device) if command.hps.recover_from else None
        return recover_codebook(command.hps, features, written)
    try:
        trainer = build(command.hps, [sys.executable, *sys.argv])
    except NothingToTrain:
        return 0
    if place.is_main:
        with (trainer.folder / "argv.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(sys.argv) + "\n")
    return trainer.run()


def build(hps: Hyperparams, argv: Sequence[str] = ()) -> Trainer:
    """The data, the model and the loop, all standing where the run is to begin."""
    kind = kind_of(hps)
    if hps.songbloom:
        return build_songbloom(hps, argv)
    folder = Path(hps.local_logdir) / hps.name
    device = distributed.world().device
    choose_matrix_products(hps)
    if folder.is_dir():
        claim(folder)

    if kind == "prior":
        complete_vocabulary(hps)
    beginning = find_beginning(folder, hps, saved_as(hps))
    require_weights(hps, beginning, folder)
    hook = metadata_hook(hps.get_metadata)
    if kind == "prior" and hps.labels:
        find_labels(hps, beginning, hook)
    task = make_task(hps, beginning, device)
    if hps.lora:
        adapt(task, hps, beginning.content, say=say)
    labels: dict[str, Any] = {"labeller": task.labeller, "get_metadata": hook}
    train_set = ChunkDataset(hps, split="train", **labels)
    test_set = ChunkDataset(hps, split="test", **labels) if hps.test else None
    if kind == "vqvae":
        saved = beginning.content["hps"].get("bandwidth") if beginning.content is not None else None
        hps.bandwidth = task.model.bandwidth = saved or measure_bandwidth(train_set, sample_rate=hps.sr)

    claim(folder)  # only now: a mistake in the data or the model leaves no folder behind
    state = TrainingState(task, hps, argv)
    torch.manual_seed(rank_seed(hps))  # for dropout; all other choices have generators of their own
    begin(state, beginning, fetch)
    if hps.torch_compile:
        task.compile_model()
    say(describe(hps, state))
    return Trainer(state, folder, train_set, test_set)


def build_songbloom(hps: Hyperparams, argv: Sequence[str] = ()) -> Trainer:
    """As :func:`build`, of a SongBloom prior: songs are checked, then encoded, then looked at before training.

    Raises:
        NothingToTrain: the songs are encoded, and the command asks for no more.
    """
    folder = Path(hps.local_logdir) / hps.name
    device = distributed.world().device
    choose_matrix_products(hps)
    if folder.is_dir():
        claim(folder)
    start_of(hps)
    named = hps.get(SKETCH_DIGEST)  # the codebook of the weights to begin with, or to adapt
    beginning = find_beginning(folder, hps, saved_as(hps))
    require_weights(hps, beginning, folder)
    songs = checked_songs(hps)
    codec = make_songbloom_codec(hps, beginning, device)
    train_set, test_set = encoded_sets(hps, folder, songs, codec, make_vocabulary(hps))
    if hps.cache_only:
        raise NothingToTrain
    assert train_set is not None  # there are songs to train on, or they would have been refused

    task = make_songbloom_task(hps, beginning, codec, device)
    if test_set is not None:
        task.show(test_set)
    claim(folder)
    state = TrainingState(task, hps, argv)
    torch.manual_seed(rank_seed(hps))
    begin(state, beginning, fetch)
    look_before(
        task,
        train_set,
        state,
        pretrained=bool(hps.restore_prior),
        # another codebook than the checkpoint or the base names has been refused
        same_codebook=bool(named or (beginning.content or {}).get("hps", {}).get(SKETCH_DIGEST)),
    )
    if hps.torch_compile:
        task.compile_model()
    say(describe(hps, state))
    return Trainer(state, folder, train_set, test_set)


def choose_matrix_products(hps: Hyperparams) -> None:
    """On CUDA, float32 products may round factors to TF32's 10 bits, unless ``--precision=fp32`` asks for all 23."""
    exact = hps.precision == "fp32"
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact


if __name__ == "__main__":
    distributed.run(main)
