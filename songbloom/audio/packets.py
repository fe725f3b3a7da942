"""MP3, AAC and ALAC: the packets that FFmpeg finds in a container, decoded on the grid."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.decoding import GRID, DecoderSetup, GridSource, SourceError, decode_packets, describe, tables

_PROBED_PACKETS = 16  # decoded once to learn the frame size and that this is audio at all
_MAX_PACKET = 1 << 16  # bytes; a lossy frame is far smaller, so a bigger one means that noise was taken for audio
_MAX_DAMAGE = 1 << 20  # bytes searched for the next packet behind damage
# Decoder, and the packets that it needs before its output is right. AAC and Vorbis overlap one frame; MP3 borrows bits
# from up to 511 bytes before; MPEG-4 SBR and Opus filters settle over some frames.
_PREROLL_PACKETS = {"aac": 4, "mp3": 4, "mp2": 2, "ac3": 2, "eac3": 2}
_MP3_RESERVOIR = 2048  # bytes; the format's 511 of main data, with room for headers and side information
_MP3_MAX_PREROLL = 64


@dataclass
class PacketTable:
    """Where the packets of a file lie. ``frame`` samples come out of each, fewer out of the last."""

    setup: DecoderSetup
    channels: int
    frame: int
    sizes: np.ndarray  # bytes of each packet
    positions: np.ndarray  # of each packet in the file, or of the first alone if they touch each other
    skip: int  # samples at the beginning that are the encoder's delay
    frames: int  # samples of the song

    @property
    def nbytes(self) -> int:
        return self.sizes.nbytes + self.positions.nbytes + 512

    def spans(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(position, size) of packets ``first`` to ``last - 1``."""
        sizes = self.sizes[first:last].astype(np.int64)
        if len(self.positions) == 1:
            positions = self.positions[0] + int(self.sizes[:first].sum(dtype=np.int64)) + np.cumsum(sizes) - sizes
        else:
            positions = self.positions[first:last]
        return zip(positions.tolist(), sizes.tolist(), strict=True)


@dataclass
class _Scan:
    """What one pass over a container tells; counts are in samples at the rate that the container names."""

    positions: list[int]
    sizes: list[int]
    skip: int = 0  # encoder delay that the container says
    before_zero: int = 0  # samples before time zero, which says the same in another way
    discard: int = 0  # padding at the end
    last: int = 0  # duration of the last packet, 0 if unsaid


def _told_skips(packet: Any) -> tuple[int, int]:
    """Samples to drop at a packet's beginning and at its end, as the container's reader says."""
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    begin, end = struct.unpack("<II", memoryview(packet.get_sidedata("skip_samples"))[:8])
    return begin, end


def _scan(container: Any, stream: Any, content: mmap.mmap) -> _Scan:
    import av

    scan = _Scan([], [])
    samples_a_tick = float(stream.time_base * stream.rate)
    latest: deque[Any] = deque(maxlen=2)
    drift = 0  # FFmpeg gives positions in a stream that it has cut damaged stretches from
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.pos is None:
                continue
            position = packet.pos + drift
            if content[position : position + 8] != bytes(memoryview(packet)[:8]):
                position = content.find(bytes(packet), position, position + _MAX_DAMAGE)
                if position < 0:
                    continue  # put together from pieces: it cannot be found again, and is no whole frame
                drift = position - packet.pos
            scan.positions.append(position)
            scan.sizes.append(packet.size)
            latest.append(packet)
            if len(scan.sizes) == 1 and packet.pts is not None:
                scan.before_zero = max(0, -round(packet.pts * samples_a_tick))
            if len(scan.sizes) <= 2:  # asking each packet would take four times as long
                scan.skip = max(scan.skip, _told_skips(packet)[0])
    except av.error.FFmpegError as error:
        if not scan.sizes:
            raise SourceError(describe(error)) from error  # of a file that is cut, what came before counts
    for packet in latest:
        scan.discard = max(scan.discard, _told_skips(packet)[1])
        scan.last = round((packet.duration or 0) * samples_a_tick)
    return scan


def _itunes_length(container: Any) -> tuple[int, int] | None:
    """(encoder delay, length) in samples from Apple's gapless note, if the file has one."""
    fields = str(container.metadata.get("iTunSMPB", "")).split()
    try:
        delay, length = int(fields[1], 16), int(fields[3], 16)
    except (IndexError, ValueError):
        return None
    return (delay, length) if length > 0 else None


# FFmpeg's names of its decoders → the kind of audio.
_KINDS = {"mp3float": "mp3", "mp3": "mp3", "mp2float": "mp2", "mp2": "mp2"} | {
    name: name for name in ("aac", "alac", "ac3", "eac3", "flac")
}
_LOSSLESS = ("alac", "flac")


