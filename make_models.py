"""From names to models: which sets of hyperparameters make up a model, building it, restoring its weights.

A model of the Jukebox family is a codec and a prior for each of its levels; one of the SongBloom family is a VAE, a
sketch codebook and the prior that writes both. To name one of your own, register its sets in ``hparams.py`` and add a
line to :data:`MODELS`: codec first, then the priors from level 0 (the finest) up, or VAE, codebook, prior.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hparams import HPARAMS_REGISTRY, setup_hparams
from songbloom.architecture import architecture_keys
from songbloom.distributed import say
from songbloom.errors import UserError, counted, did_you_mean
from songbloom.hyperparams import COMMAND_LINE, Hyperparams
from songbloom.prior.prior import Prior
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.published import fetch as downloads
from songbloom.published.fetch import fetch
from songbloom.published.songbloom import files as hub
from songbloom.published.songbloom import prior as published_songbloom
from songbloom.sketch.codec import SketchedCodec
from songbloom.training import checkpoint
from songbloom.training.labelling import LABEL_IDS
from songbloom.training.models import (
    LYRIC_SYMBOLS,
    SKETCH_DIGEST,
    fingerprint,
    make_prior,
    make_songbloom_prior,
    make_tokeniser,
    make_vae,
    make_vocabulary,
    make_vqvae,
    songbloom_config,
)
from songbloom.training.tables import make_labeller, tables_of
from songbloom.training.weights import check_family, open_weights, restore, save
from songbloom.vae.vae import VAE
from songbloom.vqvae.vqvae import VQVAE

MODELS: dict[str, tuple[str, ...]] = {
    "5b": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b"),
    "5b_lyrics": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b_lyrics"),
    "1b_lyrics": ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_1b_lyrics"),
    "small": ("small_vqvae", "small_upsampler", "small_prior"),
    "small_labelled": ("small_vqvae", "small_upsampler", "small_labelled_prior"),
    "small_single_enc_dec": ("small_vqvae", "small_upsampler", "small_single_enc_dec_prior"),
    "small_sep_enc_dec": ("small_vqvae", "small_upsampler", "small_sep_enc_dec_prior"),
    "demo": ("demo_vqvae", "demo_upsampler", "demo_prior"),
    "demo_ja": ("demo_vqvae", "demo_upsampler", "demo_ja_prior"),
    "align": ("align_vqvae", "align_prior"),
    "tiny": ("tiny_vqvae", "tiny_upsampler", "tiny_prior"),
    "tiny_lyrics": ("tiny_vqvae", "tiny_upsampler", "tiny_lyrics_prior"),
    "songbloom_150s": ("songbloom_vae", "sketch_vq", "songbloom_150s"),
    "songbloom_150s_dpo": ("songbloom_vae", "sketch_vq", "songbloom_150s_dpo"),
    "songbloom_240s": ("songbloom_vae", "sketch_vq", "songbloom_240s"),
    "small_songbloom": ("small_vae", "small_sketch", "small_songbloom"),
    "demo_songbloom": ("demo_vae", "demo_sketch", "demo_songbloom"),
    "voice_songbloom": ("voice_vae", "voice_sketch", "voice_songbloom"),
    "tiny_songbloom": ("tiny_songbloom_vae", "tiny_sketch", "tiny_songbloom"),
}

__all__ = [
    "MODELS",
    "family_of",
    "fetch",
    "find_weights",
    "fingerprint",
    "make_labeller",
    "make_model",
    "make_prior",
    "make_songbloom",
    "make_songbloom_prior",
    "make_tokeniser",
    "make_vae",
    "make_vocabulary",
    "make_vqvae",
    "parts_of",
    "restore",
    "save",
    "say_what_is_assumed",
    "settings_of",
    "songbloom_config",
    "tables_of",
]

CODEBOOK = "sketch_codebook.pt"  # what training a sketch codebook leaves in its folder
# These decide no shape, but which words are meant.
_OF_LYRICS = ("lyrics_english", "lyrics_reading", "seconds_per_tag", "language")


USAGE = f"""usage: python make_models.py

Lists the models that --model of sample.py, align.py and evaluate.py names: where their weights are, and their parts. It
takes no options.

To add one of your own:
  1. in hparams.py name a set of hyperparameters for each part: HPARAMS_REGISTRY["my_prior"] = Hyperparams(…);
  2. in MODELS of this file name the model by them: "mine": ("my_vqvae", "my_upsampler", "my_prior"), first the codec,
     then the priors from level 0 (the finest) up; of the SongBloom family the VAE, the sketch codebook and the prior.
