"""The page of a run: what is in it, and what a person can do with it in a real browser."""

from __future__ import annotations

import functools
import html.parser
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from songbloom.audio.mel import write_png
from songbloom.sampling.page import LevelPage, PageCommand, PageItem, PageWord, clock, render, wave_path, write_page
from tests.sampling.browser import EXECUTABLE, Browser, browser

SAMPLE_RATE = 8000
SECONDS = 8.0
EVIL = """<script>document.title = 'broken in'</script>"><img src=x onerror="alert(1)"> {{css}} & 'quoted'"""

TIMED = [
    PageWord("[verse]\n"),
    *(PageWord("さ", 0.0, 1.0), PageWord("く", 1.0, 2.0), PageWord("ら", 2.0, 4.0), PageWord("、\n")),
    *(PageWord("花", 4.0, 6.0, reading="はな"), PageWord("な", 6.0, 7.0), PageWord("の", 7.5, 8.0)),
    *(PageWord("\n\n"), PageWord("not sung")),
]


def tone(frequency: float) -> np.ndarray:
    time = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.4 * np.sin(2 * np.pi * frequency * time) * (1 - time / SECONDS)).astype(np.float32)


def pages(title: str = "first song") -> list[LevelPage]:
    """Two levels of three items; the first has timed words, the second words without times, the third none."""
    words: list[list[PageWord]] = [TIMED, [PageWord("no times\n"), PageWord(EVIL)], []]
    items = [
        PageItem(
            i,
            f"item_{i}.wav",
            SECONDS,
            wave_path(tone(220 * (i + 1))),
            artist=title if i == 1 else "",
            words=words[i],
            attention="../alignment/item_0.png" if i == 0 else "",
            files=[("lrc", "../alignment/item_0.lrc")] if i == 0 else [],
            asked=65.0 if i == 2 else 0.0,
        )
        for i in range(3)
    ]
    facts = [("model", "tiny"), ("seed", "0"), ("took_level", "0:05"), ("took_all", "0:10")]
    return [LevelPage(title, level, items, facts, [("temp", "0.98"), ("command", title)]) for level in (0, 1)]


def write_run(folder: Path, title: str = "first song") -> Path:
    for page in pages(title):
        (folder / f"level_{page.level}").mkdir(parents=True, exist_ok=True)
        (folder / "alignment").mkdir(exist_ok=True)
        (folder / "alignment" / "item_0.lrc").write_text("[00:00.00]さくら\n", encoding="utf-8")
        write_png(folder / "alignment" / "item_0.png", np.full((8, 8, 3), 90, np.uint8))
        for item in page.items:
            soundfile.write(folder / f"level_{page.level}" / item.audio, tone(220 * (item.index + 1)), SAMPLE_RATE)
        links = {0: "../level_0/index.html", 1: "../level_1/index.html"}
        write_page(folder / f"level_{page.level}" / "index.html", page, links)
    write_page(folder / "index.html", pages(title)[0], {0: "index.html", 1: "level_1/index.html"}, "level_0/")
    return folder


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of the heading."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def parsed(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    return elements


def test_what_a_person_typed_stays_text() -> None:
    plain, evil = parsed(render(pages()[0])), parsed(render(pages(EVIL)[0]))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert EVIL in evil.texts["h1"]
    assert not any("onerror" in attributes for _, attributes in evil.tags)
    scripts = [attributes for tag, attributes in evil.tags if tag == "script"]
    assert len(scripts) == 2


def test_a_song_that_the_model_ended_says_so() -> None:
    first, *others = render(pages()[0]).split('<article class="item"')[1:]
    assert 'class="ended"' not in first + others[0]
    assert re.search(r'<p class="ended"><span data-word="ended">.+:</span> <b>1:05</b></p>', others[1])


def test_nothing_is_asked_of_the_network() -> None:
    links = {0: "../level_0/index.html", 1: "../level_1/index.html"}
    for tag, attributes in parsed(render(pages()[0], links)).tags:
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            assert not value.startswith(("http", "//")), (tag, value)
    assert "@import" not in render(pages()[0])


