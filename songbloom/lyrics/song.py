"""A song's words → the symbols of a phoneme vocabulary, as people mean them: one language a song, each with its place.

English is ARPAbet, Chinese initials and toned finals, Japanese the phonemes of Open JTalk. ``{…}`` holds phonemes,
alone or in place of how the word before it is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from songbloom.errors import did_you_mean
from songbloom.lyrics import japanese, western
from songbloom.lyrics.morae import ENDS_MORA, PHONEMES, VOWELS, is_kana
from songbloom.lyrics.phonemes import MARKS, SECTION_END, SENTENCE_END, SILENT_TAGS
from songbloom.lyrics.structure import Section, find_tags, parse, tag_count
from songbloom.lyrics.tokens import Places, SectionTokens
from songbloom.lyrics.western import Sound

Language = Literal["auto", "ja", "en", "zh", "phonemes", "published"]
LANGUAGES: tuple[Language, ...] = ("auto", "ja", "en", "zh", "phonemes", "published")
"""How words are read; ``phonemes``: they are phonemes already; ``published``: as the published program reads them."""

_BRACES = re.compile(r"\{([^{}\n]*)\}")
_BASE = re.compile(r"(?:[A-Za-z'’]+|[\u3005-\u3007\u3400-\u9fff]+|[ァ-ヺー]+|[ぁ-ゖー]+)\Z")
_KANA = re.compile("[ぁ-ゖァ-ヺｦ-ﾝ]")
_HAN = re.compile("[\u3400-\u9fff]")
_ENDS = (SENTENCE_END, SECTION_END)
_SPLIT = {"ty": ("t", "y"), "kw": ("k", "w"), "gw": ("g", "w"), "fy": ("f", "y")}
_TAG_INSTEAD = {"[prechorus]": "[verse]"}
"""What stands for sounds and tags that a vocabulary lacks."""


class Symbol(NamedTuple):
    """A symbol and the characters that it came from."""

    symbol: str
    start: int
    end: int


@dataclass(frozen=True)
class Song:
    """A song in symbols; ``sections`` say where each begins; ``language`` is the one it was read in."""

    symbols: tuple[Symbol, ...]
    sections: tuple[SectionTokens, ...]
    language: str


def read_song(
    text: str,
    known: Collection[str],
    places: Places,
    *,
    language: str = "auto",
    english: str = "arpabet",
    reading: str = "auto",
    seconds_per_tag: float = 1.0,
) -> Song:
    """Read a song.

    Args:
        text: structured lyrics.
        known: the symbols of the vocabulary.
        places: takes the problems.
        language: one of :data:`LANGUAGES` but ``published``; ``auto``: Japanese if there are kana, else Chinese if
            there are Chinese characters, else phonemes if all words are (:func:`language_of`), else English.
        english: ``arpabet``, or a rule of the Japanese vocabularies, for English words in Japanese songs.
        reading: how Japanese is read.
        seconds_per_tag: as in :func:`songbloom.lyrics.structure.write_published`.

    Raises:
        UserError: a tag's mistake, or a package that is missing.
    """
    sections = parse(text, places)
    masked = list(text)
    for tag in find_tags(text):
        masked[tag.start : tag.end] = " " * (tag.end - tag.start)
    sounds = _take_phonemes(masked, known, places)
    words = "".join(masked)
    if language == "auto":
        language = language_of(words, known)
    if language == "phonemes":
        sounds += _given_phonemes(words, known, places)
    elif language == "ja":
        sounds += _japanese(words, english, reading, places)
    else:
        sounds += western.read(words, places, chinese=language == "zh")
    sounds.sort(key=lambda sound: sound.start)
    return _assembled(
        sections, [_fitted(sound, known, places) for sound in sounds], known, places, seconds_per_tag, language
    )


def language_of(words: str, known: Collection[str]) -> Language:
    """The language of a song without its tags."""
    if _KANA.search(words):
        return "ja"
    if _HAN.search(words):
        return "zh"
    parts = words.split()
    if all(part in known for part in parts) and (
        any(part[-1].isdigit() and not part.isdigit() for part in parts) or _are_japanese(parts)
    ):
        return "phonemes"
    return "en"


def _are_japanese(parts: Sequence[str]) -> bool:
    """Whether words are Japanese phonemes: there are consonants, and a vowel after each.

    Spelled letters (``a b c``) and words that are symbols too (``my``) have consonants in a row or at the end.
    """
    sounds = [part for part in parts if part not in MARKS]
    after = [following for sound, following in pairwise([*sounds, ""]) if sound not in ENDS_MORA]
    return bool(after) and {*sounds} <= {*PHONEMES} and {*after} <= VOWELS


def _take_phonemes(masked: list[str], known: Collection[str], places: Places) -> list[Sound]:
    """Phonemes in braces, which are blanked in ``masked`` with the word whose reading they are."""
    text = "".join(masked)
    sounds = []
    for match in _BRACES.finditer(text):
        symbols = match[1].split()
        if is_kana(match[1].replace(" ", "")) and symbols:
            continue  # a Japanese reading
        unknown = [symbol for symbol in symbols if symbol not in known or symbol.startswith("[")]
        if unknown or not symbols:
            near = did_you_mean(unknown[0], known) if unknown else ""
            what = f"{unknown[0]!r} is no phoneme{near}" if unknown else "holds nothing"
            places.note(
                match.start(), match[0], f"is left out: {what}; phonemes stand in braces with spaces: {{L AH1 V}}"
            )
            masked[match.start() : match.end()] = " " * len(match[0])
            continue
        base = _BASE.search(text, 0, match.start())
        start = base.start() if base else match.start()
        masked[start : match.end()] = " " * (match.end() - start)
        sounds.append(Sound(start, match.end(), tuple(symbols)))
    return sounds


def _given_phonemes(words: str, known: Collection[str], places: Places) -> Iterator[Sound]:
    """Phonemes and marks as they are written; a line's end stands for ``.`` where no mark does."""
    for match in re.finditer(rf"[{western.LINE_ENDS}]|\S+", words):
        if match[0].isspace():
            yield Sound(*match.span(), (), stop=True)
        elif match[0] in known:
            yield Sound(*match.span(), (match[0],))
        else:
            places.note(match.start(), match[0], f"is no phoneme{did_you_mean(match[0], known)} and is left out")


