"""Hyperparameters: knobs with meanings, merging with provenance, checking, the command line, saved configurations.

A *knob* is one named setting with a default, a meaning and a type. A program owns a collection of knobs
(:class:`Knobs`); named sets (a registry) and what a person types override defaults, and every value of the merged
:class:`Hyperparams` remembers where it came from. The knobs themselves are data in ``songbloom/knobs/``, named sets in
the root file ``hparams.py``.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from songbloom import __version__
from songbloom.errors import UserError, did_you_mean

DEFAULT_SOURCE = "default"
COMMAND_LINE = "command line"


class MissingHyperparameter(AttributeError, KeyError):
    """A key that was never defined was read; both an ``AttributeError`` and a ``KeyError``."""

    __str__ = Exception.__str__  # KeyError would quote the sentence


class UnknownKey(UserError, ValueError):
    """A configuration sets a key that no knob has."""


class UnknownSet(UserError, KeyError):
    """A named set of hyperparameters that the registry does not hold."""

    __str__ = Exception.__str__


class Hyperparams(dict[str, Any]):
    """A dict whose items are attributes too, and which can tell where each value came from.

    ``hps.width`` and ``hps["width"]`` are the same item. Reading what is absent raises
    :class:`MissingHyperparameter`. ``hps.sources`` maps keys to words such as ``default``, ``set 'small_prior'`` or
    ``command line``; a key that a program attached later has no entry there.
    """

    _sources: dict[str, str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sources = dict(args[0].sources) if args and isinstance(args[0], Hyperparams) else {}
        object.__setattr__(self, "_sources", sources)

    @property
    def sources(self) -> dict[str, str]:
        """Key → where its value came from."""
        return cast(dict[str, str], self.__dict__.setdefault("_sources", {}))

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # protocols such as copy and pickle probe for these
            raise AttributeError(key)
        return self[key]

    def __missing__(self, key: str) -> Any:
        raise MissingHyperparameter(f"no hyperparameter is named {key!r}{did_you_mean(key, self)}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "_sources":
            object.__setattr__(self, key, value)
        else:
            self[key] = value

    def __delattr__(self, key: str) -> None:
        if key not in self:
            self.__missing__(key)
        del self[key]

    def copy(self) -> Hyperparams:
        """A shallow copy that keeps the sources."""
        return Hyperparams(self)


# --- one knob -------------------------------------------------------------------------------------------------------

_WORDS = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "ints": "whole numbers such as 3,2",
    "floats": "numbers such as .5,.125",
}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NOTHING = object()  # a conversion that does not apply


def _as_int(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return _NOTHING
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return int(number) if number.is_integer() else _NOTHING  # 1e4 is a whole number


def _as_float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        return _NOTHING
    return float(value)


def _as_tuple(value: Any, item: Callable[[Any], Any]) -> Any:
    items = tuple(item(part) for part in (value if isinstance(value, (list, tuple)) else (value,)))
    return _NOTHING if not items or _NOTHING in items else items


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "bool": lambda value: value if isinstance(value, bool) else _NOTHING,
    "int": _as_int,
    "float": _as_float,
    "str": lambda value: value if isinstance(value, str) else _NOTHING,
    "ints": lambda value: _as_tuple(value, _as_int),
    "floats": lambda value: _as_tuple(value, _as_float),
}


def _number(text: str) -> Any:
    """The int or float that ``text`` spells, or itself."""
    for kind in (int, float):
        try:
            return kind(text.strip())
        except ValueError:
            continue
    return text


def _read(kind: str, text: str) -> Any:
    """The value of ``kind`` that ``text`` spells, or ``_NOTHING``."""
    if kind == "str":
        return text
    if kind == "bool":
        word = text.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else _NOTHING
    if kind in ("int", "float"):
        return _CONVERT[kind](_number(text))
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = inner.split(",")
    if parts[-1].strip() == "":  # a trailing comma, as in (3,)
        parts.pop()
    return _CONVERT[kind]([_number(part) for part in parts])


def _kind_of(default: Any) -> str:
    if isinstance(default, tuple) and default:
        return "floats" if any(isinstance(item, float) for item in default) else "ints"
    for kind, python_type in (("bool", bool), ("int", int), ("float", float), ("str", str)):
        if isinstance(default, python_type):
            return kind
    raise TypeError(f"a knob whose default is {default!r} needs a declared kind")


@dataclass(frozen=True)
class Knob:
    """One setting.

    Attributes:
        default: the value when nobody sets it; ``None`` makes ``None`` an allowed value.
        meaning: what it is, with its unit and, where it matters, its source, in one line.
        kind: allowed types, ``|`` between them: bool, int, float, str, ints, floats (the last two are tuples);
            by default the type of ``default``. A whole number is accepted for a float.
        choices: if given, the only values that are accepted.
        minimum: if given, the smallest number that is accepted.
        below: if given, all numbers accepted are smaller.
        ignored: why the key is accepted but does nothing here; empty for a key that works.
        key, group: filled in by :func:`group`.
    """

    default: Any
    meaning: str
    kind: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    below: float | None = None
    ignored: str = ""
    key: str = ""
    group: str = ""

    @property
    def kinds(self) -> list[str]:
        """The allowed types, in the order in which they are tried."""
        return (self.kind or _kind_of(self.default)).split("|")

    def check(self, value: Any, where: str) -> Any:
        """``value`` in the knob's own type (a list becomes a tuple, an int a float where a float is meant).

        Raises:
            UserError: the type, choice or range is wrong; the line begins with ``where``.
        """
        return self._checked(value, where, lambda kind: _CONVERT[kind](value))

    def read(self, text: str, where: str) -> Any:
        """The value that ``text`` from a command line spells; raises as :meth:`check` does."""
        return self._checked(text, where, lambda kind: _read(kind, text))

    def _checked(self, given: Any, where: str, convert: Callable[[str], Any]) -> Any:
        none = given is None or (isinstance(given, str) and given.strip().lower() == "none")
        if self.default is None and none:
            return None
        for kind in self.kinds:
            value = convert(kind)
            if value is not _NOTHING:
                break
        else:
            raise UserError(f"{where}: {self.key} wants {self.type_in_words()}, not {given!r}")
        if self.choices and value not in self.choices:
            near = did_you_mean(str(value), map(str, self.choices))
            raise UserError(f"{where}: {self.key} is one of {', '.join(map(repr, self.choices))}, not {value!r}{near}")
        numbers = value if isinstance(value, tuple) else (value,)
        told = given.strip() if isinstance(given, str) else shown(value)  # as it was typed
        if self.minimum is not None and any(number < self.minimum for number in numbers):
            raise UserError(f"{where}: {self.key} must be at least {self.minimum:g}, not {told}")
        if self.below is not None and any(number >= self.below for number in numbers):
            raise UserError(f"{where}: {self.key} must be below {self.below:g}, not {told}")
        return value

    def type_in_words(self) -> str:
        """Such as ``a whole number or None``."""
        return " or ".join([_WORDS[kind] for kind in self.kinds] + (["None"] if self.default is None else []))

    def help_line(self) -> str:
        """``--key=default`` and the meaning, for ``--help`` and the reference page."""
        ignored = f" [accepted and ignored: {self.ignored}]" if self.ignored else ""
        choices = f" One of {', '.join(map(repr, self.choices))}." if self.choices else ""
        stop = "." if choices and not self.meaning.endswith((".", "!", "?", "…")) else ""
        return f"{self.meaning}{stop}{choices}{ignored}"


@dataclass(frozen=True)
class Group:
    """Knobs that belong together, under a name and a one-line title."""

    name: str
    title: str
    knobs: Mapping[str, Knob]


def group(group_name: str, group_title: str, **knobs: Knob) -> Group:
    """A group of knobs: ``group("data", "Songs and how they are cut", bs=Knob(1, "Items a rank a step"), …)``.

    Raises:
        TypeError: a default does not have the type that its knob declares, or ``None`` has no declared type.
    """
    named = {key: replace(knob, key=key, group=group_name) for key, knob in knobs.items()}
    for key, knob in named.items():
        if not set(knob.kinds) <= set(_WORDS):
            raise TypeError(f"knob {key} has an unknown kind {knob.kind!r}")
        try:
            knob.check(knob.default, f"default of {key}")
        except UserError as error:
            raise TypeError(str(error)) from error
    return Group(group_name, group_title, named)


# --- all knobs of a program -----------------------------------------------------------------------------------------


class Knobs(Mapping[str, Knob]):
    """The knobs of one program, in groups; no key may be in two of them."""

    def __init__(self, *groups: Group) -> None:
        self.groups = groups
        self._knobs: dict[str, Knob] = {}
        for one in groups:
            for key, knob in one.knobs.items():
                if key in self._knobs:
                    raise TypeError(f"knob {key!r} is both in group {self._knobs[key].group!r} and in {one.name!r}")
                self._knobs[key] = knob

    def __getitem__(self, key: str) -> Knob:
        return self._knobs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._knobs)

    def __len__(self) -> int:
        return len(self._knobs)

    def defaults(self) -> dict[str, Hyperparams]:
        """Group name → its keys with their defaults."""
        return {one.name: Hyperparams({key: knob.default for key, knob in one.knobs.items()}) for one in self.groups}

    # -- merging --

    def merge(
        self,
        registry: Mapping[str, Mapping[str, Any]],
        names: str | Iterable[str],
        overrides: Mapping[str, Any] | None = None,
        source: str = COMMAND_LINE,
    ) -> Hyperparams:
        """Defaults, then each named set in order, then ``overrides``; a later value wins.

        Args:
            registry: named sets.
            names: set names, comma separated or a sequence; blanks are skipped.
            overrides: the last set, whose values are said to come from ``source``.

        Raises:
            UnknownSet: a name is not in the registry (also a ``KeyError``).
            UnknownKey: a key is no knob (also a ``ValueError``).
            UserError: a value has the wrong type, choice or range.
        """
        merged = Hyperparams()
        for key, knob in self.items():
            merged[key] = knob.default
            merged.sources[key] = DEFAULT_SOURCE
        parts: list[tuple[str, Mapping[str, Any]]] = []
        for name in self.split_names(names):
            if name not in registry:
                near = did_you_mean(name, registry)
                raise UnknownSet(f"--hps: no set of hyperparameters is named {name!r}{near}; known: {_some(registry)}")
            parts.append((f"set {name!r}", registry[name]))
        parts.append((source, overrides or {}))
        for where, values in parts:
            for key, value in values.items():
                merged[key] = self.known(key, where).check(value, where)
                merged.sources[key] = where
        return merged

    @staticmethod
    def split_names(names: str | Iterable[str]) -> list[str]:
        """Set names from ``"a, b"`` or ``("a", "b")``, without blanks."""
        parts = names.split(",") if isinstance(names, str) else list(names)
        return [part.strip() for part in parts if part.strip()]

    def known(self, key: str, where: str) -> Knob:
        """The knob of that key; an :class:`UnknownKey` that begins with ``where`` if there is none."""
        if key not in self:
            raise UnknownKey(f"{where}: no option is named {key!r}{did_you_mean(key, self)}; --help lists them all")
        return self[key]

    def notices(self, hps: Hyperparams) -> list[str]:
        """One line for each key that somebody set away from its default although it does nothing here."""
        return [
            f"note: {key}={shown(hps[key])} ({hps.sources.get(key)}) is accepted and ignored: {knob.ignored}"
            for key, knob in self.items()
            if knob.ignored and hps.get(key) != knob.default
        ]

    # -- the command line --

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The options of a command line, checked: key → value.

        Understood: ``--key=value``, ``--key value``, bare ``--flag`` (True), ``--no-flag`` (False), dashes or
        underscores inside keys, tuples with or without parentheses, negative and scientific numbers. ``-h`` is
        ``--help`` (if the program has such a knob). A later repetition wins.

        Raises:
            UserError: an unknown option (with the nearest match), a missing or wrong value, a stray word.
        """
        values: dict[str, Any] = {}
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "-h":
                word = "--help"
            if not word.startswith("--") or word == "--":
                raise UserError(f"command line: {word!r} belongs to no option; write --key=value")
            name, equals, text = word[2:].partition("=")
            key, negated = self._option(name)
            knob = self[key]
            if negated:
                if equals:
                    raise UserError(f"{word}: a flag that is switched off takes no value; write --{key}={text}")
                values[key] = False
            elif equals:
                values[key] = knob.read(text, COMMAND_LINE)
            elif "bool" in knob.kinds and not (rest and rest[0].lower() in _TRUE + _FALSE):
                values[key] = True
            elif rest and _is_value(rest[0]):
                values[key] = knob.read(rest.pop(0), COMMAND_LINE)
            else:
                raise UserError(f"--{name} needs a value ({knob.type_in_words()}); write --{name}=…")
        return values

    def _option(self, name: str) -> tuple[str, bool]:
        """Key and whether it is negated, from the name of an option as typed."""
        key = name.replace("-", "_")
        if key in self:
            return key, False
        if key.startswith("no_") and key[3:] in self:
            if "bool" in self[key[3:]].kinds:
                return key[3:], True
            raise UserError(f"--{name}: {key[3:]} is not a flag but {self[key[3:]].type_in_words()}")
        near = ""
        if key.startswith("no_"):
            flags = [known for known, knob in self.items() if "bool" in knob.kinds]
            near = did_you_mean(key.removeprefix("no_"), flags, "--no_")
        near = near or did_you_mean(key, self, "--")
        raise UnknownKey(f"command line: no option is named --{name}{near}; --help lists them all")

    # -- for people --

    def help(self, usage: str, ending: str = "") -> str:
        """The text of ``--help``: every key with default, meaning and group."""
        lines = [usage, ""]
        for one in self.groups:
            lines.append(f"[{one.name}] {one.title}")
            for key, knob in one.knobs.items():
                lines.append(f"  --{key}={shown(knob.default)}")
                lines.append(f"      {knob.help_line()} [{one.name}]")
            lines.append("")
        return "\n".join([*lines, ending]).rstrip() + "\n"

    def reference_page(self, introduction: str) -> str:
        """Every knob as a Markdown page, a table a group."""
        lines = [introduction, ""]
        for one in self.groups:
            lines += [f"## {one.name}: {one.title}", "", "| key | default | type | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{key}` | `{shown(knob.default)}` | {knob.type_in_words()} | {knob.help_line()} |"
                for key, knob in one.knobs.items()
            ]
            lines.append("")
        return "\n".join(lines)

    def explain(self, hps: Hyperparams) -> str:
        """The text of ``--print_hps``: every value and where it came from, in groups."""
        lines = []
        for one in self.groups:
            lines.append(f"[{one.name}] {one.title}")
            texts = {key: shown(hps[key]) for key in one.knobs if key in hps}
            width, value_width = max(map(len, texts), default=0), max(map(len, texts.values()), default=0)
            for key, text in texts.items():
                source = hps.sources.get(key, "set by the program")
                lines.append(f"  {key:<{width}} = {text:<{min(value_width, 40)}}  {source}")
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"


