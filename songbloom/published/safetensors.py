"""Tensors of ``.safetensors`` files, read without the package (format: a length, a JSON table, the bytes)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from songbloom.errors import UserError, reason

SUFFIX = ".safetensors"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in _TYPES.items()}


def read_safetensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    They are pages of the file, mapped into memory: nothing is read before it is asked for, and what is written into
    them stays in this process. Tensors whose bytes begin at an odd place are copied.

    Raises:
        UserError: it cannot be read, or isn't such a file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            begin, whole = 8 + int.from_bytes(file.read(8), "little"), path.stat().st_size
            if not 8 < begin <= whole:
                raise ValueError("its table is longer than the file")
            table = json.loads(file.read(begin - 8))
        table.pop("__metadata__", None)
        pages = torch.from_file(str(path), shared=False, size=whole, dtype=torch.uint8)
        made: dict[str, Tensor] = {}
        for name, entry in table.items():
            first, last = (begin + int(offset) for offset in entry["data_offsets"])
            shape, dtype = [int(size) for size in entry["shape"]], _TYPES[entry["dtype"]]
            if not begin <= first <= last or last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has another size than its bytes")
            if last > whole:
                raise ValueError("it is cut short")
            part = pages[first:last]
            made[name] = (part.clone() if first % dtype.itemsize else part).view(dtype).view(shape)
        return made
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: not a safetensors file that can be read ({str(error)[:80]})") from error
