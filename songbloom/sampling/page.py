"""The web page of a run: every item with its player, its picture and, where there are any, its words.

One HTML file with styles, script and data inside and with the sound and pictures as files beside it. It asks nothing
of the network, so it works opened as a file and behind any web server. Everything that a person typed is escaped.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from songbloom import __version__
from songbloom.files import write_text

WAVE_BINS = 640  # columns of the waveform; about as many as a page is wide
WAVE_HEIGHT = 100
LARGEST_TICKS = 6  # time marks under a picture, at most; more collide on a phone
_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True)
class PageWord:
    """A piece of the lyrics that is lit as one, a syllable say.

    Attributes:
        text: as written, with its spaces; a line ends at each newline in it.
        start, end: when it is sung, in seconds; None where nobody knows.
        reading: shown small above it; empty for none.
    """

    text: str
    start: float | None = None
    end: float | None = None
    reading: str = ""


@dataclass(frozen=True)
class PageCommand:
    """A command to copy.

    Attributes:
        word: what it does, a key of ``page_assets/words.json``; the same with ``_note`` tells more.
        text: all of it but the folder to write to.
        name: that folder.
        seconds: of the item that it lengthens by as much again; the script cuts it where the player stands. 0 for a
            command that does not lengthen.
    """

    word: str
    text: str
    name: str
    seconds: float = 0.0

    @property
    def whole(self) -> str:
        """As typed in a shell, to go on from the item's end."""
        longer = f" --sample_length_in_seconds={2 * self.seconds:.2f}" if self.seconds else ""
        return f"{self.text}{longer} {shlex.quote(f'--name={self.name}')}"


@dataclass(frozen=True)
class PageItem:
    """One item of a level.

    Attributes:
        index: its number in the run.
        audio: the WAV file, relative to the folder of the level.
        seconds: its length.
        wave: the waveform (:func:`wave_path`).
        picture: the spectrogram's file, relative to the folder of the level; empty for none.
        artist, genre: who sings and in what style; empty where the model is told of neither.
        words: the lyrics, piece by piece and with all that stands between them; empty for none.
        guessed: the words' times come from a head that does not follow the words.
        attention: the picture's file of what the model looked at while it sang (time to the right, the first word at
            the top), relative to the folder of the level; empty for none.
        files: more files to take away, as (word, file) pairs; words are keys of ``page_assets/words.json``.
        seed: what its random numbers come from; empty where nobody knows.
        commands: that go on from it.
        asked: the seconds that it was to have, where the model ended it before; 0 elsewhere.
    """

    index: int
    audio: str
    seconds: float
    wave: str
    picture: str = ""
    artist: str = ""
    genre: str = ""
    words: Sequence[PageWord] = ()
    guessed: bool = False
    attention: str = ""
    files: Sequence[tuple[str, str]] = ()
    seed: str = ""
    commands: Sequence[PageCommand] = ()
    asked: float = 0.0


@dataclass(frozen=True)
class LevelPage:
    """What the page of one level shows.

    Attributes:
        title: the run's name.
        level: 0 is the finest.
        items: in order.
        facts: (word, value) pairs for the head of the page; words are keys of ``page_assets/words.json``.
        settings: (word, value) pairs for the table of settings.
        codes: the file of codes, relative to the folder of the level.
        tree: the script with the run's family (:mod:`songbloom.sampling.tree`), relative to the folder of the level and
            in the folder of the run; empty for none.
    """

    title: str
    level: int
    items: Sequence[PageItem]
    facts: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str]] = ()
    codes: str = "data.pth.tar"
    tree: str = ""


