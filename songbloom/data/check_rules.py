"""What each line of songs is checked for: fields, sound, words, times, sketch, style prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from songbloom.data.fields import (
    LANGUAGES,
    SPLITS,
    field,
    fits,
    group_of,
    kind_in_words,
    located,
    meaning_of,
    near_field,
)  # fmt: skip
from songbloom.data.findings import Level, Report, SongFacts
from songbloom.data.manifest import kind_of
from songbloom.data.metadata import TIMED_PATHS
from songbloom.data.sound_facts import SoundFacts
from songbloom.errors import UserError, counted, did_you_mean
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.lyrics.structure import find_tags
from songbloom.lyrics.timing import TimedText, from_phrases, read_timed, token_times
from songbloom.lyrics.tokens import Problem, Tokens
from songbloom.lyrics.vocabulary import CharacterVocabulary, vocabulary

MOST_PROBLEMS = 5
"""Problems of one song's words that are named one by one."""
SLACK = 0.5
"""Seconds by which a time may lie beyond the end of the sound."""
_FASTEST, _SLOWEST = 20.0, 0.2  # phonemes a second that singing lies between
_JAPANESE = re.compile("[ぁ-ヿ㐀-鿿ｦ-ﾝ]")
_WORDS = re.compile(r"\{[^{}\n]*\}|[^\w]|_")


@dataclass(frozen=True)
class CheckSettings:
    """What songs are checked against.

    Attributes:
        lyrics_vocab: as :func:`songbloom.lyrics.vocabulary.vocabulary` takes it.
        english: what becomes of English words in Japanese; empty: the vocabulary's habit.
        reading: how Japanese is read.
        language: of songs that have no ``language``.
        seconds_per_tag: what one repeated tag stands for.
        max_tokens: lyric tokens that the model sees (600 in the published 150 s models, 1000 in the 240 s one); 0: any.
        sample_rate: Hz of the codec; a file is resampled, but what a lower rate lacks is lost.
        min_seconds: shorter songs give nothing to learn from: one patch of 16 frames is 0.64 s.
        max_seconds: what the model sees of a song at most; 0: any.
        sketch_codes: size of the codebook.
        sketch_rate: codes a second.
        sketch_slack: codes that a sketch may be longer or shorter than its song.
        prompt_seconds: length of the style prompt.
        need_lyrics, need_sketch, need_prompt: whether a line without them is an error.
    """

    lyrics_vocab: str = "songbloom_ja"
    english: str = ""
    reading: str = "auto"
    language: str = "auto"
    seconds_per_tag: float = 1.0
    max_tokens: int = 600
    sample_rate: int = 48_000
    min_seconds: float = 0.64
    max_seconds: float = 0.0
    sketch_codes: int = 16_384
    sketch_rate: float = 25.0
    sketch_slack: int = 2
    prompt_seconds: float = 10.0
    need_lyrics: bool = True
    need_sketch: bool = False
    need_prompt: bool = False


@dataclass
class Row:
    """A line that is an object, where it stands, and its tokens once its words have been read."""

    file: str
    line: int
    folder: Path
    record: Mapping[str, Any]
    facts: SongFacts
    tokens: Tokens | None = None

    def path(self, name: str) -> Path | None:
        """Where a path field points, if it is one."""
        value = self.record.get(name)
        if not isinstance(value, str) or not value.strip() or "\0" in value or _has_half(value):
            return None
        return located(value, self.folder)

    @property
    def side(self) -> str:
        """Which split the line belongs to."""
        split = self.record.get("split")
        return split if split in SPLITS else self.file


