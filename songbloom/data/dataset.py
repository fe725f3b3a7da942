"""Chunks of audio, cut from songs at places that are decided by (seed, epoch, item) alone.

All songs of a split are laid end to end and cut into chunks of ``sample_length``; a chunk that would cross from one
song into the next is moved into the song that holds its middle (Jukebox's chunk indexing). Training and test chunks
come from different songs.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from songbloom import distributed
from songbloom.audio.files import AudioError, read_audio
from songbloom.audio.mix import to_mono
from songbloom.data.fields import meaning_of, near_field
from songbloom.data.index import IndexedSong, build_index, cache_for
from songbloom.data.labels import Labeller
from songbloom.data.manifest import Song, songs_from
from songbloom.data.metadata import Hook
from songbloom.data.song_labels import prepared
from songbloom.data.word_cache import CACHE_NAME as WORDS_NAME
from songbloom.errors import UserError, counted, did_you_mean

SPLITS = ("train", "test")
_SHIFTS_AND_MIX, _REPLACEMENT, _SPLIT = 1, 2, 3  # what a draw is for, so that draws for different things differ
_NAMED = 3  # misspelt fields that are named one by one
_told: set[str] = set()  # notes that this process has printed: train and test sets have the same songs
_ATTEMPTS = 20  # items tried in place of one that cannot be read


# --- the arithmetic of chunks ----------------------------------------------------------------------------------------


def chunk_count(durations: Sequence[int] | np.ndarray, sample_length: int) -> int:
    """Chunks in songs of the given lengths (samples): ``floor(sum / sample_length)``."""
    return int(np.sum(durations, dtype=np.int64)) // sample_length


def locate(item: int, shift: int, sample_length: int, ends: np.ndarray) -> tuple[int, int]:
    """Where chunk ``item``, moved by ``shift`` samples, lies.

    Args:
        item: number of the chunk, from 0.
        shift: samples, ``-(sample_length // 2) <= shift < sample_length // 2``.
        sample_length: samples a chunk; no song may be shorter.
        ends: cumulative sum of the songs' lengths, int64 ``[songs]``.

    Returns:
        (song, offset in the song), with the whole chunk inside the song.
    """
    half = sample_length // 2
    offset = item * sample_length + shift
    song = int(np.searchsorted(ends, offset + half, side="left"))  # the song that holds the chunk's middle
    start, end = (int(ends[song - 1]) if song else 0), int(ends[song])
    if offset > end - sample_length:
        offset = max(start, offset - half)
    elif offset < start:
        offset = min(end - sample_length, offset + half)
    offset = min(offset, end - sample_length)  # an odd sample_length would else reach one sample too far
    return song, offset - start


def split_size(length: int, fraction: float) -> int:
    """How many of ``length`` things are for training: ``floor(length * fraction)``."""
    return int(length * fraction)


def split_songs(names: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide songs into training and test set.

    Songs are ordered by a hash of (seed, name), and the first ``floor(n * fraction)``, but at least one, are for
    training; so when songs are added, few change sides.

    Returns:
        positions of the training songs and of the test songs, each in the order of ``names``.
    """

    def rank(i: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{names[i]}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

    order = sorted(range(len(names)), key=rank)
    size = min(len(names), max(1, split_size(len(names), fraction)))
    return sorted(order[:size]), sorted(order[size:])


# --- the data set ----------------------------------------------------------------------------------------------------


class ChunkDataset(Dataset[dict[str, Any]]):
    """Chunks of audio of one split; every rank builds it at the same time.

    Args:
        hps: settings: ``audio_files_dir`` or ``data_jsonl``; ``sr`` (Hz), ``channels`` (2: songs are read in stereo and
            then mixed to mono; 1: read in mono), ``sample_length`` (samples), ``min_duration`` and ``max_duration``
            (seconds), ``aug_shift``, ``aug_blend``, ``train_test_split`` (share of the songs), ``seed``. With ``vae``
            songs are read in ``vae_channels`` and not mixed.
        split: ``train`` or ``test``. Test chunks are neither shifted nor blended.
        labeller: makes label vectors, which items then have.
        get_metadata: knows more about songs than the data say (:mod:`songbloom.data.metadata`).

    Raises:
        UserError: settings that cannot work, no usable song, a test set without songs, or labels that cannot be made.

    Attributes:
        songs: the split's songs, with what is known about each and their total length in samples at ``sr``.
    """

    def __init__(
        self,
        hps: Mapping[str, Any],
        split: str = "train",
        *,
        labeller: Labeller | None = None,
        get_metadata: Hook | None = None,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"split {split!r} is not one of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
        self.split = split
        self.sample_rate, self.sample_length = int(hps["sr"]), int(hps["sample_length"])
        self.mixed = not hps.get("vae")
        self.channels = int(hps.get("channels", 2) if self.mixed else hps["vae_channels"])
        if self.sample_length < 1:
            raise UserError(
                f"sample_length={self.sample_length}: a chunk needs at least one sample; set --sample_length"
            )
        if self.channels not in (1, 2):
            raise UserError(f"channels={self.channels}: songs are read with 1 or 2 channels and mixed to mono")
        self.seed = int(hps.get("seed", 0))
        self.shifts = bool(hps.get("aug_shift")) and split == "train"
        self.blends = bool(hps.get("aug_blend")) and split == "train" and self.channels == 2 and self.mixed
        minimum, maximum = duration_limits(hps)
        source: dict[str, Any] = {key: hps.get(key) or None for key in ("audio_files_dir", "data_jsonl")}
        where = next((f"--{key}={value}" for key, value in source.items() if value), "data")
        # Rank 0 alone looks at the disk, so that a mistake is told once and all ranks see the same songs.
        songs = songs_from(**source, sidecars=labeller is not None) if distributed.world().is_main else []
        for line in misspelt(songs):
            if line not in _told:
                _told.add(line)
                distributed.say(line)
        index = build_index(
            songs,
            sample_rate=self.sample_rate,
            min_duration=minimum,
            max_duration=maximum,
            cache=cache_for(**source),
            where=where,
            least=least_length(hps, minimum),
        )
        root = Path(str(source["audio_files_dir"] or Path(str(source["data_jsonl"])).parent)).expanduser().absolute()
        fraction = float(hps.get("train_test_split", 0.9))
        if not 0 <= fraction <= 1:
            raise UserError(f"train_test_split={fraction:g}: the share of songs to train on must lie in 0..1")
        sides = split_songs([_name(song, root) for song in index.songs], fraction, self.seed)
        self.songs: list[IndexedSong] = [index.songs[i] for i in sides[SPLITS.index(split)]]
        if not self.songs:
            raise UserError(
                f"{where}: the test set is empty, because train_test_split={fraction:g} of "
                f"{counted(len(index.songs), 'song')} "
                "leaves none: lower --train_test_split or add songs"
            )
        self.labeller = labeller
        self.tells_sung = bool(hps.get("alignment_loss_fraction")) and labeller is not None and labeller.reads_lyrics
        if labeller is not None:
            words = cache_for(name=WORDS_NAME, **source)
            self._known = prepared(
                labeller,
                self.songs,
                hook=get_metadata,
                test=split == "test",
                others=len(index.songs) - len(self.songs),
                cache=words,
            )
        self._ends = np.cumsum([song.total_length for song in self.songs], dtype=np.int64)
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return chunk_count([song.total_length for song in self.songs], self.sample_length)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One chunk, as it is in epoch 0 (:meth:`item` reads those of any epoch).

        Returns:
            ``audio`` float32 ``[sample_length, C]``, of one channel unless it is for a VAE; ``song``, a position in
            ``.songs``; ``offset`` in that song, in samples; ``replaced``: 1 if another item took the place of one that
            cannot be read, else 0; with a labeller also ``labels`` int64 ``[width]``, and ``sung`` float32
            ``[n_tokens, 2]`` (:meth:`songbloom.data.labels.Labeller.sung`) for a prior that is taught to align.

        Raises:
            UserError: neither this item nor any of many others can be read.
        """
        return self.item(0, item)

    def item(self, epoch: int, item: int) -> dict[str, Any]:
        """A chunk as it is in the given epoch; as ``self[item]``."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        chosen = item
        problem = ""
        for attempt in range(_ATTEMPTS):
            song, offset, mix = self.place(epoch, chosen)
            try:
                audio = self._read(song, offset, mix)
            except (AudioError, OSError) as error:
                problem = str(error)
                self._warn(self.songs[song].song.path, problem)
                chosen = int(self._draws(_REPLACEMENT, epoch, item, attempt).integers(len(self)))
                continue
            found = {"audio": audio, "song": song, "offset": offset, "replaced": int(attempt > 0)}
            if self.labeller is not None:
                where = self.songs[song].total_length, offset
                found["labels"] = self.labeller.vector(self._known[song], *where)
                if self.tells_sung:
                    found["sung"] = self.labeller.sung(self._known[song], *where)
            return found
        raise UserError(
            f"{_ATTEMPTS} chunks in a row cannot be read, the last because of {problem}; is the data still there?"
        )

    def place(self, epoch: int, item: int) -> tuple[int, int, float]:
        """(song, offset in samples, share of the left channel) of an item in an epoch, without reading it."""
        draws = self._draws(_SHIFTS_AND_MIX, epoch, item)
        half = self.sample_length // 2
        shift = int(draws.integers(-half, half)) if self.shifts and half else 0
        mix = float(draws.uniform()) if self.blends else 0.5
        song, offset = locate(item, shift, self.sample_length, self._ends)
        return song, offset, mix

    def _read(self, song: int, offset: int, mix: float) -> np.ndarray:
        audio = read_audio(
            self.songs[song].song.path,
            sample_rate=self.sample_rate,
            offset=offset,
            length=self.sample_length,
            channels=self.channels,
        )
        if len(audio) < self.sample_length:
            raise AudioError(f"{self.songs[song].song.path}: has become shorter than it was when it was indexed")
        audio = to_mono(audio[None], mix)[0] if self.mixed else audio
        return np.ascontiguousarray(audio, dtype=np.float32)

    def _draws(self, purpose: int, *counters: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.seed & 0xFFFFFFFF, *counters])

    def _warn(self, path: Path, problem: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            print(f"warning: {problem}; other chunks take the place of its chunks", file=sys.stderr, flush=True)


def _name(song: IndexedSong, root: Path) -> str:
    """What a song is called in the split: its path in the data, so that data that moves is split the same."""
    path = song.song.path
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def misspelt(songs: Sequence[Song]) -> list[str]:
    """A line for each field of a JSONL file that nothing reads and that is near one that is read; at most three."""
    near: dict[tuple[str, frozenset[str]], str] = {}
    found = []
    for song in songs if songs and songs[0].where else ():  # files beside songs may say anything
        there = {key for key in ("artist", "genre", "lyrics", "idx") if getattr(song, key) is not None}
        record = frozenset({"audio_path", *there, *song.extra})
        for name in song.extra:
            if meaning_of(name) is None:
                if (name, record) not in near:
                    near[name, record] = near_field(name, record)
                if near[name, record]:
                    found.append(f"note: {song.where}: nothing reads the field {name!r}{near[name, record]}")
    more = len(found) - _NAMED
    if more > 0:
        found[_NAMED:] = [f"note: {counted(more, 'more field')} like these: python -m songbloom.data.check lists all"]
    return found


def least_length(hps: Mapping[str, Any], minimum: float) -> str:
    """Why songs must last ``minimum`` seconds, and which option to lower."""
    rate, length = int(hps["sr"]), int(hps["sample_length"])
    key, value, what = "sample_length", length, f"--sample_length={length} at {rate} Hz is"
    if hps.get("prior") and hps.get("n_ctx"):
        key, value = "n_ctx", int(hps["n_ctx"])
        what = f"--n_ctx={value} codes of {length // value} samples at {rate} Hz are"
    chunk = f"{what} {length / rate:.1f} s"
    if hps.get("min_duration") == minimum:
        return f"lower --min_duration ({chunk}, the least)"
    return f"{chunk}: lower --{key} for shorter songs"


def duration_limits(hps: Mapping[str, Any]) -> tuple[float, float | None]:
    """``min_duration`` and ``max_duration`` in seconds; by default whole seconds that hold a chunk, and no limit.

    For a prior with labels ``min_duration`` is first of all the lower end of its timing labels, and may be shorter than
    a chunk; songs must hold one all the same.

    Raises:
        UserError: ``min_duration`` is shorter than a chunk, or not below ``max_duration``.
    """
    sample_rate, sample_length = int(hps["sr"]), int(hps["sample_length"])
    chunk = sample_length / sample_rate
    given, maximum = hps.get("min_duration"), hps.get("max_duration")
    minimum = float(math.ceil(chunk) if given is None else given)
    if minimum < chunk and hps.get("prior") and hps.get("labels"):
        minimum = float(math.ceil(chunk))
    if minimum < chunk:
        raise UserError(
            f"min_duration={minimum:g} s is shorter than a chunk (sample_length {sample_length} at {sample_rate} Hz = "
            f"{chunk:.3f} s): raise --min_duration or lower --sample_length"
        )
    if maximum is not None and float(maximum) <= minimum:
        raise UserError(f"max_duration={maximum:g} s leaves no song: it must be more than min_duration, {minimum:g} s")
    return minimum, None if maximum is None else float(maximum)
