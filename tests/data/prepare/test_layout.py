"""Lines, their times and their sections."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.data.prepare.layout import (
    Phrase,
    as_timed,
    clean_japanese,
    kana_of,
    lines_of,
    matched,
    moved,
    parts_of,
    shift_of,
    timed_lines,
    written,
)  # fmt: skip
from songbloom.errors import UserError
from songbloom.lyrics.structure import parse
from songbloom.lyrics.tags import TAGS
from songbloom.lyrics.timing import from_phrases, read_timed
from songbloom.lyrics.vocabulary import vocabulary
from tests.data.prepare import made


def test_lines_and_their_tags():
    found = lines_of("[Verse 1]\nさくら\nはな\n\n[サビ] ララ [outro]\n\nおわり")
    assert [(line.tag, line.text) for line in found] == [
        ("[verse]", "さくら"), ("", "はな"), ("", ""), ("[chorus]", "ララ"), ("[outro]", "おわり"),
    ]  # fmt: skip


def test_lines_of_a_score_keep_their_times_and_marks(tmp_path: Path):
    path = made.text(tmp_path / "a.musicxml", made.score(marks=("Aメロ", "サビ")))
    assert timed_lines(read_timed(path)) == [
        Phrase("さくらさいた", 2.0, 8.0, "[verse]"),
        Phrase("はるのかぜ", 10.0, 15.0, "[chorus]"),
    ]


def lab(phonemes: str, start: float = 1.0) -> str:
    """A label file in seconds, half a second a phoneme."""
    rows = [f"{start + i * 0.5:.1f} {start + i * 0.5 + 0.5:.1f} {name}" for i, name in enumerate(phonemes.split())]
    return "\n".join([f"0.0 {start:.1f} pau", *rows]) + "\n"


def test_words_get_the_times_of_labels_and_what_was_really_sung(tmp_path: Path):
    timed = read_timed(made.text(tmp_path / "a.lab", lab("w a t a sh i h a pau k o o h i i")))
    assert matched("[verse]\nわたしは\nコーヒー", timed) == [
        Phrase("｜わたしは{わたしは}", 1.0, 5.0, "[verse]"),
        Phrase("コーヒー", 5.5, 8.5),
    ]
    words = [line.text for line in matched("私は\nコーヒー", timed)]
    assert words == ["｜私は{わたしは}", "コーヒー"]
    sung = vocabulary("songbloom_ja").tokenize(words[0]).phonemes
    assert sung == ("w", "a", "t", "a", "sh", "i", "h", "a")  # and not wa, as it is read
    assert [line.text for line in timed_lines(timed)] == ["わたしは", "こおひい"]
    with pytest.raises(UserError, match="other words"):
        matched("まったくちがううたのことば", timed)


def test_lines_that_are_written_alike_take_times_in_order():
    timed = from_phrases(
        [{"start": 1, "end": 2, "text": "Hello, world"}, {"start": 3.0, "end": 4.5, "text": "good bye"}]
    )
    assert matched("[verse]\nHello world\n[chorus]\nGood bye!", timed) == [
        Phrase("Hello world", 1.0, 2.0, "[verse]"),
        Phrase("Good bye!", 3.0, 4.5, "[chorus]"),
    ]


def test_phonemes_as_kana():
    assert kana_of(["k", "y", "o"]) == "お"  # no such mora: ky is one name
    assert kana_of(["ky", "o", "o", "w", "a", "sh", "i", "N", "cl", "p", "o"]) == "きょおわしんっぽ"


def test_cleaning_leaves_out_scat_and_keeps_tags():
    text = "[intro]\n[verse]\nさくら doo-wop はな\nshooby doo\n[chorus]\nLa la la\n[outro]\nコーヒー、々 ♡"
    cleaned = clean_japanese(lines_of(text))
    assert written(parts_of(cleaned, 30.0)) == "[intro]\n[verse]\nさくら はな\n[chorus]\n[outro]\nコーヒー、々\n"


def test_a_misspelt_tag_is_left_for_the_check_to_tell(tmp_path: Path):
    text = "[verse]\nさくら\n[chrous]\nはな la\n[x2] doo はる"
    for lines in (lines_of(text), clean_japanese(lines_of(text))):
        said = written(parts_of(lines, 30.0))
        assert "[chrous]\nはな" in said and "[x2]" in said and said.startswith("[verse]\nさくら\n")
    path = made.text(tmp_path / "a.lrc", "[00:01.00]さくら\n[chrous]\n[00:04.00]はな\n")
    assert [line.text for line in timed_lines(read_timed(path))] == ["さくら", "[chrous]", "はな"]


LETTERS = st.text(st.sampled_from("さくらんー春々 abc-s\\.。,!\n♡ｱ1{}"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TAGS), LETTERS), max_size=5))
def test_cleaning_never_deletes_a_tag_nor_adds_a_letter(sections: list[tuple[str, str]]):
    text = "\n".join(f"{tag}\n{words}" for tag, words in sections)
    before = [line.tag for line in lines_of(text) if line.tag]
    cleaned = clean_japanese(lines_of(text))
    assert [line.tag for line in cleaned if line.tag] == before
    kept = "".join(line.text for line in cleaned)
    assert set(kept) <= {*text, " "}
    assert not any(c.isascii() and c.isalpha() for c in kept)


def test_the_shift_of_a_voice_is_found():
    loud = np.zeros(200, bool)
    loud[45:75] = loud[105:165] = True  # sung 2 s later than the score says
    spans = [(2.5, 5.5), (8.5, 14.5)]
    shift, agree = shift_of(loud, 0.1, spans)
    assert shift == pytest.approx(2.0)
    assert agree == 1.0
    assert shift_of(loud, 0.1, [(4.5, 7.5), (10.5, 16.5)]) == (0.0, 1.0)
    assert shift_of(np.ones(100, bool), 0.1, [(0.0, 1.0)])[1] < 0.2
    assert [phrase.start for phrase in moved([Phrase("a", 0.5, 2.0), Phrase("b")], -1.0)] == [0.0, None]


def phrases(*spans: tuple[str, float, float]) -> list[Phrase]:
    return [Phrase(text, start, end) for text, start, end in spans]


def test_sections_from_times():
    song = phrases(
        ("あ", 8, 10), ("い", 10, 12), ("サビ", 20, 22), ("う", 22.5, 24), ("え", 28, 30),
        ("サビ", 40, 42), ("う", 42, 44),
    )  # fmt: skip
    parts = parts_of(song, 60.0)
    assert [(p.tag, p.start, p.end) for p in parts] == [
        ("[intro]", 0, 8), ("[verse]", 8, 12), ("[inst]", 12, 20), ("[chorus]", 20, 24), ("[inst]", 24, 28),
        ("[verse]", 28, 30), ("[inst]", 30, 40), ("[chorus]", 40, 44), ("[outro]", 44, 60),
    ]  # fmt: skip
    lyrics = written(parts)
    assert lyrics.startswith("[intro 8s]\n[verse 4s]\nあ\nい\n[inst 8s]\n")
    assert sum(section.seconds or 0 for section in parse(lyrics)) == pytest.approx(60.0)
    assert written(parts, lengths=False).startswith("[intro]\n[verse]\nあ\n")


def test_sections_that_are_named_stay_named():
    song = [Phrase("", tag="[intro]"), Phrase("あ", 6, 9, "[bridge]"), Phrase("い", 9, 11, "[chorus]")]
    assert [(p.tag, p.start, p.end) for p in parts_of(song, 12.0)] == [
        ("[intro]", 0, 6), ("[bridge]", 6, 9), ("[chorus]", 9, 12),
    ]  # fmt: skip


def test_sections_without_times_follow_empty_lines():
    text = "あさ\nひる\n\nサビだ\n\nよる\n\nサビだ"
    assert (
        written(parts_of(lines_of(text), 30.0))
        == "[verse]\nあさ\nひる\n[chorus]\nサビだ\n[verse]\nよる\n[chorus]\nサビだ\n"
    )


SPAN = st.tuples(st.floats(0.0, 9.0), st.floats(0.05, 8.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(SPAN, min_size=1, max_size=8), st.floats(0.0, 20.0), st.lists(st.sampled_from(("", *TAGS)), min_size=8))
def test_sections_cover_the_song_and_lose_no_line(steps: list[tuple[float, float]], rest: float, tags: list[str]):
    song: list[Phrase] = []
    now = 0.0
    for (wait, length), tag in zip(steps, tags, strict=False):
        song.append(Phrase(f"あ{len(song)}", now + wait, now + wait + length, tag))
        now += wait + length
    parts = parts_of(song, now + rest)
    times = [(p.start, p.end) for p in parts]
    assert times[0][0] == 0.0
    assert times[-1][1] == pytest.approx(now + rest, abs=0.02)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(times))
    sung = [phrase for part in parts for phrase in part.phrases]
    assert as_timed(sung) == as_timed(song)
