"""What a command line asks of the sampler: its options, and what they mean for a model of given sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from songbloom.distributed import say
from songbloom.errors import UserError, counted, did_you_mean
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.sampling import prompts
from songbloom.sampling.labelling import Asked, digest, rows_of
from songbloom.sampling.memory import LARGEST_BATCH
from songbloom.sampling.options import A_LEVEL, knobs
from songbloom.sampling.origin import Origin, open_origin
from songbloom.sampling.sampler import LevelSettings, item_seeds
from songbloom.sampling.sound import check_format
from songbloom.sampling.windows import hop_of
from songbloom.vqvae.vqvae import VQVAE


def help_text(models: Iterable[str]) -> str:
    """What ``--help`` prints."""
    usage = (
        "usage: python sample.py --model=MODEL --name=FOLDER [--key=value | --key value | --flag | --no-flag] …\n\n"
        "Writes songs to FOLDER, with a page to listen to them. The same command goes on where it was stopped.\n"
        "  python sample.py --model=demo_ja --name=samples/first --n_samples=4 --sample_length_in_seconds=8\n"
        "  python sample.py --model=demo_ja --name=samples/longer --mode=continue --codes_file=samples/first \\\n"
        "      --sample_length_in_seconds=16"
    )
    return knobs(models).help(usage).rstrip()


def command_line(arguments: Sequence[str], models: Iterable[str]) -> Hyperparams:
    """The options, defaults filled in.

    Raises:
        UserError: whatever a person mistyped or left out, in one line.
    """
    models = list(models)
    known = knobs(models)
    options = known.merge({}, "", known.parse(arguments))
    if options.help:
        return options
    if not options.model:
        raise UserError(f"--model is missing: give one of {', '.join(models)}")
    if options.model not in models:
        near = did_you_mean(options.model, models)
        raise UserError(f"--model: no model is named {options.model!r}{near}; known: {', '.join(models)}")
    if not options.name:
        raise UserError("--name is missing: it names the folder to write to, such as --name=samples/first")
    if bool(options.audio_file) != (options.mode == "primed"):
        raise UserError("--audio_file and --mode=primed belong together: give both or neither")
    if bool(options.codes_file) != (options.mode in ("continue", "upsample")):
        raise UserError("--codes_file belongs to --mode=continue and --mode=upsample: give it with one of these")
    if options.prompt_length_in_seconds is not None and options.mode in ("ancestral", "upsample"):
        raise UserError(f"--prompt_length_in_seconds has no meaning with --mode={options.mode}: leave it out")
    for key in ("sample_length_in_seconds", "total_sample_length_in_seconds", "prompt_length_in_seconds", "cut_at"):
        if options[key] == float("inf"):
            raise UserError(f"--{key}=inf: give a number of seconds")
    _check_going_on(options)
    if options.lora_alpha is not None and not options.lora:
        raise UserError("--lora_alpha belongs to adapters: give --lora=FILE with it")
    if options.input_jsonl:
        for key in ("prompts_jsonl", "codes_file", "seeds", "lyrics", "lyrics_file"):
            if options[key]:
                raise UserError(f"--input_jsonl and --{key} are both given: leave one out")
    if options.n_samples is None and not options.codes_file:
        if options.prompts_jsonl:
            options.n_samples = len(rows_of(options.prompts_jsonl))
        elif options.seeds is not None:
            options.n_samples = len(options.seeds)
    return options


def _check_going_on(options: Hyperparams) -> None:
    """Refuse choosing from a run where there is none."""
    for key in ("pick", "cut_at", "branch"):
        if options[key] is not None and not options.codes_file:
            raise UserError(
                f"--{key} belongs to an earlier run: give --mode=continue (or upsample) and --codes_file=FOLDER with it"
            )
    if options.cut_at is not None and options.prompt_length_in_seconds is not None:
        raise UserError("--cut_at and --prompt_length_in_seconds both say how much is kept: leave one out")


def levels_to_write(options: Hyperparams, levels: int) -> list[int]:
    """The levels to write: those of the mode, or of these the ones that are asked for."""
    possible = range(levels - 1) if options.mode == "upsample" else range(levels)
    if not possible:
        raise UserError(f"--mode=upsample writes the levels below the top, and {options.model!r} has one level only")
    chosen = sorted(set(possible if options.levels_to_sample is None else options.levels_to_sample))
    strange = [level for level in chosen if level not in possible]
    if strange:
        there = f"levels {possible[0]} to {possible[-1]}" if len(possible) > 1 else f"level {possible[0]} only"
        raise UserError(f"--levels_to_sample={strange[0]}: --mode={options.mode} writes {there}, of {options.model!r}")
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise UserError("--levels_to_sample leaves a gap: a level is written from the one directly above it")
    if not options.codes_file and chosen[-1] != levels - 1:
        raise UserError(
            f"--levels_to_sample leaves out the top level {levels - 1}, from which the others are written: add it, or "
            "give --mode=upsample and --codes_file"
        )
    return chosen


def sample_length(options: Hyperparams, vqvae: VQVAE, loaded: Sequence[Tensor] | None) -> int:
    """Samples an item, a whole number of codes of the top level."""
    hop, rate = vqvae.hop_lengths[-1], vqvae.sample_rate
    seconds = options.sample_length_in_seconds
    as_before = options.mode == "upsample" or options.cut_at is not None
    if seconds is None and as_before and loaded is not None:
        return max(each.shape[1] * step for each, step in zip(loaded, vqvae.hop_lengths, strict=True)) // hop * hop
    seconds = 24.0 if seconds is None else seconds
    length = prompts.whole_codes(seconds, rate, hop)
    if not length:
        raise UserError(
            f"--sample_length_in_seconds={seconds:g} is less than one code of the top level, {hop / rate:.3f} s"
        )
    return length


def total_length(
    options: Hyperparams, seconds: float, asked: Asked | None = None, known: tuple[float, float] | None = None
) -> float:
    """Length in seconds of the song that an item is said to begin.

    Args:
        options: the command line.
        seconds: length of the item.
        asked: for this item; its own total counts more than the command line's.
        known: shortest (inclusive) and longest (exclusive) song that the model knows.

    Raises:
        UserError: the song would be shorter than the item, or of a length that the model does not know.
    """
    total = asked.total if asked is not None and asked.total is not None else options.total_sample_length_in_seconds
    low, high = known or (0.0, float("inf"))
    if total is None:
        usual = max(240.0, seconds)
        total = usual if low <= usual < high else max(low, seconds)
    elif total < seconds and asked is not None and asked.carried:
        raise UserError(
            f"{options.codes_file}: that run was told to begin a song of {total:g} s, and this one goes on to "
            f"{seconds:g} s: give --total_sample_length_in_seconds={math.ceil(seconds)} or more, or a shorter "
            "--sample_length_in_seconds"
        )
    elif total < seconds:
        raise UserError(
            f"--total_sample_length_in_seconds={total:g} is less than --sample_length_in_seconds={seconds:g}: "
            "an item is a part of the whole"
        )
    if not low <= total < high:
        raise UserError(
            f"--total_sample_length_in_seconds={total:g}: this model knows songs of {low:g} s up to, not including, "
            f"{high:g} s; give a total within these, and items that fit"
        )
    return float(total)


def known_lengths(priors: Iterable[Prior]) -> tuple[float, float] | None:
    """Shortest (inclusive) and longest (exclusive) song in seconds that priors with timing labels know; None: any."""
    ranges = [
        (each.label_conditioner.timing.min_duration, each.label_conditioner.timing.max_duration)
        for each in priors
        if each.label_conditioner is not None and each.label_conditioner.timing is not None
    ]
    return (max(low for low, _ in ranges), min(high for _, high in ranges)) if ranges else None


def beginning(
    options: Hyperparams, vqvae: VQVAE, levels: Sequence[int], origin: Origin | None = None
) -> tuple[int, list[Tensor]]:
    """How long an item becomes, and what is there of it before sampling.

    Args:
        options: the command line.
        vqvae: the codec.
        levels: those to write.
        origin: what it goes on from (:func:`songbloom.sampling.origin.open_origin`); opened here where it is not given.

    Returns:
        Samples an item, and codes ``[items, …]`` int64 for each level of the codec, finest first.

    Raises:
        UserError: a prompt cannot be read or does not fit the model or the length.
    """
    check_sizes(options, vqvae)
    if options.mode == "ancestral":
        return sample_length(options, vqvae, None), prompts.empty_codes(options.n_samples or 1, vqvae.levels)
    seconds = options.prompt_length_in_seconds
    if options.mode == "primed":
        length = sample_length(options, vqvae, None)
        paths = [part.strip() for part in options.audio_file.split(",") if part.strip()]
        codes = prompts.codes_from_audio(paths, options.n_samples or len(paths), vqvae, seconds, length)
        if codes[-1].shape[1] * vqvae.hop_lengths[-1] >= length:
            say(
                "note: the sound fills the whole item, so nothing is written after it; give "
                "--prompt_length_in_seconds, or a longer --sample_length_in_seconds"
            )
        return length, codes
    origin = origin or open_origin(options, vqvae, min(levels))
    assert origin is not None  # the command line was checked
    loaded = origin.codes
    keep = kept_length(options, vqvae, origin, vqvae.hop_lengths[-1])
    if options.mode == "upsample" and keep is not None:
        loaded = prompts.cut(loaded, keep, vqvae.hop_lengths)
    length = sample_length(options, vqvae, loaded)
    codes = prompts.cut(loaded, length if keep is None else min(keep, length), vqvae.hop_lengths)
    above = max(levels) + 1
    if above < vqvae.levels and codes[above].shape[1] < length // vqvae.hop_lengths[above]:
        have = codes[above].shape[1] * vqvae.hop_lengths[above] / vqvae.sample_rate
        raise UserError(
            f"{options.codes_file}: has {have:.2f} s of codes at level {above}, and the levels below cannot become "
            f"longer than that: give a shorter --sample_length_in_seconds"
        )
    if all(codes[level].shape[1] >= length // vqvae.hop_lengths[level] for level in levels):
        raise UserError(
            f"{options.codes_file}: levels {min(levels)} to {max(levels)} have {length / vqvae.sample_rate:.2f} s "
            "already: give a longer --sample_length_in_seconds, or a shorter --cut_at"
        )
    for level in levels:
        if level + 1 in levels and codes[level].shape[1] * vqvae.hop_lengths[level] > (
            codes[level + 1].shape[1] * vqvae.hop_lengths[level + 1]
        ):
            say(f"note: level {level} is kept, but level {level + 1} above it lacks a part and is written there anew")
    return length, codes


def check_sizes(options: Hyperparams, codec: Any) -> None:
    """Refuse ``--levels`` and ``--sr`` that are not the model's, and a format that cannot hold its sound.

    Raises:
        UserError: names the option.
    """
    for option, there in (("levels", codec.levels), ("sr", codec.sample_rate)):
        if options[option] not in (None, there):
            raise UserError(f"--{option}={options[option]}, but model {options.model!r} has {there}: leave it out")
    check_format(options.output_format, codec.sample_rate)


def kept_length(options: Hyperparams, vqvae: Any, origin: Origin, hop: int) -> int | None:
    """Samples that are kept of what the items go on from, a whole number of ``hop``; None for all.

    Raises:
        UserError: ``--cut_at`` or ``--prompt_length_in_seconds`` keeps nothing, or ``--cut_at`` lies beyond what is
            there or beyond the new items' end.
    """
    rate, cut_at = vqvae.sample_rate, options.cut_at
    word = "code of the top level" if hop == vqvae.hop_lengths[-1] else "patch"
    if cut_at is None:
        prompt = options.prompt_length_in_seconds
        kept = None if prompt is None else prompts.whole_codes(prompt, rate, hop)
        if kept == 0:
            raise UserError(
                f"--prompt_length_in_seconds={prompt:g} is shorter than one {word}, {hop / rate:.3f} s; give more of it"
            )
        return kept
    if cut_at > origin.end:
        raise UserError(f"--cut_at={cut_at:g}: {origin.path} ends at {origin.end:.2f} s; give less, or leave it out")
    kept = prompts.whole_codes(cut_at, rate, hop)
    if not kept:
        raise UserError(f"--cut_at={cut_at:g} keeps less than one {word}, {hop / rate:.3f} s; give more of it")
    longest = options.sample_length_in_seconds
    if longest is not None and kept > prompts.whole_codes(longest, rate, hop):
        raise UserError(
            f"--cut_at={cut_at:g} keeps more than --sample_length_in_seconds={longest:g}: an item would not go on"
        )
    return kept


def precision_of(options: Hyperparams, device: torch.device) -> str:
    """The arithmetic that is asked for, or the device's usual one."""
    return options.precision or ("fp16" if device.type == "cuda" else "fp32")


