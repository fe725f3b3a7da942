"""Words of a part of a song: whose words they are, which tags and marks stay."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.cropping import crop, times_of
from songbloom.lyrics.timing import from_phrases
from songbloom.lyrics.tokens import Tokens
from songbloom.lyrics.vocabulary import vocabulary

LYRICS = "[intro] [intro] , [verse] さくら. やよい , [chorus] そら , [outro]"


def tokens_of(text: str) -> Tokens:
    return vocabulary("songbloom_ja").tokenize(text)


def shown(tokens: Tokens, kept: list[int]) -> str:
    return " ".join(tokens.symbols[i] for i in kept)


def test_sections_share_the_song() -> None:
    tokens = tokens_of(LYRICS)
    times = times_of(tokens, 16.0)
    assert shown(tokens, crop(tokens, times, 0, 16)) == shown(tokens, list(range(len(tokens))))
    assert shown(tokens, crop(tokens, times, 0, 2)) == "[intro]"
    assert shown(tokens, crop(tokens, times, 0, 4)) == "[intro] [intro]"
    assert shown(tokens, crop(tokens, times, 6.1, 12)) == "[verse] y a y o i , [chorus] s o r a"
    assert shown(tokens, crop(tokens, times, 13, 16)) == "[outro]"


def test_lengths_of_sections_count() -> None:
    tokens = tokens_of("[intro 10s]\n[verse 2s]\nさくら\n[outro 4s]")
    times = times_of(tokens, 16.0)
    assert "s a k u r a" in shown(tokens, crop(tokens, times, 10, 12))
    assert "s" not in shown(tokens, crop(tokens, times, 0, 10)).split()
    given_times = times_of(tokens, 16.0, sections=[(0, 1), (1, 3), (3, 16)])
    assert shown(tokens, crop(tokens, given_times, 1, 3)) == "[verse] s a k u r a"
    with pytest.raises(UserError, match="2 sections have times"):
        times_of(tokens, 16.0, sections=[(0, 1), (1, 3)])


@pytest.mark.parametrize(("text", "lines"), [
    ("[verse] さくら. やよい", ("さくら", "やよい")),
    ("[verse] Hello my love. Good night", ("Hello my love", "Good night")),
])  # fmt: skip
def test_phrases_count_more_than_sections(text: str, lines: tuple[str, str]) -> None:
    tokens = tokens_of(text)
    phrases = [{"start": 8.0, "end": 9.0, "text": lines[0]}, {"start": 14.0, "end": 15.0, "text": lines[1]}]
    times = times_of(tokens, 16.0, timed=from_phrases(phrases))
    dot = tokens.symbols.index(".")
    assert crop(tokens, times, 0, 7.5) == []
    assert crop(tokens, times, 7.5, 10) == list(range(dot))
    assert crop(tokens, times, 10, 16) == [0, *range(dot + 1, len(tokens))]
    assert crop(tokens, times, 7.5, 16) == list(range(len(tokens)))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 16), st.floats(0.1, 16))
def test_parts_hold_each_word_once_and_in_order(cut: float, length: float) -> None:
    tokens = tokens_of(LYRICS)
    times = times_of(tokens, 16.0)
    words = [i for i, symbol in enumerate(tokens.symbols) if symbol.islower() and not symbol.startswith("[")]
    before, after = crop(tokens, times, 0, cut), crop(tokens, times, cut, 16.01)
    assert [i for i in before + after if i in words] == words
    part = crop(tokens, times, cut, cut + length)
    assert part == sorted(set(part))
    symbols = [tokens.symbols[i] for i in part]
    assert not symbols or symbols[0] not in ",."
    for one, other in itertools.pairwise(symbols):
        assert not (one in ",." and other in ",.")
        assert not (one.startswith("[") and other.startswith("[") and one != other), "a section begins without a mark"
