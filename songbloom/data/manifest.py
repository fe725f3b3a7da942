"""Which songs there are: every audio file below a folder, or the lines of a JSONL file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from songbloom.audio.files import AUDIO_SUFFIXES, find_audio
from songbloom.errors import UserError, counted, did_you_mean, reason

_TEXT_FIELDS = ("artist", "genre", "lyrics")
_KNOWN_FIELDS = ("audio_path", *_TEXT_FIELDS, "idx")


@dataclass(frozen=True)
class Song:
    """One song: its audio file and what is known about it."""

    path: Path  # absolute
    artist: str | None = None
    genre: str | None = None
    lyrics: str | None = None
    idx: int | str | None = None  # the song's own identifier in its manifest
    extra: Mapping[str, Any] = field(default_factory=dict)  # every other field of its line
    folder: Path | None = field(default=None, compare=False)  # what relative paths in ``extra`` start from
    where: str = field(default="", compare=False)  # ``file:line`` in a JSONL file


def songs_from(
    *,
    audio_files_dir: str | Path | None = None,
    data_jsonl: str | Path | None = None,
    sidecars: bool = False,
) -> list[Song]:
    """The songs of a folder (searched recursively) or of a JSONL file, in a fixed order.

    A line of the JSONL file is an object with ``audio_path`` (relative to the JSONL file's folder, or absolute) and
    optionally ``artist``, ``genre``, ``lyrics`` (text), ``idx`` (a number or text); all other fields are kept in
    ``extra``. With ``sidecars``, an object with the same fields (but for ``audio_path``) in ``NAME.json`` beside
    ``NAME.wav`` tells the same about a song of a folder.
    Whether the audio can be read is not looked at here (see :func:`songbloom.data.index.build_index`).

    Raises:
        UserError: neither or both sources are given, the folder or file is missing or holds no song, or a line cannot
            be read; a line is named as ``file:line``.
    """
    if bool(audio_files_dir) == bool(data_jsonl):
        given = "both are given" if audio_files_dir else "neither is given"
        raise UserError(
            f"songs come from --audio_files_dir=FOLDER or from --data_jsonl=FILE, and {given}: give exactly one"
        )
    if data_jsonl:
        return list(_songs_of_jsonl(Path(data_jsonl).expanduser()))
    return _songs_of_folder(Path(str(audio_files_dir)).expanduser(), sidecars)


def _songs_of_folder(folder: Path, sidecars: bool) -> list[Song]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"--audio_files_dir={folder}: {what}")
    found = find_audio(folder)
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
        others = sum(len(files) for _, _, files in os.walk(folder))
        raise UserError(
            f"--audio_files_dir={folder}: no audio file ({kinds}) among {counted(others, 'file')} in it and below it"
        )
    return [_with_sidecar(_absolute(path)) if sidecars else Song(_absolute(path)) for path in found]


def _with_sidecar(path: Path) -> Song:
    """A song with what the JSON file of the same name beside it says."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return Song(path, folder=path.parent)
    try:
        content = sidecar.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{sidecar}: cannot be read ({reason(error).lower()})") from error
    record = record_of(
        content, str(sidecar), f"a file that tells about {path.name} must be one object", '{"artist": "Mei"}'
    )
    return Song(path, folder=path.parent, **song_fields(record, str(sidecar)))


def _absolute(path: Path) -> Path:
    """Absolute, without following links: a link's name may be what a song is known by."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".." and Path.resolve follows links


def _songs_of_jsonl(path: Path) -> Iterator[Song]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--data_jsonl={path}: {reason(error).lower()}") from error
    count = 0
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = raw.strip()
        if line:
            count += 1
            yield _song_of_line(line, f"{path}:{number}", path.parent)
    if not count:
        raise UserError(f"--data_jsonl={path}: holds no line; each line is an object with audio_path")


def _song_of_line(line: bytes, where: str, folder: Path) -> Song:
    record = record_of(line, where, "each line must be one object", '{"audio_path": "song.wav"}')
    if "audio_path" not in record:
        hint = next((h for key in record if (h := did_you_mean(key, ["audio_path"]))), "")
        hint = f"; {', '.join(map(repr, record)) or 'nothing'} is there{hint}"
        raise UserError(f"{where}: lacks audio_path{hint}")
    audio = record["audio_path"]
    if not isinstance(audio, str) or not audio.strip() or "\0" in audio:
        raise UserError(f"{where}: audio_path must be the path of a file, not {kind_of(audio)}")
    folder = _absolute(folder)
    return Song(_absolute(folder / Path(audio).expanduser()), folder=folder, where=where, **song_fields(record, where))


def record_of(content: bytes, where: str, rule: str, example: str) -> dict[str, Any]:
    """The JSON object in ``content``, a line or file in UTF-8.

    Raises:
        UserError: it is something else; begins with ``where`` and ends with ``rule``.
    """
    try:
        record = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise UserError(f"{where}: is not JSON ({why}); {rule}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: is {kind_of(record)}, not an object like {example}")
    return record


def song_fields(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``artist``, ``genre``, ``lyrics``, ``idx`` and ``extra`` of a :class:`Song`, checked.

    Raises:
        UserError: a value of the wrong kind; begins with ``where``.
    """
    fields: dict[str, Any] = {}
    for key in _TEXT_FIELDS:
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{where}: {key} must be text, not {kind_of(value)}")
        if value and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {key} has half of a character (a lone surrogate); write the text as UTF-8")
        fields[key] = value
    fields["idx"] = idx = record.get("idx")
    if idx is not None and (isinstance(idx, bool) or not isinstance(idx, (int, str))):
        raise UserError(f"{where}: idx must be a whole number or text, not {kind_of(idx)}")
    fields["extra"] = {key: value for key, value in record.items() if key not in _KNOWN_FIELDS}
    return fields


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "empty text" if not value.strip() else "text"
    names = {int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
