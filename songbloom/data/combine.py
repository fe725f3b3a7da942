"""Join lists of songs into one.

::

    python -m songbloom.data.combine --input_jsonls a/songs.jsonl b/songs.jsonl --output_jsonl all.jsonl

Paths go on naming the same files. An ``idx`` that is taken gets ``_1``, ``_2``, …; a recording that is in two lists is
taken once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import field, located, moved
from songbloom.data.jsonl import read_lines, write_lines
from songbloom.errors import UserError, counted


def combine(inputs: Sequence[str | Path], output: str | Path) -> tuple[int, list[str]]:
    """Join files as the command does.

    Returns:
        How many lines were written, and what to tell.

    Raises:
        UserError: a file cannot be read, a line is no object, or the output is one of the inputs.
    """
    target = Path(output).expanduser()
    files: set[Path] = set()
    taken: set[str] = set()
    notices: list[str] = []
    joined: list[dict[str, Any]] = []
    for name in inputs:
        path = Path(name).expanduser()
        if located(str(path), Path()) == located(str(target), Path()):
            raise UserError(f"--output_jsonl={output}: is one of the input files; give another name")
        count = again = renamed = 0
        for record in read_lines(path, "--input_jsonls"):
            audio = record.get("audio_path")
            if isinstance(audio, str) and audio:
                file = located(audio, path.parent).resolve()
                if file in files:
                    again += 1
                    continue
                files.add(file)
            record = moved(record, path.parent, target.parent)
            idx = record.get("idx")
            if idx is not None:
                record["idx"] = _free(idx, taken)
                renamed += record["idx"] != idx
            joined.append(record)
            count += 1
        licences = sorted({str(field(record, "licence") or "not stated") for record in joined[len(joined) - count :]})
        more = [counted(again, "recording was", "recordings were") + " there already"] * bool(again)
        more += [f"{renamed} idx were taken and got a number"] * bool(renamed)
        notices.append(
            "; ".join([f"{path}: {counted(count, 'line')}", *more, f"licence: {', '.join(licences) or 'none'}"])
        )
    write_lines(target, joined, target.parent)
    return len(joined), notices


def _free(idx: Any, taken: set[str]) -> Any:
    free, number = idx, 1
    while str(free) in taken:
        free, number = f"{idx}_{number}", number + 1
    taken.add(str(free))
    return free


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.combine",
        description="Join lists of songs into one.",
    )
    parser.option("input_jsonls", required=True, nargs="+", metavar="FILE", help="the lists")
    parser.option("output_jsonl", required=True, metavar="FILE", help="gets all lines")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    count, notices = combine(options.input_jsonls, options.output_jsonl)
    for notice in notices:
        print(notice)
    print(f"{options.output_jsonl}: {counted(count, 'line')}")
    return 0


if __name__ == "__main__":
    sys.exit(run_as_command(main))
