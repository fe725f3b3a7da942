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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from hparams import metadata_hook, training_command
from make_models import (
    SKETCH_DIGEST,
    complete_songbloom,
    fetch,
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
from songbloom import distributed
from songbloom.data.cache import Cache
from songbloom.data.check import CheckSettings, check_before_training
from songbloom.data.dataset import ChunkDataset
from songbloom.data.labels import Labeller
from songbloom.data.manifest import songs_from
from songbloom.data.metadata import Hook, described
from songbloom.data.songbloom_dataset import Encoder, SongBloomDataset, WordSettings, songs_of
from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.hyperparams import COMMAND_LINE, DEFAULT_SOURCE, Hyperparams
from songbloom.lora.training import adapt
from songbloom.lora.words import base_words
from songbloom.published.fetch import cache_folder as downloads_folder
from songbloom.published.fetch import use_cache_folder
from songbloom.sampling.songbloom_labels import SongLabeller
from songbloom.sampling.songbloom_options import usual_generation
from songbloom.sketch.codec import SketchedCodec
from songbloom.sketch.features import FRAME_RATE
from songbloom.sketch.recovery import Sung
from songbloom.training.labelling import complete_labels, complete_vocabulary, labeller_of, version_of
from songbloom.training.loop import Trainer, describe
from songbloom.training.precision import codec_precision, resolve_precision
from songbloom.training.recover import Told, features_to_try, recover_codebook, told_of, varied, written_songs
from songbloom.training.resume import Beginning, begin, claim, find_beginning, restore_key
from songbloom.training.sketch import SketchTask, make_sketch
from songbloom.training.songbloom import VERDICT_ITEMS, SongBloomTask
from songbloom.training.state import TrainingState, rank_seed
from songbloom.training.tasks import PriorTask, Task, VAETask, VQVAETask
from songbloom.vqvae.bandwidth import measure_bandwidth

ANY_LENGTH = 1 << 40  # frames; sketches of other lengths are cut, and told by the encoder
# An adapter's A learns nothing while its B is zero; own rows learn where their symbols are sung.
ZERO_AT_FIRST = (".A", ".rows.values")


class NothingToTrain(Exception):
    """The command has done all that it was asked for."""


def main() -> int:
    command = training_command(sys.argv[1:])
    if command.text:
        say(command.text.rstrip())
        return 0
    place = distributed.start(command.hps.device or None)
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
    restoring = restore_key(saved_as(hps))
    if not hps.train and beginning.content is None and not hps[restoring]:
        raise UserError(f"--test without --train: there are no trained weights in {folder}; give --{restoring}")
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
        task.model.compile()
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
    beginning = find_beginning(folder, hps, saved_as(hps))
    if not hps.train and beginning.content is None and not hps.restore_prior:
        raise UserError(f"--test without --train: there are no trained weights in {folder}; give --restore_prior")
    check_data(hps)
    training, validation = songs_of(hps)
    hps.test = bool(validation) and (hps.test or hps.train)

    vae = make_vae(hps.copy(), device)
    tokeniser = make_tokeniser(hps, device)
    codec = SketchedCodec(vae, tokeniser, hps.l_bins)
    remember_codec(hps, beginning, fingerprint(vae), tokeniser.digest if tokeniser is not None else "")
    encoder = Encoder(
        codec,
        Cache(cache_folder(hps, folder), rebuild=hps.rebuild_cache),
        hps.codec,
        hps.sketch_mode,
        make_vocabulary(hps),
        WordSettings.from_hps(hps),
        hps.require_length_match,
        prompt_samples=hps.prompt_frames * codec.hop_lengths[0],
    )
    encoded = encoder.songs(training, say), encoder.songs(validation, say)
    if encoder.mismatches:
        say(f"note: {len(encoder.mismatches)} sketches have other lengths than their latents; both are cut")
    if hps.verify_lengths:
        for line in encoder.verify([*encoded[0], *encoded[1]], hps.verify_lengths_max):
            say(line)
    say(encoder.cache.report())
    sets = [songbloom_set(hps, codec, encoder.cache, songs) for songs in encoded]
    if hps.cache_only:
        raise NothingToTrain

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
    claim(folder)
    state = TrainingState(task, hps, argv)
    torch.manual_seed(rank_seed(hps))
    begin(state, beginning, fetch)
    look_before(task, sets[0], state, pretrained=bool(hps.restore_prior))
    if hps.torch_compile:
        task.model.compile()
    say(describe(hps, state))
    return Trainer(state, folder, *sets)


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


def check_data(hps: Hyperparams) -> None:
    """What ``python -m songbloom.data.check`` tells, against the settings of this run."""
    settings = CheckSettings(
        lyrics_vocab=hps.lyrics_vocab or "songbloom",
        english=hps.lyrics_english,
        reading=hps.lyrics_reading,
        language=hps.language if hps.process_lyrics else "phonemes",
        seconds_per_tag=hps.seconds_per_tag,
        max_tokens=0,  # what a segment's words are is known when they are cropped
        sample_rate=hps.sr,
        min_seconds=hps.patch_size / 25,
        sketch_codes=hps.l_bins,
        sketch_slack=2 if hps.require_length_match else ANY_LENGTH,
        prompt_seconds=hps.prompt_frames / 25,
        need_lyrics=False,
        need_sketch=hps.sketch_mode == "precomputed",
    )
    check_before_training(*(name for name in (hps.data_jsonl, hps.val_jsonl) if name), settings=settings)


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


def cache_folder(hps: Hyperparams, folder: Path) -> Path:
    """Where encoded songs are kept: in the run's folder, or with ``use_cache`` where other runs find them too."""
    if not hps.use_cache:
        return folder / "encoded"
    return Path(hps.cache_dir).expanduser() if hps.cache_dir else downloads_folder() / "training"


def songbloom_set(hps: Hyperparams, codec: SketchedCodec, cache: Cache, songs: Sequence[Any]) -> Any:
    """The data set of encoded songs; None of none."""
    if not songs:
        return None
    if not any(song.frames >= 25 * (hps.min_duration or 0) for song in songs):
        raise UserError(f"min_duration={hps.min_duration:g} s leaves none of {len(songs)} songs: lower it")
    made = SongBloomDataset(
        [song for song in songs if song.frames >= 25 * (hps.min_duration or 0)],
        cache,
        segment=codec.frames(hps.sample_length or round(hps.sample_length_in_seconds * codec.sample_rate)),
        patch_size=hps.patch_size,
        lyric_tokens=hps.lyric_tokens,
        prompt_frames=hps.prompt_frames,
        prompt_length=round(hps.prompt_seconds * 25),
        strategy=hps.segment_strategy,
        seed=hps.seed,
    )
    if len(made.songs) < len(songs):
        least = f"min_duration={hps.min_duration:g} s" if hps.min_duration else "a patch"
        say(f"note: {len(songs) - len(made.songs)} songs are shorter than {least} and are left out")
    if made.cut_lyrics():
        say(
            f"note: {made.cut_lyrics()} of {len(made)} segments have more words than lyric_tokens={hps.lyric_tokens} "
            "hold; they are cut there"
        )
    return made


def look_before(task: SongBloomTask, songs: SongBloomDataset, state: TrainingState, *, pretrained: bool) -> None:
    """Before the first step: what the model knows of the sketch tokens, and whether every tensor gets a gradient."""
    if state.step or not task.hps["train"]:
        return
    items = [songs[item] for item in range(min(len(songs), VERDICT_ITEMS))]
    batches = [task.batch_of(default_collate([item]), distributed.world().device) for item in items]
    for line in task.verdict(batches, pretrained=pretrained):
        say(line)
    task.check_gradients(batches[0], zero_allowed=ZERO_AT_FIRST)


def kind_of(hps: Hyperparams) -> str:
    """What is trained: ``"prior"``, ``"vae"``, ``"sketch"`` or ``"vqvae"``."""
    return "prior" if hps.prior else "vae" if hps.vae else "sketch" if hps.sketch else "vqvae"


def saved_as(hps: Hyperparams) -> str:
    """The word that checkpoints of the run carry: ``"lora"`` where adapters are trained, else what is trained."""
    return "lora" if hps.lora else kind_of(hps)


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


def songs_of_model(hps: Hyperparams, device: torch.device) -> tuple[Iterator[Sung], int]:
    """Songs that the model ``recover_from`` writes, and how many codes it has.

    They are told the lyrics and style prompts (else the beginnings) of the songs of ``data_jsonl`` or
    ``audio_files_dir``, in turn; without such songs nothing.
    """
    named = ("restore_vae", "restore_prior", "local_logdir")
    wanted = {key: value for key, value in given(hps).items() if key in named}
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


def given(hps: Hyperparams) -> dict[str, Any]:
    """The values that somebody set on the command line."""
    return {key: hps[key] for key, source in hps.sources.items() if source == COMMAND_LINE}


if __name__ == "__main__":
    distributed.run(main)
