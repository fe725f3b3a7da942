"""From a golden file's name to the check that knows it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

import tests.golden.checkers as checkers
from tests.golden.report import Golden

MODEL = "songbloom_tiny"  # models of any size are checked as the tiny ones


class UnknownFile(Exception):
    """The file cannot be read, or no check knows its kind."""


def registry() -> dict[str, Callable[[Golden], None]]:
    """File-name prefix → check, gathered from the ``CHECKS`` of every module in ``tests.golden.checkers``."""
    found: dict[str, Callable[[Golden], None]] = {}
    for module in pkgutil.iter_modules(checkers.__path__):
        found.update(importlib.import_module(f"{checkers.__name__}.{module.name}").CHECKS)
    return found


def kind_of(name: str, known: Iterable[str]) -> str | None:
    """The kind of file that a name tells: the longest that it begins with, else the longest that it holds.

    Models have no results of their own kind in their names, only their ending.
    """
    for fits in (name.startswith, name.__contains__):
        if kinds := [kind for kind in known if fits(kind)]:
            return max(kinds, key=len)
    return MODEL if name.startswith("songbloom_") and name.endswith("_model.pt") else None


def check_file(path: Path) -> Golden:
    """Load one file and run the check of its kind (:func:`kind_of`).

    Raises:
        UnknownFile: the file is missing, unreadable, or of a kind that no check knows.
    """
    if not path.is_file():
        raise UnknownFile(f"{path}: no such file")
    known = registry()
    kind = kind_of(path.name, known)
    if kind is None:
        raise UnknownFile(f"{path}: no check knows this kind of file; known kinds: {', '.join(sorted(known))}")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            content = torch.load(path, weights_only=True)
    except Exception as error:  # any way in which a file can be broken
        raise UnknownFile(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    golden = Golden(path.name, content, path.parent)
    known[kind](golden)
    return golden