_NUMBER_START = re.compile(r"-\.?\d|-inf")


def _is_value(word: str) -> bool:
    return not word.startswith("-") or bool(_NUMBER_START.match(word))


def shown(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(repr, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def _some(names: Iterable[str], limit: int = 30) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


# --- saved configurations -------------------------------------------------------------------------------------------


def fields_from(configuration: type, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The values in ``mapping`` of a configuration dataclass's fields, lists as tuples; what is missing is left out."""
    known = {field.name for field in fields(configuration)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items() if key in known}


@dataclass(frozen=True)
class SavedConfiguration:
    """What lies beside a checkpoint: the merged values with their sources, our version, and the command line."""

    hps: Hyperparams
    version: str
    argv: tuple[str, ...]


def to_json(hps: Mapping[str, Any], argv: Sequence[str] = ()) -> str:
    """The merged configuration as JSON, with the version of songbloom and the command line that made it.

    Tuples become arrays; :func:`from_json` reads every array as a tuple again.

    Raises:
        UserError: a value cannot be written as JSON; names its key.
    """
    for key, value in hps.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"configuration: {key} cannot be saved as JSON ({error})") from error
    sources = hps.sources if isinstance(hps, Hyperparams) else {}
    content = {"version": __version__, "argv": list(argv), "hps": dict(hps), "sources": dict(sources)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str, where: str | Path = "saved configuration") -> SavedConfiguration:
    """What :func:`to_json` wrote; raises a ``UserError`` that begins with ``where`` if it is something else."""
    try:
        content = json.loads(text)
        hps = Hyperparams({key: with_tuples(value) for key, value in content["hps"].items()})
        hps.sources.update(content["sources"])
        return SavedConfiguration(hps, content["version"], tuple(content["argv"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: not a configuration that songbloom saved ({error})") from error


def with_tuples(value: Any) -> Any:
    """A value with all its lists as tuples."""
    if isinstance(value, list):
        return tuple(with_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return value
