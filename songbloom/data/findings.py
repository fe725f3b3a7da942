"""What a check of songs finds: errors and warnings with file and line, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from songbloom.errors import UserError, counted

Level = Literal["error", "warning"]
SHOWN = 20
"""Findings of one kind that are printed one by one; the JSON report has all."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``line`` counts from 1; 0 is the file as a whole."""

    file: str
    line: int
    level: Level
    kind: str  # for counting and for programs: json, field, missing, silent, tokens, …
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.level}: {self.message}"


@dataclass
class SongFacts:
    """What was found out about one song: ``tokens`` of its lyrics, ``seconds`` of its sound."""

    file: str
    line: int
    idx: str
    seconds: float = 0.0
    tokens: int = 0
    licence: str = ""
    group: str = ""


@dataclass
class Report:
    """All findings, in the order of files and lines, and the facts about each song."""

    findings: list[Finding] = field(default_factory=list)
    songs: list[SongFacts] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """What makes a song unusable."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is probably not meant."""
        return [finding for finding in self.findings if finding.level == "warning"]

    def add(self, file: str, line: int, level: Level, kind: str, message: str) -> None:
        """Note a finding once."""
        finding = Finding(
            file, line, level, kind, " ".join(message.encode("utf-8", "backslashreplace").decode("utf-8").split())
        )
        if finding not in self.findings[-50:]:
            self.findings.append(finding)

    def sort(self) -> None:
        """Files in the order they were given, lines in theirs, findings of the whole file first."""
        order = {name: place for place, name in enumerate(dict.fromkeys(f.file for f in self.findings))}
        self.findings.sort(key=lambda finding: (order[finding.file], finding.line))

    def lines(self, shown: int = SHOWN) -> Iterator[str]:
        """The findings as people read them, at most ``shown`` of a kind, then how many more there are."""
        counts: Counter[tuple[Level, str]] = Counter()
        for finding in self.findings:
            key = finding.level, finding.kind
            counts[key] += 1
            if counts[key] <= shown:
                yield str(finding)
        for (level, kind), count in counts.items():
            if count > shown:
                yield f"… and {counted(count - shown, f'more {level}')} of this kind ({kind}); --json lists all"

    def summary(self) -> str:
        """One line: songs, length, errors, warnings."""
        seconds = sum(song.seconds for song in self.songs)
        length = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
        parts = [counted(len(self.errors), "error")]
        parts.append(counted(len(self.warnings), "warning"))
        return f"{counted(len(self.songs), 'song')}, {length}: {', '.join(parts)}"

    def licences(self) -> list[str]:
        """A line for each licence and how many songs have it; nothing if no song has one."""
        counts = Counter(song.licence for song in self.songs)
        if set(counts) <= {""}:
            return []
        return [f"licence of {counted(count, 'song')}: {name or 'not stated'}" for name, count in counts.most_common()]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": 1,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [asdict(finding) for finding in self.findings],
            "songs": [asdict(song) for song in self.songs],
        }

    def text(self) -> str:
        """JSON with all findings."""
        text = json.dumps(self.plain(), ensure_ascii=False, indent=1) + "\n"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half characters from a line with mistakes

    def refuse(self) -> None:
        """Stop if there is an error.

        Raises:
            UserError: names the first one and how many there are.
        """
        if self.errors:
            more = len(self.errors) - 1
            rest = f" (and {counted(more, 'more error')}: python -m songbloom.data.check lists all)" if more else ""
            raise UserError(f"{str(self.errors[0]).replace(': error: ', ': ', 1)}{rest}")
