"""Japanese words as they are sung: a text in morae, each with its kana, its phonemes and its place in the text.

The whole song is read as Japanese, never a run of characters at a time: words in kanji only are Japanese too, and so
are numbers; English words follow one rule. What is not sung is either known to be silent (brackets, …, 〜) or named.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from songbloom.lyrics import english as english_words
from songbloom.lyrics import morae, open_jtalk, overrides
from songbloom.lyrics.tags import advice_on, find_tags
from songbloom.lyrics.tokens import Places

Kind = Literal["mora", "letter", "punctuation", "tag", "line"]
_PUNCTUATION = {",": ",", "、": ",", ";": ",", ":": ",", ".": ".", "。": ".", "!": "!", "?": "?"}
_LONGEST = 120
"""Characters that are read at once; longer lines are cut at a sentence's end or a space."""
_LONGEST_GIVEN = 1000
"""Characters of given readings in such a part up to which Open JTalk reads it, which takes some thousands."""
_LONGEST_WORD = 100
"""Letters of a word that a dictionary may have."""
_NOT_SUNG = "is not sung and is left out"
_NO_READING = "has no reading here and is left out; write it in kana, or give its reading: {0}{{かな}}"
_LONG_FROM_NOTHING = re.compile(r"(?<!\w)ー+")
_NOTHING_TO_LENGTHEN = "has nothing to lengthen and is left out"


class Piece(NamedTuple):
    """One thing to sing or to mark: ``symbol`` is a mora in katakana, a letter, ``, . ! ?``, a tag or a line's end.

    ``start`` and ``end`` are characters of the text it came from.
    """

    kind: Kind
    symbol: str
    phonemes: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """A text as it is sung: its pieces, and the text after normalisation with its tags in their usual form."""

    pieces: tuple[Piece, ...]
    cleaned: str


class Note(NamedTuple):
    """A problem at a character of a segment."""

    position: int
    symbol: str
    advice: str


def read(text: str, english: str, reading: str, places: Places) -> Reading:
    """Read a song.

    Args:
        text: words with lines and tags.
        english: ``katakana``, ``letters`` or ``keep``.
        reading: ``auto``, ``dictionary`` or ``kana``.
        places: takes the problems.

    Raises:
        UserError: the dictionary is needed and not installed.
    """
    characters, where = normalise(text)
    by_kana = reading == "kana" or (reading == "auto" and not open_jtalk.is_installed() and _only_kana(characters))
    if by_kana and reading == "auto":
        _warn_of_particles(characters, where, places)
    pieces: list[Piece] = []
    cleaned: list[str] = []
    for start, end, tag in _segments(characters):
        span = (where[start][0], where[end - 1][1])
        words = characters[start:end]
        if words == "\n":
            pieces.append(Piece("line", "\n", (), *span))
            cleaned.append(words)
        elif tag is not None:
            pieces.append(Piece("tag", tag, (), *span))
            cleaned.append(tag)
        elif words.startswith("[") and words.endswith("]"):
            places.note(span[0], words, advice_on(words[1:-1]))
        else:
            found, notes = read_segment(words, english, by_kana)
            pieces += [p._replace(start=where[start + p.start][0], end=where[start + p.end - 1][1]) for p in found]
            for note in notes:
                places.note(where[start + note.position][0], note.symbol, note.advice)
            cleaned.append(words)
    return Reading(tuple(_tidy(pieces)), "".join(cleaned))


