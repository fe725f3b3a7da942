"""Syllables of Mandarin → two phonemes: an initial, and a final with its tone.

The table of 429 syllables follows from a few rules of spelling, which are written here in place of it.
"""

from __future__ import annotations

INITIALS = (
    "zh", "ch", "sh", "b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x", "r", "z", "c", "s", "y",
    "w",
)  # fmt: skip
"""Initials, two letters before one."""
ZERO_INITIALS = ("AA", "EE", "OO")
"""What stands before a final without an initial: its first letter doubled."""
TONES = "12345"
_WITH_INITIAL = {"uei": "ui", "iou": "iu", "uen": "un"}
_ALONE = {"ing": "ying", "i": "yi", "in": "yin", "u": "wu"}
_FIRST = {"v": "yu", "e": "e", "i": "y", "u": "w"}
_FINALS = (
    "E", "En", "a", "ai", "an", "ang", "ao", "e", "ei", "en", "eng", "er", "i", "i0", "ia", "ian", "iang", "iao",
    "ie", "in", "ing", "iong", "ir", "iu", "o", "ong", "ou", "u", "ua", "uai", "uan", "uang", "ui", "un", "uo", "v",
    "van", "ve", "vn",
)  # fmt: skip
FINALS = tuple(f"{final}{tone}" for final in _FINALS for tone in TONES)
"""Finals with their tones; 5 is none."""


def spelling(initial: str, final: str) -> str:
    """The syllable's usual spelling from pypinyin's initial and final without tone: ``("", "iou")`` → ``"you"``."""
    if initial:
        return initial + _WITH_INITIAL.get(final, final)
    if final in _ALONE:
        return _ALONE[final]
    return _FIRST.get(final[:1], final[:1]) + final[1:]


def phones(syllable: str) -> tuple[str, str]:
    """Initial and final, without tone, of a syllable in its usual spelling: ``"yuan"`` → ``("y", "van")``."""
    initial = next((head for head in INITIALS if syllable.startswith(head)), "")
    final = syllable[len(initial) :]
    if not initial:
        return syllable[:1].upper() * 2, syllable
    if final == "i":
        final = {"zh": "ir", "ch": "ir", "sh": "ir", "r": "ir", "z": "i0", "c": "i0", "s": "i0"}.get(initial, final)
    if initial in ("j", "q", "x", "y") and final.startswith("u"):
        final = f"v{final[1:]}"
    if initial == "y" and final in ("an", "e"):
        final = {"an": "En", "e": "E"}[final]
    return initial, final