def level_settings(
    options: Hyperparams, prior: Prior, levels: int, device: torch.device, batch: int = LARGEST_BATCH
) -> LevelSettings:
    """The settings of a level, defaults filled in; ``batch`` is taken where ``max_batch_size`` is not given."""

    def of_level(option: str) -> Any:
        values = options[option]
        if values is not None and len(values) not in (1, levels):
            raise UserError(
                f"--{option} has {counted(len(values), 'value')}, but {options.model!r} has "
                f"{counted(levels, 'level')}: give {A_LEVEL}"
            )
        return None if values is None else values[prior.level % len(values)]

    hop_fraction, largest, top_k, top_p = map(of_level, ("hop_fraction", "max_batch_size", "top_k", "top_p"))
    if top_k and top_p:
        raise UserError(f"--top_k and --top_p are both set for level {prior.level}: give one of them")
    if top_p > 1:
        raise UserError(f"--top_p={top_p:g}: a probability is at most 1")
    if hop_fraction is None:
        hop_fraction = 0.125 if prior.level == levels - 1 else 0.5
    return LevelSettings(
        temperature=of_level("temp"),
        top_k=top_k,
        top_p=top_p,
        hop_fraction=hop_fraction,
        max_batch_size=largest or batch,
        chunk_size=of_level("chunk_size"),
        precision=precision_of(options, device),
        quantize=options.quantize,
    )


