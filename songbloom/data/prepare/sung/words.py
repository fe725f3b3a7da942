"""From a lyric line to the syllables that are sung: morae of the reading, checked against Open JTalk's phonemes.

A *syllable* here is what one note carries: one mora, and a small っ that follows it (a stop has no pitch of its own).
ん and the second half of a long vowel carry notes of their own, as is usual in Japanese song.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from songbloom.data.prepare.sung.lyric_lines import Line
from songbloom.errors import UserError
from songbloom.lyrics.morae import PHONEMES_OF, VOWELS, as_hiragana, as_katakana, group_phonemes
from songbloom.lyrics.open_jtalk import import_open_jtalk

SILENCES = frozenset(("sil", "pau"))
_SMALL = frozenset("ぁぃぅぇぉゃゅょゎ")

__all__ = ["SILENCES", "VOWELS", "Reading", "Syllable", "import_open_jtalk", "mora_table", "read_line"]


@dataclass(frozen=True)
class Syllable:
    """What one note carries: its kana (``"かっ"``) and its phonemes (``("k", "a", "cl")``)."""

    kana: str
    phonemes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """A line as Open JTalk reads it.

    ``labels`` are full-context labels (one a phoneme, silence at both ends), ``phonemes`` the phonemes of these labels
    with every vowel voiced, ``syllables`` the kana and phonemes of each note, ``syllable_of[i]`` the syllable that
    phoneme ``i`` belongs to (``-1`` for silence). ``from_text`` is false when the kana had to be read instead.
    """

    line: Line
    labels: tuple[str, ...]
    phonemes: tuple[str, ...]
    syllables: tuple[Syllable, ...]
    syllable_of: tuple[int, ...]
    from_text: bool


@lru_cache(maxsize=1)
def mora_table() -> dict[str, tuple[str, ...]]:
    """Kana of a mora, in hiragana → its phonemes, in Open JTalk's names. Small kana alone are none."""
    return {as_hiragana(k): phonemes for k, phonemes in PHONEMES_OF.items() if as_hiragana(k) not in _SMALL}


def split_morae(reading: str) -> list[str]:
    """Morae of a hiragana reading: ``"きょうわ"`` → ``["きょ", "う", "わ"]``."""
    morae: list[str] = []
    for character in reading:
        if character in _SMALL and morae:
            morae[-1] += character
        else:
            morae.append(character)
    unknown = [mora for mora in morae if mora != "ー" and mora not in mora_table()]
    if unknown:
        raise UserError(
            f"lyric reading {reading!r}: {unknown[0]!r} is not a hiragana mora; write the reading in hiragana"
        )
    return morae


def voice_vowels(label: str) -> str:
    """The full-context label with its five phonemes voiced: speech devoices some i and u (``I U``), song does not."""
    context, rest = label.split("/A:", 1)
    match = re.fullmatch(r"(.+?)\^(.+?)-(.+?)\+(.+?)=(.+)", context)
    if match is None:
        raise UserError(
            f"full-context label {label!r} has no phoneme context; this Open JTalk version is not supported"
        )
    before2, before, here, after, after2 = (p.lower() if p in ("A", "I", "U", "E", "O") else p for p in match.groups())
    return f"{before2}^{before}-{here}+{after}={after2}/A:{rest}"


def phoneme_of(label: str) -> str:
    """The phoneme that a full-context label stands for."""
    return label.split("-", 1)[1].split("+", 1)[0]


def _agrees(mora: str, spoken: tuple[str, ...], vowel_before: str) -> bool:
    """Whether Open JTalk's phonemes of a mora are those of its kana; おう and えい may be spoken as long vowels."""
    if mora == "ー" or (mora == "う" and vowel_before == "o") or (mora == "い" and vowel_before == "e"):
        return spoken in ((vowel_before,), mora_table().get(mora))
    return spoken == mora_table()[mora]


def _spoken_morae(phonemes: tuple[str, ...]) -> tuple[list[tuple[str, ...]], list[int]]:
    """Phonemes grouped into morae, and the mora of each phoneme."""
    groups = group_phonemes(phonemes)
    return groups, [index for index, group in enumerate(groups) for _ in group]


@lru_cache(maxsize=1024)
def read_line(line: Line) -> Reading:
    """Read one line as Open JTalk does, and hold the result against ``line.reading``.

    The written text is tried first: its words give the better labels. Dictionaries differ between versions, so a text
    that is read otherwise is replaced by its reading in katakana. Raises :class:`UserError` when that disagrees too.
    """
    morae = split_morae(line.reading)
    heard = []
    for text in (line.text, as_katakana(line.reading)):
        labels = tuple(voice_vowels(label) for label in import_open_jtalk("sung_corpus").extract_fullcontext(text))
        phonemes = tuple(phoneme_of(label) for label in labels)
        spoken, mora_of = _spoken_morae(phonemes[1:-1])
        before = ["", *(group[-1] for group in spoken)]
        if len(morae) == len(spoken) and all(map(_agrees, morae, spoken, before)):
            return _with_syllables(line, labels, phonemes, morae, spoken, mora_of, text == line.text)
        heard.append(" ".join("".join(group) for group in spoken))
    raise UserError(
        f"lyric line {line.text!r}: its reading is {line.reading!r}, Open JTalk says {heard[0]!r}; correct one"
    )


def _with_syllables(
    line: Line,
    labels: tuple[str, ...],
    phonemes: tuple[str, ...],
    morae: list[str],
    spoken: list[tuple[str, ...]],
    mora_of: list[int],
    from_text: bool,
) -> Reading:
    syllables: list[Syllable] = []
    syllable_of_mora: list[int] = []
    for mora, group in zip(morae, spoken, strict=True):
        if mora == "っ" and syllables:
            last = syllables.pop()
            syllables.append(Syllable(last.kana + mora, last.phonemes + group))
        else:
            syllables.append(Syllable(mora, group))
        syllable_of_mora.append(len(syllables) - 1)
    syllable_of = (-1, *(syllable_of_mora[m] for m in mora_of), -1)
    return Reading(line, labels, phonemes, tuple(syllables), syllable_of, from_text)
