"""The floors of docs/design.md are those of the code: each room imports only rooms below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What stands on one floor and is imported nevertheless; design.md says why.
BESIDE = {("sampling", "training"), ("lora", "training")}


def floors() -> list[set[str]]:
    """Rooms as the page draws them, from the top."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    drawing = text.partition("## The floors")[2].partition("```")[0].partition("`distributed.py` stands")[0]
    below = drawing.partition("it never imports a file above this line\n")[2]
    rooms = [re.match(r" {4}((?:[a-z_]+(?:/|\.py) *)+)(?: |$)", line + " ") for line in below.splitlines()]
    return [{re.sub(r"/|\.py", "", name) for name in found[1].split()} for found in rooms if found]


def imported(path: Path) -> Iterator[str]:
    """Rooms that a module imports when it is loaded: not what it imports in functions, or for types only."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(statement, ast.ImportFrom) and statement.module == "songbloom":
            names = [f"songbloom.{each.name}" for each in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [statement.module or ""]
        elif isinstance(statement, ast.Import):
            names = [each.name for each in statement.names]
        yield from (name.split(".")[1] for name in names if name.startswith("songbloom.") and "__" not in name)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "songbloom").parts[0].removesuffix(".py")


def test_every_room_is_drawn_once() -> None:
    drawn = [room for floor in floors() for room in floor]
    rooms = {room_of(path) for path in (ROOT / "songbloom").rglob("*.py")} - {"__init__", "lifeline"}
    assert sorted(drawn) == sorted(rooms)


@pytest.mark.parametrize("path", sorted((ROOT / "songbloom").rglob("*.py")), ids=str)
def test_rooms_import_only_what_stands_below(path: Path) -> None:
    height = {room: -level for level, floor in enumerate(floors()) for room in floor}
    room = room_of(path)
    for other in imported(path):
        if room in height and other in height and other != room:
            assert height[other] < height[room] or (room, other) in BESIDE, f"{room} imports {other}"


def test_no_modules_go_round_in_a_circle() -> None:
    """Not even through what is imported in functions, or for types only."""
    paths = [*(ROOT / "songbloom").rglob("*.py"), *ROOT.glob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    reads: dict[str, set[str]] = {}
    for name, path in modules.items():
        statements = [each for each in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(each, ast.ImportFrom)]
        told = {(each.module or "", alias.name) for each in statements for alias in each.names}
        wanted = {f"{module}.{part}" if f"{module}.{part}" in modules else module for module, part in told}
        reads[name] = wanted & modules.keys() - {name}
    assert sum(map(len, reads.values())) > 500
    TopologicalSorter(reads).prepare()  # raises CycleError, which names them