def check_windows(prior: Prior, length: int, settings: LevelSettings, vqvae: VQVAE) -> None:
    """Refuse windows that do not fit the level above, and tell of a length that does not fill one window.

    Args:
        prior: a level's; its sizes are enough.
        length: samples an item.
        settings: of the level.
        vqvae: the codec.
    """
    total = length // prior.hop_length
    if total > prior.n_ctx:
        hop_of(settings.hop_fraction, prior.n_ctx, level=prior.level, multiple_of=prior.cond_downsample or 1)
    elif total < prior.n_ctx:
        window, asked = (samples / vqvae.sample_rate for samples in (prior.n_ctx * prior.hop_length, length))
        say(f"note: level {prior.level} learnt from {window:.2f} s at a time; {asked:.2f} s do not fill its window")


def identity(
    options: Hyperparams,
    vqvae: VQVAE,
    length: int,
    codes: Sequence[Tensor],
    settings: Mapping[int, LevelSettings],
    *,
    asked: Sequence[Asked] = (),
    totals: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """Everything on a command line that decides what is written, but for rounding, as plain data.

    ``asked`` and ``totals`` are those of the items of a model with labels, and empty for one without. ``seeds`` are
    stated where they are not those of ``--seed``.
    """
    pairs = list(zip(asked, totals, strict=True))
    return {
        **common_identity(options, length, codes, settings, seeds),
        "total_length": totals[0] if totals else total_length(options, length / vqvae.sample_rate),
        **({"words": digest([replace(each, total=total) for each, total in pairs])} if pairs else {}),
    }


def common_identity(
    options: Hyperparams, length: int, codes: Sequence[Tensor], settings: Mapping[int, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """Of :func:`identity` what models of both families have."""
    usual_seeds = item_seeds(options.seed, range(codes[0].shape[0]))
    return {
        "model": options.model,
        "mode": options.mode,
        "hps": options.hps,
        "levels": sorted(settings),
        "seed": options.seed,
        **({"seeds": list(seeds)} if list(seeds) not in ([], usual_seeds) else {}),
        "n_samples": codes[0].shape[0],
        "sample_length": length,
        **({"output_format": options.output_format} if options.output_format != "wav" else {}),
        "prompt": prompts.digest(codes),
        **{f"level_{level}": settings[level].identity() for level in sorted(settings)},
    }
