"""Write songs of noise with words and sketches, to see a whole training run without any data.

::

    python -m songbloom.data.prepare.dummy --output_dir data/dummy

Nothing can be learned from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from songbloom.audio.files import write_wav
from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import path_for
from songbloom.errors import UserError, counted
from songbloom.files import hold, write_text
from songbloom.sketch.files import SUFFIXES, write_sketch

LICENCE = "CC0 (noise)"
LEVEL = 0.2
"""Loudest sample of the noise."""
_LYRICS = "[verse]\nダミーノ ウタ {number}\n[chorus]\nラララ ダミー {number}\n"
_DIGITS = ("ゼロ", "イチ", "ニ", "サン", "ヨン", "ゴ", "ロク", "ナナ", "ハチ", "キュウ")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.prepare.dummy",
        description="Write a JSONL file with songs of white noise, to try programs with.",
    )
    parser.option("output_dir", required=True, metavar="DIR", help="folder for everything")
    parser.option("num_samples", type=int, default=4, help="number of songs")
    parser.option("duration_sec", type=float, default=30.0, help="seconds of a song")
    parser.option("sample_rate", type=int, default=48_000, help="Hz")
    parser.option("prompt_sec", type=float, default=10.0, help="seconds of the style prompt")
    parser.option("sketch_fps", type=float, default=25.0, help="sketch codes a second")
    parser.option("codebook_size", type=int, default=16_384, help="number of sketch codes")
    parser.option("sketch_ext", default=".npy", choices=SUFFIXES, help="kind of sketch file")
    parser.option("seed", type=int, default=1234, help="decides everything")
    parser.option("jsonl_path", default="", metavar="FILE", help="the list; dummy.jsonl in the folder if it is empty")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    for name, least in (
        ("num_samples", 1), ("duration_sec", 0.01), ("sample_rate", 1000), ("prompt_sec", 0.01), ("sketch_fps", 0.1),
        ("codebook_size", 1), ("seed", 0),
    ):  # fmt: skip
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name):g}; it must be {least:g} or more")
    folder = Path(options.output_dir).expanduser()
    hold(folder, busy="writing songs", instead="--output_dir")
    jsonl = Path(options.jsonl_path).expanduser() if options.jsonl_path else folder / "dummy.jsonl"
    rows = []
    print(f"dummy: {LICENCE}; nothing can be learned from it")
    for number in range(options.num_samples):
        name = f"dummy_{number:04d}"
        random = np.random.default_rng((options.seed, number))
        audio = folder / "audio" / f"{name}.wav"
        prompt = folder / "prompts" / f"{name}_prompt.wav"
        sketch = folder / "sketch" / f"{name}{options.sketch_ext}"
        for path, seconds in ((audio, options.duration_sec), (prompt, options.prompt_sec)):
            length = max(1, round(seconds * options.sample_rate))
            write_wav(path, random.uniform(-LEVEL, LEVEL, length), options.sample_rate)
        codes = random.integers(0, options.codebook_size, max(1, round(options.duration_sec * options.sketch_fps)))
        write_sketch(sketch, torch.from_numpy(codes))
        rows.append(
            {
                "idx": name,
                "audio_path": path_for(audio, jsonl.parent),
                "lyrics": _LYRICS.format(number=" ".join(_DIGITS[int(digit)] for digit in str(number))),
                "prompt_wav": path_for(prompt, jsonl.parent),
                "sketch_path": path_for(sketch, jsonl.parent),
                "language": "ja",
                "artist": "noise",
                "genre": "noise",
                "group": name,
                "licence": LICENCE,
                "source": "dummy",
            }
        )
    write_text(jsonl, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{jsonl}: {counted(len(rows), 'song')}")
    return 0


if __name__ == "__main__":
    sys.exit(run_as_command(main))
