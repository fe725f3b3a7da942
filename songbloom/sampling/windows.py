"""Where a prior's windows fall on a song that is longer, or shorter, than its context, and how items share a batch.

A prior sees ``n_ctx`` codes at a time. A longer song is written window by window: each window starts ``hop`` codes
after the one before, takes the codes that exist already as its prompt, and adds what is missing (Jukebox,
arXiv:2005.00341, section 4.3, "windowed sampling"). All counts here are in codes of one level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from songbloom.errors import UserError


@dataclass(frozen=True)
class Window:
    """One call of the prior.

    Attributes:
        start: position of the window's first code in the song.
        end: ``start + n_ctx``; past the end of the song in a partial window.
        prompt: how many codes of the window exist already.
        sample_tokens: length up to which a partial window is written, prompt included; None for a whole window.
    """

    start: int
    end: int
    prompt: int
    sample_tokens: int | None = None

    @property
    def new(self) -> int:
        """How many codes the window adds."""
        return (self.end - self.start if self.sample_tokens is None else self.sample_tokens) - self.prompt


def starts(total: int, n_ctx: int, hop: int) -> list[int]:
    """Where the windows of a song of ``total`` codes begin: every ``hop`` codes, the last one flush with the end.

    Raises:
        ValueError: ``total < n_ctx`` (that is :func:`partial_window`'s case), or ``hop`` is less than 1.
    """
    if total < n_ctx:
        raise ValueError(f"{total} codes do not fill a window of {n_ctx}")
    if hop < 1:
        raise ValueError(f"windows must move on by at least one code, not by {hop}")
    return [start if start + n_ctx < total else total - n_ctx for start in range(0, total - n_ctx + hop, hop)]


def partial_window(have: int, tokens: int, n_ctx: int) -> Window:
    """The window that adds ``tokens`` codes behind the ``have`` codes there are, with as much of these as fits before.

    Raises:
        ValueError: more codes are asked for than a window holds.
    """
    if not 0 < tokens <= n_ctx:
        raise ValueError(f"one window adds between 1 and {n_ctx} codes, not {tokens}")
    if have < n_ctx - tokens:
        return Window(start=0, end=n_ctx, prompt=have, sample_tokens=have + tokens)
    start = have + tokens - n_ctx
    return Window(start=start, end=start + n_ctx, prompt=n_ctx - tokens, sample_tokens=n_ctx)


def plan(total: int, n_ctx: int, hop: int, have: int = 0) -> list[Window]:
    """The windows that take a song from ``have`` codes to ``total``, in order; those with nothing to add are left out.

    A song shorter than the context is one partial window that begins at 0.

    Raises:
        ValueError: ``hop`` is not between 1 and ``n_ctx`` (a longer one would leave gaps).
    """
    if not 1 <= hop <= n_ctx:
        raise ValueError(f"windows must move on by between 1 and {n_ctx} codes, not by {hop}")
    if have >= total:
        return []
    if total < n_ctx:
        return [partial_window(have, total - have, n_ctx)]
    windows = []
    for start in starts(total, n_ctx, hop):
        window = Window(start, start + n_ctx, prompt=min(max(have - start, 0), n_ctx))
        if window.new:
            windows.append(window)
            have = window.end
    return windows


def whole_windows(total: int, length: int, have: int = 0) -> list[Window]:
    """Windows that begin at whole multiples of ``length`` and do not overlap; the last may be partial.

    Args:
        total: codes of the song.
        length: codes of a window.
        have: codes that exist already.
    """
    planned = []
    for start in range(have // length * length, total, length):
        end = min(start + length, total)
        prompt = max(have - start, 0)
        if end - start > prompt:
            short = None if end == start + length else end - start
            planned.append(Window(start, start + length, prompt, short))
    return planned


def hop_of(hop_fraction: float, n_ctx: int, *, level: int, multiple_of: int = 1) -> int:
    """Codes from one window to the next: ``int(hop_fraction * n_ctx)``.

    Args:
        hop_fraction: how far a window moves on, as a share of the context; the rest of it is prompt.
        n_ctx: the prior's context.
        level: named in messages.
        multiple_of: codes of this level per code of the level above; a window begins where one of those does.

    Raises:
        UserError: the fraction is not in (0, 1], gives no code at all, or windows that begin between two codes of the
            level above.
    """
    where = f"--hop_fraction={hop_fraction:g} at level {level}"
    if not 0 < hop_fraction <= 1:
        raise UserError(f"{where}: a window moves on by more than 0 and at most 1 context; give a number such as 0.5")
    hop = int(hop_fraction * n_ctx)
    if hop < 1:
        raise UserError(f"{where} is less than one code of the context of {n_ctx}; give at least {1 / n_ctx:.3g}")
    if hop % multiple_of:
        better = max(hop // multiple_of, 1) * multiple_of
        raise UserError(
            f"{where} is {hop} codes, but windows of this level must move on by a multiple of {multiple_of} codes "
            f"(one code of level {level + 1}); give {better / n_ctx:g}, which is {better}"
        )
    return hop


def batches(items: int, largest: int) -> Iterator[slice]:
    """Slices of at most ``largest`` items that cover ``items`` in order; only the last may be smaller."""
    if largest < 1:
        raise ValueError(f"a batch holds at least one item, not {largest}")
    for start in range(0, items, largest):
        yield slice(start, min(start + largest, items))
