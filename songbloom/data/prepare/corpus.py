"""What every preparation shares: options, cutting style prompts, writing lines, going on after a stop, the check."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from songbloom.audio.files import probe, read_audio, write_wav
from songbloom.data.check import CheckSettings, check_songs
from songbloom.data.command import Parser
from songbloom.data.fields import path_for
from songbloom.data.prepare import layout
from songbloom.data.prepare.layout import Phrase
from songbloom.data.sound_facts import SILENCE
from songbloom.errors import UserError, counted, reason
from songbloom.files import hold, write_text
from songbloom.lyrics.timed_text import TimedText

VERSION = 2
"""Another number makes every song be prepared anew."""
_STEP = 0.1  # seconds in which sound is looked for
_AGREES = 0.7  # share of a recording in which score and voice must agree


class Terms(NamedTuple):
    """Under which terms a corpus stands, and what its user should know; printed, and kept in every line."""

    corpus: str
    licence: str
    advice: tuple[str, ...] = ()


@dataclass
class Material:
    """One song as it was found.

    ``text`` is its words, ``timed`` words or phonemes with times; with both, the text gets the times. ``voice_alone``:
    nothing but the singer is in the recording, so that times can be compared with it. ``extra``: more fields.
    """

    idx: str
    audio: Path
    text: str | None = None
    timed: TimedText | None = None
    sources: Sequence[Path] = ()
    language: str = "ja"
    voice_alone: bool = False
    trusted_times: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def solo(
    idx: str,
    audio: Path,
    *,
    artist: str,
    title: str,
    text: str | None,
    timed: TimedText | None,
    score: Path | None,
    label: Path | None,
    others: Sequence[Path] = (),
) -> Material:
    """A song of a corpus of solo singing, with the score and the phoneme labels of the recording, where it has them.

    Args:
        text, timed: as in :class:`Material`.
        score, label: the files that they were read from; labels are those of the recording, so their times are right.
        others: more files whose change makes the song be prepared anew.
    """
    return Material(
        idx,
        audio,
        text=text,
        timed=timed,
        sources=[*others, *(path for path in (score, label) if path)],
        voice_alone=True,
        trusted_times=label is not None,
        extra={
            "artist": artist,
            "genre": "song",
            "title": title,
            "musicxml_path": str(score or ""),
            "lab_path": str(label or ""),
        },
    )


class LeftOut(Exception):
    """Why a song cannot be used."""


@dataclass(frozen=True)
class Choices:
    """The options that all preparations have."""

    output_dir: Path
    prompt_sec: float
    sample_rate: int
    overwrite: bool
    clean_japanese: bool
    skip_empty_lyrics: bool
    section_gap: float
    lengths: bool


def add_options(parser: Parser) -> None:
    """The options that all preparations have."""
    parser.option("output_dir", required=True, metavar="DIR", help="folder for the JSONL file and the style prompts")
    parser.option("prompt_sec", type=float, default=10.0, help="seconds of the style prompt; 0: none")
    parser.option("sample_rate", type=int, default=48_000, help="Hz of the style prompts")
    parser.option("overwrite", action="store_true", help="prepare every song anew, not only new and changed ones")
    parser.option(
        "clean_japanese", action="store_true", help="leave out what is not Japanese, scat in Latin letters; tags stay"
    )
    parser.option(
        "skip_empty_lyrics", action="store_true", default=True, help="leave out songs without words (this is the rule)"
    )
    parser.add_argument(
        "--no_skip_empty_lyrics", "--no-skip-empty-lyrics", dest="skip_empty_lyrics", action="store_false",
        help="keep songs without words, as [inst]",
    )  # fmt: skip
    parser.option("section_gap", type=float, default=layout.GAP, help="seconds without words that make a section")
    parser.option("no_lengths", action="store_true", help="write [verse], not [verse 24.5s]")


def choices_of(options: Any) -> Choices:
    """The choices on the command line.

    Raises:
        UserError: a number that makes no sense.
    """
    if not 0 <= options.prompt_sec <= 600 or not 8000 <= options.sample_rate <= 192_000 or options.section_gap <= 0:
        raise UserError(
            f"--prompt_sec is {options.prompt_sec:g}, --sample_rate {options.sample_rate}, --section_gap "
            f"{options.section_gap:g}; they must be from 0 to 600, from 8000 to 192000, and above 0"
        )
    return Choices(
        Path(options.output_dir).expanduser(),
        options.prompt_sec,
        options.sample_rate,
        options.overwrite,
        options.clean_japanese,
        options.skip_empty_lyrics,
        options.section_gap,
        not options.no_lengths,
    )


def existing_folder(path: str | Path, option: str) -> Path:
    """A folder that a person named.

    Raises:
        UserError: it is none.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{option}={folder}: {what}")
    return folder


