"""Words of a song made ready: which line is sung when, which section it belongs to, what is left after cleaning."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from songbloom.lyrics.morae import KANA_OF, as_hiragana, group_phonemes
from songbloom.lyrics.structure import find_tags
from songbloom.lyrics.timed_text import Timed, TimedText
from songbloom.lyrics.timing import token_times
from songbloom.lyrics.vocabulary import vocabulary

GAP = 4.0
"""Seconds without words that make a section of their own."""
_JAPANESE = re.compile("[ぁ-ゖァ-ヺ㐀-鿿ｦ-ﾝ]")
_FOREIGN = re.compile(r"[^ぁ-ゟ゠-ヿ㐀-鿿々〆〇ｦ-ﾟ0-9０-９{}｜、。，．！？,.!?\s\u3000]+")
_UNKNOWN_TAG = re.compile(r"\[[ -Z^-~]*\]")
"""What looks like a tag where known ones have been taken out."""
_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Phrase:
    """A line of words; ``start`` and ``end`` in seconds, both ``None`` if nobody knows. ``tag`` begins a section."""

    text: str
    start: float | None = None
    end: float | None = None
    tag: str = ""
    """The tag that stands before the line; a tag alone is a phrase without text."""


@dataclass(frozen=True)
class Part:
    """A section with its lines; its times, if they are known, touch those of its neighbours."""

    tag: str
    phrases: tuple[Phrase, ...]
    start: float | None = None
    end: float | None = None


# --- lines -----------------------------------------------------------------------------------------------------------


def lines_of(text: str) -> list[Phrase]:
    """The lines of a text and the tags before them; an empty line between stanzas is a phrase without text or tag.

    What stands in brackets and is no tag that is known stays with the words, for the check to tell.

    Raises:
        UserError: a tag's mistake, with line and column.
    """
    tags = [tag for tag in find_tags(text) if tag.name]
    found: list[Phrase] = []
    start = 0
    for row in text.splitlines(keepends=True):
        inside = [tag for tag in tags if start <= tag.start < start + len(row)]
        place = start
        waiting = ""
        for tag in [*inside, None]:
            words = text[place : tag.start if tag else start + len(row)].strip()
            if words or waiting:
                found.append(Phrase(words, tag=waiting))
                waiting = ""
            if tag is not None:
                waiting = tag.name or ""
                place = tag.end
        if waiting:
            found.append(Phrase("", tag=waiting))
        if not row.strip():
            found.append(Phrase(""))
        start += len(row)
    return _tags_joined(found)


def _tags_joined(found: list[Phrase]) -> list[Phrase]:
    """A tag on a line of its own belongs to the line below, unless another tag follows."""
    joined: list[Phrase] = []
    for phrase in found:
        last = joined[-1] if joined else None
        if last is not None and last.tag and not last.text and phrase.text and not phrase.tag:
            joined[-1] = replace(phrase, tag=last.tag)
        elif last is not None and last.tag and not last.text and not phrase.text and not phrase.tag:
            continue  # an empty line below a tag
        else:
            joined.append(phrase)
    return joined


def timed_lines(timed: TimedText) -> list[Phrase]:
    """The lines of a timed file with their times and tags; phonemes become kana."""
    if timed.kind == "phonemes":
        return [
            Phrase(kana_of([piece.text for piece in line]), line[0].start, max(piece.end for piece in line))
            for line in timed.lines()
        ]
    phrases: list[Phrase] = []
    waiting = ""
    times = iter(timed.lines())
    start = 0
    spans = list(timed.spans)
    for row in timed.text.splitlines(keepends=True):
        end = start + len(row)
        has_times = any(start <= first < end for first, _ in spans)
        for phrase in lines_of(row):
            if phrase.tag and waiting:
                phrases.append(Phrase("", tag=waiting))
            waiting = phrase.tag or waiting
            if phrase.text and has_times:
                line = next(times)
                phrases.append(Phrase(phrase.text, line[0].start, max(piece.end for piece in line), waiting))
                waiting, has_times = "", False
            elif _UNKNOWN_TAG.fullmatch(phrase.text):
                phrases.append(Phrase(phrase.text, tag=waiting))
                waiting = ""
        start = end
    return [*phrases, Phrase("", tag=waiting)] if waiting else phrases


def kana_of(phonemes: Sequence[str]) -> str:
    """Phonemes in Open JTalk's names as hiragana; consonants that make no mora are left out.

    >>> kana_of(["k", "o", "N", "n", "i", "ch", "i", "w", "a"])
    'こんにちわ'
    """
    return as_hiragana("".join(KANA_OF.get(group, KANA_OF.get(group[-1:], "")) for group in group_phonemes(phonemes)))


def matched(text: str, timed: TimedText) -> list[Phrase]:
    """The lines of ``text`` with the times of ``timed``, which may be phonemes or words written in another way.

    Where the times are phonemes of a recording, and a line would be read in another way, it gets the reading that was
    sung: ``｜私は{わたしわ}``.

    Raises:
        UserError: the times are of other words; or a tag's mistake.
    """
    lines = lines_of(text)
    sung = [line for line in lines if line.text]
    given = [line for line in timed_lines(timed) if line.text]
    if timed.kind == "text" and len(sung) == len(given):
        ratios = [_alike(a.text, b.text) for a, b in zip(sung, given, strict=True)]
        if min(ratios, default=0.0) >= 0.8:
            times = iter([(line.start, line.end) for line in given])
            return _with_times(lines, [next(times) for _ in sung])
    joined = "\n".join(line.text for line in sung)
    japanese = bool(_JAPANESE.search(joined))
    words = vocabulary("ja_phonemes" if japanese else "v3")
    tokens = words.tokenize(joined)
    found = token_times(tokens, timed)
    ends = list(itertools.accumulate(len(line.text) + 1 for line in sung))
    spans: list[tuple[float | None, float | None]] = []
    for begin, end in zip([0, *ends], ends, strict=False):
        inside = [
            time
            for time, (first, _) in zip(found, tokens.spans, strict=True)
            if time is not None and begin <= first < end
        ]
        spans.append((min(t[0] for t in inside), max(t[1] for t in inside)) if inside else (None, None))
    phrases = _with_times(lines, _in_order(spans))
    return [_as_sung(phrase, timed) for phrase in phrases] if timed.kind == "phonemes" else phrases


def _alike(a: str, b: str) -> float:
    a, b = (_LETTERS.sub("", text).lower() for text in (a, b))
    return 1.0 if a == b else SequenceMatcher(None, a, b, autojunk=False).ratio()


def _with_times(lines: list[Phrase], times: Sequence[tuple[float | None, float | None]]) -> list[Phrase]:
    waiting = iter(times)
    made = []
    for line in lines:
        start, end = next(waiting) if line.text else (None, None)
        made.append(replace(line, start=start, end=end))
    return made


def _in_order(spans: list[tuple[float | None, float | None]]) -> list[tuple[float | None, float | None]]:
    """No line begins before the one above it has begun."""
    last = 0.0
    ordered: list[tuple[float | None, float | None]] = []
    for start, end in spans:
        if start is None or end is None or end <= max(start, last):
            ordered.append((None, None))
            continue
        start = max(start, last)
        ordered.append((start, end))
        last = start
    return ordered


def _as_sung(phrase: Phrase, timed: TimedText) -> Phrase:
    """A line with the reading that a label file has in its time, where the line would be read in another way."""
    if phrase.start is None or phrase.end is None or not phrase.text or set(phrase.text) & set("{}｜"):
        return phrase
    heard = [piece.text for piece in timed if phrase.start <= (piece.start + piece.end) / 2 < phrase.end]
    read = list(vocabulary("ja_phonemes").tokenize(phrase.text).phonemes)
    alike = SequenceMatcher(None, heard, read, autojunk=False).ratio()
    if heard == read or not alike >= 0.6:
        return phrase
    return replace(phrase, text=f"｜{phrase.text}{{{kana_of(heard)}}}")


def clean_japanese(phrases: Sequence[Phrase]) -> list[Phrase]:
    """Lines without what is not Japanese (scat in Latin letters, signs); lines with nothing else go, tags stay.

    Misspelt tags stay, too.
    """
    cleaned: list[Phrase] = []
    for phrase in phrases:
        pieces = _UNKNOWN_TAG.split(phrase.text)
        told = _UNKNOWN_TAG.findall(phrase.text)
        words = (re.sub(r"\s+", " ", _FOREIGN.sub(" ", piece)).strip(" 、。，．,.!?！？") for piece in pieces)
        words = (text if _JAPANESE.search(text) else "" for text in words)
        kept = " ".join(filter(None, itertools.chain.from_iterable(itertools.zip_longest(words, told))))
        if kept or phrase.tag or not phrase.text:
            cleaned.append(replace(phrase, text=kept) if kept else Phrase("", tag=phrase.tag))
    return _tags_joined(cleaned)


# --- fitting a score to a voice --------------------------------------------------------------------------------------


def shift_of(
    loud: np.ndarray, step: float, spans: Sequence[tuple[float, float]], most: float = 5.0
) -> tuple[float, float]:
    """By how much sung times lie later in a recording of the voice alone, and how well they then agree.

    Args:
        loud: bool ``[T]``: whether there is sound in each ``step`` seconds.
        step: seconds.
        spans: start and end of what is sung.
        most: seconds to look for.

    Returns:
        The shift in seconds (the middle of those that agree best), and the share of steps that agree: 1 is all.
    """
    reach = round(most / step)
    mask = np.zeros(len(loud) + 2 * reach, bool)
    for start, end in spans:
        mask[max(0, round(start / step) + reach) : max(0, round(end / step) + reach)] = True
    shares = [
        float((mask[reach - shift : reach - shift + len(loud)] == loud).mean()) for shift in range(-reach, reach + 1)
    ]
    best = max(shares)
    ties = [place - reach for place, share in enumerate(shares) if share >= best - 1e-6]
    return ties[len(ties) // 2] * step, best


def moved(phrases: Sequence[Phrase], shift: float) -> list[Phrase]:
    """Phrases ``shift`` seconds later; what would be before the beginning starts there."""
    return [
        phrase
        if phrase.start is None or phrase.end is None
        else replace(phrase, start=max(0.0, phrase.start + shift), end=max(0.0, phrase.end + shift))
        for phrase in phrases
    ]


def without_times(phrases: Sequence[Phrase]) -> list[Phrase]:
    """Phrases of which nobody knows when they are sung."""
    return [replace(phrase, start=None, end=None) for phrase in phrases]


# --- sections --------------------------------------------------------------------------------------------------------


def parts_of(phrases: Sequence[Phrase], seconds: float, gap: float = GAP) -> list[Part]:
    """The sections of a song.

    Tags are kept where the words have any. Otherwise a section ends where nothing is sung for ``gap`` seconds, or,
    without times, at an empty line; words that come again are a ``[chorus]``, others a ``[verse]``. With times,
    stretches without words get ``[intro]``, ``[inst]`` and ``[outro]``, and every section its start and end.

    Args:
        phrases: in the order they are sung.
        seconds: length of the song.
        gap: seconds.
    """
    timed = any(phrase.start is not None for phrase in phrases)
    if any(phrase.tag for phrase in phrases):
        blocks = _tagged(phrases)
    else:
        blocks = _named(_blocks(phrases, gap if timed else None))
    return _placed(blocks, seconds, gap) if timed else [Part(tag, tuple(block)) for tag, block in blocks]


def _tagged(phrases: Sequence[Phrase]) -> list[tuple[str, list[Phrase]]]:
    blocks: list[tuple[str, list[Phrase]]] = []
    for phrase in phrases:
        if phrase.tag or not blocks:
            if not phrase.tag and not phrase.text:
                continue
            blocks.append((phrase.tag or "[verse]", []))
        if phrase.text:
            blocks[-1][1].append(phrase)
    return blocks


def _blocks(phrases: Sequence[Phrase], gap: float | None) -> list[list[Phrase]]:
    blocks: list[list[Phrase]] = [[]]
    last: float | None = None
    for phrase in phrases:
        far = gap is not None and None not in (last, phrase.start) and phrase.start - last >= gap  # type: ignore[operator]
        if blocks[-1] and (far or (gap is None and not phrase.text)):
            blocks.append([])
        if phrase.text:
            blocks[-1].append(phrase)
            last = phrase.end if phrase.end is not None else last
    return [block for block in blocks if block]


def _named(blocks: list[list[Phrase]]) -> list[tuple[str, list[Phrase]]]:
    words = ["".join(_LETTERS.sub("", phrase.text) for phrase in block) for block in blocks]
    often = Counter(words)
    return [("[chorus]" if often[said] > 1 else "[verse]", block) for said, block in zip(words, blocks, strict=True)]


def _placed(blocks: list[tuple[str, list[Phrase]]], seconds: float, gap: float) -> list[Part]:
    """Sections that follow one another from the beginning to the end of the song."""
    starts: list[tuple[str, tuple[Phrase, ...], float]] = []
    wordless = ""
    last = 0.0
    for tag, block in blocks:
        times = [(p.start, p.end) for p in block if p.start is not None and p.end is not None]
        if not times:
            if block and starts:  # words that nobody timed stay with those before them
                before = starts[-1]
                starts[-1] = (before[0], (*before[1], *block), before[2])
            elif not block:
                wordless = tag
            continue
        first = times[0][0]
        if first - last >= gap:
            starts.append((wordless or ("[inst]" if starts else "[intro]"), (), last))
            starts.append((tag, tuple(block), first))
        else:
            starts.append((tag, tuple(block), first if starts else 0.0))
        wordless, last = "", max(end for _, end in times)
    if seconds - last >= gap:
        starts.append((wordless or "[outro]", (), last))
    begins = [round(start, 2) for *_, start in starts]
    ends = [*begins[1:], int(seconds * 100) / 100]
    return [Part(tag, block, a, b) for (tag, block, _), a, b in zip(starts, begins, ends, strict=True) if b > a]


def written(parts: Sequence[Part], *, lengths: bool = True) -> str:
    """Sections as structured lyrics; with their lengths in seconds where they are known."""
    rows: list[str] = []
    for part in parts:
        length = ""
        if lengths and part.start is not None and part.end is not None:
            length = f" {round(part.end - part.start, 2):g}s"
        rows.append(f"[{part.tag[1:-1]}{length}]")
        rows += [phrase.text for phrase in part.phrases]
    return "\n".join(rows) + "\n" if rows else ""


def as_timed(phrases: Sequence[Phrase]) -> list[Timed]:
    """The phrases whose times are known."""
    return [Timed(p.text, p.start, p.end) for p in phrases if p.text and p.start is not None and p.end is not None]
