"""Prepare PJS, the phoneme-balanced Japanese singing voice corpus (Koguchi et al. 2020, arXiv 2006.02959).

::

    python -m songbloom.data.prepare.pjs --input_dir PJS_corpus_ver1.1 --output_dir data/pjs_ready

``<input>/pjs001/`` holds ``pjs001_song.wav`` (48 kHz), ``pjs001_speech.wav``, ``pjs001.lab`` (phonemes of the song),
``pjs001.musicxml``, ``pjs001.mid`` and ``pjs001.txt`` (the words). See docs/data_preparation.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from songbloom.data.command import Parser, run_as_command
from songbloom.data.prepare.corpus import (
    LeftOut,
    Material,
    Terms,
    add_options,
    choices_of,
    existing_folder,
    solo,
    write_songs,
)  # fmt: skip
from songbloom.errors import UserError
from songbloom.lyrics.lab import read_lab
from songbloom.lyrics.musicxml import read_musicxml
from songbloom.lyrics.timed_text import SCORES, read_lines

TERMS = Terms(
    "PJS",
    "CC BY-SA 4.0 (PJS corpus, Koguchi and Takamichi)",
    ("name the corpus, and share what you pass on of it alike", "one singer, short songs, no band"),
)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.pjs",
        description="Make a JSONL file for training from the PJS corpus.",
    )
    parser.option("input_dir", required=True, metavar="DIR", help="the corpus: folders pjs001, pjs002, …")
    parser.option(
        "words", default="text", choices=("text", "score"), help="words from the text files or from the scores"
    )
    add_options(parser)
    return parser


def materials(options: Any) -> Iterator[Material | LeftOut]:
    """Each song of the corpus, or why it cannot be used."""
    folder = existing_folder(options.input_dir, "--input_dir")
    songs = sorted(path for path in folder.rglob("*") if path.is_dir() and re.fullmatch(r"pjs\d+", path.name.lower()))
    if not songs:
        raise UserError(f"--input_dir={folder}: no songs; the layout is pjs001/pjs001_song.wav and pjs001/pjs001.lab")
    for song in songs:
        try:
            yield _material(options, song)
        except UserError as error:
            yield LeftOut(f"{song.name}: {error}")


def _material(options: Any, song: Path) -> Material | LeftOut:
    files = sorted(path for path in song.iterdir() if path.is_file() and path.name[0] != ".")

    def first(*suffixes: str, but: str = "speech") -> Path | None:
        return next((path for path in files if path.suffix.lower() in suffixes and but not in path.stem.lower()), None)

    waves = [path for path in files if path.suffix.lower() in (".wav", ".flac")]
    audio = next((path for path in waves if "song" in path.stem.lower()), None) or next(
        (path for path in waves if path.stem == song.name), None
    )
    if audio is None:
        return LeftOut(f"{song.name}: has no {song.name}_song.wav")
    text_file, score, label = first(".txt"), first(*SCORES), first(".lab")
    text = timed = None
    if text_file is not None and options.words == "text":
        text = "\n".join(read_lines(text_file)).strip()
    if score is not None and not text:
        timed = read_musicxml(score)
    if label is not None:
        text = text or (timed.text if timed else None)
        timed = read_lab(label)
    elif score is not None and timed is None:
        timed = read_musicxml(score)
    return solo(
        song.name,
        audio,
        artist="PJS",
        title=song.name,
        text=text,
        timed=timed,
        score=score,
        label=label,
        others=[text_file] if text_file else [],
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    return write_songs("pjs", materials(options), choices_of(options), TERMS)


if __name__ == "__main__":
    sys.exit(run_as_command(main))
