"""Labels of a song as vectors: who sings, in what style, and where in the song the window lies.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4.1 (artist, genre and timing
conditioning).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.prior.conditioners import RangeEmbedding
from songbloom.prior.config import PriorConfig

FIXED = 4  # columns before the genre words: total length, offset, window length, artist


@dataclass(frozen=True)
class Timing:
    """What timing labels are about: ``n_ctx`` positions of a window of songs between two durations.

    ``min_duration`` (inclusive) and ``max_duration`` (exclusive) are seconds, ``bins`` is the size of each table.
    """

    bins: int
    n_ctx: int
    sample_rate: int
    min_duration: float
    max_duration: float


class LabelConditioner(nn.Module):
    """Artist, genre and, where asked for, timing.

    A label vector is ``[total length, offset, window length, artist id, genre word ids…]``, the first three in samples;
    genre slots that a song does not use hold -1. A bag of words (several slots) and a single genre differ in their
    number of slots only.

    Args:
        genres, artists: sizes of the two tables.
        genre_slots: genre words of a song at most.
        width: W.
        init_scale: factor of the tables' initial standard deviation 0.01.
        timing: None leaves timing out (only the top level hears of it).
    """

    def __init__(
        self,
        *,
        genres: int,
        artists: int,
        genre_slots: int,
        width: int,
        init_scale: float = 1.0,
        timing: Timing | None = None,
    ) -> None:
        super().__init__()
        self.genre_slots, self.timing = genre_slots, timing
        self.artist, self.genre = nn.Embedding(artists, width), nn.Embedding(genres, width)
        for table in (self.artist, self.genre):
            nn.init.normal_(table.weight, std=0.01 * init_scale)
        if timing is None:
            return
        low, high = timing.min_duration * timing.sample_rate, timing.max_duration * timing.sample_rate

        def ranged(positions: int, low: float, high: float, clamp: bool = False) -> RangeEmbedding:
            return RangeEmbedding(positions, timing.bins, low, high, width, init_scale=init_scale, clamp=clamp)

        self.total_length = ranged(1, low, high)
        self.absolute_position = ranged(timing.n_ctx, 0.0, high)
        self.relative_position = ranged(timing.n_ctx, 0.0, 1.0, clamp=True)

    def check(self, y: Tensor) -> None:
        """Look at label vectors ``[N, 4 + genre_slots]`` before their embeddings are looked up, with one look at the
        device for all of them.

        Raises:
            UserError: names the first item and the label that this model does not know.
        """
        if y.ndim != 2 or y.shape[1] != FIXED + self.genre_slots or y.is_floating_point():
            raise UserError(
                f"labels of shape {list(y.shape)} and type {y.dtype}: this model takes whole numbers of shape"
                f" [batch, {FIXED + self.genre_slots}] (and lyric tokens, if it knows any)"
            )
        total, offset, length, artist = y[:, :FIXED].unbind(1)
        genre = y[:, FIXED:]
        good = [
            (artist >= 0) & (artist < self.artist.num_embeddings),
            ((genre >= -1) & (genre < self.genre.num_embeddings)).all(1),
        ]
        if self.timing is not None:
            # Exactly, as the data's index chooses songs; rounding to float32 is left to the embeddings.
            seconds = total.double() / self.timing.sample_rate
            good.append((seconds >= self.timing.min_duration) & (seconds < self.timing.max_duration))
            good.append((offset >= 0) & (offset < total) & (length > 0))
            good.append((offset + length).double() <= self.timing.max_duration * self.timing.sample_rate)
        if bool(torch.stack(good).all()):
            return
        item = int(torch.stack(good).all(0).logical_not().nonzero()[0])
        rule = next(rule for rule, passed in enumerate(good) if not passed[item])
        raise UserError(f"labels of item {item}: " + self._complaint(rule, y[item].tolist()))

    def _complaint(self, rule: int, y: list[int]) -> str:
        total, offset, length, artist, *genre = y
        if rule == 0:
            return f"artist id {artist} is unknown: this model knows 0 to {self.artist.num_embeddings - 1}"
        if rule == 1:
            last = self.genre.num_embeddings - 1
            return f"genre ids {genre}: this model knows 0 to {last}, and -1 for none"
        assert self.timing is not None
        rate, low, high = self.timing.sample_rate, self.timing.min_duration, self.timing.max_duration
        if rule == 2:
            return (
                f"a song of {total / rate:.2f} s: this model knows songs from {low:g} s (min_duration) up to, not"
                f" including, {high:g} s (max_duration); give another total length"
            )
        begin, end = f"{offset / rate:.2f} s", f"{(offset + length) / rate:.2f} s"
        if rule == 3:
            return f"the window from {begin} to {end} does not begin within its song of {total / rate:.2f} s"
        return f"the window from {begin} to {end} ends after {high:g} s (max_duration), the longest this model knows"

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Label vectors ``[N, 4 + genre_slots]``, which :meth:`check` has let pass, to vectors.

        Returns:
            Artist plus genre words ``[N, 1, W]``, and timing ``[N, n_ctx, W]`` (None where left out): the embeddings
            of the song's length, of the absolute and of the relative position. All arithmetic on times is float32.
        """
        genre = y[:, FIXED:]
        used = (genre >= 0).unsqueeze(-1)
        words = (self.genre(genre.clamp(min=0)) * used).sum(1, keepdim=True)
        voice = self.artist(y[:, 3:FIXED]) + words
        if self.timing is None:
            return voice, None
        total, offset, length = (y[:, column : column + 1].float() for column in range(3))
        end = offset + length
        position = (
            self.total_length(total, check=False)
            + self.absolute_position(offset, end, check=False)
            + self.relative_position(offset / total, end / total, check=False)
        )
        return voice, position


def label_conditioner(config: PriorConfig, sample_length: int, *, timed: bool) -> LabelConditioner:
    """The conditioner of a prior with these settings, whose windows hold ``sample_length`` samples.

    Args:
        timed: with timing labels.

    Raises:
        UserError: timing labels without a usable range of durations.
    """
    assert isinstance(config.y_bins, tuple) and config.max_bow_genre_size
    timing = None
    if timed:
        timing = Timing(config.t_bins, config.n_ctx, config.sr, *config.durations(sample_length))
    return LabelConditioner(
        genres=config.y_bins[0],
        artists=config.y_bins[1],
        genre_slots=config.max_bow_genre_size,
        width=config.prior_width,
        init_scale=config.init_scale,
        timing=timing,
    )
