"""Chinese words → initials and toned finals of Mandarin, with the tones that speech changes.

Words are cut and tagged by jieba and read by pypinyin, both an optional extra. How 不, 一, doubled syllables, light
syllables and third tones change next to each other follows the rules of PaddleSpeech (Zhang et al. 2022) step by step,
so that words become the phonemes that the published models were trained on.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from songbloom.errors import UserError
from songbloom.lyrics.pinyin import TONES, phones, spelling

CHINESE = re.compile("[\u4e00-\u9fa5]")
"""A character that is read."""


class Syllable(NamedTuple):
    """A syllable's initial and final; ``character`` counts in the text given."""

    character: int
    phonemes: tuple[str, ...]


class _Word(NamedTuple):
    text: str
    tag: str  # part of speech in jieba's tags


def read(text: str) -> list[Syllable]:
    """The syllables of Chinese characters (U+4E00 to U+9FA5 only). What has no reading has no phonemes.

    Raises:
        UserError: jieba or pypinyin is not installed.
    """
    text = "".join(_simplified().get(character, character) for character in text)
    syllables: list[Syllable] = []
    position = 0
    for word in _merged([_Word(*pair) for pair in _cut(text)]):
        initials, finals = _initials(word.text), _changed(word, _finals(word.text))
        exact = len(initials) == len(word.text) == len(finals)
        for index, (initial, final) in enumerate(zip(initials, finals, strict=False)):
            known = final[-1:] in TONES and initial != final
            found = phones(spelling(initial, final[:-1])) if known else ("", "")
            sounds = (found[0], found[1] + final[-1]) if known else ()
            syllables.append(Syllable(position + (index if exact else 0), sounds))
        position += len(word.text)
    return syllables


def _packages() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jieba asks setuptools where its files are, which warns of its own end
            import jieba
            import jieba.posseg
            import pypinyin
    except ImportError as error:
        raise UserError('reading Chinese needs jieba and pypinyin: pip install "songbloom[chinese]"') from error
    jieba.setLogLevel(logging.WARNING)  # it tells how long its dictionary took
    return jieba, jieba.posseg, pypinyin


def _cut(text: str) -> list[tuple[str, str]]:
    return [(pair.word, pair.flag) for pair in _packages()[1].lcut(text)]


@lru_cache(maxsize=8192)
def _initials(word: str) -> tuple[str, ...]:
    pypinyin = _packages()[2]
    return tuple(pypinyin.lazy_pinyin(word, neutral_tone_with_five=True, style=pypinyin.Style.INITIALS))


@lru_cache(maxsize=8192)
def _finals(word: str) -> tuple[str, ...]:
    pypinyin = _packages()[2]
    return tuple(pypinyin.lazy_pinyin(word, neutral_tone_with_five=True, style=pypinyin.Style.FINALS_TONE3))


def _data(name: str) -> list[str]:
    return (resources.files("songbloom.lyrics") / "data" / name).read_text(encoding="utf-8").splitlines()


@lru_cache(maxsize=1)
def _simplified() -> dict[str, str]:
    pairs = (pair for line in _data("simplified.txt") if not line.startswith("#") for pair in line.split())
    return {pair[0]: pair[1] for pair in pairs}


@lru_cache(maxsize=1)
def _neutral_words() -> tuple[frozenset[str], frozenset[str]]:
    """Words whose last syllable is light, and those that only look so."""
    lists: list[list[str]] = []
    for line in _data("neutral_tones.txt"):
        if line.startswith("#"):
            lists.append([])
        else:
            lists[-1] += line.split()
    return frozenset(lists[0]), frozenset(lists[1])


# Words that sound as one: merged before tones change.


def _merged(words: Sequence[_Word]) -> list[_Word]:
    merged = _join_equal(_join_one(_join_not(words)))
    return _join_er(_join_thirds(_join_thirds(merged, whole=True), whole=False))


def _join_not(words: Sequence[_Word]) -> list[_Word]:
    """不 and the word after it."""
    joined: list[_Word] = []
    last = ""
    for text, tag in words:
        text = f"不{text}" if last == "不" else text
        if text != "不":
            joined.append(_Word(text, tag))
        last = text
    return [*joined, _Word("不", "d")] if last == "不" else joined


def _join_one(words: Sequence[_Word]) -> list[_Word]:
    """看 一 看, and then a lone 一 and the word after it."""
    joined: list[_Word] = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else None
        after = words[index + 1] if index + 1 < len(words) else None
        if word.text == "一" and before and before == after and before.tag == "v":
            if index - 1 >= len(joined):  # the published program fails at a line's second 看一看 and joins nothing
                return list(words)
            first = joined[index - 1]
            joined[index - 1] = _Word(f"{first.text}一{first.text}", first.tag)
        elif not (
            index > 1 and words[index - 1].text == "一" and words[index - 2].text == word.text and word.tag == "v"
        ):
            joined.append(word)
    result: list[_Word] = []
    for word in joined:
        if result and result[-1].text == "一":
            result[-1] = _Word(f"一{word.text}", result[-1].tag)
        else:
            result.append(word)
    return result


def _join_equal(words: Sequence[_Word]) -> list[_Word]:
    joined: list[_Word] = []
    for word in words:
        if joined and joined[-1].text == word.text:
            joined[-1] = _Word(joined[-1].text + word.text, joined[-1].tag)
        else:
            joined.append(word)
    return joined


