"""What a prior is told about a song, as numbers: who sings, in what style, where in the song a chunk lies, which words.

A label vector is int64 ``[total length, offset, sample length, artist, genre x bow, lyric tokens]`` (lengths in
samples). Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4.4 (artist, genre and timing)
and section 4.5 (lyrics). Version 2 of the tables spells a genre as a bag of words, version 3 has one id a genre; the
published priors use one or the other.

    python -m songbloom.data.labels build --data_jsonl=songs.jsonl --output=tables

writes the id tables of one's own songs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from songbloom import distributed
from songbloom.errors import UserError
from songbloom.files import write_text
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.lyrics.window import lyric_window, take, timed_window

if TYPE_CHECKING:
    from songbloom.lyrics.timing import TimedText
    from songbloom.lyrics.vocabulary import Tokens, Vocabulary

VERSIONS = (2, 3)
UNKNOWN = "unknown"
N_FIXED = 4  # columns before the genre: total length, offset, sample length, artist

Times = Sequence[tuple[float, float] | None]
"""Start and end of each token in seconds of its song; None for a token without times."""


# --- id tables ------------------------------------------------------------------------------------------------------


def table_files(version: int) -> tuple[str, str]:
    """Names of the files of artist ids and genre ids."""
    return f"v{version}_artist_ids.txt", f"v{version}_genre_ids.txt"


def normal_name(name: str, version: int) -> str:
    """A name as the tables of ``version`` hold it.

    Version 2: lower case, every run of characters other than ASCII letters and digits as one ``_``, none at the ends.
    Version 3: lower case.
    """
    if version == 2:
        return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return name.lower()


def genre_parts(genre: str, version: int) -> list[str]:
    """What of a genre has ids: its words in version 2, the whole in version 3."""
    name = normal_name(genre, version)
    return name.split("_") if version == 2 else [name]


@dataclass(frozen=True)
class LabelTables:
    """Ids of artists and genres; id 0 is the unknown one. Several names may share an id.

    Attributes:
        version: 2 or 3, which decides how names are spelt (:func:`normal_name`).
        artists: name → id.
        genres: genre word (version 2) or genre (version 3) → id.
    """

    version: int
    artists: Mapping[str, int]
    genres: Mapping[str, int]

    def artist_id(self, name: str | None) -> int:
        """The id of an artist; 0 for one that is not known."""
        return self.artists.get(normal_name(name or "", self.version), 0)

    def genre_ids(self, genre: str | None) -> list[int]:
        """The ids of a genre's words, or of the genre; 0 for what is not known."""
        return [self.genres.get(part, 0) for part in genre_parts(genre or "", self.version)]

    def artist_name(self, number: int) -> str:
        """All names of an id, sorted, ``_`` between them."""
        return _names_of(self.artists, number)

    def genre_name(self, numbers: Iterable[int]) -> str:
        """The genre that these ids spell; those below 0 are padding."""
        return "_".join(_names_of(self.genres, number) for number in numbers if number >= 0)

    @property
    def y_bins(self) -> tuple[int, int]:
        """Rows that embeddings of genres and of artists need."""
        return max(self.genres.values(), default=0) + 1, max(self.artists.values(), default=0) + 1

    def check_fits(self, y_bins: Sequence[int]) -> None:
        """Refuse embeddings with fewer rows than there are ids.

        Raises:
            UserError: says what ``y_bins`` should be.
        """
        words = ("genres", "artists")
        for there, rows, what in zip(self.y_bins, y_bins, words, strict=True):
            if there > rows:
                raise UserError(
                    f"y_bins={tuple(y_bins)} has room for {rows} {what}, and the tables have {there} with the unknown "
                    f"one: give --y_bins={self.y_bins[0]},{self.y_bins[1]}, or --y_bins=0 to take it from the tables"
                )

    @classmethod
    def build(cls, songs: Iterable[Any], version: int) -> LabelTables:
        """Tables of the artists and genres that songs have, in alphabetical order from id 1 on.

        Args:
            songs: with ``artist`` and ``genre``, each text or None (:class:`songbloom.data.manifest.Song`).
            version: 2 or 3.

        Raises:
            UserError: a name cannot stand in a table.
        """
        artists: set[str] = set()
        genres: set[str] = set()
        for song in songs:
            for kind, text, names in (("artist", song.artist, artists), ("genre", song.genre, genres)):
                if text is None or not text.strip():
                    continue
                if re.search(r"[\r\n\0]", text):
                    raise UserError(f"{song.path}: its {kind} {text!r} has a line break; write it on one line")
                names.update([normal_name(text, version)] if kind == "artist" else genre_parts(text, version))
        return cls(version, _numbered(artists), _numbered(genres))

    @classmethod
    def read(cls, path_artist: str | Path, path_genre: str | Path, version: int) -> LabelTables:
        """Read tables of lines ``name;id``.

        Raises:
            UserError: a file is missing or a line is wrong, which is named as ``file:line``.
        """
        tables = []
        for path in (path_artist, path_genre):
            try:
                text = Path(path).expanduser().read_text(encoding="utf-8-sig")
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: is not UTF-8 text; save the file as UTF-8") from error
            tables.append(parse_table(text, str(path)))
        return cls(version, *tables)

    @classmethod
    def read_folder(cls, folder: str | Path, version: int) -> LabelTables:
        """Read the tables of a version from a folder; raises as :meth:`read` does."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; it should hold {' and '.join(table_files(version))}")
        missing = [name for name in table_files(version) if not (folder / name).is_file()]
        if missing:
            there = ", ".join(sorted(path.name for path in folder.glob("*_ids.txt"))) or "no tables"
            raise UserError(f"{folder}: lacks {missing[0]} (it has {there}); --labels_v3 chooses version 3 or 2")
        artist, genre = table_files(version)
        return cls.read(folder / artist, folder / genre, version)

    def write(self, folder: str | Path) -> list[Path]:
        """Write both tables into ``folder``; the files written."""
        written = []
        for name, table in zip(table_files(self.version), (self.artists, self.genres), strict=True):
            lines = [f"{text};{number}\n" for text, number in sorted(table.items(), key=lambda each: each[::-1])]
            written.append(Path(folder) / name)
            write_text(written[-1], "".join(lines))
        return written

    def plain(self) -> dict[str, Any]:
        """As plain data, for checkpoints."""
        return {"version": self.version, "artists": dict(self.artists), "genres": dict(self.genres)}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> LabelTables:
        """What :meth:`plain` gave."""
        return cls(int(content["version"]), dict(content["artists"]), dict(content["genres"]))


def _names_of(table: Mapping[str, int], number: int) -> str:
    return "_".join(sorted(name for name, each in table.items() if each == number))


def _numbered(names: set[str]) -> dict[str, int]:
    return {UNKNOWN: 0} | {name: number for number, name in enumerate(sorted(names - {UNKNOWN, ""}), start=1)}


def parse_table(text: str, where: str = "table") -> dict[str, int]:
    """The ids in lines of ``name;id``; names become lower case.

    Raises:
        UserError: a line without an id, an id below 0, or one name with two ids; named as ``where:line``.
    """
    table: dict[str, int] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        name, separator, digits = line.rpartition(";")
        if not separator or not digits.strip().isdecimal():
            raise UserError(f"{where}:{number}: {line[:60]!r} is not a line of the form name;id")
        if table.setdefault(name.lower(), int(digits)) != int(digits):
            raise UserError(f"{where}:{number}: {name!r} has two ids, {table[name.lower()]} and {int(digits)}")
    return table


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
                f"{where and where + ': '}genre {genre!r} has {len(ids)} words, and the model takes {self.bow}: leave "
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


def _if_any(times: Times | None) -> Times | None:
    """``times`` if a token has any."""
    return times if times is not None and any(each is not None for each in times) else None


class NoLabels:
    """Stands where a prior has no labels: vectors of width 0."""

    width = 0
    n_tokens = 0

    def batch(self, requests: Sequence[Mapping[str, Any]]) -> Labels:
        """Labels that say nothing."""
        info = {"artist": "n/a", "genre": "n/a", "lyrics": [], "full_tokens": []}
        return Labels(torch.zeros(len(requests), 0, dtype=torch.int64), [dict(info) for _ in requests])


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
            f"version {version}: {artists - 1} artists, {genres - 1} genre{' words' if version == 2 else 's'} "
            f"(y_bins={genres},{artists}, max_bow_genre_size={longest}): {files[0]}, {files[1].name}"
        )
        _warn_of_lost_names(songs, version)
    nameless = sum(not song.artist for song in songs), sum(not song.genre for song in songs)
    distributed.say(f"{len(songs)} songs, {nameless[0]} without an artist, {nameless[1]} without a genre")
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