class Rules:
    """The rules for single lines; what they find goes into a report."""

    def __init__(self, settings: CheckSettings, report: Report, sounds: Mapping[Path, SoundFacts]) -> None:
        self._settings = settings
        self._report = report
        self._sounds = sounds
        self._vocabulary = vocabulary(settings.lyrics_vocab)

    def check(self, row: Row) -> None:
        """Everything about one line."""
        self._fields(row)
        seconds = self._sound(row)
        self._lyrics(row, seconds)
        self._times(row, seconds)
        self._timed_files(row, seconds)
        self._sketch(row, seconds)
        self._prompt(row)

    def _note(self, row: Row, level: Level, kind: str, message: str) -> None:
        self._report.add(row.file, row.line, level, kind, message)

    # --- fields ------------------------------------------------------------------------------------------------------

    def _fields(self, row: Row) -> None:
        for name, value in row.record.items():
            known = meaning_of(name)
            if known is None:
                self._unknown(row, name)
            elif not fits(known.kind, value):
                self._note(row, "error", "field", f"{name} must be {kind_in_words(known.kind)}, not {kind_of(value)}")
            elif isinstance(value, str) and _has_half(value):
                self._note(
                    row, "error", "field", f"{name} has half of a character (a lone surrogate); write it as UTF-8"
                )
            elif known.kind == "path" and value is not None and row.path(name) is None:
                self._note(row, "error", "field", f"{name} is empty; give a file or leave the field out")
        if row.record.get("idx") == "":
            self._note(row, "error", "field", "idx is empty; give each song another name")
        for name, allowed in (("language", LANGUAGES), ("split", SPLITS)):
            value = row.record.get(name)
            if isinstance(value, str) and value not in allowed:
                near = did_you_mean(value, allowed)
                self._note(row, "error", "field", f"{name} is {value!r}{near}; it must be one of {', '.join(allowed)}")
        row.facts.licence = str(field(row.record, "licence") or "")
        row.facts.group = group_of(row.record) or ""

    def _unknown(self, row: Row, name: str) -> None:
        near = near_field(name, row.record)
        if near:
            self._note(row, "error", "field", f"no field is named {name!r}{near}")
        else:
            self._note(row, "warning", "unknown field", f"nothing reads the field {name!r}")

    # --- sound -------------------------------------------------------------------------------------------------------

    def _sound(self, row: Row) -> float:
        """Checks the song's sound; its seconds, or 0 if they are not known."""
        if "audio_path" not in row.record or row.record["audio_path"] is None:
            near = any("audio" in name or name == "path" for name in row.record)
            self._note(
                row, "error", "missing field", "lacks audio_path" + ("" if near else ", the path of the song's file")
            )
            return 0.0
        facts = self._heard(row, "audio_path")
        if facts is None or facts.error:
            return 0.0
        row.facts.seconds = round(facts.seconds, 3)
        wanted, least = self._settings.sample_rate, self._settings.min_seconds
        if facts.sample_rate < wanted / 3:
            self._note(row, "error", "rate", f"audio_path has {facts.sample_rate} Hz; the model hears {wanted} Hz")
        elif facts.sample_rate < 0.9 * wanted:
            lost = f"nothing above {facts.sample_rate / 2000:g} kHz is in it"
            self._note(
                row, "warning", "rate", f"audio_path has {facts.sample_rate} Hz, and the model hears {wanted}: {lost}"
            )
        if facts.seconds < least:
            self._note(
                row, "error", "length", f"audio_path lasts {facts.seconds:.2f} s; at least {least:g} s are needed"
            )
        if 0 < self._settings.max_seconds < facts.seconds:
            limit = self._settings.max_seconds
            self._note(
                row, "warning", "long", f"audio_path lasts {facts.seconds:.1f} s; the model sees {limit:g} s at a time"
            )
        self._level(row, facts)
        return facts.seconds

    def _level(self, row: Row, facts: SoundFacts) -> None:
        if facts.silent >= facts.seconds - 1e-6 or facts.peak < 1e-3:
            self._note(row, "error", "silent", "audio_path is silent from beginning to end")
            return
        if facts.longest_silence > max(10.0, facts.seconds / 3):
            where = "at its beginning" if facts.lead == facts.longest_silence else "in one stretch"
            self._note(row, "warning", "silence", f"audio_path is silent for {facts.longest_silence:.1f} s {where}")
        if facts.peak < 0.05:
            level = 20 * math.log10(facts.peak)
            self._note(row, "warning", "quiet", f"audio_path is very quiet: its peak is {level:.0f} dBFS")
        if facts.clipped > 1e-4:
            self._note(row, "warning", "clipping", f"audio_path is clipped in {facts.clipped:.2%} of its samples")
        elif facts.peak > 1.01:
            self._note(
                row, "warning", "clipping", f"audio_path reaches {facts.peak:.2f} times full scale; make it quieter"
            )
        if facts.empty_channel:
            side = {1: "left", 2: "right"}.get(facts.empty_channel, str(facts.empty_channel))
            self._note(
                row, "warning", "channels", f"audio_path is silent in its {side} channel; make it mono, or fill it"
            )
        if facts.channels > 2:
            self._note(
                row, "warning", "channels", f"audio_path has {facts.channels} channels, which are mixed to stereo"
            )

    def _heard(self, row: Row, name: str) -> SoundFacts | None:
        """What is known about a sound file; tells if it cannot be used."""
        path = row.path(name)
        if path is None:
            return None
        if not self._is_file(row, name, path):
            return None
        facts = self._sounds.get(path)
        if facts is not None and facts.error:
            self._note(row, "error", "unreadable", f"{name} {row.record[name]}: {facts.error}")
        return facts

    def _is_file(self, row: Row, name: str, path: Path) -> bool:
        if path.is_file():
            return True
        shown = row.record[name]
        if path.is_dir():
            self._note(row, "error", "missing", f"{name} {shown} is a folder, not a file")
            return False
        hint = ""
        if not Path(shown).is_absolute() and Path(shown).expanduser().is_file():
            hint = "; it is there seen from the working folder, but paths start from the JSONL file's folder"
        elif path.parent.is_dir():
            hint = did_you_mean(path.name, [one.name for one in path.parent.iterdir()])
        self._note(row, "error", "missing", f"{name} {shown} is not there{hint}")
        return False

    # --- words -------------------------------------------------------------------------------------------------------

    def _lyrics(self, row: Row, seconds: float) -> None:
        text = row.record.get("lyrics")
        if text is None or (isinstance(text, str) and not text.strip()):
            level: Level = "error" if self._settings.need_lyrics else "warning"
            what = "lacks lyrics" if text is None else "lyrics are empty"
            self._note(row, level, "no lyrics", f"{what}; a song without words is [inst]")
            return
        if not isinstance(text, str) or _has_half(text):
            return
        try:
            tokens = self._tokenize(text, row.record.get("language"))
        except UserError as error:
            self._note(row, "error", "lyrics", f"lyrics, {error}")
            return
        row.tokens = tokens
        row.facts.tokens = len(tokens)
        self._problems(row, tokens.problems)
        self._structure(row, text, tokens, seconds)
        self._amount(row, tokens, seconds)

    def _tokenize(self, text: str, language: Any) -> Tokens:
        settings = self._settings
        rules: dict[str, Any] = {"english": settings.english or "katakana", "reading": settings.reading}
        if isinstance(self._vocabulary, PhonemeVocabulary):
            rules["english"] = settings.english or "arpabet"
            rules["language"] = language if language in LANGUAGES else settings.language
            rules["seconds_per_tag"] = settings.seconds_per_tag
        return self._vocabulary.tokenize(text, **rules)

    def _problems(self, row: Row, problems: tuple[Problem, ...]) -> None:
        for level in ("error", "warning"):
            found = [problem for problem in problems if _severity(problem) == level]
            for problem in found[:MOST_PROBLEMS]:
                kind = "symbol" if not problem.symbol.startswith(("[", "【")) else "tag"
                self._note(row, level, kind, f"lyrics, {problem}")
            if len(found) > MOST_PROBLEMS:
                self._note(row, level, "symbol", f"lyrics have {len(found) - MOST_PROBLEMS} more such places")

    def _structure(self, row: Row, text: str, tokens: Tokens, seconds: float) -> None:
        if isinstance(self._vocabulary, CharacterVocabulary):
            return
        tags = [tag for tag in find_tags(text) if tag.name]
        if not tags:
            self._note(row, "warning", "no tags", "lyrics have no structure tag; write [verse] before what is sung")
        elif text[: tags[0].start].strip():
            self._note(row, "warning", "no tags", f"lyrics begin before their first tag, {tags[0].name}")
        wanted = sum(tag.seconds or 0 for tag in tags)
        if seconds and wanted > seconds + 1:
            self._note(
                row,
                "error",
                "lengths",
                f"the tags of the lyrics ask for {wanted:.1f} s, and the song has {seconds:.1f}",
            )
        language = row.record.get("language")
        words = _WORDS.sub("", _without_tags(text))
        if language == "ja" and words and not _JAPANESE.search(words):
            self._note(row, "warning", "language", "language is ja, but the lyrics have no Japanese letter")

    def _amount(self, row: Row, tokens: Tokens, seconds: float) -> None:
        limit = self._settings.max_tokens
        if 0 < limit < len(tokens):
            window = self._settings.max_seconds
            cropped = bool(row.record.get("phrases")) or 0 < window < seconds
            how = "only a part of it fits at a time" if cropped else "shorten them, or give phrases with times"
            self._note(
                row,
                "warning" if cropped else "error",
                "tokens",
                f"lyrics are {counted(len(tokens), 'token')}, and the model sees {limit}: {how}",
            )
        sung = len(tokens.phonemes)
        if sung and seconds and sung > _FASTEST * seconds:
            self._note(
                row, "warning", "amount", f"{sung} phonemes in {seconds:.1f} s are too many: are they of this song?"
            )
        elif sung and seconds > 60 and sung < _SLOWEST * seconds:
            self._note(row, "warning", "amount", f"only {sung} phonemes in {seconds:.1f} s: are words missing?")

    # --- times -------------------------------------------------------------------------------------------------------

    def _times(self, row: Row, seconds: float) -> None:
        wrong: set[str] = set()
        for name, text in (("phrases", "text"), ("sections", "tag")):
            entries = row.record.get(name)
            if not isinstance(entries, list):
                continue
            before = 0.0
            for number, entry in enumerate(entries, start=1):
                problem, start, end = _times_of(entry, text)
                if not problem and start < before - 1e-6:
                    problem = f"starts at {start:g} s, before the one above it ({before:g} s)"
                if not problem and seconds and end > seconds + SLACK:
                    problem = f"ends at {end:g} s, and the song at {seconds:.2f} s"
                if problem:
                    wrong.add(name)
                    self._note(row, "error", "times", f"{name}, entry {number}: {problem}")
                else:
                    before = start
        self._same_words(row, "phrases" not in wrong)
        told = row.record.get("sections")
        if isinstance(told, list) and row.tokens is not None and row.tokens.sections:
            tags = len(row.tokens.sections)
            if len(told) != tags:
                message = (
                    f"sections has {counted(len(told), 'entry', 'entries')}, and the lyrics "
                    f"have {counted(tags, 'tag')}; there must be one a tag"
                )
                self._note(row, "warning", "sections", message)

    def _same_words(self, row: Row, right: bool) -> None:
        text, phrases = row.record.get("lyrics"), row.record.get("phrases")
        if not isinstance(text, str) or not isinstance(phrases, list) or not phrases:
            return
        said = _WORDS.sub("", "".join(str(p.get("text") or "") for p in phrases if isinstance(p, Mapping))).lower()
        try:
            written = _WORDS.sub("", _without_tags(text)).lower()
        except UserError:
            return  # told as a mistake of the lyrics
        if said != written:
            self._note(row, "warning", "words", "phrases have other words than the lyrics")
        if right:
            self._matched(row, "phrases", from_phrases(phrases))

    def _matched(self, row: Row, name: str, timed: TimedText) -> None:
        """Training finds the time of each sound in this way, and stops where it cannot."""
        tokens = row.tokens
        if tokens is None or not _JAPANESE.search(tokens.text) or row.record.get("language") not in (None, "ja"):
            return
        try:
            token_times(tokens, timed)
        except UserError as error:
            self._note(row, "error", "words", f"{name}: {error}")

    def _timed_files(self, row: Row, seconds: float) -> None:
        for name in TIMED_PATHS:
            path = row.path(name)
            if path is None or not self._is_file(row, name, path):
                continue
            try:
                timed = read_timed(path)
            except UserError as error:
                self._note(row, "error", "times", f"{name}: {error}")
                continue
            if not row.record.get("phrases"):
                self._matched(row, name, timed)
            guessed = path.suffix.lower() == ".lrc"  # in which lines have a start alone
            last = max(start if guessed else end for start, end in timed.times)
            if seconds and last > seconds + max(SLACK, 0.02 * seconds):
                self._note(
                    row,
                    "warning",
                    "times",
                    f"{name}: its words end at {last:.1f} s, and the song at {seconds:.1f} s: are they of this song?",
                )

    # --- sketch and prompt -------------------------------------------------------------------------------------------

    def _sketch(self, row: Row, seconds: float) -> None:
        inline, path = row.record.get("sketch_tokens"), row.path("sketch_path")
        codes = self._settings.sketch_codes
        if inline is None and path is None:
            if self._settings.need_sketch:
                self._note(row, "error", "missing field", "lacks sketch_path, which --sketch_mode=precomputed needs")
            return
        from songbloom.sketch.files import (
            checked_sketch,
            read_sketch,
        )  # loads torch, which songs without sketches spare

        try:
            if inline is not None:
                if not isinstance(inline, list):
                    return
                length = len(checked_sketch(inline, codes, "sketch_tokens"))
            elif path is not None and self._is_file(row, "sketch_path", path):
                length = len(read_sketch(path, codes))
            else:
                return
        except UserError as error:
            self._note(row, "error", "sketch", str(error))
            return
        wanted = seconds * self._settings.sketch_rate
        if seconds and abs(length - wanted) > self._settings.sketch_slack:
            self._note(
                row,
                "error",
                "sketch length",
                f"the sketch has {length} codes, which is {length / self._settings.sketch_rate:.2f} s, and the song "
                f"has {seconds:.2f} s ({int(wanted)} codes)",
            )

    def _prompt(self, row: Row) -> None:
        if row.record.get("prompt_wav") is None:
            if self._settings.need_prompt:
                self._note(row, "error", "missing field", "lacks prompt_wav, the style prompt")
            return
        facts = self._heard(row, "prompt_wav")
        if facts is None or facts.error:
            return
        wanted = self._settings.prompt_seconds
        if facts.silent >= facts.seconds - 1e-6:
            self._note(row, "error", "silent", "prompt_wav is silent")
        elif facts.seconds < 1.0:
            self._note(row, "error", "prompt", f"prompt_wav lasts {facts.seconds:.2f} s, too short to tell a style")
        elif facts.seconds < wanted - 0.05:
            self._note(
                row,
                "warning",
                "prompt",
                f"prompt_wav lasts {facts.seconds:.2f} s; {wanted:g} s are usual, the rest is silence",
            )


