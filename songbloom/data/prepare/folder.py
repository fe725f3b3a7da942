"""Prepare songs of one's own: audio files with their words beside them.

::

    python -m songbloom.data.prepare.folder --input_dir my_songs --output_dir data/my_songs --licence "my own"

Beside ``song.wav`` may lie ``song.txt`` (words, with or without tags), ``song.lrc``, ``song.lab`` (phonemes),
``song.musicxml`` (or ``.xml``, ``.mxl``) and ``song.json`` (fields of a line). See docs/data_preparation.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from songbloom.audio.files import AUDIO_SUFFIXES, find_audio
from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import LANGUAGES, meaning_of
from songbloom.data.manifest import record_of
from songbloom.data.prepare.corpus import (
    LeftOut,
    Material,
    Terms,
    add_options,
    choices_of,
    existing_folder,
    write_songs,
)  # fmt: skip
from songbloom.errors import UserError, did_you_mean
from songbloom.lyrics.lab import read_lab
from songbloom.lyrics.lrc import read_lrc
from songbloom.lyrics.musicxml import read_musicxml
from songbloom.lyrics.timed_text import SCORES, TimedText, read_lines

_KANA = re.compile("[ぁ-ゖァ-ヺｦ-ﾝ]")
_HAN = re.compile("[㐀-鿿]")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.folder",
        description="Make a JSONL file for training from audio files with words beside them.",
        epilog="Words: NAME.txt, NAME.lrc, NAME.lab, NAME.musicxml beside NAME.wav; NAME.json has other fields.",
    )
    parser.option("input_dir", required=True, metavar="DIR", help="folder that is searched, with all below it")
    parser.option("name", default="songs", metavar="WORD", help="name of the JSONL file")
    parser.option("licence", default="not stated", metavar="TEXT", help="what may be done with the songs")
    parser.option("language", default="auto", choices=("auto", *LANGUAGES), help="what the words are")
    parser.option(
        "artist", default="", metavar="NAME", help="of songs whose JSON does not tell; 'folder': their folder's"
    )
    parser.option("genre", default="", metavar="NAME", help="of songs whose JSON does not tell")
    parser.option(
        "group_by",
        default="file",
        choices=("file", "folder"),
        help="what is one composition: a file, or all of a folder",
    )
    parser.option("voice_alone", action="store_true", help="only the singer is heard: scores are fitted to the voice")
    add_options(parser)
    return parser


def materials(options: Any) -> Iterator[Material | LeftOut]:
    """Each song below the folder, or why it cannot be used."""
    folder = existing_folder(options.input_dir, "--input_dir")
    output = Path(options.output_dir).expanduser().resolve()
    found = [path for path in find_audio(folder) if not path.resolve().is_relative_to(output / "prompts")]
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
        raise UserError(f"--input_dir={folder}: no audio file ({kinds}) in it or below it")
    for path in found:
        name = "_".join(path.relative_to(folder).with_suffix("").parts)
        try:
            yield _material(options, name, path, folder)
        except UserError as error:
            yield LeftOut(f"{name}: {error}")


def _beside(path: Path, *suffixes: str) -> Path | None:
    """The file of the same name with one of these endings, in small letters or capitals."""
    for suffix in suffixes:
        for spelled in (suffix, suffix.upper()):
            if (file := path.with_suffix(spelled)).is_file():
                return file
    return None


def _material(options: Any, name: str, path: Path, folder: Path) -> Material:
    text_file, fields_file = _beside(path, ".txt"), _beside(path, ".json")
    lrc, label, score = _beside(path, ".lrc"), _beside(path, ".lab"), _beside(path, *SCORES)
    about = _about(fields_file) if fields_file else {}
    text = "\n".join(read_lines(text_file)).strip() if text_file else about.pop("lyrics", None)
    timed: TimedText | None = None
    if lrc is not None:
        timed = read_lrc(lrc)
    elif label is not None:
        timed = read_lab(label)
        text = text or (read_musicxml(score).text if score else None)
    elif score is not None:
        timed = read_musicxml(score)
    words = text or (timed.text if timed and timed.kind == "text" else "")
    language = about.pop("language", None) or options.language
    if language == "auto":
        # phonemes alone are Japanese: label files have Open JTalk's
        language = "ja" if _KANA.search(words) or not words else "zh" if _HAN.search(words) else "en"
    artist = path.parent.name if options.artist == "folder" else options.artist
    group = path.parent.relative_to(folder).as_posix() if options.group_by == "folder" else name
    return Material(
        str(about.pop("idx", name)),
        path,
        text=text or None,
        timed=timed,
        sources=[one for one in (text_file, fields_file, lrc, label, score) if one],
        language=language,
        voice_alone=options.voice_alone,
        trusted_times=lrc is not None or label is not None,
        extra={
            "artist": artist,
            "genre": options.genre,
            "title": path.stem,
            "group": group or name,
            **about,
            "lrc_path": str(lrc or ""),
            "lab_path": str(label or ""),
            "musicxml_path": str(score or ""),
        },
    )


def _about(path: Path) -> dict[str, Any]:
    """The fields that a JSON file beside a song gives.

    Raises:
        UserError: no JSON object, or a field that is none.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    record = record_of(content, str(path), "it must be one object", '{"artist": "Mei"}')
    allowed = ("idx", "lyrics", "language", "artist", "genre", "group", "title", "voice_credit", "meta")
    for key in record:
        if key not in allowed:
            known = meaning_of(key) is not None
            what = "is found out here and cannot be given" if known else f"is no field{did_you_mean(key, allowed)}"
            raise UserError(f"{path}: {key!r} {what}; there are {', '.join(allowed)}")
    return record


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    choices = choices_of(options)
    advice = () if options.licence != "not stated" else ("--licence=TEXT keeps in every line what may be done with it",)
    return write_songs(options.name, materials(options), choices, Terms(options.name, options.licence, advice))


if __name__ == "__main__":
    sys.exit(run_as_command(main))
