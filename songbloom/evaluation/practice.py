"""Practice lines for the recogniser: random morae, sung on random melodies by the voices of the sung corpus.

::

    python -m songbloom.evaluation.practice --output_dir practice --lines 400 --seed 0

Songs have words, so a recogniser of their phonemes can guess what comes next and need not listen; some phonemes are
rare in them, or missing. Here any mora follows any other, and all are there. The folder gets ``songs.jsonl`` in the
corpus's layout (``audio_path`` a mono file, ``vocals_path`` the same, ``phonemes_path``). The same seed gives the same
lines; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.audio.files import write_wav
from songbloom.data.prepare.sung.lyric_lines import Line
from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.voices import (
    FRAME,
    FRAME_SECONDS,
    SAMPLE_RATE,
    VOICES,
    PhraseNotes,
    SungPhrase,
    Voice,
    choose_voices,
    load_voice,
)
from songbloom.data.prepare.sung.words import mora_table, read_line
from songbloom.errors import UserError, counted
from songbloom.files import write_text
from songbloom.hyperparams import Knob, Knobs, group

KNOBS = Knobs(
    group(
        "practice",
        "Lines to render",
        output_dir=Knob("", "Folder for the lines, needed; made if it does not exist"),
        lines=Knob(400, "How many", minimum=1),
        seed=Knob(0, "Decides every line", minimum=0),
        voices=Knob("auto", f"Comma list of {', '.join(VOICES)}; auto: all that are installed"),
        help=Knob(False, "Print this, and stop"),
    )
)
USAGE = "usage: python -m songbloom.evaluation.practice --output_dir=DIR [--key=value …]"
_ATTEMPTS = 12  # readings that Open JTalk takes for words are drawn again
_STOPPED = "かきくけこさしすせそたちつてとぱぴぷぺぽ"  # kana that っ may stand before
_LENGTHS = (1, 2, 2, 2, 3, 4, 4, 6)  # sixteenths of a note
_SCALE = (0, 2, 4, 7, 9)
_FIRST = 8  # sixteenths of silence before
_LEVEL = 0.25  # peak of a line; training changes it


def draw_reading(rng: np.random.Generator) -> str:
    """Seven to sixteen random morae in hiragana: half of them plain kana, half any mora that there is."""
    every = [mora for mora in mora_table() if mora not in ("っ", "ん", "ゔ")]
    plain = [mora for mora in every if len(mora) == 1 and mora not in "ゐゑを"]
    morae: list[str] = []
    for _ in range(int(rng.integers(7, 17))):
        chosen = plain if rng.random() < 0.5 else every
        mora = chosen[int(rng.integers(len(chosen)))]
        if morae and mora[0] in _STOPPED and morae[-1] != "ん" and rng.random() < 0.25:
            morae.append("っ")
        morae.append(mora)
        if rng.random() < 0.08:
            morae.append("ん")
    return "".join(morae)


def draw_notes(rng: np.random.Generator, lowest: int, highest: int) -> PhraseNotes:
    """A line of random morae on a random walk through a five-note scale between two MIDI pitches.

    Raises:
        UserError: Open JTalk reads the kana otherwise.
    """
    reading_text = draw_reading(rng)
    reading = read_line(Line(reading_text, reading_text))
    key = int(rng.integers(12))
    scale = [pitch for pitch in range(lowest, highest + 1) if (pitch - key) % 12 in _SCALE]
    place = int(rng.integers(len(scale)))
    midi, edges = [], [_FIRST]
    for _ in reading.syllables:
        place = int(np.clip(place + rng.integers(-2, 3), 0, len(scale) - 1))
        midi.append(scale[place])
        edges.append(edges[-1] + int(rng.choice(_LENGTHS)))
    return PhraseNotes(reading, tuple(midi), tuple(edges), 15.0 / float(rng.uniform(75, 145)))


def sing_line(seed: int, index: int, voices: dict[str, Voice]) -> tuple[SungPhrase, str, PhraseNotes] | None:
    """Line ``index`` of a seed: sound and phonemes, the singer's name, the notes; None where nothing could be sung."""
    rng = np.random.default_rng([seed, index])
    voice = list(voices.values())[index % len(voices)]
    info = voice.info
    for _ in range(_ATTEMPTS):
        timbre = info.timbres[int(rng.integers(len(info.timbres)))]
        try:
            notes = draw_notes(rng, info.lowest, info.highest)
            phrase = voice.sing(notes, timbre, rng)
        except (UserError, UnusableRendering):
            continue
        if np.isfinite(phrase.wave).all() and 1e-3 < np.abs(phrase.wave).max() < 8:
            return phrase, info.artist(timbre), notes
    return None


