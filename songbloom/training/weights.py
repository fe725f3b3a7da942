"""Weights from files into models and back: our own checkpoints, and published ones, translated at the door."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from songbloom import __version__
from songbloom.architecture import compare_architecture, in_words
from songbloom.distributed import say
from songbloom.errors import UserError, counted
from songbloom.prior.prior import Prior
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.published import fetch as downloads
from songbloom.published import safetensors
from songbloom.published.fetch import fetch
from songbloom.published.jukebox import prior as published_prior
from songbloom.published.jukebox import vqvae as published_vqvae
from songbloom.published.songbloom import lightning
from songbloom.published.songbloom import prior as published_songbloom
from songbloom.published.songbloom import vae as published_vae
from songbloom.training import checkpoint
from songbloom.training.shared import fill_shared, worth_sharing
from songbloom.training.stored import Stored, fill
from songbloom.vae.vae import VAE
from songbloom.vqvae.vqvae import VQVAE

_TRANSLATORS: dict[str, Any] = {
    "vqvae": published_vqvae,
    "prior": published_prior,
    "vae": published_vae,
    "songbloom": published_songbloom,  # the same kind, "prior"; another family
}
WEIGHTS = f"give a {checkpoint.LATEST} that training wrote, or published weights"
# Besides tensors and plain values, files of the Jukebox release and of those who trained with it may hold its dict of
# hyperparameters (read as a plain dict) and numpy numbers. None of these runs code when it is read.
_NUMPY_NUMBER = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    (dict, "jukebox.hparams.Hyperparams"),
    (_NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


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
        module: a :class:`VQVAE`, a :class:`VAE`, a :class:`Prior` or a :class:`SongBloomPrior`; all of its tensors must
            be in the file and no others, but for a VAE's discriminator, which is left as it is, and the codec that
            a published SongBloom file may hold beside its prior.
        path: a file, the address of a published one (downloaded once), or empty: nothing is done.
        kind: ``"vqvae"``, ``"vae"`` or ``"prior"``.
        hps: if given, the file's own hyperparameters must describe the same architecture.
        weights: ``"ema"`` takes the averaged weights where the file has them, ``"raw"`` those of training.
        dtype, device: for a module on the meta device, which gets its tensors tensor by tensor: what matrices are kept
            in (None: float32), and where. On a CPU these are pages of the file itself, where the type is the same.

    Returns:
        What the file holds besides weights is in the same dict; None for an empty path.

    Raises:
        UserError: the file is missing, broken, of another kind, or doesn't fit; mismatches are named.
    """
    if not str(path):
        return None
    local = fetch(str(path))
    if not local.exists():
        raise UserError(f"{local}: no such checkpoint file; {_first(local, kind, hps)}")
    stored = open_weights(local)
    content: dict[str, Any] = stored.content
    if stored.adapters and kind == "prior":
        say(
            f"note: {local}: {counted(stored.adapters, 'adapter in it is', 'adapters in it are')} "
            f"left out here; --lora={local} lays them over"
        )
    state = _state_of(stored, kind, local, weights, module)
    saved = content.get("hps")
    if hps is not None and isinstance(saved, Mapping):
        mismatches = compare_architecture(saved, hps, kind)
        if mismatches:
            raise UserError(f"{local}: made with other settings: {in_words(mismatches)}; give --hps as it was trained")
    if isinstance(module, VAE):
        try:
            module.load_codec({name: stored.numbers(tensor) for name, tensor in state.items()})
        except UserError as error:
            raise UserError(f"{local}: {error}") from error
    else:
        _check_fit(module, state, local)
        if worth_sharing(module, device):
            fill_shared(module, state, stored, local, chosen=f"{kind} {weights}", dtype=dtype)
        else:
            fill(module, state, stored, dtype=dtype, device=device)
    return content


def _first(path: Path, kind: str, hps: Mapping[str, Any] | None) -> str:
    """What to do where weights that a command begins with are not there."""
    sources: Mapping[str, str] = getattr(hps, "sources", {})
    if kind == "prior" or (hps is not None and hps.get("train") and not hps.get("prior")):
        return f"give --restore_{kind}=FILE with weights that training wrote, or published ones"
    named = re.fullmatch(r"set '(.+)'", sources.get(f"restore_{kind}", ""))  # by a prior's set, as its codec's folder
    of_codec = re.fullmatch(r"set '(.+)'", sources.get("downs_t", "")) if kind == "vqvae" else None
    name = path.parent.name if named else of_codec[1] if of_codec else "SET"
    what, more = ("codec", "training") if kind == "vqvae" else ("VAE", "vae")
    return (
        f"train the {what} first (python train.py --hps={name} --name={name} --vq --audio_files_dir=SONGS --train …, "
        f"see docs/{more}.md), or give --restore_{kind}=FILE"
    )


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
    elif published and isinstance(module, SongBloomPrior):
        content = dict(published_songbloom.to_published(state))  # a bare state, as the released files are
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