def _japanese(words: str, english: str, reading: str, places: Places) -> Iterator[Sound]:
    song = japanese.read(words, "keep" if english == "arpabet" else english, reading, places)
    letters: list[japanese.Piece] = []
    for piece in [*song.pieces, None]:
        if letters and (piece is None or piece.kind != "letter" or not _same_word(letters[-1], piece)):
            start, end = letters[0].start, letters[-1].end
            yield from western.read_word("".join(letter.symbol for letter in letters), start, end, places)
            letters = []
        if piece is None:
            return
        if piece.kind == "letter":
            letters.append(piece)
        elif piece.kind in ("line", "punctuation"):
            yield Sound(piece.start, piece.end, (), stop=True, firm=piece.symbol in (".", "!", "?"))
        elif piece.phonemes:
            yield Sound(piece.start, piece.end, piece.phonemes)


def _same_word(letter: japanese.Piece, after: japanese.Piece) -> bool:
    return (after.start, after.end) == (letter.start, letter.end) or after.start == letter.end


def _fitted(sound: Sound, known: Collection[str], places: Places) -> Sound:
    """A sound in symbols that the vocabulary has; what cannot be said in it is named."""
    fitting: list[str] = []
    for symbol in sound.symbols:
        parts = (symbol,) if symbol in known else _SPLIT.get(symbol, (symbol,))
        if all(part in known for part in parts):
            fitting += parts
        else:
            places.note(sound.start, symbol, "has no token in this vocabulary and is left out")
    return sound._replace(symbols=tuple(fitting))


def _assembled(
    sections: Iterable[Section],
    sounds: list[Sound],
    known: Collection[str],
    places: Places,
    per_tag: float,
    language: str,
) -> Song:
    """Tags, sounds and the marks between them: ``,`` where a section ends, ``.`` between sentences."""
    symbols: list[Symbol] = []
    begun: list[SectionTokens] = []
    sections = list(sections)
    for number, section in enumerate(sections):
        stop = sections[number + 1].start if number + 1 < len(sections) else None
        inside = [s for s in sounds if s.start >= section.start and (stop is None or s.start < stop)]
        if section.tag:
            span = (section.start, section.end)
            tag = section.tag if section.tag in known else _TAG_INSTEAD.get(section.tag, "")
            if tag != section.tag:
                instead = f"{tag} stands for it" if tag else "it is left out"
                places.note(section.start, section.tag, f"is not in this vocabulary; {instead}")
            if symbols and symbols[-1].symbol != SECTION_END:  # given phonemes have their own
                symbols.append(Symbol(SECTION_END, *span))
            count = tag_count(section, per_tag) if tag else 0
            begun.append(SectionTokens(tag, len(symbols), count, section.seconds))
            symbols += [Symbol(tag, *span)] * count
            if section.tag in SILENT_TAGS and any(set(sound.symbols) - {*MARKS} for sound in inside):
                places.note(
                    section.start, section.tag, "has words; they are sung, but published models know none there"
                )
        symbols += _sentences(inside, final=stop is None)
    return Song(tuple(symbols), tuple(begun), language)


def _sentences(sounds: list[Sound], *, final: bool) -> Iterator[Symbol]:
    waiting: Sound | None = None
    begun = False
    for sound in sounds:
        if sound.stop:
            if begun and (waiting is None or sound.firm):
                waiting = sound
            continue
        if waiting is not None and sound.symbols:
            if sound.symbols[0] not in _ENDS:
                yield Symbol(SENTENCE_END, waiting.start, waiting.end)
            waiting = None
        for symbol in sound.symbols:
            yield Symbol(symbol, sound.start, sound.end)
            begun = symbol not in _ENDS
    if final and waiting is not None and waiting.firm:
        yield Symbol(SENTENCE_END, waiting.start, waiting.end)
