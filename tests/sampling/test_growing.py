"""Growing a song by listening: what a page offers to go on with, and the family that it shows, in a real browser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from songbloom.hyperparams import Hyperparams
from songbloom.sampling import going_on, request
from songbloom.sampling.page import LevelPage, PageItem, render, write_page
from songbloom.sampling.tree import renew, run_id
from tests.sampling.browser import EXECUTABLE, Browser, browser

RATE, SECONDS = 8000, 4.0
NAME = "a song's <b>"


def asked(line: str) -> Hyperparams:
    return request.command_line(shlex.split("--model=tiny " + line), ["tiny"])


# --- commands -------------------------------------------------------------------------------------------------------


def test_commands_go_on_as_the_run_was_made() -> None:
    line = "--name=samples/first --temp=.9,1 --hop_fraction .5,.25 --n_samples=3 --seed=4 --levels_to_sample=1 --hps=x"
    longer, finer = going_on.commands(going_on.beginnings(asked(line), [1]), 2, 8.0)
    assert longer.whole == (
        "python sample.py --model=tiny --hps=x --temp=0.9,1.0 --hop_fraction=0.5,0.25 --mode=continue "
        "--codes_file=samples/first --levels_to_sample=1 --pick=2 --branch=4 --sample_length_in_seconds=16.00 "
        "--name=samples/first-2"
    )
    assert finer.whole == (
        "python sample.py --model=tiny --hps=x --temp=0.9,1.0 --hop_fraction=0.5,0.25 --mode=upsample "
        "--codes_file=samples/first --pick=2 --name=samples/first-2-fine"
    )
    for each in (longer, finer):  # and they are commands
        request.command_line(shlex.split(each.whole)[2:], ["tiny"])


def test_a_run_that_is_complete_has_nothing_finer() -> None:
    begun = going_on.beginnings(asked("--name=x --mode=upsample --codes_file=y --levels_to_sample=0"), [0])
    (longer,) = going_on.commands(begun, 0, 8.0)
    assert "--levels_to_sample" not in longer.whole and "y" not in longer.whole.split("--codes_file=")[1].split()[0]
    assert going_on.commands({}, 0, 8.0) == []


def test_a_song_that_was_told_its_length_is_told_a_longer_one_where_it_grows_beyond() -> None:
    begun = {"name": "samples/a", "continue": "python sample.py --mode=continue --codes_file=samples/a"}
    for told, said in ((0.0, ""), (16.0, ""), (15.9, "=16"), (8.0, "=16")):
        (longer,) = going_on.commands(begun, 0, 8.0, told)
        assert (f"--total_sample_length_in_seconds{said} " in longer.whole) == bool(said)


def test_names_are_quoted_for_a_shell() -> None:
    options = asked(shlex.join([f"--name={NAME}"]))
    (longer,) = going_on.commands(going_on.beginnings(options, [0]), 0, 8.0)
    parsed = request.command_line(shlex.split(longer.whole)[2:], ["tiny"])
    assert (parsed.name, parsed.codes_file) == (f"{NAME}-0", NAME)
    text = render(LevelPage("t", 0, [PageItem(0, "a.wav", 8.0, "", commands=[longer])]))
    assert "<b>" not in text.split('class="command"')[1].split("</pre>")[0]


# --- in a browser ---------------------------------------------------------------------------------------------------


def write_run(folder: Path, parent: Path | None = None) -> Path:
    """A run of two items with sounds, page and record, written as the sampler does."""
    settings = {"seed": 0, "n_samples": 2, "sample_length": int(RATE * SECONDS), "who": folder.name}
    record = {"settings": settings, "sample_rate": RATE, "parent": None}
    if parent is not None:
        there = json.loads((parent / "run.json").read_text())
        items = [{"item": 1, "branch": branch, "seed": 7} for branch in (0, 1)]
        record["parent"] = {"folder": f"../{parent.name}", "id": run_id(there["settings"]), "mode": "continue"}
        record["parent"] |= {"kept_seconds": 2.5, "items": items}
    (folder / "level_0").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    begun = going_on.beginnings(asked(shlex.join([f"--name=samples/{folder.name}"])), [0])
    tone = 0.3 * np.sin(np.arange(int(RATE * SECONDS)) / 5)
    items = []
    for item in (0, 1):
        soundfile.write(folder / "level_0" / f"item_{item}.wav", tone, RATE)
        commands = going_on.commands(begun, item, SECONDS)
        items.append(PageItem(item, f"item_{item}.wav", SECONDS, "", seed=str(item), commands=commands))
    page = LevelPage(folder.name, 0, items, tree="../tree.js")
    write_page(folder / "level_0" / "index.html", page)
    write_page(folder / "index.html", page, prefix="level_0/")
    renew(folder)
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("samples")
    second = write_run(place / "second", write_run(place / NAME))
    write_run(place / "third", second)
    return place


@pytest.fixture(scope="module", params=["en", "ja"])
def chromium(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Browser]]:
    if EXECUTABLE is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile"), request.param) as page:
        page.emulate()
        yield request.param, page


def command(page: Browser) -> list[str]:
    return shlex.split(page.run("document.querySelector('#item-1 .command code').textContent"))


def test_the_command_follows_the_player(family: Path, chromium: tuple[str, Browser]) -> None:
    _, page = chromium
    page.open((family / NAME / "index.html").as_uri())
    page.until("document.querySelector('#item-1 audio').readyState >= 1")
    assert command(page)[-2:] == ["--sample_length_in_seconds=8", f"--name=samples/{NAME}-1"]
    page.run("(document.querySelector('#item-1 audio').currentTime = 1.5, 0)")
    page.until("document.querySelector('#item-1 code').textContent.includes('--cut_at=1.5 ')")
    assert command(page)[-5:] == [
        *("--pick=1", "--branch=4", "--cut_at=1.5", "--sample_length_in_seconds=5.5", f"--name=samples/{NAME}-1-1.5s")
    ]
    request.command_line(command(page)[2:], ["tiny"])
    assert "--cut_at" not in page.run("document.querySelector('#item-0 .command code').textContent")
    page.run("(document.querySelector('#item-1 audio').currentTime = 4, 0)")  # the end: nothing is cut
    page.until("!document.querySelector('#item-1 code').textContent.includes('--cut_at')")


def test_copying(family: Path, chromium: tuple[str, Browser]) -> None:
    language, page = chromium
    page.open((family / "second" / "index.html").as_uri())
    page.run("document.querySelector('#item-1 details').open = true")
    page.run("(navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }, 0)")
    page.click("#item-1 .copy")
    page.until("document.querySelector('#item-1 .copy').dataset.word === 'copied'")
    assert shlex.split(page.run("window.copied")) == command(page)
    text = {"en": "Copied", "ja": "コピーしました"}[language]
    assert page.run("document.querySelector('#item-1 .copy').textContent") == text
    # Where a page may not write to the clipboard, the text is chosen at least.
    page.run("(navigator.clipboard.writeText = () => Promise.reject(new Error('not here')), 0)")
    page.run("(document.execCommand = () => false, 0)")
    page.click("#item-1 .copy")
    page.until("document.querySelector('#item-1 .copy').dataset.word === 'copy_by_hand'")
    assert shlex.split(page.run("getSelection().toString()")) == command(page)


def test_the_family_is_shown_with_players(family: Path, chromium: tuple[str, Browser]) -> None:
    language, page = chromium
    page.errors.clear()
    page.open((family / "second" / "level_0" / "index.html").as_uri())
    page.until("!document.getElementById('tree').hidden")
    titles = "[...document.querySelectorAll('#tree .title')].map(e => e.textContent)"
    assert page.run(titles) == [NAME, "second", "third"]
    assert page.run("document.querySelectorAll('#tree b').length") == 1  # names stay text; this page is no link
    assert page.run("document.querySelectorAll('#tree .runs .runs .runs .take').length") == 2
    assert (
        page.run("document.querySelector('#tree h2').textContent")
        == {"en": "How the song grew", "ja": "曲の育ち方"}[language]
    )
    taken = page.run("document.querySelector('#tree .here .take').textContent")
    assert {"en": "from item 1", "ja": "元のサンプル 1"}[language] in taken
    sound = "document.querySelectorAll('#tree audio')[{}]"
    page.run(f"{sound.format(0)}.play()")
    page.until(f"{sound.format(0)}.currentTime > 0.1")
    page.run(f"{sound.format(5)}.play()")  # one sound at a time
    page.until(f"{sound.format(5)}.currentTime > 0.1 && {sound.format(0)}.paused")
    page.click("#item-0 .play")
    page.until(f"!document.querySelector('#item-0 audio').paused && {sound.format(5)}.paused")
    assert page.errors == []
    page.open(page.run("document.querySelector('#tree a.title').href"))
    page.until("!document.getElementById('tree').hidden")
    assert page.run("document.querySelector('#tree .here .title').textContent") == NAME


def test_a_family_fits_on_a_phone(family: Path, chromium: tuple[str, Browser]) -> None:
    _, page = chromium
    page.emulate(width=360, height=740)
    page.open((family / "third" / "index.html").as_uri())
    page.until("!document.getElementById('tree').hidden")
    page.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.emulate()


def test_a_page_alone_shows_no_family(chromium: tuple[str, Browser], tmp_path: Path) -> None:
    _, page = chromium
    alone = write_run(tmp_path / "alone")
    page.open((alone / "index.html").as_uri())
    page.until("document.querySelector('#item-1 audio').readyState >= 1 && window.songbloomTree.length === 1")
    assert page.run("document.getElementById('tree').hidden")
    (alone / "tree.js").unlink()  # taken away without it
    page.open((alone / "level_0" / "index.html").as_uri())
    page.until("document.querySelector('#item-1 audio').readyState >= 1")
    assert page.run("document.getElementById('tree').hidden")
