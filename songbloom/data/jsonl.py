"""Lists of songs as plain lines: read whole, so that they can be divided, joined and written again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from songbloom.data.fields import moved
from songbloom.data.manifest import record_of
from songbloom.errors import UserError, reason
from songbloom.files import write_text


def read_lines(path: str | Path, option: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, in order.

    Raises:
        UserError: it cannot be read, a line is no object (told as ``file:line``), or there is none.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{option}={path}: {reason(error).lower()}") from error
    records = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line := raw.strip():
            rule = "each line must be one object"
            records.append(record_of(line, f"{path}:{number}", rule, '{"audio_path": "song.wav"}'))
    if not records:
        raise UserError(f"{option}={path}: holds no line; each line is an object with audio_path")
    return records


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]], came_from: Path) -> None:
    """Write objects that were read in folder ``came_from``; their relative paths go on naming the same files."""
    path = Path(path).expanduser()
    rows = (json.dumps(moved(record, came_from, path.parent), ensure_ascii=False) + "\n" for record in records)
    write_text(path, "".join(rows))
