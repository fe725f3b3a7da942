"""Recovering a sketch codebook that was never published, from songs that its model wrote.

A model that writes songs gives both the codes of a song and its sound. Features of that sound are gathered by the code
of their frame, and the mean of a code's features is its vector: what k-means did when the codebook was trained, with
the model's own codes in place of its assignments. A share of the songs is kept from that, to tell how often the
recovered codebook, asked about their sound, gives the very codes that they were written from. The same number tells
which of several candidates (layers of MuQ, normalisations) is the right one.

A vector is only as good as the model: where its latents don't follow its codes, no codebook can be read from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.sketch.builtin import BuiltinFeatures
from songbloom.sketch.codebook import STD_FLOOR, SketchCodebook, normalise
from songbloom.sketch.features import Features

FAR = 1e6  # every number of a vector that no frame may choose
KEEP_EVERY = 5  # of so many songs one is kept for the test
FEW = 5  # frames below which a code's vector is little more than a guess


@dataclass(frozen=True)
class Sung:
    """A song that a model wrote.

    Attributes:
        codes: int64 ``[frames]``.
        audio: ``[T, C]``.
        sample_rate: Hz.
    """

    codes: Tensor
    audio: Tensor
    sample_rate: int


@dataclass
class Candidate:
    """One guess at what the codebook was made for.

    Attributes:
        features: the extractor.
        normalisation: one of :data:`songbloom.sketch.codebook.NORMALISATIONS`.
        kept: rows and codes of the songs kept for the test, as they come.
    """

    features: Features
    normalisation: str = "none"
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        layer = "" if self.features.layer is None else f" layer {self.features.layer}"
        return f"{self.features.name}{layer}, normalisation {self.normalisation}"


@dataclass(frozen=True)
class Recovered:
    """What came of it.

    Attributes:
        codebook: the vectors; codes that were never seen lie too far off to be chosen.
        counts: frames that each vector is the mean of, int64 ``[codes]``.
        agreement: share of the kept songs' frames whose codes the codebook gives back; None without kept songs.
        chance: the same for always guessing the commonest code.
        told: name of each candidate and its agreement.
    """

    codebook: SketchCodebook
    counts: Tensor
    agreement: float | None
    chance: float
    told: Mapping[str, float]

    def report(self) -> list[str]:
        """Lines for people, warnings among them."""
        counts = self.counts
        seen, few = int((counts > 0).sum()), int(((counts > 0) & (counts < FEW)).sum())
        lines = [
            f"{int(counts.sum())} frames, {seen} of {len(counts)} codes seen; of those seen "
            f"{float(counts[counts > 0].float().median()):.0f} frames in the middle"
        ]
        lines += [f"{name}: {share:.1%} of the kept frames get their codes back" for name, share in self.told.items()]
        if self.agreement is not None:
            lines.append(f"always guessing the commonest code would give back {self.chance:.1%}")
        if seen < len(counts):
            lines.append(
                f"warning: {len(counts) - seen} codes were never seen and can never be chosen; more songs "
                "(--recover_songs, --recover_seconds) may show them"
            )
        if few:
            lines.append(f"warning: {few} codes were seen in fewer than {FEW} frames: their vectors are guesses")
        if self.agreement is not None and self.agreement < max(0.1, 2 * self.chance):
            lines.append(
                "warning: the codes hardly follow the sound of these features: this codebook would mean little to the "
                "model; try other features or layers"
            )
        return lines


class _Sums:
    """Sums of a candidate's features by code."""

    def __init__(self, codes: int, width: int) -> None:
        self.sums = torch.zeros(codes, width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.counts = torch.zeros(codes, dtype=torch.int64)

    def add(self, codes: Tensor, rows: Tensor) -> None:
        self.sums.index_add_(0, codes, rows.double())
        self.squares += rows.double().square().sum(dim=0)
        self.counts += torch.bincount(codes, minlength=len(self.counts))

    def spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number, over all frames."""
        frames = self.counts.sum().clamp_min(1)
        mean = self.sums.sum(dim=0) / frames
        std = (self.squares / frames - mean.square()).clamp_min(STD_FLOOR**2).sqrt()
        return mean.float(), std.float()


@torch.no_grad()
def recover(
    songs: Iterable[Sung],
    candidates: Sequence[Candidate],
    codes: int,
    *,
    distance: str = "euclidean",
    source: str = "",
    keep_every: int = KEEP_EVERY,
) -> Recovered:
    """The codebook behind songs and their codes: of the candidates, the one that gives kept songs their codes back.

    Args:
        songs: any number of them, one at a time.
        candidates: what the features may have been; at least one.
        codes: how many the model has.
        distance: how features are compared with vectors.
        source: the model's name, kept in the file.
        keep_every: each so-many-th song is kept for the test; 0 keeps none.

    Raises:
        UserError: no songs, or codes that the model doesn't have.
    """
    sums = [_Sums(codes, candidate.features.width) for candidate in candidates]
    heard = 0
    for number, song in enumerate(songs):
        wrong = (song.codes < 0) | (song.codes >= codes)
        if wrong.any():
            raise UserError(f"code {int(song.codes[wrong][0])} of a song is not one of the model's {codes}")
        keep = keep_every > 0 and number % keep_every == keep_every - 1
        extracted: dict[int, Tensor] = {}
        for candidate, own in zip(candidates, sums, strict=True):
            key = id(candidate.features)
            if key not in extracted:
                extracted[key] = candidate.features.extract(song.audio[None], song.sample_rate)[0].float().cpu()
            frames = min(len(song.codes), len(extracted[key]))
            rows, its = extracted[key][:frames], song.codes[:frames].cpu()
            if candidate.normalisation == "layer":
                rows = normalise(rows, "layer")
            if keep:
                candidate.kept.append((rows, its))
            else:
                own.add(its, rows)
        heard += 1
    if not heard or not sums[0].counts.sum():
        raise UserError("no songs to recover a sketch codebook from")
    books = [_book(one, own, distance, source) for one, own in zip(candidates, sums, strict=True)]
    shares = [_agreement(book, one) for book, one in zip(books, candidates, strict=True)]
    best = max(range(len(candidates)), key=lambda index: -1.0 if shares[index] is None else float(shares[index] or 0))
    told = {one.name: float(s) for one, s in zip(candidates, shares, strict=True) if s is not None}
    counts = sums[best].counts
    kept = torch.cat([its for _, its in candidates[best].kept]) if candidates[best].kept else None
    chance = 0.0 if kept is None else float((kept == counts.argmax()).float().mean())
    return Recovered(books[best], counts, shares[best], chance, told)


def _book(candidate: Candidate, own: _Sums, distance: str, source: str) -> SketchCodebook:
    mean, std = own.spread()
    standard = candidate.normalisation == "standard"
    means = (own.sums / own.counts.clamp_min(1)[:, None]).float()
    vectors = normalise(means, "standard", mean, std) if standard else means
    if distance == "cosine":
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    # Far off in every direction; for angles there is no far off, and a vector of zeros is never nearer than another
    # that points the same way as the frame.
    vectors[own.counts == 0] = 0.0 if distance == "cosine" else FAR
    state = candidate.features.state_dict() if isinstance(candidate.features, BuiltinFeatures) else None
    facts: dict[str, Any] = {"recovered_from": source, "counts": own.counts.clone()}
    return SketchCodebook(
        vectors=vectors,
        features=candidate.features.identity(),
        distance=distance,
        normalisation=candidate.normalisation,
        mean=mean if standard else None,
        std=std if standard else None,
        state=state,
        trained=facts,
    )


def _agreement(book: SketchCodebook, candidate: Candidate) -> float | None:
    if not candidate.kept:
        return None
    right = frames = 0
    for rows, codes in candidate.kept:
        features = rows[None]  # normalising a frame by its own twice changes nothing but rounding
        right += int((book.encode(features)[0] == codes).sum())
        frames += len(codes)
    return right / max(1, frames)
