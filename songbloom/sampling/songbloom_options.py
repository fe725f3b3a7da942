"""The options of ``sample.py`` for the SongBloom family, and which options belong to one family only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import COMMAND_LINE, Hyperparams, Knob, group
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.samplers import FLOW_SAMPLERS
from songbloom.prior.songbloom.settings import GUIDANCE, Compatibility, GenerationSettings
from songbloom.published.fetch import target_of
from songbloom.published.songbloom import files
from songbloom.published.songbloom.prior import EXTRA_SECONDS, generation_from_published
from songbloom.published.songbloom.yaml_files import read_settings
from songbloom.sampling.songbloom_writer import WINDOW_PATCHES, SongSettings

FAULTS = tuple(field.name for field in fields(Compatibility))
_OF_THE_MODEL = "None: the model's own"

_JUKEBOX = (
    *("hop_fraction", "chunk_size", "quantize", "total_sample_length_in_seconds"),
    *("artist", "genre", "label_tables"),
)

SONGBLOOM = group(
    "songbloom",
    "How models of the SongBloom family are sampled (docs/songbloom.md); with them temp, top_k and top_p are the "
    f"model's own unless given, and {', '.join(_JUKEBOX)} are not for them",
    cfg_coef=Knob(
        None,
        f"Guidance of tokens and of latents, such as 1.5 for both or 1.5,2; 1 is none; {_OF_THE_MODEL}",
        kind="floats",
    ),
    dit_cfg_type=Knob(
        None,
        "How latents are guided: away from those made without sketch and hidden vectors (h), away from those of a song "
        f"that is told nothing (global), or not (none); {_OF_THE_MODEL}",
        kind="str",
        choices=(None, *GUIDANCE),
    ),
    steps=Knob(None, f"Steps that make the latents of a patch; {_OF_THE_MODEL}", kind="int", minimum=1),
    sampler=Knob(None, f"What makes these steps; {_OF_THE_MODEL}", kind="str", choices=(None, *FLOW_SAMPLERS, "ddim")),
    diff_temp=Knob(None, f"Start temperature of these steps; {_OF_THE_MODEL}", kind="float", minimum=0),
    penalty=Knob(None, f"What a recent token's logit is divided by; 1 is off; {_OF_THE_MODEL}", kind="float"),
    penalty_window=Knob(None, f"How many tokens are recent; {_OF_THE_MODEL}", kind="int", minimum=0),
    min_length_in_seconds=Knob(0.0, "A song may not end before this", kind="float", minimum=0),
    window_patches=Knob(
        WINDOW_PATCHES,
        "Patches after which what is written is kept and the language model reads all anew; with another value it is "
        "another run",
        minimum=1,
    ),
    compatibility=Knob(
        "",
        "Faults of the published program to repeat (docs/songbloom_prior.md): published for all, or some of "
        + ", ".join(FAULTS)
        + ", comma separated",
    ),
    prompt_wav=Knob("", "Sound file whose first ten seconds are the style prompt of all items"),
    input_jsonl=Knob(
        "",
        "Published list of songs: an object a line with idx, lyrics and prompt_wav; n_samples items of each, also "
        "named FOLDER/IDX_sNUMBER",
    ),
    language=Knob(
        "auto", "What the lyrics are: ja, en, zh, phonemes or published (as the published program reads); auto: guessed"
    ),
    seconds_per_tag=Knob(
        None,
        "Seconds that one tag of a section without words stands for, 0: one tag a section; None: the model's own",
        kind="float",
        minimum=0,
    ),
)

_ONLY = {
    "jukebox": _JUKEBOX,
    "songbloom": tuple(SONGBLOOM.knobs),
}
_NAMES = {"jukebox": "Jukebox", "songbloom": "SongBloom"}


def check_family(options: Hyperparams, family: str) -> None:
    """Refuse options that mean nothing for the model's family.

    Args:
        options: the command line.
        family: of the model, ``jukebox`` or ``songbloom``.

    Raises:
        UserError: names the option.
    """
    for other, keys in _ONLY.items():
        for key in keys:
            if other != family and options.sources.get(key) == COMMAND_LINE:
                raise UserError(
                    f"--{key} belongs to models of the {_NAMES[other]} family, and {options.model!r} is of the "
                    f"{_NAMES[family]} family: leave it out"
                )
    if family == "songbloom" and options.levels_to_sample is not None:
        wanted = (0,) if options.mode == "upsample" else (0, 1)
        if tuple(sorted(set(options.levels_to_sample))) != wanted:
            raise UserError(
                f"--levels_to_sample={','.join(map(str, options.levels_to_sample))}: {options.model!r} writes sketch "
                "and latents in turns, so both are written (with --mode=upsample the latents): leave it out"
            )


def compatibility_of(text: str) -> Compatibility:
    """The faults that ``--compatibility`` names.

    Raises:
        UserError: there is no such fault.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["published"]:
        return Compatibility.published()
    for name in names:
        if name not in FAULTS:
            near = did_you_mean(name, (*FAULTS, "published"))
            raise UserError(f"--compatibility: no fault is named {name!r}{near}; known: published, {', '.join(FAULTS)}")
    return replace(Compatibility(), **dict.fromkeys(names, True))


