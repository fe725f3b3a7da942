"""Songs as a SongBloom prior learns them: sketch codes, latents, the words of the same part, a style prompt.

Songs are encoded once, whole, through the cache (:mod:`songbloom.data.cache`), each rank its share of them; items are
slices of that. So workers hold no codec, and a segment's latents have heard what is before and after it. What is random
about an item depends on (seed, epoch, item) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from songbloom import distributed
from songbloom.audio.files import read_audio
from songbloom.data.cache import Cache, Entry
from songbloom.data.dataset import split_songs
from songbloom.data.fields import group_of
from songbloom.data.manifest import Song, songs_from
from songbloom.data.metadata import timed_text
from songbloom.errors import UserError, counted
from songbloom.lyrics.cropping import Span, crop, times_of
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.lyrics.phonemes import clean_lyrics
from songbloom.lyrics.song import LANGUAGES
from songbloom.lyrics.tokens import Tokens
from songbloom.sketch.codec import SketchedCodec
from songbloom.sketch.features import FRAME_RATE
from songbloom.sketch.files import checked_sketch, read_sketch

PRECOMPUTED = "precomputed"
_SEGMENT = 11  # sets these draws apart from others with the same seed
_NAMED = 5  # mismatches that are named one by one


@dataclass(frozen=True)
class EncodedSong:
    """What is known of a song, in files of the cache.

    Attributes:
        song: its line.
        frames: whole frames that both latents and sketch have.
        latents, prompt: entries of the cache; ``prompt`` is of the style prompt, or of the song in mono.
        sketch: the entry, or codes ``[T]`` that came precomputed.
        own_prompt: the song names a style prompt.
        tokens, times: its words, and when each is sung.
    """

    song: Song
    frames: int
    latents: Entry
    sketch: Entry | Tensor
    prompt: Entry
    own_prompt: bool
    tokens: Tokens
    times: list[Span]


@dataclass(frozen=True)
class WordSettings:
    """How words become tokens; fields are named as the hyperparameters."""

    language: str = "auto"
    lyrics_english: str = "arpabet"
    lyrics_reading: str = "auto"
    seconds_per_tag: float = 1.0
    clean_lyrics: bool = False
    process_lyrics: bool = True

    @classmethod
    def from_hps(cls, hps: Mapping[str, Any]) -> WordSettings:
        """Take them from any mapping of hyperparameters."""
        return cls(**{name: hps[name] for name in cls.__dataclass_fields__ if name in hps})

    def tokens(self, song: Song, vocabulary: PhonemeVocabulary) -> Tokens:
        """The tokens of a song's words; no words are no tokens.

        Raises:
            UserError: a tag's mistake, an unknown language, or a package that is missing; names the song.
        """
        text = song.lyrics or ""
        language = str(song.extra.get("language") or self.language)
        if not self.process_lyrics:
            language = "phonemes"
        if language not in LANGUAGES:
            raise UserError(f"{name_of(song)}: language is {language!r}; known are {', '.join(LANGUAGES)}")
        try:
            return vocabulary.tokenize(
                clean_lyrics(text) if self.clean_lyrics else text,
                english=self.lyrics_english,  # type: ignore[arg-type]
                reading=self.lyrics_reading,  # type: ignore[arg-type]
                language=language,
                seconds_per_tag=self.seconds_per_tag,
            )
        except UserError as error:
            raise UserError(f"{name_of(song)}: {error}") from error


def name_of(song: Song) -> str:
    """What messages call a song."""
    return f"song {song.idx!r} ({song.path})" if song.idx is not None else str(song.path)


# --- splits ----------------------------------------------------------------------------------------------------------


def split_by_group(songs: Sequence[Song], share: float, seed: int) -> tuple[list[Song], list[Song]]:
    """Divide songs so that a group (the field ``group``; without it each song is its own) is on one side.

    Returns:
        songs to train on, and songs to evaluate on: ``share`` of the groups, at least one of each.

    Raises:
        UserError: there is one group only.
    """
    named = [group_of(song.extra) or f"\0{song.path}" for song in songs]
    groups = sorted(set(named))
    if len(groups) < 2:
        raise UserError(f"--val_split={share:g}: {counted(len(songs), 'song')} of one group cannot be divided")
    kept = (len(groups) - max(1, round(len(groups) * share))) / len(groups)
    training, _ = split_songs(groups, max(kept, 1 / len(groups)), seed)
    chosen = {groups[i] for i in training}
    sides = [name in chosen for name in named]
    return [s for s, t in zip(songs, sides, strict=True) if t], [s for s, t in zip(songs, sides, strict=True) if not t]


def songs_of(hps: Mapping[str, Any]) -> tuple[list[Song], list[Song]]:
    """Songs to train on and to evaluate on, by ``data_jsonl``, ``val_jsonl``, the field ``split``, or ``val_split``.

    Raises:
        UserError: lists that cannot be read, or that share a group.
    """
    songs = songs_from(data_jsonl=hps["data_jsonl"])
    held = [song for song in songs if song.extra.get("split") in ("val", "test")]
    songs = [song for song in songs if song not in held]
    validation = [song for song in held if song.extra.get("split") == "val"]
    if hps["val_jsonl"]:
        validation = songs_from(data_jsonl=hps["val_jsonl"])
    elif not validation and hps["val_split"]:
        songs, validation = split_by_group(songs, float(hps["val_split"]), int(hps["split_seed"]))
    if not songs:
        raise UserError(
            f"--data_jsonl={hps['data_jsonl']}: every line is of the split val or test; nothing to train on"
        )
    return songs, validation


# --- encoding --------------------------------------------------------------------------------------------------------


@dataclass
class Encoder:
    """Makes latents and sketches of songs, through the cache.

    Attributes:
        codec: VAE and tokeniser.
        cache: where they are kept.
        codec_digest: fingerprint of the VAE's weights.
        sketch_mode: ``precomputed``, ``muq`` or ``builtin``.
        vocabulary, words: of the lyrics.
        require_length_match: refuse songs whose sketch has another length than their latents.
        mismatches: (song, frames of the sketch, frames of the latents) that were seen.
    """

    codec: SketchedCodec
    cache: Cache
    codec_digest: str
    sketch_mode: str
    vocabulary: PhonemeVocabulary
    words: WordSettings = field(default_factory=WordSettings)
    require_length_match: bool = False
    prompt_samples: int = 0
    mismatches: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokeniser = self.codec.tokeniser
        if self.sketch_mode == PRECOMPUTED:
            return
        if tokeniser is None:
            raise UserError(
                f"--sketch_mode={self.sketch_mode} needs a codebook: give --restore_sketch=FILE (train one: train.py "
                "--vq --hps=sketch_vq), or --sketch_mode=precomputed for songs with sketch_path"
            )
        name = tokeniser.features.name
        if name != self.sketch_mode:
            raise UserError(
                f"--sketch_mode={self.sketch_mode}, but the codebook was made for features {name!r}: give the codebook "
                f"of those features, or --sketch_mode={name}"
            )

    def songs(self, songs: Sequence[Song], say: Callable[[str], None] = lambda line: None) -> list[EncodedSong]:
        """Encode what the cache lacks, each rank its share; all ranks call it together and get the same.

        Raises:
            UserError: on every rank, what any of them met.
        """
        place = distributed.world()
        problem, before = "", list(self.mismatches)
        told, step = 0, -(-len(songs) // 10)
        try:
            for number, song in enumerate(songs):
                if number % place.size == place.rank:
                    self.encode(song)
                    done = number + place.size  # as other ranks are about as far
                    if place.is_main and told + step <= done < len(songs):
                        told = done
                        say(f"encoding songs: {done} of {len(songs)}")
        except UserError as error:
            problem = str(error)
        problems = [each for each in distributed.gather_objects(problem) if each]
        if problems:
            raise UserError(problems[0])
        if place.is_main and songs:
            say(f"encoding songs: {len(songs)} of {len(songs)}")
        self.mismatches = before
        counts = self.cache.counts
        hits, made = counts.hits, counts.made
        self.cache = _reading(self.cache)
        encoded = [self.encode(song) for song in songs]
        counts.hits, counts.made = hits, made  # what was asked for once counts once
        return encoded

    def encode(self, song: Song) -> EncodedSong:
        """One song, from the cache or anew.

        Raises:
            UserError: it cannot be read, has no sketch where one is needed, or is shorter than a frame.
        """
        digest = self.cache.digests.of(song.path)
        latents = self._entry("latents", digest)
        found = self.cache.get(latents, lambda: self._latents(self._read(song.path)))
        sketch, length = self._sketch(song, digest)
        frames = min(len(found), length)
        if len(found) != length:
            if self.require_length_match:
                raise UserError(
                    f"{name_of(song)}: its sketch has {length} frames and its latents {len(found)} "
                    "(--require_length_match): is it of this recording?"
                )
            self.mismatches.append((name_of(song), length, len(found)))
        own = song.extra.get("prompt_wav")
        if own is not None and (not isinstance(own, str) or not own):
            raise UserError(f"{name_of(song)}: prompt_wav must be the path of a file")
        path = (song.folder or song.path.parent) / Path(own).expanduser() if own else song.path
        samples = self.prompt_samples if own else 0
        prompt = self._entry("prompt", self.cache.digests.of(path), (0, samples))
        self.cache.get(prompt, lambda: self._latents(self._read(path, mono=True, samples=samples)))
        tokens = self.words.tokens(song, self.vocabulary)
        seconds = len(found) / FRAME_RATE
        return EncodedSong(song, frames, latents, sketch, prompt, bool(own), tokens, self._times(song, tokens, seconds))

    def _entry(self, kind: str, digest: str, segment: tuple[int, int] = (0, 0)) -> Entry:
        settings = {"sample_rate": self.codec.sample_rate, "channels": self.codec.channels}
        return Entry(kind, digest, self.codec_digest, segment, settings)

    def _read(self, path: Path, *, mono: bool = False, samples: int = 0) -> Tensor:
        audio = read_audio(
            path, sample_rate=self.codec.sample_rate, channels=self.codec.channels, length=samples or None
        )
        heard = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))[None]
        return heard.mean(dim=2, keepdim=True) if mono else heard

    def _latents(self, audio: Tensor) -> Tensor:
        return self.codec.encode_latents(audio)[0].cpu()

    def _sketch(self, song: Song, digest: str) -> tuple[Entry | Tensor, int]:
        if self.sketch_mode == PRECOMPUTED:
            codes = self._precomputed(song)
            return codes, len(codes)
        tokeniser = self.codec.tokeniser
        assert tokeniser is not None
        entry = Entry("sketch", digest, tokeniser.digest, (0, 0), {"sample_rate": self.codec.sample_rate})
        made = self.cache.get(entry, lambda: tokeniser.encode(self._read(song.path), self.codec.sample_rate)[0].cpu())
        return entry, len(made)

    def _precomputed(self, song: Song) -> Tensor:
        inline, path = song.extra.get("sketch_tokens"), song.extra.get("sketch_path")
        if inline is not None:
            return checked_sketch(inline, self.codec.l_bins, f"{name_of(song)}: sketch_tokens")
        if not isinstance(path, str) or not path:
            raise UserError(
                f"{name_of(song)}: has no sketch_path: give it, or take sketches from the sound "
                "(--sketch_mode=builtin or muq, with --restore_sketch=CODEBOOK)"
            )
        return read_sketch((song.folder or song.path.parent) / Path(path).expanduser(), self.codec.l_bins)

    def _times(self, song: Song, tokens: Tokens, seconds: float) -> list[Span]:
        told = song.extra.get("sections")
        sections: list[Span] | None = None
        if isinstance(told, list) and len(told) == len(tokens.sections):
            try:
                sections = [(float(one["start"]), float(one["end"])) for one in told]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{name_of(song)}: sections need start and end in seconds") from error
        try:
            return times_of(tokens, seconds, timed=timed_text(song), sections=sections)
        except UserError as error:
            raise UserError(f"{name_of(song)}: {error}") from error

    def verify(self, songs: Sequence[EncodedSong], most: int) -> list[str]:
        """Lines that tell how many of the first ``most`` songs (0: all) have sketches of another length."""
        names = {name_of(song.song) for song in (songs[:most] if most else songs)}
        wrong = [each for each in self.mismatches if each[0] in names]
        lines = [f"[verify] checked={len(names)} mismatches={len(wrong)}"]
        lines += [f"[verify] {name}: sketch {a} frames, latents {b}" for name, a, b in wrong[:_NAMED]]
        return lines


class _Reading(Cache):
    """A cache that is only read from: what was made anew is there."""

    def __init__(self, of: Cache) -> None:
        super().__init__(of.folder)
        self.digests, self.counts = of.digests, of.counts


def _reading(cache: Cache) -> Cache:
    return cache if isinstance(cache, _Reading) else _Reading(cache)


# --- items -----------------------------------------------------------------------------------------------------------


class SongBloomDataset(Dataset[dict[str, Any]]):
    """Segments of encoded songs.

    Args:
        songs: encoded.
        cache: where their latents and sketches are.
        segment: most frames of an item; it has fewer if the song is shorter.
        patch_size: items are whole patches.
        lyric_tokens: most tokens of an item's words.
        prompt_frames: most frames of its prompt.
        prompt_length: frames of a prompt that is cut from the song.
        strategy: ``start`` or ``random``.
        seed: of all draws.

    Raises:
        UserError: no song is as long as a patch.
    """

    def __init__(
        self,
        songs: Sequence[EncodedSong],
        cache: Cache,
        *,
        segment: int,
        patch_size: int,
        lyric_tokens: int,
        prompt_frames: int,
        prompt_length: int = 0,
        strategy: str = "start",
        seed: int = 0,
    ) -> None:
        self.cache, self.patch_size, self.seed, self.strategy = cache, patch_size, seed, strategy
        self.segment = segment // patch_size * patch_size
        self.lyric_tokens, self.prompt_frames = lyric_tokens, prompt_frames
        self.prompt_length = min(prompt_length or prompt_frames, prompt_frames)
        self.songs = [song for song in songs if song.frames >= patch_size]
        if not self.segment:
            raise UserError(f"segments of {segment} frames are shorter than a patch of {patch_size}: make them longer")
        if not self.songs:
            raise UserError(
                f"none of {counted(len(songs), 'song')} is as long as a patch, {patch_size / FRAME_RATE:g} s"
            )
        self.items = [
            number
            for number, song in enumerate(self.songs)
            for _ in range(max(1, math.ceil(song.frames / self.segment)) if strategy == "random" else 1)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """An item as it is in epoch 0; :meth:`item` gives those of any epoch."""
        return self.item(0, item)

    def place(self, epoch: int, item: int) -> tuple[int, int, int, int]:
        """(song, first frame, frames, first frame of a prompt cut from it) of an item in an epoch."""
        number = self.items[item]
        total = self.songs[number].frames
        length = min(total, self.segment) // self.patch_size * self.patch_size
        draws = np.random.default_rng([_SEGMENT, self.seed & 0xFFFFFFFF, epoch, item])
        start = int(draws.integers(0, total - length + 1)) if self.strategy == "random" else 0
        return number, start, length, self._elsewhere(draws, total, start, start + length)

    def _elsewhere(self, draws: np.random.Generator, total: int, start: int, end: int) -> int:
        """Where a prompt is cut: outside the segment if the song has room there, else as far from its middle."""
        wanted = min(self.prompt_length, total)
        before, after = start - wanted + 1, total - wanted - end + 1
        choices = max(0, before) + max(0, after)
        if choices:
            drawn = int(draws.integers(choices))
            return drawn if drawn < before else end + drawn - max(0, before)
        return 0 if start + end > total else total - wanted

    def item(self, epoch: int, item: int) -> dict[str, Any]:
        """An item as it is in the given epoch.

        Returns:
            ``tokens`` int64 ``[segment]``, ``latents`` float32 ``[segment, W]``, ``length`` frames that are real,
            ``ends`` whether the song ends there; ``lyrics`` int64 ``[lyric_tokens]`` with ``words`` real ones;
            ``prompt`` float32 ``[prompt_frames, W]`` with ``valid`` real frames; ``item``, ``epoch``.

        Raises:
            UserError: what was encoded is gone from the cache.
        """
        number, start, length, at = self.place(epoch, item)
        song = self.songs[number]
        latents = self._read(song.latents, song)[start : start + length]
        codes = song.sketch if isinstance(song.sketch, Tensor) else self._read(song.sketch, song)
        prompt = self._read(song.prompt, song)
        prompt = prompt[: self.prompt_frames] if song.own_prompt else prompt[at : at + self.prompt_length]
        ids = self._words(song, start, length)[: self.lyric_tokens]
        words = torch.zeros(self.lyric_tokens, dtype=torch.int64)
        words[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return {
            "tokens": _filled(codes[start : start + length], self.segment),
            "latents": _filled(latents, self.segment),
            "length": length,
            "ends": int(start + length > song.frames - self.patch_size),
            "lyrics": words,
            "words": len(ids),
            "prompt": _filled(prompt, self.prompt_frames),
            "valid": len(prompt),
            "item": item,
            "epoch": epoch,
        }

    def _read(self, entry: Entry, song: EncodedSong) -> Tensor:
        found = self.cache.read(entry)
        if found is None:
            raise UserError(
                f"{name_of(song.song)}: what was encoded of it is gone from {self.cache.folder}; run the command again"
            )
        return found

    def _words(self, song: EncodedSong, start: int, length: int) -> list[int]:
        """All tokens of the frames from ``start`` on, or of the song if that is all of it."""
        if length > song.frames - self.patch_size:
            return list(song.tokens.ids)
        kept = crop(song.tokens, song.times, start / FRAME_RATE, (start + length) / FRAME_RATE)
        return [song.tokens.ids[i] for i in kept]

    def cut_lyrics(self) -> int:
        """How many items of epoch 0 have more words than ``lyric_tokens`` hold."""
        places = (self.place(0, item)[:3] for item in range(len(self)))
        return sum(len(self._words(self.songs[song], *part)) > self.lyric_tokens for song, *part in places)


def _filled(part: Tensor, length: int) -> Tensor:
    made = part.new_zeros(length, *part.shape[1:])
    made[: len(part)] = part
    return made
