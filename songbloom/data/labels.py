"""What a prior is told about a song, as numbers: who sings, in what style, where in the song a chunk lies, which words.

A label vector is int64 ``[total length, offset, sample length, artist, genre x bow, lyric tokens]`` (lengths in
samples). Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4.4 (artist, genre and timing)
and section 4.5 (lyrics).

    python -m songbloom.data.labels build --data_jsonl=songs.jsonl --output=tables

writes the id tables of one's own songs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from songbloom import distributed
from songbloom.data.label_tables import UNKNOWN, VERSIONS, LabelTables, genre_parts, normal_name
from songbloom.errors import UserError, counted
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.lyrics.window import lyric_window, take, timed_window

if TYPE_CHECKING:
    from songbloom.lyrics.timing import TimedText
    from songbloom.lyrics.vocabulary import Tokens, Vocabulary

N_FIXED = 4  # columns before the genre: total length, offset, sample length, artist

Times = Sequence[tuple[float, float] | None]
"""Start and end of each token in seconds of its song; None for a token without times."""


# --- labels ---------------------------------------------------------------------------------------------------------


class LabelledPrior(Protocol):
    """What is asked of a prior when labels move to a window."""

    sample_length: int
    hop_length: int


@dataclass(frozen=True)
class Known:
    """What is known about a song, as ids.

    Attributes:
        artist, genre: as given, or ``unknown``.
        artist_id, genre_ids: from the tables; genre ids are padded with -1.
        tokens: of the lyrics.
        times: of the tokens, or None where the song has none.
    """

    artist: str
    genre: str
    artist_id: int
    genre_ids: tuple[int, ...]
    tokens: Tokens
    times: Times | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data: ``artist``, ``genre``, ``lyrics`` (cleaned), ``full_tokens`` and, of the lyrics as they were
        given, ``text`` with the ``spans`` and ``symbols`` of the tokens, and ``times``."""
        return {
            "artist": self.artist,
            "genre": self.genre,
            "lyrics": self.tokens.cleaned,
            "full_tokens": list(self.tokens.ids),
            "text": self.tokens.text,
            "symbols": list(self.tokens.symbols),
            "spans": [list(span) for span in self.tokens.spans],
            "times": None if self.times is None else [None if each is None else list(each) for each in self.times],
        }


@dataclass(frozen=True)
class Label:
    """The label vector of one chunk.

    Attributes:
        y: int64 ``[4 + bow + n_tokens]``.
        artist, genre: as given, or ``unknown``.
        lyrics: the cleaned text.
        tokens: of all the lyrics.
        indices: ``n_tokens`` places in them, -1 for padding.
    """

    y: Tensor
    artist: str
    genre: str
    lyrics: str
    tokens: Tokens
    indices: list[int]


@dataclass(frozen=True)
class Labels:
    """The labels of a batch: ``y`` int64 ``[N, width]`` and an info of each item (:meth:`Known.plain`)."""

    y: Tensor
    infos: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As plain data, under the names that Jukebox's files have."""
        return {"y": self.y, "info": self.infos}

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, items: slice) -> Labels:
        return Labels(self.y[items], self.infos[items])


@dataclass(frozen=True)
class Compact:
    """What :meth:`Labeller.vector` needs of a song, in few bytes, for data sets of many songs."""

    artist_id: int
    genre_ids: tuple[int, ...]
    ids: np.ndarray  # int32 [tokens]
    times: np.ndarray | None = None  # float32 [tokens, 2] seconds; NaN for a token without times


