"""How far a decoder looks, so that a song can be decoded piece by piece.

A decoder is convolutions alone, so a stretch of audio depends on an interval of codes. :func:`reads` finds it by
walking the layers from the output back; a piece that is decoded from that interval is what the whole gives there.
``tests/vqvae/test_pieces.py`` holds both: nothing beyond the interval matters, and both its ends do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from songbloom.vqvae.blocks import Decoder, ResidualBlock, UpsamplingBlock, UpsamplingStage

Interval = tuple[int, int]  # from the first (included) to the last (excluded)

PIECE_SAMPLES = (
    1 << 18
)  # audio a piece, where nothing else is asked for: 6 s at 44.1 kHz, some tens of megabytes inside
WIDEST_MARGIN = 8  # a piece is at least so many times as long as what is decoded twice at one of its ends


def _around(conv: nn.Conv1d, wanted: Interval) -> Interval:
    """What a convolution of stride 1 looks at."""
    reach = int(conv.padding[0])
    return wanted[0] - reach, wanted[1] + reach


def _below(conv: nn.ConvTranspose1d, wanted: Interval) -> Interval:
    """What a transposed convolution looks at: frame ``i`` adds to a kernel of outputs from ``i * stride - padding``."""
    stride, padding, size = conv.stride[0], int(conv.padding[0]), conv.kernel_size[0]
    return -((size - 1 - wanted[0] - padding) // stride), (wanted[1] - 1 + padding) // stride + 1


def reads(decoder: Decoder, wanted: Interval) -> Interval:
    """The codes on which the audio samples of an interval depend; they may lie beyond the song's ends."""
    wanted = _around(decoder.output, wanted)
    for block in cast(Iterable[UpsamplingBlock], decoder.blocks):
        for stage in reversed(cast(list[UpsamplingStage], list(block.stages))):
            wanted = _below(stage.resample, wanted)
            for residual in cast(Iterable[ResidualBlock], stage.residual.blocks):
                wanted = _around(residual.dilated, wanted)
        wanted = _around(block.project, wanted)
    return wanted


def usual_piece(decoder: Decoder, hop_length: int) -> int:
    """Codes a piece: long enough that little is decoded twice, short enough for any memory."""
    first, last = reads(decoder, (0, hop_length))
    return max(1, PIECE_SAMPLES // hop_length, WIDEST_MARGIN * max(-first, last - 1))
