"""From names to models: which sets of hyperparameters make up a model, building it, restoring its weights.

A model is a codec and a prior for each of its levels. To name one of your own, register its sets in ``hparams.py`` and
add a line to :data:`MODELS`, codec first, then the priors from level 0 (the finest) up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hparams import HPARAMS_REGISTRY, check_prior, setup_hparams
from songbloom import __version__
from songbloom.data.label_tables import LabelTables, table_files
from songbloom.data.labels import Labeller
from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import Hyperparams, architecture_keys, compare_architecture
from songbloom.prior.prior import Prior, PriorConfig
from songbloom.published import fetch as downloads
from songbloom.published.fetch import fetch
from songbloom.published.jukebox import prior as published_prior
from songbloom.published.jukebox import vqvae as published_vqvae
from songbloom.published.songbloom import vae as published_vae
from songbloom.training import checkpoint
from songbloom.training.labelling import LABEL_IDS, complete_vocabulary, labeller_of, version_of
from songbloom.training.stored import Stored, fill
from songbloom.vae.vae import VAE, VAEConfig
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

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
}

_TRANSLATORS: dict[str, Any] = {"vqvae": published_vqvae, "prior": published_prior, "vae": published_vae}
_OF_LYRICS = ("lyrics_english", "lyrics_reading")  # these decide no shape, but which words are meant
_Model = TypeVar("_Model", bound=nn.Module)

# Besides tensors and plain values, files of the Jukebox release and of those who trained with it may hold its dict of
# hyperparameters (read as a plain dict) and numpy numbers. None of these runs code when it is read.
_NUMPY_NUMBER = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    (dict, "jukebox.hparams.Hyperparams"),
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


# --- building -------------------------------------------------------------------------------------------------------


def make_vqvae(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> VQVAE:
    """The codec that ``hps`` describes, with weights from ``restore_vqvae`` if that is given.

    When ``hps`` trains the codec (``train`` and not ``prior``) it comes in training mode with the raw weights of a
    checkpoint; otherwise frozen, in eval mode, with the averaged ones. A ``sample_length`` of 0 is derived and written
    back into ``hps``. On device ``"meta"`` nothing is restored and no memory is used.

    Raises:
        UserError: settings that don't fit each other, or a checkpoint that cannot be read or doesn't fit.
    """
    with _building(hps, device):
        vqvae = VQVAE(VQVAEConfig.from_hps(hps))
    if not vqvae.sample_length:
        seconds, hop = hps["sample_length_in_seconds"], vqvae.hop_lengths[-1]
        raise UserError(f"sample_length_in_seconds={seconds} is less than one code of {hop} samples: make it longer")
    if isinstance(hps, MutableMapping):
        hps["sample_length"] = vqvae.sample_length
    training = bool(hps.get("train")) and not hps.get("prior")
    if str(device) != "meta" and hps["restore_vqvae"]:
        content = restore(vqvae, hps["restore_vqvae"], "vqvae", hps=hps, weights="raw" if training else "ema")
        if training:
            if content and content.get("codebook"):
                vqvae.load_codebook_state(content["codebook"])
            else:
                vqvae.restore_codebooks(hps["bs"])
    return _ready(vqvae, device, training)


def make_vae(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> VAE:
    """The stereo VAE that ``hps`` describes, with weights from ``restore_vae`` if that is given.

    When ``hps`` trains it (``train``, ``vae`` and not ``prior``) it comes in training mode with the raw weights of a
    checkpoint; otherwise frozen, in eval mode, with the averaged ones. A discriminator's weights are not taken here:
    training that goes on takes them with the rest of its state. A ``sample_length`` of 0 is derived and written back
    into ``hps``. On device ``"meta"`` nothing is restored and no memory is used.

    Raises:
        UserError: settings that don't fit each other, or a checkpoint that cannot be read or doesn't fit.
    """
    with _building(hps, device):
        vae = VAE(VAEConfig.from_hps(hps))
    if not vae.sample_length:
        seconds, hop = hps["sample_length_in_seconds"], vae.hop_lengths[0]
        raise UserError(f"sample_length_in_seconds={seconds} is less than one latent of {hop} samples: make it longer")
    if isinstance(hps, MutableMapping):
        hps["sample_length"] = vae.sample_length
    training = bool(hps.get("train")) and bool(hps.get("vae")) and not hps.get("prior")
    if str(device) != "meta":
        restore(vae, hps["restore_vae"], "vae", hps=hps, weights="raw" if training else "ema")
    return _ready(vae, device, training)


def make_prior(
    hps: Mapping[str, Any], vqvae: VQVAE, device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None
) -> Prior:
    """The prior of level ``hps.level`` over the codes of ``vqvae``, with weights from ``restore_prior`` if given.

    In training mode with raw weights when ``hps`` trains a prior, otherwise frozen, in eval mode, with averaged ones,
    which are loaded tensor by tensor: what is in memory is never more than the model and one tensor of it.

    Args:
        hps: the merged hyperparameters.
        vqvae: the codec; its sizes are enough.
        device: where to put it.
        dtype: what the matrices of a frozen prior are kept in; None: float32.

    Raises:
        UserError: as :func:`make_vqvae`; also labels that are asked for without label tables.
    """
    check_prior({**hps, "levels": vqvae.levels})
    training = bool(hps.get("train")) and bool(hps.get("prior"))
    arrives = bool(hps["restore_prior"]) and not training  # so there is nothing to draw, nor to make room for
    with _building(hps, "meta" if arrives else device):
        prior = Prior(PriorConfig.from_hps(hps), vqvae)
    if str(device) != "meta":
        weights = "raw" if training else "ema"
        content = restore(prior, hps["restore_prior"], "prior", hps=hps, weights=weights, dtype=dtype, device=device)
        saved = (content or {}).get("hps")
        codec = saved.get("codec") if isinstance(saved, Mapping) else None
        if codec and not training and codec != fingerprint(vqvae):
            raise UserError(
                f"{hps['restore_prior']}: was trained on the codes of another codec than the one given; give "
                "--restore_vqvae with that codec, or train the prior again"
            )
    return _ready(prior, device, training)


def fingerprint(vqvae: VQVAE) -> str:
    """A short name for a codec's weights: a prior keeps that of the codec whose codes it has learnt."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vqvae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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
    wanted = _wanted_levels(model, levels)
    found = {}
    for name, key in [(codec_set, "restore_vqvae"), *((prior_sets[level], "restore_prior") for level in wanted)]:
        values = setup_hparams((codec_set, name), overrides, f"model {model!r}")
        path = (checkpoints or {}).get(name) or _weights_of(name, key, values, overrides)
        found[name] = fetch(path) if download else downloads.target_of(path)
        if not found[name].is_file() and (download or not downloads.is_address(path)):
            raise UserError(f"{found[name]}: no such file; it should hold the weights of {name}")
    return found