class Labeller:
    """Turns what is known about songs into label vectors.

    Args:
        tables: ids of artists and genres.
        vocabulary: of the lyrics.
        max_bow_genre_size: genre ids of a song, at least 1.
        n_tokens: lyric tokens shown with a chunk; 0: none.
        sample_length: samples of a chunk.
        sr: samples a second; times of lyrics are in seconds.
        options: keywords for the vocabulary's ``tokenize``.
        wordless: the columns of lyric tokens stay empty, because the model fills them with something else.
        notice: told, once, of each name that the tables don't know.
    """

    def __init__(
        self,
        tables: LabelTables,
        vocabulary: Vocabulary,
        *,
        max_bow_genre_size: int,
        n_tokens: int,
        sample_length: int,
        sr: float = 44100,
        options: Mapping[str, Any] | None = None,
        wordless: bool = False,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.tables, self.vocabulary = tables, vocabulary
        self.bow, self.n_tokens = max_bow_genre_size, n_tokens
        self.sample_length, self.sr = sample_length, sr
        self.options, self.wordless = dict(options or {}), wordless
        self.notice = notice or distributed.say
        self._told: set[tuple[str, str]] = set()

    @property
    def width(self) -> int:
        """Columns of a label vector."""
        return N_FIXED + self.bow + self.n_tokens

    @property
    def reads_lyrics(self) -> bool:
        """Whether the model is shown words."""
        return bool(self.n_tokens) and not self.wordless

    # ------------------------------------------------------------------------------------------- what is known

    def known(
        self,
        artist: str | None,
        genre: str | None,
        lyrics: str | None,
        timed: TimedText | None = None,
        *,
        times: Times | None = None,
        where: str = "",
    ) -> Known:
        """Ids and tokens of a song.

        Args:
            artist, genre, lyrics: text; None or empty where nothing is known.
            timed: the lyrics' pieces with their times.
            times: the tokens' times, if they are known already.
            where: the song, for messages.

        Raises:
            UserError: a genre of more words than ``max_bow_genre_size``, or lyrics that cannot be read.
        """
        ids = self.tables.genre_ids(genre)
        if len(ids) > self.bow:
            raise UserError(
                f"{where and where + ': '}genre {genre!r} has {counted(len(ids), 'word')}, and the "
                f"model takes {self.bow}: leave "
                "some out (a model of your own may have a larger --max_bow_genre_size)"
            )
        self._tell_unknown(artist, genre)
        tokens = self.vocabulary.tokenize("" if self.wordless else lyrics or "", **self.options)
        known = Known(
            artist=artist or UNKNOWN,
            genre=genre or UNKNOWN,
            artist_id=self.tables.artist_id(artist),
            genre_ids=tuple(ids + [-1] * (self.bow - len(ids))),
            tokens=tokens,
            times=_if_any(times),
        )
        return known if timed is None or known.times is not None else self.timed(known, timed)

    def timed(self, known: Known, timed: TimedText) -> Known:
        """``known`` with the times of its words.

        Raises:
            UserError: these are the times of other words, or the vocabulary cannot follow them.
        """
        from songbloom.lyrics.timing import token_times

        return replace(known, times=_if_any(token_times(known.tokens, timed)))

    def compact(self, known: Known) -> Compact:
        """The part of ``known`` that label vectors are made of."""
        times = None
        if known.times is not None:
            times = np.array([(np.nan, np.nan) if each is None else each for each in known.times], np.float32)
            times = times.reshape(-1, 2)
        return Compact(known.artist_id, known.genre_ids, np.array(known.tokens.ids, np.int32), times)

    def _tell_unknown(self, artist: str | None, genre: str | None) -> None:
        version = self.tables.version
        unknown = []
        if artist and artist.strip():
            unknown += [("artist", artist)] if normal_name(artist, version) not in self.tables.artists else []
        if genre and genre.strip():
            parts = genre_parts(genre, version)
            words = [part for part in parts if part not in self.tables.genres]
            kind = "genre word" if version == 2 and len(parts) > 1 else "genre"
            unknown += [(kind, word if kind == "genre word" else genre) for word in words]
        for kind, name in unknown:
            if (kind, name) not in self._told:
                self._told.add((kind, name))
                self.notice(f"note: {kind} {name!r} is in no table of this model: it counts as unknown (id 0)")

    # -------------------------------------------------------------------------------------------------- vectors

    def window(self, count: int, times: Any, total: Any, offset: Any, duration: Any) -> list[int]:
        """Places in a song's tokens that the chunk ``[offset, offset + duration)`` shows; -1 for padding."""
        if not self.n_tokens:
            return []
        if times is None:
            return lyric_window(count, self.n_tokens, total, offset, duration)
        if isinstance(times, np.ndarray):
            times = [None if np.isnan(start) else (start, end) for start, end in times.tolist()]
        return timed_window(times, self.n_tokens, int(offset) / self.sr, int(duration) / self.sr)

    def vector(self, song: Compact, total_length: int, offset: int) -> Tensor:
        """The label vector of a chunk, int64 ``[width]``; lengths in samples."""
        indices = self.window(len(song.ids), song.times, total_length, offset, self.sample_length)
        words = take(song.ids.tolist(), indices) if indices else []
        y = [total_length, offset, self.sample_length, song.artist_id, *song.genre_ids, *words]
        return torch.tensor(y, dtype=torch.int64)

    def sung(self, song: Compact, total_length: int, offset: int) -> Tensor:
        """When a chunk's head of alignment is to look at each lyric position: float32 ``[n_tokens, 2]``, samples from
        the chunk's beginning; NaN where nobody knows.

        A position has read the tokens before it, not its own, so its time is that of the token before. A token lasts
        until the next one begins: the pause between two belongs to the first, and what comes before the first word to
        the positions that have not read it.
        """
        found = np.full((self.n_tokens, 2), np.nan)
        if song.times is not None and self.n_tokens:
            places = _places(song.times)
            indices = np.array(self.window(len(song.ids), song.times, total_length, offset, self.sample_length))
            there = indices >= 0
            found[there] = places[indices[there]] * self.sr - offset
        return torch.from_numpy(found.astype(np.float32))

    def label(
        self,
        artist: str | None,
        genre: str | None,
        lyrics: str | None,
        total_length: int,
        offset: int,
        times: Times | None = None,
    ) -> Label:
        """The label of the chunk of a song that begins at ``offset``.

        Args:
            artist, genre, lyrics: text, or None where nothing is known.
            total_length, offset: samples; ``0 <= offset < total_length``.
            times: of the tokens, in seconds; without them words are spread evenly over the song.

        Raises:
            UserError: as :meth:`known`; there are more lyrics than the window shows, and the offset is not in the song.
        """
        known = self.known(artist, genre, lyrics, times=times)
        return self._label(known, total_length, offset)

    def _label(self, known: Known, total_length: int, offset: int) -> Label:
        indices = self.window(len(known.tokens.ids), known.times, total_length, offset, self.sample_length)
        y = self.vector(self.compact(known), total_length, offset)
        return Label(y, known.artist, known.genre, known.tokens.cleaned, known.tokens, indices)

    def batch(self, requests: Sequence[Mapping[str, Any]]) -> Labels:
        """Labels of several items.

        Args:
            requests: each with ``artist``, ``genre``, ``lyrics``, ``total_length`` and ``offset`` (samples), and
                perhaps ``times`` or ``timed``; or with ``known`` in place of the words.
        """
        rows, infos = [], []
        for each in requests:
            known = each.get("known") or self.known(
                each.get("artist"), each.get("genre"), each.get("lyrics"), each.get("timed"), times=each.get("times")
            )
            rows.append(self._label(known, int(each["total_length"]), int(each["offset"])).y)
            infos.append(known.plain())
        y = torch.stack(rows) if rows else torch.zeros(0, self.width, dtype=torch.int64)
        return Labels(y, infos)

    # ------------------------------------------------------------------------------------------------- windows

    def moved(self, labels: Labels, by: int, sample_length: int) -> tuple[Tensor, list[list[int]]]:
        """Labels of chunks of ``sample_length`` that begin ``by`` samples later, and the words that they show.

        The words are placed in float32, as the published models' sampler does, while :meth:`label` computes in
        float64: in long songs they may differ by one token.

        Returns:
            int64 ``[N, width]``, and for each item ``n_tokens`` places in its tokens (-1: padding).
        """
        y = labels.y.clone()
        y[:, 1] += by
        y[:, 2] = sample_length
        indices = []
        for row, info in zip(y, labels.infos, strict=True):
            ids = info["full_tokens"]
            places = self.window(len(ids), info.get("times"), row[0], row[1], row[2])
            if self.n_tokens:
                row[-self.n_tokens :] = torch.tensor(take(ids, places), dtype=torch.int64)
            indices.append(places)
        return y, indices

    def shifted(self, labels: Labels, start: int, prior: LabelledPrior) -> tuple[Tensor, list[list[int]]]:
        """Labels of the window of ``prior`` that begins at its code ``start``; as :meth:`moved`."""
        return self.moved(labels, int(start * prior.hop_length), prior.sample_length)

    def describe(self, y: Tensor) -> dict[str, str]:
        """What a label vector ``[width]`` says: artist, genre, and the words in its window."""
        columns = y.tolist()
        words = [token for token in columns[N_FIXED + self.bow :] if token > 0]
        return {
            "artist": self.tables.artist_name(columns[3]),
            "genre": self.tables.genre_name(columns[N_FIXED : N_FIXED + self.bow]),
            "lyrics": self.vocabulary.decode(words),
        }


def _places(times: np.ndarray) -> np.ndarray:
    """From the times of tokens, ``[tokens, 2]`` seconds, to those of lyric positions (:meth:`Labeller.sung`)."""
    found = np.full((len(times), 2), np.nan)
    known = np.flatnonzero(~np.isnan(times[:, 0]))
    if len(known):
        begins = np.maximum.accumulate(times[known, 0])
        found[: known[0] + 1] = -np.inf, begins[0]
        inside = known < len(times) - 1  # no position has read the last token
        found[known[inside] + 1, 0] = begins[inside]
        found[known[inside] + 1, 1] = np.append(begins[1:], np.inf)[inside]
    return found


def _if_any(times: Times | None) -> Times | None:
    """``times`` if a token has any."""
    return times if times is not None and any(each is not None for each in times) else None


# --- the command ----------------------------------------------------------------------------------------------------

_KNOBS = Knobs(
    group(
        "build",
        "Id tables of the artists and genres of songs",
        audio_files_dir=Knob("", "Folder of songs, each perhaps with a JSON file of the same name beside it"),
        data_jsonl=Knob("", "File with one JSON object a song: audio_path, artist, genre, lyrics"),
        get_metadata=Knob("", "Function that knows the songs, as module:function"),
        output=Knob("", "Folder that the tables are written to"),
        labels_v3=Knob(None, "Write version 3 only, or with --no-labels_v3 version 2 only", kind="bool"),
        help=Knob(False, "Print this, and stop"),
    )
)
_USAGE = "usage: python -m songbloom.data.labels build --data_jsonl=FILE | --audio_files_dir=FOLDER --output=FOLDER"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; raises a :class:`UserError` for what a person got wrong."""
    from songbloom.data.metadata import described, import_hook

    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and not words[0].startswith("-") else ""
    options = _KNOBS.merge({}, "", _KNOBS.parse(words))
    if options.help or (command == "" and not words):
        distributed.say(_KNOBS.help(_USAGE).rstrip())
        return 0
    if command != "build":
        raise UserError(f"the command is build, not {command!r}; {_USAGE}")
    if not options.output:
        raise UserError("--output is missing: it names the folder that the tables are written to")
    hook = import_hook(options.get_metadata) if options.get_metadata else None
    songs = described(options.audio_files_dir or None, options.data_jsonl or None, hook)
    for version in VERSIONS if options.labels_v3 is None else (3 if options.labels_v3 else 2,):
        tables = LabelTables.build(songs, version)
        files = tables.write(options.output)
        longest = max([len(genre_parts(song.genre, version)) for song in songs if song.genre] or [1])
        genres, artists = tables.y_bins
        distributed.say(
            f"version {version}: {counted(artists - 1, 'artist')}, "
            f"{counted(genres - 1, 'genre word' if version == 2 else 'genre')} "
            f"(y_bins={genres},{artists}, max_bow_genre_size={longest}): {files[0]}, {files[1].name}"
        )
        _warn_of_lost_names(songs, version)
    nameless = sum(not song.artist for song in songs), sum(not song.genre for song in songs)
    distributed.say(f"{counted(len(songs), 'song')}, {nameless[0]} without an artist, {nameless[1]} without a genre")
    return 0


def _warn_of_lost_names(songs: Iterable[Any], version: int) -> None:
    names = {name for song in songs for name in (song.artist, song.genre) if name and name.strip()}
    lost = sorted(name for name in names if not normal_name(name, version))
    if lost:
        distributed.say(
            f"warning: version {version} spells names in ASCII, which leaves nothing of {len(lost)} of them "
            f"({', '.join(lost[:3])}{', …' if len(lost) > 3 else ''}): train with --labels_v3"
        )


if __name__ == "__main__":
    distributed.run(main)
