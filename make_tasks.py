"""Hyperparameters → what is trained: the model on its device with its loss, and what it must begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from make_models import (
    MODELS,
    SKETCH_DIGEST,
    check_codec,
    complete_songbloom,
    fingerprint,
    make_prior,
    make_songbloom,
    make_songbloom_prior,
    make_tokeniser,
    make_vae,
    make_vocabulary,
    make_vqvae,
    parts_of,
    settings_of,
    tables_of,
)
from songbloom.data.labels import Labeller
from songbloom.data.manifest import songs_from
from songbloom.data.metadata import Hook, described
from songbloom.distributed import say
from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import COMMAND_LINE, DEFAULT_SOURCE, Hyperparams
from songbloom.lora.training import adapt
from songbloom.lora.words import base_words
from songbloom.published.fetch import use_cache_folder
from songbloom.sampling.songbloom_labels import SongLabeller
from songbloom.sampling.songbloom_options import usual_generation
from songbloom.sketch.codec import SketchedCodec
from songbloom.sketch.features import FRAME_RATE
from songbloom.sketch.recovery import Sung
from songbloom.training.labelling import complete_labels, labeller_of, version_of
from songbloom.training.precision import codec_precision, resolve_precision
from songbloom.training.recover import Told, told_of, varied, written_songs
from songbloom.training.resume import Beginning, restore_key
from songbloom.training.sketch import SketchTask, make_sketch
from songbloom.training.songbloom import SongBloomTask
from songbloom.training.tasks import PriorTask, Task, VAETask, VQVAETask


def kind_of(hps: Hyperparams) -> str:
    """What is trained: ``"prior"``, ``"vae"``, ``"sketch"`` or ``"vqvae"``."""
    return "prior" if hps.prior else "vae" if hps.vae else "sketch" if hps.sketch else "vqvae"


def saved_as(hps: Hyperparams) -> str:
    """The word that checkpoints of the run carry: ``"lora"`` where adapters are trained, else what is trained."""
    return "lora" if hps.lora else kind_of(hps)


def given(hps: Hyperparams) -> dict[str, Any]:
    """The values that somebody set on the command line."""
    return {key: hps[key] for key, source in hps.sources.items() if source == COMMAND_LINE}


def require_weights(hps: Hyperparams, beginning: Beginning, folder: Path) -> None:
    """Refuse to judge where nothing has been trained."""
    restoring = restore_key(saved_as(hps))
    if not hps.train and beginning.content is None and not hps[restoring]:
        raise UserError(f"--test without --train: there are no trained weights in {folder}; give --{restoring}")


def make_task(hps: Hyperparams, beginning: Beginning, device: torch.device) -> Task:
    """The codec or prior on its device; ``hps.sample_length`` becomes the length of its chunks."""
    # What a checkpoint of this run will overwrite need not be read (or downloaded) first.
    trained = hps.copy()
    if beginning.content is not None:
        trained[restore_key(saved_as(hps))] = ""
    if hps.lora:
        trained.train = False  # a base is as sampling loads it: frozen, averaged weights
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


def start_of(hps: Hyperparams) -> None:
    """Settle what a SongBloom run begins with, and where a cosine ends."""
    if hps.init_from_pretrained and not hps.restore_prior:
        raise UserError("--init_from_pretrained: the sets name no weights to begin with; give --restore_prior=FILE")
    if hps.init_from_pretrained is False:
        hps.restore_prior = ""
    if hps.lora and not hps.restore_prior:
        raise UserError(
            "--lora needs the weights that are adapted: give --init_from_pretrained or --restore_prior=FILE"
        )
    use_cache_folder(hps.local_dir)
    complete_songbloom(hps)
    if hps.lora and hps.sources.get("lyrics_vocab") == COMMAND_LINE:
        hps.pop("lyric_symbols", None)  # adapters may know more symbols than their base
    if hps.max_duration:
        hps.sample_length = round(hps.max_duration * 25) * (hps.sr // 25)
    if hps.lr_use_cosine_decay and hps.train_steps and hps.sources.get("lr_decay") == DEFAULT_SOURCE:
        hps.lr_decay = float(max(1, hps.train_steps - hps.lr_start_linear_decay))


def make_songbloom_codec(hps: Hyperparams, beginning: Beginning, device: torch.device) -> SketchedCodec:
    """The frozen codec of a SongBloom prior; ``hps`` remembers which it is.

    Raises:
        UserError: another codec or codebook than that of the weights that training begins with.
    """
    vae = make_vae(hps.copy(), device)
    if hps.lora:
        check_codec(hps, vae)  # of the base; a prior that is trained itself is compared by remember_codec
    tokeniser = make_tokeniser(hps, device)
    remember_codec(hps, beginning, fingerprint(vae), tokeniser.digest if tokeniser is not None else "")
    return SketchedCodec(vae, tokeniser, hps.l_bins)


def make_songbloom_task(
    hps: Hyperparams, beginning: Beginning, codec: SketchedCodec, device: torch.device
) -> SongBloomTask:
    """A SongBloom prior on its device, or adapters of one."""
    trained = hps.copy()
    if beginning.content is not None:
        trained[restore_key(saved_as(hps))] = ""
    words = base_words(hps.restore_prior, make_vocabulary(hps).symbols) if hps.lora else None
    if words is not None:
        trained.train = False  # a base is as sampling loads it: frozen, averaged weights
        trained.lyrics_vocab, trained.lyric_symbols = words.vocabulary, words.known
    prior = make_songbloom_prior(trained, device)
    hps.lyric_symbols = trained.lyric_symbols if words is None else words.wanted
    task = SongBloomTask(prior, codec, hps, resolve_precision(hps, device, say))
    if words is not None:
        adapt(task, hps, beginning.content, words=words, say=say)
    return task


def remember_codec(hps: Hyperparams, beginning: Beginning, codec: str, sketch: str) -> None:
    """Keep in the settings which codec the prior learns, and refuse another one than its checkpoint was trained on."""
    hps.codec, before = codec, (beginning.content or {}).get("hps", {})
    hps[SKETCH_DIGEST] = sketch or before.get(SKETCH_DIGEST, "")
    for key, what in (("codec", "latents of another VAE"), (SKETCH_DIGEST, "codes of another sketch codebook")):
        if before.get(key) and before[key] != hps[key]:
            raise UserError(
                f"{beginning.path}: was trained on {what} than this command gives: give that one, or another --name to "
                "train anew"
            )


def songs_of_model(hps: Hyperparams, device: torch.device) -> tuple[Iterator[Sung], int]:
    """Songs that the model ``recover_from`` writes, and how many codes it has.

    They are told the lyrics and style prompts (else the beginnings) of the songs of ``data_jsonl`` or
    ``audio_files_dir``, in turn; without such songs nothing.
    """
    named = ("restore_vae", "restore_prior", "local_logdir")
    wanted = {key: value for key, value in given(hps).items() if key in named}
    if hps.recover_from not in MODELS:
        near = did_you_mean(hps.recover_from, MODELS)
        raise UserError(f"--recover_from={hps.recover_from}: no model is named so{near}; known: {', '.join(MODELS)}")
    codec, prior = make_songbloom(hps.recover_from, device, wanted)
    own = settings_of(hps.recover_from, parts_of(hps.recover_from)[-1], wanted)
    rules = {"english": own.lyrics_english, "reading": own.lyrics_reading, "seconds_per_tag": own.seconds_per_tag}
    config = prior.config
    labeller = SongLabeller(make_vocabulary(own), config.lyric_tokens, codec, config.prompt_frames, rules)
    told: list[Told] = [((), None)]
    if hps.data_jsonl or hps.audio_files_dir:
        songs = songs_from(audio_files_dir=hps.audio_files_dir or None, data_jsonl=hps.data_jsonl or None)
        told = [told_of(song, labeller) for song in songs[: hps.recover_songs]]
    told = [told[number % len(told)] for number in range(hps.recover_songs)]
    settings = varied(usual_generation(hps.recover_from, own, FRAME_RATE), hps.recover_seconds, hps.recover_steps)
    return written_songs(prior, codec, settings, told, seed=hps.seed), config.l_bins


if __name__ == "__main__":
    print(
        "make_tasks.py is no command: train.py reads it. See python train.py --help, and python make_models.py --help."
    )
