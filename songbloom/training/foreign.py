"""Checkpoints of other programs that hold objects of their own beside tensors, read without making these objects.

A trainer such as Lightning writes its callbacks and the user's configuration into the file with the weights, as objects
of classes that need not be installed here. Nothing of them is imported or run: each becomes an :class:`Unmade`, which
does nothing. Tensors, numbers, texts and plain collections are what they were.
"""

from __future__ import annotations

import builtins
import collections
import pickle
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PLAIN = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
_REBUILT = ("_rebuild_tensor_v2", "_rebuild_parameter")


class Unmade:
    """Stands for an object of a class that is not made here; takes whatever a pickle does to it."""

    def __new__(cls, *given: Any, **named: Any) -> Unmade:
        return object.__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> Unmade:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Nothing."""

    def extend(self, values: Any) -> None:
        """Nothing."""

    def add(self, value: Any) -> None:
        """Nothing."""


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain collections; of all other names it makes :class:`Unmade`."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in _REBUILT:
            return getattr(torch._utils, name)
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return getattr(builtins, name)
        return Unmade


def read(path: Path, *, mmap: bool = False) -> Any:
    """What a zip archive of ``torch.save`` holds, on the CPU; objects of other classes are :class:`Unmade`.

    Args:
        path: the file.
        mmap: leave tensors on disk until they are used.

    Raises:
        pickle.UnpicklingError: it is a TorchScript archive, which ``torch.load`` would hand on to an interpreter.
        Exception: whatever reading broken bytes raises.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise pickle.UnpicklingError("a TorchScript archive holds code")
    reader: Any = ModuleType("plain_pickle")
    reader.Unpickler, reader.load = _Unpickler, _load
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=mmap)


def _load(file: Any, **how: Any) -> Any:
    return _Unpickler(file, **how).load()
