"""Prepare the jaCappella corpus (Nakamura et al. 2023, arXiv 2211.16028): Japanese a cappella songs with scores.

::

    python -m songbloom.data.prepare.jacappella --output_dir data/jacappella_ready --no_download --download_dir CORPUS

``<root>/[jaCappella/]<subset>/<song>/`` holds a WAV file for each part (``lead_vocal.wav``, ``mixture.wav``, …) and
scores: ``*_SVS.musicxml``, ``*_romaji.musicxml`` and ``*.musicxml``. See docs/data_preparation.md.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from songbloom.data.command import Parser, run_as_command
from songbloom.data.prepare import romaji
from songbloom.data.prepare.corpus import (
    LeftOut,
    Material,
    Terms,
    add_options,
    choices_of,
    existing_folder,
    write_songs,
)  # fmt: skip
from songbloom.errors import UserError, did_you_mean, reason
from songbloom.lyrics.musicxml import read_musicxml
from songbloom.lyrics.timed_text import SCORES, TimedText

REPOSITORY = "jaCappella/jaCappella"
AUDIO_TYPES = ("lead_vocal", "mixture", "mixture_stereo")
MUSICXML_TYPES = ("svs", "romaji", "default")
TERMS = Terms(
    "jaCappella",
    "jaCappella corpus licence (all rights with its team; the terms that you accepted to download it)",
    (
        "the songs are children's songs out of copyright; the recordings and arrangements are not",
        "a lead vocal alone teaches a model that there is no band; mixture has the whole choir",
    ),
)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.jacappella",
        description="Make a JSONL file for training from the jaCappella corpus.",
        epilog="The corpus is gated: accept its terms on its page and log in (huggingface-cli login) first.",
    )
    parser.option("download_dir", default="data/jacappella", metavar="DIR", help="where the corpus is, or is put")
    parser.option("no_download", action="store_true", help="use what is in --download_dir, ask no server")
    parser.option("audio_type", default="lead_vocal", choices=AUDIO_TYPES, help="which recording")
    parser.option("musicxml_type", default="svs", choices=MUSICXML_TYPES, help="which scores give the words")
    parser.option("subsets", default="", metavar="LIST", help="comma list of subsets; all if it is empty")
    parser.option("part", default="", metavar="NAME", help="part of the score that has the words; the lead vocal's")
    add_options(parser)
    return parser


def download(folder: Path, audio_type: str, musicxml_type: str) -> None:
    """Get what is needed of the corpus from the hub; files that are there are not fetched again.

    Raises:
        UserError: the package for it is missing, the hub is not to be asked, or it refuses.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError("HF_HUB_OFFLINE forbids downloads; give --no_download and the corpus in --download_dir")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "downloading needs a package: pip install huggingface_hub; or give --no_download and --download_dir"
        ) from error
    scores = {"svs": "*_SVS.musicxml", "romaji": "*_romaji.musicxml", "default": "*.musicxml"}[musicxml_type]
    try:
        huggingface_hub.snapshot_download(
            repo_id=REPOSITORY,
            repo_type="dataset",
            local_dir=str(folder),
            allow_patterns=[f"*{audio_type}.wav", scores, "*meta.csv"],
        )
    except Exception as error:  # the package has dozens of its own, from no network to no consent
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{REPOSITORY} cannot be downloaded ({first[:160]}); accept its terms on its page, log in with "
            "huggingface-cli login, or give --no_download"
        ) from error


def root_of(folder: Path) -> Path:
    """The folder of the subsets: the corpus may lie in a folder of its own name."""
    inner = folder / "jaCappella"
    return inner if inner.is_dir() else folder


