"""How long each song is and whether it can be used, remembered in one file beside the data.

A song is usable if its file can be read, is not silent, and lasts from ``min_duration`` up to, but not including,
``max_duration``. What was found out about a file is kept until its size or time of change differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from songbloom import distributed
from songbloom.audio.decoding import Source, SourceError
from songbloom.audio.files import ABSURD, length_at
from songbloom.audio.sources import open_source
from songbloom.data.manifest import Song
from songbloom.errors import UserError, counted, reason
from songbloom.files import write_text

FORMAT = 1  # of the cache file; another number makes it be built anew
CACHE_NAME = ".songbloom_index.json"
SILENCE_DB = -60.0  # relative to full scale; a file that is nowhere louder is silent
_WORD_EVERY = 30.0  # seconds between two saves of the cache, and between two words about how far it is
_SHOWN = 3  # files named for each reason when nothing is left


@dataclass(frozen=True)
class Facts:
    """What was found in one audio file, or why it cannot be used at all."""

    frames: int = 0  # samples a channel, at the file's own rate
    sample_rate: int = 0
    channels: int = 0
    silent: bool = False
    error: str = ""


@dataclass(frozen=True)
class IndexedSong:
    """A usable song and its length."""

    song: Song
    frames: int  # at the file's own rate
    file_rate: int  # Hz
    channels: int
    total_length: int  # samples at the index's sample rate

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.file_rate


@dataclass(frozen=True)
class Dropped:
    """A song that cannot be used, and why."""

    song: Song
    kind: str  # for counting: missing, unreadable, empty, silent, too short, too long
    reason: str  # for this song's line
    shared: str = ""  # the reason as it is the same for other songs, if that is shorter


@dataclass
class Index:
    """The usable songs in the order of the manifest, and the dropped ones."""

    sample_rate: int
    songs: list[IndexedSong]
    dropped: list[Dropped] = field(default_factory=list)

    def summary(self) -> str:
        """One line: how many songs and hours there are, and how many were dropped for which kind of reason."""
        hours = sum(song.duration for song in self.songs) / 3600
        time_text = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        text = f"data: {counted(len(self.songs), 'song')}, {time_text}"
        if self.dropped:
            counts = Counter(one.kind for one in self.dropped)
            reasons = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
            text += f"; dropped {len(self.dropped)} of {len(self.songs) + len(self.dropped)}: {reasons}"
        return text


# --- one file --------------------------------------------------------------------------------------------------------


def is_silent(source: Source) -> bool:
    """Whether no sample of the file exceeds :data:`SILENCE_DB`; reading stops at the first that does.

    Raises:
        SourceError: the file is damaged before its first sound, or holds values that are no audio there.
    """
    limit = 10 ** (SILENCE_DB / 20)
    step = source.sample_rate
    for start in range(0, source.frames, step):
        block = source.read(start, min(start + step, source.frames))
        loudest = float(np.abs(block).max(initial=0.0))  # NaN if there is any
        if not loudest < ABSURD:
            raise SourceError(f"is damaged near {start / source.sample_rate:.0f} s (values that are no audio)")
        if loudest > limit:
            return False
    return True


def examine(path: Path) -> Facts:
    """Open one file and find out what there is to know about it. Never raises for what a file holds.

    It is decoded up to its first sound, and its last second; damage in between shows when a chunk is read there.

    Raises:
        OSError: the file is missing or may not be read, which may be different the next time.
    """
    try:
        source = open_source(path)
        try:
            if source.frames < 1:
                return Facts(error="holds no samples")
            silent = is_silent(source)
            source.read(
                max(0, source.frames - source.sample_rate), source.frames
            )  # what is cut or damaged often fails here
            return Facts(source.frames, source.sample_rate, source.channels, silent)
        finally:
            source.close()
    except SourceError as error:
        return Facts(error=str(error))


# --- the cache -------------------------------------------------------------------------------------------------------


def cache_for(
    *, audio_files_dir: str | Path | None = None, data_jsonl: str | Path | None = None, name: str = CACHE_NAME
) -> Path:
    """Where the index (or ``name``) of a folder or of a JSONL file is kept: in the folder, or beside the JSONL file."""
    if data_jsonl:
        path = Path(data_jsonl).expanduser().absolute()
        return path.with_name(f".{path.name}{name}")
    return Path(str(audio_files_dir)).expanduser().absolute() / name


class Cache:
    """Facts by file, in one JSON file; a file counts as unchanged while size and time of change are the same.

    Where that place cannot be written to, the user's cache folder is used instead. Without a place, nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._folder = path.parent if path else Path("/")
        self._places: list[Path] = []
        if path:
            name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]
            base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
            self._places = [path, Path(base) / "songbloom" / f"index_{name}.json"]
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        for place in self._places:
            entries = self._read(place)
            if entries is not None:
                self._entries = entries
                break

    @staticmethod
    def _read(place: Path) -> dict[str, list[Any]] | None:
        """The entries of a cache file; None if there is none, or if it is damaged or of another format."""
        try:
            content = json.loads(place.read_bytes())
            if content["format"] == FORMAT and isinstance(content["files"], dict):
                return content["files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def _name(self, path: Path) -> str:
        """Relative to the cache file where possible, so that a folder that moves keeps its index."""
        return str(path.relative_to(self._folder)) if path.is_relative_to(self._folder) else str(path)

    def get(self, path: Path, size: int, changed_ns: int) -> Facts | None:
        """What is known about this very version of the file."""
        entry = self._entries.get(self._name(path))
        try:
            if entry is not None and entry[:2] == [size, changed_ns]:
                frames, rate, channels, silent, error = entry[2:]
                usable = frames > 0 and rate > 0 and channels > 0
                if isinstance(error, str) and (error or usable):
                    return Facts(int(frames), int(rate), int(channels), bool(silent), error)
        except (TypeError, ValueError):  # a damaged entry is no entry
            pass
        return None

    def put(self, path: Path, size: int, changed_ns: int, facts: Facts) -> None:
        """Remember what was found."""
        self._entries[self._name(path)] = [
            size, changed_ns, facts.frames, facts.sample_rate, facts.channels, facts.silent, facts.error,
        ]  # fmt: skip
        self._changed = True

    def save(self) -> None:
        """Write what is new, in one step; a place that cannot be written to is no error."""
        if not self._changed:
            return
        content = json.dumps({"format": FORMAT, "files": self._entries}, ensure_ascii=True, separators=(",", ":"))
        for place in self._places:
            try:
                write_text(place, content)
            except UserError:
                continue
            self._changed = False
            return


# --- all files -------------------------------------------------------------------------------------------------------


def usable_durations(
    durations: Sequence[float], sample_rate: int, min_duration: float, max_duration: float | None
) -> tuple[list[int], list[int]]:
    """Which songs last long enough and not too long.

    Args:
        durations: of each song, in samples at ``sample_rate``, fractions included.
        sample_rate: Hz.
        min_duration, max_duration: seconds; a song is kept if ``min_duration <= duration < max_duration``.

    Returns:
        the positions of the songs that are kept, and their lengths in whole samples (truncated).
    """
    limit = float("inf") if max_duration is None else max_duration
    kept = [i for i, samples in enumerate(durations) if min_duration <= samples / sample_rate < limit]
    return kept, [int(durations[i]) for i in kept]


def _examined(songs: Sequence[Song], cache: Cache, threads: int) -> dict[Path, Facts | str]:
    """Examine each file that is not known yet: what was found, or, for a file that cannot be opened at all, why."""
    result: dict[Path, Facts | str] = {}
    todo: dict[Path, os.stat_result] = {}
    for path in dict.fromkeys(song.path for song in songs):
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            result[path] = reason(error).lower()
            continue
        known = cache.get(path, found.st_size, found.st_mtime_ns)
        if known is None:
            todo[path] = found
        else:
            result[path] = known
    said = False
    word = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        paths = iter(todo)
        running: dict[Future[Facts], Path] = {}
        done = 0
        try:
            while True:
                for path in islice(paths, 4 * threads - len(running)):
                    running[pool.submit(examine, path)] = path
                if not running:
                    break
                finished, _ = wait(running, timeout=_WORD_EVERY, return_when=FIRST_COMPLETED)
                for future in finished:
                    path = running[future]
                    try:
                        result[path] = facts = future.result()
                        cache.put(path, todo[path].st_size, todo[path].st_mtime_ns, facts)
                    except OSError as error:
                        result[path] = reason(error).lower()
                    del running[future]
                    done += 1
                if time.monotonic() - word > _WORD_EVERY:
                    cache.save()
                    print(f"data: {done} of {counted(len(todo), 'new file')} examined", flush=True)
                    word, said = time.monotonic(), done < len(todo)
            if said:  # who has read how far it is wants to read that it is done
                print(f"data: {done} of {counted(len(todo), 'new file')} examined", flush=True)
        finally:
            for future, path in running.items():  # only if interrupted
                if not future.cancel() and future.done() and not future.exception():
                    cache.put(path, todo[path].st_size, todo[path].st_mtime_ns, future.result())
            cache.save()  # so that an interrupted search goes on from here
    return result


def _sorted_out(
    songs: Iterable[Song],
    facts: dict[Path, Facts | str],
    sample_rate: int,
    min_duration: float,
    max_duration: float | None,
) -> Index:
    index = Index(sample_rate, [])
    for song in songs:
        found = facts[song.path]
        if isinstance(found, str):
            missing = not song.path.exists()
            index.dropped.append(Dropped(song, "missing" if missing else "unreadable", found))
            continue
        if found.error:
            kind = "empty" if found.error in ("is empty", "holds no samples") else "unreadable"
            index.dropped.append(Dropped(song, kind, found.error))
            continue
        seconds = found.frames / found.sample_rate
        samples = found.frames * sample_rate / found.sample_rate
        kept, _ = usable_durations([samples], sample_rate, min_duration, max_duration)
        if not kept and seconds < min_duration:
            shared = f"shorter than min_duration {min_duration:g} s"
            index.dropped.append(Dropped(song, "too short", f"{seconds:.2f} s is {shared}", shared))
        elif not kept:
            shared = f"not shorter than max_duration {max_duration:g} s"
            index.dropped.append(Dropped(song, "too long", f"{seconds:.2f} s is {shared}", shared))
        elif found.silent:
            index.dropped.append(Dropped(song, "silent", f"is silent (nowhere above {SILENCE_DB:g} dBFS)"))
        else:
            total = length_at(found.frames, found.sample_rate, sample_rate)
            index.songs.append(IndexedSong(song, found.frames, found.sample_rate, found.channels, total))
    return index


def nothing_usable(index: Index, where: str, least: str = "") -> UserError:
    """The error for an index without songs: what was found, and why each was dropped.

    Args:
        index: without songs.
        where: what the data are called.
        least: why songs must be so long, and what to change, for those that are too short.
    """
    by_reason: dict[str, list[str]] = {}
    for one in index.dropped:
        by_reason.setdefault(one.shared or one.reason, []).append(one.song.path.name)
    parts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts.append(f"{len(names)} {why} ({', '.join(names[:_SHOWN])}{more})")
    hint = f"; {least}" if least and any(one.kind == "too short" for one in index.dropped) else ""
    return UserError(f"{where}: none of {counted(len(index.dropped), 'song')} can be used: {'; '.join(parts)}{hint}")


_told: set[str] = set()  # reports that this process has printed: train and test sets build the same index


def build_index(
    songs: Sequence[Song],
    *,
    sample_rate: int,
    min_duration: float = 0.0,
    max_duration: float | None = None,
    cache: Path | None = None,
    where: str = "data",
    least: str = "",
    threads: int | None = None,
) -> Index:
    """Find the usable songs. Rank 0 looks at the files; all ranks get the same index, so all must call this.

    One line is printed for each dropped song, and a summary.

    Args:
        songs: what :func:`songbloom.data.manifest.songs_from` gave (only rank 0's count).
        sample_rate: Hz, of ``total_length``.
        min_duration, max_duration: seconds; ``min_duration <= duration < max_duration`` is kept; None is no limit.
        cache: where findings are kept (see :func:`cache_for`); None keeps none.
        where: what to call the data in messages.
        least: as for :func:`nothing_usable`.
        threads: files examined at once; by default one a processor, at most 8.

    Raises:
        UserError: no song is usable; the message says what was found and why each was dropped.
    """
    found = None
    if distributed.world().is_main:
        facts = _examined(songs, Cache(cache), threads or min(8, os.cpu_count() or 1))
        found = _sorted_out(songs, facts, sample_rate, min_duration, max_duration)
        if found.songs:  # otherwise the error says all of this
            _tell(found)
    index: Index = distributed.broadcast_object(found)
    if not index.songs:
        raise nothing_usable(index, where, least)
    return index


def _tell(index: Index) -> None:
    lines = [f"dropped {one.song.path}: {one.reason}" for one in index.dropped]
    report = "\n".join([*lines, index.summary()])
    if report not in _told:
        _told.add(report)
        print(report, file=sys.stdout, flush=True)
