"""Lyric lines and how they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.data.prepare.sung.lyric_lines import THEMES, Line, every_line
from songbloom.data.prepare.sung.words import mora_table, read_line, split_morae, voice_vowels
from songbloom.errors import UserError


def test_every_line_is_read_as_its_kana_say():
    lines = every_line()
    assert len(lines) >= 120
    assert len({line.text for line in lines}) == len(lines)
    for line in lines:
        reading = read_line(line)  # raises when Open JTalk disagrees
        assert 5 <= len(split_morae(line.reading)) <= 14
        assert "".join(syllable.kana for syllable in reading.syllables) == line.reading
        sung = [p for p, s in zip(reading.phonemes, reading.syllable_of, strict=True) if s >= 0]
        assert sung == [p for syllable in reading.syllables for p in syllable.phonemes]
        assert reading.phonemes[0] == reading.phonemes[-1] == "sil"
        assert list(reading.syllable_of[1:-1]) == sorted(reading.syllable_of[1:-1])
    assert len(THEMES) >= 10
    # Dictionaries differ a little between versions; the kana step in for a text that is read otherwise.
    assert sum(read_line(line).from_text for line in lines) >= 0.95 * len(lines)


def test_a_wrong_reading_is_one_line_that_quotes_both():
    with pytest.raises(UserError, match=r"ーうみ.*u mi") as caught:
        read_line(Line("海", "ーうみ"))  # nothing to lengthen
    assert "\n" not in str(caught.value)


def test_a_text_that_open_jtalk_reads_otherwise_is_sung_from_its_kana():
    reading = read_line(Line("市場", "いちば"))  # read as しじょう
    assert [syllable.phonemes for syllable in reading.syllables] == [("i",), ("ch", "i"), ("b", "a")]


def test_small_tsu_belongs_to_the_note_before_and_long_vowels_have_their_own():
    reading = read_line(Line("きっと行こう", "きっといこう"))
    assert [syllable.kana for syllable in reading.syllables] == ["きっ", "と", "い", "こ", "う"]
    assert reading.syllables[0].phonemes == ("k", "i", "cl")
    assert reading.syllables[-1].phonemes == ("o",)


def test_devoiced_vowels_are_sung():
    label = "sil^k-I+t=a/A:xx/B:xx-I_xx"
    assert voice_vowels(label) == "sil^k-i+t=a/A:xx/B:xx-I_xx"
    assert "I" not in read_line(Line("きたかぜ", "きたかぜ")).phonemes


@given(st.lists(st.sampled_from(sorted(mora_table())), min_size=1, max_size=14))
def test_morae_join_and_split(morae: list[str]):
    assert split_morae("".join(morae)) == morae


def test_a_reading_that_is_not_kana_is_named():
    with pytest.raises(UserError, match="海"):
        split_morae("はるの海")
