"""Readers of timed words, and times of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.matching import EXTEND, OPEN, OTHER, SAME, match
from songbloom.lyrics.timing import TimedText, from_phrases, read_timed, token_times, write_lrc
from songbloom.lyrics.vocabulary import vocabulary

SCORES = Path(__file__).parent / "scores"
KANA, PHONEMES = vocabulary("ja_kana"), vocabulary("ja_phonemes")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def pieces(timed: TimedText) -> list[tuple[str, float, float]]:
    return [(p.text, round(p.start, 4), round(p.end, 4)) for p in timed]


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


# LRC


def test_plain_lrc(tmp_path: Path):
    timed = read_timed(
        write(
            tmp_path / "a.lrc",
            "\ufeff[ti:Song]\n[ar: Someone]\n[00:30.00]last line\n\n[verse]\n[00:10.50] Sakura no hana\n"
            "[0:12]haru\n[00:13.250]\n[01:05.00][00:20:50]again\n",
        )
    )
    assert timed.text == "[verse]\nSakura no hana\nharu\nagain\nlast line\nagain\n"
    assert pieces(timed) == [
        ("Sakura no hana", 10.5, 12.0),  # until the next line
        ("haru", 12.0, 13.25),  # until the empty line
        ("again", 20.5, 24.0),  # 0.7 s a character, since the next line is far
        ("last line", 30.0, 36.3),
        ("again", 65.0, 68.5),
    ]


def test_lrc_with_word_times_and_an_offset(tmp_path: Path):
    path = write(tmp_path / "a.lrc", "[offset:+500]\n[00:10.00]<00:10.00>夢を<00:11.00>見て <00:12.00>いた<00:13.50>\n")
    timed = read_timed(path)
    assert timed.text == "夢を見て いた\n"
    assert pieces(timed) == [("夢を", 9.5, 10.5), ("見て", 10.5, 11.5), ("いた", 11.5, 13.0)]


@pytest.mark.parametrize("enhanced", [False, True])
def test_lrc_that_we_wrote(tmp_path: Path, enhanced: bool):
    timed = from_phrases(
        [{"start": 1.0, "end": 2.5, "text": "夢を見て"}, {"start": 70.25, "end": 71.0, "text": "la la"}]
    )
    path = tmp_path / "folder" / "a.lrc"
    write_lrc(path, timed, enhanced=enhanced, title="a [b]", artist="c")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("[ti:a (b)]\n[ar:c]\n[00:01.00]")
    assert ("<00:01.00>夢を見て<00:02.50>" in text) == enhanced
    again = read_timed(path)
    assert again.text == timed.text + "\n"
    assert again.times == timed.times


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[00:10.00]a\n[00:7x.00]b\n", ("a.lrc, line 2", "is no time")),
        ("[00:10.00]a\n[00:75.00]b\n", ("a.lrc, line 2", "60 or more seconds")),
        ("[00:10.00]a\n[12]b\n", ("a.lrc, line 2", "is no time")),
        ("[offset:soon]\n[00:10.00]a", ("a.lrc, line 1", "milliseconds")),
        ("[00:10.00]<00:1z.00>a", ("a.lrc, line 1", "time that is none")),
        ("[00:10.00]<00:61.00>a", ("a.lrc, line 1", "60 or more")),
        ("just words\nwithout times\n", ("a.lrc", "no line of words has a time")),
        ("", ("a.lrc", "no line of words has a time")),
        ("[00:01.00]\n", ("a.lrc", "no line of words has a time")),
    ],
)
def test_broken_lrc(tmp_path: Path, text: str, parts: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        read_timed(write(tmp_path / "a.lrc", text))
    one_line(caught, *parts)


def test_text_that_is_no_text(tmp_path: Path):
    path = tmp_path / "a.lrc"
    path.write_bytes("[00:01.00]夢".encode("cp932"))
    assert pieces(read_timed(path)) == [("夢", 1.0, 2.4)]
    path.write_bytes(b"[00:01.00]\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="UTF-8 or Shift JIS"):
        read_timed(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_timed(tmp_path / "none.lrc")
    with pytest.raises(UserError, match=r"no reader of timed words for \.srt"):
        read_timed(tmp_path / "a.srt")


# Labels

_SECONDS = "0.0 0.5 pau\n0.5 0.6 s\n0.6 0.9 A\n0.9 1.2 br\n1.2 1.5 N\n"


def test_labels_in_either_unit(tmp_path: Path):
    in_seconds = read_timed(write(tmp_path / "a.lab", _SECONDS))
    rows = [line.split() for line in _SECONDS.splitlines()]
    units = "".join(f"{round(float(a) * 1e7)} {round(float(b) * 1e7)} {p}\n" for a, b, p in rows)
    assert pieces(in_seconds) == [("s", 0.5, 0.6), ("a", 0.6, 0.9), ("N", 1.2, 1.5)]
    assert in_seconds.text == "s a\nN"
    assert in_seconds.kind == "phonemes"
    assert pieces(read_timed(write(tmp_path / "b.lab", units))) == pieces(in_seconds)
    decimals = units.replace(" ", ".0 ", 2).replace("\n", "\n")
    assert pieces(read_timed(write(tmp_path / "c.lab", decimals))) == pieces(in_seconds)


def test_full_context_labels_hold_the_same_phonemes():
    full, plain = (read_timed(SCORES / f"ja_song_03{end}") for end in (".full.lab", ".lab"))
    assert full == plain
    songs = {item["idx"]: item for item in json.loads((SCORES / "manifest.json").read_text(encoding="utf-8"))["items"]}
    assert [p.text for p in plain] == songs["ja_song_03"]["phonemes"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0 500 pau\n500 560 s\n560 900 a\n", ("a.lab", "neither seconds nor units of 100 ns", "milliseconds")),
        ("0 24000000000 s\n24000000000 48000000000 a\n", ("a.lab", "neither")),
        ("0 5000000 s\n5000000 a\n", ("a.lab, line 2", "start end phoneme")),
        ("s\na\n", ("a.lab, line 1", "start end phoneme")),
        ("0.0 0.5 s\n0.5 0.2 a\n", ("a.lab, line 2", "end is before")),
        ("-0.1 0.5 s\n", ("a.lab, line 1", "-0.1")),
        ("0.0 nan s\n", ("a.lab, line 1",)),
        ("0.0 0.5 s\n0.3 0.8 a\n", ("a.lab, line 2", "starts before s in line 1 ends")),
        ("0.0 0.5 pau\n", ("a.lab", "nothing but silence")),
        ("\n", ("a.lab", "no labels")),
    ],
)
def test_broken_labels(tmp_path: Path, text: str, parts: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        read_timed(write(tmp_path / "a.lab", text))
    one_line(caught, *parts)


# JSON


def test_phrases_and_the_corpus_json(tmp_path: Path):
    phrases = [{"start": 0, "end": 1.5, "text": " 夢を "}, {"start": 2, "end": 3, "text": "見て"}]
    timed = from_phrases(phrases)
    assert timed.text == "夢を\n見て"
    assert pieces(timed) == [("夢を", 0.0, 1.5), ("見て", 2.0, 3.0)]
    for content in (phrases, {"phrases": phrases}, {"words": phrases}):
        assert read_timed(write(tmp_path / "a.json", json.dumps(content))) == timed
    phonemes = [
        {"phoneme": "pau", "start": 0.0, "end": 1.0},
        {"phoneme": "y", "start": 1.0, "end": 1.1, "line": 0},
        {"phoneme": "u", "start": 1.1, "end": 1.5, "line": 0},
        {"phoneme": "m", "start": 1.5, "end": 1.6, "line": 1},
    ]
    song = read_timed(write(tmp_path / "phonemes.json", json.dumps({"sample_rate": 48000, "phonemes": phonemes})))
    assert (song.text, song.kind) == ("y u\nm", "phonemes")
    assert song.times == ((1.0, 1.1), (1.1, 1.5), (1.5, 1.6))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('[{"start": 0, "end": 1}]', ("a.json, entry 1", "no text")),
        ('[{"start": 0, "text": "a"}]', ("entry 1", "end is None")),
        ('[{"start": "0", "end": 1, "text": "a"}]', ("entry 1", "start is '0'")),
        ('[{"start": 2, "end": 1, "text": "a"}]', ("entry 1", "end is before")),
        ('[{"start": 2, "end": 3, "text": "a"}, {"start": 1, "end": 2, "text": "b"}]', ("entry 2", "sort")),
        ("[3]", ("entry 1", "no text")),
        ("[]", ("a.json", "no words with times")),
        ('{"other": 1}', ("a.json", "holds no times")),
        ('{"phonemes": [{"phoneme": "a"}]}', ("phoneme 1", "start and end")),
        ('{"phonemes": [{"phoneme": "a", "start": 2, "end": 1}]}', ("phoneme 1", "end is before")),
        ('{"phonemes": []}', ("a.json", "nothing but silence")),
        ('{"phonemes": [{"phoneme": "a", "start": 0, "end": 1' + "0" * 400 + "}]}", ("phoneme 1", "start and end")),
        ('[{"start": 0, "end": 1' + "0" * 400 + ', "text": "a"}]', ("entry 1", "end is 1000", "number of seconds")),
        ('[{"start": 0, "end": 1' + "0" * 5000 + ', "text": "a"}]', ("a.json", "no JSON")),
        ("[" * 100_000, ("a.json", "no JSON")),
        ('[{"start"', ("a.json, line 1", "no JSON")),
        ("", ("a.json", "no JSON")),
    ],
)
def test_broken_json(tmp_path: Path, content: str, parts: tuple[str, ...]):
    with pytest.raises(UserError) as caught:
        read_timed(write(tmp_path / "a.json", content))
    one_line(caught, *parts)


# Times of tokens


def test_a_score_in_kana_times_words_in_kanji():
    text = "[verse]\nきっとまた会える、ずっと待ってるよ"
    for words in (KANA, PHONEMES):
        tokens = words.tokenize(text)
        by_score = token_times(tokens, read_timed(SCORES / "ja_song_02.musicxml"))
        by_label = token_times(tokens, read_timed(SCORES / "ja_song_02.lab"))
        for symbol, a, b in zip(tokens.symbols, by_score, by_label, strict=True):
            assert (a is None) == (b is None) == (symbol in ("[verse]", ",")), symbol
            if a is not None and b is not None:  # a label gives each sound of a note the whole note
                assert b[0] - 1e-6 <= a[0] <= a[1] <= b[1] + 1e-6, symbol


def test_particles_as_written_in_a_score_still_match():
    timed = from_phrases([{"start": i, "end": i + 1, "text": kana} for i, kana in enumerate("きみはうみへ")])
    tokens = KANA.tokenize("君は海へ")
    assert [t and t[0] for t in token_times(tokens, timed)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_times_of_letters():
    v3 = vocabulary("v3")
    tokens = v3.tokenize("Oh, la!\nla")
    times = token_times(
        tokens, from_phrases([{"start": 0, "end": 2, "text": "oh la"}, {"start": 4, "end": 5, "text": "La"}])
    )
    assert [t is None for t in times] == [not s.isalpha() for s in tokens.symbols]
    assert (times[0], times[-1]) == ((0.0, 0.5), (4.5, 5.0))
    with pytest.raises(UserError, match="times are of phonemes"):
        token_times(tokens, read_timed(SCORES / "ja_song_02.lab"))


def test_words_that_a_file_lacks_lie_between_their_neighbours():
    timed = from_phrases([{"start": 0, "end": 2, "text": "さくらの"}, {"start": 6, "end": 8, "text": "はながさく"}])
    times = token_times(KANA.tokenize("桜の、赤い、花が咲く"), timed)
    assert times[5] == (2.0, pytest.approx(2 + 4 / 3))  # ア of 赤い, in the gap
    assert [t is None for t in times] == [s == "," for s in KANA.tokenize("桜の、赤い、花が咲く").symbols]


def test_times_of_another_song_are_refused():
    timed = read_timed(SCORES / "ja_song_03.lab")
    with pytest.raises(UserError) as caught:
        token_times(PHONEMES.tokenize("迷うたびに空を見上げ、鳥の行く先たずねてた"), timed)
    one_line(caught, "other words")


def test_no_words_and_too_many():
    timed = read_timed(SCORES / "ja_song_02.lab")
    assert token_times(KANA.tokenize(""), TimedText("", (), ())) == []
    phrases = from_phrases([{"start": i, "end": i + 1, "text": "あいうえお" * 200} for i in range(8)])
    with pytest.raises(UserError, match="too many"):
        token_times(KANA.tokenize("あ\n" * 9_000, reading="kana"), phrases)
    assert len(timed.lines()) == 2


def price(length: int) -> int:
    return OPEN + EXTEND * length


def slow_score(left: str, right: str) -> int:
    best: dict[tuple[int, int], int] = {}
    for i in range(len(left) + 1):
        for j in range(len(right) + 1):
            options = [0] if i == j == 0 else []
            options += [best[k, j] - price(i - k) for k in range(i)] + [best[i, k] - price(j - k) for k in range(j)]
            if i and j:
                options.append(best[i - 1, j - 1] + (SAME if left[i - 1] == right[j - 1] else OTHER))
            best[i, j] = max(options)
    return best[len(left), len(right)]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_matching_is_the_best_there_is(left: str, right: str):
    partners = match(left, right)
    met = [p for p in partners if p >= 0]
    assert met == sorted(set(met))
    score = sum(SAME if left[i] == right[p] else OTHER for i, p in enumerate(partners) if p >= 0)
    left_out = "".join("x" if p < 0 else " " for p in partners)
    right_out = "".join(" " if j in met else "x" for j in range(len(right)))
    if met:  # runs between two pairs count once; without pairs each side is one run
        score -= sum(price(len(run)) for run in (left_out + " " + right_out).split())
    elif left or right:
        score -= sum(price(len(side)) for side in (left, right) if side)
    if not left or not right:
        return
    assert score == slow_score(left, right)
