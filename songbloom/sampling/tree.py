"""The family of a run: what it goes on from, what goes on from it, and the script that shows all of it on their pages.

    {name}/run.json        "parent": the run it goes on from and, for each item, from which item of that, how and with
                           which seed
    {name}/children.json   the runs that went on from it, as paths from its folder; nothing depends on it but speed
    {name}/tree.js         the family as data for the pages, renewed in every folder of it when one of them is written

Folders are named relative to each other, so a family can be moved as a whole. A run that was moved alone is looked for
among its former neighbours, and known again by what it was asked for. What is not found is left out, or shown as gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from songbloom.errors import UserError
from songbloom.files import write_text
from songbloom.sampling.sampler import item_seeds

RECORD = "run.json"
CHILDREN = "children.json"
SCRIPT = "tree.js"
LARGEST_FAMILY = 200  # runs on a page
_MOST_NEIGHBOURS = 1000  # folders that are looked into beside one
_LEVEL = re.compile(r"level_(\d+)")
_SOUND = re.compile(r"item_(\d+)\.(?:wav|flac|mp3)")


def run_id(settings: Mapping[str, Any]) -> str:
    """A name for what a run was asked for, wherever its folder is."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def seeds_of_settings(settings: Mapping[str, Any]) -> list[int]:
    """The seed of each item of a run, from what the run was asked for; none where that does not tell."""
    given, seed, items = (settings.get(key) for key in ("seeds", "seed", "n_samples"))
    if isinstance(given, Sequence) and all(isinstance(each, int) for each in given):
        return list(given)
    return item_seeds(seed, range(items)) if isinstance(seed, int) and isinstance(items, int) else []


Reader = Callable[[Path], dict[str, Any] | None]
"""From the folder of a run to its ``run.json``, as :func:`read_record`."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The ``run.json`` of a folder; None where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    fine = isinstance(record, dict) and isinstance(record.get("settings"), dict)
    return record if fine else None


def path_from(start: Path, target: Path) -> str:
    """``target`` as a path from the folder ``start``, where there is a way; it goes into files that may be moved."""
    try:
        return Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return target.resolve().as_posix()


# --- finding the family ---------------------------------------------------------------------------------------------


def _neighbours(place: Path) -> Iterator[Path]:
    """The folders of runs inside a folder."""
    try:
        inside = sorted(place.iterdir())[:_MOST_NEIGHBOURS]
    except OSError:
        return
    yield from (each for each in inside if (each / RECORD).is_file())


def find_parent(folder: Path, parent: Mapping[str, Any], read: Reader = read_record) -> Path | None:
    """Where the run is that ``parent`` of the run in ``folder`` tells of; None where it is nowhere near."""
    wanted, recorded = parent.get("id"), parent.get("folder")
    if not isinstance(recorded, str):
        return None
    place = Path(os.path.normpath(folder.resolve() / recorded))
    record = read(place)
    if record and (not wanted or run_id(record["settings"]) == wanted):
        return place
    if not wanted:
        return None
    for neighbour in (*_neighbours(place.parent), *_neighbours(folder.resolve().parent)):
        record = read(neighbour)
        if record and run_id(record["settings"]) == wanted:
            return neighbour
    return None


def _listed(folder: Path) -> list[str]:
    try:
        listed = json.loads((folder / CHILDREN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def find_children(folder: Path, read: Reader = read_record) -> list[Path]:
    """The runs that went on from the one in ``folder``: those that told it, and those beside it."""
    folder = folder.resolve()
    record = read(folder)
    own = run_id(record["settings"]) if record else ""
    told = [Path(os.path.normpath(folder / each)) for each in _listed(folder)]
    found = []
    for place in dict.fromkeys([*told, *_neighbours(folder.parent)]):
        child = None if place == folder else read(place)
        parent = child and child.get("parent")
        if not isinstance(parent, dict):
            continue
        where = os.path.normpath(place / str(parent.get("folder")))
        if (parent.get("id") and parent["id"] == own) or (not parent.get("id") and where == str(folder)):
            found.append(place)
    return found


def family(folder: Path) -> list[tuple[Path | None, int]]:
    """The runs that are related to the one in ``folder``, from the first, each before what goes on from it.

    Returns:
        Pairs of a folder and of the place in this list of the run it goes on from, -1 for the first. The folder is None
        for a first run that is gone.
    """
    read = cache(read_record)  # neighbours are looked at again for every run of the family
    top, above = folder.resolve(), {folder.resolve()}
    gone = False
    while True:
        parent = (read(top) or {}).get("parent")
        if not isinstance(parent, dict):
            break
        place = find_parent(top, parent, read)
        if place is None or place in above:
            gone = place is None
            break
        top = place
        above.add(top)
    found: list[tuple[Path | None, int]] = [(None, -1)] if gone else []
    _gather(top, len(found) - 1, found, above, read)
    return found


def _gather(folder: Path, parent: int, found: list[tuple[Path | None, int]], wanted: set[Path], read: Reader) -> None:
    """Add a run and all that goes on from it; of a family that is too large, those first that are ``wanted``."""
    waiting, seen = [(folder, parent)], set()
    while waiting and len(found) < LARGEST_FAMILY:
        place, before = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        found.append((place, before))
        children = sorted(find_children(place, read), key=lambda each: (each in wanted, _newest_last(each)))
        waiting += [(child, len(found) - 1) for child in children]


def _newest_last(folder: Path) -> tuple[float, str]:
    """Sorts so that, taken from the end, older runs come before newer ones."""
    try:
        return -(folder / RECORD).stat().st_mtime, folder.name
    except OSError:
        return 0.0, folder.name


# --- what pages show ------------------------------------------------------------------------------------------------


def _sounds(folder: Path) -> tuple[int, dict[int, Path]]:
    """The finest level that has sounds, and its items' files; level -1 where there is none."""
    levels = sorted(
        (int(match[1]), each) for each in folder.glob("level_*") if (match := _LEVEL.fullmatch(each.name)) is not None
    )
    for level, place in levels:
        sounds = {int(match[1]): each for each in place.glob("item_*.*") if (match := _SOUND.fullmatch(each.name))}
        if sounds:
            return level, dict(sorted(sounds.items()))
    return -1, {}


