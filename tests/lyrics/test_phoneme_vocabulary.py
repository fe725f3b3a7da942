"""The vocabularies of the SongBloom family: words of three languages, phonemes, sections, and how they fit a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.lyrics.__main__ import main
from songbloom.lyrics.morae import PHONEMES as JAPANESE
from songbloom.lyrics.phoneme_vocabulary import NEW, section_times, starting_rows
from songbloom.lyrics.phonemes import NEAREST, PUBLISHED
from songbloom.lyrics.song import language_of
from songbloom.lyrics.structure import parse
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.prior.songbloom.conditioners import LyricConditioner
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.published.songbloom.prior import vocabulary_settings
from tests.golden.checkers.songbloom_text import phoneme_string

SONG = vocabulary("songbloom")
OURS = vocabulary("songbloom_ja")


def sung(text: str, **rules: str) -> str:
    return " ".join(OURS.tokenize(text, **rules).symbols)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "[intro] [intro] , [verse] Morning light is calling me. Open the door , [outro] [outro]",
        "[chorus] 我们走在雨中. 你听见了吗 , [inst] [inst] , [verse] 一起去看海. 不要说再见",
        "[chorus] Sing with me tonight.",
    ],
)
def test_plain_lyrics_are_what_the_published_program_makes_of_them(text: str):
    if not text.isascii():
        pytest.importorskip("jieba")
    assert " ".join(SONG.tokenize(text).symbols) == phoneme_string(text)
    assert vocabulary("songbloom_published").tokenize(text).ids == SONG.tokenize(text).ids


def test_what_the_published_program_gets_wrong():
    text = "[Verse]I love my  car"
    assert phoneme_string(text) == "V ER1 S AY1 L AH1 V my  K AA1 R"
    assert sung(text) == "[verse] AY1 L AH1 V M AY1 K AA1 R"
    published = vocabulary("songbloom_published").tokenize("[verse] こんにちは  a")
    assert published.ids == (1, 0, 0, PUBLISHED.index("a"))
    assert "こんにちは" in str(published.problems[0])


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("[verse 4s]\nコーヒーのむ\n\nフューと好き。", "[verse] k o o h i i n o m u . fy u u t o s u k i ."),
        ("東京 love です", "t o o ky o o L AH1 V d e s u"),
        ("人気{ひとけ}のない君{k i m i}と", "h i t o k e n o n a i k i m i t o"),
        ("read{R IY1 D} {L AH1 V}!", "R IY1 D L AH1 V ."),
        ("[verse] L AH1 V . AH0 N D", "[verse] L AH1 V . AH0 N D"),
        ("singin' 'cause don’t", "S IH1 NG IH0 N K AH0 Z D OW1 N T"),
        ("in 1999, 3 cafés", "IH0 N N AY1 N T IY1 N N AY1 N T IY0 N AY1 N . TH R IY1 K AE2 F EY1 Z"),
        ("[prechorus]a[サビ]b", "[prechorus] AH0 , [chorus] B IY1"),
        ("[intro 3s] [verse] a", "[intro] [intro] [intro] , [verse] AH0"),
        ("...!?\n\n. [verse] ,", "[verse]"),
        ("", ""),
    ],
)
def test_readings(text: str, symbols: str):
    tokens = OURS.tokenize(text)
    assert " ".join(tokens.symbols) == symbols
    assert tokens.problems == ()
    assert OURS.decode(tokens.ids) == symbols


def test_chinese_numbers_and_tones():
    pytest.importorskip("jieba")
    assert sung("2024年") == "EE er4 l ing2 EE er4 s i04 n ian2"
    assert sung("10500", language="zh") == sung("一万零五百")
    assert sung("開風") == sung("开风")


def test_the_language_is_the_song_s():
    assert sung("東京", language="ja") == "t o o ky o o"
    assert sung("東京\nの") == "t o o ky o o . n o"
    with pytest.raises(UserError, match=r"did you mean|one of"):
        OURS.tokenize("a", language="jp")  # type: ignore[call-arg]


def test_places_of_tokens():
    text = "[verse 2s] Love\n夢を{xx}"
    tokens = OURS.tokenize("[verse 2s] My love")
    assert [(s, tokens.text[a:b]) for s, (a, b) in zip(tokens.symbols, tokens.spans, strict=True)] == [
        ("[verse]", "[verse 2s]"),
        ("M", "My"),
        ("AY1", "My"),
        ("L", "love"),
        ("AH1", "love"),
        ("V", "love"),
    ]
    assert tokens.sections[0].seconds == 2.0
    problem = OURS.tokenize(text + "を").problems[0]
    assert (problem.line, problem.column) == (2, 3)


@pytest.mark.parametrize(
    ("text", "symbol", "column", "says"),
    [
        ("a blorptastic", "blorptastic", 3, "spelling"),
        ("a {L AH9 V}", "{L AH9 V}", 3, "'AH9' is no phoneme"),
        ("la 안녕", "안녕", 4, "left out"),
        ("[intro] words", "[intro]", 1, "published models know none"),
    ],
)
def test_what_is_not_sure_is_named(text: str, symbol: str, column: int, says: str):
    (problem,) = OURS.tokenize(text).problems
    assert (problem.symbol, problem.line, problem.column) == (symbol, 1, column)
    assert says in problem.advice


def test_sounds_and_tags_that_the_published_vocabulary_lacks():
    tokens = SONG.tokenize("[prechorus] フュー")
    assert tokens.symbols == ("[verse]", "f", "y", "u", "u")
    assert "[verse] stands for it" in str(tokens.problems[0])


def test_ours_holds_the_published_one():
    assert OURS.symbols[:330] == PUBLISHED == SONG.symbols
    assert OURS.symbols[330:] == NEW
    assert set(JAPANESE) <= set(OURS.symbols)


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("aeI lov'-.,!?…\n[]{}1239$£夢のー🙂 é"), max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str):
    for language in ("auto", "en", "phonemes"):
        try:
            tokens = OURS.tokenize(text, language=language)
        except UserError as error:
            assert "line" in str(error)
            continue
        assert all(0 <= start < end <= len(text) for start, end in tokens.spans)
        assert [start for start, _ in tokens.spans] == sorted(
            start for start, _ in tokens.spans
        ) or "," in tokens.symbols


def test_new_rows_start_near():
    rows = starting_rows(PUBLISHED, OURS.symbols)
    names = {OURS.symbols[new]: [PUBLISHED[old] for old in near] for new, near in rows.items()}
    assert names["ty"] == ["t", "Y"] and names["a"] == ["a1", "AA1"] and names["AA1"] == ["AA1"]
    assert names["[prechorus]"] == ["[verse]"]
    assert all(names.values())
    assert all(relation in PUBLISHED for relations in NEAREST.values() for relation in relations)


def test_a_model_takes_the_tokens_and_times():
    text = "[intro 2s]\n[verse 6s]\nMy love\n君\n[chorus]\nla"
    tokens = OURS.tokenize(text)
    config = SongBloomConfig(
        prior_width=32, heads=1, prior_depth=1, dit_depth=1, lyric_tokens=60, **vocabulary_settings(OURS.symbols)
    )
    conditioner = LyricConditioner(config)
    for table in (conditioner.tokens, conditioner.sentences):
        torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(0))
    assert conditioner([tokens.ids]).shape == (1, 60, 32)
    times = section_times(tokens.sections, total=12.0)
    assert times == [(0.0, 1.0), (1.0, 2.0), (2.0, 8.0), (8.0, 12.0)]
    stretched = conditioner.stretched(tokens.ids, times, resolution=0.25)
    verse = conditioner.embed(tokens.ids)[tokens.sections[1].first]
    assert torch.equal(stretched[8], verse)


@pytest.mark.parametrize("kind", ["list", "ids", "json"])
def test_a_vocabulary_from_its_file(tmp_path: Path, kind: str):
    path = tmp_path / ("vocab_g2p.json" if kind == "json" else "vocab_g2p.yaml")
    content: object = {symbol: index for index, symbol in enumerate(PUBLISHED)} if kind == "ids" else list(PUBLISHED)
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    read = vocabulary(str(path))
    assert read.symbols == PUBLISHED
    assert read.tokenize("[verse] no").ids == SONG.tokenize("[verse] no").ids


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "can be read"), ("[a, a]", "twice"), ("[a]", "has no ','"), ("{a: 1, b: 2}", "no list"), ("12", "no list")],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, content: str, says: str):
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        vocabulary(str(path))


def test_chinese_without_its_packages_names_the_command():
    program = (
        "import sys; sys.modules['jieba'] = None\n"
        "from songbloom.errors import UserError\nfrom songbloom.lyrics.vocabulary import vocabulary\n"
        "print(vocabulary('songbloom').tokenize('[verse] love').symbols)\n"
        "try: vocabulary('songbloom').tokenize('你好')\nexcept UserError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        "('[verse]', 'L', 'AH1', 'V')",
        'reading Chinese needs jieba and pypinyin: pip install "songbloom[chinese]"',
    ]


def test_japanese_vocabularies_have_no_english():
    with pytest.raises(UserError, match="no English phonemes"):
        vocabulary("ja_phonemes").tokenize("love", english="arpabet")


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "song.txt"
    path.write_text("[Verse 8s]\nMy blorptastic love\n", encoding="utf-8")
    assert main(["show", str(path), "--lyrics_vocab=songbloom"]) == 0
    out = capsys.readouterr().out
    assert "    tokens    [verse]\n    ids       1\nMy blorptastic love\n    tokens    M AY1 " in out
    assert "[verse] from token 0: 1 tag, 8 s wanted" in out
    assert "line 2, column 4: 'blorptastic' is in no dictionary" in out
    path.write_text("[verse 8]s\n[chorus 3q]", encoding="utf-8")
    assert main(["show", str(path), "--lyrics_vocab=songbloom"]) == 2
    assert "line 2, column 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[verse] HH AH0 . . L OW1 , W ER1 , , . , [chorus] a1 - b ! ?",
        "[intro] [intro] , [verse] k o N n i ch i w a , [outro]",
        "s a k u r a , s a k u r a ! cl t e",
        "h ao3 . . ",
    ],
)
def test_phonemes_are_taken_as_they_are(text: str):
    """Marks too, as the published program takes its own phonemes."""
    for language in ("auto", "phonemes"):
        tokens = OURS.tokenize(text, language=language)
        assert OURS.decode(tokens.ids) == text.strip() and not tokens.problems


def test_lines_of_phonemes_are_sentences():
    tokens = OURS.tokenize("[verse]\nk a z e .\nn o\nu t a ,\nd a\n[chorus 4s]\nh a i\n")
    assert OURS.decode(tokens.ids) == "[verse] k a z e . n o . u t a , d a , [chorus] h a i"


@pytest.mark.parametrize("words", ["a b c", "I a my by", "o o o", "sh sh", "my love", "a", "", ". ,"])
def test_words_that_are_symbols_too_are_words(words: str):
    assert language_of(words, PUBLISHED) == "en"


@pytest.mark.parametrize("end", ["\n", " \n", "\r\n", "\r", '"\n', ")\n", " -\n", "\u2028", ".\n", "!\n\n", "♪ \n \n"])
def test_a_line_ends_whatever_stands_before_its_end(end: str):
    assert sung(f"(go{end}on") == "G OW1 . AA1 N"
    assert sung(f"k a{end[-1]}z e", language="phonemes") == "k a . z e"
    assert [line.text for line in parse(f"go{end[-1]}on")[0].lines] == ["go", "on"]
