"""How a level sounds while it is being written: the windows that it has got so far, decoded now and then.

    {name}/preview/index.html                  players, and how far each item is
    {name}/preview/level_{l}_item_{i}.wav      its sound so far

The folder goes when the level has come.
"""

from __future__ import annotations

import html
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from songbloom.audio.files import WaveWriter
from songbloom.files import write_text
from songbloom.sampling.page import WAVE_BINS, WAVE_HEIGHT, clock
from songbloom.sampling.sound import heard

FOLDER = "preview"
_NAME = re.compile(r"level_(\d+)_item_(\d+)\.wav")


def write_item(
    folder: Path, level: int, item: int, pieces: Iterable[Tensor], sample_rate: int, channels: int = 1
) -> Path:
    """Write the sound so far of an item of the run in ``folder``; ``pieces`` are ``[1, t, channels]``, from the
    beginning on.

    Raises:
        UserError: it cannot be written; the preview before is untouched.
    """
    path = folder / FOLDER / f"level_{level}_item_{item}.wav"
    with WaveWriter(path, sample_rate, channels) as writer:
        for piece in pieces:
            writer.append(piece[0].cpu().numpy())
    return path


def write_page(folder: Path, seconds: float) -> Path:
    """Write the page of all previews that there are; ``seconds`` is the length that items will have.

    Raises:
        UserError: it cannot be written.
    """
    found = []
    for path in (folder / FOLDER).glob("level_*_item_*.wav"):
        if named := _NAME.fullmatch(path.name):
            found.append((int(named[1]), int(named[2]), path))
    title = html.escape(f"{folder.resolve().name} · preview")
    page = _HEAD.format(title=title) + "".join(_item(*each, seconds) for each in sorted(found)) + "</main></html>\n"
    place = folder / FOLDER / "index.html"
    write_text(place, page)
    return place


def _item(level: int, item: int, path: Path, seconds: float) -> str:
    sound = heard(path)
    share = 100 * min(1.0, sound.seconds / seconds) if seconds else 100
    return (
        f"<section><h2>Item {item} <small>level {level}: {clock(sound.seconds)} of {clock(seconds)}</small></h2>\n"
        f'<svg viewBox="0 0 {WAVE_BINS} {WAVE_HEIGHT}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="width:{share:.2f}%"><path d="{sound.wave}"/></svg>\n'
        f'<audio controls preload="metadata" src="{path.name}"></audio></section>\n'
    )


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}
h2{{font-size:1.1rem;margin:1.5rem 0 .3rem}}small{{font-weight:400;opacity:.75}}svg{{display:block;height:4rem}}
path{{fill:currentColor;opacity:.6}}audio{{width:100%}}</style>
<main><h1>{title}</h1>
<p>The song as far as it is written; reload this page to hear more. <a href="../index.html">The run’s page</a> comes
with its first whole level.<br><span lang="ja">書けたところまでの試聴です。続きは再読み込みしてください。</span></p>
"""


def remove(folder: Path, level: int) -> None:
    """Remove the previews of a level from the folder of a run, and the page when no others are left; none is fine.

    Raises:
        OSError: they cannot be removed.
    """
    place = folder / FOLDER
    if not place.is_dir():
        return
    for path in [*place.glob(f"level_{level}_item_*.wav"), *place.glob(f".level_{level}_item_*.partial")]:
        path.unlink(missing_ok=True)
    if not any(place.glob("level_*.wav")):
        (place / "index.html").unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()


class Asking:
    """Whether it is time for a preview: every few minutes, and when somebody sends SIGUSR1 to the process.

    Args:
        minutes: between two previews; None or 0 makes none but those that are asked for.
    """

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic):
        self._seconds = 60 * minutes if minutes else None
        self._now, self._last = now, now()

    def due(self) -> bool:
        """Whether one is due; if so, the next one is due a while later."""
        due = bool(_wishes) or (self._seconds is not None and self._now() - self._last >= self._seconds)
        if due:
            _wishes.clear()
            self._last = self._now()
        return due


_wishes: list[bool] = []  # previews that somebody asked this process for, not yet made


def listen() -> None:
    """Take SIGUSR1 as the wish for a preview from now on, where there is such a signal.

    To be called before anything that takes long, such as reading weights: a process that does not expect the signal
    dies of it. A wish is granted after the first window.
    """
    kind = getattr(signal, "SIGUSR1", None)
    if kind is not None and threading.current_thread() is threading.main_thread():
        signal.signal(kind, lambda *_: _wishes.append(True))
