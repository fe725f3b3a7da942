"""Times of words: readers of timed files, and from their times to times of tokens.

=====================  ====================================================================================
``.lrc``               lines, or words, with times (:mod:`songbloom.lyrics.lrc`)
``.lab``               phonemes, in seconds or in 100 ns (:mod:`songbloom.lyrics.lab`)
``.musicxml`` ``.xml`` ``.mxl``  a score with words (:mod:`songbloom.lyrics.musicxml`)
``.json``              the sung corpus's ``phonemes.json``; or ``[{"start", "end", "text"}, …]``
=====================  ====================================================================================
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from songbloom.errors import UserError
from songbloom.lyrics.lab import SILENT, read_lab, voiced
from songbloom.lyrics.lrc import read_lrc, write_lrc
from songbloom.lyrics.matching import match
from songbloom.lyrics.morae import ENDS_MORA, LONG, PHONEMES, PHONEMES_OF
from songbloom.lyrics.timed_text import SCORES, Builder, Timed, TimedText, from_phrases
from songbloom.lyrics.tokens import Tokens

__all__ = ["SUFFIXES", "Timed", "TimedText", "from_phrases", "read_timed", "token_times", "write_lrc"]

SUFFIXES = (".lrc", ".lab", *SCORES, ".json")
"""Files that :func:`read_timed` reads."""
FEWEST_MATCHES = 0.6
"""Share of a song's sounds that must be found in a timed file, or it belongs to another song."""


