"""Reading any stretch of any audio file, exactly.

Every source answers ``read(start, stop)`` with the same numbers that lie there when the whole file is read, bit for
bit. Formats without memory (WAV, FLAC, AIFF) are read by libsndfile, which seeks exactly in them. Compressed formats
carry state from one packet to the next, and neither libsndfile nor FFmpeg seeks exactly in all of them; so they are
decoded on a fixed grid: the file is cut into segments of about 1.5 s at packet (Ogg: page) boundaries, and a segment
is always decoded by a fresh decoder that begins a fixed stretch before it. What a read returns then cannot depend on
where it began. The table of packets comes from one pass over the container, without decoding.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import soundfile

from songbloom.audio import ogg
from songbloom.audio.decoding import GRID, Source, SourceError, describe, tables
from songbloom.audio.ogg_source import OggSource
from songbloom.audio.packets import PacketSource


class PlainSource(Source):
    """WAV, FLAC and whatever else libsndfile seeks in exactly."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = soundfile.SoundFile(str(path))
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise SourceError(describe(error)) from error
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        known = tables.get(path)
        self.frames = known if isinstance(known, int) else self._true_length()
        if known is None:
            tables.put(path, self.frames)

    def _true_length(self) -> int:
        """The header's claim if the last sample can be read (a cut file claims too much), else what can be decoded."""
        claimed = self._file.frames
        if claimed <= 0:
            return 0
        if claimed < 1 << 56:  # libsndfile says 2^63 - 1 for "unknown"
            with contextlib.suppress(soundfile.LibsndfileError):
                self._file.seek(claimed - 1)
                if len(self._file.read(1, dtype="float32", always_2d=True)) == 1:
                    return claimed
        try:
            with soundfile.SoundFile(self._file.name) as fresh:  # after an error the old handle is not to be trusted
                counted = 0
                with contextlib.suppress(soundfile.LibsndfileError):
                    while block := len(fresh.read(4096, dtype="float32", always_2d=True)):
                        counted += block
        except soundfile.LibsndfileError as error:
            raise SourceError(describe(error)) from error
        self._file.close()
        self._file = soundfile.SoundFile(self._file.name)
        return counted

    def read(self, start: int, stop: int) -> np.ndarray:
        result = np.zeros((max(0, stop - start), self.channels), np.float32)
        at = start
        while at < stop:  # in pieces, so that a damaged place is named closely
            wanted = min(GRID, stop - at)
            try:
                if at == start:
                    self._file.seek(start)
                samples = self._file.read(wanted, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise SourceError(f"is damaged near {at / self.sample_rate:.2f} s") from error
            if len(samples) < wanted:
                raise SourceError(f"is damaged near {(at + len(samples)) / self.sample_rate:.2f} s")
            result[at - start : at - start + wanted] = samples
            at += wanted
        return result

    def close(self) -> None:
        self._file.close()


_PLAIN_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"FORM", b".snd", b"caff", b"riff")


def _magic(path: Path) -> bytes:
    """The first four bytes of the audio itself: an ID3 tag, which any kind of file may begin with, is stepped over."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            file.seek(10 + size)
            return file.read(4) or head[:4]
    return head[:4]


def open_source(path: Path) -> Source:
    """Open any audio file; what it is is told by its content, not by its name.

    Raises:
        SourceError: its content cannot be read, in words.
        OSError: it is missing or may not be read.
    """
    magic = _magic(path)
    if not magic:
        raise SourceError("is empty")
    if magic in _PLAIN_MAGIC:
        try:
            return PlainSource(path)
        except SourceError as reason:
            with contextlib.suppress(SourceError):
                return PacketSource(path)
            raise reason
    if magic == ogg.CAPTURE:
        return PlainSource(path) if ogg.identify(path) == "other" else OggSource(path)
    return PacketSource(path)