def test_both_languages_have_the_same_words() -> None:
    text = render(pages()[0], {0: "", 1: ""})
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    english, japanese = data["words"]["en"], data["words"]["ja"]
    assert set(english) == set(japanese)
    used = {
        value
        for _, attributes in parsed(text).tags
        for name, value in attributes.items()
        if name in ("data-word", "data-label", "data-alt")
    }
    assert used <= set(english)


def test_a_page_of_one_level_has_no_links_to_levels() -> None:
    assert '<nav class="levels"' not in render(pages()[0], {0: "index.html"})


def test_clock() -> None:
    assert [clock(s) for s in (0, 1, 2.5, 9.99, 59.6, 61, 3599, 3600, 3725)] == [
        *("0:00", "0:01", "0:02.5", "0:10.0", "1:00", "1:01", "59:59", "1:00:00", "1:02:05")
    ]


@pytest.mark.parametrize("length", [0, 1, 3, 640, 5000])
def test_waveforms_of_any_length(length: int) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, length)
    path = wave_path(audio)
    if length:
        numbers = [float(word) for word in path[1:-1].replace("L", " ").split()]
        assert min(numbers[1::2]) >= 0
        assert max(numbers[1::2]) <= 100
        assert 0 <= min(numbers[::2]) <= max(numbers[::2]) <= 640
    else:
        assert path == ""
    assert "nan" not in wave_path(np.zeros(length))


def test_a_constant_offset_is_not_drawn() -> None:
    def heights(audio: np.ndarray) -> np.ndarray:
        return np.array([float(point.split()[1]) for point in wave_path(audio)[1:-1].split("L")])

    buzz = 0.1 * np.sin(np.arange(64_000) / 7)
    assert np.abs(heights(0.12 + buzz) - heights(buzz)).max() <= 0.1  # three digits are written
    assert np.ptp(heights(buzz)) > 97  # still as high as the box
    assert np.ptp(heights(np.full(64_000, 0.12))) <= 2.1  # silence is a line in the middle
    assert heights(np.full(64_000, 0.12)).mean() == pytest.approx(50)


# --- in a browser ---------------------------------------------------------------------------------------------------


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """What ``python -m http.server`` serves with, without its log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), title=EVIL)


@pytest.fixture(scope="module")
def served(run_folder: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(run_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module", params=["en", "ja"])
def chromium(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Browser]]:
    if EXECUTABLE is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile"), request.param) as page:
        yield request.param, page


def audio(item: int, what: str) -> str:
    return f"document.querySelector('#item-{item} audio').{what}"


@pytest.fixture(params=["file", "served"])
def opened(
    request: pytest.FixtureRequest, chromium: tuple[str, Browser], run_folder: Path, served: str
) -> tuple[str, Browser]:
    """The run's first page, from disk and from a server that knows no byte ranges, with metadata loaded."""
    language, page = chromium
    page.requests.clear()
    page.errors.clear()
    page.emulate()
    page.open((run_folder.as_uri() if request.param == "file" else served) + "/index.html")
    for item in range(3):
        page.until(audio(item, "readyState >= 1"))
    return language, page


def lit(page: Browser) -> str:
    return page.run("[...document.querySelectorAll('#item-0 .now')].map(e => e.textContent).join('|')")


def test_listening(opened: tuple[str, Browser]) -> None:
    language, page = opened
    page.click("#item-0 .play")
    page.until(audio(0, "currentTime > 0.2"))
    page.until("Number(document.querySelector('#item-0 .timeline').getAttribute('aria-valuenow')) > 0.2")
    name = page.run("document.querySelector('#item-0 .play').getAttribute('aria-label')")
    assert name == {"en": "Pause", "ja": "一時停止"}[language]

    page.click("#item-0 .timeline", x=0.75)  # it goes on playing from there
    page.until(f"{audio(0, 'currentTime')} >= 6 && !{audio(0, 'paused')}")
    page.until("document.querySelector('#item-0 .now')?.textContent === 'な'")
    assert page.run("document.querySelectorAll('#item-0 .sung').length") == 5  # what has begun, the present one too
    assert page.run("document.querySelector('#item-0 .line').textContent") == "花はななの"
    page.click("#item-1 .play")
    page.until(f"!{audio(1, 'paused')} && {audio(0, 'paused')}")
    page.click("#item-1 .play")
    page.until(audio(1, "paused"))
    assert page.errors == []


