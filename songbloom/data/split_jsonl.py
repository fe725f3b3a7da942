"""Divide a list of songs for training and validation, so that no song is on both sides.

::

    python -m songbloom.data.split_jsonl --input_jsonl songs.jsonl --train_jsonl train.jsonl --val_jsonl val.jsonl

Recordings of one composition (``group``), of one file, of the same bytes, or, where a line has no group, with the same
words stay together.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import group_of, located
from songbloom.data.jsonl import read_lines, write_lines
from songbloom.errors import UserError, counted

_FEWEST_LETTERS = 20
"""Words shorter than this may be the same by chance."""
_TAGS_AND_MARKS = re.compile(r"[\[【][^\]】\n]*[\]】]|[\W_]+")


def split_songs(
    records: Sequence[Mapping[str, Any]], folder: Path, ratio: float, seed: int
) -> tuple[list[int], list[int]]:
    """Which lines are for training and which for validation.

    Whole songs are drawn for validation, in an order that ``seed`` decides, as long as each brings the share of lines
    nearer to ``ratio``; at least one song is on either side, if there are two and ``ratio`` is between 0 and 1.

    Args:
        records: the lines.
        folder: where their relative paths start.
        ratio: share of the lines for validation.
        seed: whole number.

    Returns:
        The positions for training and for validation, both in the order of the lines.

    Raises:
        UserError: there is only one song to divide.
    """
    if ratio <= 0:
        return list(range(len(records))), []
    if ratio >= 1:
        return [], list(range(len(records)))
    songs = together(records, folder)
    if len(songs) < 2:
        raise UserError(
            f"{counted(len(records), 'line is', 'lines are')} one song (by group, file or words), "
            "which cannot be divided; give "
            "validation songs of their own, or another group to each song"
        )
    order = list(range(len(songs)))
    random.Random(seed).shuffle(order)
    wanted, chosen, count = ratio * len(records), set[int](), 0
    for song in order:
        size = len(songs[song])
        if len(chosen) < len(songs) - 1 and abs(count + size - wanted) < abs(count - wanted):
            chosen.add(song)
            count += size
    if not chosen:
        chosen.add(min(order, key=lambda song: len(songs[song])))
    val = sorted(line for song in chosen for line in songs[song])
    return [line for line in range(len(records)) if line not in set(val)], val


def together(records: Sequence[Mapping[str, Any]], folder: Path) -> list[list[int]]:
    """Lines that are recordings of one song, as lists of positions."""
    heads = list(range(len(records)))

    def head(line: int) -> int:
        while heads[line] != line:
            heads[line] = heads[heads[line]]
            line = heads[line]
        return line

    first: dict[Hashable, int] = {}
    by_size: dict[int, list[int]] = defaultdict(list)
    for line, record in enumerate(records):
        keys: list[Hashable] = []
        group = group_of(record)
        if group is not None:
            keys.append(("group", group))
        else:
            lyrics = record.get("lyrics")
            words = _TAGS_AND_MARKS.sub("", lyrics).lower() if isinstance(lyrics, str) else ""
            if len(words) >= _FEWEST_LETTERS:
                keys.append(("words", words))
        audio = record.get("audio_path")
        if isinstance(audio, str) and audio:
            path = located(audio, folder).resolve()
            keys.append(("file", str(path)))
            if path.is_file():
                by_size[path.stat().st_size].append(line)
        for key in keys:
            heads[head(line)] = head(first.setdefault(key, line))
    for lines in by_size.values():
        if len(lines) > 1:
            for line in lines:
                digest = _digest(located(records[line]["audio_path"], folder))
                heads[head(line)] = head(first.setdefault(("bytes", digest), line))
    songs: dict[int, list[int]] = defaultdict(list)
    for line in range(len(records)):
        songs[head(line)].append(line)
    return list(songs.values())


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def split_jsonl(
    input_jsonl: str | Path, train_jsonl: str | Path, val_jsonl: str | Path, ratio: float = 0.1, seed: int = 1234
) -> tuple[int, int]:
    """Divide a file as the command does; the numbers of lines for training and validation.

    Raises:
        UserError: as :func:`split_songs`; or a file cannot be read or written.
    """
    source = Path(input_jsonl).expanduser()
    for option, path in (("--train_jsonl", train_jsonl), ("--val_jsonl", val_jsonl)):
        if located(str(path), Path()) == located(str(source), Path()):
            raise UserError(f"{option}={path}: is the input file; give another name")
    if located(str(train_jsonl), Path()) == located(str(val_jsonl), Path()):
        raise UserError(f"--train_jsonl and --val_jsonl are both {train_jsonl}; give two names")
    records = read_lines(source, "--input_jsonl")
    train, val = split_songs(records, source.parent, ratio, seed)
    write_lines(train_jsonl, (records[line] for line in train), source.parent)
    write_lines(val_jsonl, (records[line] for line in val), source.parent)
    return len(train), len(val)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.split_jsonl",
        description="Divide a list of songs for training and validation; a song is never on both sides.",
    )
    parser.option("input_jsonl", required=True, metavar="FILE", help="the list")
    parser.option("train_jsonl", required=True, metavar="FILE", help="gets the songs for training")
    parser.option("val_jsonl", required=True, metavar="FILE", help="gets the songs for validation")
    parser.option("val_ratio", type=float, default=0.1, help="share of the lines for validation")
    parser.option("seed", type=int, default=1234, help="decides which")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    train, val = split_jsonl(
        options.input_jsonl, options.train_jsonl, options.val_jsonl, options.val_ratio, options.seed
    )
    print(f"{options.train_jsonl}: {train} lines\n{options.val_jsonl}: {val} lines")
    return 0


if __name__ == "__main__":
    sys.exit(run_as_command(main))
