"""What glibc's malloc does with large blocks that are freed: it keeps them for the next ones.

By default malloc asks the system for every block above 32 MB anew (below, above what was freed so far), and gives it
back as soon as it is free (mallopt(3)). The kernel clears and maps the pages of such a tensor, one by one, at every
operation that makes one, which takes longer than most element-wise operations themselves. Here they come from the
heap, which is not cut; :func:`give_back` hands what is unused to the system where another kind of work begins.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_NEVER = -1  # of trimming, see mallopt(3)
LARGEST = 1 << 28  # bytes; larger blocks are given back at once. Holes that nothing fits take several times as many
_SETTINGS = ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD", "MMAP_MAX")

_keeps = False


def keep_memory() -> bool:
    """Let malloc keep large blocks for the next ones, in this process and those forked from it; whether it does.

    Nothing happens where a person has chosen (:func:`chosen_otherwise`), nor without glibc.
    """
    global _keeps
    library = _glibc()
    if _keeps or library is None or chosen_otherwise(os.environ):
        return _keeps
    if library.mallopt(_TRIM_THRESHOLD, _NEVER):
        # Some versions of glibc refuse thresholds above 32 MB, but not to do without such blocks.
        _keeps = bool(library.mallopt(_MMAP_THRESHOLD, LARGEST) or library.mallopt(_MMAP_MAX, 0))
    return _keeps


def give_back() -> None:
    """Hand to the system what malloc keeps and nobody uses; nothing unless :func:`keep_memory` took effect."""
    library = _glibc()
    if _keeps and library is not None:
        library.malloc_trim(0)


def chosen_otherwise(environment: Mapping[str, str]) -> bool:
    """Whether a person has set these things of malloc, or ``SONGBLOOM_MALLOC=0``, which leaves malloc as it is."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    return environment.get("SONGBLOOM_MALLOC") == "0" or any(
        f"MALLOC_{name}_" in environment or f"glibc.malloc.{name.lower()}=" in tunables for name in _SETTINGS
    )


@cache
def _glibc() -> Any:
    """The C library, where it is glibc; None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
    except OSError:
        return None
    if not all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    library.malloc_trim.argtypes, library.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return library
