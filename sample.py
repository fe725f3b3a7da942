"""Sample songs: codes level by level, from the coarsest to the finest, and a page to listen to them.

    python sample.py --model=demo_ja --name=samples/first --sample_length_in_seconds=8 --n_samples=4
    mpiexec -n 4 python sample.py --model=small --name=samples/folk --mode=primed --audio_file=a.wav,b.wav \\
        --prompt_length_in_seconds=12 --sample_length_in_seconds=120 --n_samples=8 --hop_fraction=.5,.125

``--help`` tells every option. The same command again goes on with the levels that are missing.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hparams import HPARAMS_REGISTRY, setup_hparams
from make_models import (
    MODELS,
    family_of,
    find_weights,
    make_labeller,
    make_model,
    make_songbloom,
    make_vocabulary,
    parts_of,
    say_what_is_assumed,
    settings_of,
)
from songbloom import distributed
from songbloom.data.labels import Labeller
from songbloom.distributed import say, world
from songbloom.errors import UserError, counted
from songbloom.hyperparams import Hyperparams, Knobs
from songbloom.lora import applying
from songbloom.prior.config import dtype_of
from songbloom.prior.prior import Prior
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.published.fetch import check_together, use_cache_folder
from songbloom.sampling import labelling, memory, needs, preview, request, songbloom_needs, songbloom_request
from songbloom.sampling.form import Frames
from songbloom.sampling.job import Job, perform
from songbloom.sampling.origin import items_of, open_origin, parent_record, seeds_of
from songbloom.sampling.run import fingerprint
from songbloom.sampling.songbloom_labels import SongLabeller, asked_of_options, repeated, rows_of_input
from songbloom.sampling.songbloom_options import check_family, usual_generation
from songbloom.sampling.songbloom_options import settings_of as song_settings_of
from songbloom.sampling.songbloom_writer import SongWriter
from songbloom.sketch.codec import SketchedCodec
from songbloom.training.weights import open_weights
from songbloom.vqvae.vqvae import VQVAE


def main() -> int:
    options = request.command_line(sys.argv[1:], MODELS)
    if options.help:
        say(request.help_text(MODELS))
        return 0
    preview.listen()
    distributed.start(options.device or None)
    family = family_of(options.model)
    check_family(options, family)
    say(f"loading {options.model} on {world().device}")
    say(f"listen: {perform((prepare_songbloom if family == 'songbloom' else prepare)(options))}")
    return 0


def model_files(options: Hyperparams) -> tuple[dict[str, Any], dict[str, str]]:
    """Overrides and checkpoints for :func:`make_models.make_model`."""
    codec, *priors = parts_of(options.model)
    use_cache_folder(options.cache_dir)
    setup_hparams(options.hps)
    overrides: dict[str, Any] = {"local_logdir": options.local_logdir, "label_tables": options.label_tables}
    for name in Knobs.split_names(options.hps):
        overrides |= HPARAMS_REGISTRY[name]
    if family_of(options.model) == "songbloom":
        places = (options.restore_vqvae or options.restore_vae, options.restore_sketch, options.restore_prior)
        return overrides, {name: path for name, path in zip((codec, *priors), places, strict=True) if path}
    checkpoints = {codec: options.restore_vqvae} if options.restore_vqvae else {}
    if options.restore_prior:
        given = [part.strip() for part in options.restore_prior.split(",")]
        if len(given) != len(priors):
            raise UserError(
                f"--restore_prior names {counted(len(given), 'file')}, but {options.model!r} has "
                f"{counted(len(priors), 'level')}: "
                "give one a level from level 0 up, separated by commas; one may be empty"
            )
        checkpoints |= {prior: path for prior, path in zip(priors, given, strict=True) if path}
    return overrides, checkpoints


def prepare(options: Hyperparams) -> Job:
    """Everything that can be known, loaded and refused before the first code is drawn."""
    overrides, checkpoints = model_files(options)
    levels = len(parts_of(options.model)) - 1
    to_write = request.levels_to_write(options, levels)
    # What is missing on this disk, and what cannot be built, is refused before anything is downloaded.
    places = find_weights(options.model, overrides, to_write, checkpoints=checkpoints, download=False)
    _, sizes = make_model(options.model, "meta", overrides, to_write, checkpoints=checkpoints)
    given = applying.read_all(options.lora, options.lora_alpha)
    adapters = applying.by_level(given, {prior.level: prior for prior in sizes}, levels)
    labellers = find_labellers(options.model, overrides, checkpoints, sizes)
    check_memory(options, sizes, places)
    weights = find_weights(options.model, overrides, to_write, checkpoints=checkpoints)
    check_together(weights.values(), open_weights)
    # All ranks download together. From here on files are named, since a rank without items loads no prior.
    files = {name: str(path) for name, path in weights.items()}
    device = world().device
    vqvae, _ = make_model(options.model, device, overrides, (), checkpoints=files)

    def load_prior(level: int) -> Prior:
        dtype = dtype_of(settings[level].precision)
        model = make_model(options.model, device, overrides, [level], checkpoints=files, vqvae=vqvae, dtype=dtype)
        applying.apply(model[1][0], adapters.get(level, ()))
        return model[1][0]

    origin = open_origin(options, vqvae, min(to_write))
    length, codes = request.beginning(options, vqvae, to_write, origin)
    items = codes[0].shape[0]
    batches = batches_of(options, sizes, items)
    settings = {
        prior.level: request.level_settings(options, prior, levels, device, batches[str(prior.level)])
        for prior in sizes
    }
    for prior in sizes:
        request.check_windows(prior, length, settings[prior.level], vqvae)
    seconds = length / vqvae.sample_rate
    asked = labelling.asked_of(options, items)
    seeds = seeds_of(options, items, origin, [each.seed for each in asked] if options.prompts_jsonl else ())
    earlier = [] if origin is None else origin.labels
    if labellers:
        asked = labelling.carried(options, asked, earlier, vqvae.sample_rate)
    known = request.known_lengths(sizes)
    totals_asked = [request.total_length(options, seconds, each, known) for each in asked] if labellers else []
    labels = labelling.level_labels(
        labellers, asked, totals_asked, model=options.model, complete=len(to_write) == levels
    )
    identity = {
        **request.identity(
            options, vqvae, length, codes, settings, asked=asked if labellers else (), totals=totals_asked, seeds=seeds
        ),
        "weights": {name: fingerprint(path) for name, path in weights.items()},
        **applying.identity(adapters),
    }
    return Job(
        options=options,
        vqvae=vqvae,
        load_prior=load_prior,
        seconds=seconds,
        totals={level: length // vqvae.hop_lengths[level] for level in to_write},
        settings=settings,
        codes=codes,
        identity=identity,
        argv=sys.argv,
        labels=labels,
        earlier=earlier,
        seeds=seeds,
        parent=None if origin is None else parent_record(options, origin, seeds, kept_seconds(codes, vqvae)),
        chosen={} if options.max_batch_size else {"max_batch_size": batches},
    )


def batches_of(options: Hyperparams, sizes: Sequence[Prior], items: int) -> dict[str, int]:
    """Items sampled together at each level, where the command line does not say; all ranks call it together."""
    before = {} if options.overwrite else memory.chosen_before(options.name)
    device = world().device
    return memory.choose_batches(sizes, request.precision_of(options, device), device, items, before)


def check_memory(options: Hyperparams, sizes: Sequence[Prior], places: Mapping[str, Path]) -> None:
    """Say what sampling needs of memory, and refuse what cannot fit, before anything is downloaded."""
    levels, device = len(parts_of(options.model)) - 1, world().device
    items = items_of(options, min(each.level for each in sizes))
    batches = batches_of(options, sizes, items)
    settings = {
        each.level: request.level_settings(options, each, levels, device, batches[str(each.level)]) for each in sizes
    }
    sources = {each.level: places[parts_of(options.model)[1 + each.level]] for each in sizes}
    needs.check(sizes, settings, items, device, sources)


def prepare_songbloom(options: Hyperparams, *, again: bool = False) -> Job:
    """The same for a model of the SongBloom family, which writes its two levels in turns; ``again`` once files came."""
    overrides, checkpoints = model_files(options)
    device, name = world().device, parts_of(options.model)[-1]
    places = find_weights(options.model, overrides, checkpoints=checkpoints, download=False)
    sizes, prior_sizes = make_songbloom(options.model, "meta", overrides, checkpoints=checkpoints)
    adapters = applying.by_level(applying.read_all(options.lora, options.lora_alpha), {0: prior_sizes})
    config, form = prior_sizes.config, Frames(prior_sizes.config.eos)
    unit, rate = config.patch_size * sizes.hop_lengths[0], sizes.sample_rate
    frame_rate = rate / sizes.hop_lengths[0]
    hps = settings_of(options.model, name, overrides, checkpoints=checkpoints)
    usual = usual_generation(options.model, hps, frame_rate)
    precision = request.precision_of(options, device)
    rows = rows_of_input(options.input_jsonl) if options.input_jsonl else []
    items = (options.n_samples or 1) * max(len(rows), 1)
    longest = usual.max_frames * sizes.hop_lengths[0]
    seconds = options.sample_length_in_seconds
    frames = usual.max_frames if seconds is None else int(seconds * frame_rate)
    codec_bytes = songbloom_needs.parameter_bytes([sizes.vae])
    before = {} if options.overwrite else memory.chosen_before(options.name)
    fitting = songbloom_needs.batch_of(prior_sizes, precision, device, items, frames, codec_bytes)
    settings = song_settings_of(
        options, usual, config, frame_rate=frame_rate, precision=precision, batch=before.get("0") or fitting
    )
    mine = -(-items // world().size)
    need = songbloom_needs.need_of(
        prior_sizes, settings, mine, frames, codec_bytes=codec_bytes, device=device, source=places.get(name)
    )
    needs.tell([need], device)
    weights = find_weights(options.model, overrides, checkpoints=checkpoints)
    files = {name: str(path) for name, path in weights.items()}
    if make_songbloom(options.model, "meta", overrides, checkpoints=files)[1].config != config:
        if again:
            raise UserError(f"{files[name]}: its settings change while they are read: is something written there now?")
        return prepare_songbloom(options, again=True)  # settings came with the weights; now they are there and count
    say_what_is_assumed(hps, "--model")
    codec, prior = make_songbloom(options.model, device, overrides, checkpoints=files, dtype=dtype_of(precision))
    applying.apply(prior, adapters.get(0, ()))
    hps.update(applying.vocabulary_of(adapters.get(0, ())))
    origin = open_origin(options, codec, 0)
    if rows:
        outputs, asked = repeated(rows, options.n_samples or 1)
        options.n_samples = len(asked)
    length, codes = songbloom_request.beginning(options, codec, unit, longest, form, origin)
    items = len(codes[0])
    if not rows:
        outputs, asked = [], labelling.asked_of(options, items)
    seeds = seeds_of(options, items, origin, [each.seed for each in asked] if options.prompts_jsonl else ())
    labeller = song_labeller(options, hps, codec, config)
    earlier = [] if origin is None else origin.labels
    labels = labeller.labels(asked_of_options(options, asked), earlier[0] if earlier else None)
    identity = {
        **songbloom_request.identity(
            options, length, codes, settings, words=labels.digest(), seeds=seeds, outputs=outputs
        ),
        "weights": {name: fingerprint(path) for name, path in weights.items()},
        **applying.identity(adapters),
    }
    kept = max(each.shape[1] for each in codes) / frame_rate
    return Job(
        options=options,
        vqvae=codec,
        load_prior=lambda _: SongWriter(prior, keeps_sketch=options.mode == "upsample"),
        seconds=length / rate,
        totals={0: length // sizes.hop_lengths[0]},
        settings={0: settings},
        codes=codes,
        identity=identity,
        argv=sys.argv,
        labels={0: labels},
        earlier=earlier,
        seeds=seeds,
        parent=None if origin is None else parent_record(options, origin, seeds, kept),
        chosen={} if options.max_batch_size else {"max_batch_size": {"0": settings.max_batch_size}},
        form=form,
        outputs=outputs,
    )


def song_labeller(
    options: Hyperparams, hps: Hyperparams, codec: SketchedCodec, config: SongBloomConfig
) -> SongLabeller:
    """What turns the words and style prompts of a run into a song model's tokens and latents."""
    rules = {"english": hps.lyrics_english, "reading": hps.lyrics_reading, "language": options.language}
    per_tag = options.seconds_per_tag
    rules["seconds_per_tag"] = hps.seconds_per_tag if per_tag is None else per_tag
    return SongLabeller(make_vocabulary(hps), config.lyric_tokens, codec, config.prompt_frames, rules)


def kept_seconds(codes: Sequence[Tensor], vqvae: VQVAE) -> float:
    """How much of the earlier run the items begin with."""
    return max(each.shape[1] * hop for each, hop in zip(codes, vqvae.hop_lengths, strict=True)) / vqvae.sample_rate


def find_labellers(
    model: str, overrides: dict[str, Any], checkpoints: dict[str, str], sizes: Sequence[Prior]
) -> dict[int, tuple[Labeller, Prior]]:
    """For each level whose prior has labels what makes them; all ranks call it together."""
    told: dict[str, None] = {}  # the tables of several levels lack the same names

    def once(line: str) -> None:
        if line not in told:
            told[line] = None
            say(line)

    found = {}
    for prior in sizes:
        settings = settings_of(model, parts_of(model)[1 + prior.level], overrides, checkpoints=checkpoints)
        labeller = make_labeller(settings, prior, once)
        if labeller is not None:
            found[prior.level] = labeller, prior
    return found


if __name__ == "__main__":
    distributed.run(main, interrupted="interrupted; the same command goes on from here")
