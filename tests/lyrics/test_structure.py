"""Sections of a song: two ways of writing, lengths, and mistakes that are named with their place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.phoneme_vocabulary import section_times
from songbloom.lyrics.structure import Section, parse, write_page, write_published
from songbloom.lyrics.tokens import Places, SectionTokens

PAGE = "[intro 8s]\n[verse 24.5s]\nFirst line\nSecond line\n[chorus]\nThird line\n[outro] [outro]\n"
PUBLISHED = "[intro] [intro] , [verse] First line. Second line , [chorus] Third line , [outro] [outro]"


def shape(sections: tuple[Section, ...]) -> list[tuple[str, float | None, int, list[str]]]:
    return [(s.tag, s.seconds, s.repeats, [line.text for line in s.lines]) for s in sections]


def test_a_page_with_lengths():
    assert shape(parse(PAGE)) == [
        ("[intro]", 8.0, 1, []),
        ("[verse]", 24.5, 1, ["First line", "Second line"]),
        ("[chorus]", None, 1, ["Third line"]),
        ("[outro]", None, 2, []),
    ]
    assert write_page(parse(PAGE)) == PAGE


def test_the_published_line():
    assert write_published(parse(PUBLISHED)) == PUBLISHED
    assert write_published(parse(PAGE), seconds_per_tag=4) == PUBLISHED
    assert write_published(parse(PAGE), seconds_per_tag=0).startswith("[intro] , [verse]")


def test_lines_know_their_place():
    for line in (line for section in parse(PAGE) for line in section.lines):
        assert PAGE[line.start : line.end] == line.text


@pytest.mark.parametrize(
    ("written", "tag", "seconds"),
    [
        ("[VERSE 2]", "[verse]", None),
        ("[verse 2 12s]", "[verse]", 12.0),
        ("[Chorus: 7.25 sec]", "[chorus]", 7.25),
        ("[bridge 1:02.5]", "[bridge]", 62.5),
        ("【間奏 4秒】", "[inst]", 4.0),
        ("[サビ 10s]", "[chorus]", 10.0),
    ],
)
def test_tags_in_many_forms(written: str, tag: str, seconds: float | None):
    (section,) = parse(f"{written}la la")
    assert (section.tag, section.seconds, section.lines[0].text) == (tag, seconds, "la la")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[verse -3s] a", "line 1, column 1: '[verse -3s]' has no length that can be read"),
        ("a\n  [verse 3x] b", "line 2, column 3: '[verse 3x]' has no length"),
        ("[verse 0s]", "line 1, column 1: '[verse 0s]' asks for 0 s"),
        ("[verse 9999s]", "asks for 9999 s"),
        ("[intro 12,5s]", "'[intro 12,5s]' has a comma inside a number; write 12.5s"),
        ("[intro 2s]\n[verse 5s\nhello", "line 2, column 1: '[verse 5s' is not closed"),
    ],
)
def test_mistakes_have_a_place(text: str, says: str):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_unknown_tags_are_named():
    places = Places("la\n[wierd] la")
    assert len(parse("la\n[wierd] la", places)) == 1
    (problem,) = places.problems()
    assert (problem.symbol, problem.line, problem.column) == ("[wierd]", 2, 1)


WORDS = st.text("abc dé夢", min_size=1, max_size=12).map(lambda text: " ".join(text.split())).filter(bool)
SECTIONS = st.lists(
    st.tuples(
        st.sampled_from(["[verse]", "[chorus]", "[intro]", "[prechorus]"]),
        st.one_of(st.none(), st.integers(1, 999).map(lambda n: n / 4)),
        st.lists(WORDS, max_size=3),
    ),
    max_size=5,
)


@given(SECTIONS)
def test_what_is_written_is_read(parts):
    sections, expected = [], []
    for tag, seconds, lines in parts:
        page = "\n".join([f"[{tag[1:-1]}{'' if seconds is None else f' {seconds}s'}]", *lines])
        sections.append(page)
        last = expected[-1] if expected else None
        if last and last[0] == tag and last[1] is None and seconds is None and not last[3]:
            expected[-1] = (tag, None, last[2] + 1, lines)
        else:
            expected.append((tag, seconds, 1, lines))
    read = parse("\n".join(sections))
    assert shape(read) == expected
    assert shape(parse(write_page(read))) == expected


def test_times_of_sections():
    sections = [
        SectionTokens("[intro]", 0, 2, 4.0),
        SectionTokens("[verse]", 3, 1, None),
        SectionTokens("[chorus]", 9, 1, None),
    ]
    assert section_times(sections, 24.0) == [(0, 2), (2, 4), (4, 14), (14, 24)]
    with pytest.raises(UserError, match=r"write \[verse 12.5s\]"):
        section_times(sections)
    with pytest.raises(UserError, match="leaves nothing"):
        section_times(sections, 4.0)
