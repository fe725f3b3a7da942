"""Morae: the kana of Japanese song and their phonemes, in Open JTalk's names. Needs no dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

VOWELS = frozenset("aiueo")
LONG = "ー"
"""Lengthens the vowel before it."""
ENDS_MORA = VOWELS | {"N", "cl"}
"""Phonemes that end a mora: the vowels, ん and っ."""

# Consonant, then its kana before a, i, u, e, o. A later row of the same consonant holds other spellings of its sounds.
_ROWS = """
    -  ア イ ウ エ オ
    k  カ キ ク ケ コ
    ky キャ ・ キュ キェ キョ
    kw クァ クィ クゥ クェ クォ
    g  ガ ギ グ ゲ ゴ
    gy ギャ ・ ギュ ギェ ギョ
    gw グァ グィ ・ グェ グォ
    s  サ スィ ス セ ソ
    sh シャ シ シュ シェ ショ
    z  ザ ズィ ズ ゼ ゾ
    j  ジャ ジ ジュ ジェ ジョ
    t  タ ティ トゥ テ ト
    ty テャ ・ テュ ・ テョ
    ts ツァ ツィ ツ ツェ ツォ
    ch チャ チ チュ チェ チョ
    d  ダ ディ ドゥ デ ド
    dy デャ ・ デュ デェ デョ
    n  ナ ニ ヌ ネ ノ
    ny ニャ ・ ニュ ニェ ニョ
    h  ハ ヒ ・ ヘ ホ
    hy ヒャ ・ ヒュ ヒェ ヒョ
    f  ファ フィ フ フェ フォ
    fy ・ ・ フュ ・ ・
    b  バ ビ ブ ベ ボ
    by ビャ ・ ビュ ビェ ビョ
    v  ヴァ ヴィ ヴ ヴェ ヴォ
    p  パ ピ プ ペ ポ
    py ピャ ・ ピュ ピェ ピョ
    m  マ ミ ム メ モ
    my ミャ ・ ミュ ミェ ミョ
    y  ヤ ・ ユ イェ ヨ
    r  ラ リ ル レ ロ
    ry リャ ・ リュ リェ リョ
    w  ワ ウィ ・ ウェ ウォ
    -  ァ ィ ゥ ェ ォ
    -  ・ ヰ ・ ヱ ヲ
    kw クヮ ・ ・ ・ ・
    gw グヮ ・ ・ ・ ・
    s  ・ シィ ・ ・ ・
    z  ・ ・ ヅ ・ ・
    j  ヂャ ヂ ヂュ ヂェ ヂョ
    by ヴャ ・ ヴュ ・ ヴョ
    y  ャ ・ ュ ・ ョ
    w  ヮ ・ ・ ・ ・
"""


def _table() -> tuple[dict[str, tuple[str, ...]], dict[tuple[str, ...], str]]:
    phonemes_of: dict[str, tuple[str, ...]] = {}
    kana_of: dict[tuple[str, ...], str] = {}
    for row in _ROWS.strip().splitlines():
        consonant, *kana = row.split()
        for mora, vowel in zip(kana, "aiueo", strict=True):
            if mora != "・":
                phonemes_of[mora] = (vowel,) if consonant == "-" else (consonant, vowel)
                kana_of.setdefault(phonemes_of[mora], mora)
    for mora, phoneme in (("ン", "N"), ("ッ", "cl")):
        phonemes_of[mora] = (phoneme,)
        kana_of[phoneme,] = mora
    return phonemes_of, kana_of


_phonemes_of, _kana_of = _table()
PHONEMES_OF = MappingProxyType(_phonemes_of)
"""Katakana of a mora → its phonemes; 177 morae."""
KANA_OF = MappingProxyType(_kana_of)
"""Phonemes of a mora → its usual katakana."""
PHONEMES = tuple(dict.fromkeys([*"aiueo", "N", "cl", *(phonemes[0] for phonemes in _phonemes_of.values())]))
"""Every phoneme, vowels first; the order decides ids and does not change."""

_ALIKE = {"ヵ": "カ", "ヶ": "ケ", "ヷ": "ヴァ", "ヸ": "ヴィ", "ヹ": "ヴェ", "ヺ": "ヴォ"}


def as_katakana(text: str) -> str:
    """``text`` with its hiragana in katakana; other characters stay. One character stays one character."""
    return "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ゖ" or c in "ゝゞ" else c for c in text)


def as_hiragana(text: str) -> str:
    """``text`` with its katakana in hiragana; other characters, ー among them, stay."""
    return "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in text)


def is_kana(text: str) -> bool:
    """Whether ``text`` is hiragana, katakana and ー only, and not empty."""
    return bool(text) and all("ぁ" <= c <= "ゖ" or "ァ" <= c <= "ヺ" or c == LONG for c in text)


def split_kana(kana: str) -> list[str]:
    """Kana in pieces of one mora each, written as in the text: ``"きょうワ"`` → ``["きょ", "う", "ワ"]``.

    A small kana that makes no known mora with the one before stands alone; so does any character that is no kana.
    """
    pieces: list[str] = []
    position = 0
    katakana = as_katakana(kana)
    while position < len(kana):
        length = 2 if katakana[position : position + 2] in PHONEMES_OF else 1
        pieces.append(kana[position : position + length])
        position += length
    return pieces


def pronounce(kana: str) -> list[tuple[str, tuple[str, ...]]]:
    """Morae of kana and their phonemes; what is no kana, and ー with nothing to lengthen, is left out.

    >>> pronounce("コーヒー")
    [('コ', ('k', 'o')), ('ー', ('o',)), ('ヒ', ('h', 'i')), ('ー', ('i',))]
    """
    morae: list[tuple[str, tuple[str, ...]]] = []
    for piece in split_kana(kana):
        mora = _ALIKE.get(piece, as_katakana(piece))
        if mora == LONG:
            last = next((p[-1] for _, p in reversed(morae) if p[-1] != "cl"), None)
            if last is not None:
                morae.append((LONG, (last,)))
        elif mora in PHONEMES_OF:
            morae.append((mora, PHONEMES_OF[mora]))
    return morae


def group_phonemes(phonemes: Sequence[str]) -> list[tuple[str, ...]]:
    """Phonemes in morae: each vowel, ``N`` and ``cl`` ends one. Consonants left over at the end make a last one."""
    groups: list[tuple[str, ...]] = []
    waiting: list[str] = []
    for phoneme in phonemes:
        waiting.append(phoneme)
        if phoneme in ENDS_MORA:
            groups.append(tuple(waiting))
            waiting = []
    return [*groups, tuple(waiting)] if waiting else groups
