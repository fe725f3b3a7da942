"""Tokens of songs' words and their times, remembered in one file beside the data; deleting it loses time only.

An entry is found by a digest of the words, their times as given, and all that decides what becomes of them: the
vocabulary, its options, and the code and word lists of :mod:`songbloom.lyrics`. So an entry is never out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from songbloom import lyrics
from songbloom.data.labels import Labeller
from songbloom.errors import UserError
from songbloom.files import written_beside
from songbloom.lyrics.timed_text import TimedText
from songbloom.lyrics.tokens import Problem

CACHE_NAME = ".songbloom_words.npz"
_READERS = ("pyopenjtalk", "pyopenjtalk-plus")  # packages on which readings depend
_KEY = 16  # bytes of a digest


@dataclass(frozen=True)
class Words:
    """What became of a song's words.

    Attributes:
        ids: the tokens.
        times: start and end of each in seconds, None for one without; None where the song has none.
        problems: what did not become tokens.
        fault: why the times that were given cannot be used; empty if they can, or there are none.
    """

    ids: tuple[int, ...]
    times: tuple[tuple[float, float] | None, ...] | None
    problems: tuple[Problem, ...] = ()
    fault: str = ""


@cache
def _code() -> str:
    """A digest of everything that turns text into tokens."""
    digest = hashlib.blake2b(digest_size=_KEY)
    folder = Path(lyrics.__file__).parent
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and "__pycache__" not in each.parts):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    for name in _READERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{name} {metadata.version(name)}\0".encode())
    return digest.hexdigest()


class WordCache:
    """The entries of one file; one that is missing, damaged or cannot be written is no error.

    Args:
        path: of the file; None: nothing is kept.
        labeller: whose vocabulary and options the words are for.
    """

    def __init__(self, path: Path | None, labeller: Labeller) -> None:
        self._path = path
        vocabulary = labeller.vocabulary
        rules = [type(vocabulary).__name__, vocabulary.name, vocabulary.symbols, sorted(labeller.options.items())]
        self._rules = f"{_code()}\0{rules!r}\0"
        self._entries = _read(path) if path is not None else {}
        self._changed = False

    def key(self, text: str, timed: TimedText | None) -> bytes:
        """What the entry of these words is found by."""
        content = f"{self._rules}{text}\0{timed!r}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=_KEY).digest()

    def get(self, key: bytes) -> Words | None:
        """The entry, if there is one."""
        return self._entries.get(key)

    def put(self, key: bytes, words: Words) -> None:
        """Remember an entry."""
        self._entries[key] = words
        self._changed = True

    def save(self) -> None:
        """Write the file anew, in one step, if anything is new."""
        if self._path is None or not self._changed:
            return
        words = list(self._entries.values())
        rows = [row for each in words for row in each.times or ()]
        times = np.array([(np.nan, np.nan) if row is None else row for row in rows], np.float64).reshape(-1, 2)
        remarks = [[[astuple(problem) for problem in each.problems], each.fault] for each in words]
        arrays: dict[str, Any] = {
            "keys": np.frombuffer(b"".join(self._entries), np.uint8).reshape(-1, _KEY),
            "counts": np.array([(len(each.ids), each.times is not None) for each in words], np.int64),
            "ids": np.array([one for each in words for one in each.ids], np.int32),
            "times": times,
            "remarks": np.frombuffer(json.dumps(remarks).encode(), np.uint8),
        }
        with contextlib.suppress(UserError), written_beside(self._path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **arrays)
            self._changed = False


def _read(path: Path) -> dict[bytes, Words]:
    """The entries of a file; none if it holds something else."""
    entries: dict[bytes, Words] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, counts, ids, times, remarks = (file[name] for name in ("keys", "counts", "ids", "times", "remarks"))
        said: Sequence[Any] = json.loads(remarks.tobytes())
        word = row = 0
        for key, (count, timed), (problems, fault) in zip(keys, counts.tolist(), said, strict=True):
            spans = tuple(
                None if span[0] != span[0] else (span[0], span[1]) for span in times[row : row + count].tolist()
            )
            entries[key.tobytes()] = Words(
                tuple(ids[word : word + count].tolist()),
                spans if timed else None,
                tuple(Problem(*problem) for problem in problems),
                str(fault),
            )
            word, row = word + count, row + (count if timed else 0)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}
    return entries
