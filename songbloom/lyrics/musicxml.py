"""Words and their times in MusicXML scores: tempo, ties, melismas, elisions, repeats with verses, jumps, ``.mxl``.

Read with the standard library's parser: nothing is fetched, and entities are not expanded from outside.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from songbloom.errors import UserError
from songbloom.lyrics.morae import is_kana
from songbloom.lyrics.score import Measure, Note, Part, unrolled
from songbloom.lyrics.tags import tag_of
from songbloom.lyrics.timed_text import Builder, TimedText

DEFAULT_TEMPO = 120.0
"""Quarter notes a minute where a score has no tempo."""
_BREATHS = frozenset(("br", "息", "R"))
_HELD = frozenset(("", *"-_~＿〜～‐–—―－"))  # written under notes that go on with the syllable before
_LONG = ("ー",)
_BEATS = {"whole": 4.0, "half": 2.0, "quarter": 1.0, "eighth": 0.5, "16th": 0.25, "breve": 8.0}
_LEAD_NAMES = ("lead", "melody", "main", "solo", "リード", "メロディ", "主旋律")
_VOICE_NAMES = ("vocal", "voice", "sing", "ボーカル", "ヴォーカル", "歌")
_RHYTHM_NAMES = ("percussion", "drum", "パーカッション", "ドラム")
_SENTENCE_ENDS = "。！？!?"
_JUMPS = (
    ("jump", re.compile(r"(?i)(d\.?\s*[cs]\b|da capo|dal segno)")),
    ("to_coda", re.compile(r"(?i)to\s+coda\b")),
    ("fine", re.compile(r"(?i)fine\.?$")),
    ("coda_sign", re.compile(r"(?i)coda$")),
)
"""Directions that tell where to go on, as they are written where a score has no ``sound`` for them."""
_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""")
_MOST_BYTES = 64 << 20
_BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),  # the last of one with a password
    *(KeyError, LookupError, ValueError, ElementTree.ParseError),  # of what lies inside
)


def read_musicxml(
    path: str | Path, *, part: str | None = None, repeats: bool = True, phrase_beats: float = 1.0
) -> TimedText:
    """The words of one part and when they are sung.

    Args:
        path: a score, ``.musicxml``, ``.xml`` or compressed ``.mxl``.
        part: the part's id or name; without it the one with the most words, a leading voice before another voice, that
            before an instrument, and vocal percussion last.
        repeats: follow repeats, endings, D.C. and D.S., with the verse whose number is that of the pass; without, each
            measure once and verse 1.
        phrase_beats: a rest of so many beats ends a line.

    Returns:
        Words with a line end after each sentence, at rests, breath marks and notes whose word is a breath (``br``,
        ``息``), and where a repeat goes back; rehearsal marks that name a section as structure tags.

    Raises:
        UserError: with file and, where known, line: it is no MusicXML, or no part has words.
    """
    path = Path(path)
    root = _parse(path)
    parts = _parts(root, path)
    chosen = _choose(parts, part, path)
    measures = max(len(p.measures) for p in parts)
    order = unrolled(parts, measures) if repeats else [(index, 1) for index in range(measures)]
    timed = _sing(chosen, parts, order, phrase_beats)
    if not timed.spans:
        raise UserError(f"{path}: part {chosen.name!r} has no words; is it the right score?")
    return timed


def _parse(path: Path) -> Element:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix.lower() == ".mxl" or content[:2] == b"PK":
        content = _unzip(path)
    try:
        root = ElementTree.fromstring(_decoded(content))
    except ElementTree.ParseError as error:
        raise UserError(f"{path}, line {error.position[0]}: is no XML ({error})") from error
    except (LookupError, ValueError) as error:  # an encoding that the parser does not have
        raise UserError(f"{path}: cannot be read as XML ({error}); save it as UTF-8") from error
    for element in root.iter():  # some programs write a namespace
        element.tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else element.tag
    if root.tag not in ("score-partwise", "score-timewise"):
        raise UserError(f"{path}: is XML, but no MusicXML score (it is a {root.tag})")
    return root


def _decoded(content: bytes) -> bytes | str:
    """XML in Shift JIS or EUC-JP as text, which the parser does not read; other XML as it is."""
    declared = _DECLARED.match(content)
    name = declared[1].decode().lower() if declared else ""
    if declared is None or not name.startswith(("shift", "x-sjis", "sjis", "windows-31j", "cp932", "euc-jp")):
        return content
    return content[declared.end() :].decode("euc_jp" if name.startswith("euc") else "cp932").strip()