def songs_of(root: Path, subsets: list[str]) -> list[tuple[str, Path]]:
    """Subset and folder of each song, in order.

    Raises:
        UserError: a subset that is not there, or no songs.
    """
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for subset in subsets:
        if subset not in there:
            near = did_you_mean(subset, there)
            raise UserError(f"--subsets: no subset {subset!r}{near}; {root} has {', '.join(there) or 'none'}")
    songs = [
        (subset, folder)
        for subset in subsets or there
        for folder in sorted((root / subset).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    if not songs:
        raise UserError(f"{root}: no songs; the layout is SUBSET/SONG/lead_vocal.wav and SONG_SVS.musicxml")
    return songs


def recording_of(folder: Path, audio_type: str) -> Path | None:
    """The song's recording: ``lead_vocal.wav``, or with the song's name before it."""
    waves = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav" and path.name[0] != ".")
    exact = [path for path in waves if path.stem.lower() == audio_type]
    ending = [path for path in waves if path.stem.lower().endswith(("_" + audio_type, "-" + audio_type))]
    return next(iter(exact + ending), None)


def score_of(folder: Path, musicxml_type: str) -> Path | None:
    """The song's score of one kind; ``default`` is the one that is neither of the others."""
    scores = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SCORES and path.name[0] != ".")
    kinds = {"svs": [], "romaji": [], "default": []}  # type: dict[str, list[Path]]
    for path in scores:
        stem = path.stem.lower()
        kinds["svs" if stem.endswith("_svs") else "romaji" if stem.endswith("_romaji") else "default"].append(path)
    return next(iter(kinds[musicxml_type]), None)


def in_kana(timed: TimedText) -> TimedText:
    """A score in romaji with its words in kana; words that are none stay."""
    text, position = [], 0
    spans: list[tuple[int, int]] = []
    made = 0
    for first, last in timed.spans:
        between = timed.text[position:first].replace(" ", "") if position else timed.text[:first]
        syllable = timed.text[first:last]
        syllable = romaji.kana(syllable) or syllable
        text += [between, syllable]
        spans.append((made + len(between), made + len(between) + len(syllable)))
        made = spans[-1][1]
        position = last
    return TimedText("".join(text) + timed.text[position:], tuple(spans), timed.times, timed.kind)


def _meta(root: Path, folder: Path) -> dict[str, dict[str, str]]:
    """The rows of ``meta.csv`` by each of their cells, so that a song's folder finds its row."""
    for place in (root / "meta.csv", folder / "meta.csv"):
        if place.is_file():
            try:
                with place.open(encoding="utf-8-sig", newline="") as file:
                    rows = list(csv.DictReader(file))
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{place}: cannot be read as a table ({reason(error)})") from error
            return {str(cell): row for row in rows for cell in row.values() if isinstance(cell, str) and cell}
    return {}


def materials(options: Any, folder: Path) -> Iterator[Material | LeftOut]:
    """Each song of the corpus, or why it cannot be used."""
    root = root_of(folder)
    meta = _meta(root, folder)
    for subset, song in songs_of(root, [s.strip() for s in options.subsets.split(",") if s.strip()]):
        name = f"{subset}_{song.name}"
        audio, score = recording_of(song, options.audio_type), score_of(song, options.musicxml_type)
        if audio is None:
            yield LeftOut(f"{name}: has no {options.audio_type}.wav")
            continue
        timed = None
        if score is not None:
            try:
                timed = read_musicxml(score, part=options.part or None)
            except UserError as error:
                if options.skip_empty_lyrics:
                    yield LeftOut(f"{name}: {error}")
                    continue
        elif options.skip_empty_lyrics:
            yield LeftOut(f"{name}: has no score of the kind {options.musicxml_type}")
            continue
        if timed is not None and options.musicxml_type == "romaji":
            timed = in_kana(timed)
        about = meta.get(song.name, {})
        yield Material(
            name,
            audio,
            timed=timed,
            sources=[score] if score else [],
            voice_alone=options.audio_type == "lead_vocal",
            extra={
                "artist": "jaCappella",
                "genre": subset,
                "group": f"jacappella_{song.name}",
                "title": about.get("title") or song.name,
                "musicxml_path": str(score) if score else "",
                "meta": {key: cell for key, cell in about.items() if key and isinstance(cell, str)},
            },
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    choices = choices_of(options)
    folder = Path(options.download_dir).expanduser()
    if not options.no_download:
        download(folder, options.audio_type, options.musicxml_type)
    folder = existing_folder(folder, "--download_dir")
    return write_songs("jacappella", materials(options, folder), choices, TERMS)


if __name__ == "__main__":
    sys.exit(run_as_command(main))
