"""Vocabularies of phonemes: SongBloom's published one, ours that holds it and more, and any that a file lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from songbloom.errors import UserError, did_you_mean
from songbloom.lyrics import published_reading
from songbloom.lyrics.phonemes import MARKS, NEAREST, PUBLISHED
from songbloom.lyrics.song import LANGUAGES, Language, read_song
from songbloom.lyrics.structure import parse, write_published
from songbloom.lyrics.tokens import EnglishRule, Places, ReadingRule, SectionTokens, Tokens, Vocabulary, check_rules

NEW = ("[prechorus]", "ty", "kw", "gw", "fy")
"""What ``songbloom_ja`` has after the published 330 entries; new ones come after the last."""


class PhonemeVocabulary(Vocabulary):
    """Tags, marks and phonemes of several languages; a song is read in one of them."""

    def __init__(self, name: str, symbols: Sequence[str], *, as_published: bool = False) -> None:
        super().__init__(name, symbols)
        self._as_published = as_published

    @property
    def separator(self) -> str:
        return " "

    def tokenize(
        self,
        text: str,
        *,
        english: EnglishRule = "arpabet",
        reading: ReadingRule = "auto",
        language: Language = "auto",
        seconds_per_tag: float = 1.0,
    ) -> Tokens:
        """Tokens of structured lyrics.

        Args:
            text: see :mod:`songbloom.lyrics.structure`.
            english: English words in Japanese songs.
            reading: how Japanese is read.
            language: what the words are; ``published`` reads them with the published program's habits.
            seconds_per_tag: a wordless section with a length gets a tag for each so many seconds; 0: one tag.

        Raises:
            UserError: an unknown rule, a tag's mistake, or a package that is missing.
        """
        check_rules(english, reading)
        if language not in LANGUAGES:
            near = did_you_mean(language, LANGUAGES)
            raise UserError(f"language is {language!r}{near}; it must be one of {', '.join(LANGUAGES)}")
        if language == "published" or (self._as_published and language == "auto"):
            return self._published(text)
        places = Places(text)
        song = read_song(
            text,
            self._id_of,
            places,
            language=language,
            english=english,
            reading=reading,
            seconds_per_tag=seconds_per_tag,
        )
        return Tokens(
            ids=tuple(self._id_of[symbol.symbol] for symbol in song.symbols),
            symbols=tuple(symbol.symbol for symbol in song.symbols),
            spans=tuple((symbol.start, symbol.end) for symbol in song.symbols),
            text=text,
            cleaned=write_published(parse(text), seconds_per_tag),
            problems=places.problems(),
            phonemes=tuple(symbol.symbol for symbol in song.symbols if is_phoneme(symbol.symbol)),
            sections=song.sections,
        )

    def _published(self, text: str) -> Tokens:
        places = Places(text)
        symbols: list[tuple[str, int, int]] = []
        sections: list[SectionTokens] = []
        for word in published_reading.read_words(text):
            if word.guessed:
                places.note(word.start, " ".join(word.guessed), f"is read by its spelling as {' '.join(word.phonemes)}")
            if word.phonemes == ("",) and word.end > word.start:
                places.note(word.start, text[word.start : word.end], "has no phonemes here and is one empty token")
            for symbol in word.phonemes:
                if symbol in self._id_of:
                    if symbol.startswith("["):
                        sections.append(SectionTokens(symbol, len(symbols), 1, None))
                    symbols.append((symbol, word.start, word.end))
                else:
                    places.note(word.start, symbol, f"has no token in vocabulary {self.name} and is left out")
        return Tokens(
            ids=tuple(self._id_of[symbol] for symbol, _, _ in symbols),
            symbols=tuple(symbol for symbol, _, _ in symbols),
            spans=tuple((start, end) for _, start, end in symbols),
            text=text,
            cleaned=text,
            problems=places.problems(),
            phonemes=tuple(symbol for symbol, _, _ in symbols if is_phoneme(symbol)),
            sections=tuple(sections),
        )

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._symbols_of(ids))


def is_phoneme(symbol: str) -> bool:
    """Whether a symbol is sung: no tag, no mark, and not the empty word."""
    return bool(symbol) and not symbol.startswith("[") and symbol not in (*MARKS, "…")


def named(name: str) -> PhonemeVocabulary:
    """``songbloom``, ``songbloom_ja`` or ``songbloom_published``."""
    symbols = (*PUBLISHED, *NEW) if name == "songbloom_ja" else PUBLISHED
    return PhonemeVocabulary(name, symbols, as_published=name == "songbloom_published")


def from_file(path: Path) -> PhonemeVocabulary:
    """A vocabulary from a list of symbols, or a mapping of symbols to ids, in YAML (``vocab_g2p.yaml``) or JSON.

    Raises:
        UserError: the file cannot be read, is no such list, or lacks ``,`` or ``.``, which end sections and sentences.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # every scalar is text: no yes, no null
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is no vocabulary that can be read ({str(error).splitlines()[0]})") from error
    symbols = _symbols(path, content)
    twice = next((symbol for index, symbol in enumerate(symbols) if symbol in symbols[:index]), None)
    if twice is not None:
        raise UserError(f"{path}: has {twice!r} twice; each symbol is one token")
    for mark in (",", "."):
        if mark not in symbols:
            raise UserError(f"{path}: has no {mark!r}, which ends sections or sentences")
    return PhonemeVocabulary(str(path), symbols)


