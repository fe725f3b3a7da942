"""Cut songs into their lines: one short song for each line whose time is known.

::

    python -m songbloom.data.prepare.lines --input_jsonl corpus/songs.jsonl --output_dir lines

For small trainings and tests, in which a whole song is too long: what is left has no long rests, and its words fit a
segment. A line's time is what ``phrases``, or the file of times that the song's line names, says.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.files import probe, read_audio, write_wav
from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import path_for
from songbloom.data.manifest import Song, songs_from
from songbloom.data.metadata import timed_text
from songbloom.errors import UserError, counted
from songbloom.files import hold, write_text
from songbloom.lyrics.structure import find_tags

_KEPT = ("language", "group", "song_group", "artist", "genre", "licence", "license", "voice_credit", "source")
_FADE = 0.01  # seconds, at both ends of a cut


@dataclass(frozen=True)
class Line:
    """A sung line: its words with the tag of its section before them, start and end in seconds."""

    words: str
    start: float
    end: float


def lines_of(song: Song) -> list[Line]:
    """The lines of a song.

    Where the times are of phonemes, the words are the lines of the song's lyrics, of which there must be as many.

    Raises:
        UserError: nothing says when the lines are sung, or how many lines there are is in doubt.
    """
    timed = timed_text(song)
    if timed is None:
        raise UserError(f"{song.path}: nothing says when its lines are sung (phrases, lrc_path, lab_path, …)")
    found = [("".join(piece.text for piece in line), line[0].start, line[-1].end) for line in timed.lines()]
    written = list(_written(song.lyrics or ""))
    if len(written) == len(found):
        return [Line(f"{tag}\n{words}", *times) for (tag, words), (_, *times) in zip(written, found, strict=True)]
    if timed.kind == "phonemes":
        raise UserError(
            f"{song.path}: its lyrics have {counted(len(written), 'line')}, and the file of times {len(found)}"
        )
    return [Line(f"[verse]\n{words}", start, end) for words, start, end in found]


def _written(lyrics: str) -> Iterator[tuple[str, str]]:
    """Each line of words with the tag that it stands under, without a length; a tag within a line ends it."""
    tag = "[verse]"
    for line in lyrics.splitlines():
        begin = 0
        for each in [*find_tags(line), None]:
            words = line[begin : each.start if each else None].strip(" \t\u3000,，")
            if words:
                yield tag, words
            if each:
                tag, begin = each.name or line[each.start : each.end], each.end


def cut(song: Song, line: Line, *, rate: int, next_start: float, options: Any) -> np.ndarray:
    """The sound of a line, ``[T, C]`` at ``rate``: whole multiples of ``options.multiple`` seconds, with silence where
    the song ends or the next line begins."""
    start = max(0.0, line.start - options.before)
    end = max(min(line.end + options.after, next_start), line.end)
    whole = math.ceil((end - start) / options.multiple - 1e-9) * options.multiple if options.multiple else end - start
    length, first = round(whole * rate), round(start * rate)
    heard = min(start + whole, max(next_start, line.end))
    sound = read_audio(song.path, sample_rate=rate, offset=first, length=min(length, round((heard - start) * rate)))
    made = np.zeros((length, sound.shape[1]), np.float32)
    made[: len(sound)] = sound
    fade = min(round(_FADE * rate), len(sound) // 2)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)[:, None]
    made[:fade] *= ramp
    made[len(sound) - fade : len(sound)] *= ramp[::-1]
    return made


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.lines",
        description="Cut songs into their lines: one short song for each line whose time is known.",
    )
    parser.option("input_jsonl", required=True, metavar="FILE", help="the songs")
    parser.option("output_dir", required=True, metavar="DIR", help="gets a sound file for each line, and lines.jsonl")
    parser.option("before", type=float, default=0.2, help="seconds that are kept before a line")
    parser.option("after", type=float, default=0.3, help="seconds that are kept after it")
    parser.option("multiple", type=float, default=0.64, help="lengths are multiples of so many seconds; 0: as they are")
    parser.option("sample_rate", type=int, default=0, help="Hz; 0: the song's own")
    parser.option("prompt_wav", default="", metavar="FILE", help="style prompt of every line; empty: none is named")
    parser.option("distinct", action="store_true", help="take lines with the same words once")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    for key in ("before", "after", "multiple", "sample_rate"):
        if getattr(options, key) < 0:
            raise UserError(f"--{key} is {getattr(options, key):g}; it must be 0 or more")
    if options.prompt_wav and not Path(options.prompt_wav).expanduser().is_file():
        raise UserError(f"--prompt_wav={options.prompt_wav}: no such file")
    folder = Path(options.output_dir).expanduser()
    hold(folder, busy="cutting songs", instead="--output_dir")
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    again = seconds = 0.0
    for number, song in enumerate(songs_from(data_jsonl=options.input_jsonl)):
        lines = lines_of(song)
        rate = options.sample_rate or probe(song.path).sample_rate
        for place, line in enumerate(lines):
            if options.distinct and line.words in taken:
                again += 1
                continue
            taken.add(line.words)
            following = lines[place + 1].start if place + 1 < len(lines) else math.inf
            sound = cut(song, line, rate=rate, next_start=following, options=options)
            path = folder / "lines" / f"{number:05d}_{place:02d}.wav"
            write_wav(path, sound, rate)
            seconds += len(sound) / rate
            name = number if song.idx is None else song.idx
            row = {"idx": f"{name}_{place:02d}", "audio_path": path_for(path, folder), "lyrics": line.words}
            row |= {key: song.extra[key] for key in _KEPT if key in song.extra}
            row |= {key: value for key, value in (("artist", song.artist), ("genre", song.genre)) if value}
            if options.prompt_wav:
                row["prompt_wav"] = path_for(Path(options.prompt_wav).expanduser(), folder)
            rows.append(row)
    write_text(folder / "lines.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    told = f"; {again:.0f} lines whose words were there already are left out" if again else ""
    print(f"{folder / 'lines.jsonl'}: {counted(len(rows), 'line')}, {seconds:.0f} s{told}")
    return 0


if __name__ == "__main__":
    sys.exit(run_as_command(main))
