"""The labels of all songs of a data set, made ready once, and what a person should hear about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from songbloom import distributed
from songbloom.data.index import IndexedSong
from songbloom.data.labels import Compact, Known, Labeller
from songbloom.data.manifest import Song
from songbloom.data.metadata import Hook, asked, timed_text
from songbloom.data.word_cache import WordCache, Words
from songbloom.errors import UserError, counted

_SHOWN = 5  # songs that are named for each kind of remark
_PATIENCE = 3.0  # seconds after which it is shown how far the reading of words is


def prepared(
    labeller: Labeller,
    songs: Sequence[IndexedSong],
    *,
    hook: Hook | None = None,
    test: bool = False,
    others: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = distributed.say,
) -> list[Compact]:
    """What label vectors of each song are made of; all ranks call it together and rank 0 does the work.

    Args:
        labeller: makes the vectors.
        songs: of one split.
        hook: knows more about songs (:mod:`songbloom.data.metadata`).
        test: whether these are test songs, for the hook.
        others: songs of the other split.
        cache: where the tokens of words are kept (:mod:`songbloom.data.word_cache`); None keeps none.
        say: hears remarks.

    Raises:
        UserError: a song's labels cannot be made; names the song.
    """
    ready: list[Compact] = []
    if distributed.world().is_main:
        remarks = Remarks(labeller, say, test=test, others=others)
        words = WordCache(cache if labeller.reads_lyrics else None, labeller)
        try:
            for song in tqdm(songs, desc="words", unit="song", delay=_PATIENCE, disable=not labeller.reads_lyrics):
                known = known_of(labeller, asked(song.song, hook, test=test), remarks.timeless, words)
                remarks.look(song, known)
                ready.append(labeller.compact(known))
        finally:
            words.save()
        remarks.tell()
    return distributed.broadcast_object(ready)


def known_of(
    labeller: Labeller, song: Song, timeless: Callable[[str], None] | None = None, cache: WordCache | None = None
) -> Known:
    """What ``labeller`` knows about a song; lyrics are looked at only if they are shown to the model.

    Args:
        labeller: of the model.
        song: with its lyrics, and perhaps with times of them.
        timeless: hears why a song's times cannot be used, and the words are then spread evenly; None raises that.
        cache: knows the tokens of words that were read before. What is known about such a song lacks the symbols and
            spans of its tokens; label vectors are made without.

    Raises:
        UserError: names the song's file.
    """
    timed = timed_text(song) if labeller.reads_lyrics else None
    lyrics = song.lyrics if labeller.reads_lyrics else None
    if not lyrics and timed is not None and timed.kind == "text":
        lyrics = timed.text
    where = str(song.path)
    key = cache.key(lyrics, timed) if cache is not None and lyrics else b""
    words = cache.get(key) if cache is not None and key else None
    if words is not None:
        known = labeller.known(song.artist, song.genre, None, where=where)
        tokens = replace(known.tokens, ids=words.ids, problems=words.problems)
        known, fault = replace(known, tokens=tokens, times=words.times), words.fault
    else:
        known, fault = labeller.known(song.artist, song.genre, lyrics, where=where), ""
        if timed is not None and known.tokens.ids:
            try:
                known = labeller.timed(known, timed)
            except UserError as error:
                fault = str(error)
        if cache is not None and key:
            times = None if known.times is None else tuple(known.times)
            cache.put(key, Words(known.tokens.ids, times, known.tokens.problems, fault))
    if fault and timeless is None:
        raise UserError(f"{song.path}: {fault}")
    if fault and timeless is not None:
        timeless(f"{song.path}: its times are not used, and its words are spread evenly: {fault}")
    return known


def unfitting(known: Known, total_length: int, labeller: Labeller) -> str:
    """Why a song's words do not fit into it or into the model's window of words, in words; empty if they do.

    Args:
        known: of the song.
        total_length: samples.
        labeller: of the model.
    """
    count = len(known.tokens.ids)
    if not count or not labeller.reads_lyrics:
        return ""
    seconds = total_length / labeller.sr
    if known.times is not None:
        last = max(end for each in known.times if each is not None for end in [each[1]])
        late = last - seconds
        return f"its last word ends at {last:.2f} s, and the song at {seconds:.2f} s" if late > 0.5 else ""
    shown = count * min(1.0, labeller.sample_length / total_length)
    if shown > labeller.n_tokens:
        return (
            f"its lyrics are too long for it: {counted(count, 'token')} in {seconds:.1f} s are {shown:.0f} in the "
            f"{labeller.sample_length / labeller.sr:.1f} s of a window, which shows {labeller.n_tokens}"
        )
    return ""


class Remarks:
    """Gathers what is strange about songs' words, and tells it in a few lines.

    Args:
        labeller: reads the words.
        say: hears the lines.
        test: whether the songs are those for testing.
        others: how many songs the other split has.
    """

    def __init__(self, labeller: Labeller, say: Callable[[str], None], *, test: bool = False, others: int = 0) -> None:
        self.labeller, self.say = labeller, say
        self.purpose = "test on" if test else "train on"
        self.others = f"; {counted(others, 'other is', 'others are')} for testing" if others and not test else ""
        self.counts: Counter[str] = Counter()
        self.lines: dict[str, list[str]] = {"problem": [], "unfitting": [], "timeless": []}

    def look(self, song: IndexedSong, known: Known) -> None:
        """Take in one song."""
        self.counts["songs"] += 1
        self.counts["tokens"] += len(known.tokens.ids)
        self.counts["with lyrics"] += bool(known.tokens.ids)
        self.counts["timed"] += known.times is not None
        for problem in known.tokens.problems:
            self._note("problem", f"{song.song.path}: {problem}")
        fault = unfitting(known, song.total_length, self.labeller)
        if fault:
            self._note("unfitting", f"{song.song.path}: {fault}")

    def timeless(self, line: str) -> None:
        """Take in why the times of a song cannot be used."""
        self._note("timeless", line)

    def _note(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if len(self.lines[kind]) < _SHOWN:
            self.lines[kind].append(line)

    def tell(self) -> None:
        """Say what there was."""
        for kind, lines in self.lines.items():
            for line in lines:
                self.say(f"note: {line}")
            if self.counts[kind] > len(lines):
                what = "symbols of lyrics" if kind == "problem" else "songs"
                self.say(f"note: … and {self.counts[kind] - len(lines)} more such {what}")
        if self.labeller.reads_lyrics:
            counts: Any = self.counts
            have = "has some" if counts["with lyrics"] == 1 else "have some"
            self.say(
                f"lyrics: {counts['with lyrics']} of {counted(counts['songs'], 'song')} to {self.purpose} {have}, "
                f"{counts['timed']} with times; {counted(counts['tokens'], 'token')} of {self.labeller.vocabulary.name}"
                f"{self.others}"
            )
