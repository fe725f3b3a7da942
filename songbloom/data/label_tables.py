"""Id tables: numbers for the names of artists and genres, by the rules of two versions.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4.4. Version 2 spells a genre as a bag of
words, version 3 has one id a genre; the published priors use one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from songbloom.errors import UserError, reason
from songbloom.files import write_text

VERSIONS = (2, 3)
UNKNOWN = "unknown"


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
                raise UserError(f"{path}: cannot be read ({reason(error).lower()})") from error
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
