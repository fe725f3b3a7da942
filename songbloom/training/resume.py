"""Where a run begins: afresh, from weights that the command names, or where its last checkpoint left off.

The same command goes on from its last checkpoint. What the command asks of the beginning (``restore_vqvae``,
``restore_vae``, ``restore_prior``, ``reset_opt``, ``reset_step``) has been done once by then, so it counts only where
it differs from what the checkpoint's own run was told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from songbloom import distributed
from songbloom.architecture import compare_architecture, in_words
from songbloom.errors import UserError
from songbloom.files import hold
from songbloom.training import checkpoint
from songbloom.training.state import TrainingState
from songbloom.training.weights import open_weights

WORDS = {"lora": "adapters", "vqvae": "a codec", "vae": "a VAE", "sketch": "a sketch codebook", "prior": "a prior"}


@dataclass
class Beginning:
    """Where to begin.

    Attributes:
        path: the checkpoint of this run to go on from, or None.
        content: what it holds.
        whole: everything of it is taken; otherwise ``reset_opt`` or ``reset_step`` is to be heeded.
    """

    path: Path | None = None
    content: Mapping[str, Any] | None = None
    whole: bool = True


def restore_key(kind: str) -> str:
    """The hyperparameter that names weights to begin with."""
    return f"restore_{kind}"


def claim(folder: Path) -> None:
    """Make the run's folder and hold its lock until this process ends (rank 0; the others wait for it).

    Raises:
        UserError: it cannot be written, or another process is training there.
    """
    if distributed.world().is_main:
        hold(folder, busy="training", instead="--name or --local_logdir")
    distributed.barrier()


def find_beginning(folder: Path, hps: Mapping[str, Any], kind: str) -> Beginning:
    """See what the run's folder holds; all ranks call it together and get the same.

    Raises:
        UserError: the checkpoint there is of another kind or architecture (differences are named), or none that is
            there can be read.
    """
    place = distributed.world()
    path, content = None, None
    if place.is_main and folder.is_dir():
        checkpoint.remove_partial(folder)
        found = checkpoint.newest(folder, distributed.say)
        if found is not None:
            path, content = found
    path = distributed.broadcast_object(path)
    if path is None:
        return Beginning()
    if content is None:
        content = checkpoint.load(path, verify=False)  # rank 0 has verified it
    saved = content["hps"]
    if content["kind"] != kind:
        raise UserError(
            f"{path}: is the checkpoint of {WORDS.get(content['kind'], content['kind'])}, and this command trains "
            f"{WORDS[kind]}: choose another --name"
        )
    named = hps[restore_key(kind)]
    if named and named != saved.get(restore_key(kind)) and not _same_file(named, path):
        distributed.say(f"{restore_key(kind)}={named} names other weights than {path} began with: starting from them")
        return Beginning()
    differences = compare_architecture(saved, hps, kind)
    if kind == "vae":
        differences += _other_discriminator(saved, hps)
    if differences:
        raise UserError(f"{path}: does not fit: {in_words(differences)}; choose another --name to start afresh")
    reset = any(hps[key] and not saved.get(key) for key in ("reset_opt", "reset_step"))
    return Beginning(path, content, whole=not reset)


def _other_discriminator(saved: Mapping[str, Any], hps: Mapping[str, Any]) -> list[str]:
    """In which ways the discriminator of a checkpoint is another than that asked for, as words."""
    words = {False: "no discriminator", True: "a discriminator"}
    there, asked = bool(saved.get("vae_adversarial")), bool(hps["vae_adversarial"])
    if there is not asked:
        return [f"vae_adversarial makes {words[asked]}, and the checkpoint has {words[there]}"]
    return compare_architecture(saved, hps, "discriminator") if asked else []


def _same_file(named: str, path: Path) -> bool:
    return Path(named).exists() and Path(named).samefile(path)


def _same_tensors(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return {name: tensor.shape for name, tensor in saved.items()} == {name: t.shape for name, t in own.items()}


def _keep_licences(state: TrainingState, content: Mapping[str, Any]) -> None:
    """Terms of songs that the weights have learned from before stay beside those of this command's songs."""
    saved = content.get("hps")
    earlier = saved.get("licences") if isinstance(saved, Mapping) else None
    if earlier:
        state.hps["licences"] = list(dict.fromkeys([*(state.hps.get("licences") or ()), *earlier]))


def begin(state: TrainingState, beginning: Beginning, named: Callable[[str], Path]) -> None:
    """Put ``state`` where it is to begin; the model already has the weights that the command names.

    Args:
        beginning: what :func:`find_beginning` found.
        named: gives the local file of what ``restore_vqvae``, ``restore_vae`` or ``restore_prior`` says.
    """
    content = beginning.content
    if content is not None:
        _keep_licences(state, content)
    if content is not None and beginning.whole:
        state.resume(content)
        distributed.say(f"going on from {beginning.path} (step {state.step}, epoch {state.position.epoch})")
        return
    source = beginning.path
    if content is None:
        given = state.hps[restore_key(state.task.kind)]
        if not given or state.task.lora is not None:  # an adapter's numbers are there already
            return
        source = named(given)
        content = open_weights(source, verify=False).content
        _keep_licences(state, content)
        if content.get("optimizer") is None or content.get("kind") != state.task.kind:
            distributed.say(f"starting from the weights of {source}")
            return  # published weights, or weights alone
        if not _same_tensors(content["model"], state.task.model.state_dict()):  # the codec's weights have been loaded
            distributed.say(f"starting from the weights of {source}; discriminator and optimiser begin afresh")
            return
    state.load_weights(content)
    parts = ["weights"]
    if not state.hps["reset_opt"]:
        state.load_optimiser(content)
        parts.append("optimiser")
    if not state.hps["reset_step"]:
        state.load_step(content)
        parts.append(f"step {state.step}")
    distributed.say(f"starting from {source}: {', '.join(parts)}")
