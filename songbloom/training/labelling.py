"""Which labels a prior has: the sizes that follow from the data and the vocabulary, and the labeller that makes them.

What training found is kept in the configuration, and so in checkpoints: the id tables under ``label_ids`` and the name
of the vocabulary as ``lyrics_vocab``. Sampling then needs no other files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from songbloom import distributed
from songbloom.data.label_tables import LabelTables, genre_parts
from songbloom.data.labels import Labeller
from songbloom.errors import UserError, counted
from songbloom.hyperparams import COMMAND_LINE

LABEL_IDS = "label_ids"


def version_of(hps: Mapping[str, Any]) -> int:
    """The version of the id tables, 2 or 3."""
    return 3 if hps.get("labels_v3") else 2


def reads_lyrics(hps: Mapping[str, Any]) -> bool:
    """Whether a prior with these settings is shown words."""
    return bool(hps.get("labels") and (hps.get("use_tokens") or hps.get("single_enc_dec")) and hps.get("n_tokens"))


def vocabulary_name(hps: Mapping[str, Any]) -> str:
    """The vocabulary of the lyrics: ``lyrics_vocab``, by default that of the tables' version."""
    return hps.get("lyrics_vocab") or f"v{version_of(hps)}"


def complete_vocabulary(hps: MutableMapping[str, Any]) -> None:
    """Write ``lyrics_vocab`` and ``n_vocab`` into the settings of a prior that reads lyrics.

    Raises:
        UserError: an unknown vocabulary, or an ``n_vocab`` on the command line that is not its size.
    """
    if not reads_lyrics(hps):
        return
    from songbloom.lyrics.vocabulary import vocabulary

    chosen = vocabulary(vocabulary_name(hps))
    given, sources = hps.get("n_vocab"), getattr(hps, "sources", {})
    if given and given != chosen.n_vocab and sources.get("n_vocab") == COMMAND_LINE:
        raise UserError(
            f"--n_vocab={given}, but vocabulary {chosen.name!r} has {chosen.n_vocab} symbols: leave --n_vocab out"
        )
    hps["lyrics_vocab"], hps["n_vocab"] = chosen.name, chosen.n_vocab


def complete_labels(
    hps: MutableMapping[str, Any],
    saved: Mapping[str, Any],
    list_songs: Callable[[], Iterable[Any]],
    beside: Callable[[int], LabelTables | None] = lambda version: None,
) -> None:
    """Write ``label_ids``, ``y_bins`` and ``max_bow_genre_size`` into the settings of a prior with labels.

    The tables are those of the checkpoint that training goes on from; else those in the folder ``label_tables``; else
    those that lie beside the weights to start from; else they are made of the songs. All ranks call it together.

    Args:
        hps: settings of a prior with labels.
        saved: those of a checkpoint to go on from; empty if there is none.
        list_songs: gives the songs with their artists and genres.
        beside: gives the tables of a version that lie beside the weights that training starts from.

    Raises:
        UserError: tables cannot be read, or hold more names than ``y_bins`` has room for.
    """
    version = version_of(hps)
    there = saved.get(LABEL_IDS)
    found: tuple[LabelTables, int, str] | None = None
    if distributed.world().is_main:
        songs: list[Any] | None = None
        if there:
            tables, source = LabelTables.from_plain(there), ""
            if hps.get("label_tables") not in ("", saved.get("label_tables")):
                distributed.say(f"note: {hps['label_tables']} is not read: the run goes on with its own ids")
        elif hps.get("label_tables"):
            tables, source = LabelTables.read_folder(hps["label_tables"], version), f"of {hps['label_tables']}"
        elif (near := beside(version)) is not None:
            tables, source = near, "beside the weights"
        else:
            songs = list(list_songs())
            tables, source = LabelTables.build(songs, version), "from the songs"
        longest = int(hps.get("max_bow_genre_size") or saved.get("max_bow_genre_size") or 0)
        if not longest and version == 2:
            songs = list(list_songs()) if songs is None else songs
            longest = max([len(genre_parts(song.genre, version)) for song in songs if song.genre], default=1)
        found = tables, longest or 1, source
    tables, longest, source = distributed.broadcast_object(found)
    hps["max_bow_genre_size"] = longest
    if not hps.get("y_bins"):
        hps["y_bins"] = tuple(saved.get("y_bins") or tables.y_bins)
    tables.check_fits(hps["y_bins"])
    hps[LABEL_IDS] = tables.plain()
    if source:
        genres, artists = tables.y_bins
        distributed.say(
            f"labels: {counted(artists - 1, 'artist')} and "
            f"{counted(genres - 1, 'genre word' if version == 2 else 'genre')} {source} "
            f"(y_bins={tuple(hps['y_bins'])})"
        )


def labeller_of(
    hps: Mapping[str, Any], *, sample_length: int, tables: LabelTables | None = None, notice: Any = None
) -> Labeller:
    """The labeller of a prior whose settings are complete.

    Args:
        hps: settings with ``label_ids``, unless ``tables`` are given.
        sample_length: samples of the prior's window.
        tables: the id tables.
        notice: hears of names that the tables don't know.
    """
    from songbloom.lyrics.vocabulary import vocabulary

    return Labeller(
        tables or LabelTables.from_plain(hps[LABEL_IDS]),
        vocabulary(vocabulary_name(hps)),
        max_bow_genre_size=int(hps.get("max_bow_genre_size") or 1),
        n_tokens=int(hps["n_tokens"]) if reads_lyrics(hps) else 0,
        sample_length=sample_length,
        sr=hps["sr"],
        options=tokenize_options(hps),
        wordless=bool(hps.get("copy_input")),
        notice=notice,
    )


def tokenize_options(hps: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenize`` of the vocabulary is told about Japanese texts."""
    options = {"english": hps.get("lyrics_english"), "reading": hps.get("lyrics_reading")}
    return {key: value for key, value in options.items() if value}
