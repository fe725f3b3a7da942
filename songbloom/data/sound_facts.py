"""What an audio file sounds like, measured over the whole of it: level, silence, clipping, channels, content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.decoding import SourceError
from songbloom.audio.files import ABSURD
from songbloom.audio.sources import open_source
from songbloom.errors import UserError, counted, reason
from songbloom.files import write_text

FORMAT = 1  # of the remembered facts
SILENCE = 1e-3
"""A tenth of a second whose samples all stay below this (-60 dB of full scale) is silent."""
FULL = 0.9995
"""Three samples in a row from here on are clipped."""
_STEP = 0.1  # seconds that are judged together
_BLOCK = 20  # of them that are read together


@dataclass(frozen=True)
class SoundFacts:
    """Of one file. ``error`` says why nothing else is known.

    ``silent`` and ``longest_silence`` are seconds without sound, ``lead`` those before the first; ``clipped`` is the
    share of samples that are cut off; ``empty_channel`` the first channel (from 1) that is silent while another is not,
    or 0; ``digest`` is that of the samples in 16 bits, so it is the same for WAV and FLAC.
    """

    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    peak: float = 0.0
    silent: float = 0.0
    lead: float = 0.0
    longest_silence: float = 0.0
    clipped: float = 0.0
    empty_channel: int = 0
    same_channels: bool = False
    digest: str = ""
    error: str = ""


def measure(path: Path) -> SoundFacts:
    """Decode a file from beginning to end, a few seconds at a time. Never raises for what a file holds."""
    try:
        source = open_source(path)
    except SourceError as error:
        return SoundFacts(error=str(error))
    except OSError as error:
        return SoundFacts(error=reason(error).lower())
    try:
        return _measure(source) if source.frames else SoundFacts(error="holds no samples")
    except (SourceError, OSError) as error:
        return SoundFacts(error=str(error))
    finally:
        source.close()


def _measure(source: Any) -> SoundFacts:
    rate, channels, frames = source.sample_rate, source.channels, source.frames
    step = max(1, round(rate * _STEP))
    digest = hashlib.sha256(f"{rate} {channels} {frames}".encode())
    quiet: list[bool] = []
    peaks = np.zeros(channels)
    clipped, same = 0, channels > 1
    for start in range(0, frames, step * _BLOCK):
        block = source.read(start, min(start + step * _BLOCK, frames))
        loud = np.abs(block)
        if not loud.max(initial=0.0) < ABSURD:  # false for NaN, too
            raise SourceError(f"is damaged near {start / rate:.0f} s (values that are no audio)")
        digest.update(np.clip(np.rint(block * 32768), -32768, 32767).astype("<i2").tobytes())
        peaks = np.maximum(peaks, loud.max(axis=0))
        full = loud >= FULL
        clipped += int((full[:-2] & full[1:-1] & full[2:]).sum())
        same = same and bool((block[:, 1:] == block[:, :1]).all())
        loudest = loud.max(axis=1)
        quiet += [bool(loudest[at : at + step].max() < SILENCE) for at in range(0, len(loudest), step)]
    runs = _runs(quiet)
    empty = next((i + 1 for i, peak in enumerate(peaks) if peak < SILENCE <= peaks.max()), 0)
    return SoundFacts(
        seconds=frames / rate,
        sample_rate=rate,
        channels=channels,
        peak=round(float(peaks.max()), 6),
        silent=min(sum(quiet) * _STEP, frames / rate),
        lead=round((runs[0] if runs and quiet[0] else 0) * _STEP, 3),
        longest_silence=round(max(runs, default=0) * _STEP, 3),
        clipped=clipped / (frames * channels),
        empty_channel=empty,
        same_channels=same,
        digest=digest.hexdigest(),
    )


def _runs(quiet: Sequence[bool]) -> list[int]:
    """Lengths of silent stretches, in steps."""
    lengths: list[int] = []
    before = False
    for now in quiet:
        if now and before:
            lengths[-1] += 1
        elif now:
            lengths.append(1)
        before = now
    return lengths


class Memory:
    """Facts by file in one JSON file; they hold while a file's size and time of change are the same.

    A place that cannot be read or written is no error: then everything is measured again the next time.
    """

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if place is not None:
            try:
                content = json.loads(place.read_bytes())
                if content["format"] == FORMAT and isinstance(content["files"], dict):
                    self._known = content["files"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                pass

    def look(self, paths: Sequence[Path], progress: Callable[[str], None] | None = None) -> dict[Path, SoundFacts]:
        """Facts of each file, measured where they are not remembered; several files at once."""
        found: dict[Path, SoundFacts] = {}
        missing: list[tuple[Path, str, list[int]]] = []
        for path in dict.fromkeys(paths):
            try:
                stat = path.stat()
            except OSError as error:
                found[path] = SoundFacts(error=reason(error).lower())
                continue
            stamp = [stat.st_size, stat.st_mtime_ns]
            known = self._remembered(str(path), stamp)
            if known is not None:
                found[path] = known
            else:
                missing.append((path, str(path), stamp))
        begun = said = saved = time.monotonic()
        with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
            for number, ((path, name, stamp), facts) in enumerate(
                zip(missing, pool.map(measure, [path for path, *_ in missing]), strict=True), start=1
            ):
                found[path] = facts
                if not facts.error:  # the cause may be gone the next time, with the same file
                    self._known[name] = [*stamp, asdict(facts)]
                    self._changed = True
                now = time.monotonic()
                if progress is not None and now - said > 10 and number < len(missing):
                    progress(f"listened to {number} of {counted(len(missing), 'file')}")
                    said = now
                if now - saved > 30:
                    self.save()
                    saved = now
        if progress is not None and said > begun:
            progress(f"listened to {len(missing)} of {counted(len(missing), 'file')}")
        self.save()
        return found

    def _remembered(self, name: str, stamp: list[int]) -> SoundFacts | None:
        entry = self._known.get(name)
        if not isinstance(entry, list) or len(entry) != 3 or entry[:2] != stamp or not isinstance(entry[2], dict):
            return None
        known = {field.name for field in fields(SoundFacts)}
        return SoundFacts(**entry[2]) if set(entry[2]) == known else None

    def save(self) -> None:
        """Write what is new, in one step."""
        if self._place is None or not self._changed:
            return
        try:
            write_text(self._place, json.dumps({"format": FORMAT, "files": self._known}))
        except UserError:
            return
        self._changed = False
