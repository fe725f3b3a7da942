"""Japanese words as they are sung."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics import morae, open_jtalk
from songbloom.lyrics.japanese import read_segment
from songbloom.lyrics.tags import TAGS
from songbloom.lyrics.vocabulary import NAMES, Tokens, vocabulary

KANA, PHONEMES = vocabulary("ja_kana"), vocabulary("ja_phonemes")


def read(text: str, **rules: str) -> str:
    return KANA.tokenize(text, **rules).reading  # type: ignore[arg-type]


def sources(tokens: Tokens) -> list[tuple[str, str]]:
    return [(symbol, tokens.text[a:b]) for symbol, (a, b) in zip(tokens.symbols, tokens.spans, strict=True)]


def test_ids_stay_what_they_are():
    # Models are trained on these numbers; what is new goes to the end.
    assert (KANA.n_vocab, PHONEMES.n_vocab) == (219, 81)
    ids = PHONEMES.tokenize("[verse] 夢、きみと\n歌う！").ids
    assert ids == (7, 77, 43, 75, 44, 2, 48, 42, 75, 42, 58, 45, 1, 43, 58, 41, 43, 4)
    assert [KANA.symbols[i] for i in (0, 1, 2, 6, 14, 41, 42, 218)] == [
        "",
        "\n",
        ",",
        "[intro]",
        "<a>",
        "ア",
        "イ",
        "ー",
    ]
    assert len(set(KANA.symbols)) == KANA.n_vocab and len(set(PHONEMES.symbols)) == PHONEMES.n_vocab
    assert NAMES[:4] == ("v2", "v3", "ja_kana", "ja_phonemes")


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("私は海へ行く、歌を歌う", "ワタシワウミエイク,ウタヲウタウ"),  # particles
        ("7つの海と3人と100回", "ナナツノウミトサンニントヒャッカイ"),  # counters
        ("4月1日", "シガツツイタチ"),
        ("人々は時々", "ヒトビトワトキドキ"),
        ("コーヒー、ずーっと", "コーヒー,ズーット"),
        ("東京 世界", "トーキョーセカイ"),  # kanji only, no kana anywhere
        ("ｷﾗｷﾗﾃﾞｲ", "キラキラデイ"),
        ("ＬＯＶＥ", "ラブ"),
        ("か\u3099ぎ", "ガギ"),  # a combining mark
    ],
)
def test_what_is_read(text: str, reading: str):
    tokens = KANA.tokenize(text)
    assert tokens.reading == reading
    assert tokens.problems == ()


def test_vowels_that_speech_devoices_are_sung():
    assert PHONEMES.tokenize("好きです").phonemes == ("s", "u", "k", "i", "d", "e", "s", "u")


def test_long_vowels():
    assert KANA.tokenize("コーヒー").symbols == ("コ", "ー", "ヒ", "ー")
    assert PHONEMES.tokenize("コーヒー").symbols == ("k", "o", "o", "h", "i", "i")
    tokens = KANA.tokenize("ねえ ーあ")
    assert [(p.symbol, p.line, p.column) for p in tokens.problems] == [("ー", 1, 4)]


@pytest.mark.parametrize(
    ("rule", "reading"),
    [
        ("katakana", "ラブアンドヤー"),
        ("letters", "エルオーブイイーエーエヌディーワイイーエーエイチ"),
        ("keep", "<l><o><v><e><a><n><d><y><e><a><h>"),
    ],
)
def test_english_follows_one_rule(rule: str, reading: str):
    assert read("love and yeah", english=rule).replace("イェー", "ヤー") == reading
    assert read("夢とloveへ", english=rule).startswith("ユメト")
    assert read("夢とloveへ", english=rule).endswith("エ")  # へ is a particle beside an English word, too


def test_english_that_the_dictionary_spells_out_is_read():
    assert read("yeah yeah, I'm in love") == "イェーイェー,アイムインラブ"
    assert read("stop CD songbloom") == "ストップシーディーソングブルーム"
    assert read("Tシャツ") == "ティーシャツ"
    assert read("Tシャツ", english="keep") == "ティーシャツ"  # one word of the dictionary


def test_kept_letters_are_no_phonemes():
    tokens = PHONEMES.tokenize("a あ I'm", english="keep")
    assert tokens.symbols == ("<a>", "a", "<i>", "<'>", "<m>")
    assert tokens.phonemes == ("a",)


def test_readings_can_be_given():
    text = "人気{ひとけ}のない海、｜今日は{きょうわ}"
    tokens = KANA.tokenize(text)
    assert tokens.reading == "ヒトケノナイウミ,キョウワ"
    assert sources(tokens)[:3] == [("ヒ", "人気"), ("ト", "人気"), ("ケ", "人気")]
    assert sources(tokens)[-1] == ("ワ", "今日は")
    assert read("Dream{ドゥリーム}と君") == "ドゥリームトキミ"
    assert read("3{みっ}つ") == "ミッツ"


@pytest.mark.parametrize(
    ("text", "symbol", "column"),
    [
        ("夢{yume}", "{yume}", 2),
        ("{ゆめ}夢", "{ゆめ}", 1),
        ("ゆめ{ゆめ}", "{ゆめ}", 3),
        ("夢{ゆめ", "{", 2),
        ("夢}", "}", 2),
        ("｜夢 君{きみ", "{", 5),
    ],
)
def test_marks_that_cannot_be_understood_are_named(text: str, symbol: str, column: int):
    problems = KANA.tokenize(text).problems
    assert (symbol, 1, column) in [(p.symbol, p.line, p.column) for p in problems]


def test_tags_are_atoms_in_any_case_and_glued():
    tokens = KANA.tokenize("[Verse 2]夢[CHORUS]君［bridge］\n[ サビ ]空【間奏】[pre-chorus]")
    assert [s for s in tokens.symbols if s in TAGS] == [
        "[verse]", "[chorus]", "[bridge]", "[chorus]", "[inst]", "[prechorus]",
    ]  # fmt: skip
    assert "\n" not in tokens.symbols  # beside a tag a line end says nothing
    assert tokens.problems == ()
    unknown = KANA.tokenize("夢\n君[vers]空").problems[0]
    assert (unknown.symbol, unknown.line, unknown.column) == ("[vers]", 2, 2)
    assert "'verse'" in unknown.advice
    assert read("夢[ラララ]") == "ユメラララ"  # a second voice is sung


def test_lines_and_punctuation():
    text = "\n夢。。\r\n\n君!?\u2028空…「愛」〜\n"
    tokens = KANA.tokenize(text)
    assert tokens.symbols == ("ユ", "メ", ".", "\n", "キ", "ミ", "!", "?", "\n", "ソ", "ラ", "ア", "イ")
    assert tokens.problems == ()
    assert KANA.decode(tokens.ids) == "ユメ.\nキミ!?\nソラアイ"
    assert PHONEMES.decode(PHONEMES.tokenize("夢\n君").ids) == "y u m e\nk i m i"


def test_what_is_not_sung_is_named_with_its_place():
    tokens = KANA.tokenize("夢\n笑顔😀で♡한")
    assert [(p.symbol, p.line, p.column) for p in tokens.problems] == [("😀", 2, 3), ("♡", 2, 5), ("한", 2, 6)]
    assert "reading" in tokens.problems[2].advice
    assert tokens.reading == "ユメ\nエガオデ"


def test_tokens_know_where_they_came_from():
    assert sources(KANA.tokenize("歌うよ、100回")) == [
        ("ウ", "歌"), ("タ", "歌"), ("ウ", "う"), ("ヨ", "よ"), (",", "、"),
        ("ヒャ", "100"), ("ッ", "100"), ("カ", "回"), ("イ", "回"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " \n\t\n", "[verse]", "😀😀", "……「」"])
def test_words_that_sing_nothing(text: str):
    for name in ("ja_kana", "ja_phonemes"):
        tokens = vocabulary(name).tokenize(text)
        assert tokens.phonemes == ()
        assert bool(tokens.problems) == ("😀" in text)


def test_a_hundred_kilobytes_of_a_chorus():
    tokens = KANA.tokenize("夜明け前の街を一人で歩く、100回😀\n" * 2100)
    assert len(tokens.text.encode()) > 100_000
    assert len(tokens) == 2100 * 22 - 1
    assert len(tokens.problems) == 101


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["夜明け前の街を一人で歩く" * 2800, "love " * 20_000, "あ" * 34_000, "[a" * 50_000, "a" * 100_000]
)
def test_a_hundred_kilobytes_in_one_line(text: str):
    tokens = KANA.tokenize(text)
    assert len(text.encode()) >= 99_000
    assert len(tokens) > 30_000
    assert tokens.problems == ()


@pytest.mark.parametrize(
    "text", ["ba" * 5000, "夢{" + "ゆめ" * 5000 + "}を見る", "「" + "Ba" * 5000 + "」", "ABC" * 3000]
)
def test_a_word_that_no_dictionary_can_take(text: str):
    for english in ("katakana", "letters", "keep"):
        assert len(KANA.tokenize(text, english=english)) > 2_000


def test_kana_are_read_without_a_dictionary():
    script = (
        "import sys\n"
        "sys.modules['pyopenjtalk'] = None\n"
        "from songbloom.lyrics.vocabulary import vocabulary\n"
        "tokens = vocabulary('ja_kana').tokenize('きみとコーヒー、人気{ひとけ} はる Love')\n"
        "print(tokens.reading, [(p.symbol, p.column) for p in tokens.problems])\n"
        "try:\n"
        "    vocabulary('ja_kana').tokenize('夢')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    first, second = done.stdout.splitlines()
    assert first == "キミトコーヒー,ヒトケハルラブ [('は', 17)]"
    assert "pip install pyopenjtalk-plus" in second


def test_kana_as_they_stand():
    assert read("きみは はなをみる", reading="kana") == "キミハハナヲミル"
    assert read("きみは はなをみる", reading="dictionary") == "キミワハナヲミル"
    tokens = KANA.tokenize("きみと夢、7", reading="kana")
    assert tokens.reading == "キミト,"
    assert [p.symbol for p in tokens.problems] == ["夢", "7"]
    assert PHONEMES.tokenize("あー んー っー", reading="kana").phonemes == ("a", "a", "N", "N", "cl", "N")


def test_nothing_loads_before_it_is_needed():
    script = (
        "import sys\n"
        "from songbloom.lyrics.vocabulary import vocabulary\n"
        "import songbloom.lyrics.window, songbloom.lyrics.timing\n"
        "vocabulary('v2').tokenize('words')\n"
        "vocabulary('ja_kana')\n"
        "print([m for m in ('pyopenjtalk', 'sudachipy', 'music21', 'torch') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"


def test_the_other_package_of_the_same_name_reads_lines_whole(monkeypatch: pytest.MonkeyPatch):
    class Plain:
        @staticmethod
        def g2p(text: str, join: bool) -> list[str]:
            return ["sil", "k", "I", "m", "i", "pau", "N", "cl"]

    read_segment.cache_clear()
    monkeypatch.setattr(open_jtalk, "import_open_jtalk", lambda: Plain)
    tokens = KANA.tokenize("君んっ")
    assert tokens.symbols == ("キ", "ミ", "ン", "ッ")
    assert set(tokens.spans) == {(0, 1), (1, 2), (2, 3)}
    read_segment.cache_clear()


@settings(max_examples=60, deadline=None)
@example(text="さ\ud800くら")
@given(
    st.text(
        alphabet=st.one_of(st.sampled_from("夢君をはーっんァゃ[]{}｜ (verse)aI'’1,。\n\r♡ﾞ々…"), st.characters()),
        max_size=30,
    )
)
def test_any_text_has_tokens_in_order_and_in_place(text: str):
    for english in ("katakana", "letters", "keep"):
        tokens = KANA.tokenize(text, english=english)
        assert len(tokens.ids) == len(tokens.spans) == len(tokens.symbols)
        assert all(0 <= a < b <= len(text) for a, b in tokens.spans)
        assert all(KANA.symbols[i] == s for i, s in zip(tokens.ids, tokens.symbols, strict=True))
        assert all(p.column >= 1 and 1 <= p.line <= text.count("\n") + 1 for p in tokens.problems)


@given(st.lists(st.sampled_from(sorted(morae.PHONEMES_OF)), max_size=20))
def test_kana_split_into_morae_that_have_phonemes(kana: list[str]):
    pieces = morae.split_kana("".join(kana))
    assert "".join(pieces) == "".join(kana)
    assert len(morae.pronounce("".join(kana))) == len(pieces)


def test_an_unknown_rule_is_one_line():
    with pytest.raises(UserError, match=r"reading is 'dictionry' .did you mean 'dictionary'"):
        KANA.tokenize("夢", reading="dictionry")  # type: ignore[arg-type]
