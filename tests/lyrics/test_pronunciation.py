"""English words and Mandarin syllables as they sound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.lyrics import arpabet, mandarin
from songbloom.lyrics.number_words import cardinal, number_words, ordinal
from songbloom.lyrics.phonemes import SYMBOLS
from songbloom.lyrics.pinyin import phones, spelling


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1000000", "one million"),
        ("3001", "three thousand one"),
        ("1234567", "one million, two hundred thirty-four thousand, five hundred sixty-seven"),
        ("1905", "nineteen oh five"),
        ("2000", "two thousand"),
        ("2024", "twenty twenty-four"),
        ("1,200", "twelve hundred"),
        ("$3.50", "three dollars, fifty cents"),
        ("$1", "one dollar"),
        ("£5", "five pounds"),
        ("21st 112th 40th", "twenty-first one hundred and twelfth fortieth"),
        ("2.5", "two point five"),
    ],
)
def test_numbers(text: str, words: str):
    assert number_words(text) == words


@pytest.mark.parametrize(
    "digits", ["1" * 5000, "1" * 5000 + "st", "$" + "1" * 5000, "1," * 5000 + "1", "1" * 4000 + ".5"]
)
def test_digits_without_end_are_read_one_by_one(digits: str):
    assert number_words(digits).count("one") >= 4000


@settings(deadline=None)  # the first example loads dictionaries
@given(st.integers(0, 10**15 - 1))
def test_every_number_has_words_of_the_dictionary(number: int):
    assert all(part in arpabet.dictionary() for part in cardinal(number).replace(",", "").replace("-", " ").split())
    assert ordinal(number).endswith(("st", "nd", "rd", "th"))


@pytest.mark.parametrize(
    ("word", "sounds", "how"),
    [
        ("love", "L AH1 V", "dictionary"),
        ("A", "EY1", "dictionary"),
        ("read", "R EH1 D", "homograph"),
        ("Read", "R IY1 D", "homograph"),
        ("xqz", "EH1 K S K Y UW1 Z IY1", "letters"),
        ("blorptastic", "B IY1 EH1 L AO1 R P IY1 T AE1 S T IH0 K", "compound"),
        ("songbird's", "S AO1 NG B ER2 D Z", "possessive"),
    ],
)
def test_words(word: str, sounds: str, how: str):
    (spoken,) = arpabet.speak(word)
    assert (" ".join(spoken.phonemes), spoken.how) == (sounds, how)


def test_the_dictionary_is_whole():
    words = arpabet.dictionary()
    assert len(words) == 143_198
    assert {sound for sounds in words.values() for sound in sounds} == set(arpabet.PHONEMES)
    assert all(letter in words for letter in "abcdefghijklmnopqrstuvwxyz")


@settings(deadline=None)  # the first example loads dictionaries
@given(st.text("abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=15))
def test_spelled_words_sound(word: str):
    sounds = arpabet.spelled(word)
    assert sounds == arpabet.spelled(word)
    assert set(sounds) <= {*arpabet.PHONEMES, "<unk>"}


@pytest.mark.parametrize(
    ("text", "sounds"),
    [
        ("你好你好", "n i2 h ao3 n i2 h ao3"),
        ("不要", "b u2 y ao4"),
        ("走不走", "z ou3 b u4 z ou3"),
        ("看一看", "k an4 y i5 k an4"),
        ("一起", "y i4 q i3"),
        ("第一", "d i4 y i1"),
        ("看一看想一想看一看", "k an4 y i5 k an4 x iang3 y i5 x iang3 k an4 y i5 k an4"),
        ("我们", "w o3 m en5"),
        ("老虎", "l ao2 h u3"),
        ("儿子", "EE er2 z i05"),
        ("嗯", "EE en1"),
    ],
)
def test_tones(text: str, sounds: str):
    pytest.importorskip("jieba")
    syllables = mandarin.read(text)
    assert " ".join(p for s in syllables for p in s.phonemes) == sounds
    assert [s.character for s in syllables] == list(range(len(text)))


@settings(deadline=None)  # the first example loads dictionaries
@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), max_size=8))
def test_any_characters_are_read(text: str):
    pytest.importorskip("jieba")
    syllables = mandarin.read(text)
    assert all(set(s.phonemes) <= SYMBOLS and 0 <= s.character < len(text) for s in syllables)


def test_spelling_of_syllables():
    assert phones(spelling("", "iou")) == ("y", "ou")
    assert phones(spelling("zh", "uei")) == ("zh", "ui")
    assert phones(spelling("", "van")) == ("y", "van")
    assert phones(spelling("", "ang")) == ("AA", "ang")