def is_mappable(path: Path) -> bool:
    """Whether the weights at ``path`` are there in our own layout, so that a model's are pages of the file."""
    return path.is_file() and _open(path, verify=False).content.get("kind") is not None


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
    wanted = _wanted_levels(model, levels)
    loading = restored and str(device) != "meta"

    def merged(name: str) -> Hyperparams:
        values = settings_of(model, name, hps, checkpoints=checkpoints, restored=restored, must_exist=loading)
        if not loading:
            values["restore_vqvae" if name == codec_set else "restore_prior"] = ""
        return values

    codec_hps = merged(codec_set)
    if codec_hps.levels != len(prior_sets):
        raise UserError(
            f"model {model!r} lists {len(prior_sets)} priors, but {codec_set} has {codec_hps.levels} levels"
        )
    vqvae = vqvae or make_vqvae(codec_hps, device)
    priors = [make_prior(merged(prior_sets[level]), vqvae, device, dtype=dtype) for level in wanted]
    for level, prior in zip(wanted, priors, strict=True):
        if prior.level != level:
            raise UserError(f"model {model!r}: {prior_sets[level]} stands at level {level} but models {prior.level}")
    return vqvae, priors


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
    key = "restore_vqvae" if name == codec_set else "restore_prior"
    values = setup_hparams(dict.fromkeys((codec_set, name)), overrides, f"model {model!r}")
    given = (checkpoints or {}).get(name)
    values[key] = given or _weights_of(name, key, values, overrides, must_exist=must_exist)
    if restored:
        _as_trained(values, values[key], "vqvae" if name == codec_set else "prior", overrides)
    return values


def _weights_of(
    name: str, key: str, values: Mapping[str, Any], overrides: Mapping[str, Any], *, must_exist: bool = True
) -> str:
    """Where the weights of a set are: as overridden, as published, or where training under its name leaves them."""
    given = overrides.get(key) or HPARAMS_REGISTRY[name].get(key)
    if given:
        return str(given)
    path = Path(values["local_logdir"]) / name / checkpoint.LATEST
    if must_exist and not path.is_file():
        sets, prior = (name, "") if key == "restore_vqvae" else (f"CODEC,{name}", " --prior --restore_vqvae=…")
        raise UserError(
            f"{path}: no weights of {name} there: train it (python train.py --hps={sets} --name={name}{prior} "
            "--audio_files_dir=SONGS --train …, see docs/training.md), or give --restore_vqvae and --restore_prior"
        )
    return str(path)


