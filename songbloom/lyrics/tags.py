"""Structure tags: ``[verse]``, ``[Chorus]``, ``[サビ]``; one token each, wherever they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from songbloom.errors import did_you_mean

TAGS = ("[intro]", "[verse]", "[prechorus]", "[chorus]", "[bridge]", "[inst]", "[outro]", "[silence]")
"""The tags that a Japanese vocabulary has; their order decides ids and does not change."""

_ALIASES = {
    "start": "intro", "opening": "intro", "前奏": "intro", "イントロ": "intro",
    "aメロ": "verse", "ヴァース": "verse",
    "bメロ": "prechorus",
    "hook": "chorus", "refrain": "chorus", "サビ": "chorus", "大サビ": "chorus", "落ちサビ": "chorus",
    "ラスサビ": "chorus",
    "cメロ": "bridge", "dメロ": "bridge", "ブリッジ": "bridge", "middleeight": "bridge",
    "interlude": "inst", "instrumental": "inst", "solo": "inst", "guitarsolo": "inst", "break": "inst", "間奏": "inst",
    "end": "outro", "ending": "outro", "coda": "outro", "後奏": "outro", "アウトロ": "outro", "エンディング": "outro",
    "pause": "silence",
}  # fmt: skip
_NAMES = {tag[1:-1]: tag for tag in TAGS} | {alias: f"[{name}]" for alias, name in _ALIASES.items()}
_LENGTH = re.compile(r"[\s:|,_]+[\d.]+\s*(?:s|sec|secs|seconds?|秒)\s*\Z", re.IGNORECASE)
_BRACKETS = re.compile(r"[\[【]([^\[\]【】\n]{0,40})[\]】]")


def tag_of(name: str) -> str | None:
    """The tag for a section's name in any case, with or without a number or a length.

    ``"Verse 2"`` and ``"Verse 12.5s"`` → ``"[verse]"``.
    """
    name = _LENGTH.sub("", name)
    return _NAMES.get(re.sub(r"[\s_\-0-9.:]+", "", name.lower()))


def find_tags(text: str) -> Iterator[tuple[int, int, str | None]]:
    """Start, end and tag of each bracket in ``text`` that is one; ``None`` for a name in ASCII that is not known.

    Brackets around other words, such as a second voice in Japanese, are not tags and do not appear.
    """
    for match in _BRACKETS.finditer(text):
        tag = tag_of(match[1])
        if tag is not None or (match[0][0] == "[" and match[1].isascii()):
            yield match.start(), match.end(), tag


def advice_on(name: str) -> str:
    """What to tell about a bracket that is no known tag."""
    near = did_you_mean(name.strip().lower(), [*_NAMES])
    return f"is no structure tag{near} and is not sung; there are {' '.join(TAGS)}"
