"""Listening to files: whether there is a voice, which phonemes it sings, how high, and vectors of its sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.files import read_audio
from songbloom.evaluation import embeddings, phonemes, pitch
from songbloom.evaluation.embeddings import Embedding, Piece
from songbloom.evaluation.phonemes import PhonemeScore
from songbloom.evaluation.pitch import PitchStatistics
from songbloom.evaluation.recogniser import FRAME_SECONDS, Recogniser

PRESENT = 0.05
"""Share of frames with a voice below which a song counts as having none."""


@dataclass(frozen=True)
class Item:
    """A sound to listen to: its file, a name to tell it by, and its words if they are known."""

    path: Path
    name: str
    lyrics: str | None = None
    language: str | None = None


@dataclass
class Listened:
    """What was heard in a file.

    Attributes:
        item: the file.
        seconds: that were heard.
        voice_presence: share of frames with a voice.
        phonemes: heard one after the other.
        score: against the lyrics; None without lyrics, or with words that are not Japanese.
        note: why there is no score, or what of the words could not be used.
        pitch: None where too little is sung.
        vectors: of each embedding, ``[windows, width]``.
    """

    item: Item
    seconds: float
    voice_presence: float
    phonemes: tuple[str, ...]
    score: PhonemeScore | None = None
    note: str = ""
    pitch: PitchStatistics | None = None
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    codec: dict[str, float] | None = None

    def plain(self) -> dict[str, Any]:
        """What is told of a file, as plain data."""
        told: dict[str, Any] = {
            "name": self.item.name,
            "path": str(self.item.path),
            "seconds": round(self.seconds, 2),
            "voice_presence": round(self.voice_presence, 4),
            **score_plain(self.score),
            "heard": " ".join(self.phonemes),
            "pitch": self.pitch.plain() if self.pitch else None,
        }
        if self.codec is not None:
            told["codec"] = self.codec
        if self.note:
            told["note"] = self.note
        return told


def score_plain(score: PhonemeScore | None) -> dict[str, Any]:
    """The rates of a score, None where there is none."""
    names = ("per", "per_shuffled", "per_part", "per_part_shuffled")
    rates = {name: getattr(score, name) if score else None for name in names}
    made: dict[str, Any] = {name: None if value is None else round(value, 4) for name, value in rates.items()}
    return made | {"phonemes_expected": score.expected if score else None}


def listen(
    item: Item,
    recogniser: Recogniser,
    *,
    use: Sequence[Embedding] = (),
    change: float = phonemes.CHANGE,
    with_pitch: bool = True,
) -> Listened:
    """Listen to a file once, 30 s at a time; what is kept does not grow with it but for some numbers a frame.

    Args:
        item: what to listen to.
        recogniser: who listens.
        use: embeddings to make vectors of.
        change: what a change of phoneme costs (:class:`songbloom.evaluation.phonemes.Decoder`).
        with_pitch: track the pitch, which takes longer than all else.

    Raises:
        UserError: the file cannot be read, or the words cannot.
    """
    decoder = phonemes.Decoder(change)
    voices: list[np.ndarray] = []
    tracks: list[np.ndarray] = []
    vectors: dict[str, list[np.ndarray]] = {embedding.name: [] for embedding in use}
    start, rate = 0.0, recogniser.config.sample_rate
    for heard in recogniser.hear_file(item.path):
        decoder.hear(heard.phonemes)
        voices.append(heard.voice)
        frames = len(heard.voice)
        for embedding in use:
            vectors[embedding.name].append(embedding.of(Piece(item.path, start, heard)))
        if with_pitch and (heard.voice > 0.5).any():
            length = frames * recogniser.config.frame_length
            sound = read_audio(item.path, sample_rate=rate, offset=round(start * rate), length=length).mean(axis=1)
            tracks.append(pitch.track(sound, rate, frames))
        elif with_pitch:
            tracks.append(np.full(frames, np.nan))
        start += frames * FRAME_SECONDS
    voice = np.concatenate(voices) if voices else np.zeros(0)
    found = decoder.phonemes
    score, note = _score(item, found)
    empty = {embedding.name: np.zeros((0, embedding.width)) for embedding in use}
    return Listened(
        item,
        start,
        float((voice > 0.5).mean()) if len(voice) else 0.0,
        found,
        score,
        note,
        pitch.statistics(np.concatenate(tracks), voice) if tracks else None,
        {name: np.concatenate([empty[name], *parts]) for name, parts in vectors.items()},
    )


def _score(item: Item, heard: Sequence[str]) -> tuple[PhonemeScore | None, str]:
    if not item.lyrics:
        return None, "no lyrics are known"
    if item.language not in (None, "", "ja"):
        return None, f"the words are {item.language}; phonemes of Japanese alone are known"
    expected = phonemes.expected_phonemes(item.lyrics)
    if not expected:
        return None, "the lyrics have no words to sing"
    return phonemes.score(heard, expected), ""


def summary(listened: Sequence[Listened]) -> dict[str, Any]:
    """What is told of all files together: phonemes and edits summed up, means of the rest, and how many are silent."""
    scores = [one.score for one in listened if one.score is not None]
    pitches = [one.pitch for one in listened if one.pitch is not None]
    total = sum(one.seconds for one in listened)
    made: dict[str, Any] = {
        "items": len(listened),
        "seconds": round(total, 2),
        "voice_presence": round(sum(o.voice_presence * o.seconds for o in listened) / total, 4) if total else 0.0,
        "items_without_voice": sum(one.voice_presence < PRESENT for one in listened),
        "items_with_lyrics": len(scores),
        **score_plain(phonemes.together(scores) if scores else None),
    }
    means = {"median": 0.0, "low": 0.0, "high": 0.0, "range": 0.0}
    made["pitch"] = {key: float(np.mean([p.plain()[key] for p in pitches])) for key in means} if pitches else None
    codecs = [one.codec for one in listened if one.codec is not None]
    if codecs:
        keys = dict.fromkeys(key for one in codecs for key in one)
        made["codec"] = {key: float(np.mean([one[key] for one in codecs if key in one])) for key in keys}
    return made


def compare(
    listened: Sequence[Listened], reference: Sequence[Listened], use: Sequence[Embedding]
) -> dict[str, dict[str, Any]]:
    """For each embedding: Fréchet distance to the reference (None where vectors are too few), how many vectors there
    are and how many are needed, distance to the reference's mean, and what the reference's own items have."""
    made: dict[str, dict[str, Any]] = {}
    for embedding in use:
        parts = [one.vectors[embedding.name] for one in reference]
        theirs, ours = np.concatenate(parts), np.concatenate([one.vectors[embedding.name] for one in listened])
        enough = min(len(ours), len(theirs)) >= embedding.fewest
        told: dict[str, Any] = {
            "frechet": embeddings.frechet_distance(ours, theirs) if enough else None,
            "vectors": len(ours),
            "reference_vectors": len(theirs),
            "fewest": embedding.fewest,
        }
        known = len(ours) > 0 and len(theirs) > 1
        told["distance"] = embeddings.distance_to(ours, theirs) if known else None
        told["distance_within_reference"] = embeddings.own_distance(parts)
        made[embedding.name] = told
    return made


def pitch_distance(listened: Sequence[Listened], reference: Sequence[Listened]) -> dict[str, float] | None:
    """Mean differences in semitones from the reference, of the median pitch and of the range's ends."""
    ours, theirs = summary(listened)["pitch"], summary(reference)["pitch"]
    if not ours or not theirs:
        return None
    return {key: ours[key] - theirs[key] for key in ("median", "low", "high", "range")}