def test_seeking_without_playing(opened: tuple[str, Browser]) -> None:
    _, page = opened
    page.click("#item-2 .timeline", x=0.5)
    page.until(f"Math.abs({audio(2, 'currentTime')} - 4) < 0.05")
    assert page.run(audio(2, "paused"))
    assert page.run("document.querySelector('#item-2 .clock').textContent").startswith("0:04")
    page.run("document.querySelector('#item-2 .timeline').focus()")
    page.key("ArrowRight")
    page.until(f"Math.abs({audio(2, 'currentTime')} - 4.1) < 0.05")
    page.key("Home")
    page.until(f"{audio(2, 'currentTime')} === 0")
    assert page.errors == []


def test_a_word_is_a_way_to_go_there(opened: tuple[str, Browser]) -> None:
    _, page = opened
    rows = "[...document.querySelectorAll('#item-0 .lyrics li')].map(e => e.textContent)"
    assert page.run(rows) == ["[verse]", "さくら、", "花はななの", "", "not sung"]
    page.click("#item-0 .lyrics li:nth-child(2) button:nth-child(3)")
    page.until(f"Math.abs({audio(0, 'currentTime')} - 2) < 0.05")
    assert lit(page) == "ら"
    assert page.run(audio(0, "paused"))
    page.click("#item-0 .lyrics li:nth-child(2) button:nth-child(1)")  # backwards, so that words go out again
    page.until("document.querySelectorAll('#item-0 .sung').length === 1")
    assert lit(page) == "さ"
    page.run("(document.querySelector('#item-0 audio').currentTime = 7.25, 0)")
    page.until("document.querySelectorAll('#item-0 .sung').length === 5")
    assert lit(page) == ""  # between two words
    assert page.errors == []


def test_words_by_keyboard(opened: tuple[str, Browser]) -> None:
    _, page = opened
    stops = "[...document.querySelectorAll('#item-0 .lyrics button')].filter(e => e.tabIndex === 0).length"
    assert page.run(stops) == 1
    page.run("document.querySelector('#item-0 .lyrics button').focus()")
    focused = "document.activeElement.textContent"
    for key, word in [
        *(("ArrowRight", "く"), ("ArrowDown", "花はな"), ("ArrowRight", "な"), ("ArrowUp", "さ"), ("End", "の")),
        *(("ArrowRight", "の"), ("ArrowLeft", "な")),
    ]:
        page.key(key)
        assert page.run(focused) == word
    assert page.run(stops) == 1
    page.key("Enter")
    page.until(f"Math.abs({audio(0, 'currentTime')} - 6) < 0.05")
    assert lit(page) == "な"
    assert page.run("document.activeElement.getAttribute('aria-current')") == "true"


def test_the_line_that_is_sung_stays_in_sight(chromium: tuple[str, Browser], tmp_path: Path) -> None:
    _, page = chromium
    seconds = SECONDS / 200
    words = [PageWord(f"la{i}" + "\n" * (i % 3 == 2), i * seconds, (i + 1) * seconds) for i in range(200)]
    item = PageItem(0, "item_0.wav", SECONDS, "", words=words)
    soundfile.write(tmp_path / "item_0.wav", tone(220), SAMPLE_RATE)
    write_page(tmp_path / "index.html", LevelPage("long", 0, [item]))
    page.emulate(width=360, height=740)
    page.open((tmp_path / "index.html").as_uri())
    page.until(audio(0, "readyState >= 1"))
    page.run("(document.querySelector('#item-0 audio').currentTime = 6, 0)")
    page.until("document.querySelector('.now')?.textContent.trim() === 'la150'")
    inside = (
        "(() => { const [a, b] = ['ol.lyrics', '.now'].map(e => document.querySelector(e).getBoundingClientRect());"
        "return a.top <= b.top && b.bottom <= a.bottom })()"
    )
    page.until(inside)
    assert page.run("document.querySelectorAll('.sung').length") == 151
    assert page.run("document.querySelectorAll('.now').length") == 1
    assert page.run("window.scrollY") == 0


