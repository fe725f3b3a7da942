"""Vocabularies v2 and v3: characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.vocabulary import vocabulary


def test_ids_are_those_of_the_published_models():
    v2, v3 = vocabulary("v2"), vocabulary("v3")
    assert (v2.n_vocab, v3.n_vocab) == (80, 79)
    assert v2.tokenize("AZaz09.!\n").ids == (1, 26, 27, 52, 53, 62, 63, 67, 79)
    assert v2.tokenize("+").ids == (70,)
    assert v3.tokenize("+").ids == ()
    assert v3.tokenize("-'\n").ids == (69, 70, 78)


def test_text_becomes_ascii_and_backslashes_break_lines():
    text = "Étude façon naïve — “quoted” … ½ \\ backslash\nПривет 日本"
    tokens = vocabulary("v2").tokenize(text)
    assert tokens.cleaned == 'Etude facon naive -- "quoted" ...  12 \n backslash\nPrivet Ri Ben '
    assert vocabulary("v2").decode(tokens.ids) == tokens.cleaned
    assert [text[a:b] for a, b in tokens.spans[-4:]] == ["本"] * 4
    assert tokens.problems == ()


def test_what_is_left_out_is_named_with_its_place():
    tokens = vocabulary("v3").tokenize("abc\nde 😀 f + g")
    assert tokens.cleaned == "abc\nde  f  g"
    assert [(p.symbol, p.line, p.column) for p in tokens.problems] == [("😀", 2, 4), ("+", 2, 8)]
    assert "left out" in str(tokens.problems[0])


def test_empty_words_and_long_words():
    assert vocabulary("v2").tokenize("").ids == ()
    long = vocabulary("v2").tokenize("la 😀" * 25_000)
    assert len(long.ids) == 75_000
    assert len(long.problems) == 101
    assert "24900 more" in long.problems[-1].advice


def test_unknown_names_and_tokens():
    with pytest.raises(UserError, match="did you mean 'v2'"):
        vocabulary("v22")
    with pytest.raises(UserError, match="no token 80"):
        vocabulary("v2").decode([1, 80])
    with pytest.raises(UserError, match="did you mean 'katakana'"):
        vocabulary("v2").tokenize("a", english="katakan")  # type: ignore[arg-type]


@given(st.text(max_size=80))
def test_any_text_decodes_to_its_cleaned_form(text: str):
    for name in ("v2", "v3"):
        words = vocabulary(name)
        tokens = words.tokenize(text)
        assert words.decode(tokens.ids) == tokens.cleaned == "".join(tokens.symbols)
        assert len(tokens.spans) == len(tokens.ids)
        assert all(0 <= a < b <= len(text) for a, b in tokens.spans)
