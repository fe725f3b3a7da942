"""English words inside Japanese, in katakana: a table of words that songs use, and rules of spelling for the rest.

Open JTalk's dictionary is asked first; it spells out what it does not have, which nobody sings.
"""

from __future__ import annotations

import re
from functools import lru_cache

from songbloom.lyrics.english_words import KATAKANA_OF
from songbloom.lyrics.morae import KANA_OF

_LETTERS = {
    "a": "エー", "b": "ビー", "c": "シー", "d": "ディー", "e": "イー", "f": "エフ", "g": "ジー", "h": "エイチ",
    "i": "アイ", "j": "ジェー", "k": "ケー", "l": "エル", "m": "エム", "n": "エヌ", "o": "オー", "p": "ピー",
    "q": "キュー", "r": "アール", "s": "エス", "t": "ティー", "u": "ユー", "v": "ブイ", "w": "ダブリュー",
    "x": "エックス", "y": "ワイ", "z": "ゼット",
}  # fmt: skip

# Spellings and what they sound like: a consonant is written as its row of kana (below), a vowel as a, i, u, e, o, with
# ー for length. First match wins; ^ is the start of the word, $ its end, # a consonant, * a vowel letter.
_SPELLINGS: tuple[tuple[str, str], ...] = (
    ("tion$", "sh o N"), ("tions$", "sh o N z"), ("sion$", "j o N"), ("cious$", "sh a s"), ("ture$", "ch a ー"),
    ("ough", "o ー"), ("aught", "o ー t"), ("ought", "o ー t"), ("eigh", "e i"), ("igh", "a i"), ("augh", "o ー"),
    ("tch", "Q ch"), ("sch", "s k"), ("dge$", "Q j"), ("dge", "j"), ("^kn", "n"), ("^wr", "r"), ("^ps", "s"),
    ("^wh", "w"), ("wh", "w"), ("ph", "f"), ("th", "s"), ("sh", "sh"), ("ch", "ch"), ("ck", "Q k"), ("rh", "r"),
    ("ng$", "N g"),
    ("ng", "N g"), ("nk", "N k"), ("qu", "k u w"), ("mb$", "m"), ("gh", "g"), ("x", "Q k u s"),
    ("ings$", "i N g u z"), ("ing$", "i N g"), ("eer", "i a"), ("ear", "i a"), ("air", "e a"), ("oor", "o a"),
    ("our$", "a w a ー"), ("ar#", "a ー"), ("ar$", "a ー"), ("er$", "a ー"), ("er#", "a ー"), ("ir#", "a ー"),
    ("ir$", "a ー"), ("ur#", "a ー"), ("ur$", "a ー"), ("or$", "a ー"), ("or#", "o ー"), ("ore$", "o a"),
    ("are$", "e a"), ("ire$", "a i a"), ("ure$", "y u a"), ("ee", "i ー"), ("ea", "i ー"), ("oo", "u ー"),
    ("ou", "a u"), ("ow$", "o ー"), ("ow", "a u"), ("oy", "o i"), ("oi", "o i"), ("ay", "e i"), ("ai", "e i"),
    ("ey$", "i ー"), ("ei", "e i"), ("oa", "o ー"), ("au", "o ー"), ("aw", "o ー"), ("ew", "y u ー"),
    ("ie$", "i ー"), ("ies$", "i ー z"), ("ie", "i ー"), ("ue$", "u ー"), ("ui", "u ー"), ("ly$", "r i ー"),
    ("^y", "y"), ("y*", "y"), ("y$", "i ー"), ("y", "i"), ("le$", "r u"), ("ed$", "d o"), ("es$", "s"),
    ("a#e$", "e i"), ("i#e$", "a i"), ("o#e$", "o ー"), ("u#e$", "y u ー"), ("e#e$", "i ー"), ("e$", ""),
    ("ci", "s i"), ("ce", "s e"), ("cy", "s i ー"), ("ge$", "j"), ("gi", "j i"), ("ge", "j e"), ("oll", "o ー r"),
    ("old", "o ー r d"), ("bb", "b"), ("dd", "Q d"), ("ff", "f"), ("gg", "Q g"), ("ll", "r"), ("mm", "m"),
    ("nn", "n"), ("pp", "Q p"), ("rr", "r"), ("ss", "s"), ("tt", "Q t"), ("zz", "z"), ("cc", "Q k"), ("a", "a"),
    ("b", "b"), ("c", "k"), ("d", "d"), ("e", "e"), ("f", "f"), ("g", "g"), ("h", "h"), ("i", "i"), ("j", "j"),
    ("k", "k"), ("l", "r"), ("m", "m"), ("n", "n"), ("o", "o"), ("p", "p"), ("q", "k"), ("r", "r"), ("s", "s"),
    ("t", "t"), ("u", "a"), ("v", "v"), ("w", "w"), ("z", "z"),
)  # fmt: skip
_VOWELS = ("a", "i", "u", "e", "o")
_PALATALS = frozenset(phonemes[0] for phonemes in KANA_OF if len(phonemes[0]) == 2 and phonemes[0][1] == "y")
_USUAL = {("s", "i"): "シ", ("z", "i"): "ジ", ("h", "u"): "フ", ("y", "i"): "イ", ("w", "u"): "ウ"}
_KANA = {
    consonant: [
        _USUAL.get((consonant, vowel)) or KANA_OF[(consonant, vowel) if consonant else (vowel,)] for vowel in _VOWELS
    ]
    for consonant in ("", *"kgsztdnhbpmrfvyw", "sh", "ch", "j")
}
_ALONE = {"t": "ト", "d": "ド", "sh": "シュ", "ch": "チ", "j": "ジ", "y": "", "h": ""}
_VOWEL_LETTERS = "aeiouy"
WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*['’]?(?![A-Za-z])")
"""An English word, with its apostrophes."""


def letter_names(word: str) -> str:
    """A word spelled out in katakana: ``"AI"`` → ``"エーアイ"``."""
    return "".join(_LETTERS[letter] for letter in word.lower() if letter in _LETTERS)


def from_table(word: str) -> str | None:
    """Katakana of a word that the table has, in any case."""
    plain = word.lower().replace("’", "'")
    return KATAKANA_OF.get(plain) or KATAKANA_OF.get(plain.rstrip("'"))


@lru_cache(maxsize=4096)
def by_spelling(word: str) -> str:
    """Katakana of any word by rules of English spelling: a guess that can be sung.

    >>> by_spelling("songbloom")
    'ソングブルーム'
    """
    plain = re.sub("[^a-z]", "", word.lower())
    if not any(letter in _VOWEL_LETTERS for letter in plain):
        return letter_names(plain)
    sounds: list[str] = []
    position = 0
    while position < len(plain):
        position, found = _next_sounds(plain, position)
        sounds += found
    return _as_kana(sounds)


def _next_sounds(word: str, position: int) -> tuple[int, list[str]]:
    for spelling, sounds in _SPELLINGS:
        used = _match(word, position, spelling)
        if used is not None:
            return position + used, sounds.split()
    raise ValueError(f"no rule for {word[position:]!r}")  # every letter has one


def _match(word: str, position: int, spelling: str) -> int | None:
    """How many letters of ``word`` at ``position`` a rule takes; ``None`` if it does not fit."""
    if spelling.startswith("^"):
        if position:
            return None
        spelling = spelling[1:]
    ends = spelling.endswith("$")
    spelling = spelling.removesuffix("$")
    if "#e" in spelling and ends:  # a vowel that a silent e lengthens: takes the vowel only
        rest = word[position : position + 4]
        fits = len(rest) == 3 and rest[0] == spelling[0] and rest[2] == "e" and rest[1] not in _VOWEL_LETTERS + "r"
        return 1 if fits else None
    core = spelling.rstrip("#*")
    end = position + len(core)
    if word[position:end] != core or (ends and end != len(word)):
        return None
    after = word[end : end + 1]
    if spelling.endswith("#") and not (after and after not in _VOWEL_LETTERS):
        return None
    if spelling.endswith("*") and not (after and after in _VOWEL_LETTERS):
        return None
    return len(core)


def _as_kana(sounds: list[str]) -> str:
    kana = ""
    for index, sound in enumerate(sounds):
        before = sounds[index - 1] if index else ""
        after = sounds[index + 1] if index + 1 < len(sounds) else ""
        if sound in _VOWELS:
            row = _KANA.get(before, _KANA[""])
            if before == "y" and index > 1 and sounds[index - 2] + "y" in _PALATALS:
                kana = kana[:-1] + KANA_OF[sounds[index - 2] + "y", sound]
            else:
                kana += row[_VOWELS.index(sound)]
        elif sound == "ー":
            kana += sound if kana and not kana.endswith(sound) else ""
        elif _is_moraic_n(sound, after):
            kana += "ン"
        elif sound == "Q":
            kana += "ッ" if before in _VOWELS and before else ""
        elif after not in _VOWELS or not after:
            kana += _ALONE.get(sound, _KANA[sound][2])
    return kana


def _is_moraic_n(sound: str, after: str) -> bool:
    if sound == "m":
        return after in ("b", "p")
    return sound == "N" or (sound == "n" and after not in (*_VOWELS, "y"))
