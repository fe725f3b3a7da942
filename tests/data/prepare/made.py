"""Small corpora of the true layouts: scores, labels and recordings whose voice sounds where the score says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.files import write_wav

ROOT = Path(__file__).parents[3]
RATE = 48_000
LINES = ("さくらさいた", "はるのかぜ")
"""Sung one mora a second, with two seconds before each line: 2 to 8 s and 10 to 15 s."""
SPANS = ((2.0, 8.0), (10.0, 15.0))
SECONDS = 17.0


def score(lines: Sequence[str] = LINES, *, part: str = "Lead vocal", marks: Sequence[str] = (), rest: int = 2) -> str:
    """MusicXML: one quarter a character, 60 a minute, ``rest`` quarters before each line; ``marks`` above the lines."""
    measures = []
    for number, line in enumerate(lines):
        first = '<attributes><divisions>1</divisions></attributes><sound tempo="60"/>' if number == 0 else ""
        mark = ""
        if number < len(marks) and marks[number]:
            mark = f"<direction><direction-type><rehearsal>{marks[number]}</rehearsal></direction-type></direction>"
        notes = "".join(
            "<note><pitch><step>A</step><octave>4</octave></pitch><duration>1</duration><voice>1</voice>"
            f"<lyric><syllabic>single</syllabic><text>{character}</text></lyric></note>"
            for character in (line.split(" ") if " " in line else line)
        )
        silence = f"<note><rest/><duration>{rest}</duration><voice>1</voice></note>"
        measures.append(f'<measure number="{number + 1}">{first}{silence}{mark}{notes}</measure>')
    return (
        '<?xml version="1.0" encoding="UTF-8"?><score-partwise><part-list><score-part id="P1">'
        f'<part-name>{part}</part-name></score-part></part-list><part id="P1">{"".join(measures)}</part>'
        "</score-partwise>"
    )


def voice(
    path: Path,
    spans: Sequence[tuple[float, float]] = SPANS,
    seconds: float = SECONDS,
    *,
    seed: int = 0,
    rate: int = RATE,
) -> Path:
    """A recording: noise where somebody sings, silence elsewhere."""
    audio = np.zeros(round(seconds * rate), np.float32)
    random = np.random.default_rng(seed)
    for start, end in spans:
        first, last = round(start * rate), round(end * rate)
        audio[first:last] = random.uniform(-0.3, 0.3, last - first)
    write_wav(path, audio, rate)
    return path


def text(path: Path, content: str) -> Path:
    """A text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def run(module: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