def read_timed(path: str | Path) -> TimedText:
    """Read a file of timed words; its name's ending says of which kind.

    Raises:
        UserError: one line with file and place: unknown ending, broken content, no times.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".lrc":
        return read_lrc(path)
    if suffix == ".lab":
        return read_lab(path)
    if suffix in SCORES:
        from songbloom.lyrics.musicxml import read_musicxml

        return read_musicxml(path)
    if suffix == ".json":
        return _read_json(path)
    raise UserError(f"{path}: no reader of timed words for {suffix or 'a name without ending'}; {' '.join(SUFFIXES)}")


def token_times(tokens: Tokens, timed: TimedText) -> list[tuple[float, float] | None]:
    """When each token is sung, in seconds; ``None`` for tags, line ends, punctuation and words outside the times.

    The text of the times need not be the song's: sounds are matched with sounds (Japanese, so that a score in kana
    times a text in kanji) or letters with letters, and what a few differences leave open is filled in between.

    Raises:
        UserError: the times are of other words, or are phonemes and the tokens are letters.
    """
    japanese = bool(tokens.phonemes)
    if timed.kind == "phonemes" and not japanese:
        raise UserError("these times are of phonemes, which letters cannot follow; take a Japanese vocabulary")
    sounds, owners = _sounds(tokens, japanese)
    heard, when = _timed_sounds(timed, japanese)
    try:
        partners = match(sounds, heard)
    except ValueError as error:
        raise UserError(
            f"{len(sounds)} sounds of words and {len(heard)} with times are too many to match; split the song"
        ) from error
    same = sum(p >= 0 and heard[p] == s for s, p in zip(sounds, partners, strict=True))
    if same < FEWEST_MATCHES * min(len(sounds), len(heard)):
        raise UserError(
            f"the times are of other words: only {same} of {len(sounds)} sounds agree; is it the right file?"
        )
    found: list[tuple[float, float] | None] = [None] * len(tokens.ids)
    for owner, partner in zip(owners, partners, strict=True):
        if partner >= 0:
            start, end = when[partner]
            before = found[owner]
            found[owner] = (start, end) if before is None else (min(before[0], start), max(before[1], end))
    return _fill(found, sorted(set(owners)))


def _sounds(tokens: Tokens, japanese: bool) -> tuple[list[str], list[int]]:
    """What can be matched, and which token it belongs to."""
    sounds: list[str] = []
    owners: list[int] = []
    for index, symbol in enumerate(tokens.symbols):
        made = _phonemes(symbol, sounds) if japanese else ([symbol.lower()] if symbol.isalnum() else [])
        sounds += made
        owners += [index] * len(made)
    return sounds, owners


def _phonemes(symbol: str, before: list[str]) -> Sequence[str]:
    if symbol == LONG:
        return before[-1:]
    if symbol in PHONEMES:
        return (symbol,)
    if symbol.startswith("<"):
        return (symbol,)
    return PHONEMES_OF.get(symbol, ())


def _timed_sounds(timed: TimedText, japanese: bool) -> tuple[list[str], list[tuple[float, float]]]:
    """Sounds of the timed pieces, the time of a piece shared among its sounds."""
    sounds: list[str] = []
    when: list[tuple[float, float]] = []
    for made, (start, end) in zip(_sounds_of_pieces(timed, japanese), timed.times, strict=True):
        weights = [1.0 if len(made) == 1 or sound in ENDS_MORA or not japanese else 0.5 for sound in made]
        whole, passed = sum(weights), 0.0
        for sound, weight in zip(made, weights, strict=True):
            sounds.append(sound)
            first, last = (start + (end - start) * part / whole for part in (passed, passed + weight))
            when.append((first, last))
            passed += weight
    return sounds, when


def _sounds_of_pieces(timed: TimedText, japanese: bool) -> list[list[str]]:
    if timed.kind == "phonemes":
        return [[voiced(piece.text)] for piece in timed]
    if not japanese:
        return [[c.lower() for c in piece.text if c.isalnum()] for piece in timed]
    from songbloom.lyrics.vocabulary import vocabulary

    read = vocabulary("ja_phonemes").tokenize(timed.text)
    made: list[list[str]] = [[] for _ in timed.spans]
    piece = 0
    for symbol, (start, end) in zip(read.symbols, read.spans, strict=True):
        middle = (start + end) / 2
        while piece < len(timed.spans) and timed.spans[piece][1] <= middle:
            piece += 1
        if piece < len(timed.spans) and timed.spans[piece][0] <= middle and _phonemes(symbol, ["a"]):
            made[piece].append(symbol)
    return made


def _fill(found: list[tuple[float, float] | None], sung: list[int]) -> list[tuple[float, float] | None]:
    """Times for sung tokens between two that have times."""
    known = [index for index in sung if found[index] is not None]
    for left, right in itertools.pairwise(known):
        missing = [index for index in sung if left < index < right]
        before, after = found[left], found[right]
        if not missing or before is None or after is None:
            continue
        start, end = before[1], max(before[1], after[0])
        step = (end - start) / len(missing)
        for place, index in enumerate(missing):
            found[index] = (start + place * step, start + (place + 1) * step)
    return found


def _read_json(path: Path) -> TimedText:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: is no JSON that can be read ({error})") from error
    if isinstance(content, dict):
        if isinstance(content.get("phonemes"), list):
            return _corpus_phonemes(content["phonemes"], path)
        content = next((content[key] for key in ("phrases", "words", "lines") if key in content), None)
    if isinstance(content, list):
        return from_phrases(content, source=str(path))
    raise UserError(f"{path}: holds no times; it needs a list of phonemes, or of phrases with start, end and text")


def _corpus_phonemes(entries: list[Any], path: Path) -> TimedText:
    builder = Builder()
    line = None
    for number, entry in enumerate(entries, start=1):
        try:
            phoneme, start, end = str(entry["phoneme"]), float(entry["start"]), float(entry["end"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}, phoneme {number}: needs phoneme, start and end") from error
        if not 0 <= start <= end < float("inf"):
            raise UserError(f"{path}, phoneme {number}: lasts from {start:g} to {end:g}; the end is before the start")
        if phoneme in SILENT:
            continue
        if not builder.ends_with("\n"):
            builder.add("\n" if entry.get("line") != line else " ")
        line = entry.get("line")
        builder.add(voiced(phoneme), start, end)
    timed = builder.build("phonemes")
    if not timed.spans:
        raise UserError(f"{path}: nothing but silence in it")
    return timed
