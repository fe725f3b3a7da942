"""Train a codec (a VQ-VAE or a stereo VAE) or a prior, or evaluate one.

    python train.py --hps=small_vqvae --name=codec --audio_files_dir=songs --labels=False --bs=4 --train --aug_shift
    python train.py --hps=small_vae --name=vae --vq --audio_files_dir=songs --train --aug_shift
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
from make_models import fetch, fingerprint, make_prior, make_vae, make_vqvae, tables_of
from songbloom import distributed
from songbloom.data.dataset import ChunkDataset
from songbloom.data.labels import Labeller
from songbloom.data.metadata import Hook, described
from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.hyperparams import COMMAND_LINE, Hyperparams
from songbloom.training.labelling import complete_labels, complete_vocabulary, labeller_of, version_of
from songbloom.training.loop import Trainer, describe
from songbloom.training.precision import codec_precision, resolve_precision
from songbloom.training.resume import Beginning, begin, claim, find_beginning, restore_key
from songbloom.training.sketch import SketchTask, make_sketch
from songbloom.training.state import TrainingState, rank_seed
from songbloom.training.tasks import PriorTask, Task, VAETask, VQVAETask
from songbloom.vqvae.bandwidth import measure_bandwidth


def main() -> int:
    command = training_command(sys.argv[1:])
    if command.text:
        say(command.text.rstrip())
        return 0
    place = distributed.start(command.hps.device or None)
    for line in command.notices:
        say(line)
    trainer = build(command.hps, [sys.executable, *sys.argv])
    if place.is_main:
        with (trainer.folder / "argv.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(sys.argv) + "\n")
    return trainer.run()


def build(hps: Hyperparams, argv: Sequence[str] = ()) -> Trainer:
    """The data, the model and the loop, all standing where the run is to begin."""
    kind = kind_of(hps)
    folder = Path(hps.local_logdir) / hps.name
    device = distributed.world().device
    choose_matrix_products(hps)
    if folder.is_dir():
        claim(folder)

    if kind == "prior":
        complete_vocabulary(hps)
    beginning = find_beginning(folder, hps, kind)
    if not hps.train and beginning.content is None and not hps[restore_key(kind)]:
        raise UserError(f"--test without --train: there are no trained weights in {folder}; give --{restore_key(kind)}")
    hook = metadata_hook(hps.get_metadata)
    if kind == "prior" and hps.labels:
        find_labels(hps, beginning, hook)
    task = make_task(hps, beginning, device)
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
        task.model.compile()
    say(describe(hps, state))
    return Trainer(state, folder, train_set, test_set)


def kind_of(hps: Hyperparams) -> str:
    """What is trained: ``"prior"``, ``"vae"``, ``"sketch"`` or ``"vqvae"``; the word that its checkpoints carry."""
    return "prior" if hps.prior else "vae" if hps.vae else "sketch" if hps.sketch else "vqvae"


def find_labels(hps: Hyperparams, beginning: Beginning, hook: Hook | None) -> None:
    """Settle the numbers of artists and genres, and with them ``hps.y_bins``; all ranks call it together."""
    saved = (beginning.content or {}).get("hps", {})
    near = None
    if beginning.content is None and not hps.label_tables:
        near = tables_of(hps.restore_prior, version_of(hps))
    complete_labels(
        hps,
        saved,
        lambda: described(hps.audio_files_dir or None, hps.data_jsonl or None, hook),
        beside=lambda version: near,
    )


def choose_matrix_products(hps: Hyperparams) -> None:
    """On CUDA, float32 products may round factors to TF32's 10 bits, unless ``--precision=fp32`` asks for all 23."""
    exact = hps.precision == "fp32"
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact


def make_task(hps: Hyperparams, beginning: Beginning, device: torch.device) -> Task:
    """The codec or prior on its device; ``hps.sample_length`` becomes the length of its chunks."""
    # What a checkpoint of this run will overwrite need not be read (or downloaded) first.
    trained = hps.copy()
    if beginning.content is not None:
        trained[restore_key(kind_of(hps))] = ""
    if kind_of(hps) == "sketch":
        sketch = make_sketch(hps, device)
        hps.sample_length = sketch.sample_length
        return SketchTask(sketch, hps)
    if kind_of(hps) == "vae":
        vae = make_vae(trained, device)
        hps.sample_length = vae.sample_length
        return VAETask(vae, hps, codec_precision(hps, device, say))
    if not hps.prior:
        vqvae = make_vqvae(trained, device)
        hps.sample_length = vqvae.sample_length
        return VQVAETask(vqvae, hps, codec_precision(hps, device, say))
    vqvae = make_vqvae(hps, device)
    prior = make_prior(trained, vqvae, device)
    if "sample_length" in given(hps) and hps.sample_length != prior.sample_length:
        say(
            f"sample_length: {prior.sample_length} (n_ctx={prior.n_ctx} codes of {prior.hop_length} samples) "
            f"in place of {given(hps)['sample_length']}"
        )
    hps.sample_length = prior.sample_length
    hps.codec = fingerprint(vqvae)
    before = (beginning.content or {}).get("hps", {}).get("codec", hps.codec)
    if before != hps.codec:
        raise UserError(
            f"{beginning.path}: was trained on the codes of another codec than {hps.restore_vqvae}; "
            "give that codec, or another --name to train anew"
        )
    labeller: Labeller | None = None
    if hps.labels:
        labeller = labeller_of(hps, sample_length=prior.sample_length)
    return PriorTask(prior, vqvae, hps, resolve_precision(hps, device, say), labeller)


def given(hps: Hyperparams) -> dict[str, Any]:
    """The values that somebody set on the command line."""
    return {key: hps[key] for key, source in hps.sources.items() if source == COMMAND_LINE}


if __name__ == "__main__":
    distributed.run(main)
