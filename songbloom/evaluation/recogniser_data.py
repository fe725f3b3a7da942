"""What the recogniser is trained on: sung songs whose phonemes have times, changed in every way that songs differ.

A crop is the singer alone, the singer with a band (its own or another song's, soft or loud), or no singer at all: a
band, noise, or tones. Then come another size of throat (resampling, which moves pitch and formants), a room, noise,
another level, another equaliser, a narrower band, and the roughness of codecs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from songbloom.audio.files import read_audio
from songbloom.data.manifest import Song
from songbloom.errors import UserError, reason
from songbloom.evaluation.phonemes import CLASS_OF
from songbloom.evaluation.recogniser import FRAME_SECONDS, RecogniserConfig
from songbloom.lyrics.tags import find_tags

_SILENT = ("pau", "sil", "br", "sp")


@dataclass(frozen=True)
class SungSong:
    """A song to learn from.

    Attributes:
        song: its line of the manifest.
        vocals: int16 ``[T]``, the singer alone.
        backing: int16 ``[T]``, the band alone, or None.
        edges: start and end of each phoneme in seconds ``[P, 2]``.
        classes: of each phoneme ``[P]``.
    """

    song: Song
    vocals: np.ndarray
    backing: np.ndarray | None
    edges: np.ndarray
    classes: np.ndarray


def read_phonemes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times ``[P, 2]`` in seconds and classes ``[P]`` of a corpus's ``phonemes.json``, without silences.

    Raises:
        UserError: it is no such file, or has phonemes that Open JTalk does not name.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["phonemes"]
        rows = [(float(r["start"]), float(r["end"]), str(r["phoneme"])) for r in rows if r["phoneme"] not in _SILENT]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no phonemes with times can be read there ({reason(error)})") from error
    strange = sorted({phoneme for _, _, phoneme in rows} - set(CLASS_OF))
    if strange:
        raise UserError(f"{path}: phoneme {strange[0]!r} is none of Japanese in Open JTalk's names")
    edges = np.array([(start, end) for start, end, _ in rows], np.float64).reshape(-1, 2)
    return edges, np.array([CLASS_OF[phoneme] for _, _, phoneme in rows], np.int64)


def read_song(song: Song, rate: int) -> SungSong:
    """The tracks and phonemes of a song of the sung corpus.

    Raises:
        UserError: its line lacks ``vocals_path`` or ``phonemes_path``, or these cannot be read.
    """

    def place(key: str) -> Path | None:
        given = song.extra.get(key)
        return (song.folder or song.path.parent) / str(given) if given else None

    vocals, times, backing = place("vocals_path"), place("phonemes_path"), place("backing_path")
    if vocals is None or times is None:
        raise UserError(f"{song.path}: its line needs vocals_path and phonemes_path, as the sung corpus has them")

    def track(path: Path) -> np.ndarray:
        mono = read_audio(path, sample_rate=rate).mean(axis=1)
        return np.clip(np.rint(mono * 32767), -32768, 32767).astype(np.int16)

    edges, classes = read_phonemes(times)
    return SungSong(song, track(vocals), track(backing) if backing else None, edges, classes)


def lines_of(lyrics: str) -> list[str]:
    """Lines of words, without tags and empty ones."""
    for start, end, _ in reversed(list(find_tags(lyrics))):
        lyrics = lyrics[:start] + lyrics[end:]
    return [line.strip() for line in lyrics.splitlines() if line.strip()]


def split(songs: Sequence[Song], share: float, seed: int) -> tuple[list[Song], list[Song]]:
    """Songs to train on, and at least ``share`` of them held out, which have no line of words in common with these."""
    parent = list(range(len(songs)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[str, int] = {}
    for index, song in enumerate(songs):
        for line in lines_of(song.lyrics or ""):
            parent[root(index)] = root(first.setdefault(line, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(songs)):
        groups.setdefault(root(index), []).append(index)
    kin = list(groups.values())
    held: set[int] = set()
    for place in np.random.default_rng([seed, len(kin)]).permutation(len(kin)).tolist():
        if len(held) < share * len(songs) and len(held) + len(kin[place]) < len(songs):
            held.update(kin[place])
    return [s for i, s in enumerate(songs) if i not in held], [s for i, s in enumerate(songs) if i in held]


def frame_classes(edges: np.ndarray, classes: np.ndarray, frames: int) -> np.ndarray:
    """Class of each frame of 20 ms ``[frames]``, a path that CTC reads as the phonemes: 0 in silence, and where a
    phoneme begins that the one before it is too."""
    labels = np.zeros(frames, np.int64)
    for (start, end), index in zip(edges, classes, strict=True):
        a, b = max(0, round(start / FRAME_SECONDS)), min(frames, round(end / FRAME_SECONDS))
        if b > a:
            again = a > 0 and labels[a - 1] == index
            labels[a:b] = index
            if again and b - a > 1:
                labels[a : a + min(2, (b - a) // 2)] = 0
    return labels


@dataclass(frozen=True)
class Lesson:
    """A batch: audio float32 ``[N, T]``, class of each frame ``[N, F]``, whether there is a voice in it ``[N, F]``."""

    audio: Tensor
    labels: Tensor
    voice: Tensor


def _decibels(value: float) -> float:
    return float(10 ** (value / 20))


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) + 1e-5


def coloured_noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Noise of power between white and brown ``[length]``, of level 1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    made = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1), length)
    return made / _level(made)


def tones(rng: np.random.Generator, length: int, rate: int) -> np.ndarray:
    """Notes of instruments that do not sing: harmonics of a fixed colour under an envelope ``[length]``, level 1."""
    made = np.zeros(length)
    for _ in range(int(rng.integers(1, 4))):
        slope, odd, vibrato = rng.uniform(0.5, 2.5), rng.random() < 0.3, rng.uniform(0, 0.01) * (rng.random() < 0.4)
        decay, place = rng.uniform(0.2, 6.0), 0
        while place < length:
            last = min(length, place + int(rng.uniform(0.1, 1.2) * rate))
            time = np.arange(last - place) / rate
            hertz = 55 * 2 ** rng.uniform(0, 4)
            phase = 2 * np.pi * hertz * (time + vibrato * np.sin(2 * np.pi * 5.5 * time) / (2 * np.pi * 5.5))
            harmonics = range(1, min(20, int(0.45 * rate / hertz) + 1), 2 if odd else 1)
            note = sum(np.sin(k * phase + rng.uniform(0, 6.3)) / k**slope for k in harmonics)
            made[place:last] += note * np.exp(-time * decay) * np.minimum(1, time / 0.01)
            place = last
    return made / _level(made)


class Practice:
    """Draws lessons from songs.

    Args:
        songs: to learn from.
        config: of the recogniser.
        seconds: of a crop.
        seed: decides everything.
    """

    def __init__(self, songs: Sequence[SungSong], config: RecogniserConfig, seconds: float, seed: int) -> None:
        self.songs, self.rate, self.seed = list(songs), config.sample_rate, seed
        self.frames = round(seconds / FRAME_SECONDS)
        self.length = self.frames * config.frame_length
        self.bands = [song for song in songs if song.backing is not None]
        weights = np.array([len(song.vocals) for song in songs], np.float64) + 2 * self.rate
        self._weights = weights / weights.sum()

    def lesson(self, step: int, items: int) -> Lesson:
        """Batch number ``step``; the same for the same seed."""
        rng = np.random.default_rng([self.seed, step])
        made = [self._item(rng) for _ in range(items)]
        audio, labels, voice = zip(*made, strict=True)
        return Lesson(
            torch.from_numpy(np.stack(audio).astype(np.float32)),
            torch.from_numpy(np.stack(labels)),
            torch.from_numpy(np.stack(voice)),
        )

    def _item(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kind = rng.random()
        if kind < 0.15:
            audio = self._without_voice(rng)
            nothing = np.zeros(self.frames, np.int64)
            return self._worn(rng, audio), nothing, nothing.astype(np.float32)
        song = self.songs[int(rng.choice(len(self.songs), p=self._weights))]
        factor = float(np.exp(rng.uniform(-0.18, 0.18))) if rng.random() < 0.7 else 1.0
        span = self.length / self.rate * factor
        start = float(rng.uniform(-0.3, max(0.0, len(song.vocals) / self.rate - span) + 0.3))
        audio = self._crop(song.vocals, start, factor)
        if kind > 0.45 and self.bands:
            band = (
                song if song.backing is not None and rng.random() < 0.5 else self.bands[rng.integers(len(self.bands))]
            )
            own = band is song
            assert band.backing is not None
            where = start if own else float(rng.uniform(0, max(0.0, len(band.backing) / self.rate - span)))
            backing = self._crop(band.backing, where, factor if own else 1.0)
            softer = rng.uniform(0, 15) if rng.random() < 0.5 else rng.uniform(3, 9)
            audio = audio + backing * (_level(audio) / _level(backing) * _decibels(-softer))
        edges = (song.edges - start) / factor
        inside = (edges.mean(axis=1) > 0) & (edges.mean(axis=1) < self.frames * FRAME_SECONDS)
        labels = frame_classes(edges[inside], song.classes[inside], self.frames)
        voice = np.zeros(self.frames, np.float32)
        for a, b in np.rint(edges[inside] / FRAME_SECONDS).astype(int):
            voice[max(0, a) : max(0, b)] = 1
        return self._worn(rng, audio), labels, voice

    def _crop(self, track: np.ndarray, start: float, factor: float) -> np.ndarray:
        """Samples from ``start`` seconds on, played ``factor`` times as fast; silence beyond the ends."""
        first = round(start * self.rate)
        need = int(np.ceil(self.length * factor)) + 2
        low, high = max(0, first), max(0, min(len(track), first + need))
        part = np.zeros(need, np.float32)
        if high > low:
            part[low - first : high - first] = track[low:high] / 32768.0
        if factor == 1.0:
            return part[: self.length]
        return np.interp(np.arange(self.length) * factor, np.arange(need), part).astype(np.float32)

    def _without_voice(self, rng: np.random.Generator) -> np.ndarray:
        kind = rng.random()
        if kind < 0.5 and self.bands:
            band = self.bands[rng.integers(len(self.bands))].backing
            assert band is not None
            factor = float(np.exp(rng.uniform(-0.4, 0.4)))
            return self._crop(band, float(rng.uniform(0, max(0.1, len(band) / self.rate - 10))), factor)
        if kind < 0.8:
            return 0.1 * tones(rng, self.length, self.rate)
        if kind < 0.95:
            return 0.1 * coloured_noise(rng, self.length)
        return np.zeros(self.length)

    def _worn(self, rng: np.random.Generator, audio: np.ndarray) -> np.ndarray:
        """Through a room, with noise, at some level; four of ten only at some level."""
        if rng.random() < 0.4:
            return audio * _decibels(rng.uniform(-24, 3)) * (0.1 / max(_level(audio), 1e-3))
        if rng.random() < 0.25:
            length = int(rng.uniform(0.05, 0.4) * self.rate)
            room = rng.standard_normal(length) * np.exp(-np.arange(length) * 6 / length)
            room *= rng.uniform(0.05, 0.5) / np.sqrt(np.sum(room**2))
            audio = audio + _convolved(audio, room)
        level = max(_level(audio), 1e-3)
        if rng.random() < 0.4:
            audio = audio + coloured_noise(rng, len(audio)) * level * _decibels(-rng.uniform(8, 40))
        return audio * _decibels(rng.uniform(-24, 3)) * (0.1 / level)


def worn_spectrum(log_mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Spectra ``[N, T, bands]`` through an equaliser, a narrower band, the roughness of codecs, masks; four of ten
    items stay as they are."""
    items, _, bands = log_mel.shape
    place = np.linspace(0, 1, bands)
    curves = np.zeros((items, 1, bands))
    worn = rng.random(items) < 0.6
    for item in np.flatnonzero(worn):
        for k in range(1, 4):
            curves[item, 0] += rng.normal(0, 1.0 / k) * np.cos(np.pi * k * place + rng.uniform(0, 6.3))
        if rng.random() < 0.2:  # a steep filter; ln(1e-4) is 40 dB
            curves[item, 0] += np.log(1e-4) * np.clip((place - rng.uniform(0.6, 1.0)) / 0.05, 0, 1)
    floor = float(np.log(1e-7))
    made = (log_mel + torch.from_numpy(curves).float()).clamp_min(floor)
    rough = torch.from_numpy(
        rng.uniform(0, 0.5, (items, 1, 1)) * (worn & (rng.random(items) < 0.6))[:, None, None]
    ).float()
    noise = torch.from_numpy(rng.standard_normal(tuple(made.shape), dtype=np.float32))
    made = made + rough * noise
    for item in np.flatnonzero(worn):
        if rng.random() < 0.5:
            first = int(rng.integers(0, bands - 6))
            made[item, :, first : first + int(rng.integers(2, 7))] = floor
    return made


def _convolved(audio: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The sound in a room of such an impulse response, ``[T]`` as long as the sound."""
    size = 1 << (len(audio) + len(room) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(room, size), size)[: len(audio)]
