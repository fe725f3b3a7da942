"""Checks of ``jukebox_labels*``: id tables, label vectors, batches, moved windows, vocabularies, windows of words."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.data.label_tables import LabelTables, normal_name, parse_table
from songbloom.data.labels import Labeller
from songbloom.errors import UserError
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.lyrics.window import lyric_window, take
from tests.golden.report import Golden

BY, SAMPLE_LENGTH = 7777, 5000  # how the files' shifted labels were moved
UNKNOWN_SYMBOL = "<unk>"  # the name of id 0 in the files


def check_labels(golden: Golden) -> None:
    tables = {
        version: LabelTables(version, *(parse_table(golden.given("id_lists", f"v{version}_{kind}")) for kind in KINDS))
        for version in (2, 3)
        if golden.has("id_lists", f"v{version}_artist")
    }
    for name in golden.look("cases"):
        _check_case(golden, name, tables[int(name[1])])
    if golden.has("norm"):
        for text in golden.look("norm"):
            golden.expect("norm", text, got=normal_name(text, 2), name="norm")
    for version in (2, 3):
        key = f"vocab_v{version}"
        if golden.has(key):
            words = vocabulary(f"v{version}")
            got = {symbol or UNKNOWN_SYMBOL: number for number, symbol in enumerate(words.symbols)}
            golden.expect(key, got=got, name="vocabulary")
    for row in range(len(golden.look("windows")) if golden.has("windows") else 0):
        _check_window(golden, row)


KINDS = ("artist", "genre")


def _check_case(golden: Golden, name: str, tables: LabelTables) -> None:
    where = ("cases", name)
    words = vocabulary(f"v{tables.version}")
    if golden.has(*where, "n_vocab"):
        golden.expect(*where, "n_vocab", got=words.n_vocab, name="n_vocab")
    labeller = Labeller(
        tables,
        words,
        max_bow_genre_size=golden.given(*where, "max_bow_genre_size"),
        n_tokens=golden.given(*where, "n_tokens"),
        sample_length=golden.given(*where, "sample_length"),
        notice=lambda line: None,
    )
    for row in range(len(golden.look(*where, "rows"))):
        _check_row(golden, (*where, "rows", row), labeller)
    if golden.has(*where, "batch"):
        _check_batch(golden, (*where, "batch"), labeller)
    for key, table, name_of in (
        ("artists_reverse", tables.artists, tables.artist_name),
        ("genres_reverse", tables.genres, lambda number: tables.genre_name([number])),
    ):
        if golden.has(*where, key):
            golden.expect(*where, key, got={number: name_of(number) for number in set(table.values())}, name=key)


def _check_row(golden: Golden, where: tuple[Any, ...], labeller: Labeller) -> None:
    asked = {key: golden.given(*where, key) for key in ("artist", "genre", "lyrics", "total_length", "offset")}
    if golden.has(*where, "error"):
        try:
            labeller.label(**asked)
        except UserError:
            golden.given(*where, "error")  # how it is worded is each program's own; that it is refused is the point
        else:
            golden.expect(*where, "error", got="accepted", name="refused labels")
        return
    label = labeller.label(**asked)
    got = {"y": label.y, "clean_lyrics": label.lyrics, "full_tokens": list(label.tokens.ids), "indices": label.indices}
    for key in got:
        if golden.has(*where, key):
            golden.expect(*where, key, got=got[key], name=f"rows.{key}")


def _check_batch(golden: Golden, where: tuple[Any, ...], labeller: Labeller) -> None:
    labels = labeller.batch(golden.given(*where, "metas"))
    golden.expect(*where, "y", got=labels.y, name="batch.y")
    y, indices = labeller.moved(labels, BY, SAMPLE_LENGTH)
    golden.expect(*where, "y_shifted", got=y, name="batch.y_shifted")
    golden.expect(*where, "indices", got=indices if labeller.n_tokens else None, name="batch.indices")
    said = [labeller.describe(row) for row in labels.y]
    golden.expect(*where, "describe", got=said, name="batch.describe")


def _check_window(golden: Golden, row: int) -> None:
    where = ("windows", row)
    keys = ("n_full", "n_tokens", "total_length", "offset", "duration")
    count, n_tokens, total, offset, duration = (golden.given(*where, key) for key in keys)
    if golden.has(*where, "error"):  # what is refused there (an odd n_tokens) may be possible here
        golden.given(*where, "error")
        return
    indices = lyric_window(count, n_tokens, total, offset, duration)
    golden.expect(*where, "indices", got=indices, name="windows.indices")
    song = [number % 79 + 1 for number in range(count)]
    got: Any = take(song, indices)
    want = golden.look(*where, "tokens")
    golden.expect(
        *where, "tokens", got=torch.tensor(got) if isinstance(want, torch.Tensor) else got, name="windows.tokens"
    )


CHECKS = {"jukebox_labels": check_labels}