def open_weights(path: Path, verify: bool = True) -> Stored:
    """A checkpoint, ours or a published one, whose tensors stay on disk until they are asked for.

    The content of a Lightning checkpoint of a SongBloom model is that of a published file with the same weights.
    """
    stored = open_content(path, verify)
    parts = lightning.parts_of(stored.content)
    if parts is not None:
        stored.content, stored.adapters = parts.base, len(parts.adapters)
    return stored


def open_content(path: Path, verify: bool = True) -> Stored:
    """The same, with all that the file holds under the names that it has there."""
    try:
        if path.suffix == safetensors.SUFFIX:  # in which forks keep SongBloom's model and VAE together
            if not path.is_file():
                raise UserError(f"{path}: no such checkpoint file")
            return Stored(safetensors.read_safetensors(path), mapped=True, path=path)
        if verify:
            downloads.look_over(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return checkpoint.open_file(path, verify=verify and not downloads.was_checked(path))
    except checkpoint.NotACheckpoint as error:
        what = "delete the file to download it again" if path.is_relative_to(downloads.cache_folder()) else WEIGHTS
        raise UserError(f"{error}; {what}") from error
    except UserError as error:
        if isinstance(error, checkpoint.Damaged) and path.is_relative_to(downloads.cache_folder()):
            raise UserError(f"{error.told}; delete the file to download it again") from error
        downloaded = path.is_relative_to(downloads.cache_folder()) and "delete the file" not in str(error)
        raise UserError(f"{error}; delete the file to download it again" if downloaded else str(error)) from error


def _state_of(stored: Stored, kind: str, path: Path, weights: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights in a checkpoint, under our names."""
    content = stored.content
    state = published_vae.state_in(content) if kind == "vae" else content.get("model")
    if kind == "prior" and published_songbloom.is_published(content):
        state = content  # released files are a bare state
    if not state or not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights under the key 'model'; is it the checkpoint of a model?")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if kind == "prior":
        check_family(content, path, "songbloom" if isinstance(module, SongBloomPrior) else "jukebox")
    found = _kind_in(content, state) or kind
    wanted = "songbloom" if isinstance(module, SongBloomPrior) else kind
    if found != wanted:
        words = {"vqvae": "a codec (--restore_vqvae)", "vae": "a VAE (--restore_vae)"}
        words |= {"prior": "a prior (--restore_prior)", "songbloom": "a SongBloom prior (--restore_prior)"}
        raise UserError(f"{path}: is the checkpoint of {words.get(found, repr(found))}, not of {words[wanted]}")
    if _TRANSLATORS[wanted].is_published(state):
        try:
            if isinstance(module, SongBloomPrior):
                return published_songbloom.from_published(state)
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


def _kind_in(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Which of :data:`_TRANSLATORS` a checkpoint's weights belong to; empty where nothing tells."""
    found = str(content.get("kind") or next((k for k, t in _TRANSLATORS.items() if t.is_published(state)), ""))
    return "songbloom" if found == "prior" and "language_model.norm.weight" in state else found


def check_family(content: Mapping[str, Any], path: Path, wanted: str) -> None:
    """Refuse the weights of a prior of the other family of models.

    Args:
        content: of the checkpoint; its tensors need not be there.
        path: where it is.
        wanted: ``"jukebox"`` or ``"songbloom"``.

    Raises:
        UserError: it holds a prior of the other family.
    """
    state = content if published_songbloom.is_published(content) else content.get("model")
    if not isinstance(state, Mapping):
        return
    found = {"songbloom": "songbloom", "prior": "jukebox"}.get(
        _kind_in(content, {str(name).removeprefix("module."): tensor for name, tensor in state.items()})
    )
    words = {"jukebox": "Jukebox", "songbloom": "SongBloom"}
    if found and found != wanted:
        raise UserError(
            f"{path}: is a prior of the {words[found]} family, and this model is of the {words[wanted]} family: give "
            f"--restore_prior with weights of a {words[wanted]} prior, or name a model of the {words[found]} family"
        )


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
