"""Prepare the Tohoku Kiritan singing database, or another of the same layout (Itako, No.7): recordings and scores.

::

    python -m songbloom.data.prepare.kiritan --input_dir kiritan_singing --output_dir data/kiritan_ready

``<input>/wav/NN.wav``, ``<input>/musicxml/NN.xml`` and, if they are there, ``<input>/mono_label/NN.lab``, whose times
are those of the recording. See docs/data_preparation.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
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
from songbloom.lyrics.timed_text import SCORES

LICENCE = "Tohoku Kiritan singing database terms (only for information analysis, Copyright Act of Japan, Art. 30-4)"
_ADVICE = (
    "recordings and labels may be analysed, not passed on; read the terms of the place that you got them from",
    "dry solo singing alone teaches a model that there is no band",
)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.kiritan",
        description="Make a JSONL file for training from the Tohoku Kiritan singing database or one laid out like it.",
    )
    parser.option("input_dir", required=True, metavar="DIR", help="folder with wav/, musicxml/ and perhaps mono_label/")
    parser.option("wav_dir", default="", metavar="DIR", help="recordings, if they lie elsewhere")
    parser.option("musicxml_dir", default="", metavar="DIR", help="scores, if they lie elsewhere")
    parser.option("label_dir", default="", metavar="DIR", help="phoneme labels, if they lie elsewhere")
    parser.option("artist", default="Tohoku Kiritan", metavar="NAME", help="who sings")
    parser.option(
        "name", default="kiritan", metavar="WORD", help="name of the JSONL file, and what each idx begins with"
    )
    parser.option("licence", default=LICENCE, metavar="TEXT", help="the terms of the corpus, kept in every line")
    add_options(parser)
    return parser


def same_stem(stem: str) -> tuple[str, str]:
    """What names of one song's files share: ``01``, ``1`` and ``kiritan01`` are alike, ``1`` and ``10`` are not."""
    match = re.search(r"(\d+)$", stem)
    return (re.sub(r"[\W_]+", "", stem[: match.start()]).lower(), str(int(match[1]))) if match else (stem.lower(), "")


def partner(path: Path, files: Sequence[Path]) -> Path | None:
    """The file of the same song: of the same name, or else with the same number and no other name's."""
    exact = [file for file in files if file.stem == path.stem]
    if exact:
        return exact[0]
    name, number = same_stem(path.stem)
    near = [
        file
        for file in files
        if number and same_stem(file.stem)[1] == number and (not name or same_stem(file.stem)[0] in ("", name))
    ] or [file for file in files if number and not name and same_stem(file.stem)[1] == number]
    return near[0] if len(near) == 1 else None


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")


def _place(options: Any, name: str, usual: Path) -> Path:
    given = getattr(options, name)
    return existing_folder(given, f"--{name}") if given else usual


def materials(options: Any) -> Iterator[Material | LeftOut]:
    """Each song of the corpus, or why it cannot be used."""
    folder = existing_folder(options.input_dir, "--input_dir")
    waves = _files(_place(options, "wav_dir", folder / "wav"), (".wav", ".flac"))
    scores = _files(_place(options, "musicxml_dir", folder / "musicxml"), SCORES)
    labels = _files(_place(options, "label_dir", folder / "mono_label"), (".lab",))
    if not waves:
        raise UserError(
            f"--input_dir={folder}: no recordings; the layout is wav/01.wav and musicxml/01.xml (--wav_dir)"
        )
    if not scores and options.skip_empty_lyrics:
        raise UserError(
            f"--input_dir={folder}: no scores; the layout is wav/01.wav and musicxml/01.xml (--musicxml_dir)"
        )
    for wave in waves:
        name = f"{options.name}_{wave.stem}"
        score, label = partner(wave, scores), partner(wave, labels)
        try:
            yield _material(options, name, wave, score, label)
        except UserError as error:
            yield LeftOut(f"{name}: {error}")


def _material(options: Any, name: str, wave: Path, score: Path | None, label: Path | None) -> Material | LeftOut:
    if score is None and options.skip_empty_lyrics:
        return LeftOut(f"{name}: has no score")
    timed = read_musicxml(score) if score else None
    text = None
    if label is not None:
        text, timed = (timed.text if timed else None), read_lab(label)
    return solo(name, wave, artist=options.artist, title=wave.stem, text=text, timed=timed, score=score, label=label)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    choices = choices_of(options)
    terms = Terms(options.artist, options.licence, _ADVICE)
    return write_songs(options.name, materials(options), choices, terms)


if __name__ == "__main__":
    sys.exit(run_as_command(main))