def normalise(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Unicode NFKC, and for each character of the result the characters of ``text`` that it came from.

    ``…`` and ``‥`` stay, which NFKC makes full stops; every kind of line end becomes one character.
    """
    characters: list[str] = []
    where: list[tuple[int, int]] = []
    for match in re.finditer(r"\r\n|[\s\S][\u3099\u309a\uff9e\uff9f\u0300-\u036f\ufe00-\ufe0f]*", text):
        cluster = match[0]
        if cluster in ("\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"):
            plain = "\n"
        elif cluster[0] in "…‥":
            plain = cluster[0]
        else:
            plain = re.sub("[\ufe00-\ufe0f]", "", unicodedata.normalize("NFKC", cluster))
        characters.append(plain)
        where += [match.span()] * len(plain)
    return "".join(characters), where


def _segments(characters: str) -> Iterator[tuple[int, int, str | None]]:
    """Start, end and tag of the parts of a text: tags, line ends, and words between them."""
    position = 0
    for start, end, tag in find_tags(characters):
        yield from _lines(characters, position, start)
        yield start, end, tag
        position = end
    yield from _lines(characters, position, len(characters))


def _lines(characters: str, start: int, end: int) -> Iterator[tuple[int, int, None]]:
    for match in re.compile(r"\n|[^\n]+").finditer(characters, start, end):
        if match[0] == "\n" or not match[0].isspace():
            yield match.start(), match.end(), None


def _tidy(pieces: list[Piece]) -> Iterator[Piece]:
    """Without line ends at the ends of the text, beside tags and after one another, and with single punctuation."""
    last: Piece | None = None
    waiting: Piece | None = None
    for piece in pieces:
        if piece.kind == "line":
            waiting = waiting or piece
            continue
        if waiting is not None and last is not None and "tag" not in (last.kind, piece.kind):
            yield waiting
            last = waiting
        waiting = None
        if piece.kind == "punctuation" and last is not None and last[:2] == piece[:2]:
            continue
        yield piece
        last = piece


def _only_kana(characters: str) -> bool:
    marked = overrides.parse(characters)
    given = {position for start, end, _ in marked.readings for position in range(start, end)}
    return not any(_needs_reading(c) for i, c in enumerate(marked.plain) if i not in given and not c.isascii())


def _needs_reading(character: str) -> bool:
    return unicodedata.category(character) in ("Lo", "Lm", "Nd", "Nl") and not morae.is_kana(character)


def _warn_of_particles(characters: str, where: list[tuple[int, int]], places: Places) -> None:
    match = re.search("[はへ]", characters)
    if match:
        places.note(
            where[match.start()][0],
            match[0],
            "is read as it stands, because Open JTalk is not installed: pip install pyopenjtalk-plus, or write"
            " particles as they sound, わ and え",
        )


class Fixed(NamedTuple):
    """A stretch of the text to be read that has a given reading; ``letters`` instead, if it is spelled."""

    start: int
    end: int
    kana: str
    letters: str


@lru_cache(maxsize=8192)
def read_segment(words: str, english: str, by_kana: bool) -> tuple[tuple[Piece, ...], tuple[Note, ...]]:
    """Pieces and problems of a part of a line; places are characters of ``words``. Kept: choruses come again."""
    marked = overrides.parse(words)
    plain, origin = marked.plain, marked.origin
    fixed = [Fixed(start, end, kana, "") for start, end, kana in marked.readings]
    notes = [Note(position, symbol, advice) for position, symbol, advice in marked.problems]
    for match in _LONG_FROM_NOTHING.finditer(plain):
        notes += [Note(origin[i][0], morae.LONG, _NOTHING_TO_LENGTHEN) for i in range(*match.span())]
    plain = _LONG_FROM_NOTHING.sub(lambda match: " " * len(match[0]), plain)
    given = {position for f in fixed for position in range(f.start, f.end)}
    for match in english_words.WORD.finditer(plain):
        if not given.isdisjoint(range(*match.span())):
            continue
        kana, letters = _english(match[0], english, by_kana)
        if kana or letters:
            fixed.append(Fixed(match.start(), match.end(), kana, letters))
    pieces: list[Piece] = []
    fixed.sort()
    for start, end, inside in _chunks(plain, fixed):
        endless = sum(max(len(f.kana), f.end - f.start) for f in inside) > _LONGEST_GIVEN
        found, more = (_read_kana if by_kana or endless else _read_words)(plain[start:end], inside)
        pieces += [p._replace(start=p.start + start, end=p.end + start) for p in found]
        notes += [Note(origin[n.position + start][0], n.symbol, n.advice) for n in more]
    located = (p._replace(start=origin[p.start][0], end=origin[p.end - 1][1]) for p in pieces)
    return tuple(located), tuple(notes)


def _english(word: str, rule: str, by_kana: bool) -> tuple[str, str]:
    """Katakana or letters that stand for an English word; both empty: as the dictionary reads it."""
    if rule == "keep":
        return "", re.sub("[^a-z']", "", word.lower().replace("’", "'"))
    if rule == "letters":
        return english_words.letter_names(word), ""
    if not by_kana and _dictionary_reads(word):
        return "", ""
    table = english_words.from_table(word)
    if table:
        return table, ""
    if len(word) == 1 or (word.isupper() and (len(word) <= 4 or "'" in word)):  # an acronym
        return english_words.letter_names(word), ""
    if not by_kana and _dictionary_reads(word.capitalize()):
        known = open_jtalk.read_words(word.capitalize())
        return "".join(mora for w in known for mora, _ in w.morae), ""
    return english_words.by_spelling(word), ""


@lru_cache(maxsize=8192)
def _dictionary_reads(word: str) -> bool:
    """Whether the dictionary has an English word, or spells it out as people do with acronyms."""
    if len(word) > _LONGEST_WORD:
        return False
    found = open_jtalk.read_words(word)
    return len(found) == 1 and found[0].known and bool(found[0].morae)


def _chunks(plain: str, fixed: list[Fixed]) -> Iterator[tuple[int, int, list[Fixed]]]:
    """Start and end of the parts that are read at once, and the given readings inside, with places in the part."""
    start = first = 0
    while start < len(plain):
        end = len(plain)
        if end - start > _LONGEST:
            cut = max(plain.rfind(mark, start, start + _LONGEST) for mark in "。、!?., ")
            end = cut + 1 if cut >= start else start + _LONGEST
        last = first
        while last < len(fixed) and fixed[last].start < end:
            end = max(end, fixed[last].end)
            last += 1
        yield start, end, [f._replace(start=f.start - start, end=f.end - start) for f in fixed[first:last]]
        start, first = end, last


def _read_words(plain: str, fixed: list[Fixed]) -> tuple[list[Piece], list[Note]]:
    """Read with Open JTalk; what is ``fixed`` is put in as katakana, so that the words around it have neighbours."""
    given, back = _substitute(plain, fixed)
    found = [(word, back[word.start][0], back[word.end - 1][1]) for word in open_jtalk.read_words(given)]
    # A word may reach over the edge of a given reading: it has read that in katakana already.
    crossed = {f for f in fixed for _, a, b in found if a < f.end and f.start < b and not (f.start <= a and b <= f.end)}
    waiting = [f for f in fixed if f not in crossed]
    pieces: list[Piece] = []
    notes: list[Note] = []
    for word, start, end in found:
        while waiting and (waiting[0].end <= start or waiting[0].start <= start < waiting[0].end):
            pieces += _fixed_pieces(waiting.pop(0))
        if any(f.start <= start and end <= f.end for f in fixed if f not in crossed):
            continue
        if word.morae:
            spans = _spread(given[word.start : word.end], [mora for mora, _ in word.morae])
            for (mora, phonemes), (a, b) in zip(word.morae, spans, strict=True):
                first, last = back[word.start + a][0], back[word.start + b - 1][1]
                pieces.append(Piece("mora", mora, phonemes, first, last))
        else:
            for position in range(start, end):
                _unsung(plain, position, pieces, notes)
    for stretch in waiting:
        pieces += _fixed_pieces(stretch)
    return pieces, notes


def _substitute(plain: str, fixed: list[Fixed]) -> tuple[str, list[tuple[int, int]]]:
    """``plain`` with given readings in place of their words, and where each character of it came from."""
    given: list[str] = []
    back: list[tuple[int, int]] = []
    position = 0
    for stretch in [*fixed, Fixed(len(plain), len(plain), "", "")]:
        given.append(plain[position : stretch.start])
        back += [(i, i + 1) for i in range(position, stretch.start)]
        words = stretch.kana or plain[stretch.start : stretch.end]
        given.append(words)
        back += [(stretch.start, stretch.end)] * len(words)
        position = stretch.end
    return "".join(given), back


def _fixed_pieces(stretch: Fixed) -> list[Piece]:
    if stretch.letters:
        return [Piece("letter", letter, (), stretch.start, stretch.end) for letter in stretch.letters]
    return [
        Piece("mora", mora, phonemes, stretch.start, stretch.end) for mora, phonemes in morae.pronounce(stretch.kana)
    ]


def _read_kana(plain: str, fixed: list[Fixed]) -> tuple[list[Piece], list[Note]]:
    """Read kana as they stand, with no dictionary."""
    pieces: list[Piece] = []
    notes: list[Note] = []
    starts = {stretch.start: stretch for stretch in fixed}
    position = 0
    for match in re.finditer(r"[ぁ-ゖァ-ヺー]+|[\s\S]", plain):
        if match.start() < position:
            continue
        if match.start() in starts:
            stretch = starts[match.start()]
            pieces += _fixed_pieces(stretch)
            position = stretch.end
        elif morae.is_kana(match[0]):
            _append_kana(match[0], match.start(), pieces, notes, starts)
            position = match.end()
        else:
            _unsung(plain, match.start(), pieces, notes)
            position = match.end()
    return pieces, notes


def _append_kana(kana: str, start: int, pieces: list[Piece], notes: list[Note], starts: dict[int, Fixed]) -> None:
    for mora in morae.split_kana(kana):
        before = next((p for p in reversed(pieces) if p.kind == "mora" and p.symbol != "ッ"), None)
        if mora == morae.LONG:
            if before is None:
                notes.append(Note(start, mora, _NOTHING_TO_LENGTHEN))
            else:
                pieces.append(Piece("mora", mora, before.phonemes[-1:], start, start + 1))
        else:
            for symbol, phonemes in morae.pronounce(mora):
                pieces.append(Piece("mora", symbol, phonemes, start, start + len(mora)))
        start += len(mora)


def _unsung(plain: str, position: int, pieces: list[Piece], notes: list[Note]) -> None:
    """A character that is not pronounced: punctuation, silence, or a problem."""
    character = plain[position]
    if character in _PUNCTUATION:
        pieces.append(Piece("punctuation", _PUNCTUATION[character], (), position, position + 1))
    elif character == morae.LONG:
        notes.append(Note(position, character, _NOTHING_TO_LENGTHEN))
    elif _needs_reading(character):
        notes.append(Note(position, character, _NO_READING.format(character)))
    elif not _is_silent(character):
        notes.append(Note(position, character, _NOT_SUNG))


def _is_silent(character: str) -> bool:
    """Spaces, brackets, quotation marks, dashes, dots between words, and 〜: written, but never sung."""
    return character in "~〜・·…‥*/#\"'’‘´`^_=+<>|" or unicodedata.category(character) in (
        "Zs", "Ps", "Pe", "Pi", "Pf", "Pd", "Cf", "Cc", "Mn",
    )  # fmt: skip


def _spread(surface: str, sung: list[str]) -> list[tuple[int, int]]:
    """Characters of a word that each of its morae came from: kana at both ends one by one, kanji together.

    ``("歌う", ["ウ", "タ", "ウ"])`` → ``[(0, 1), (0, 1), (1, 2)]``.
    """
    written = morae.split_kana(surface)
    ends = [0]
    for mora in written:
        ends.append(ends[-1] + len(mora))
    left = 0
    while left < min(len(written), len(sung)) and _same(written[left], sung[left]):
        left += 1
    right = 0
    while right < min(len(written), len(sung)) - left and _same(written[-1 - right], sung[-1 - right]):
        right += 1
    first, last = ends[left], ends[len(written) - right]
    middle = (first, last) if first < last else (0, len(surface))
    spans = [(ends[i], ends[i + 1]) for i in range(left)]
    spans += [middle] * (len(sung) - left - right)
    return spans + [(ends[i], ends[i + 1]) for i in range(len(written) - right, len(written))]


_SPOKEN_AS = {"ハ": "ワ", "ヘ": "エ", "ヲ": "オ"}


def _same(written: str, sung: str) -> bool:
    kana = morae.as_katakana(written)
    return kana == sung or _SPOKEN_AS.get(kana) == sung or (sung == morae.LONG and kana in "アイウエオァィゥェォ")
