"""English and Chinese words of a song → sounds with their places; :mod:`songbloom.lyrics.song` puts songs together."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from songbloom.lyrics import arpabet, mandarin
from songbloom.lyrics.tokens import Places


class Sound(NamedTuple):
    """What a stretch of the text becomes: symbols, or a ``stop`` (a sentence's end; ``firm`` if it is written)."""

    start: int
    end: int
    symbols: tuple[str, ...]
    stop: bool = False
    firm: bool = False


LINE_ENDS = r"\n\r\v\f\x85\u2028\u2029"  # of a class of characters
_LETTER = r"[^\W\d_\u3040-\u30ff\u3400-\u9fff][\u0300-\u036f]*"
_PART = re.compile(
    r"(?P<number>[$£]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:st|nd|rd|th)?)"
    r"|(?P<chinese>[\u3400-\u9fff]+)"
    rf"|(?P<word>['’]?(?:{_LETTER})+(?:['’\-](?:{_LETTER})+)*['’]?)"
    rf"|(?P<stop>[,.!?;:…，、。！？；：{LINE_ENDS}])"
    rf"|(?P<silent>(?:[^\S{LINE_ENDS}]|[\"“”‘«»〈〉《》「」『』【】()（）{{}}\-–—~～〜・·/*_&♪♫|\[\]]|['’](?!{_LETTER}))+)"
    r"|(?P<other>.)"
)
_DIGITS = "零一二三四五六七八九"
_GUESSED = "is in no dictionary; its spelling is read as {0}: give its sounds if they are others, {1}{{…}}"


def read(words: str, places: Places, *, chinese: bool) -> Iterator[Sound]:
    """English, and Chinese where ``chinese`` says so: then numbers are Chinese too."""
    for part in _PART.finditer(words):
        start, end = part.span()
        if part["stop"]:
            yield Sound(start, end, (), stop=True, firm=part[0] in ".!?…。！？")
        elif part["word"]:
            yield from read_word(part["word"], start, end, places)
        elif part["number"]:
            if chinese:
                yield Sound(start, end, _chinese_number(part[0], words[end : end + 1]))
            else:
                yield Sound(start, end, tuple(p for p in arpabet.phonemes_of(part[0]) if p[0].isalpha()))
        elif part["chinese"] and chinese:
            yield from _read_chinese(part[0], start, places)
        elif part["chinese"] or part["other"]:
            places.note(start, part[0], "is not sung and is left out")


def read_word(word: str, start: int, end: int, places: Places) -> Iterator[Sound]:
    """One English word, with its apostrophes and hyphens. What is in no dictionary is named with the guess."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", word.replace("’", "'")) if not unicodedata.combining(c))
    if not plain.isascii():
        places.note(start, word, "has letters that are not English and is left out; give its sounds: {…}")
        return
    phonemes, guessed = _spoken(plain)
    if guessed and phonemes:
        places.note(start, word, _GUESSED.format(" ".join(phonemes), word))
    if phonemes:
        yield Sound(start, end, phonemes)


def _spoken(word: str) -> tuple[tuple[str, ...], bool]:
    """The sounds of a word, and whether they are a guess."""
    known = arpabet.dictionary()
    small = word.lower()
    bare = small.strip("'")
    if not bare:
        return (), False
    for form in (small, bare) if "'" in small else ():
        if form in known:
            return known[form], False
    if bare == "a":
        return known["a"], False
    if small.endswith("in'") and f"{bare}g" in known:  # singin'
        return (*known[f"{bare}g"][:-1], "N"), False
    if "-" in bare and bare not in known:
        parts = [_spoken(part) for part in bare.split("-")]
        return tuple(phoneme for part in parts for phoneme in part[0]), any(part[1] for part in parts)
    spoken = arpabet.speak(word.strip("'"))
    sounds = tuple(phoneme for part in spoken for phoneme in part.phonemes if phoneme in arpabet.PHONEMES)
    acronym = word.isupper() and len(bare) <= 3  # spelled letter by letter, as it is meant
    return sounds, any(part.how in ("model", "compound") or (part.how == "letters" and not acronym) for part in spoken)


def _read_chinese(text: str, start: int, places: Places) -> Iterator[Sound]:
    for match in re.finditer("[\u4e00-\u9fa5]+|.", text):
        found = mandarin.read(match[0]) if mandarin.CHINESE.match(match[0]) else [mandarin.Syllable(0, ())]
        for syllable in found:
            place = start + match.start() + syllable.character
            if syllable.phonemes:
                yield Sound(place, place + 1, syllable.phonemes)
            else:
                places.note(place, text[place - start], "has no reading here and is left out; give its sounds: {…}")


def _chinese_number(digits: str, after: str) -> tuple[str, ...]:
    plain = re.sub(r"[^\d]", "", digits.split(".")[0])
    fraction = digits.split(".")[1] if "." in digits else ""
    if after == "年" or len(plain) > 8 or (len(plain) > 1 and plain[0] == "0"):
        text = "".join(_DIGITS[int(digit)] for digit in plain)
    else:
        text = _chinese_cardinal(int(plain))
    if fraction:
        text += "点" + "".join(_DIGITS[int(digit)] for digit in re.sub(r"\D", "", fraction))
    return tuple(phoneme for syllable in mandarin.read(text) for phoneme in syllable.phonemes)


def _chinese_cardinal(number: int) -> str:
    """A number below 10^8 in Chinese characters."""
    if number >= 10_000:
        rest = number % 10_000
        gap = "零" if 0 < rest < 1000 else ""
        return f"{_chinese_cardinal(number // 10_000)}万{gap}{_chinese_cardinal(rest) if rest else ''}"
    if number < 10:
        return _DIGITS[number]
    text = ""
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            text += _DIGITS[digit] + name
        elif text and not text.endswith("零") and number % unit:
            text += "零"
    return text[1:] if text.startswith("一十") else text