def _node(folder: Path, start: Path) -> dict[str, Any]:
    """One run as its relatives' pages show it; files are named from the folder ``start``."""
    record = read_record(folder) or {"settings": {}}
    settings, parent = record["settings"], record.get("parent")
    seeds = seeds_of_settings(settings)
    parent = parent if isinstance(parent, dict) else {}
    listed = parent.get("items")
    ways = [each if isinstance(each, dict) else {} for each in (listed if isinstance(listed, list) else ())]
    level, sounds = _sounds(folder)
    items = [
        {
            "item": item,
            "sound": quote(path_from(start, path)),
            "seed": str(seeds[item]) if item < len(seeds) else "",
            "from": ways[item].get("item") if item < len(ways) else None,
        }
        for item, path in sounds.items()
    ]
    length, rate = settings.get("sample_length"), record.get("sample_rate")
    timed = isinstance(length, (int, float)) and isinstance(rate, (int, float)) and rate > 0
    page = folder / "index.html"
    return {
        "title": folder.name,
        "page": quote(path_from(start, page)) if page.is_file() else "",
        "here": folder == start.resolve(),
        "level": level,
        "mode": str(parent.get("mode") or settings.get("mode") or ""),
        "kept": parent.get("kept_seconds"),
        "seconds": length / rate if timed and length is not None and rate is not None else None,
        "items": items,
    }


def collect(folder: Path) -> list[dict[str, Any]]:
    """The family of the run in ``folder`` as plain data, parents before children.

    Returns:
        For each run ``title``, ``page`` (from ``folder``; empty for none), ``parent`` (its place in the list, -1 for
        the first), ``here``, ``gone``, ``level``, ``mode``, ``kept`` and ``seconds`` (or None) and ``items``: each with
        ``item``, ``sound``, ``seed`` and ``from``.
    """
    return _collected(family(folder), folder)


def _collected(members: Sequence[tuple[Path | None, int]], start: Path) -> list[dict[str, Any]]:
    nodes = []
    for place, (folder, before) in enumerate(members):
        if folder is None:
            child = next(each for each, parent in members if parent == place)
            record = read_record(child) if child is not None else None
            title = str(((record or {}).get("parent") or {}).get("title") or "?")
            node = {"title": title, "page": "", "here": False, "level": -1, "items": [], "gone": True}
            nodes.append({**node, "mode": "", "kept": None, "seconds": None, "parent": before})
        else:
            nodes.append({**_node(folder, start), "gone": False, "parent": before})
    return nodes


def script(nodes: Sequence[Mapping[str, Any]]) -> str:
    """``tree.js``: a page that is opened as a file may run a script beside it, but may not read data beside it."""
    data = json.dumps(nodes, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return f"window.songbloomTree = {data};\n"


def renew(folder: Path | str) -> None:
    """Tell the run that the one in ``folder`` goes on from of it, and write the family anew for all of their pages.

    Relatives that cannot be written, on a disk of somebody else say, keep what they have.

    Raises:
        UserError: the run's own folder cannot be written.
    """
    folder = Path(folder).resolve()
    record = read_record(folder) or {}
    parent = record.get("parent")
    place = find_parent(folder, parent) if isinstance(parent, dict) else None
    if place is not None:
        listed, own = _listed(place), path_from(place, folder)
        if own not in listed:
            _try_to_write(place / CHILDREN, json.dumps([*listed, own], indent=1, ensure_ascii=False) + "\n")
    members = family(folder)
    if folder not in [each for each, _ in members]:  # of a family that is too large
        members = [*members, (folder, -1)]
    write_text(folder / SCRIPT, script(_collected(members, folder)))
    for relative, _ in members:
        if relative is not None and relative != folder:
            _try_to_write(relative / SCRIPT, script(_collected(members, relative)))


def _try_to_write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except UserError:
        return
