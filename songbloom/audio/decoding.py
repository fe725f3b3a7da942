"""What every way of reading an audio file shares: the Source, decoders that start fresh, the grid, the table cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GRID = 65536  # samples a segment, at least: 1.5 s at 44.1 kHz; short enough for a chunk to waste little
_CACHE_BYTES = 256 << 20  # packet tables kept in a process; a five-minute song takes about 25 kB


class SourceError(Exception):
    """Why a file cannot be read, in words, without its name."""


class Source:
    """A file that is open for reading: ``sample_rate`` (Hz), ``channels``, ``frames`` (samples a channel, exact)."""

    sample_rate: int
    channels: int
    frames: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples ``[start, stop)`` as float32 ``[stop - start, channels]``; the range must lie in the file."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""


def describe(error: Exception) -> str:
    """Why, in one line, without the file's name and number codes that the caller's message does not need."""
    reason = getattr(error, "strerror", None)
    if not reason:
        text = str(error).strip().splitlines()
        reason = text[0] if text else ""
        if reason.startswith("Error opening"):  # libsndfile: "Error opening 'path': reason"
            reason = reason.rsplit(": ", 1)[-1] if ": " in reason else ""
    return str(reason).strip().rstrip(".") or "cannot be decoded"


# FFmpeg's "mp3" and "mp2" compute in 16 bits; for Opus there is the reference decoder.
_BEST_DECODERS = {"mp3": "mp3float", "mp2": "mp2float", "opus": "libopus"}


@dataclass(frozen=True)
class DecoderSetup:
    """What a fresh decoder has to be told."""

    codec: str
    extradata: bytes | None
    sample_rate: int
    layout: str

    def create(self) -> Any:
        """A fresh FFmpeg decoder that trims nothing by itself."""
        import av

        name = _BEST_DECODERS.get(self.codec, self.codec)
        name = name if name in av.codecs_available else self.codec
        context: Any = av.CodecContext.create(name, "r")
        if self.extradata:
            context.extradata = self.extradata
        context.sample_rate = self.sample_rate
        if self.layout:
            context.layout = self.layout
        context.thread_count = 1
        context.options = {"flags2": "+skip_manual", "request_sample_fmt": "flt"}
        return context


_SAMPLE_TYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
_MOST_CHANNELS = 8  # a frame with more comes from damaged data, and PyAV does not know where its planes end


def _as_float(frame: Any) -> np.ndarray:
    """A decoded frame as float32 ``[samples, channels]``.

    Raises:
        ValueError: the frame cannot be audio that was encoded on purpose.
    """
    channels, name = frame.layout.nb_channels, frame.format.name
    kind = _SAMPLE_TYPES.get(name.removesuffix("p"))
    if kind is None or not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"a frame of {channels} channels in format {name}")
    planes = frame.planes
    if frame.format.is_planar:
        samples = np.stack([np.frombuffer(planes[i], kind, frame.samples) for i in range(channels)], axis=1)
    else:
        samples = np.frombuffer(planes[0], kind, frame.samples * channels).reshape(-1, channels)
    if kind is np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(kind, np.integer):
        return (samples / float(1 << (8 * samples.dtype.itemsize - 1))).astype(np.float32)
    return samples.astype(np.float32)


def decode_packets(setup: DecoderSetup, packets: Iterator[bytes]) -> Iterator[np.ndarray | None]:
    """For each packet what a fresh decoder makes of it, float32 ``[samples, channels]``; None for a damaged packet."""
    import av

    def fresh() -> Any:
        try:
            return setup.create()
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceError(describe(error)) from error

    decoder, failures = fresh(), 0
    for packet in packets:
        try:
            frames = [_as_float(frame) for frame in decoder.decode(av.Packet(packet))] if packet else []
            result = np.concatenate(frames) if frames else None
        except (av.error.FFmpegError, ValueError):
            result = None
        failures = 0 if result is not None else failures + 1
        if (
            failures >= 2 and setup.codec == "aac"
        ):  # after some kinds of damage FFmpeg's decoder refuses all that follows
            decoder, failures = fresh(), 0
        yield result


class GridSource(Source):
    """A source that is decoded segment by segment; segment k holds samples ``[bounds[k], bounds[k + 1])``."""

    _bounds: np.ndarray

    def __init__(self) -> None:
        self._latest: tuple[int, np.ndarray] | None = None

    def _segment(self, number: int) -> np.ndarray:
        """Decode segment ``number``, with a fresh decoder."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> np.ndarray:
        result = np.zeros((max(0, stop - start), self.channels), np.float32)
        if stop <= start:
            return result
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        for number in range(first, last):
            if self._latest is None or self._latest[0] != number:  # reading in order decodes each segment once
                self._latest = (number, self._segment(number))
            begin, end = int(self._bounds[number]), int(self._bounds[number + 1])
            low, high = max(start, begin), min(stop, end)
            result[low - start : high - start] = self._latest[1][low - begin : high - begin]
        return result


class TableCache:
    """Tables of the files that were opened last, by path, size and time of change; bounded in bytes."""

    def __init__(self, limit: int = _CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._entries: OrderedDict[tuple[str, int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def _key(path: Path) -> tuple[str, int, int]:
        found = path.stat()
        return str(path), found.st_size, found.st_mtime_ns

    def get(self, path: Path) -> Any:
        """The table of this very file, or None."""
        key = self._key(path)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, path: Path, table: Any) -> None:
        """Remember a table, and forget the oldest ones beyond the limit."""
        key = self._key(path)
        with self._lock:
            if key in self._entries:
                self._bytes -= getattr(self._entries.pop(key), "nbytes", 256)
            self._entries[key] = table
            self._bytes += getattr(table, "nbytes", 256)
            while self._bytes > self._limit and len(self._entries) > 1:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= getattr(oldest, "nbytes", 256)


tables = TableCache()