def safe_idx(name: str) -> str:
    """A name that can be part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "song"


def write_songs(name: str, materials: Iterable[Material | LeftOut], choices: Choices, terms: Terms) -> int:
    """Prepare each song and write ``NAME.jsonl``; songs that are there from an earlier run stay as they are.

    Returns:
        The exit status: 0, or 2 if the check of the finished file finds errors.

    Raises:
        UserError: no song is left, the folder cannot be written or another process writes there.
    """
    hold(choices.output_dir, busy="preparing songs", instead="--output_dir")
    print(f"{terms.corpus}: {terms.licence}", flush=True)
    for advice in terms.advice:
        print(f"  {advice}")
    rows: list[dict[str, Any]] = []
    left_out = kept = 0
    taken: set[str] = set()
    for material in materials:
        try:
            if isinstance(material, LeftOut):
                raise material
            material.idx = _free(safe_idx(material.idx), taken)
            row, fresh, notices = _prepared(material, choices, terms)
        except (LeftOut, UserError) as error:
            left_out += 1
            place = f"{material.idx}: " if isinstance(material, Material) else ""
            print(f"left out: {place}{error}", flush=True)
            continue
        kept += not fresh
        rows.append(row)
        for notice in notices:
            print(f"{material.idx if isinstance(material, Material) else ''}: {notice}", flush=True)
    if not rows:
        raise UserError(f"{terms.corpus}: no song can be used ({left_out} left out, named above)")
    path = choices.output_dir / f"{name}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    there = f", {kept} of them there already" if kept else ""
    print(f"{path}: {counted(len(rows), 'song')}{there}; {left_out} left out", flush=True)
    settings = CheckSettings(need_lyrics=choices.skip_empty_lyrics, prompt_seconds=choices.prompt_sec or 10.0)
    report = check_songs(path, settings=settings)
    for line in report.lines():
        print(line)
    print(f"check: {report.summary()}")
    return 2 if report.errors else 0


def _free(idx: str, taken: set[str]) -> str:
    free, number = idx, 1
    while free in taken:
        free, number = f"{idx}_{number}", number + 1
    taken.add(free)
    return free


def _prepared(material: Material, choices: Choices, terms: Terms) -> tuple[dict[str, Any], bool, list[str]]:
    """A song's line, whether it was made now, and what to tell about it."""
    recipe = _recipe(material, choices, terms)
    kept = choices.output_dir / "songs" / f"{material.idx}.json"
    prompt = choices.output_dir / "prompts" / f"{material.idx}_prompt.wav"
    if not choices.overwrite:
        try:
            content = json.loads(kept.read_bytes())
            if content["recipe"] == recipe and (not choices.prompt_sec or prompt.is_file()):
                return content["row"], False, []
        except (OSError, ValueError, KeyError, TypeError):
            pass
    notices: list[str] = []
    row = _row(material, choices, terms, prompt, notices)
    write_text(kept, json.dumps({"recipe": recipe, "row": row}, ensure_ascii=False, indent=1) + "\n")
    return row, True, notices


