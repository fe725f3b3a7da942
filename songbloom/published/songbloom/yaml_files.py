"""Published settings files: YAML with references, read without running anything that they say.

The files are written for OmegaConf: ``${model.dim}`` is a value elsewhere, ``${.dim}`` one beside it,
``${load_yaml:FILE}`` another file, and ``${dynamic_path:???/FILE}`` a file in the folder of the weights. The program
that they were written for also knows ``${eval:…}``, which is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from songbloom.errors import UserError

_INNERMOST = re.compile(r"\$\{([^${}]*)\}")
_DEPTH = 20  # references to references that are followed; more is a circle
Reader = Callable[[Path], Any]


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file.

    Raises:
        UserError: PyYAML is not installed, or the file is missing or no plain YAML.
    """
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path}: reading YAML needs PyYAML, which is not installed: pip install pyyaml") from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): is it beside the weights?") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no plain YAML ({' '.join(str(error).split())})") from None


def read_settings(path: Path, *, only: Collection[str] = (), reader: Reader = read_yaml) -> dict[str, Any]:
    """A settings file with its references followed; files that it names are looked for in its own folder.

    Args:
        path: of the file.
        only: parts that are wanted, if it has them; references inside of others are left alone. Empty: all.
        reader: reads it, and the files that it names.

    Raises:
        UserError: it cannot be read, is no mapping, or has references that lead nowhere or would run code.
    """
    content = reader(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is no settings file: it must hold names and values")
    return resolve(content, path.parent, only=only, reader=reader)


def resolve(
    content: Mapping[str, Any], folder: Path, *, only: Collection[str] = (), reader: Reader = read_yaml
) -> dict[str, Any]:
    """``content`` with its references followed.

    Args:
        folder: what ``???`` stands for.
        only: of :func:`read_settings`.
        reader: reads the files of ``load_yaml``.

    Raises:
        UserError: a reference that leads nowhere, in a circle, or would run code.
    """
    wanted = {key: value for key, value in content.items() if key in only} or content
    return _Resolver(content, folder, reader).of(wanted, ())


class _Resolver:
    """Follows the references of one file."""

    def __init__(self, root: Mapping[str, Any], folder: Path, reader: Reader) -> None:
        self.root, self.folder, self.reader = root, folder, reader

    def of(self, value: Any, place: tuple[str, ...], depth: int = 0) -> Any:
        """``value``, which stands at ``place``, with everything inside resolved."""
        if isinstance(value, Mapping):
            return {key: self.of(item, (*place, str(key)), depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item, (*place, str(index)), depth) for index, item in enumerate(value)]
        while isinstance(value, str) and (found := _INNERMOST.search(value)):
            if depth > _DEPTH:
                raise UserError(f"{'.'.join(place)}: its references go around in a circle")
            depth += 1
            inner = self._reference(found[1].strip(), place, depth)
            if found[0] == value:  # all of it: any kind of value
                return inner
            value = value[: found.start()] + str(inner) + value[found.end() :]
        return value

    def _reference(self, text: str, place: tuple[str, ...], depth: int) -> Any:
        name, colon, argument = text.partition(":")
        if not colon:
            return self._value(text, place, depth)
        path = argument.strip().strip("'\"").replace("???", str(self.folder))
        if name == "dynamic_path":
            return path
        if name == "load_yaml":
            return self.reader(self.folder / path if Path(path).name == path else Path(path))
        raise UserError(f"{'.'.join(place)}: ${{{text}}} would be run, which is not done: write its value instead")

    def _value(self, name: str, place: tuple[str, ...], depth: int) -> Any:
        dots = len(name) - len(name.lstrip("."))
        start = place[: len(place) - dots] if dots else ()
        path = (*start, *filter(None, name.split(".")))
        value: Any = self.root
        for step in path:
            try:
                value = value[int(step)] if isinstance(value, list) else value[step]
            except (KeyError, IndexError, TypeError, ValueError):
                raise UserError(f"{'.'.join(place)}: ${{{name}}} leads nowhere in this file") from None
        return self.of(value, path, depth)
