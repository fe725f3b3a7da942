"""Ogg Vorbis and Opus: pages decoded on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from songbloom.audio import ogg
from songbloom.audio.decoding import GRID, DecoderSetup, GridSource, SourceError, decode_packets, describe, tables

# Samples before a segment at which its decoder begins. Vorbis overlaps one block (at most 8192 samples); for Opus,
# RFC 7845 asks for 80 ms, and after 1 s its filters have converged to the last bit.
_PREROLL_SAMPLES = {"vorbis": 8192, "opus": 48000}
_PREROLL_PACKETS = {"vorbis": 8, "opus": 50}  # at most, since a page may begin much earlier; 50 packets mostly are 1 s


@dataclass
class OggTable:
    """The pages of a Vorbis or Opus stream, and the samples complete after each."""

    setup: DecoderSetup
    channels: int
    positions: np.ndarray  # of the pages, bytes
    ends: np.ndarray  # samples decoded up to the end of each page, counted from the first that is decoded
    edges: np.ndarray  # page number at which each segment begins, and the number of pages
    skip: int  # decoded samples before the song begins
    frames: int

    @property
    def nbytes(self) -> int:
        return self.positions.nbytes + self.ends.nbytes + self.edges.nbytes + 8192


def build_ogg_table(path: Path) -> OggTable:
    """Scan the pages of an Ogg Vorbis or Opus file.

    Raises:
        SourceError: it cannot be followed, or holds no audio.
    """
    try:
        stream = ogg.read_stream(path)
    except (ogg.OggError, OSError, IndexError) as error:
        raise SourceError(describe(error)) from error
    layout = {1: "mono", 2: "stereo"}.get(stream.channels, "")
    setup = DecoderSetup(stream.codec, stream.extradata, stream.sample_rate, layout)
    granules = [page.granule for page in stream.pages]
    positions = np.asarray([page.position for page in stream.pages], np.int64)
    table = OggTable(setup, stream.channels, positions, np.zeros(len(positions), np.int64), np.zeros(1, np.int64), 0, 0)
    first = next(i for i, granule in enumerate(granules) if granule >= 0)
    decoded_first = sum(map(len, decode_pages(path, table, 0, 0, first + 1)))
    start = granules[first] - decoded_first  # of the first decoded sample, in the stream's own time
    if first == len(granules) - 1:
        start = max(0, start) if granules[first] > decoded_first else 0  # one page: it is its end that is cut
    ends, latest = np.zeros(len(granules), np.int64), 0
    for number, granule in enumerate(granules):
        latest = max(latest, granule - start) if granule >= 0 else latest
        ends[number] = latest
    table.ends = ends
    # A Vorbis stream may say that it begins before time zero, an Opus stream says it with its pre-skip.
    table.skip = stream.preskip if stream.codec == "opus" else max(0, -start)
    table.edges = _group(ends)
    before = int(table.edges[-2])
    begin = int(ends[before - 1]) if before else 0
    tail = sum(map(len, decode_pages(path, table, _preroll_page(table, before), before, len(ends))))
    table.frames = max(0, min(int(ends[-1]), begin + tail) - table.skip)
    return table


def _group(ends: np.ndarray) -> np.ndarray:
    """Page numbers at which segments of at least GRID samples begin; the last entry is the number of pages."""
    edges, since = [0], 0
    for page in range(len(ends) - 1):
        if ends[page] - since >= GRID:
            edges.append(page + 1)
            since = int(ends[page])
    return np.asarray([*edges, len(ends)], np.int64)


def _preroll_page(table: OggTable, first: int) -> int:
    """The page to begin with, so that decoding is right from page ``first`` on."""
    if not first:
        return 0
    wanted = int(table.ends[first - 1]) - _PREROLL_SAMPLES[table.setup.codec]
    return max(0, int(np.searchsorted(table.ends, wanted, side="left")) - 1)


def decode_pages(path: Path, table: OggTable, begin: int, first: int, last: int) -> list[np.ndarray]:
    """What the packets that end on pages ``first`` to ``last - 1`` decode to, if decoding starts at page ``begin``."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        pages = [ogg.page_at(file, int(position), end) for position in table.positions[begin:last]]
        found = [page for page in pages if page is not None]
        if len(found) < len(pages):
            raise SourceError("changed while it was read")
        ended = ogg.packets_in(file, found)
    early = [packet for packets in ended[: first - begin] for packet in packets][-_PREROLL_PACKETS[table.setup.codec] :]
    wanted = [packet for packets in ended[first - begin :] for packet in packets]
    result = []
    for order, samples in enumerate(decode_packets(table.setup, iter(early + wanted))):
        if order == 0 and table.setup.codec == "vorbis":
            continue  # a Vorbis packet needs the one before it: by definition the first gives nothing
        if order >= len(early) and samples is not None:
            result.append(samples)
    return result


class OggSource(GridSource):
    """Ogg Vorbis and Opus, decoded by FFmpeg and libopus on a grid of pages."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        known = tables.get(path)
        if not isinstance(known, OggTable):
            known = build_ogg_table(path)
            tables.put(path, known)
        self._table, self._path = known, path
        self.sample_rate, self.channels, self.frames = known.setup.sample_rate, known.channels, known.frames
        ends = np.concatenate([[0], known.ends])
        self._bounds = ends[known.edges] - known.skip

    def _segment(self, number: int) -> np.ndarray:
        first, last = int(self._table.edges[number]), int(self._table.edges[number + 1])
        parts = decode_pages(self._path, self._table, _preroll_page(self._table, first), first, last)
        samples = np.concatenate(parts) if parts else np.zeros((0, self.channels), np.float32)
        wanted = int(self._bounds[number + 1] - self._bounds[number])
        final = number == len(self._bounds) - 2
        if (len(samples) != wanted and not final) or samples.shape[1] != self.channels:
            raise SourceError(f"is damaged near {max(0, self._bounds[number]) / self.sample_rate:.2f} s")
        return samples
