"""Adapters within Lightning checkpoints of the Japanese fork (:mod:`songbloom.published.songbloom.lightning`)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lora.files import AdapterFile, Entry, digest_of, state_digest
from songbloom.published.songbloom import lightning
from songbloom.training.checkpoint import NotACheckpoint
from songbloom.training.weights import open_content

BASE_FILE = "base_file"
"""What of ``AdapterFile.about`` names the file that holds the base as well."""


def read_any(path: str | Path, alpha: float | None = None) -> AdapterFile:
    """An adapter of ours, of peft's (:func:`songbloom.lora.files.read`) or within a Lightning checkpoint.

    Args:
        path: where it is.
        alpha: of the training of a Lightning checkpoint, which does not say it; others do.

    Raises:
        UserError: there is none, it is broken, or alpha is missing.
    """
    path = Path(path)
    try:
        found = read(path, alpha) if path.is_file() and path.name not in (files.TENSORS, files.CONFIG) else None
    except UserError as error:
        if not isinstance(error.__cause__, NotACheckpoint):
            raise
        told = str(error.__cause__).replace("no checkpoint, but", "no adapter, but")
        raise UserError(f"{told}; {files.WHAT_TO_GIVE}, or a Lightning checkpoint with adapters") from error
    return found or files.read(path)


def read(path: Path, alpha: float | None) -> AdapterFile | None:
    """The adapters of a checkpoint; None if the file is none with a SongBloom model in it.

    Args:
        path: the file.
        alpha: what its training's ``--lora-alpha`` was, which it doesn't say.

    Raises:
        UserError: it cannot be read, has no adapters, or alpha is not given.
    """
    if lightning.parts_of(open_content(path, verify=False).content) is None:
        return None
    parts = lightning.parts_of(open_content(path).content)
    assert parts is not None
    if not parts.adapters:
        raise UserError(f"{path}: is a whole model without adapters: give it as --restore_prior={path}")
    if alpha is None:
        raise UserError(
            f"{path}: a Lightning checkpoint does not say how strongly its adapters count: give --lora_alpha=NUMBER, "
            "the --lora-alpha of its training (32 unless it was given)"
        )
    entries: dict[str, Entry] = {}
    tensors: dict[str, Tensor] = {}
    for module, (A, B) in parts.adapters.items():
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A):
            raise UserError(f"{path}: {module!r} has no lora_A and lora_B that fit each other: the file is broken")
        entries[module] = Entry(A.float(), B.float(), alpha / len(A))
        tensors |= {f"{module}.A": A, f"{module}.B": B}
    base, matrices = lightning.digested(parts.base)
    about = {"base": state_digest(base, matrices), "level": 0, BASE_FILE: str(path)}
    return AdapterFile(path, digest_of(entries, tensors), entries, about=about)