def _unzip(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            wanted = None
            if "META-INF/container.xml" in names:
                container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
                wanted = next((e.get("full-path") for e in container.iter() if e.tag.endswith("rootfile")), None)
            if wanted is None:
                scores = (n for n in names if n.endswith((".xml", ".musicxml")) and not n.startswith("META-INF"))
                wanted = next(scores, "")
            if archive.getinfo(wanted).file_size > _MOST_BYTES:
                raise UserError(f"{path}: the score inside is larger than {_MOST_BYTES >> 20} MiB")
            return archive.read(wanted)
    except _BROKEN_ARCHIVE as error:
        raise UserError(f"{path}: is no compressed MusicXML ({error})") from error


def _parts(root: Element, path: Path) -> list[Part]:
    names = {p.get("id", ""): (p.findtext("part-name") or "").strip() for p in root.iter("score-part")}
    columns: dict[str, list[Element]] = {}
    if root.tag == "score-partwise":
        for element in root.findall("part"):
            columns[element.get("id", "")] = element.findall("measure")
    else:
        for measure in root.findall("measure"):
            for element in measure.findall("part"):
                columns.setdefault(element.get("id", ""), []).append(element)
    if not columns:
        raise UserError(f"{path}: the score has no parts")
    parts = []
    for key, measures in columns.items():
        reader = _PartReader(path)
        parts.append(Part(key, names.get(key, ""), [reader.measure(element) for element in measures]))
    return parts


class _PartReader:
    """Reads the measures of a part one after another; ``divisions`` last until they change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._divisions = 1.0

    def measure(self, element: Element) -> Measure:
        measure = Measure()
        where, last = 0.0, 0.0
        for child in element:
            if child.tag == "attributes" and child.find("divisions") is not None:
                self._divisions = self._number(child.findtext("divisions"), element) or 1.0
            elif child.tag == "note":
                length = 0.0 if child.find("grace") is not None else self._length(child, element)
                start = last if child.find("chord") is not None else where
                measure.notes.append(_of_chord(_note(child, start, length), child, measure))
                if child.find("chord") is None:
                    last, where = where, where + length
            elif child.tag in ("backup", "forward"):
                where += self._length(child, element) * (1 if child.tag == "forward" else -1)
                where = max(where, 0.0)
            elif child.tag in ("direction", "sound"):
                self._direction(child, where, measure)
            elif child.tag == "barline":
                _barline(child, measure)
            measure.length = max(measure.length, where)
        return measure

    def _direction(self, element: Element, where: float, measure: Measure) -> None:
        sound = element if element.tag == "sound" else element.find("sound")
        if element.find("offset") is not None:
            where = max(where + self._number(element.findtext("offset"), element) / self._divisions, 0.0)
        tempo = None if sound is None else sound.get("tempo")
        if tempo is not None:
            measure.tempos.append((where, self._number(tempo, element)))
        else:
            for metronome in element.iter("metronome"):
                beat = _BEATS.get(metronome.findtext("beat-unit") or "", 0.0)
                beat *= 1.5 if metronome.find("beat-unit-dot") is not None else 1.0
                rate = (metronome.findtext("per-minute") or "").strip().strip("ca.= ")
                if beat and rate.replace(".", "", 1).isdigit():
                    measure.tempos.append((where, float(rate) * beat))
        for words in (*element.iter("rehearsal"), *element.iter("words")):
            measure.marks.append((where, (words.text or "").strip()))
        _jumps(element, sound, measure)

    def _length(self, element: Element, measure: Element) -> float:
        length = self._number(element.findtext("duration") or "0", measure) / self._divisions
        if length < 0:
            raise UserError(f"{self._path}, measure {measure.get('number', '?')}: a duration is below 0")
        return length

    def _number(self, text: str | None, measure: Element) -> float:
        try:
            number = float(text or "0")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self._path}, measure {measure.get('number', '?')}: {text!r} is no number")
        return number


def _jumps(element: Element, sound: Element | None, measure: Measure) -> None:
    """Notes what a direction says about where to go on: as ``sound``, in words, or as a sign."""
    told = () if sound is None else [name for name, value in sound.items() if value != "no"]
    for name in ("dacapo", "dalsegno"):
        measure.jump = name if name in told else measure.jump
    for name, attribute in (("segno", "segno"), ("fine", "fine"), ("tocoda", "to_coda"), ("coda", "coda")):
        if name in told:
            setattr(measure, attribute, True)
    measure.segno |= next(element.iter("segno"), None) is not None
    if {"dacapo", "dalsegno", "fine", "tocoda", "coda"} & set(told):
        return
    measure.coda_sign |= next(element.iter("coda"), None) is not None
    for words in element.iter("words"):
        text = (words.text or "").strip()
        name = next((name for name, pattern in _JUMPS if pattern.match(text)), "")
        if name == "jump":
            measure.jump = "dacapo" if re.match(r"(?i)(d\.?\s*c|da)\b", text) else "dalsegno"
        elif name:
            setattr(measure, name, True)


def _of_chord(note: Note, element: Element, measure: Measure) -> Note:
    """A note of a chord without words, if another note of the chord has them."""
    if element.find("chord") is None or not any(n.words and n.start == note.start for n in measure.notes):
        return note
    return note._replace(words={})


def _note(element: Element, start: float, length: float) -> Note:
    words: dict[str, tuple[str, str]] = {}
    breath = False
    for lyric in element.findall("lyric"):
        text = "".join(_lyric_texts(lyric)).strip()
        text = "".join(text.split()) if _is_japanese(text) else text
        breath = breath or text in _BREATHS
        if text not in _BREATHS | _HELD:
            words.setdefault(_verse(lyric), (text, _syllabic(lyric)))
    is_rest = element.find("rest") is not None or element.find("cue") is not None  # cues are another part's
    ties = (*element.findall("tie"), *element.findall("notations/tied"))
    tied = any(tie.get("type") == "stop" for tie in ties)
    return Note(
        start,
        length,
        is_rest,
        tied,
        element.findtext("voice") or "1",
        {} if is_rest else words,
        breath=breath and not words,
        ends_phrase=element.find("notations/articulations/breath-mark") is not None,
    )


def _lyric_texts(lyric: Element) -> Iterator[str]:
    """Syllables on one note, with what joins them: a blank between two words, nothing within one."""
    for child in lyric:
        if child.tag == "text":
            yield child.text or ""
        elif child.tag == "elision":
            yield " " if (child.text or "").strip() in ("", "‿", "_") and (child.text or "") else child.text or ""


def _verse(lyric: Element) -> str:
    """The number of a lyric's verse, which some programs write as ``part1verse2``."""
    name = lyric.get("number") or "1"
    number = re.search(r"\d+$", name)
    return str(int(number[0])) if number else name


def _syllabic(lyric: Element) -> str:
    kinds = [element.text or "" for element in lyric.findall("syllabic")]
    return kinds[-1] if kinds else "single"


def _barline(element: Element, measure: Measure) -> None:
    repeat = element.find("repeat")
    if repeat is not None and repeat.get("direction") == "forward":
        measure.repeat_start = True
    elif repeat is not None:
        times = repeat.get("times") or ""
        measure.repeat_end = int(times) if times.isdigit() else 2
    ending = element.find("ending")
    if ending is not None:
        numbers = tuple(int(n) for n in (ending.get("number") or "").replace(" ", "").split(",") if n.isdigit())
        if ending.get("type") == "start":
            measure.ending = numbers
        else:
            measure.ending_stops = True


def _choose(parts: list[Part], wanted: str | None, path: Path) -> Part:
    if wanted is not None:
        for part in parts:
            if wanted.lower() in (part.key.lower(), part.name.lower()):
                return part
        there = ", ".join(f"{p.key} ({p.name})" for p in parts)
        raise UserError(f"{path}: no part {wanted!r}; there are {there}")

    def rank(part: Part) -> tuple[bool, int, int]:
        words = sum(bool(note.words) for measure in part.measures for note in measure.notes)
        groups = enumerate((_RHYTHM_NAMES, _LEAD_NAMES, _VOICE_NAMES))
        named = next((kind for kind, names in groups if any(name in part.name.lower() for name in names)), 3)
        return words > 0, (-1, 2, 1, 0)[named], words

    return max(parts, key=rank)


def _sing(chosen: Part, parts: list[Part], order: list[tuple[int, int]], phrase_beats: float) -> TimedText:
    """Walk through the measures as they are played and note when each syllable is sung."""
    singer = _Singer(phrase_beats)
    now, tempo = 0.0, DEFAULT_TEMPO
    opening = [change for part in parts for measure in part.measures[:2] for change in measure.tempos if change[1] > 0]
    if opening:
        tempo = opening[0][1]  # a score may tell its tempo after an upbeat
    before = -1
    with_words = [note for measure in chosen.measures for note in measure.notes if note.words]
    passes: dict[int, set[int]] = {}
    for index, verse in order if any("1" in note.words for note in with_words) else ():
        passes.setdefault(index, set()).add(verse)
    voices = Counter(note.voice for note in with_words)
    lead = voices.most_common(1)[0][0] if voices else "1"
    for index, verse in order:
        if index <= before:
            singer.turn_back()
        before = index
        here = [part.measures[index] for part in parts if index < len(part.measures)]
        changes = sorted(change for measure in here for change in measure.tempos if change[1] > 0)
        length = _length(here)
        clock = _Clock(now, tempo, changes)
        marks = {mark for measure in here for mark in measure.marks}
        events: list[tuple[float, int, Note | str]] = [(where, 0, name) for where, name in sorted(marks)]
        if index < len(chosen.measures):
            notes = _one_voice(chosen.measures[index].notes, lead)
            events += [(note.start, 1, _in_pass(note, verse, passes.get(index, ()))) for note in notes]
        for where, _, event in sorted(events, key=lambda e: e[:2]):
            if isinstance(event, str):
                singer.mark(event)
            else:
                singer.note(event, clock.seconds(where), clock.seconds(where + event.length), clock.beat(where))
        now = clock.seconds(length)
        tempo = changes[-1][1] if changes else tempo
    return singer.builder.build()


def _one_voice(notes: list[Note], lead: str) -> list[Note]:
    """The notes of a measure without words that another voice sings at the same time as the leading one."""
    busy = [(n.start, n.start + n.length) for n in notes if n.voice == lead and not n.rest and n.length]

    def beside(note: Note) -> bool:
        return any(start < note.start + max(note.length, 1e-6) and note.start < end - 1e-6 for start, end in busy)

    return [note for note in notes if note.voice == lead or not note.words or not beside(note)]


def _in_pass(note: Note, verse: int, passes: Collection[int]) -> Note:
    """A note with the words of one pass alone, as verse 1.

    Where it has none for this pass, verse 1 is sung again; but words of another pass of this measure are not.
    """
    words = note.words.get(str(verse)) or note.words.get("1")
    others = {str(number) for number in passes}
    words = words or next((said for number, said in note.words.items() if number not in others), None)
    return note._replace(words={"1": words} if words else {})


def _length(measures: list[Measure]) -> float:
    """What most parts say of a measure's length: some programs write rests that are too long."""
    lengths = Counter(round(measure.length, 6) for measure in measures if measure.length > 0)
    return max(lengths, key=lambda length: (lengths[length], length), default=0.0)


class _Clock:
    """Seconds of a place in a measure that begins at ``start``, with tempo changes inside."""

    def __init__(self, start: float, tempo: float, changes: list[tuple[float, float]]) -> None:
        self._start = start
        self._steps = [(0.0, tempo), *changes]

    def seconds(self, where: float) -> float:
        passed = self._start
        for index, (begin, tempo) in enumerate(self._steps):
            end = self._steps[index + 1][0] if index + 1 < len(self._steps) else float("inf")
            passed += max(min(where, end) - begin, 0.0) * 60.0 / tempo
        return passed

    def beat(self, where: float) -> float:
        """Seconds of a quarter note at a place."""
        return 60.0 / next(tempo for begin, tempo in reversed(self._steps) if begin <= where or begin == 0.0)


class _Singer:
    """Joins syllables to words and lines."""

    def __init__(self, phrase_beats: float) -> None:
        self.builder = Builder()
        self._phrase_beats = phrase_beats
        self._voice: str | None = None
        self._end = 0.0
        self._within_word = False
        self._open = False  # the last syllable may be held by notes without words
        self._rest = 0.0
        self._last = ""

    def mark(self, name: str) -> None:
        """A section's name above the staff."""
        tag = tag_of(name)
        if tag is not None:
            self._break()
            self.builder.add(tag + "\n")

    def turn_back(self) -> None:
        """A repeat begins again; what is sung there is another line."""
        self._break()

    def note(self, note: Note, start: float, end: float, beat: float) -> None:
        """One note or rest, ``start`` to ``end`` seconds; ``beat``: seconds of a quarter note there."""
        if note.rest or note.breath:
            if note.voice == self._voice and start >= self._end - 1e-6:
                self._open = False
                self._rest += end - start
                if note.breath or self._rest >= beat * self._phrase_beats * 0.999:
                    self._break()
            return
        words = note.words.get("1")
        if words is None or self._held(note, words[0]):
            if self._open and note.voice == self._voice and note.length and abs(start - self._end) < 0.02:
                self.builder.stretch(end)  # tied, or a melisma
                self._end = end
                if note.ends_phrase:
                    self._break()
            return
        text, syllabic = words
        silent = self._voice is not None and start - self._end >= beat * self._phrase_beats * 0.999
        if silent and not self._within_word:
            self._break()  # some programs write nothing where nothing is sung
        if not self._within_word and not self.builder.ends_with("\n") and not _is_japanese(text):
            self.builder.add(" ")
        self.builder.add(text, start, end)
        self._within_word = syllabic in ("begin", "middle")
        self._voice, self._end, self._open, self._rest, self._last = note.voice, end, True, 0.0, text
        if text[-1] in _SENTENCE_ENDS or note.ends_phrase:
            self._break()

    def _held(self, note: Note, text: str) -> bool:
        """Whether a note goes on with the syllable before, which some programs write under it once more."""
        return note.tied and self._open and (text in _LONG or text == self._last)

    def _break(self) -> None:
        if not self.builder.ends_with("\n"):
            self.builder.add("\n")
        self._within_word = False


def _is_japanese(text: str) -> bool:
    return any(is_kana(c) or "\u3400" <= c <= "\u9fff" for c in unicodedata.normalize("NFKC", text))
