"""Scores: ours, those of music21's corpus, and every trap of the format."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from songbloom.errors import UserError
from songbloom.lyrics.musicxml import read_musicxml
from songbloom.lyrics.timing import read_timed

SCORES = Path(__file__).parent / "scores"


def note(step: str = "C", length: int = 2, words: str = "", more: str = "") -> str:
    pitch = "<rest/>" if step == "R" else f"<pitch><step>{step}</step><octave>4</octave></pitch>"
    return f"<note>{pitch}<duration>{length}</duration><voice>1</voice>{more}{words}</note>"


def lyric(text: str, number: int = 1, syllabic: str = "single") -> str:
    return f'<lyric number="{number}"><syllabic>{syllabic}</syllabic><text>{text}</text></lyric>'


def named(*parts: str) -> str:
    return "".join(f'<score-part id="P{i}"><part-name>{p}</part-name></score-part>' for i, p in enumerate(parts, 1))


def part(key: str, measure: str) -> str:
    return f'<part id="{key}"><measure number="1">{measure}</measure></part>'


def score(*measures: str, parts: str = "", names: str = named("Vocal")) -> str:
    """A score of 2 divisions a quarter, at 60 quarters a minute: one division is half a second."""
    first = '<attributes><divisions>2</divisions></attributes><direction><sound tempo="60"/></direction>'
    body = "".join(f'<measure number="{i + 1}">{first if i == 0 else ""}{m}</measure>' for i, m in enumerate(measures))
    return (
        '<?xml version="1.0"?><!DOCTYPE score-partwise PUBLIC "x" "http://localhost:1/nowhere.dtd">'
        f'<score-partwise><part-list>{names}</part-list><part id="P1">{body}</part>{parts}</score-partwise>'
    )


def read(tmp_path: Path, text: str, **more: object) -> list[tuple[str, float, float]]:
    path = tmp_path / "a.musicxml"
    path.write_text(text, encoding="utf-8")
    return [tuple(piece) for piece in read_musicxml(path, **more)]  # type: ignore[arg-type, misc]


def text_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a.musicxml"
    path.write_text(text, encoding="utf-8")
    return read_timed(path).text


def test_our_own_score():
    timed = read_timed(SCORES / "ja_song_03.musicxml")
    assert timed.text == "コーヒーとらーめん\nしんぱいないさ\n"
    assert timed.times[0] == pytest.approx((4 * 60 / 108, 5 * 60 / 108))


def test_notes_that_hold_a_syllable(tmp_path: Path):
    tie = '<tie type="start"/>'
    stop = '<tie type="stop"/>'
    measures = (
        note(words=lyric("か"), more=tie) + note(more=stop),
        note() + note("R", 1) + note("D", 1) + note(words=lyric("ぜ")),
    )
    # か is held over the bar line and by a note without words; after a rest nothing holds it any more
    assert read(tmp_path, score(*measures)) == [("か", 0.0, 3.0), ("ぜ", 4.0, 5.0)]


def test_words_and_lines(tmp_path: Path):
    words = [("Sa", "begin"), ("ku", "middle"), ("ra", "end"), ("oh", "single")]
    first = "".join(note(words=lyric(t, syllabic=s)) for t, s in words)
    second = note("R") + note(words=lyric("夢。")) + note(words=lyric("き")) + note("R", 1) + note(words=lyric("み"))
    assert text_of(tmp_path, score(first, second)) == "Sakura oh\n夢。\nきみ"


def test_elisions_breaths_and_sections(tmp_path: Path):
    elided = "<lyric><text>o</text><elision>‿</elision><text>a</text></lyric>"
    glued = "<lyric><text>や</text><elision/><text>ま</text></lyric>"
    mark = "<direction><direction-type><rehearsal>サビ</rehearsal></direction-type></direction>"
    measures = note(words=elided) + note(words=lyric("br")) + mark + note(words=glued), note("R", 8)
    assert text_of(tmp_path, score(*measures)) == "o a\n[chorus]\nやま\n"


def test_tempo_changes_within_a_measure_and_from_another_part(tmp_path: Path):
    faster = '<direction><sound tempo="120"/></direction>'
    metronome = (
        "<direction><direction-type><metronome><beat-unit>quarter</beat-unit><beat-unit-dot/>"
        "<per-minute>20</per-minute></metronome></direction-type></direction>"
    )
    singing = score(
        note(words=lyric("a")) + faster + note(words=lyric("b")),
        note(words=lyric("c")),
        note(words=lyric("d")),
        names=named("Vocal", "Piano"),
        parts='<part id="P2"><measure number="1"><note><rest/><duration>2</duration></note></measure>'
        f'<measure number="2"/><measure number="3">{metronome}</measure></part>',
    )
    assert read(tmp_path, singing) == [("a", 0.0, 1.0), ("b", 1.0, 1.5), ("c", 1.5, 2.0), ("d", 2.0, 4.0)]


def test_chords_grace_notes_and_voices(tmp_path: Path):
    grace = "<note><grace/><pitch><step>C</step><octave>4</octave></pitch><voice>1</voice></note>"
    chord = note(more="<chord/>").replace("<pitch>", "<chord/><pitch>", 1)
    other = "<backup><duration>4</duration></backup>" + note("E", 4).replace("<voice>1", "<voice>2")
    measures = (
        grace + note(words=lyric("a")) + chord + note(words=lyric("b")) + other,
        note("R") + note(words=lyric("c")),
    )
    assert read(tmp_path, score(*measures)) == [("a", 0.0, 1.0), ("b", 1.0, 2.0), ("c", 3.0, 4.0)]


def repeat(direction: str) -> str:
    return f'<barline><repeat direction="{direction}"/></barline>'


def ending(numbers: str, kind: str) -> str:
    return f'<barline><ending number="{numbers}" type="{kind}"/></barline>'


def test_repeats_sing_their_verses(tmp_path: Path):
    both = note(words=lyric("a1") + lyric("a2", 2))
    measures = (
        note(words=lyric("x")),
        repeat("forward") + both,
        ending("1", "start") + note(words=lyric("b")) + ending("1", "stop") + repeat("backward"),
        ending("2", "start") + note(words=lyric("c")) + ending("2", "discontinue"),
        note(words=lyric("y") + lyric("y2", 2)),
    )
    found = read(tmp_path, score(*measures))
    assert [(text, start) for text, start, _ in found] == [
        ("x", 0.0), ("a1", 1.0), ("b", 2.0), ("a2", 3.0), ("c", 4.0), ("y", 5.0),
    ]  # fmt: skip
    once = read(tmp_path, score(*measures), repeats=False)
    assert [text for text, *_ in once] == ["x", "a1", "b", "c", "y"]


def test_a_repeat_from_the_start_three_times(tmp_path: Path):
    again = '<barline><repeat direction="backward" times="3"/></barline>'
    measures = note(words=lyric("a") + lyric("b", 2) + lyric("c", 3)) + again, note(words=lyric("z"))
    assert [text for text, *_ in read(tmp_path, score(*measures))] == ["a", "b", "c", "z"]


def test_the_part_with_words_is_chosen(tmp_path: Path):
    names = named("Flute", "Lead", "Choir")
    choir = note(words=lyric("la")) * 3
    parts = part("P2", note(words=lyric("a"))) + part("P3", choir)
    text = score(note(), parts=parts, names=names)
    assert [t for t, *_ in read(tmp_path, text)] == ["a"]  # a voice before what has more words
    assert len(read(tmp_path, text, part="choir")) == 3
    with pytest.raises(UserError, match=r"no part 'Bass'; there are P1 \(Flute\), P2 \(Lead\), P3 \(Choir\)"):
        read(tmp_path, text, part="Bass")
    with pytest.raises(UserError, match="no words"):
        read(tmp_path, text, part="Flute")


def test_timewise_scores_and_namespaces(tmp_path: Path):
    measure = f'<measure number="1"><part id="P1">{note(words=lyric("a"))}</part></measure>'
    assert read(tmp_path, f'<score-timewise xmlns="urn:x"><part-list/>{measure}</score-timewise>') == [("a", 0.0, 1.0)]


def test_compressed_scores(tmp_path: Path):
    path = tmp_path / "a.mxl"
    container = '<container><rootfiles><rootfile full-path="folder/b.xml"/></rootfiles></container>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("folder/b.xml", score(note(words=lyric("夢"))))
    assert [p.text for p in read_timed(path)] == ["夢"]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"a\.mxl: is no compressed MusicXML"):
        read_timed(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=r"a\.mxl: is no compressed MusicXML"):
        read_timed(path)


def sung(mark: str, text: str = "", *, more: str = "") -> str:
    """A measure of a whole note, with what stands before it and, in ``more``, behind it."""
    direction = f"<direction>{text}{mark}</direction>" if mark or text else ""
    return direction + note(length=8, words=more)


def words_of(text: str) -> str:
    return f"<direction-type><words>{text}</words></direction-type>"


SIGN = "<direction-type><{0}/></direction-type>"


@pytest.mark.parametrize(
    ("marks", "played"),
    [
        ({3: '<sound fine="yes"/>', 5: '<sound dacapo="yes"/>'}, "あいうえおあいう"),
        ({3: words_of("Fine"), 5: words_of("D.C. al Fine")}, "あいうえおあいう"),
        ({2: '<sound segno="s"/>', 5: '<sound dalsegno="s"/>'}, "あいうえおいうえお"),
        ({2: '<sound segno="s"/>', 3: '<sound tocoda="c"/>', 4: '<sound dalsegno="s"/>', 5: '<sound coda="c"/>'},
         "あいうえいうお"),
        ({2: SIGN.format("segno"), 3: words_of("To Coda"), 4: words_of("D.S. al Coda"), 5: words_of("Coda")},
         "あいうえいうお"),
        ({3: SIGN.format("coda"), 4: words_of("D.C. al Coda"), 5: SIGN.format("coda")}, "あいうえあいうお"),
        ({4: words_of("D.S.")}, "あいうえお"),  # to a segno that is not there
        ({3: '<sound dacapo="yes"/>', 5: '<sound dacapo="yes"/>'}, "あいうあいうえおあいうえお"),
        ({5: words_of("Coda")}, "あいうえお"),
    ],
)  # fmt: skip
def test_jumps(tmp_path: Path, marks: dict[int, str], played: str):
    measures = [sung(marks.get(i, ""), more=lyric(word)) for i, word in enumerate("あいうえお", 1)]
    found = read(tmp_path, score(*measures))
    assert "".join(word for word, *_ in found) == played
    assert [start for _, start, _ in found] == [4.0 * index for index in range(len(found))]
    path = tmp_path / "a.musicxml"
    assert "".join(piece.text for piece in read_musicxml(path, repeats=False)) == "あいうえお"


def test_a_jump_waits_for_repeats_and_takes_the_last_ending_and_the_next_verse(tmp_path: Path):
    again = '<barline location="right"><repeat direction="backward"/></barline>'
    ending = '<barline location="left"><ending number="{0}" type="start"/></barline>'
    stop = '<barline location="right"><ending number="{0}" type="stop"/>{1}</barline>'
    measures = (
        note(length=8, words=lyric("あ") + lyric("い", 2) + lyric("う", 3)),
        ending.format(1) + note(length=8, words=lyric("か")) + stop.format(1, '<repeat direction="backward"/>'),
        ending.format(2) + note(length=8, words=lyric("き")) + stop.format(2, ""),
        note(length=8, words=lyric("さ")) + again + '<direction><sound dacapo="yes"/></direction>',
        note(length=8, words=lyric("た")),
    )
    played = "".join(word for word, *_ in read(tmp_path, score(*measures)))
    assert played == "あかいきささ" + "うきさた"


def test_words_of_other_verses_and_voices(tmp_path: Path):
    again = '<barline location="right"><repeat direction="backward"/></barline>'
    first = '<barline location="left"><repeat direction="forward"/></barline>'
    both = lyric("さ") + lyric("は", 2)
    numbered = both.replace('number="', 'number="part1verse')
    for words in (both, numbered):
        measure = first + note(words=words) + note(words=lyric("る", 2)) + again
        assert [word for word, *_ in read(tmp_path, score(measure))] == ["さ", "は", "る"]
    only = first + note(words=lyric("は", 2)) + again  # a score without a first verse
    assert [word for word, *_ in read(tmp_path, score(only))] == ["は", "は"]
    back = "<backup><duration>4</duration></backup>"
    lower = [note(words=lyric(word)).replace("<voice>1", "<voice>2") for word in "よ"]
    measure = note(words=lyric("さ")) + note(words=lyric("く")) + back + "".join(lower)
    alone = note(words=lyric("ら")).replace("<voice>1", "<voice>2")
    assert [word for word, *_ in read(tmp_path, score(measure, alone))] == ["さ", "く", "ら"]
    chord = note(words=lyric("さ")).replace("<pitch>", "<chord/><pitch>", 1)
    assert [word for word, *_ in read(tmp_path, score(note(words=lyric("さ")) + chord))] == ["さ"]
    cue = note(words=lyric("く")).replace("<note>", "<note><cue/>")
    assert read(tmp_path, score(note(words=lyric("さ")) + cue)) == [("さ", 0.0, 1.0)]


def test_what_japanese_scores_write(tmp_path: Path):
    elided = "<lyric><text>あ</text><elision>‿</elision><text>い</text></lyric>"
    held = "".join(note(words=lyric(sign)) for sign in "_＿〜―")
    gap = "<forward><duration>2</duration></forward>"
    measure = note(words=elided) + held + note(words=lyric("ｶﾞ")) + gap + note(words=lyric("ー"))
    assert text_of(tmp_path, score(measure)) == "あいｶﾞ\nー"
    assert read(tmp_path, score(measure))[0] == ("あい", 0.0, 5.0)
    for encoding, name in (("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16")):
        text = score(note(words=lyric("歌"))).replace('"1.0"', f'"1.0" encoding="{name}"', 1)
        (tmp_path / "a.musicxml").write_bytes(text.encode(encoding))
        assert read_timed(tmp_path / "a.musicxml").text == "歌"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<score-partwise>\n<part>\n</score-partwise>", r"a\.musicxml, line 3: is no XML"),
        ("", "is no XML"),
        ("<html/>", "no MusicXML score .it is a html"),
        ("<score-partwise/>", "has no parts"),
        (score(note()), "part 'Vocal' has no words"),
        (score(note(words=lyric("a")).replace("<duration>2", "<duration>two")), "measure 1: 'two' is no number"),
        (score(note(words=lyric("a")).replace("<duration>2", "<duration>nan")), "measure 1: 'nan' is no number"),
        ("<?xml version='1.0' encoding='klingon'?>\n<score-partwise/>", "cannot be read as XML .*save it as UTF-8"),
        ("<?xml version='1.0' encoding='shift_jis'?>\n<a>さ</a>", "cannot be read as XML .*save it as UTF-8"),
        ("<?xml version='1.0' encoding='shift_jis'?>\n<score-partwise/>", "has no parts"),
        (score(note(words=lyric("a"), length=-2)), "measure 1: a duration is below 0"),
    ],
)
def test_broken_scores(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_damaged_archive(tmp_path: Path):
    path = tmp_path / "a.mxl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", score(note(words=lyric("a"))))
    content = path.read_bytes()
    for damaged in (content[:40] + b"\xff" * 40 + content[80:], content[:60]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.mxl: is no compressed MusicXML"):
            read_timed(path)


def test_nothing_outside_is_read(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    entity = f'<!DOCTYPE score-partwise [<!ENTITY x SYSTEM "file://{secret}">]>'
    with pytest.raises(UserError, match="no XML"):
        read(tmp_path, entity + score(note(words=lyric("&x;"))).split('dtd">')[1])


CORPUS = (  # small scores that others wrote, with words in the second line, melismas and repeats
    "bach/bwv10.7.mxl",
    "bach/bwv177.4.mxl",
    "bach/bwv324.mxl",
    "bach/bwv325.mxl",
)


@pytest.mark.parametrize("name", CORPUS)
def test_scores_of_others_as_music21_reads_them(name: str):
    music21 = pytest.importorskip("music21")
    path = Path(music21.__file__).parent / "corpus" / name
    stream = music21.converter.parse(path)
    ours = read_musicxml(path, repeats=False, part=stream.parts[0].partName)
    expected = []
    for element in stream.parts[0].flatten().notes:
        lines = sorted((line for line in element.lyrics if (line.rawText or "").strip()), key=lambda line: line.number)
        if lines:
            expected.append((lines[0].text.strip(), float(element.offset) / 2))  # 120 quarters a minute
    assert [piece.text for piece in ours] == [text for text, _ in expected]
    assert [piece.start for piece in ours] == pytest.approx([start for _, start in expected], abs=1e-3)
    followed = read_musicxml(path)
    assert list(followed.times) == sorted(followed.times)
    assert len(followed.times) >= len(ours.times)


@pytest.mark.slow
def test_scores_of_music21_are_read_or_have_no_words():
    music21 = pytest.importorskip("music21")
    corpus = Path(music21.__file__).parent / "corpus"
    read_well = 0
    for path in sorted(p for p in corpus.rglob("*") if p.suffix in (".mxl", ".xml", ".musicxml"))[::6]:
        try:
            timed = read_musicxml(path)
        except UserError as error:
            assert "has no words" in str(error), error
            continue
        read_well += 1
        assert all(end >= start >= 0 for start, end in timed.times), path
        assert [start for start, _ in timed.times] == sorted(start for start, _ in timed.times), path
    assert read_well >= 75


BREATH_MARK = "<notations><articulations><breath-mark/></articulations></notations>"


def test_breaths_end_a_line_and_hold_nothing(tmp_path: Path):
    measures = (
        note(words=lyric("さ")) + note(words=lyric("く"), more=BREATH_MARK),
        note(words=lyric("ら")) + note(words=lyric("br")),
        note(words=lyric("は")) + note(more=BREATH_MARK) + note(words=lyric("な")),
    )
    assert text_of(tmp_path, score(*measures)) == "さく\nら\nは\nな"
    assert read(tmp_path, score(*measures))[2:] == [("ら", 2.0, 3.0), ("は", 4.0, 6.0), ("な", 6.0, 7.0)]


def test_a_tied_note_whose_word_is_written_again(tmp_path: Path):
    tie, stop = '<tie type="start"/>', '<tie type="stop"/>'
    measures = (
        note(words=lyric("か"), more=tie) + note(words=lyric("ー"), more=stop),
        note(words=lyric("ぜ"), more=tie) + note(words=lyric("ぜ"), more=stop) + note(words=lyric("ー")),
    )
    # a tied ー is the same tone; one with a tone of its own is sung
    assert read(tmp_path, score(*measures)) == [("か", 0.0, 2.0), ("ぜ", 2.0, 4.0), ("ー", 4.0, 5.0)]


def test_sokuon_and_long_vowels_on_notes_of_their_own(tmp_path: Path):
    words = [*"さっぽろ", *"コーヒー"]
    assert text_of(tmp_path, score("".join(note(length=1, words=lyric(word)) for word in words))) == "さっぽろコーヒー"
    assert text_of(tmp_path, score(note(words=lyric("さっ")) + note(words=lyric("ぽ")))) == "さっぽ"


def test_a_repeat_begins_a_line(tmp_path: Path):
    assert text_of(tmp_path, score(note(words=lyric("a") + lyric("b", 2)) + repeat("backward"))) == "a\nb"


def test_rests_that_end_a_line(tmp_path: Path):
    path = tmp_path / "a.musicxml"
    path.write_text(score(note(words=lyric("か")) + note("R", 2) + note(words=lyric("ぜ"))), encoding="utf-8")
    assert [read_musicxml(path, phrase_beats=beats).text for beats in (0.5, 1.0, 2.0)] == ["か\nぜ", "か\nぜ", "かぜ"]


def test_vocal_percussion_is_no_lead_vocal(tmp_path: Path):
    names = named("Soprano", "Vocal percussion", "Lead vocal", "Chorus vocals")
    beats = note(words=lyric("ts")) * 5
    parts = part("P2", beats) + part("P3", note(words=lyric("さ"))) + part("P4", note(words=lyric("ら")) * 2)
    assert text_of(tmp_path, score(note(words=lyric("du")) * 3, names=names, parts=parts)) == "さ"
    names = named("Soprano", "Vocal percussion")
    assert text_of(tmp_path, score(note(words=lyric("du")), names=names, parts=part("P2", beats))) == "du"
