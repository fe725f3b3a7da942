"""Where the packets and samples of an Ogg stream lie (RFC 3533; Vorbis I specification; RFC 7845 for Opus).

An Ogg page says how many samples are complete at its end (its granule position), so a table of pages is enough to
start decoding near any sample and to know exactly which samples come out. The seek functions of common libraries
are not exact for Vorbis streams with mixed block sizes, which is why the pages are read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

CAPTURE = b"OggS"
_HEADER_PACKETS = {"vorbis": 3, "opus": 2}
_SEARCH = 1 << 16  # bytes looked through at a time for the next page after damage


class OggError(Exception):
    """The file is no Ogg stream that can be followed; the message says why, without the file's name."""


@dataclass
class Page:
    """One page: where it lies, which packets end on it, and how many samples are complete after it."""

    position: int  # of the page in the file, bytes
    size: int  # header and body, bytes
    granule: int  # samples complete at the end of this page, or -1 if no packet ends on it
    serial: int
    first: bool  # the first page of its stream
    last: bool  # the last page of its stream
    continued: bool  # begins with the rest of a packet that began on an earlier page
    lacing: bytes = field(repr=False)  # segment lengths: a packet ends at each value below 255

    @property
    def packets_ended(self) -> int:
        return sum(1 for value in self.lacing if value < 255)


def page_at(file: BinaryIO, position: int, end: int) -> Page | None:
    """The page that begins exactly at ``position``, or None (also for a page that the file's ``end`` cuts off)."""
    file.seek(position)
    head = file.read(27)
    if len(head) < 27 or head[:4] != CAPTURE:
        return None
    lacing = file.read(head[26])
    size = 27 + head[26] + sum(lacing)
    if len(lacing) < head[26]:
        return None
    if end < position + size:
        return None
    flags = head[5]
    granule = int.from_bytes(head[6:14], "little", signed=True)
    serial = int.from_bytes(head[14:18], "little")
    return Page(position, size, granule, serial, bool(flags & 2), bool(flags & 4), bool(flags & 1), lacing)


def _next_capture(file: BinaryIO, position: int) -> int | None:
    """Where the capture pattern next appears at or after ``position``."""
    file.seek(position)
    tail = b""
    while block := file.read(_SEARCH):
        found = (tail + block).find(CAPTURE)
        if found >= 0:
            return position - len(tail) + found
        position += len(block)
        tail = block[-3:]
    return None


def pages_of(file: BinaryIO) -> list[Page]:
    """Every whole page of the file in order; damaged stretches are stepped over.

    Raises:
        OggError: no page was found.
    """
    pages: list[Page] = []
    end = file.seek(0, 2)
    position: int | None = _next_capture(file, 0)
    while position is not None:
        page = page_at(file, position, end)
        if page is None:
            position = _next_capture(file, position + 1)
            continue
        pages.append(page)
        position += page.size
    if not pages:
        raise OggError("has no whole Ogg page")
    return pages


def packets_in(file: BinaryIO, pages: list[Page]) -> list[list[bytes]]:
    """For each of the given successive pages of one stream, the packets that end on it.

    A packet that began before the first page is left out.
    """
    result: list[list[bytes]] = []
    pending: bytearray | None = None
    for number, page in enumerate(pages):
        if number == 0 and page.continued:
            pending = None  # its beginning is not here
        elif not page.continued:
            pending = bytearray()
        file.seek(page.position + 27 + len(page.lacing))
        body = file.read(page.size - 27 - len(page.lacing))
        ended: list[bytes] = []
        at = 0
        for value in page.lacing:
            if pending is not None:
                pending += body[at : at + value]
            at += value
            if value < 255:
                if pending is not None:
                    ended.append(bytes(pending))
                pending = bytearray()
        result.append(ended)
    return result


@dataclass
class OggStream:
    """The first Vorbis or Opus stream of a file."""

    codec: str  # "vorbis" | "opus"
    channels: int
    sample_rate: int
    preskip: int  # samples at the beginning that are no music (Opus), else 0
    headers: list[bytes]
    pages: list[Page]  # pages with audio, in order

    @property
    def extradata(self) -> bytes:
        """The header packets as decoders want them: Opus the first one, Vorbis all three with Xiph lacing."""
        if self.codec == "opus":
            return self.headers[0]
        sizes = b"".join(bytes([255] * (len(h) // 255) + [len(h) % 255]) for h in self.headers[:-1])
        return bytes([len(self.headers) - 1]) + sizes + b"".join(self.headers)


def identify(path: Path) -> str:
    """What the first packet of an Ogg file says it is: ``vorbis``, ``opus``, or ``other``."""
    with path.open("rb") as file:
        head = file.read(_SEARCH)
    if b"OpusHead" in head[:4096]:
        return "opus"
    if b"\x01vorbis" in head[:4096]:
        return "vorbis"
    return "other"


def read_stream(path: Path) -> OggStream:
    """Read the page table of the first Vorbis or Opus stream of ``path``. Of a chain of streams, the first counts.

    Raises:
        OggError: no such stream, or no audio in it.
    """
    with path.open("rb") as file:
        pages = pages_of(file)
        for start in (page for page in pages if page.first):
            first = packets_in(file, [start])[0]
            packet = first[0] if first else b""
            codec = "opus" if packet[:8] == b"OpusHead" else "vorbis" if packet[:7] == b"\x01vorbis" else ""
            if codec:
                break
        else:
            raise OggError("holds neither Vorbis nor Opus")
        mine = _pages_of_one_stream(pages, start)
        headers: list[bytes] = []
        used = 0
        for used in range(1, len(mine) + 1):
            if sum(page.packets_ended for page in mine[:used]) >= _HEADER_PACKETS[codec]:
                break
        for ended in packets_in(file, mine[:used]):
            headers += ended
    audio = mine[used:]
    while audio and audio[-1].granule < 0:
        audio.pop()  # packets that never end
    if len(headers) < _HEADER_PACKETS[codec] or not audio:
        raise OggError("ends before any audio")
    if codec == "opus":
        preskip, rate = int.from_bytes(packet[10:12], "little"), 48000
        channels = packet[9]
    else:
        preskip, rate = 0, int.from_bytes(packet[12:16], "little")
        channels = packet[11]
    return OggStream(codec, channels, rate, preskip, headers[: _HEADER_PACKETS[codec]], audio)


def _pages_of_one_stream(pages: list[Page], start: Page) -> list[Page]:
    """The pages of ``start``'s stream up to its end: its last page, the next chained stream, or time running back."""
    mine: list[Page] = []
    granule = 0
    for page in pages:
        if page.position < start.position or page.serial != start.serial:
            continue
        if page.first and page is not start:
            break
        if page.granule >= 0:
            if page.granule < granule:
                break
            granule = page.granule
        mine.append(page)
        if page.last:
            break
    return mine
