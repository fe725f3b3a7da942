"""One song from its number: drawn, sung, accompanied, checked, mixed, and written as a folder of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from songbloom.data.prepare.sung import band, check
from songbloom.data.prepare.sung.melody import Composition, compose
from songbloom.data.prepare.sung.musicxml import Score, ScoreNote, key_fifths, key_name, write_score
from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.voices import (
    FRAME,
    FRAME_SECONDS,
    SAMPLE_RATE,
    VOICES,
    PhraseNotes,
    SungPhrase,
    Timbre,
    Voice,
    VoiceInfo,
    load_voice,
)
from songbloom.errors import UserError

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other songs than before."""

ATTEMPTS = 8
"""How often a song is drawn before it is given up."""

_COMPOSITION, _RENDITION, _ORDER = 1, 2, 3  # streams of random numbers
_TAIL_SECONDS = 0.6  # after the last bar, for the room
_VOWEL_LEVEL = 0.1
_PEAK, _LOUDNESS = 0.89, 10 ** (-16 / 20)  # ceiling and wanted root mean square of the mix
_AUDIO = ("mix", "vocals", "backing")


@dataclass(frozen=True)
class Recipe:
    """What decides the songs of a corpus. The number of songs does not: song 5 is the same in a corpus of 6 or 600."""

    seed: int
    seconds: float
    voices: tuple[str, ...]
    styles: tuple[str, ...]
    versions: int
    bits: int
    generator: int = GENERATOR_VERSION

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Performance:
    """A sung song before mixing."""

    composition: Composition
    tonic: int
    info: VoiceInfo
    timbre: Timbre
    notes: tuple[PhraseNotes, ...]
    phrases: tuple[SungPhrase, ...]
    measured: tuple[check.Measured, ...]
    frames: int


