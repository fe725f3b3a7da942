"""A person's mistake, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what a person typed or supplied.

    The message is one line: what is wrong, where, and what to do. Programs print it without a traceback and exit with
    status 2 (see :func:`songbloom.distributed.run`).
    """


def reason(error: Exception) -> str:
    """Why something failed, to be put into a message that names the file itself: without number and path."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 song``, ``2 songs``; ``plural`` where an s does not make it."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(word: str, options: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean 'x'?)`` for the option nearest to ``word``, or an empty string when none is near.

    ``prefix`` is written before the option, as in ``(did you mean '--x'?)``, and plays no part in what is near.
    """
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" (did you mean {prefix + near[0]!r}?)" if near else ""