def generation_of(
    options: Hyperparams, usual: GenerationSettings, config: SongBloomConfig, frame_rate: float
) -> GenerationSettings:
    """The model's own settings with those of the command line laid over them.

    Args:
        options: the command line.
        usual: the model's own.
        config: of the prior.
        frame_rate: frames a second.

    Raises:
        UserError: a setting that cannot be, in one line.
    """
    given: dict[str, Any] = {}
    for key, name in (("temp", "temperature"), ("top_k", "top_k"), ("top_p", "top_p")):
        if options.sources.get(key) == COMMAND_LINE:
            if len(options[key]) != 1:
                raise UserError(f"--{key} has {len(options[key])} values, but {options.model!r} draws tokens: give one")
            given[name] = options[key][0]
    names = {"diff_temp": "diffusion_temperature"}
    for key in ("dit_cfg_type", "steps", "sampler", "diff_temp", "penalty", "penalty_window"):
        if options[key] is not None:
            given[names.get(key, key)] = options[key]
    if options.cfg_coef is not None:
        if len(options.cfg_coef) not in (1, 2):
            raise UserError(
                f"--cfg_coef has {len(options.cfg_coef)} values: give one for both, or that of tokens and of latents"
            )
        given["cfg_lm"], given["cfg_diffusion"] = options.cfg_coef[0], options.cfg_coef[-1]
    if given.get("top_k") and given.get("top_p"):
        raise UserError("--top_k and --top_p are both given: leave one out")
    if given.get("top_k"):
        given["top_p"] = 0.0
    if options.compatibility:
        given["compatibility"] = compatibility_of(options.compatibility)
    given["min_frames"] = int(options.min_length_in_seconds * frame_rate)
    made = replace(usual, **given)
    if (config.diffusion_objective == "v") != (made.sampler == "ddim"):
        if options.sampler is not None:
            only = "ddim" if config.diffusion_objective == "v" else ", ".join(FLOW_SAMPLERS)
            raise UserError(f"--sampler={options.sampler}: {options.model!r} samples with {only}")
        made = replace(made, sampler="ddim" if config.diffusion_objective == "v" else "euler")
    return made


_OF_MODELS: Mapping[str, dict[str, Any]] = {"songbloom_240s": {"diffusion_temperature": 0.9}}  # of its yaml


def usual_generation(model: str, hps: Mapping[str, Any], frame_rate: float) -> GenerationSettings:
    """A model's own settings of generation: of the yaml beside published weights, else the published ones.

    Without such a yaml a song may become as long as the songs that the model learnt from.

    Args:
        model: its name.
        hps: the prior's settings, with the place of its weights.
        frame_rate: frames a second.

    Raises:
        UserError: the yaml cannot be read.
    """
    path = str(hps.get("restore_prior") or "")
    weights = target_of(path) if path else None
    found = None if weights is None else files.beside(weights, weights.stem + files.SETTINGS)
    if found is not None:
        content = read_settings(found, only=files.PARTS)
        inference = content.get("inference")
        if isinstance(inference, Mapping):
            most = content.get("max_dur")
            seconds = float(most) if isinstance(most, (int, float)) else None
            return GenerationSettings(**generation_from_published(inference, max_dur=seconds))
    seconds = hps["sample_length"] / hps["sr"] if hps["sample_length"] else hps["sample_length_in_seconds"]
    extra = EXTRA_SECONDS if files.is_hub(path) else 0
    frames = max(1, int((seconds + extra) * frame_rate))
    return replace(GenerationSettings(**_OF_MODELS.get(model, {})), max_frames=frames)


def settings_of(
    options: Hyperparams,
    usual: GenerationSettings,
    config: SongBloomConfig,
    *,
    frame_rate: float,
    precision: str,
    batch: int,
) -> SongSettings:
    """How a command line wants songs drawn; ``batch`` is taken where ``max_batch_size`` is not given.

    Raises:
        UserError: as :func:`generation_of`.
    """
    largest = options.max_batch_size
    if largest is not None and len(largest) != 1:
        raise UserError(f"--max_batch_size has {len(largest)} values, but both levels are written together: give one")
    return SongSettings(
        generation=generation_of(options, usual, config, frame_rate),
        window_patches=options.window_patches,
        max_batch_size=largest[0] if largest else batch,
        precision=precision,
    )
