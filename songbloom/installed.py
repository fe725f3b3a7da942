"""Ends a program in one line where this Python cannot run it: no environment is active, or it is too old.

It is read before anything else, by any Python 3, and so needs nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("train.py", "sample.py", "align.py", "evaluate.py", "make_models.py", "hparams.py")
NEEDED = ("torch", "numpy", "soundfile", "tqdm")  # whoever has these has installed the rest too
OLDEST = (3, 11)


def is_program() -> bool:
    """Whether this process is one of the programs, or ``python -m songbloom…``, and not somebody else's Python."""
    if sys.argv[:1] == ["-m"]:  # as it is until the module of that name has been found
        return True
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and Path(started).name in PROGRAMS and Path(started).resolve().parent == ROOT


def require() -> None:
    """Exit with status 2 and a line that says what to do, unless the packages are here."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if sys.version_info >= OLDEST and not missing:
        return
    activate = ". .venv/bin/activate"
    made = (ROOT / ".venv" / "bin" / "activate").is_file()
    advice = f"type {activate!r} first" if made else f"type 'make setup', then {activate!r}"
    version = ".".join(map(str, sys.version_info[:2]))
    what = f"lacks {', '.join(missing)}" if missing else f"is Python {version}, and 3.11 is the oldest that will do"
    print(f"error: {sys.executable} {what}: in {ROOT}, {advice}", file=sys.stderr)
    raise SystemExit(2)
