"""What is known about songs besides their sound, wherever it is written down, and when their words are sung.

There are three places: the fields of a JSONL line, a JSON file of the song's name beside it, and a function of one's
own, ``get_metadata(path, test) -> (artist, genre, lyrics)``, which is called with the path of a song as text and
whether the song is a test song. Whatever it gives besides None counts more than the other two.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from songbloom.data.manifest import Song, song_fields, songs_from
from songbloom.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from songbloom.lyrics.timing import TimedText

Hook = Callable[[str, bool], Any]

PHRASES = "phrases"
TIMED_PATHS = ("timed_path", "lrc_path", "phonemes_path", "lab_path", "musicxml_path")
"""Fields that name a file with the times of a song's words, the first one counts."""


def import_hook(name: str) -> Hook:
    """The function that ``module:function`` names; modules are also looked for in the working directory.

    Raises:
        UserError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"--get_metadata={name}: give module:function, such as my_songs:get_metadata")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--get_metadata={name}: module {module_name!r} cannot be imported ({error})") from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(function_name, functions)
        raise UserError(f"--get_metadata={name}: module {module_name!r} has no function {function_name!r}{near}")
    return function


def described(
    audio_files_dir: str | Path | None, data_jsonl: str | Path | None, hook: Hook | None = None, *, test: bool = False
) -> list[Song]:
    """The songs of a folder or JSONL file with all that is known about them.

    Raises:
        UserError: as :func:`songbloom.data.manifest.songs_from`; the hook gave something else than it should.
    """
    songs = songs_from(audio_files_dir=audio_files_dir, data_jsonl=data_jsonl, sidecars=True)
    return [asked(song, hook, test=test) for song in songs]


def asked(song: Song, hook: Hook | None, *, test: bool) -> Song:
    """``song`` with what ``hook`` knows about it: ``(artist, genre, lyrics)``, or an object with a song's fields.

    Raises:
        UserError: it gave something else.
    """
    if hook is None:
        return song
    answer = hook(str(song.path), test)
    if answer is None:
        return song
    if not isinstance(answer, Mapping):
        if not isinstance(answer, (tuple, list)) or len(answer) != 3:
            raise UserError(
                f"get_metadata gave {answer!r:.80} for {song.path}; it must give (artist, genre, lyrics), each text or "
                "None"
            )
        answer = dict(zip(("artist", "genre", "lyrics"), answer, strict=True))
    fields = song_fields(answer, f"get_metadata for {song.path}")
    known = {key: value for key, value in fields.items() if value is not None and key != "extra"}
    return replace(song, **known, extra={**song.extra, **fields["extra"]})


def timed_text(song: Song) -> TimedText | None:
    """When the words of a song are sung, or None where nothing says so.

    They come from the field ``phrases`` (a list of ``{"text": …, "start": …, "end": …}``, seconds), from the file that
    one of :data:`TIMED_PATHS` names, or from ``NAME.lrc`` beside ``NAME.wav``.

    Raises:
        UserError: what is there cannot be read; names the file or song.
    """
    if song.extra.get(PHRASES):
        from songbloom.lyrics.timing import from_phrases

        if not isinstance(song.extra[PHRASES], list):
            raise UserError(f"{song.path}: {PHRASES} must be a list of objects with text, start and end")
        return from_phrases(song.extra[PHRASES], source=f"{song.path}, {PHRASES}")
    path = _timed_path(song)
    if path is None:
        return None
    from songbloom.lyrics.timing import read_timed

    return read_timed(path)


def _timed_path(song: Song) -> Path | None:
    for key in TIMED_PATHS:
        named = song.extra.get(key)
        if named is None:
            continue
        if not isinstance(named, str) or not named:
            raise UserError(f"{song.path}: {key} must be the path of a file, not {named!r}")
        return (song.folder or song.path.parent) / Path(named).expanduser()
    beside = song.path.with_suffix(".lrc")
    return beside if beside.is_file() else None
