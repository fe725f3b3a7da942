"""Which word is sung when: from the attention of one head of a lyrics prior to a matrix, a path and times.

The top level's prior reads its lyrics through some of its heads. In a trained model a few of these look at the word
that is being sung (Jukebox, arXiv:2005.00341, section 5.4). The softmax weights of one such head over all windows of a
song make a matrix of music frames by lyric positions; the best monotone path through it gives every token a beginning
and an end.

Frames are codes of the top level, positions those of the tokens of the song's whole lyrics. What stands at a position
is the token before it: lyrics are read as a model predicts them, one late.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from songbloom.sampling import windows

Matrix = NDArray[np.floating[Any]]
Attend = Callable[[int], tuple[Matrix, Sequence[int]]]
"""From the start of a window to its weights ``[n_ctx, n_tokens]`` and, for each of its columns, the token of the song
that stands there, or -1 for padding."""
Times = tuple[float, float]

_COLUMNS = 64  # tokens that are prepared together: their scores are the only large thing beside the matrix
_FLOOR = 0.25  # of the mean weight; below that a weight counts as nothing
_ALIKE = 1.5  # times the mean weight of a frame's tokens; a frame that looks at all of them alike tells of none
_DOUBT = 0.05  # what a frame must bring (nats) to be given to a token: no evidence gives no frame
_FILL = 3  # tokens in a row without a frame of their own that still get a time, from their neighbours
_FILLED = 0.15  # seconds of one of these, at most
_PICTURE = (512, 1024)  # height and width of the picture that Jukebox writes
_BLUR = 1.5  # radius in frames of 16 and in tokens
_STEP = 16  # frames in a row of ``align.json``
# From weight 0 to the largest: (red, green, blue) at equal steps; cold, so that it is not taken for the spectrogram.
_COLOURS = np.array(
    [(10, 12, 28), (22, 36, 84), (28, 76, 136), (34, 128, 158), (76, 182, 160), (168, 224, 168), (250, 250, 214)], float
)


def window_starts(total: int, n_ctx: int, hop: int) -> list[int]:
    """Where the windows begin that a song of ``total`` frames is aligned in; one at 0 for a song that fills none."""
    return [0] if total < n_ctx else windows.starts(total, n_ctx, hop)


def assemble(attend: Attend, starts: Sequence[int], total: int, tokens: int) -> NDArray[np.float32]:
    """The weights of a whole song, ``[total, tokens]``, from those of its windows.

    Where windows overlap, the earlier one counts, which has heard more of what follows the place. Tokens outside a
    window have weight 0 there.

    Args:
        attend: gives a window; called for one after the other, from the last to the first.
        starts: first frames of the windows.
        total: frames of the song; those of a window beyond it are left out.
        tokens: of the whole lyrics.
    """
    # One more column, which index -1 means: padding is written there and dropped.
    matrix = np.zeros((total, tokens + 1), np.float32)
    for start in sorted(starts, reverse=True):
        weights, indices = attend(start)
        end = min(start + len(weights), total)
        matrix[start:end, np.asarray(indices, np.int64)] = weights[: end - start]
    return matrix[:, :tokens]


# ---------------------------------------------------------------------------------- what Jukebox writes (its align.*)


def sung_part(matrix: Matrix) -> Matrix:
    """``matrix`` without the tokens after the last one that has any weight; all of it where none has."""
    there: Sequence[int] = np.flatnonzero(matrix.max(axis=0)).tolist() if matrix.size else []
    return matrix[:, : there[-1] + 1] if there else matrix


def _grey(matrix: Matrix) -> NDArray[np.uint8]:
    return (255 * np.asarray(matrix, np.float64)).astype(np.uint8)


def grey_picture(matrix: Matrix) -> NDArray[np.uint8]:
    """Jukebox's ``align.png``, uint8 ``[512, 1024]``: time to the right, the first token at the bottom, 1 is white."""
    from PIL import Image

    height, width = _PICTURE
    part = sung_part(matrix)
    if not part.size:
        return np.zeros(_PICTURE, np.uint8)
    return np.rot90(np.asarray(Image.fromarray(_grey(part)).resize((height, width)))).copy()