def wave_path(audio: NDArray[np.floating], bins: int = WAVE_BINS) -> str:
    """The waveform ``[T]`` as an SVG path in a box of ``bins`` by ``WAVE_HEIGHT``, its loudest peak at full height.

    A constant offset, which nobody hears, is taken away: it would be a slab as high as the sound. It is the median of
    the columns' middles.
    """
    bins = max(1, min(bins, len(audio)))
    edges = np.linspace(0, len(audio), bins + 1).astype(int)[:-1]
    if not len(audio):
        return ""
    low, high = np.minimum.reduceat(audio, edges), np.maximum.reduceat(audio, edges)
    middle = WAVE_HEIGHT / 2
    offset = float(np.median(low + high)) / 2
    low, high = low - offset, high - offset
    loudest = max(float(high.max()), float(-low.min()), 0.02)  # a silent item shows a flat line, not its noise
    scale = (middle - 1) / loudest
    top = np.minimum(middle - high * scale, middle - 1)
    bottom = np.maximum(middle - low * scale, middle + 1)
    x = np.linspace(0, WAVE_BINS, bins)
    there = [f"{a:.4g} {b:.3g}" for a, b in zip(x, top, strict=True)]
    back = [f"{a:.4g} {b:.3g}" for a, b in zip(x[::-1], bottom[::-1], strict=True)]
    return "M" + "L".join([*there, *back]) + "Z"


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``, whole seconds; below ten seconds with one decimal."""
    if seconds < 10:
        return f"0:{seconds:04.1f}" if seconds % 1 else f"0:{int(seconds):02d}"
    whole = round(seconds)
    minutes = f"{whole // 60 % 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return (f"{whole // 3600}:" if whole >= 3600 else "") + f"{minutes}:{whole % 60:02d}"


def _ticks(seconds: float) -> list[float]:
    step = next((step for step in _TICK_SECONDS if seconds / step <= LARGEST_TICKS), _TICK_SECONDS[-1])
    # None so near the end that it would stick out.
    return [n * step for n in range(int(seconds / step) + 1) if n * step <= 0.97 * seconds]


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("page_assets", name).read_text(encoding="utf-8")


@cache
def _words() -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = json.loads(_asset("words.json"))
    return words


def _word(key: str, tag: str = "span") -> str:
    """A word of the interface, in English until the script chooses the language."""
    return f'<{tag} data-word="{key}">{html.escape(_words()["en"][key])}</{tag}>'


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into ``{{places}}`` in one pass, so that braces inside a value stay what they are."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


_ICONS = (
    '<svg class="off" viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5v14l12-7z"/></svg>'
    '<svg class="on" viewBox="0 0 24 24" aria-hidden="true"><path d="M6 5h4.5v14H6zM13.5 5H18v14h-4.5z"/></svg>'
)


def _picture(file: str, kind: str, word: str) -> str:
    """A picture over the whole time, with its name in a corner; ``word`` is what it says to those who don't see it."""
    return (
        f'<div class="picture {kind}"><img src="{html.escape(file)}" data-alt="{word}" '
        f'alt="{html.escape(_words()["en"][word])}" draggable="false">{_word(kind, "small")}</div>'
    )


def _downloads(item: PageItem, page: LevelPage, prefix: str) -> str:
    """Links to the files of an item, named after the run and the item where they are saved."""
    name = re.sub(r"[^\w.-]+", "_", page.title) or "songbloom"
    links = []
    kind = item.audio.rpartition(".")[2]
    for word, file in [("download" if kind == "wav" else f"download_{kind}", item.audio), *item.files]:
        suffix = file.rpartition("/")[2].partition(".")[2]
        saved = html.escape(f"{name}_level_{page.level}_item_{item.index}.{suffix}")
        text = html.escape(_words()["en"][word])
        links.append(f'<a href="{html.escape(prefix + file)}" download="{saved}" data-word="{word}">{text}</a>')
    return f'<p class="get">{" ".join(links)}</p>'


def _commands(item: PageItem) -> str:
    """The commands that go on from an item, each with a button that copies it where the script finds a way."""
    english = _words()["en"]
    shown = [
        f'<div class="command"><h3>{_word(command.word)}</h3>{_word(f"{command.word}_note", "p")}'
        f"<pre><code>{html.escape(command.whole)}</code></pre>"
        f'<button class="copy" type="button" data-word="copy" hidden>{english["copy"]}</button></div>'
        for command in item.commands
    ]
    told = [f"<summary>{_word('going_on')}</summary>", _word("going_on_note", "p"), *shown]
    return f'<details class="further">{"".join(told)}</details>' if shown else ""


def _item(item: PageItem, page: LevelPage, prefix: str) -> str:
    english, seed = _words()["en"], html.escape(item.seed)
    credit = " · ".join(html.escape(part) for part in (item.artist, item.genre) if part)
    audio = html.escape(prefix + item.audio)
    lines = [
        f'<article class="item" id="item-{item.index}" aria-labelledby="name-{item.index}">',
        '<div class="bar">',
        f'<button class="play" type="button" data-label="play" aria-label="{english["play"]}" hidden>{_ICONS}</button>',
        f'<div class="who"><h2 id="name-{item.index}">{_word("item")} {item.index}</h2>',
        f'<p class="credit">{credit}</p>' if credit else "",
        f'<p class="seed">{_word("seed")} <b title="{seed}">{seed}</b></p>' if item.seed else "",
        f'<p class="ended">{_word("ended")} <b>{clock(item.asked)}</b></p>' if item.asked else "",
        "</div>",
        f'<p class="clock"><span>0:00</span> / <span>{clock(item.seconds)}</span></p>',
        "</div>",
        f'<p class="broken" data-word="broken" role="alert" hidden>{english["broken"]}</p>',
        f'<audio controls preload="metadata" src="{audio}"></audio>',
        '<div class="timeline">',
        f'<div class="wave"><svg viewBox="0 0 {WAVE_BINS} {WAVE_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path id="wave-{item.index}" d="{item.wave}"/></svg>'
        f'<svg class="played" viewBox="0 0 {WAVE_BINS} {WAVE_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<use href="#wave-{item.index}"/></svg></div>',
        _picture(prefix + item.picture, "spectrum", "picture") if item.picture else "",
        _picture(prefix + item.attention, "attention", "attention_picture") if item.attention else "",
        '<div class="head"></div>',
        "</div>",
        '<ol class="ticks" aria-hidden="true">',
        *(
            f'<li style="left:{100 * tick / item.seconds:.2f}%">{clock(tick)}</li>'
            for tick in (_ticks(item.seconds) if item.seconds else [])
        ),
        "</ol>",
        _lyrics(item),
        _downloads(item, page, prefix),
        _commands(item),
        "</article>",
    ]
    return "\n".join(line for line in lines if line)