Train each part under its set's name (python train.py --hps=… --name=my_prior …): its weights are then found in
logs/my_prior/{checkpoint.LATEST}."""


def main(arguments: Sequence[str]) -> int:
    """Tell what can be done with this file, or which models there are."""
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return 0
    if arguments:
        print(
            f"error: python make_models.py takes no options, and was given {arguments[0]!r}; see --help",
            file=sys.stderr,
        )
        return 2
    print(models_text())
    return 0


def models_text() -> str:
    """A line a model: its name, family, where its weights are, and its parts."""
    rows = [("model", "family", "weights", "parts")]
    rows += [(name, family_of(name), where_weights_are(name), ", ".join(parts)) for name, parts in MODELS.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    told = "Published weights come when they are first used; others come from training (logs/SET). --help tells more."
    return "\n".join([*lines, "", told])


def where_weights_are(model: str) -> str:
    """``"here"``, ``"published"`` (they would be downloaded), or ``"not yet"`` if one that is needed is missing."""
    try:
        found = find_weights(model, download=False).values()
    except UserError:
        return "not yet"
    return "here" if all(path.is_file() for path in found) else "published"


def family_of(model: str) -> str:
    """``"jukebox"`` or ``"songbloom"``.

    Raises:
        UserError: an unknown model.
    """
    return "songbloom" if HPARAMS_REGISTRY[parts_of(model)[-1]].get("songbloom") else "jukebox"


def _restore_key(model: str, name: str) -> str:
    """The hyperparameter that names the weights of a part."""
    place = MODELS[model].index(name)
    if family_of(model) == "songbloom":
        return ("restore_vae", "restore_sketch", "restore_prior")[place]
    return "restore_prior" if place else "restore_vqvae"


def parts_of(model: str, named: Iterable[str] = ()) -> tuple[str, ...]:
    """The sets that make up a model: its codec's, then its priors' from level 0 up.

    Raises:
        UserError: an unknown model, or one of ``named`` is no part of it.
    """
    if model not in MODELS:
        raise UserError(
            f"--model: no model is named {model!r}{did_you_mean(model, MODELS)}; known: {', '.join(MODELS)}"
        )
    strange = sorted(set(named) - set(MODELS[model]))
    if strange:
        raise UserError(f"model {model!r} has no part named {strange[0]!r}; it has {', '.join(MODELS[model])}")
    return MODELS[model]


def _wanted_levels(model: str, levels: Iterable[int] | None) -> list[int]:
    """``levels`` in order, or all of the model's."""
    there = range(len(MODELS[model]) - 1)
    wanted = sorted(set(there if levels is None else levels))
    for level in wanted:
        if level not in there:
            raise UserError(f"model {model!r} has levels 0 to {there[-1]}, no level {level}")
    return wanted


def find_weights(
    model: str,
    hps: Mapping[str, Any] | None = None,
    levels: Iterable[int] | None = None,
    *,
    checkpoints: Mapping[str, str] | None = None,
    download: bool = True,
) -> dict[str, Path]:
    """The local file of the weights of each part that :func:`make_model` would load with the same arguments.

    Published files are downloaded now, so that what is missing is known before hours of work; without ``download``
    they are taken to be where they will be.

    Raises:
        UserError: as :func:`make_model`; a file that is not there.
    """
    codec_set, *prior_sets = parts_of(model, checkpoints or ())
    overrides = dict(hps or {})
    found = {}
    if family_of(model) == "songbloom":
        sources = _songbloom_sources(model, overrides, checkpoints or {}, download=download)
    else:
        sources = {}
        for name in (codec_set, *(prior_sets[level] for level in _wanted_levels(model, levels))):
            values = setup_hparams((codec_set, name), overrides, f"model {model!r}")
            given = (checkpoints or {}).get(name)
            sources[name] = given or _weights_of(name, _restore_key(model, name), values, overrides)
    for name, path in sources.items():
        found[name] = fetch(path) if download else downloads.target_of(path)
        if not found[name].is_file() and (download or not downloads.is_address(path)):
            what = "is a folder, no file" if found[name].is_dir() else "no such file"
            raise UserError(f"{found[name]}: {what}; it should hold the weights of {name}")
    return found


