"""Render a corpus of real sung Japanese songs, offline and from nothing but this package and its voices.

::

    python -m songbloom.data.prepare.sung_corpus --output_dir corpus --songs 8 --seed 0

Each song has original words, a generated melody and chords, a synthesised singer and a small band, at 48 kHz. The
folder gets ``songs.jsonl`` (one song a line, for ``--data_jsonl``), ``manifest.json`` (parameters, credits, statistics)
and ``songs/NNNNN/`` with ``mix.flac``, ``vocals.flac``, ``backing.flac``, ``score.musicxml``, ``phonemes.json``,
``phonemes.lab`` and ``song.json``. The same seed gives the same bytes. A run that was stopped goes on where it was; one
with more ``--songs`` adds to what is there. See docs/sung_corpus.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import soundfile

from songbloom import __version__
from songbloom.data.prepare.sung.render import GENERATOR_VERSION, Recipe, folder_of, is_complete, render_song
from songbloom.data.prepare.sung.styles import STYLES
from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.voices import SAMPLE_RATE, VOICES, Voice, choose_voices
from songbloom.errors import UserError, counted, did_you_mean
from songbloom.files import write_text

_SHORTEST, _LONGEST = 5.0, 300.0
_voices: dict[str, Voice] = {}  # voices loaded in this process; loading one takes longer than a phrase


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")

    def read(self, arguments: list[str] | None) -> argparse.Namespace:
        """The options; a mistyped one is told before what is missing because of it."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].split("=")[0]
            near = did_you_mean(word, [name for name in self._option_string_actions if name.startswith("--")])
            self.error(f"no option is named {word}{near}" if word.startswith("-") else f"{word!r} belongs to no option")
        if options.output_dir is None:
            self.error("--output_dir is missing: give a folder for the corpus")
        return options


class _Terminated(BaseException):
    """SIGTERM came; like a KeyboardInterrupt, nothing on the way up may swallow it."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m songbloom.data.prepare.sung_corpus",
        description="Render sung Japanese songs with words, scores and phoneme times, offline.",
        epilog="A stopped run goes on where it was when the same command is given again. More --songs add songs.",
        allow_abbrev=False,
    )

    def option(name: str, **more: Any) -> None:
        spellings = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        parser.add_argument(*spellings, dest=name, **more)

    option("output_dir", metavar="DIR", help="folder for the corpus, needed; made if it does not exist")
    option("songs", type=int, default=8, metavar="N", help="number of songs (default 8)")
    option(
        "seed",
        type=int,
        default=0,
        metavar="S",
        help="decides every song; the same seed gives the same bytes (default 0)",
    )
    option(
        "seconds",
        type=float,
        default=30.0,
        metavar="T",
        help=f"length of a song, about; {_SHORTEST:g} to {_LONGEST:g} (default 30)",
    )
    option(
        "voices",
        default="auto",
        metavar="LIST",
        help=f"comma list of {', '.join(VOICES)}; auto: all that are installed",
    )
    option("styles", default="all", metavar="LIST", help=f"comma list of {', '.join(STYLES)} (default all)")
    option(
        "versions",
        type=int,
        default=1,
        metavar="N",
        help="songs in a row that share one composition, sung by others in other keys (default 1)",
    )
    option("workers", type=int, default=1, metavar="N", help="processes; 0: one a CPU core (default 1)")
    option("bits", type=int, default=16, choices=(16, 24), help="bits a sample of the flac files (default 16)")
    option(
        "audio_type",
        default="mix",
        choices=("mix", "vocals"),
        help="what the list's audio_path names: the mix, or the singer alone; both are written (default mix)",
    )
    return parser


def _recipe(options: argparse.Namespace, voices: list[str]) -> Recipe:
    for name, low in (("songs", 1), ("seed", 0), ("versions", 1), ("workers", 0)):
        if getattr(options, name) < low:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be {low} or more")
    if not _SHORTEST <= options.seconds <= _LONGEST:
        raise UserError(f"--seconds is {options.seconds:g}; it must be between {_SHORTEST:g} and {_LONGEST:g}")
    styles = list(STYLES) if options.styles == "all" else [s for s in options.styles.replace(" ", "").split(",") if s]
    for style in styles:
        if style not in STYLES:
            raise UserError(f"--styles: no style {style!r}{did_you_mean(style, STYLES)}; there are {', '.join(STYLES)}")
    if not styles:
        raise UserError(f"--styles is empty; there are {', '.join(STYLES)}")
    return Recipe(options.seed, options.seconds, tuple(voices), tuple(styles), options.versions, options.bits)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises :class:`UserError` when another run is writing there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot write there ({error.strerror})") from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on Windows
            pass
        except OSError as error:
            raise UserError(f"--output_dir {folder}: another run is writing there; wait for it") from error
        yield


def _make(output_dir: Path, recipe: Recipe, index: int) -> tuple[int, float, str | None]:
    """Render one song in this process: its index, the seconds it took, and why it was given up if it was."""
    begin = time.perf_counter()
    try:
        render_song(output_dir, recipe, index, _voices)
    except UnusableRendering as problem:
        return index, time.perf_counter() - begin, str(problem)
    return index, time.perf_counter() - begin, None


def _end_with_command(held: Connection) -> None:
    """Started in every worker: end at once when the command lets go of its end of ``held``, or is killed.

    A song's folder appears whole or not at all, so a worker may end in the middle of one.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            held.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started here do not hear of Ctrl-C, which a terminal sends to all that run in it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_all(
    output_dir: Path, recipe: Recipe, missing: list[int], workers: int
) -> Generator[tuple[int, float, str | None], None, None]:
    """Render the missing songs, in this process or in several; results come as they are ready.

    Close it to stop: workers then end at once, and the songs that they had in hand are begun anew the next time.
    """
    if workers <= 1 or len(missing) <= 1:
        for index in missing:
            yield _make(output_dir, recipe, index)
        return
    context = multiprocessing.get_context("spawn")
    held, holding = context.Pipe(duplex=False)
    with (
        held,
        holding,
        ProcessPoolExecutor(min(workers, len(missing)), context, _end_with_command, (held,)) as pool,
    ):
        all_made = False
        try:
            with _without_interrupts():  # a Ctrl-C that came meanwhile is raised at its end
                waiting = {pool.submit(_make, output_dir, recipe, index) for index in missing}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
            all_made = True
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run again with fewer --workers"
            ) from error
        finally:
            if not all_made:
                holding.close()


