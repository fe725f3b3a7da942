"""From a golden file's name to the check that knows it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import torch

import tests.golden.checkers as checkers
from tests.golden.report import Golden


class UnknownFile(Exception):
    """The file cannot be read, or no check knows its kind."""


def registry() -> dict[str, Callable[[Golden], None]]:
    """File-name prefix → check, gathered from the ``CHECKS`` of every module in ``tests.golden.checkers``."""
    found: dict[str, Callable[[Golden], None]] = {}
    for module in pkgutil.iter_modules(checkers.__path__):
        found.update(importlib.import_module(f"{checkers.__name__}.{module.name}").CHECKS)
    return found


def check_file(path: Path) -> Golden:
    """Load one file and run the check with the longest prefix that its name begins with.

    Raises:
        UnknownFile: the file is missing, unreadable, or of a kind that no check knows.
    """
    if not path.is_file():
        raise UnknownFile(f"{path}: no such file")
    known = registry()
    prefixes = [prefix for prefix in known if path.name.startswith(prefix)]
    if not prefixes:
        raise UnknownFile(f"{path}: no check knows this kind of file; known kinds: {', '.join(sorted(known))}")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            content = torch.load(path, weights_only=True)
    except Exception as error:  # any way in which a file can be broken
        raise UnknownFile(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    golden = Golden(path.name, content, path.parent)
    known[max(prefixes, key=len)](golden)
    return golden
