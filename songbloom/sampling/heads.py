"""Finding the head of a lyrics prior that looks at the words that are being sung, by measuring all of them on songs.

In a published model the head was picked by eye from pictures of attention; here every head that attends from music to
lyrics is ranked by how near the word times that it gives are to known ones, and, where none are known, by how much of
its weight lies along one monotone path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from songbloom.data.labels import Labels
from songbloom.errors import UserError, reason
from songbloom.files import write_text
from songbloom.sampling import alignment
from songbloom.sampling.alignment import Times
from songbloom.training.checkpoint import json_beside

Head = tuple[int, int]
"""Layer and head, both from 0."""

NEAR = 0.25  # seconds; a word time that is nearer to the truth than this is called right
LATEST = 0.5  # seconds; no head is taken to be later or earlier than this
FOLLOWS = 0.5  # share of right words from which a head is said to follow them
_MEMORY = 1 << 30  # bytes of matrices at a time; more heads than fit are measured in turns


class LyricPrior(Protocol):
    """What is asked of a prior here; :class:`songbloom.prior.prior.Prior` has it."""

    level: int
    n_ctx: int
    hop_length: int
    sample_length: int

    def lyric_heads(self) -> list[Head]:
        """All heads that attend from music to lyrics."""
        ...

    @property
    def lyric_attention(self) -> Callable[..., Tensor]:
        """Their weights for one window."""
        ...


class Windows(Protocol):
    """What is asked of a labeller here; :class:`songbloom.data.labels.Labeller` has it."""

    def shifted(self, labels: Labels, start: int, prior: Any) -> tuple[Tensor, list[list[int]]]:
        """The labels of a window, and which tokens of the song stand in it."""
        ...


@dataclass(frozen=True)
class Song:
    """A song to measure heads on.

    Attributes:
        name: for messages.
        codes: of the prior's level, ``[T]`` int64.
        labels: one item, as of offset 0 of the song.
        times: of its tokens, in seconds; None where nobody knows.
    """

    name: str
    codes: Tensor
    labels: Labels
    times: Sequence[Times | None] | None = None


@torch.no_grad()
def matrices(
    prior: LyricPrior,
    labeller: Windows,
    codes: Tensor,
    labels: Labels,
    wanted: Sequence[Head],
    *,
    hop: int,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    memory: int = _MEMORY,
    on_window: Callable[[Head, NDArray[np.float32]], None] | None = None,
) -> Iterator[tuple[Head, NDArray[np.float32]]]:
    """The matrices of one song (:func:`songbloom.sampling.alignment.assemble`), for each of the wanted heads in turn.

    Args:
        prior: of the top level, which reads lyrics.
        labeller: moves labels to windows.
        codes: ``[T]`` int64; a song shorter than a window is followed by zeros.
        labels: of the song, one item.
        wanted: heads of ``prior.lyric_heads()``.
        hop: codes from one window to the next.
        precision: of the transformer.
        device: where the prior is.
        memory: bytes of matrices that may be held at a time; one head's always are.
        on_window: called with each head's weights of each window, without padding and what lies behind the song.
    """
    total, tokens = len(codes), len(labels.infos[0]["full_tokens"])
    starts = alignment.window_starts(total, prior.n_ctx, hop)
    padded = torch.nn.functional.pad(codes.cpu(), (0, max(prior.n_ctx - total, 0)))
    together = max(1, memory // max(4 * total * (tokens + 1), 1))
    for first in range(0, len(wanted), together):
        group = list(wanted[first : first + together])
        found = {head: np.zeros((total, tokens + 1), np.float32) for head in group}
        # From the last window to the first, and each for all heads: as alignment.assemble does for one.
        for start in sorted(starts, reverse=True):
            y, indices = labeller.shifted(labels, start, prior)
            window = padded[None, start : start + prior.n_ctx].to(device)
            weights = prior.lyric_attention(window, y.to(device), wanted=group, precision=precision)[:, 0].cpu().numpy()
            places = np.asarray(indices[0], np.int64)
            end = min(start + prior.n_ctx, total)
            for head, of_head in zip(group, weights[:, : end - start], strict=True):
                found[head][start:end, places] = of_head
                if on_window:
                    on_window(head, of_head[:, places >= 0])
        for head in group:
            yield head, found.pop(head)[:, :tokens]


@dataclass
class HeadScore:
    """How good a head is, over all songs.

    Attributes:
        layer, head: which.
        monotony: share of its weight along the best monotone path that is not there anyway, 0 to 1
            (:func:`songbloom.sampling.alignment.path_share`); the mean over windows. Within one window, because a head
            that always looks at the same place of its window would seem to follow the words as the window moves.
        shift: seconds by which its times are late (the median over tokens with a known time, at most half a second
            either way: what is further off is wrong, not late); 0 where none is known.
        error: median distance in seconds of token beginnings from the truth, once the shift is taken away; a token that
            it finds nowhere counts as infinitely far. None where nothing is known.
        right: share of tokens within 0.25 s of the truth; None where nothing is known.
        judged: tokens with a known time.
    """

    layer: int
    head: int
    monotony: float = 0.0
    shift: float = 0.0
    error: float | None = None
    right: float | None = None
    judged: int = 0
    _shares: list[float] = field(default_factory=list, repr=False)
    _late: list[float] = field(default_factory=list, repr=False)

    def look(self, weights: NDArray[np.float32]) -> None:
        """Take in one window, ``[frames, tokens]``."""
        self._shares.append(alignment.path_share(weights, alignment.monotone_segments(weights)))
        self.monotony = float(np.mean(self._shares))

    def hear(self, matrix: NDArray[np.float32], times: Sequence[Times | None], frame_seconds: float) -> None:
        """Take in one song: its matrix ``[T, F]`` and the times of its tokens."""
        end = len(matrix) * frame_seconds
        for found, true in zip(alignment.token_times(matrix, frame_seconds), times, strict=True):
            if true is not None and true[0] < end:
                self._late.append(np.inf if found is None else found[0] - true[0])
        late = np.array(self._late)
        self.judged = len(late)
        if self.judged:
            seen = np.isfinite(late)
            self.shift = float(np.clip(np.median(late[seen]), -LATEST, LATEST)) if seen.any() else 0.0
            distance = np.abs(late - self.shift)
            self.error, self.right = float(np.median(distance)), float((distance <= NEAR).mean())

    @property
    def order(self) -> tuple[float, ...]:
        """Smaller is better."""
        if self.right is None or self.error is None:
            return (-self.monotony,)
        return (-self.right, self.error, -self.monotony)


def rank(
    prior: LyricPrior,
    labeller: Windows,
    songs: Sequence[Song],
    *,
    sample_rate: int,
    hop: int,
    heads: Sequence[Head] | None = None,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    on_song: Callable[[Song], None] | None = None,
) -> list[HeadScore]:
    """Measure heads on songs; the best first.

    Heads are compared by the share of tokens that they put within 0.25 s of a known time, then by the median error;
    where no song has times, by monotony.

    Args:
        prior, labeller, hop, precision, device: see :func:`matrices`.
        songs: at least one, with lyrics.
        sample_rate: Hz.
        heads: which; by default all of the prior's.
        on_song: called when a song is done.

    Raises:
        UserError: the prior has no head that attends from music to lyrics.
    """
    wanted = list(heads if heads is not None else prior.lyric_heads())
    if not wanted:
        raise UserError("this model has no head that attends from music to lyrics: it was trained without lyrics")
    scores = {pair: HeadScore(*pair) for pair in wanted}
    for song in songs:
        how: dict[str, Any] = {"hop": hop, "precision": precision, "device": device}
        how["on_window"] = lambda pair, weights: scores[pair].look(weights)
        for pair, matrix in matrices(prior, labeller, song.codes, song.labels, wanted, **how):
            if song.times is not None:
                scores[pair].hear(matrix, song.times, prior.hop_length / sample_rate)
        if on_song:
            on_song(song)
    return sorted(scores.values(), key=lambda score: (score.order, score.layer, score.head))


# ----------------------------------------------------------------------------------------------------- the choice


@dataclass(frozen=True)
class Choice:
    """The head that a model's words are aligned by.

    Attributes:
        layer, head: which.
        shift: seconds by which its times are late.
        weights: digest of the weights that it was found in (:func:`songbloom.sampling.run.fingerprint`); empty if
            nobody measured it.
        found: how good it was, as plain data for people.
    """

    layer: int
    head: int
    shift: float = 0.0
    weights: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def follows(self) -> bool | None:
        """Whether it follows the words on songs whose times are known; None where nobody measured that."""
        right = self.found.get("right")
        return None if right is None else right >= FOLLOWS


def choice_file(weights: Path | str) -> Path:
    """Where the choice for a file of weights lies: ``checkpoint_latest.alignment.json`` beside the weights."""
    beside = json_beside(Path(weights))
    return beside.with_name(beside.name.removesuffix(".json") + ".alignment.json")


def write_choice(weights: Path | str, choice: Choice) -> list[Path]:
    """Write a choice beside the weights, and into the configuration that lies there, if there is one.

    Returns:
        The files written. The weights themselves stay as they are.

    Raises:
        UserError: one of them cannot be written.
    """
    path, beside = choice_file(weights), json_beside(Path(weights))
    write_text(path, json.dumps(asdict(choice), indent=1, ensure_ascii=False) + "\n")
    written = [path]
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        content["hps"] |= {"alignment_layer": choice.layer, "alignment_head": choice.head}
    except (OSError, ValueError, KeyError, TypeError):  # no configuration, or somebody else's file
        return written
    write_text(beside, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return [*written, beside]


def read_choice(weights: Path | str) -> Choice | None:
    """The choice beside a file of weights; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = choice_file(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Choice(
            int(content["layer"]),
            int(content["head"]),
            float(content["shift"]),
            str(content["weights"]),
            dict(content["found"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); run align.py --find again, or remove it") from error
