"""What sounds are compared by: vectors of a second of sound each, by name, and distances between sets of them.

===============  ===================================================================================================
``recogniser``   the last layer of the phoneme recogniser, averaged: which sounds are sung, and that they are
``log_mel``      mean and spread of the log-mel spectrum in 32 bands: colour and loudness of everything
``voice``        mean log-mel spectrum of sung moments alone, less its level: the colour of a voice (and its band)
``muq``          features of MuQ, averaged; needs its weights
===============  ===================================================================================================

Numbers from different embeddings, or from other weights of one, are no measure of each other, so a name stands with
every number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from songbloom.audio.files import read_audio
from songbloom.errors import UserError, did_you_mean
from songbloom.evaluation.recogniser import FRAME_SECONDS, Heard, Recogniser

WINDOW = round(1.0 / FRAME_SECONDS)
"""Frames that share a vector."""
_SUNG = 0.5  # probability of a voice from which a frame counts as sung
_SILENCE = -15.5  # mean log-mel power below which nothing sounds


class Piece(NamedTuple):
    """A stretch of an audio file: ``heard`` begins ``start`` seconds into it."""

    path: Path
    start: float
    heard: Heard


@dataclass(frozen=True)
class Embedding:
    """A way to make vectors of sound.

    Attributes:
        name: with what tells its weights from others.
        width: of a vector.
        of: vectors ``[windows, width]`` of a piece; silent windows have none.
    """

    name: str
    width: int
    of: Callable[[Piece], np.ndarray]

    @property
    def fewest(self) -> int:
        """Vectors that a Fréchet distance needs on either side: twice the width, so that covariances have full rank
        and their noise is less than they are."""
        return 2 * self.width


def _windows(frames: int) -> list[slice]:
    """Whole windows of a piece; at least half of one makes one."""
    starts = range(0, frames, WINDOW)
    return [slice(a, min(a + WINDOW, frames)) for a in starts if min(a + WINDOW, frames) - a >= WINDOW // 2]


def _sounding(heard: Heard) -> list[slice]:
    return [window for window in _windows(len(heard.voice)) if heard.log_mel[window].mean() > _SILENCE]


def _stacked(vectors: list[np.ndarray], width: int) -> np.ndarray:
    return np.stack(vectors).astype(np.float64) if vectors else np.zeros((0, width))


def _recogniser(recogniser: Recogniser, **_: Any) -> Embedding:
    width = recogniser.config.hidden

    def of(piece: Piece) -> np.ndarray:
        return _stacked([piece.heard.hidden[window].mean(0) for window in _sounding(piece.heard)], width)

    return Embedding(recogniser.name, width, of)


def _log_mel(recogniser: Recogniser, **_: Any) -> Embedding:
    bands = recogniser.config.bands

    def of(piece: Piece) -> np.ndarray:
        pooled = piece.heard.log_mel.reshape(len(piece.heard.voice), bands // 2, 2).mean(2)
        vectors = [np.concatenate([pooled[w].mean(0), pooled[w].std(0)]) for w in _sounding(piece.heard)]
        return _stacked(vectors, bands)

    return Embedding("log_mel", bands, of)


def _voice(recogniser: Recogniser, **_: Any) -> Embedding:
    bands = recogniser.config.bands

    def of(piece: Piece) -> np.ndarray:
        vectors = []
        for window in _sounding(piece.heard):
            sung = piece.heard.voice[window] > _SUNG
            if sung.sum() >= WINDOW // 4:
                spectrum = piece.heard.log_mel[window][sung].mean(0)
                vectors.append(spectrum - spectrum.mean())
        return _stacked(vectors, bands)

    return Embedding("voice", bands, of)


def _muq(recogniser: Recogniser, muq_path: str = "", **_: Any) -> Embedding:
    from songbloom.sketch.extractors import make_features
    from songbloom.sketch.features import FRAME_RATE

    if not muq_path:
        raise UserError("embedding 'muq' needs MuQ's weights: give --muq_path=FOLDER (config.json inside)")
    features = make_features("muq", path=muq_path)

    def of(piece: Piece) -> np.ndarray:
        rate = features.sample_rate
        seconds = len(piece.heard.voice) * FRAME_SECONDS
        audio = read_audio(piece.path, sample_rate=rate, offset=round(piece.start * rate), length=round(seconds * rate))
        made = features.extract(torch.from_numpy(audio)[None], rate)[0].cpu().numpy()
        per_frame = FRAME_RATE * FRAME_SECONDS
        spans = [(round(w.start * per_frame), round(w.stop * per_frame)) for w in _sounding(piece.heard)]
        return _stacked([made[a:b].mean(0) for a, b in spans if b > a and a < len(made)], features.width)

    return Embedding(f"muq-{features.fingerprint()[:8]}", features.width, of)


REGISTRY: dict[str, Callable[..., Embedding]] = {
    "recogniser": _recogniser,
    "log_mel": _log_mel,
    "voice": _voice,
    "muq": _muq,
}
"""Name → what makes the embedding from a recogniser and settings."""


def make_embedding(name: str, recogniser: Recogniser, **settings: Any) -> Embedding:
    """An embedding by name.

    Raises:
        UserError: there is none of that name, or it needs something.
    """
    if name not in REGISTRY:
        known = ", ".join(REGISTRY)
        raise UserError(f"--embeddings: none is named {name!r}{did_you_mean(name, REGISTRY)}; there are {known}")
    return REGISTRY[name](recogniser, **settings)


# --- distances between sets -----------------------------------------------------------------------------------------


def _root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues (those of rounding count as 0)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance, squared as is usual, of the normal laws of two sets of vectors ``[n, width]``.

    ``|μa - μb|² + tr(A + B - 2 (A B)^½)`` (Dowson and Landau 1982; for sound: Kilgour et al. 2019).

    Raises:
        ValueError: fewer than two vectors on a side, or other widths.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a Fréchet distance of {a.shape} and {b.shape}")
    apart = a.mean(0) - b.mean(0)
    first, second = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = _root(first)
    shared = np.linalg.eigvalsh(root @ second @ root).clip(0)  # the eigenvalues of A B
    return float(max(0.0, apart @ apart + np.trace(first) + np.trace(second) - 2 * np.sqrt(shared).sum()))


def distance_to(vectors: np.ndarray, reference: np.ndarray) -> float:
    """How far the mean of a set is from that of a reference, in standard deviations of the reference's vectors
    (root of the mean over dimensions).

    Raises:
        ValueError: an empty set, or a reference of fewer than two vectors.
    """
    if len(vectors) < 1 or len(reference) < 2:
        raise ValueError(f"a distance of {vectors.shape} to {reference.shape}")
    spread = reference.var(0, ddof=1).mean()
    return float(np.sqrt(np.square(vectors.mean(0) - reference.mean(0)).mean() / max(spread, 1e-12)))


def own_distance(parts: Sequence[np.ndarray]) -> float | None:
    """What :func:`distance_to` gives for a reference's own items, each against the others; None of fewer than two."""
    known = [part for part in parts if len(part)]
    found = []
    for index, part in enumerate(known):
        others = [other for place, other in enumerate(known) if place != index]
        if others and sum(map(len, others)) > 1:
            found.append(distance_to(part, np.concatenate(others)))
    return float(np.mean(found)) if found else None