def make_model(
    model: str,
    device: torch.device | str = "cpu",
    hps: Mapping[str, Any] | None = None,
    levels: Iterable[int] | None = None,
    *,
    checkpoints: Mapping[str, str] | None = None,
    restored: bool = True,
    vqvae: VQVAE | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[VQVAE, list[Prior]]:
    """A whole model for sampling: its codec and its priors, restored.

    A set without a published checkpoint has the one that training under the set's own name left:
    ``{local_logdir}/{set}/checkpoint_latest.pth.tar``; what was given in training besides the set is read from there.

    Args:
        model: a name in :data:`MODELS`.
        device: where to put them; ``"meta"`` builds without memory and weights.
        hps: values that override those of every set, such as ``sample_length`` or ``local_logdir``.
        levels: levels whose priors are wanted; by default all.
        checkpoints: name of a set → the file (or published address) with its weights.
        restored: False leaves the weights random, to measure or to test.
        vqvae: the model's codec, where it has been loaded already.
        dtype: what the matrices of priors are kept in; None: float32.

    Returns:
        The codec and the priors of the wanted levels, finest first.

    Raises:
        UserError: an unknown model, a level that it doesn't have, missing or unfitting checkpoints.
    """
    codec_set, *prior_sets = parts_of(model, checkpoints or ())
    if family_of(model) == "songbloom":
        raise UserError(f"model {model!r} is of the SongBloom family, which this program does not work with")
    wanted = _wanted_levels(model, levels)
    loading = restored and str(device) != "meta"
    sources = {}

    def merged(name: str) -> Hyperparams:
        values = settings_of(model, name, hps, checkpoints=checkpoints, restored=restored, must_exist=loading)
        sources[name] = values.restore_prior
        if not loading:
            values["restore_vqvae" if name == codec_set else "restore_prior"] = ""
        return values

    codec_hps = merged(codec_set)
    if codec_hps.levels != len(prior_sets):
        raise UserError(
            f"model {model!r} lists {counted(len(prior_sets), 'prior')}, but {codec_set} has "
            f"{counted(codec_hps.levels, 'level')}"
        )
    vqvae = vqvae or make_vqvae(codec_hps, device)
    priors = [make_prior(merged(prior_sets[level]), vqvae, device, dtype=dtype) for level in wanted]
    for level, prior in zip(wanted, priors, strict=True):
        name = prior_sets[level]
        if prior.level != level and prior.level != setup_hparams(name).level and prior.level < len(prior_sets):
            raise UserError(
                f"{sources[name]}: is a prior of level {prior.level}, as {prior_sets[prior.level]} is, and was given "
                f"for {name}, which is of level {level}: --restore_prior names one file a level, from level 0 up"
            )
        if prior.level != level:
            raise UserError(f"model {model!r}: {name} stands at level {level} but models {prior.level}")
    return vqvae, priors


def make_songbloom(
    model: str,
    device: torch.device | str = "cpu",
    hps: Mapping[str, Any] | None = None,
    *,
    checkpoints: Mapping[str, str] | None = None,
    restored: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[SketchedCodec, SongBloomPrior]:
    """A whole model of the SongBloom family, for sampling; the arguments are :func:`make_model`'s.

    The VAE of a published model is taken from ``restore_vae``, else from the prior's own file, else from
    ``autoencoder_music_dsp1920.ckpt`` beside it. Without a codebook the codec has no tokeniser.

    Raises:
        UserError: as :func:`make_model`; a codebook of another size than the prior's table, or another one than it was
            trained with.
    """
    vae_set, sketch_set, prior_set = parts_of(model, checkpoints or ())
    loading = restored and str(device) != "meta"
    sources = _songbloom_sources(model, dict(hps or {}), checkpoints or {}) if loading else {}
    made = {}
    for name in (vae_set, prior_set):
        made[name] = settings_of(model, name, hps, checkpoints=sources or checkpoints, restored=restored)
        if not loading:
            made[name][_restore_key(model, name)] = ""
    prior = make_songbloom_prior(made[prior_set], device, dtype=dtype)
    vae = make_vae(made[vae_set], device)
    made[prior_set]["restore_sketch"] = sources.get(sketch_set, "")
    tokeniser = make_tokeniser(made[prior_set], device) if loading else None
    if vae.latent_dim != prior.config.latent_width:
        raise UserError(
            f"the VAE has latents of {vae.latent_dim} numbers and the prior writes {prior.config.latent_width}: give "
            "--restore_vae with the VAE that it was trained on"
        )
    check_codec(made[prior_set], vae)
    return SketchedCodec(vae, tokeniser, prior.config.l_bins), prior


def complete_songbloom(hps: Hyperparams) -> None:
    """Write into the settings of a SongBloom training what follows from the weights that it begins with.

    That is the architecture and vocabulary of ``restore_prior``, unless the command line says otherwise, and where the
    VAE is, if ``restore_vae`` doesn't tell.

    Raises:
        UserError: the weights are not there or cannot be read, or nothing says where the VAE is.
    """
    if hps.restore_prior:
        hps.restore_prior = hub.file_of(hps.restore_prior, checkpoint.LATEST)
        local = fetch(hps.restore_prior)
        content = open_weights(local, verify=False).content
        given = [key for key, source in hps.sources.items() if source == COMMAND_LINE]
        _as_trained(hps, str(local), "prior", dict.fromkeys(given))
        saved = content.get("hps") or {}
        if not hps.restore_vae and published_songbloom.is_published(content):
            hps.restore_vae = hub.codec_of(local, content)
        say_what_is_assumed(hps, "--hps")
        hps.restore_vae = hps.restore_vae or saved.get("restore_vae", "")
    if not hps.restore_vae:
        raise UserError("a SongBloom prior learns latents of a trained VAE: give --restore_vae=FILE (docs/vae.md)")


def say_what_is_assumed(hps: Mapping[str, Any], option: str) -> None:
    """Tell a person, if nothing beside published SongBloom weights tells their settings, which are taken.

    The weights themselves don't: those of the model for 150 s have the names and shapes of those for 240 s.

    Args:
        hps: the prior's settings, with the place of its weights.
        option: what names a model with other settings.
    """
    local = downloads.target_of(hps["restore_prior"]) if hps["restore_prior"] else None
    if local is None or not local.is_file() or hub.beside(local, local.stem + hub.SETTINGS):
        return
    if published_songbloom.is_published(open_weights(local, verify=False).content):
        known = " or ".join(
            one for one in HPARAMS_REGISTRY if hub.is_hub(HPARAMS_REGISTRY[one].get("restore_prior", ""))
        )
        say(
            f"note: {local.name}: there is no {local.stem}{hub.SETTINGS} beside it; taken are rotary_base="
            f"{hps['rotary_base']:g}, lyric_tokens={hps['lyric_tokens']} and songs of "
            f"{hps['sample_length_in_seconds']:g} s; if it was trained otherwise, put that file there or give "
            f"{option}={known}"
        )


def check_codec(hps: Mapping[str, Any], vae: VAE) -> None:
    """Refuse latents of another VAE than the prior was trained on, where its checkpoint remembers which."""
    if hps["restore_prior"]:
        local = downloads.target_of(hps["restore_prior"])
        saved = open_weights(local, verify=False).content.get("hps")
        trained = saved.get("codec") if isinstance(saved, Mapping) else None
        if trained and trained != fingerprint(vae):
            raise UserError(
                f"{local}: was trained on the latents of another VAE than the one given; give --restore_vae with that "
                "VAE, or train the prior again"
            )


def _songbloom_sources(
    model: str, overrides: Mapping[str, Any], checkpoints: Mapping[str, str], *, download: bool = True
) -> dict[str, str]:
    """Set → file of its weights, for each part of a SongBloom model that has some; a codebook may be missing."""
    vae_set, sketch_set, prior_set = parts_of(model, checkpoints)
    values = {name: setup_hparams(dict.fromkeys((vae_set, name)), overrides) for name in (vae_set, prior_set)}
    sources = {}
    prior = checkpoints.get(prior_set) or _weights_of(prior_set, "restore_prior", values[prior_set], overrides)
    prior = sources[prior_set] = hub.file_of(prior, _usual_file(prior_set), checkpoint.LATEST)
    local = fetch(prior) if download else downloads.target_of(prior)
    content = open_weights(local, verify=False).content if local.is_file() else {}
    saved: Mapping[str, Any] = content.get("hps") or {}
    there = published_songbloom.is_published(content)
    coming = hub.is_hub(prior) and not local.is_file()  # to be downloaded, and its VAE with it
    given = checkpoints.get(vae_set) or overrides.get("restore_vae")
    if given:
        sources[vae_set] = str(given)
    elif there or coming:
        sources[vae_set] = prior if coming else hub.codec_of(local, content)
    elif saved.get("restore_vae") and downloads.target_of(saved["restore_vae"]).is_file():
        sources[vae_set] = saved["restore_vae"]
    elif not local.is_file():
        raise UserError(f"{prior}: no such file; it should hold the weights of {prior_set}")
    else:
        own = HPARAMS_REGISTRY[vae_set].get("restore_vae", "")
        sources[vae_set] = own or _weights_of(vae_set, "restore_vae", values[vae_set], {})
    book = checkpoints.get(sketch_set) or overrides.get("restore_sketch")
    if not book and not there and not coming:  # no codebook of ours fits a published model, unless somebody says so
        usual = Path(values[prior_set]["local_logdir"]) / sketch_set / CODEBOOK
        candidates = (saved.get("restore_sketch"), str(usual))
        book = next((one for one in candidates if one and Path(one).is_file()), "")
    if book:
        sources[sketch_set] = str(book)
    return sources


def settings_of(
    model: str,
    name: str,
    hps: Mapping[str, Any] | None = None,
    *,
    checkpoints: Mapping[str, str] | None = None,
    restored: bool = True,
    must_exist: bool = False,
) -> Hyperparams:
    """The settings of one part of a model, with the place of its weights; the arguments are :func:`make_model`'s.

    Args:
        name: the part's set.
        restored: take from the part's checkpoint what it was trained with.
        must_exist: refuse weights that are not there.

    Raises:
        UserError: as :func:`make_model`.
    """
    codec_set = parts_of(model, [name])[0]
    overrides = dict(hps or {})
    key = _restore_key(model, name)
    values = setup_hparams(dict.fromkeys((codec_set, name)), overrides, f"model {model!r}")
    given = (checkpoints or {}).get(name)
    values[key] = given or _weights_of(name, key, values, overrides, must_exist=must_exist)
    if values.get("songbloom") and key == "restore_prior":
        values[key] = hub.file_of(values[key], _usual_file(name), checkpoint.LATEST)
    if restored:
        _as_trained(values, values[key], key.removeprefix("restore_"), overrides)
    return values


def _usual_file(name: str) -> str:
    """What the file of a set's published weights is called; empty for sets that have none."""
    return str(HPARAMS_REGISTRY[name].get("restore_prior", "")).rpartition("/")[2]


def _weights_of(
    name: str, key: str, values: Mapping[str, Any], overrides: Mapping[str, Any], *, must_exist: bool = True
) -> str:
    """Where the weights of a set are: as overridden, as published, or where training under its name leaves them."""
    given = overrides.get(key) or HPARAMS_REGISTRY[name].get(key)
    if given:
        return str(given)
    path = Path(values["local_logdir"]) / name / (CODEBOOK if key == "restore_sketch" else checkpoint.LATEST)
    if must_exist and not path.is_file():
        what, words = name, "--vq --audio_files_dir=SONGS"
        if key == "restore_prior" and values.get("songbloom"):
            words = "--prior --data_jsonl=SONGS"
        elif key == "restore_prior":
            what, words = f"CODEC,{name}", "--prior --restore_vqvae=… --audio_files_dir=SONGS"
        options = "--restore_vae" if "vae" in HPARAMS_REGISTRY[name] else "--restore_vqvae"
        raise UserError(
            f"{path}: no weights of {name} there: train it (python train.py --hps={what} --name={name} {words} "
            f"--train …, see docs/training.md), or give {options} and --restore_prior"
        )
    return str(path)


def _as_trained(values: MutableMapping[str, Any], path: str, kind: str, overrides: Mapping[str, Any]) -> None:
    """Take a model's shape from its own checkpoint, where it was trained with options besides its set's.

    What the person gives for sampling stays, and is compared when the weights are loaded.
    """
    local = downloads.target_of(path)
    if (downloads.is_address(path) and not hub.is_hub(path)) or not local.is_file() or kind == "sketch":
        return
    content = open_weights(local, verify=False).content  # restoring verifies it
    saved = content.get("hps")
    if kind == "prior":
        check_family(content, local, "songbloom" if values.get("songbloom") else "jukebox")
    if values.get("songbloom") and published_songbloom.is_published(content):
        values.update({key: value for key, value in hub.settings_of(local).items() if key not in overrides})
    if content.get("kind") != kind or not isinstance(saved, Mapping):
        return
    for key in (*architecture_keys(kind, saved), *_OF_LYRICS):
        if key in saved and key in values and key not in overrides:
            values[key] = saved[key]
    for key in (LABEL_IDS, LYRIC_SYMBOLS, SKETCH_DIGEST):
        if key in saved:
            values[key] = saved[key]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