def _recipe(material: Material, choices: Choices, terms: Terms) -> str:
    """Changes when anything does that a line is made of."""
    stamps = []
    for path in (material.audio, *material.sources):
        try:
            stat = path.stat()
        except OSError as error:
            raise LeftOut(f"{path}: {reason(error).lower()}") from error
        stamps.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns])
    made_of = [
        VERSION, stamps, material.text, material.language, dict(material.extra), list(terms[:2]),
        choices.prompt_sec, choices.sample_rate, choices.clean_japanese, choices.skip_empty_lyrics,
        choices.section_gap, choices.lengths, [] if material.timed is None else list(material.timed.times),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()


def _row(material: Material, choices: Choices, terms: Terms, prompt: Path, notices: list[str]) -> dict[str, Any]:
    info = probe(material.audio)
    phrases = _phrases(material, info.duration, notices)
    if choices.clean_japanese and material.language == "ja":
        phrases = layout.clean_japanese(phrases)
    has_words = any(phrase.text for phrase in phrases)
    if not has_words:
        if choices.skip_empty_lyrics:
            raise LeftOut("has no words (--no_skip_empty_lyrics keeps such songs)")
        phrases = []
    parts = layout.parts_of(phrases, info.duration, choices.section_gap)
    lyrics = layout.written(parts, lengths=choices.lengths) or "[inst]\n"
    row: dict[str, Any] = {
        "idx": material.idx,
        "audio_path": path_for(material.audio, choices.output_dir),
        "lyrics": lyrics,
        "language": material.language,
        **{key: value for key, value in material.extra.items() if value not in (None, "")},
        "licence": terms.licence,
        "source": terms.corpus,
        "seconds": round(info.duration, 3),
    }
    row.setdefault("group", material.idx)
    for key in ("musicxml_path", "lab_path", "lrc_path"):
        if key in row and notices:
            del row[key]  # its times are not those of the recording
        elif key in row:
            row[key] = path_for(Path(row[key]), choices.output_dir)
    timed = layout.as_timed([phrase for part in parts for phrase in part.phrases])
    if timed:
        row["phrases"] = [{"start": round(p.start, 3), "end": round(p.end, 3), "text": p.text} for p in timed]
        row["sections"] = [{"tag": p.tag, "start": p.start, "end": p.end} for p in parts]
    if choices.prompt_sec:
        _cut_prompt(material.audio, info.duration, prompt, choices)
        row["prompt_wav"] = path_for(prompt, choices.output_dir)
    return row


def _phrases(material: Material, seconds: float, notices: list[str]) -> list[Phrase]:
    """The song's lines, with times that were compared with the recording where that is possible."""
    if material.timed is None:
        return layout.lines_of(material.text or "")
    if material.text is None:
        phrases = layout.timed_lines(material.timed)
    else:
        try:
            phrases = layout.matched(material.text, material.timed)
        except UserError as error:
            notices.append(f"times are left out: {error}")
            return layout.lines_of(material.text)
    timed = layout.as_timed(phrases)
    if timed and material.voice_alone and not material.trusted_times:
        loud = _loud(material.audio)
        shift, agree = layout.shift_of(loud, _STEP, [(p.start, p.end) for p in timed])
        if agree < _AGREES:
            notices.append(f"times are left out: score and voice agree in only {agree:.0%} of the recording")
            return layout.without_times(phrases)
        if abs(shift) > 0.25:
            notices.append(f"the voice is {abs(shift):.1f} s {'later' if shift > 0 else 'earlier'} than the score")
            phrases = layout.moved(phrases, shift)
    return _inside(phrases, seconds, notices, ends_known=not material.extra.get("lrc_path"))


def _inside(phrases: list[Phrase], seconds: float, notices: list[str], *, ends_known: bool) -> list[Phrase]:
    """Times that end with the sound; none at all if they go far beyond it. In LRC lines have a start alone."""
    timed = layout.as_timed(phrases)
    last = max((phrase.end for phrase in timed), default=0.0)
    late = [phrase for phrase in timed if phrase.start >= seconds - 0.05]
    if late or (ends_known and last > seconds + 2.0):
        notices.append(f"times are left out: words end at {last:.1f} s, and the recording at {seconds:.1f} s")
        return layout.without_times(phrases)
    return [
        phrase
        if phrase.start is None or phrase.end is None
        else Phrase(phrase.text, phrase.start, min(phrase.end, seconds), phrase.tag)
        for phrase in phrases
    ]


def _loud(path: Path) -> np.ndarray:
    """Whether there is sound in each tenth of a second, 40 dB below the loudest or more."""
    audio = np.abs(read_audio(path, sample_rate=16_000, channels=1)[:, 0])
    step = round(16_000 * _STEP)
    peaks = np.array([audio[at : at + step].max() for at in range(0, len(audio), step)])
    return peaks > max(0.01 * peaks.max(), SILENCE)


def _cut_prompt(audio: Path, seconds: float, target: Path, choices: Choices) -> None:
    """The style prompt: from the first sound on, or as much earlier as it takes to be long enough."""
    wanted = min(choices.prompt_sec, seconds)
    length = round(wanted * choices.sample_rate)
    total = int(seconds * choices.sample_rate)
    begin = 0
    block = choices.sample_rate * 5
    while begin < total:
        heard = np.abs(read_audio(audio, sample_rate=choices.sample_rate, offset=begin, length=block)).max(axis=1)
        if (heard >= SILENCE).any():
            begin += int(np.argmax(heard >= SILENCE))
            break
        begin += block
    else:
        raise LeftOut("is silent from beginning to end")
    begin = max(0, min(begin, total - length))
    sound = read_audio(audio, sample_rate=choices.sample_rate, offset=begin, length=length)
    write_wav(target, sound[:, :2] if sound.shape[1] <= 2 else sound.mean(axis=1), choices.sample_rate)