def _in_turn(seed: int, what: int, options: int, number: int) -> int:
    """Option for a number such that any ``options`` numbers in a row, from a multiple on, get each option once."""
    order = np.random.default_rng([seed, _ORDER, what, number // options]).permutation(options)
    return int(order[number % options])


def singer_of(recipe: Recipe, index: int) -> tuple[VoiceInfo, Timbre]:
    """Voice and timbre of a song."""
    singers = [(VOICES[key], timbre) for key in recipe.voices for timbre in VOICES[key].timbres]
    return singers[_in_turn(recipe.seed, 0, len(singers), index)]


def perform(recipe: Recipe, index: int, attempt: int, voices: dict[str, Voice]) -> Performance:
    """Draw and sing song ``index``; odd attempts change the key only, even ones the whole composition.

    Raises :class:`UnusableRendering` when a phrase fails a check. ``voices`` keeps loaded voices between calls.
    """
    group = index // recipe.versions
    turn = _in_turn(recipe.seed, 1, len(recipe.styles), group)
    order = [*recipe.styles[turn:], *recipe.styles[:turn]]
    composition = compose(
        np.random.default_rng([recipe.seed, _COMPOSITION, group, attempt // 2]), order, recipe.seconds
    )
    rng = np.random.default_rng([recipe.seed, _RENDITION, index, attempt])
    info, timbre = singer_of(recipe, index)
    low, high = composition.pitch_range
    tonic = int(rng.integers(info.lowest - low, info.highest - high + 1))
    if info.key not in voices:
        voices[info.key] = load_voice(info.key)
    sung, notes, measured = [], [], []
    for phrase in composition.phrases:
        edges = (*(note.start for note in phrase.notes), phrase.end)
        wanted = PhraseNotes(
            phrase.reading, tuple(tonic + note.pitch for note in phrase.notes), edges, composition.step_seconds
        )
        result = voices[info.key].sing(wanted, timbre, rng)
        figures = check.measure(result, wanted)
        check.judge(figures, phrase.line.text)
        sung.append(result)
        notes.append(wanted)
        measured.append(figures)
    frames = int(np.ceil((composition.seconds + _TAIL_SECONDS) / FRAME_SECONDS))
    return Performance(composition, tonic, info, timbre, tuple(notes), tuple(sung), tuple(measured), frames)


def _without_rumble(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take away what lies below about 40 Hz, moving nothing in time: the voices' pulses have a constant part."""
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    kept = hertz**4 / (hertz**4 + 40.0**4)
    return np.fft.irfft(np.fft.rfft(wave) * kept, len(wave))


def mix(song: Performance, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Stereo ``mix`` and ``backing`` [samples, 2] and mono ``vocals`` [samples]; the mix is exactly their sum."""
    samples = song.frames * FRAME
    vocals = np.zeros(samples)
    for phrase, parent, figures in zip(song.phrases, song.composition.phrases, song.measured, strict=True):
        kind = song.composition.sections[parent.section].kind
        gain = _VOWEL_LEVEL / figures.level * (1.15 if kind == "chorus" else 1.0) * rng.uniform(0.95, 1.05)
        start = phrase.start * FRAME
        skip = max(0, -start)
        piece = phrase.wave[skip : max(skip, samples - start)]
        vocals[start + skip : start + skip + len(piece)] += gain * piece
    vocals = _without_rumble(vocals)
    backing = band.play(song.composition, song.tonic, samples, rng)
    time = np.arange(samples) / SAMPLE_RATE
    backing *= np.clip((samples / SAMPLE_RATE - time) / _TAIL_SECONDS, 0.0, 1.0)[:, None]
    below = rng.uniform(4.0, 7.0)  # decibels that the band is softer than the singer's vowels
    backing *= _VOWEL_LEVEL * 10 ** (-below / 20) / np.sqrt(np.mean(np.sum(backing**2, axis=1) / 2))
    both = vocals[:, None] + backing
    peak = max(float(np.abs(x).max()) for x in (both, vocals, backing))
    gain = min(_PEAK / peak, _LOUDNESS / float(np.sqrt(np.mean(both**2))))
    return {"mix": gain * both, "vocals": gain * vocals, "backing": gain * backing}


def timed_phonemes(song: Performance) -> list[dict[str, Any]]:
    """Phonemes of the whole song, from 0 to its end without gaps; silence between phrases is one ``pau``."""
    rows: list[dict[str, Any]] = []

    def add(phoneme: str, start: int, end: int, **more: Any) -> None:
        if end > start:
            times = {"start": round(start * FRAME_SECONDS, 3), "end": round(end * FRAME_SECONDS, 3)}
            rows.append({"phoneme": phoneme, **times, "midi": None, "exact": True, **more})

    place = 0
    for line, (phrase, notes) in enumerate(zip(song.phrases, song.notes, strict=True)):
        for phoneme in phrase.phonemes:
            if phoneme.note is None:
                continue
            add("pau", place, phoneme.start)
            kana = notes.reading.syllables[phoneme.note].kana
            midi = notes.midi[phoneme.note]
            add(phoneme.phoneme, phoneme.start, phoneme.end, midi=midi, kana=kana, line=line, note=phoneme.note)
            place = phoneme.end
    add("pau", place, song.frames)
    return rows


def score_of(song: Performance, title: str) -> Score:
    """The vocal part as a score."""
    composition = song.composition
    notes = [
        ScoreNote(note.start, note.length, song.tonic + note.pitch, note.kana)
        for phrase in composition.phrases
        for note in phrase.notes
    ]
    minor = composition.mode.startswith("minor")
    style = composition.style
    return Score(
        title, notes, composition.bars * style.steps_per_bar, style.beats, style.beat_type, composition.tempo,
        key_fifths(song.tonic, minor), "minor" if minor else "major", f"{song.info.credit}, {song.info.licence}",
    )  # fmt: skip


def lyrics_of(composition: Composition) -> str:
    """The words with a structure tag before each section and an empty line between sections."""
    blocks = []
    for number, section in enumerate(composition.sections):
        lines = [phrase.line.text for phrase in composition.phrases if phrase.section == number]
        if lines:
            blocks.append("\n".join([f"[{section.kind}]", *lines]))
    return "\n\n".join(blocks)


def describe(recipe: Recipe, index: int, song: Performance, redraws: list[dict[str, str]]) -> dict[str, Any]:
    """What ``song.json`` says, apart from the list of files."""
    composition, bar = song.composition, song.composition.style.steps_per_bar
    minor = composition.mode.startswith("minor")
    step = composition.step_seconds
    lines = [
        {
            "section": phrase.section,
            "text": phrase.line.text,
            "reading": phrase.line.reading,
            "start": round(phrase.notes[0].start * step, 4),
            "end": round(phrase.end * step, 4),
        }
        for phrase in composition.phrases
    ]
    return {
        "idx": index,
        "title": f"{composition.phrases[0].line.text} ({index})",
        "group": f"{recipe.seed}-{index // recipe.versions:05d}",
        "artist": song.info.artist(song.timbre),
        "genre": composition.style.name,
        "language": "ja",
        "lyrics": lyrics_of(composition),
        "lyrics_kana": "\n".join(phrase.line.reading for phrase in composition.phrases),
        "theme": composition.theme,
        "seconds": round(song.frames * FRAME_SECONDS, 3),
        "sample_rate": SAMPLE_RATE,
        "tempo": composition.tempo,
        "meter": f"{composition.style.beats}/{composition.style.beat_type}",
        "key": f"{key_name(song.tonic, minor)} {'minor' if minor else 'major'}",
        "scale": composition.mode,
        "voice": song.info.key,
        "timbre": asdict(song.timbre),
        "voice_licence": song.info.licence,
        "voice_licence_url": song.info.licence_url,
        "voice_credit": song.info.credit,
        "sections": [
            {
                "kind": s.kind,
                "start": round(s.start_bar * bar * step, 4),
                "end": round((s.start_bar + s.bars) * bar * step, 4),
            }
            for s in composition.sections
        ],
        "lines": lines,
        "chords": [
            {
                "start": round(c.start * step, 4),
                "end": round((c.start + c.length) * step, 4),
                "degree": c.name,
                "midi": [song.tonic + tone for tone in c.tones],
            }
            for c in composition.chords
        ],
        "melody_by_frames": all(phrase.melody_by_frames for phrase in song.phrases),
        "quality": check.summary(song.measured),
        "redraws": redraws,
        "recipe": recipe.plain(),
    }


def folder_of(output_dir: Path, index: int) -> Path:
    """Where a song's files stand."""
    return output_dir / "songs" / f"{index:05d}"


def is_complete(folder: Path, recipe: Recipe) -> bool:
    """Whether ``folder`` holds a finished song of this recipe.

    Raises :class:`UserError` when it holds a song of another recipe. A damaged song counts as not finished.
    """
    try:
        description = json.loads((folder / "song.json").read_text(encoding="utf-8"))
        made_with, files = description["recipe"], description["files"]
        sizes_agree = all((folder / name).stat().st_size == facts["bytes"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    for name, value in recipe.plain().items():
        if made_with.get(name) != value:
            raise UserError(
                f"{folder} was made with {name}={made_with.get(name)!r}, not {value!r}; "
                "choose another --output_dir, or delete this one"
            )
    return sizes_agree


def _write_files(folder: Path, recipe: Recipe, song: Performance, audio: dict[str, Any], about: dict[str, Any]) -> None:
    for name in _AUDIO:
        soundfile.write(folder / f"{name}.flac", audio[name], SAMPLE_RATE, subtype=f"PCM_{recipe.bits}")
    phonemes = timed_phonemes(song)
    times = {
        "sample_rate": SAMPLE_RATE,
        "frame_seconds": FRAME_SECONDS,
        "exact": all(row["exact"] for row in phonemes),
        "how": "read back from the synthesiser, which switches its states at these frames; the sound follows smoothly",
        "onset": song.info.onset,
        "voice": song.info.title,
        "voice_licence": song.info.licence,
        "voice_credit": song.info.credit,
        "phonemes": phonemes,
    }
    (folder / "phonemes.json").write_text(json.dumps(times, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    rows = (f"{round(r['start'] * 1e7)} {round(r['end'] * 1e7)} {r['phoneme']}\n" for r in phonemes)
    (folder / "phonemes.lab").write_text("".join(rows), encoding="utf-8")
    (folder / "score.musicxml").write_text(write_score(score_of(song, about["title"])), encoding="utf-8")
    about["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    }
    (folder / "song.json").write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def render_song(output_dir: Path, recipe: Recipe, index: int, voices: dict[str, Voice]) -> dict[str, Any]:
    """Make song ``index`` and put its folder in place in one step; returns what ``song.json`` says.

    Raises :class:`UnusableRendering` when :data:`ATTEMPTS` drawings all failed.
    """
    redraws: list[dict[str, str]] = []
    for attempt in range(ATTEMPTS):
        try:
            song = perform(recipe, index, attempt, voices)
            break
        except UnusableRendering as problem:
            redraws.append({"reason": problem.reason, "message": problem.message})
    else:
        raise UnusableRendering(
            redraws[-1]["reason"], f"{ATTEMPTS} drawings failed, the last: {redraws[-1]['message']}"
        )
    audio = mix(song, np.random.default_rng([recipe.seed, _RENDITION, index, len(redraws), 1]))
    about = describe(recipe, index, song, redraws)
    folder = folder_of(output_dir, index)
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_files(partial, recipe, song, audio, about)
    if folder.exists():  # what is_complete() found damaged
        shutil.rmtree(folder)
    partial.rename(folder)
    return about