def _as_trained(values: MutableMapping[str, Any], path: str, kind: str, overrides: Mapping[str, Any]) -> None:
    """Take a model's shape from its own checkpoint, where it was trained with options besides its set's.

    What the person gives for sampling stays, and is compared when the weights are loaded.
    """
    local = Path(path)
    if downloads.is_address(path) or not local.is_file():
        return
    content = _open(local, verify=False).content  # restoring verifies it
    saved = content.get("hps")
    if content.get("kind") != kind or not isinstance(saved, Mapping):
        return
    for key in (*architecture_keys(kind, saved), *_OF_LYRICS):
        if key in saved and key in values and key not in overrides:
            values[key] = saved[key]
    if LABEL_IDS in saved:
        values[LABEL_IDS] = saved[LABEL_IDS]


@contextmanager
def _building(hps: Mapping[str, Any], device: torch.device | str) -> Iterator[None]:
    """Initial weights depend on ``hps.seed`` alone, whatever the rank and device; global random state is left alone."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if str(device) == "meta" else "cpu"):
        torch.default_generator.manual_seed(int(hps.get("seed", 0)))
        yield


def _ready(model: _Model, device: torch.device | str, training: bool) -> _Model:
    if not training:
        model.requires_grad_(False)
    return model.to(device).train(training)


# --- labels ---------------------------------------------------------------------------------------------------------


def tables_of(path: str, version: int) -> LabelTables | None:
    """The id tables of the prior whose weights are at ``path``: those in its checkpoint, or beside it.

    Nothing is fetched: publishers keep their tables elsewhere. What lies beside the place of a download counts.

    Args:
        path: a file, the address of a published one, or empty.
        version: of the tables, 2 or 3.

    Raises:
        UserError: tables that are there cannot be read.
    """
    if not path:
        return None
    if not downloads.is_address(path):
        local = Path(path)
        saved = _open(local, verify=False).content.get("hps") if local.is_file() else None
        if isinstance(saved, Mapping) and LABEL_IDS in saved:
            return LabelTables.from_plain(saved[LABEL_IDS])
    artists, genres = (downloads.target_of(path).parent / name for name in table_files(version))
    if not (artists.is_file() and genres.is_file()):
        return None
    return LabelTables.read(artists, genres, version)


def make_labeller(hps: Hyperparams, prior: Prior, notice: Callable[[str], None] | None = None) -> Labeller | None:
    """The labeller of a prior for sampling; None for a prior without labels. All ranks call it together.

    Args:
        hps: the prior's settings (:func:`settings_of`). ``label_tables`` counts where its checkpoint has no tables.
        prior: its sizes are enough.
        notice: hears of names that the tables don't know.

    Raises:
        UserError: there are no tables, or they hold more names than the prior.
    """
    if not prior.label_width:
        return None
    complete_vocabulary(hps)
    version, path = version_of(hps), str(hps.restore_prior)
    if LABEL_IDS in hps:
        tables: LabelTables | None = LabelTables.from_plain(hps[LABEL_IDS])
    elif hps.label_tables:
        tables = LabelTables.read_folder(hps.label_tables, version)
    else:
        tables = tables_of(path, version)
    if tables is None:
        artist, genre = table_files(version)
        place = downloads.target_of(path).parent
        raise UserError(
            f"{path or 'this prior'}: nothing tells which numbers its artists and genres have: put {artist} and "
            f"{genre} into {place}, or give --label_tables=FOLDER (for published models they lie in jukebox/data/ids "
            "of the Jukebox release)"
        )
    tables.check_fits(hps.y_bins)
    trained = prior.config.n_vocab
    if prior.n_tokens and not prior.config.copy_input and trained != hps.n_vocab:
        raise UserError(
            f"{path or 'this prior'}: was trained with a vocabulary of {trained} symbols, and {hps.lyrics_vocab!r} has "
            f"{hps.n_vocab}: give the --lyrics_vocab that it was trained with"
        )
    labeller = labeller_of(hps, sample_length=prior.sample_length, tables=tables, notice=notice)
    assert labeller.width == prior.label_width, (labeller.width, prior.label_width)
    return labeller


# --- weights --------------------------------------------------------------------------------------------------------


def restore(
    module: nn.Module,
    path: str | Path,
    kind: str,
    *,
    hps: Mapping[str, Any] | None = None,
    weights: str = "ema",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any] | None:
    """Load weights into a codec or a prior, from our own checkpoints or from published ones, which are translated.

    Args:
        module: a :class:`VQVAE`, a :class:`VAE` or a :class:`Prior`; all of its tensors must be in the file and no
            others, but for a VAE's discriminator, which is left as it is.
        path: a file, the address of a published one (downloaded once), or empty: nothing is done.
        kind: ``"vqvae"``, ``"vae"`` or ``"prior"``.
        hps: if given, the file's own hyperparameters must describe the same architecture.
        weights: ``"ema"`` takes the averaged weights where the file has them, ``"raw"`` those of training.
        dtype, device: for a module on the meta device, which gets its tensors tensor by tensor: what matrices are kept
            in (None: float32), and where. On a CPU these are pages of the file itself, where the type is the same.

    Returns:
        What the file holds besides weights is in the same dict; None for an empty path.

    Raises:
        UserError: the file is missing, broken, of another kind, or doesn't fit; every mismatch is named.
    """
    if not str(path):
        return None
    local = fetch(str(path))
    stored = _open(local)
    content: dict[str, Any] = stored.content
    state = _state_of(stored, kind, local, weights, module)
    saved = content.get("hps")
    if hps is not None and isinstance(saved, Mapping):
        mismatches = compare_architecture(saved, hps, kind)
        if mismatches:
            raise UserError(f"{local}: made with other settings: {'; '.join(mismatches)}; give --hps as it was trained")
    if isinstance(module, VAE):
        try:
            module.load_codec({name: stored.numbers(tensor) for name, tensor in state.items()})
        except UserError as error:
            raise UserError(f"{local}: {error}") from error
    else:
        _check_fit(module, state, local)
        fill(module, state, stored, dtype=dtype, device=device)
    return content


def save(
    module: nn.Module,
    path: str | Path,
    kind: str,
    hps: Mapping[str, Any],
    *,
    step: int = 0,
    argv: Iterable[str] = (),
    published: bool = False,
) -> None:
    """Write a model's weights as a checkpoint that :func:`restore` reads.

    Args:
        module, kind, hps: the model, ``"vqvae"``, ``"vae"`` or ``"prior"``, and what it was built from.
        step, argv: optimiser steps that it was trained for, and the command that did.
        published: under the names and in the layout of the release that the model belongs to, for other programs.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    state = module.state_dict()
    if published and isinstance(module, VAE):
        content: dict[str, Any] = {"state_dict": published_vae.to_published(state)}
    elif published:
        if isinstance(module, Prior):
            container = "blocks" if module.config.cond_c_res == 1 else "model"
            theirs = published_prior.to_published(state, container=container)
        else:
            theirs = published_vqvae.to_published(state)
        content = {"model": theirs, "hps": dict(hps), "step": step}
    else:
        content = dict.fromkeys(checkpoint.KEYS)
        content |= {"format": checkpoint.FORMAT, "kind": kind, "hps": dict(hps), "model": dict(state), "step": step}
        content |= {"codebook": module.codebook_state() if isinstance(module, (VQVAE, VAE)) else None}
        content |= {"version": __version__, "argv": list(argv)}
    checkpoint.save(path, content)