def _join_thirds(words: Sequence[_Word], *, whole: bool) -> list[_Word]:
    """Neighbours in the third tone, up to three characters: ``whole`` words, or the syllables where they meet."""
    finals = [_finals(word.text) for word in words]
    if not whole and not all(finals):
        return list(words)
    joined: list[_Word] = []
    just_joined = False
    for index, word in enumerate(words):
        before = words[index - 1].text
        meet = index > 0 and not just_joined
        if whole:
            meet = meet and _all_third(finals[index - 1]) and _all_third(finals[index])
        else:
            meet = meet and finals[index - 1][-1].endswith("3") and finals[index][0].endswith("3")
        doubled = len(before) == 2 and before[0] == before[1]
        just_joined = meet and not doubled and len(before) + len(word.text) <= 3
        if just_joined:
            joined[-1] = _Word(joined[-1].text + word.text, joined[-1].tag)
        else:
            joined.append(word)
    return joined


def _join_er(words: Sequence[_Word]) -> list[_Word]:
    joined: list[_Word] = []
    for index, word in enumerate(words):
        if index and word.text == "儿":
            joined[-1] = _Word(joined[-1].text + word.text, joined[-1].tag)
        else:
            joined.append(word)
    return joined


# Tones that change within a word.

_LIGHT_LAST = frozenset("吧呢哈啊呐噻嘛吖嗨呐哦哒额滴哩哟喽啰耶喔诶")


def _changed(word: _Word, finals: Sequence[str]) -> list[str]:
    """A word's finals with the tones that are spoken."""
    changed = list(finals)
    if len(changed) != len(word.text):  # characters without a reading: no tone can be placed
        return changed
    _change_not(word.text, changed)
    _change_one(word.text, changed)
    _change_light(word, changed)
    _change_thirds(word.text, changed)
    return changed


def _set(finals: list[str], index: int, tone: str) -> None:
    finals[index] = finals[index][:-1] + tone


def _all_third(finals: Sequence[str]) -> bool:
    return all(final.endswith("3") for final in finals)


def _change_not(text: str, finals: list[str]) -> None:
    if len(text) == 3 and text[1] == "不":
        _set(finals, 1, "5")
        return
    for index, character in enumerate(text[:-1]):
        if character == "不" and finals[index + 1].endswith("4"):
            _set(finals, index, "2")


def _change_one(text: str, finals: list[str]) -> None:
    if "一" not in text or all(character.isnumeric() for character in text if character != "一"):
        return
    if len(text) == 3 and text[1] == "一" and text[0] == text[2]:
        _set(finals, 1, "5")
    elif text.startswith("第一"):
        _set(finals, 1, "1")
    else:
        for index, character in enumerate(text[:-1]):
            if character == "一":
                _set(finals, index, "2" if finals[index + 1].endswith("4") else "4")


def _change_light(word: _Word, finals: list[str]) -> None:
    text = word.text
    light, full = _neutral_words()
    for index in range(1, len(text)):
        if text[index] == text[index - 1] and word.tag[:1] in ("n", "v", "a") and text not in full:
            _set(finals, index, "5")
    place = _light_place(word)
    if place is not None:
        _set(finals, place, "5")
    elif text in light or text[-2:] in light:
        _set(finals, len(text) - 1, "5")
    cut = len(_pieces(text)[0])
    for start, stop in ((0, cut), (cut, len(text))):
        if text[start:stop] in light or text[start:stop][-2:] in light:
            _set(finals, stop - 1, "5")


def _light_place(word: _Word) -> int | None:
    """The syllable that a particle or an ending makes light, by the first rule that fits."""
    text, tag = word
    last, longer = len(text) - 1, len(text) > 1
    counter = text.find("个")
    if text[last] in _LIGHT_LAST or text[last] in "的地得":
        return last
    if text in ("了", "着", "过") and tag in ("ul", "uz", "ug"):
        return last
    if longer and text[last] in "们子" and tag in ("r", "n") and text not in _neutral_words()[1]:
        return last
    if longer and text[last] in "上下里" and tag in ("s", "l", "f"):
        return last
    if longer and text[last] in "来去" and text[last - 1] in "上下进出回过起开":
        return last
    if text == "个" or (counter > 0 and (text[counter - 1].isnumeric() or text[counter - 1] in "几有两半多各整每做是")):
        return counter
    return None


@lru_cache(maxsize=8192)
def _pieces(text: str) -> tuple[str, str]:
    """A word in two, cut after or before the shortest word within it; the second may be empty."""
    shortest = min(_packages()[0].cut_for_search(text), key=len)
    if text.startswith(shortest):
        return shortest, text[len(shortest) :]
    return text[: -len(shortest)], shortest


def _change_thirds(text: str, finals: list[str]) -> None:
    if len(text) == 2 and _all_third(finals):
        _set(finals, 0, "2")
    elif len(text) == 3:
        cut = len(_pieces(text)[0])
        if _all_third(finals):
            if cut == 2:
                _set(finals, 0, "2")
            if cut in (1, 2):
                _set(finals, 1, "2")
            return
        for start, stop in ((0, cut), (cut, 3)):
            if stop - start == 2 and _all_third(finals[start:stop]):
                _set(finals, start, "2")
            elif 0 < start < 3 and _all_third(finals[start - 1 : start + 1]) and not _all_third(finals[start:stop]):
                _set(finals, start - 1, "2")
    elif len(text) == 4:
        for start in (0, 2):
            if _all_third(finals[start : start + 2]):
                _set(finals, start, "2")
