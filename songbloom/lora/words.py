"""Lyric tables for more symbols: new rows start from those that sound alike, and only they need be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from songbloom.errors import UserError, counted
from songbloom.lyrics.phoneme_vocabulary import starting_rows
from songbloom.lyrics.phonemes import PUBLISHED
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.published.fetch import fetch
from songbloom.published.songbloom.prior import vocabulary_settings
from songbloom.training.weights import open_weights
from songbloom.transformer.lora import Rows, add_rows

ROWS = ("auto", "none", "all")


@dataclass(frozen=True)
class Words:
    """The lyric vocabulary of a base and that of its adapters.

    Attributes:
        known: the base's symbols.
        wanted: the adapters', which begin with these.
        learned: whether the base has learned all that it knows; published models have not learned Japanese.
        vocabulary: what the base's is called.
    """

    known: tuple[str, ...]
    wanted: tuple[str, ...]
    learned: bool
    vocabulary: str = "songbloom"


def base_words(path: str, wanted: Sequence[str]) -> Words:
    """What the lyric table of a SongBloom prior's file was trained with: what a checkpoint of ours keeps, else the
    published vocabulary.

    Args:
        path: the file, or its address.
        wanted: the vocabulary that the song texts are read with.

    Raises:
        UserError: it cannot be read.
    """
    saved = open_weights(fetch(path), verify=False).content.get("hps")
    symbols = saved.get("lyric_symbols") if isinstance(saved, Mapping) else None
    if symbols:
        return Words(
            tuple(symbols), tuple(wanted), learned=True, vocabulary=str(saved.get("lyrics_vocab") or "songbloom")
        )
    return Words(PUBLISHED, tuple(wanted), learned=False)


def grow_vocabulary(prior: SongBloomPrior, symbols: Sequence[str]) -> None:
    """Give a prior's lyric table a row for each of ``symbols``; those after its last are zeros for now.

    Raises:
        UserError: there are fewer symbols than rows.
    """
    table = prior.lyrics.tokens.weight
    known, width = table.shape
    if len(symbols) < known:
        raise UserError(
            f"the vocabulary has {counted(len(symbols), 'symbol')}, and this prior knows {known}: take a larger one"
        )
    if len(symbols) > known:
        more = table.new_zeros(len(symbols) - known, width)
        prior.lyrics.tokens.weight = nn.Parameter(torch.cat([table.detach(), more]), requires_grad=table.requires_grad)
    prior.config = replace(prior.config, **vocabulary_settings(tuple(symbols)))
    prior.lyrics.config = prior.config


def started_rows(
    table: Tensor, known: Sequence[str], wanted: Sequence[str], *, learned: bool
) -> tuple[list[int], Tensor]:
    """Which rows of a lyric table begin elsewhere than they are, and as what.

    Args:
        table: ``[>= len(known), W]``, trained.
        known: the symbols that it was trained with.
        wanted: the symbols that it is to have.
        learned: all known rows have been trained. No published model has learned those that only Japanese has.

    Returns:
        Ids in ``wanted``, and their first values ``[ids, W]``: the mean of the nearest symbols' rows (a symbol without
        relations begins as the mean of all rows).
    """
    ids, values = [], []
    for row, sources in starting_rows(known, wanted).items():
        if sources == (row,) or (learned and row < len(known)):
            continue
        ids.append(row)
        values.append(table[list(sources)].mean(0) if sources else table[: len(known)].mean(0))
    return ids, torch.stack(values) if values else table.new_zeros(0, table.shape[1])


def train_words(
    prior: SongBloomPrior, known: Sequence[str], wanted: Sequence[str], rows: str = "auto", *, learned: bool = True
) -> Rows | None:
    """Grow a prior's lyric table to ``wanted`` symbols and let rows of it be trained beside the table.

    Args:
        prior: with the weights of training with ``known`` symbols.
        known, wanted: vocabularies; the rows of symbols that both have at one place stay where they are.
        rows: ``auto`` trains new symbols, and those that were not learned; ``all`` every row; ``none`` leaves new
            rows as they start.
        learned: all known rows have been trained, as in a model of one's own; False for published models.

    Raises:
        UserError: another choice, or a smaller vocabulary.
    """
    if rows not in ROWS:
        raise UserError(f"--lora_train_rows={rows}: it must be one of {', '.join(ROWS)}")
    before = prior.lyrics.tokens.weight.detach().clone()
    if list(wanted[: len(known)]) != list(known):
        raise UserError(
            "the vocabulary does not begin with the symbols that this prior was trained with: take one that does"
        )
    ids, values = started_rows(before, known, wanted, learned=learned)
    grow_vocabulary(prior, wanted)
    table = prior.lyrics.tokens.weight
    if rows == "none":
        new = [index for index, row in enumerate(ids) if row >= len(known)]
        with torch.no_grad():
            table[[ids[index] for index in new]] = values[new]
        return None
    if rows == "all":
        started = torch.cat([before, before.new_zeros(len(wanted) - len(before), before.shape[1])])
        started[ids] = values
        ids, values = list(range(len(wanted))), started
    if not ids:
        return None
    return add_rows(prior.lyrics.tokens, torch.tensor(ids, dtype=torch.int64), values)