def _open(path: Path, verify: bool = True) -> Stored:
    """A checkpoint, ours or a published one, whose tensors stay on disk until they are asked for."""
    try:
        if verify:
            downloads.look_over(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return checkpoint.open_file(path, verify=verify and not downloads.was_checked(path))
    except UserError as error:
        downloaded = path.is_relative_to(downloads.cache_folder()) and "delete the file" not in str(error)
        raise UserError(f"{error}; delete the file to download it again" if downloaded else str(error)) from error


def _state_of(stored: Stored, kind: str, path: Path, weights: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights in a checkpoint, under our names."""
    content = stored.content
    state = published_vae.state_in(content) if kind == "vae" else content.get("model")
    if not state or not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights under the key 'model'; is it the checkpoint of a model?")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    found = content.get("kind") or next((k for k, t in _TRANSLATORS.items() if t.is_published(state)), kind)
    if found != kind:
        words = {"vqvae": "a codec (--restore_vqvae)", "vae": "a VAE (--restore_vae)"}
        words["prior"] = "a prior (--restore_prior)"
        raise UserError(f"{path}: is the checkpoint of {words.get(found, repr(found))}, not of {words[kind]}")
    if _TRANSLATORS[kind].is_published(state):
        try:
            if isinstance(module, Prior):
                looked_at = (
                    published_prior.EMBEDDING,
                    published_prior.OUTPUT,
                )  # of these numbers count, not names alone
                state |= {name: stored.numbers(state[name]) for name in looked_at if name in state}
                return published_prior.from_published(state, tied=not module.config.merged_decoder)
            if isinstance(module, VAE):
                return published_vae.from_published(state)
            return published_vqvae.from_published(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if weights == "ema" and content.get("ema"):
        state.update(content["ema"])  # buffers, such as codebooks, are not averaged
    return state


def _check_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not exactly the module's, before anything of it is touched."""
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} where {tuple(own[name].shape)} is needed"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    told = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for what, names in problems.items()
        if names
    ]
    if told:
        raise UserError(f"{path}: does not fit this model: {'; '.join(told)}; give --hps as it was trained")