def _remove_partial(output_dir: Path) -> None:
    """Remove songs that were begun and not finished."""
    for left_over in (output_dir / "songs").glob(".partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _line_of(about: dict[str, Any], index: int, audio_type: str) -> dict[str, Any]:
    """A song's object in ``songs.jsonl``, whose sound is ``audio_type``; paths are relative to that file."""
    folder = Path("songs") / f"{index:05d}"
    same = (
        "artist",
        "genre",
        "lyrics",
        "language",
        "group",
        "title",
        "seconds",
        "tempo",
        "meter",
        "key",
        "scale",
        "voice",
    )
    return {
        "audio_path": str(folder / f"{audio_type}.flac"),
        "idx": index,
        **{name: about[name] for name in same},
        "licence": about["voice_licence"],
        "voice_credit": about["voice_credit"],
        "vocals_path": str(folder / "vocals.flac"),
        "backing_path": str(folder / "backing.flac"),
        "musicxml_path": str(folder / "score.musicxml"),
        "phonemes_path": str(folder / "phonemes.json"),
        "lab_path": str(folder / "phonemes.lab"),
        "song_path": str(folder / "song.json"),
    }


def _packages() -> dict[str, str]:
    """Versions of the packages that decide the sound."""
    versions = {}
    for name in ("numpy", "pyopenjtalk-plus", "pysinsy", "pyworld", "soundfile"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _write_lists(
    output_dir: Path, recipe: Recipe, done: list[int], failed: dict[int, str], audio_type: str
) -> list[dict[str, Any]]:
    """Write ``songs.jsonl`` and ``manifest.json`` from the songs on disk; returns what their ``song.json`` say."""
    songs = [json.loads((folder_of(output_dir, i) / "song.json").read_text(encoding="utf-8")) for i in done]
    rows = (json.dumps(_line_of(about, about["idx"], audio_type), ensure_ascii=False) + "\n" for about in songs)
    write_text(output_dir / "songs.jsonl", "".join(rows))
    voices = {about["voice"] for about in songs}
    manifest = {
        "what": "sung Japanese songs rendered by songbloom.data.prepare.sung_corpus",
        "songbloom": __version__,
        "generator": GENERATOR_VERSION,
        "parameters": {"songs": len(done) + len(failed), **recipe.plain()},
        "sample_rate": SAMPLE_RATE,
        "songs": len(songs),
        "seconds": round(sum(about["seconds"] for about in songs), 3),
        "artists": dict(sorted(Counter(about["artist"] for about in songs).items())),
        "genres": dict(sorted(Counter(about["genre"] for about in songs).items())),
        "median_error_cents": {about["idx"]: about["quality"]["median_error_cents"] for about in songs},
        "redrawn": dict(sorted(Counter(r["reason"] for about in songs for r in about["redraws"]).items())),
        "failed": {str(index): reason for index, reason in sorted(failed.items())},
        "credits": [
            {"voice": v.title, "licence": v.licence, "licence_url": v.licence_url, "credit": v.credit}
            for v in VOICES.values()
            if v.key in voices
        ],
        "words_and_music": "words and generated music: songbloom, Apache-2.0",
        "packages": _packages(),
    }
    write_text(output_dir / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    return songs


def _report(output_dir: Path, index: int, took: float, problem: str | None) -> str:
    """What is printed about a song when it is done."""
    if problem is not None:
        return f"song {index} is given up: {problem}"
    about = json.loads((folder_of(output_dir, index) / "song.json").read_text(encoding="utf-8"))
    return (
        f"song {index}: {about['seconds']:.1f} s, {about['artist']}, {about['genre']}, {about['key']}, "
        f"{about['tempo']} bpm, {about['quality']['median_error_cents']:.1f} cents off, "
        f"{len(about['redraws'])} redrawn, took {took:.1f} s"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 when a song had to be given up. Raises :class:`UserError`."""
    options = _parser().read(arguments)
    voices, notices = choose_voices(options.voices)
    recipe = _recipe(options, voices)
    output_dir = Path(options.output_dir)
    for notice in notices:
        print(notice, flush=True)
    with _alone_in(output_dir):
        _remove_partial(output_dir)
        missing = [i for i in range(options.songs) if not is_complete(folder_of(output_dir, i), recipe)]
        kept = options.songs - len(missing)
        if kept:
            print(f"{kept} of {options.songs} songs are there already", flush=True)
        begin, failed = time.perf_counter(), {}
        workers = options.workers or os.cpu_count() or 1
        with closing(_make_all(output_dir, recipe, missing, workers)) as results:
            for number, result in enumerate(results, start=1):
                if result[2] is not None:
                    failed[result[0]] = result[2]
                print(f"[{number}/{len(missing)}] {_report(output_dir, *result)}", flush=True)
        took = time.perf_counter() - begin
        done = [i for i in range(options.songs) if i not in failed]
        songs = _write_lists(output_dir, recipe, done, failed, options.audio_type)
    new = [about for about in songs if about["idx"] in missing]
    redrawn = Counter(redraw["reason"] for about in new for redraw in about["redraws"])
    reasons = f" ({', '.join(f'{n} {reason}' for reason, n in sorted(redrawn.items()))})" if redrawn else ""
    if new:
        made = sum(about["seconds"] for about in new)
        print(f"{made:.0f} s of song in {took:.1f} s, {made / took:.1f} times real time", flush=True)
    print(
        f"{counted(len(songs), 'song')}; {counted(redrawn.total(), 'drawing')} replaced{reasons}, "
        f"{counted(len(failed), 'song')} given up"
    )
    print(f"list: {output_dir / 'songs.jsonl'}")
    return 1 if failed else 0


def run() -> NoReturn:
    """Entry of the command: a :class:`UserError` or a full disk is one line and status 2, Ctrl-C 130, SIGTERM 143."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main())
    except UserError as error:
        print(f"sung_corpus: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, soundfile.LibsndfileError) as error:
        print(f"sung_corpus: cannot write ({error}); free space, and the same command goes on", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, _Terminated) as stop:
        print("sung_corpus: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130 if isinstance(stop, KeyboardInterrupt) else 143)


if __name__ == "__main__":
    run()
