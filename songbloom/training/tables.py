"""The labeller of a prior that is there already, with the id tables of its checkpoint or from beside its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from songbloom.data.label_tables import LabelTables, table_files
from songbloom.data.labels import Labeller
from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.published import fetch as downloads
from songbloom.training.labelling import LABEL_IDS, complete_vocabulary, labeller_of, version_of
from songbloom.training.weights import open_weights


def tables_of(path: str, version: int) -> LabelTables | None:
    """The id tables of the prior whose weights are at ``path``: those in its checkpoint, or beside it.

    Nothing is fetched: publishers keep their tables elsewhere. What lies beside the place of a download counts.

    Args:
        path: a file, the address of a published one, or empty.
        version: of the tables, 2 or 3.

    Raises:
        UserError: tables that are there cannot be read.
    """
    if not path:
        return None
    if not downloads.is_address(path):
        local = Path(path)
        saved = open_weights(local, verify=False).content.get("hps") if local.is_file() else None
        if isinstance(saved, Mapping) and LABEL_IDS in saved:
            return LabelTables.from_plain(saved[LABEL_IDS])
    artists, genres = (downloads.target_of(path).parent / name for name in table_files(version))
    if not (artists.is_file() and genres.is_file()):
        return None
    return LabelTables.read(artists, genres, version)


def make_labeller(hps: Hyperparams, prior: Prior, notice: Callable[[str], None] | None = None) -> Labeller | None:
    """The labeller of a prior for sampling; None for a prior without labels. All ranks call it together.

    Args:
        hps: the prior's settings (:func:`settings_of`). ``label_tables`` counts where its checkpoint has no tables.
        prior: its sizes are enough.
        notice: hears of names that the tables don't know, and of a ``label_tables`` that is not read.

    Raises:
        UserError: there are no tables, or they hold more names than the prior.
    """
    if not prior.label_width:
        return None
    complete_vocabulary(hps)
    version, path = version_of(hps), str(hps.restore_prior)
    if LABEL_IDS in hps:
        tables: LabelTables | None = LabelTables.from_plain(hps[LABEL_IDS])
        if hps.label_tables:
            (notice or say)(f"note: {hps.label_tables} is not read: {path} holds the ids that it was trained with")
    elif hps.label_tables:
        tables = LabelTables.read_folder(hps.label_tables, version)
    else:
        tables = tables_of(path, version)
    if tables is None:
        artist, genre = table_files(version)
        place = downloads.target_of(path).parent
        raise UserError(
            f"{path or 'this prior'}: nothing tells which numbers its artists and genres have: put {artist} and "
            f"{genre} into {place}, or give --label_tables=FOLDER (for published models they lie in jukebox/data/ids "
            "of the Jukebox release)"
        )
    tables.check_fits(hps.y_bins)
    trained = prior.config.n_vocab
    if prior.n_tokens and not prior.config.copy_input and trained != hps.n_vocab:
        raise UserError(
            f"{path or 'this prior'}: was trained with a vocabulary of {trained} symbols, and {hps.lyrics_vocab!r} has "
            f"{hps.n_vocab}: give the --lyrics_vocab that it was trained with"
        )
    labeller = labeller_of(hps, sample_length=prior.sample_length, tables=tables, notice=notice)
    assert labeller.width == prior.label_width, (labeller.width, prior.label_width)
    return labeller
