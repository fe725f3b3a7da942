"""Sample songs: codes level by level, from the coarsest to the finest, and a page to listen to them.

    python sample.py --model=demo --name=samples/first --sample_length_in_seconds=8 --n_samples=4
    mpiexec -n 4 python sample.py --model=5b --name=samples/folk --mode=primed --audio_file=a.wav,b.wav \\
        --prompt_length_in_seconds=12 --sample_length_in_seconds=60 --n_samples=8 --hop_fraction=.5,.5,.125

``--help`` tells every option. The same command again goes on with the levels that are missing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hparams import HPARAMS_REGISTRY, setup_hparams
from make_models import MODELS, find_weights, make_model, parts_of
from songbloom import __version__, distributed
from songbloom.distributed import broadcast_object, say, world
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams, Knob, Knobs, group
from songbloom.prior.prior import Prior
from songbloom.sampling import prompts
from songbloom.sampling.gathering import Gathering
from songbloom.sampling.page import clock
from songbloom.sampling.progress import LevelProgress
from songbloom.sampling.run import LevelData, Run, decode, fingerprint
from songbloom.sampling.sampler import LevelSettings, item_seeds, sample, share
from songbloom.sampling.windows import hop_of
from songbloom.vqvae.vqvae import VQVAE

MODES = ("ancestral", "primed", "continue", "upsample")
_A_LEVEL = "one value, or one a level from level 0 (the finest) up"

KNOBS = Knobs(
    group(
        "what",
        "What is sampled",
        model=Knob("", "Model, a name in MODELS of make_models.py: " + ", ".join(MODELS)),
        name=Knob("", "Folder to write to; its last part is the run's name"),
        mode=Knob(
            "ancestral",
            "Begin from nothing, from sound (primed), or from codes: go on after them (continue) or write the levels "
            "below them (upsample)",
            choices=MODES,
        ),
        n_samples=Knob(None, "Items; None: as many as --codes_file has, else 1", kind="int", minimum=1),
        sample_length_in_seconds=Knob(
            None,
            "Length of an item in seconds, cut to whole codes of the top level; None: that of --codes_file with "
            "--mode=upsample, else 24",
            kind="float",
            minimum=0,
        ),
        total_sample_length_in_seconds=Knob(
            None,
            "Length of the song that an item is the beginning of, in seconds, told to models with labels; None: 240, "
            "or the item's own length if that is more",
            kind="float",
            minimum=0,
        ),
        seed=Knob(0, "Seed; with it an item's number alone decides its random numbers"),
        levels=Knob(None, "Levels that the model has; only checked", kind="int", minimum=1),
        levels_to_sample=Knob(
            None, "Levels to write, such as 2 to hear the top first; None: all that the mode writes", kind="ints"
        ),
        sr=Knob(None, "Sample rate of the model in Hz; only checked", kind="int", minimum=1),
        overwrite=Knob(False, "Replace a run with other settings that is in the folder"),
    ),
    group(
        "how",
        f"How it is sampled ({_A_LEVEL})",
        temp=Knob((0.99,), "Temperature; 0 always takes the likeliest code", kind="floats", minimum=0),
        top_k=Knob((0,), "Draw from the k likeliest codes only; 0: from all", kind="ints", minimum=0),
        top_p=Knob(
            (0.0,),
            "Draw from the likeliest codes of this total probability only; 0: from all",
            kind="floats",
            minimum=0,
        ),
        hop_fraction=Knob(
            None,
            "How far a window moves on, as a share of the context; None: .125 for the top level, .5 for the others",
            kind="floats",
        ),
        max_batch_size=Knob(
            None, "Items sampled together; None: 16, or 3 with priors of billions of weights", kind="ints", minimum=1
        ),
        chunk_size=Knob(None, "Codes of a prompt that are read at once; None: all", kind="ints", minimum=1),
        precision=Knob(
            "", "Arithmetic of the priors; empty: fp16 on CUDA, else fp32", choices=("", "fp32", "bf16", "fp16")
        ),
        device=Knob("", "Where to compute: cuda, mps or cpu; empty: the best there is"),
    ),
    group(
        "beginning",
        "What it begins from",
        audio_file=Knob("", "Sound files for --mode=primed, comma separated; taken again until there are n_samples"),
        codes_file=Knob("", "A data.pth.tar of any level of an earlier run, for --mode=continue and --mode=upsample"),
        prompt_length_in_seconds=Knob(
            None, "How much of --audio_file or --codes_file is kept, in seconds; None: all", kind="float", minimum=0
        ),
    ),
    group(
        "files",
        "Where the model's weights are",
        hps=Knob("", "Named sets of hyperparameters laid over those of every part of the model, comma separated"),
        restore_vqvae=Knob(
            "", "Checkpoint of the codec; empty: the published one, or logs/SET/checkpoint_latest.pth.tar"
        ),
        restore_prior=Knob("", "Checkpoints of the priors, comma separated from level 0 up; an empty one as above"),
        local_logdir=Knob("logs", "Folder in which training left its checkpoints"),
    ),
    group("command", "The command itself", help=Knob(False, "Print this, and stop")),
)


@dataclass(frozen=True)
class Job:
    """What a command line asks for, checked against the model.

    Attributes:
        options: the command line.
        overrides, checkpoints: for :func:`make_models.make_model`.
        vqvae: the codec, on its device.
        seconds: length of an item.
        totals: codes an item, for the levels to write.
        settings: for the levels to write.
        codes: what the items begin from, for every level.
        identity: everything that decides what is written.
    """

    options: Hyperparams
    overrides: dict[str, Any]
    checkpoints: dict[str, str]
    vqvae: VQVAE
    seconds: float
    totals: dict[int, int]
    settings: dict[int, LevelSettings]
    codes: list[Tensor]
    identity: dict[str, Any]

    @property
    def items(self) -> int:
        """How many items."""
        return self.codes[0].shape[0]


def main() -> int:
    options = command_line(sys.argv[1:])
    if options.help:
        usage = "usage: python sample.py --model=MODEL --name=FOLDER [--key=value | --key value | --flag] …"
        say(KNOBS.help(usage).rstrip())
        return 0
    distributed.start(options.device or None)
    job = prepare(options)
    gathering = Gathering()
    run = Run(
        options.name,
        job.identity,
        sample_rate=job.vqvae.sample_rate,
        facts=facts(job),
        details={level: details(job, level) for level in job.totals},
        argv=[sys.executable, *sys.argv],
    )
    there = broadcast_object(run.open(overwrite=options.overwrite) if world().is_main else None)
    if there:
        say(f"{options.name}: going on after level {min(there)}, which is there already")
    write_levels(job, run, there, gathering)
    if world().is_main:
        run.write_pages()
    say(f"listen: {run.folder / 'index.html'}")
    return 0


def command_line(arguments: Sequence[str]) -> Hyperparams:
    """The options, defaults filled in.

    Raises:
        UserError: whatever a person mistyped or left out, in one line.
    """
    options = KNOBS.merge({}, "", KNOBS.parse(arguments))
    if options.help:
        return options
    if not options.model:
        raise UserError(f"--model is missing: give one of {', '.join(MODELS)}")
    parts_of(options.model)
    if not options.name:
        raise UserError("--name is missing: it names the folder to write to, such as --name=samples/first")
    if bool(options.audio_file) != (options.mode == "primed"):
        raise UserError("--audio_file and --mode=primed belong together: give both or neither")
    if bool(options.codes_file) != (options.mode in ("continue", "upsample")):
        raise UserError("--codes_file belongs to --mode=continue and --mode=upsample: give it with one of these")
    if options.prompt_length_in_seconds is not None and options.mode in ("ancestral", "upsample"):
        raise UserError(f"--prompt_length_in_seconds has no meaning with --mode={options.mode}: leave it out")
    return options


def model_files(options: Hyperparams) -> tuple[dict[str, Any], dict[str, str]]:
    """Overrides and checkpoints for :func:`make_models.make_model`."""
    codec, *priors = parts_of(options.model)
    setup_hparams(options.hps)
    overrides: dict[str, Any] = {"local_logdir": options.local_logdir}
    for name in Knobs.split_names(options.hps):
        overrides |= HPARAMS_REGISTRY[name]
    checkpoints = {codec: options.restore_vqvae} if options.restore_vqvae else {}
    if options.restore_prior:
        given = [part.strip() for part in options.restore_prior.split(",")]
        if len(given) != len(priors):
            raise UserError(
                f"--restore_prior names {len(given)} files, but {options.model!r} has {len(priors)} levels: "
                "give one a level from level 0 up, separated by commas; one may be empty"
            )
        checkpoints |= {prior: path for prior, path in zip(priors, given, strict=True) if path}
    return overrides, checkpoints


def prepare(options: Hyperparams) -> Job:
    """Everything that can be known, loaded and refused before the first code is drawn."""
    overrides, checkpoints = model_files(options)
    levels = len(parts_of(options.model)) - 1
    to_write = levels_to_write(options, levels)
    # Rank 0 of each host downloads what is published; then one rank alone complains of a file that is not there.
    weights = find_weights(options.model, overrides, to_write, checkpoints=checkpoints)
    vqvae, _ = make_model(options.model, world().device, overrides, (), checkpoints=checkpoints)
    for option, there in (("levels", vqvae.levels), ("sr", vqvae.sample_rate)):
        if options[option] not in (None, there):
            raise UserError(f"--{option}={options[option]}, but model {options.model!r} has {there}: leave it out")
    _, priors = make_model(options.model, "meta", overrides, to_write)  # sizes only

    loaded = None
    if options.codes_file:
        loaded = prompts.codes_from_file(options.codes_file, options.n_samples, vqvae)
    length = sample_length(options, vqvae, loaded)
    codes = beginning(options, vqvae, length, loaded)
    totals = {prior.level: length // vqvae.hop_lengths[prior.level] for prior in priors}
    above = max(to_write) + 1
    if above < levels and codes[above].shape[1] < length // vqvae.hop_lengths[above]:
        raise UserError(
            f"level {above} has {codes[above].shape[1] * vqvae.hop_lengths[above] / vqvae.sample_rate:.2f} s of codes, "
            f"and the levels below it cannot be longer: give a --sample_length_in_seconds up to that"
        )
    settings = {prior.level: level_settings(options, prior, levels) for prior in priors}
    for prior in priors:
        if totals[prior.level] < prior.n_ctx:
            window = prior.n_ctx * prior.hop_length / vqvae.sample_rate
            say(
                f"note: level {prior.level} learnt from {window:.2f} s at a time, and "
                f"{length / vqvae.sample_rate:.2f} s are asked for; its window is filled in part"
            )
        elif totals[prior.level] > prior.n_ctx:
            hop_of(
                settings[prior.level].hop_fraction,
                prior.n_ctx,
                level=prior.level,
                multiple_of=prior.cond_downsample or 1,
            )
    identity = {
        "model": options.model,
        "mode": options.mode,
        "hps": options.hps,
        "weights": {name: fingerprint(path) for name, path in weights.items()},
        "levels": sorted(to_write),
        "seed": options.seed,
        "n_samples": codes[0].shape[0],
        "sample_length": length,
        "total_length": total_length(options, length / vqvae.sample_rate),
        "prompt": prompts.digest(codes),
        **{f"level_{level}": deciding(each) for level, each in settings.items()},
    }
    return Job(
        options,
        overrides,
        checkpoints,
        vqvae,
        length / vqvae.sample_rate,
        totals,
        settings,
        codes,
        broadcast_object(identity),
    )


def levels_to_write(options: Hyperparams, levels: int) -> list[int]:
    """The levels to write: those of the mode, or of these the ones that are asked for."""
    possible = range(levels - 1) if options.mode == "upsample" else range(levels)
    if not possible:
        raise UserError(f"--mode=upsample writes the levels below the top, and {options.model!r} has one level only")
    chosen = sorted(set(possible if options.levels_to_sample is None else options.levels_to_sample))
    strange = [level for level in chosen if level not in possible]
    if strange:
        raise UserError(
            f"--levels_to_sample={strange[0]}: --mode={options.mode} writes levels {possible[0]} to {possible[-1]} "
            f"of {options.model!r}"
        )
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
    if seconds is None and options.mode == "upsample" and loaded is not None:
        return max(each.shape[1] * step for each, step in zip(loaded, vqvae.hop_lengths, strict=True)) // hop * hop
    seconds = 24.0 if seconds is None else seconds
    length = prompts.whole_codes(seconds, rate, hop)
    if not length:
        raise UserError(
            f"--sample_length_in_seconds={seconds:g} is less than one code of the top level, {hop / rate:.3f} s"
        )
    return length


def total_length(options: Hyperparams, seconds: float) -> float:
    """Length in seconds of the song that an item is said to begin."""
    total = options.total_sample_length_in_seconds
    if total is None:
        return max(240.0, seconds)
    if total < seconds:
        raise UserError(
            f"--total_sample_length_in_seconds={total:g} is less than --sample_length_in_seconds={seconds:g}: "
            "an item is a part of the whole"
        )
    return float(total)


def beginning(options: Hyperparams, vqvae: VQVAE, length: int, loaded: list[Tensor] | None) -> list[Tensor]:
    """The codes that are there before sampling, ``[items, …]`` for each level."""
    if options.mode == "primed":
        paths = [part.strip() for part in options.audio_file.split(",") if part.strip()]
        seconds = options.prompt_length_in_seconds
        return prompts.codes_from_audio(paths, options.n_samples or len(paths), vqvae, seconds, length)
    if loaded is None:
        return prompts.empty_codes(options.n_samples or 1, vqvae.levels)
    keep = length
    if options.prompt_length_in_seconds is not None:
        keep = prompts.whole_codes(options.prompt_length_in_seconds, vqvae.sample_rate, vqvae.hop_lengths[-1])
        keep = min(keep, length)
    return prompts.cut(loaded, keep, vqvae.hop_lengths)


def level_settings(options: Hyperparams, prior: Prior, levels: int) -> LevelSettings:
    """The settings of a level, defaults filled in."""

    def of_level(option: str) -> Any:
        values = options[option]
        if values is not None and len(values) not in (1, levels):
            raise UserError(
                f"--{option} has {len(values)} values, but {options.model!r} has {levels} levels: give {_A_LEVEL}"
            )
        return None if values is None else values[prior.level % len(values)]

    hop_fraction, largest, top_k, top_p = map(of_level, ("hop_fraction", "max_batch_size", "top_k", "top_p"))
    if top_k and top_p:
        raise UserError(f"--top_k and --top_p are both set for level {prior.level}: give one of them")
    if top_p > 1:
        raise UserError(f"--top_p={top_p:g}: a probability is at most 1")
    huge = sum(parameter.numel() for parameter in prior.parameters()) > 2e9
    return LevelSettings(
        temperature=of_level("temp"),
        top_k=top_k,
        top_p=top_p,
        hop_fraction=hop_fraction or (0.125 if prior.level == levels - 1 else 0.5),
        max_batch_size=largest or (3 if huge else 16),
        chunk_size=of_level("chunk_size"),
        precision=options.precision or ("fp16" if world().device.type == "cuda" else "fp32"),
    )


def deciding(settings: LevelSettings) -> dict[str, Any]:
    """The settings that decide which codes are drawn, but for rounding."""
    return {key: value for key, value in settings.plain().items() if key not in ("max_batch_size", "chunk_size")}


def write_levels(job: Job, run: Run, there: dict[int, LevelData], gathering: Gathering) -> None:
    """Sample, decode and write each level that is not there, sharing the items over the ranks."""
    place = world()
    mine = share(job.items, place.rank, place.size)
    codes = list(there[min(there)].codes if there else job.codes)
    codes = [each[mine.start : mine.stop].to(place.device) for each in codes]
    totals = {level: total for level, total in job.totals.items() if not there or level < min(there)}
    progress: list[LevelProgress] = []

    def load_prior(level: int) -> Prior:
        _, (prior,) = make_model(job.options.model, place.device, job.overrides, [level], checkpoints=job.checkpoints)
        begin(level)
        return prior

    def begin(level: int) -> None:
        new = max(totals[level] - codes[level].shape[1], 0) * len(mine)
        progress[:] = [LevelProgress(level, new, share=job.items / max(len(mine), 1), quiet=not place.is_main)]

    def after_level(level: int, written: list[Tensor]) -> None:
        nonlocal codes
        codes = written
        took = progress[0].finish() if progress else 0.0
        length = totals[level] * job.vqvae.hop_lengths[level]
        audio = decode(job.vqvae.decode, written, level, empty=length, device=place.device)
        shares = gathering.all(([each.cpu() for each in written], audio, took))
        if place.is_main:
            all_codes = [torch.cat(parts) for parts in zip(*(codes for codes, _, _ in shares), strict=True)]
            data = LevelData(
                all_codes,
                torch.cat([audio for _, audio, _ in shares]),
                [None] * job.vqvae.levels,
                sampling_kwargs(job),
            )
            folder = run.write_level(level, data, max(took for _, _, took in shares))
            say(f"level {level}: written to {folder}")

    sample(
        load_prior,
        codes,
        totals,
        job.settings,
        seeds=item_seeds(job.options.seed, mine),
        on_codes=lambda count: progress[0].add(count),
        after_level=after_level,
    )


def sampling_kwargs(job: Job) -> list[dict[str, Any]]:
    """For each level how it is sampled, and what the whole run was asked for; empty for a level that is not written."""
    about = {**job.identity, "sr": job.vqvae.sample_rate, "version": __version__}
    return [
        {**job.settings[level].plain(), "run": about} if level in job.settings else {}
        for level in range(job.vqvae.levels)
    ]


def facts(job: Job) -> list[tuple[str, str]]:
    """What the head of a page tells."""
    return [
        ("model", job.options.model),
        ("items", str(job.items)),
        ("length", clock(job.seconds)),
        ("seed", str(job.options.seed)),
    ]


def details(job: Job, level: int) -> list[tuple[str, str]]:
    """What the table of settings of a level's page tells."""
    settings, vqvae = job.settings[level], job.vqvae
    filters = [(key, f"{value:g}") for key, value in (("top_k", settings.top_k), ("top_p", settings.top_p)) if value]
    return [
        ("mode", job.options.mode),
        ("temp", f"{settings.temperature:g}"),
        *filters,
        ("hop_fraction", f"{settings.hop_fraction:g}"),
        ("codes_an_item", f"{job.totals[level]} ({vqvae.sample_rate / vqvae.hop_lengths[level]:g}/s)"),
        ("length", f"{job.seconds:.2f} s"),
        ("sample_rate", f"{vqvae.sample_rate} Hz"),
        ("precision", settings.precision),
        ("device", str(world().device)),
        ("checkpoints", ", ".join(f"{name} {digest[:8]}" for name, digest in job.identity["weights"].items())),
        ("command", shlex.join(["python", *sys.argv])),
    ]


if __name__ == "__main__":
    distributed.run(main)