def _symbols(path: Path, content: Any) -> list[str]:
    if isinstance(content, Mapping) and len(content) == 1 and isinstance(next(iter(content.values())), list):
        content = next(iter(content.values()))
    if isinstance(content, Mapping) and all(str(value).isdigit() for value in content.values()):
        ordered = sorted(content, key=lambda symbol: int(content[symbol]))
        if [int(content[symbol]) for symbol in ordered] == list(range(len(ordered))):
            content = ordered
    if not isinstance(content, list) or not content or not all(isinstance(symbol, str) for symbol in content):
        raise UserError(f"{path}: is no list of symbols, nor symbols with the ids 0, 1, 2 …")
    return content


def starting_rows(known: Sequence[str], wanted: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """From which rows of a trained embedding each row for a larger vocabulary starts.

    Args:
        known: the symbols of the trained embedding.
        wanted: the symbols of the new one.

    Returns:
        For each id of ``wanted`` the ids of ``known`` whose mean it starts from: itself where ``known`` has it and has
        learned it, its nearest relations by sound where it is new or only Japanese has it (no published model has
        learned those), nothing where there are none.
    """
    place = {symbol: index for index, symbol in enumerate(known)}
    rows: dict[int, tuple[int, ...]] = {}
    for index, symbol in enumerate(wanted):
        near = tuple(place[relation] for relation in NEAREST.get(symbol, ()) if relation in place)
        rows[index] = near or ((place[symbol],) if symbol in place else ())
    return rows


def section_times(sections: Sequence[SectionTokens], total: float | None = None) -> list[tuple[float, float]]:
    """When each tag's part of the song begins and ends, as the lyric conditioner's ``stretched`` takes it.

    A section whose tag is repeated is cut into equal parts. Sections without a length share what the others leave of
    ``total``.

    Args:
        sections: of :class:`songbloom.lyrics.tokens.Tokens`.
        total: length of the song in seconds.

    Raises:
        UserError: a section has no length and there is no total, or the lengths leave nothing of it.
    """
    open_sections = [section for section in sections if section.seconds is None]
    given = sum(section.seconds for section in sections if section.seconds is not None)
    share = 0.0
    if open_sections:
        if total is None:
            raise UserError(f"{open_sections[0].tag} has no length: write [{open_sections[0].tag[1:-1]} 12.5s]")
        if given >= total:
            raise UserError(
                f"the sections' lengths are {given:g} s, which leaves nothing of {total:g} s for the others"
            )
        share = (total - given) / len(open_sections)
    times: list[tuple[float, float]] = []
    start = 0.0
    for section in sections:
        length = share if section.seconds is None else section.seconds
        for part in range(section.count):
            times.append((start + length * part / section.count, start + length * (part + 1) / section.count))
        start += length
    return times
