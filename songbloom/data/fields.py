"""The fields that a line of songs may have, for both families of models, and where paths in it point."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from songbloom.data.metadata import TIMED_PATHS
from songbloom.errors import did_you_mean

Kind = Literal["text", "name", "path", "number", "list", "object", "any"]


class Field(NamedTuple):
    """What a field holds: ``name`` is text or a whole number, ``path`` a file seen from the JSONL file's folder."""

    kind: Kind
    meaning: str


FIELDS: Mapping[str, Field] = {
    "audio_path": Field("path", "the song; needed"),
    "idx": Field("name", "the song's identifier, different in each line"),
    "lyrics": Field("text", "words with structure tags"),
    "prompt_wav": Field("path", "a stretch of sound, 10 s, that shows the style"),
    "sketch_path": Field("path", "codes, 25 a second: .pt, .npy or .npz"),
    "sketch_tokens": Field("list", "the same codes in the line itself"),
    "language": Field("text", "what the words are: ja, en or zh"),
    "phrases": Field("list", "what is sung when: objects with start, end (seconds) and text"),
    "sections": Field("list", "which part is when: objects with tag, start and end (seconds)"),
    "artist": Field("text", "who sings"),
    "genre": Field("text", "what kind of music it is"),
    "group": Field("name", "the composition; recordings of one song share it and stay on one side of a split"),
    "split": Field("text", "train, val or test, where one file holds several"),
    "title": Field("text", "the song's name"),
    "licence": Field("text", "what may be done with the recording"),
    "source": Field("text", "the corpus it comes from"),
    "voice_credit": Field("text", "whom to name"),
    **{name: Field("path", "a file with the times of the words") for name in TIMED_PATHS},
    "vocals_path": Field("path", "the voice alone"),
    "backing_path": Field("path", "the music alone"),
    "song_path": Field("path", "everything known about the song"),
    "seconds": Field("number", "length"),
    "tempo": Field("number", "beats a minute"),
    "meter": Field("any", "beats a bar"),
    "key": Field("any", "the key"),
    "scale": Field("any", "the scale"),
    "voice": Field("any", "which voice"),
    "meta": Field("object", "what the corpus says besides"),
}
"""Every field that something here reads or writes."""

ALIASES: Mapping[str, str] = {"song_group": "group", "license": "licence"}
"""Other spellings that are read as well."""

LANGUAGES = ("ja", "en", "zh")
SPLITS = ("train", "val", "test")

_PATHS = tuple(name for name, field in FIELDS.items() if field.kind == "path")
_FITS: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "name": (str, int),
    "path": (str,),
    "number": (int, float),
    "list": (list,),
    "object": (dict,),
    "any": (object,),
}
_NAMES = {"text": "text", "name": "text or a whole number", "path": "the path of a file", "number": "a number"}


def near_field(name: str, record: Collection[str]) -> str:
    """`` (did you mean 'lyrics'?)`` for a field that a line has not, if ``name`` is near it; empty otherwise."""
    return did_you_mean(name, [known for known in (*FIELDS, *ALIASES) if known not in record])


def meaning_of(name: str) -> Field | None:
    """The field of this name or alias."""
    return FIELDS.get(ALIASES.get(name, name))


def fits(kind: Kind, value: Any) -> bool:
    """Whether a value is of a field's kind; null counts as absent."""
    return value is None or (isinstance(value, _FITS[kind]) and not (isinstance(value, bool) and kind != "any"))


def kind_in_words(kind: Kind) -> str:
    """What a field must hold."""
    return _NAMES.get(kind, f"a {kind}" if kind != "object" else "an object")


def field(record: Mapping[str, Any], name: str) -> Any:
    """A field under its name or an alias; ``None`` if it is absent."""
    for spelling in (name, *(alias for alias, meant in ALIASES.items() if meant == name)):
        if record.get(spelling) is not None:
            return record[spelling]
    return None


def group_of(record: Mapping[str, Any]) -> str | None:
    """The song group of a line as text, or ``None``."""
    group = field(record, "group")
    return None if group is None or str(group).strip() == "" else str(group)


def located(path: str, folder: Path) -> Path:
    """Where a path in a line of a JSONL file in ``folder`` points, absolute; links are not followed."""
    return Path(os.path.abspath(folder / Path(path).expanduser()))  # noqa: PTH100 - resolve() follows links


def path_for(path: Path, folder: Path) -> str:
    """How a line of a JSONL file in ``folder`` names a file: relative if it is below, else absolute."""
    path, folder = located(str(path), Path()), located(str(folder), Path())
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def moved(record: Mapping[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """A line of a JSONL file in folder ``old``, as it must be in one in folder ``new`` to name the same files."""
    old, new = located(str(old), Path()), located(str(new), Path())
    changed = dict(record)
    for name in _PATHS:
        value = record.get(name)
        if old != new and isinstance(value, str) and value and not Path(value).expanduser().is_absolute():
            changed[name] = path_for(located(value, old), new)
    return changed
