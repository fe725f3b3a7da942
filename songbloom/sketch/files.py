"""Sketches on disk: one code a frame, 25 a second, of one song.

Read are ``.pt`` (1-D whole numbers, or a dict with them under ``sketch``), ``.npy`` and ``.npz`` (the array ``sketch``,
or the only one). A shape such as ``[1, T]`` counts as one-dimensional.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom.errors import UserError, reason
from songbloom.files import written_beside

SUFFIXES = (".pt", ".npy", ".npz")


def read_sketch(path: Path | str, codes: int) -> Tensor:
    """The codes in a file, int64 ``[T]``.

    Args:
        path: the file.
        codes: how many there are; every code of the file must be below.

    Raises:
        UserError: the file is missing, of another kind, damaged, holds something else, nothing, or a code that isn't
            one.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: sketches are read from {', '.join(SUFFIXES)} files; save it as one of them")
    if not path.is_file():
        raise UserError(f"{path}: no such sketch file")
    try:
        content = _read_torch(path) if path.suffix.lower() == ".pt" else _read_numpy(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than plain tensors, which is not safe to read; save the codes alone"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)[:80]
        raise UserError(f"{path}: damaged, or no sketch ({first})") from error
    return checked_sketch(content, codes, str(path))


def _read_torch(path: Path) -> Any:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        if "sketch" not in content:
            keys = ", ".join(map(str, list(content)[:4])) or "none"
            raise UserError(f"{path}: a dict without 'sketch' (keys: {keys}); save the codes under that name")
        content = content["sketch"]
    return content


def _read_numpy(path: Path) -> Any:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        names = list(content.files)
        if "sketch" not in names and len(names) != 1:
            raise UserError(
                f"{path}: which of its arrays is the sketch ({', '.join(names[:4]) or 'none'})? Call it 'sketch'"
            )
        return content["sketch" if "sketch" in names else names[0]]


def checked_sketch(values: Any, codes: int, where: str) -> Tensor:
    """Codes from anywhere, int64 ``[T]``.

    Args:
        values: a tensor, an array or a list of whole numbers.
        codes: how many there are.
        where: what to call their origin in a message.

    Raises:
        UserError: they are no 1-D whole numbers from 0 to ``codes - 1``, or there are none.
    """
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)]
        if wrong:
            raise UserError(f"{where}: {wrong[0]!r:.60} is no sketch code; they are whole numbers")
        values = np.asarray(values, np.int64 if all(abs(value) < 2**62 for value in values) else object)
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "iu":
            raise UserError(f"{where}: holds {values.dtype} instead of whole numbers; a sketch is one code a frame")
        values = torch.from_numpy(np.ascontiguousarray(values).astype(np.int64))
    if not isinstance(values, Tensor):
        raise UserError(f"{where}: holds a {type(values).__name__} instead of codes")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise UserError(f"{where}: holds {values.dtype} instead of whole numbers; a sketch is one code a frame")
    if values.ndim == 0 or values.numel() != max(values.shape):
        raise UserError(f"{where}: has shape {list(values.shape)}; a sketch is one-dimensional, one code a frame")
    values = values.reshape(-1).to(torch.int64)
    if not len(values):
        raise UserError(f"{where}: holds no codes")
    wrong_places = (values < 0) | (values >= codes)
    if wrong_places.any():
        at = int(wrong_places.int().argmax())
        raise UserError(
            f"{where}: code {int(values[at])} at frame {at} ({at / 25:.2f} s) is not one of 0 to {codes - 1}: it was "
            "made with another codebook, or is no sketch"
        )
    return values


def write_sketch(path: Path | str, sketch: Tensor) -> None:
    """Write codes ``[T]`` as the kind of file that the name's ending says; whole or not at all.

    Raises:
        UserError: another ending, shape or type, or it cannot be written.
    """
    path = Path(path)
    values = checked_sketch(sketch, 2**62, "the sketch to write").cpu()
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: sketches are written to {', '.join(SUFFIXES)} files; end its name with one of these")
    with written_beside(path) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == ".pt":
            torch.save({"sketch": values.clone()}, file)
        elif path.suffix.lower() == ".npy":
            np.save(file, values.numpy())
        else:
            np.savez(file, sketch=values.numpy())