def build_packet_table(path: Path) -> PacketTable:
    """Scan an MP3, AAC (ADTS or MP4) or ALAC file.

    Raises:
        SourceError: it cannot be read, or holds no audio of these kinds.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise SourceError("holds no audio")
            stream = container.streams.audio[0]
            context = stream.codec_context
            if context is None:
                raise SourceError("holds audio of an unknown kind")
            codec = _KINDS.get(context.name)
            if codec is None:
                raise SourceError(f"holds {context.name} audio, which cannot be read here")
            layout = context.layout.name if context.layout.nb_channels else ""
            setup = DecoderSetup(codec, context.extradata, context.sample_rate or 44100, layout)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                scan = _scan(container, stream, content)
            itunes = _itunes_length(container)
            durations_told = "mp4" in container.format.name or codec == "flac"
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SourceError(describe(error)) from error
    if not scan.sizes or (codec not in _LOSSLESS and max(scan.sizes) > _MAX_PACKET):
        raise SourceError("holds no audio packets")
    table = PacketTable(setup, 0, 0, np.asarray(scan.sizes), np.asarray(scan.positions), 0, 0)
    contiguous = bool(np.all(table.positions[:-1] + table.sizes[:-1] == table.positions[1:]))
    table.frame, table.channels, rate = _first_frames(path, table)
    # Spectral band replication doubles the rate, which only decoding reveals.
    scale = rate / setup.sample_rate
    table.setup = DecoderSetup(codec, setup.extradata, rate, setup.layout)
    last = round(scan.last * scale)
    last = last if durations_told and 0 < last < table.frame else table.frame
    total = table.frame * (len(scan.sizes) - 1) + last
    table.skip = round(max(scan.skip, scan.before_zero) * scale)
    table.frames = max(0, total - table.skip - round(scan.discard * scale))
    if itunes and round(sum(itunes) * scale) <= total:
        table.skip, table.frames = round(itunes[0] * scale), round(itunes[1] * scale)
    table.sizes = table.sizes.astype(np.uint16 if max(scan.sizes) < 1 << 16 else np.uint32)
    table.positions = table.positions[:1] if contiguous else table.positions.astype(np.int64)
    return table


def _first_frames(path: Path, table: PacketTable) -> tuple[int, int, int]:
    """(samples a packet, channels, rate) as the decoder gives them."""
    import av

    try:
        decoder = table.setup.create()
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(describe(error)) from error
    tried = min(_PROBED_PACKETS, len(table.sizes))
    shapes = []
    with path.open("rb") as file:
        for position, size in table.spans(0, tried):
            file.seek(position)
            with contextlib.suppress(av.error.FFmpegError, ValueError):
                frames = decoder.decode(av.Packet(file.read(size)))
                shapes += [(frame.samples, frame.layout.nb_channels, frame.sample_rate) for frame in frames]
    if 2 * len(shapes) < tried:
        raise SourceError("holds no audio that can be decoded")
    frame, channels, rate = shapes[min(2, len(shapes) - 1)]  # the first frames may not yet know their true rate
    return max(frame, max(s[0] for s in shapes)), channels, rate


class PacketSource(GridSource):
    """MP3, AAC and ALAC, decoded by FFmpeg on the grid."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        known = tables.get(path)
        if not isinstance(known, PacketTable):
            known = build_packet_table(path)
            tables.put(path, known)
        self._table = known
        self._file = path.open("rb")
        self.sample_rate, self.channels, self.frames = known.setup.sample_rate, known.channels, known.frames
        self._packets = max(1, GRID // known.frame)  # a segment
        segments = -(-len(known.sizes) // self._packets)
        edges = np.arange(segments + 1, dtype=np.int64) * self._packets * known.frame - known.skip
        self._bounds = edges

    def _preroll(self, first: int) -> int:
        codec = self._table.setup.codec
        begin = max(0, first - _PREROLL_PACKETS.get(codec, 0))
        if codec == "mp3":
            carried = int(self._table.sizes[begin:first].sum(dtype=np.int64))
            while begin > max(0, first - _MP3_MAX_PREROLL) and carried < _MP3_RESERVOIR:
                begin -= 1
                carried += int(self._table.sizes[begin])
        return begin

    def _segment(self, number: int) -> np.ndarray:
        table, first = self._table, number * self._packets
        last = min(first + self._packets, len(table.sizes))
        begin = self._preroll(first)

        def packets() -> Iterator[bytes]:
            for position, size in table.spans(begin, last):
                self._file.seek(position)
                yield self._file.read(size)

        result = np.zeros((self._packets * table.frame, self.channels), np.float32)
        lost = 0
        for packet, samples in enumerate(decode_packets(table.setup, packets()), start=begin):
            if packet < first:
                continue
            if samples is None or samples.shape[1] != self.channels:
                lost += 1  # a damaged packet stays silent, so that everything after it keeps its place
                continue
            at, samples = (packet - first) * table.frame, samples[: table.frame]
            result[at : at + len(samples)] = samples
        if lost == last - first:
            raise SourceError(f"is damaged near {max(0, self._bounds[number]) / self.sample_rate:.2f} s")
        return result

    def close(self) -> None:
        self._file.close()