def write_line(folder: Path, index: int, sung: tuple[SungPhrase, str, PhraseNotes]) -> dict[str, Any]:
    """Write the files of a line; returns its line of ``songs.jsonl``."""
    phrase, artist, notes = sung
    name = f"{index:05d}"
    rows = [
        {
            "phoneme": "pau" if timed.note is None else timed.phoneme,
            "start": round(max(0, timed.start - phrase.start) * FRAME_SECONDS, 3),
            "end": round((timed.end - phrase.start) * FRAME_SECONDS, 3),
            "midi": None if timed.note is None else notes.midi[timed.note],
        }
        for timed in phrase.phonemes
    ]
    wave = phrase.wave[: phrase.phonemes[-1].end * FRAME - phrase.start * FRAME]
    write_wav(folder / "lines" / f"{name}.wav", (wave * (_LEVEL / np.abs(wave).max())).astype(np.float32), SAMPLE_RATE)
    write_text(folder / "lines" / f"{name}.json", json.dumps({"phonemes": rows}, ensure_ascii=False) + "\n")
    return {
        "audio_path": f"lines/{name}.wav",
        "vocals_path": f"lines/{name}.wav",
        "phonemes_path": f"lines/{name}.json",
        "idx": index,
        "artist": artist,
        "lyrics": notes.reading.line.reading,
        "language": "ja",
    }


def render(folder: Path, lines: int, seed: int, names: Sequence[str]) -> Path:
    """Render what is missing of a folder of practice lines; returns its ``songs.jsonl``.

    Raises:
        UserError: the folder holds lines of another seed or other voices.
    """
    recipe = {"seed": seed, "voices": list(names)}
    about = folder / "recipe.json"
    if about.is_file() and json.loads(about.read_text(encoding="utf-8")) != recipe:
        raise UserError(f"{folder}: holds practice lines of another seed or other voices; choose another --output_dir")
    write_text(about, json.dumps(recipe) + "\n")
    voices = {name: load_voice(name) for name in names}
    rows: list[dict[str, Any]] = []
    for index in range(lines):
        kept = folder / "lines" / f"{index:05d}.row"
        if not kept.is_file():
            sung = sing_line(seed, index, voices)
            write_text(kept, json.dumps(write_line(folder, index, sung) if sung else None, ensure_ascii=False) + "\n")
        row = json.loads(kept.read_text(encoding="utf-8"))
        if row is not None:
            rows.append(row)
        if (index + 1) % 50 == 0 or index + 1 == lines:
            print(f"[{index + 1}/{lines}] {counted(len(rows), 'line')}", flush=True)
    if not rows:
        raise UserError(f"{folder}: none of {lines} lines could be sung")
    write_text(folder / "songs.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder / "songs.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = KNOBS.merge({}, "", KNOBS.parse(sys.argv[1:] if arguments is None else arguments))
        if options.help:
            print(KNOBS.help(USAGE))
            return 0
        if not options.output_dir:
            raise UserError("--output_dir is missing: give a folder for the practice lines")
        names, notes = choose_voices(options.voices)
        for note in notes:
            print(note)
        render(Path(options.output_dir), options.lines, options.seed, names)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