def _lyrics(item: PageItem) -> str:
    """A place for the words, which the script makes alive; without scripts they are plain text."""
    if not any(word.text.strip() for word in item.words):
        return ""
    text = "".join(word.text for word in item.words)
    language = "ja" if _JAPANESE.search(text) else "en"
    note = f'<p class="guessed">{_word("guessed")}</p>\n' if item.guessed else ""
    return (
        f'{note}<ol class="lyrics" data-label="lyrics" aria-label="Lyrics" lang="{language}"></ol>\n'
        f'<noscript><p class="lyrics" lang="{language}">{html.escape(text)}</p></noscript>'
    )


def _levels(page: LevelPage, links: Mapping[int, str]) -> str:
    """Links to the levels of the run, the finest first; nothing for a run of one level."""
    if len(links) < 2:
        return ""

    def name(level: int) -> str:
        return "finest" if level == min(links) else "coarsest" if level == max(links) else "between"

    places = [
        f'<li><a href="{html.escape(links[level])}"{" aria-current=page" if level == page.level else ""}>'
        f"{_word('level')} {level} {_word(name(level), 'small')}</a></li>"
        for level in sorted(links)
    ]
    label = _words()["en"]["levels"]
    return (
        f'<nav class="levels" data-label="levels" aria-label="{label}"><ul>\n' + "\n".join(places) + "\n</ul>\n"
        f"{_word('levels_note', 'p')}\n</nav>"
    )


def _setting(word: str, value: str) -> str:
    return f"<code>{html.escape(value)}</code>" if word == "command" else html.escape(value)


def _plain(word: PageWord) -> list[str | float | None]:
    """As the script reads it: text, start, end and, where there is one, the reading."""
    times = [None if time is None else round(time, 3) for time in (word.start, word.end)]
    return [word.text, *times, word.reading] if word.reading else [word.text, *times]


def render(page: LevelPage, links: Mapping[int, str] | None = None, prefix: str = "") -> str:
    """The page as HTML.

    Args:
        page: what it shows.
        links: level → where its page is, for the levels that there are.
        prefix: put before the names of files, for a page that does not lie in the folder of its level.
    """
    facts = [f"<li>{_word(word)} <b>{html.escape(value)}</b></li>" for word, value in page.facts]
    settings = [f"{_word(word, 'dt')}<dd>{_setting(word, value)}</dd>" for word, value in page.settings]
    codes = html.escape(page.codes)
    settings.append(f'{_word("codes", "dt")}<dd><a href="{html.escape(prefix)}{codes}" download>{codes}</a></dd>')
    data = {
        "words": _words(),
        "tree": posixpath.normpath(prefix + page.tree) if page.tree else "",
        "items": [
            {
                "index": item.index,
                "seconds": item.seconds,
                "words": [_plain(word) for word in item.words],
                "commands": [[each.text, each.name, each.seconds] for each in item.commands],
            }
            for item in page.items
        ],
    }
    return _fill(
        _asset("page.html"),
        {
            "title": html.escape(f"{page.title} · songbloom"),
            "heading": html.escape(page.title),
            "css": _asset("page.css").rstrip(),
            "facts": "\n".join(facts),
            "levels": _levels(page, links or {}),
            "items": "\n".join(_item(item, page, prefix) for item in page.items),
            "tree_note": html.escape(_words()["en"]["tree_note"]),
            "settings": "\n".join(settings),
            "version": html.escape(__version__),
            # No "<" can end the script element or open a comment inside it.
            "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
            "js": _asset("page.js").rstrip(),
        },
    )


def write_page(path: Path, page: LevelPage, links: Mapping[int, str] | None = None, prefix: str = "") -> None:
    """Write :func:`render`'s page, atomically.

    Raises:
        UserError: it cannot be written.
    """
    write_text(path, render(page, links, prefix))