def grey_rows(matrix: Matrix) -> list[list[int]]:
    """Jukebox's ``align.json``: weights 0 to 255 ``[total // 16][token]``, blurred a little, to light letters by.

    A song of less than 16 frames has one row.
    """
    from PIL import Image, ImageFilter

    part = sung_part(matrix)
    if not part.size:
        return []
    image = Image.fromarray(_grey(part)).resize((part.shape[1], max(len(part) // _STEP, 1)))
    rows: list[list[int]] = np.asarray(image.filter(ImageFilter.GaussianBlur(_BLUR))).tolist()
    return rows


def shifted_symbols(symbols: Sequence[str], matrix: Matrix) -> list[str]:
    """Jukebox's ``lyrics.json``: a symbol for each column of :func:`grey_rows`, each one column late.

    A position of the model sees the tokens before it, so what it looks at is one ahead of what it sings.
    """
    return ["", *symbols][: sung_part(matrix).shape[1]]


def colour_picture(matrix: Matrix, *, height: int = 256, max_width: int = 1024) -> NDArray[np.uint8]:
    """The page's picture, uint8 ``[height, width, 3]``: time to the right, the first token at the top, as text is read.

    Each place shows the largest weight of the frames and tokens that share it, against the largest of all; the square
    root of it, so that faint ones are seen.
    """
    part = np.asarray(sung_part(matrix), np.float32)
    if not part.size or not part.max() > 0:
        return _coloured(np.zeros((height, 1)))

    def share(values: NDArray[np.float32], axis: int, most: int) -> NDArray[np.float32]:
        edges = np.linspace(0, values.shape[axis], min(most, values.shape[axis]) + 1).astype(int)[:-1]
        return np.maximum.reduceat(values, edges, axis=axis)

    small = share(share(part, 0, max_width), 1, height).T
    rows = np.minimum(np.arange(height) * len(small) // height, len(small) - 1)
    return _coloured(np.sqrt(small / small.max())[rows])


def _coloured(shade: Matrix) -> NDArray[np.uint8]:
    steps = np.linspace(0, 1, len(_COLOURS))
    picture = np.stack([np.interp(shade, steps, _COLOURS[:, colour]) for colour in range(3)], axis=-1)
    return picture.round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------ the monotone path


def _scores(weights: Matrix) -> Iterator[NDArray[np.float64]]:
    """For each token, what each frame brings if it is given to it, ``[T]`` nats.

    That is the logarithm of the weight over the token's mean weight or, if that is more, about the frame's: a token
    that is looked at always, as some are whatever is sung, says nothing about where it is, and neither does a frame of
    silence that looks everywhere.
    """
    of_frame = _ALIKE * weights.mean(axis=1, dtype=np.float64)
    floor = max(_FLOOR * float(weights.mean(dtype=np.float64)), 1e-12)
    for first in range(0, weights.shape[1], _COLUMNS):
        block = np.ascontiguousarray(weights[:, first : first + _COLUMNS].T, dtype=np.float64)
        usual = np.maximum(block.mean(axis=1, keepdims=True), of_frame)
        for row in np.log((block + floor) / (usual + floor)):
            yield row - _DOUBT


def monotone_segments(weights: Matrix) -> NDArray[np.int64]:
    """The frames of each token on the best monotone path: ``[F, 2]``, first frame and the one after the last.

    Tokens come in order, each has one stretch of frames or none, and frames may stay with no token. Of all such ways,
    the one with the largest sum of scores (:func:`_scores`). Exact, by dynamic programming over tokens with running
    maxima over frames; beside the matrix it needs one bit for each frame and token, twice.

    Args:
        weights: ``[T, F]``, not negative; :func:`assemble` makes it.

    Returns:
        int64, not falling along the tokens. A token without frames has both numbers equal.
    """
    frames, tokens = weights.shape
    segments = np.zeros((tokens, 2), np.int64)
    if not frames or not tokens:
        return segments
    begins, ends = [], []
    best = np.zeros(frames + 1)  # of the tokens so far, in the first t frames
    total = np.zeros(frames + 1)  # of this token's scores in the first t frames
    for scores in _scores(weights):
        np.cumsum(scores, out=total[1:])
        best, changed = _running(best - total)  # the best place to begin, for each place to end
        begins.append(changed)
        best, changed = _running(best + total)  # the best place to end, for each place further on
        ends.append(changed)
    place = frames
    for token in range(tokens - 1, -1, -1):
        segments[token, 1] = place = _last(ends[token], place)
        segments[token, 0] = place = _last(begins[token], place)
    return segments


def _running(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The running maximum, and where it changes, packed; at its first of equal places."""
    largest = np.maximum.accumulate(values)
    changed = np.ones(len(values), bool)
    changed[1:] = values[1:] > largest[:-1]
    return largest, np.packbits(changed)


def _last(packed: NDArray[np.uint8], place: int) -> int:
    """The last set bit at or before ``place``."""
    byte = place // 8
    there = np.flatnonzero(np.unpackbits(packed[byte : byte + 1])[: place % 8 + 1])
    if len(there):
        return 8 * byte + int(there[-1])
    byte = int(np.flatnonzero(packed[:byte])[-1])  # the first bit of all is always set
    return 8 * byte + int(np.flatnonzero(np.unpackbits(packed[byte : byte + 1]))[-1])


def path_share(weights: Matrix, segments: NDArray[np.int64], *, beside: int = 1) -> float:
    """How monotone a head is: the weight within ``beside`` tokens of the path, less what lies there anyway.

    Args:
        weights: ``[T, F]``.
        segments: :func:`monotone_segments` of them.
        beside: tokens on either side of the path that count.

    Returns:
        Between about 0 (a head that looks at the same tokens always, or at all alike) and 1 (one that looks nowhere
        else than along the path): the mean over frames of the weight found on the path minus the mean weight of the
        same tokens over all frames.
    """
    frames, tokens = weights.shape
    lengths = segments[:, 1] - segments[:, 0]
    if not lengths.sum() or weights.sum() <= 0:
        return 0.0
    token = np.repeat(np.arange(tokens), lengths)
    frame = np.concatenate([np.arange(start, end) for start, end in segments])
    inside, anyway = np.zeros(len(frame)), np.zeros(len(frame))
    means = weights.mean(axis=0, dtype=np.float64)
    for step in range(-beside, beside + 1):
        there = (token + step >= 0) & (token + step < tokens)
        inside[there] += weights[frame[there], token[there] + step]
        anyway[there] += means[token[there] + step]
    # Frames without a token bring nothing, so that a short path through a little of the song is not a good one.
    return float((inside - anyway).sum() / frames)


def times_of(segments: NDArray[np.int64], frame_seconds: float, *, shift: float = 0.0) -> list[Times | None]:
    """When each token is sung, in seconds; None for those that are not.

    Up to three tokens in a row without frames between two that have some were sung too fast to be seen: they get the
    end of the pause before the next one, or, where there is none, share its time.

    Args:
        segments: ``[F, 2]`` frames (:func:`monotone_segments`).
        frame_seconds: length of a frame.
        shift: seconds by which the head is late; taken away, but nothing begins before 0.
    """
    seconds = np.maximum(segments * frame_seconds - shift, 0.0)
    sung = segments[:, 1] > segments[:, 0]
    times: list[Times | None] = [
        (float(start), float(end)) if there and end > 0 else None
        for (start, end), there in zip(seconds, sung, strict=True)
    ]
    known = [token for token, time in enumerate(times) if time is not None]
    for before, after in itertools.pairwise(known):
        missing = after - before - 1
        if 0 < missing <= _FILL:
            _fill(times, before, after)
    return times


def _fill(times: list[Times | None], before: int, after: int) -> None:
    """Give times to the tokens between two that have some."""
    left, right = times[before], times[after]
    assert left is not None and right is not None
    missing = after - before - 1
    if right[0] > left[1]:
        edges = np.linspace(max(left[1], right[0] - missing * _FILLED), right[0], missing + 1)
    else:
        edges = np.linspace(right[0], right[1], missing + 2)
        times[after] = (float(edges[-2]), right[1])
    for token in range(missing):
        times[before + 1 + token] = (float(edges[token]), float(edges[token + 1]))


def as_tokens(matrix: Matrix) -> Matrix:
    """From lyric positions to tokens: column ``f`` becomes what is looked at for token ``f``, which stands one further.

    The last token stands nowhere; its column is empty.
    """
    return np.concatenate([matrix[:, 1:], np.zeros_like(matrix[:, :1])], axis=1)


def token_times(matrix: Matrix, frame_seconds: float, *, shift: float = 0.0) -> list[Times | None]:
    """When each token is sung, in seconds, by the best monotone path through a song's matrix; None where it is not.

    The last token of the lyrics, which the model never reads, gets the second half of the time of the one before it.

    Args:
        matrix: ``[T, F]`` (:func:`assemble`).
        frame_seconds: length of a frame.
        shift: see :func:`times_of`.
    """
    times = times_of(monotone_segments(as_tokens(matrix)), frame_seconds, shift=shift)
    if len(times) > 1 and (before := times[-2]) is not None:
        middle = (before[0] + before[1]) / 2
        times[-2:] = [(before[0], middle), (middle, before[1])]
    return times