def _has_half(text: str) -> bool:
    """Whether a text has a lone surrogate, which no file name and no sound can have."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _severity(problem: Problem) -> Level:
    """Letters and tags that are lost are errors; signs that nobody sings, and guesses, are warnings."""
    if "no structure tag" in problem.advice:
        return "error"
    lost = "left out" in problem.advice or "is no phoneme" in problem.advice
    return "error" if lost and any(c.isalnum() for c in problem.symbol) else "warning"


def _without_tags(text: str) -> str:
    kept = list(text)
    for tag in find_tags(text):
        kept[tag.start : tag.end] = " " * (tag.end - tag.start)
    return "".join(kept)


def _times_of(entry: Any, text: str) -> tuple[str, float, float]:
    """What is wrong with a phrase or section, and its start and end."""
    if not isinstance(entry, Mapping):
        return f"is {kind_of(entry)}, not an object with start, end and {text}", 0.0, 0.0
    if not isinstance(entry.get(text), str) or not entry[text].strip():
        near = next((h for key in entry if (h := did_you_mean(str(key), [text]))), "")
        return f"has no {text}{near}", 0.0, 0.0
    times = []
    for name in ("start", "end"):
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} must be a number of seconds, not {kind_of(value)}", 0.0, 0.0
        times.append(float(value))
    start, end = times
    if not 0 <= start < end:
        return f"lasts from {start:g} to {end:g} s; its end must be after its start", start, end
    return "", start, end