def test_language_and_foreign_text(opened: tuple[str, Browser]) -> None:
    language, page = opened
    other = "en" if language == "ja" else "ja"
    assert page.run("document.documentElement.lang") == language
    settings = "document.querySelector('summary').textContent"
    names = {"en": "Settings", "ja": "設定"}
    assert page.run(settings) == names[language]
    page.click("#language")
    assert page.run("document.documentElement.lang") == other
    assert page.run(settings) == names[other]
    page.click("#language")
    assert page.run("document.title") == EVIL + " · songbloom"
    assert page.run("document.querySelector('h1').textContent") == EVIL
    assert EVIL in page.run("document.querySelector('#item-1 .lyrics').textContent")
    assert page.run("document.querySelector('#item-2 .lyrics')") is None
    assert page.run("document.querySelector('#item-0 .attention img').alt")
    assert not any(address.rsplit("/", 1)[-1] == "x" for address in page.requests)


def test_a_phone_has_no_sideways_scrolling(opened: tuple[str, Browser]) -> None:
    _, page = opened
    page.emulate(width=360, height=740, dark=True)
    page.run("document.querySelector('details').open = true")
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("document.querySelector('#item-0 .play').getBoundingClientRect().width") >= 44
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    page.emulate(width=360, height=740, dark=False)
    assert page.run("getComputedStyle(document.body).backgroundColor") != dark


@pytest.mark.parametrize("width", [900, 390, 320])
def test_commands_seeds_and_buttons_fit(chromium: tuple[str, Browser], tmp_path: Path, width: int) -> None:
    _, page = chromium
    seed, text = "4611795005367967734", "python sample.py --model=tiny --mode=continue --temp=.9"
    command = PageCommand("go_on", text, "samples/" + "long" * 20, SECONDS)
    item = PageItem(0, "item_0.wav", SECONDS, wave_path(tone(220)), seed=seed, commands=[command])
    soundfile.write(tmp_path / "item_0.wav", tone(220), SAMPLE_RATE)
    write_page(tmp_path / "index.html", LevelPage("narrow", 0, [item], settings=[("command", text)]))
    page.emulate(width=width, height=740)
    page.open((tmp_path / "index.html").as_uri())
    page.until(audio(0, "readyState >= 1"))
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= width
    # An argument is on one line, whatever its hyphens; the text is the command all the same.
    pieces = "[...document.querySelectorAll('%s code span')].map(e => [e.textContent, e.getClientRects().length])"
    shown = [*text.split(), "--sample_length_in_seconds=16", f"--name={command.name}"]
    assert page.run(pieces % ".command") == [[piece, 1] for piece in shown]
    assert page.run(pieces % "dd") == [[piece, 1] for piece in text.split()]
    assert page.run("document.querySelector('.command code').textContent") == " ".join(shown)
    assert ".venv/bin/activate" in page.run("document.querySelector('.further > p').textContent")
    # The seed has one line and is taken whole.
    assert page.run("document.querySelector('.seed').getBoundingClientRect().height") < 24
    page.run("getSelection().selectAllChildren(document.querySelector('.seed b'))")
    assert page.run("getSelection().toString()") == seed
    # Both signs are in the middle of their button.
    middle = (
        "(() => { const [a, b] = ['.play', '.play svg.%s'].map(e => document.querySelector(e).getBoundingClientRect());"
        "return Math.hypot(a.x + a.width / 2 - b.x - b.width / 2, a.y + a.height / 2 - b.y - b.height / 2) })()"
    )
    assert page.run(middle % "off") < 0.6
    page.click(".play")
    page.until(f"!{audio(0, 'paused')}")
    page.until(f"{middle % 'on'} < 0.6")  # the sign changes a moment after the sound begins
    assert page.errors == []


def test_levels_lead_to_each_other(opened: tuple[str, Browser]) -> None:
    _, page = opened
    page.click(".levels li:nth-child(2) a")
    page.until("location.pathname.endsWith('level_1/index.html') && document.readyState === 'complete'")
    page.until(audio(0, "readyState >= 1"))
    page.click(".levels li:nth-child(1) a")
    page.until("location.pathname.endsWith('level_0/index.html')")


def test_a_missing_sound_is_told(chromium: tuple[str, Browser], tmp_path: Path) -> None:
    _, page = chromium
    write_run(tmp_path)
    (tmp_path / "level_0" / "item_1.wav").unlink()
    page.open((tmp_path / "index.html").as_uri())
    page.until("!document.querySelector('#item-1 .broken').hidden")
    assert page.run("document.querySelector('#item-0 .broken').hidden")
