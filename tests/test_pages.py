"""The documentation's pages: their commands are understood by the programs, and what is installed is explained."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import align
import evaluate
import hparams
from make_models import MODELS
from songbloom.sampling import request

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "README_ja.md"]
PROGRAM = re.compile(r"\bpython (train\.py|sample\.py|align\.py|evaluate\.py|-m songbloom[\w.]*) (.*)")
# What a package is called where it is imported, if otherwise.
NAMES = {"av": "av (PyAV)", "pyopenjtalk": "pyopenjtalk-plus", "PIL": "pillow", "yaml": "pyyaml", "amp_C": "apex"}
NAMES |= {"text_unidecode": "text-unidecode"}


def commands() -> list[tuple[str, str]]:
    """``(page, command)`` of every indented or fenced command that stands there whole."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?m)^(?: {4}|python |mpiexec ).*$", text):
            command = PROGRAM.search(line)
            if command and "…" not in line and " [-" not in line and "[MORE" not in line:
                found.append((page.name, f"{command[1]} {command[2]}"))
    return found


def test_there_are_commands_on_many_pages() -> None:
    assert len(commands()) > 150 and len({page for page, _ in commands()}) > 20


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"artist": "Mei"}\n' * 2)
    program, *arguments = shlex.split(command, comments=True)
    if program == "train.py":
        assert hparams.training_command(arguments).notices == []
    elif program == "sample.py":
        assert request.command_line(arguments, MODELS).name or "--help" in arguments
    elif program in ("align.py", "evaluate.py"):
        assert (align if program == "align.py" else evaluate).command_line(arguments)
    else:
        module = importlib.import_module(arguments.pop(0))
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{module.__name__}.__main__")
        knobs = getattr(module, "KNOBS", None) or getattr(module, "_KNOBS", None)
        if knobs is not None:
            assert knobs.parse(arguments if arguments[0].startswith("-") else arguments[1:])
        else:
            assert module._parser().parse_args(arguments)


# --- what is installed ------------------------------------------------------------------------------------------------


def requirements(name: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {re.split(r"[<>=]", line)[0] for line in lines if line}


def imported() -> set[str]:
    """Packages of others that the library and the programs import, anywhere."""
    files = [*(ROOT / "songbloom").rglob("*.py"), *(path for path in ROOT.glob("*.py") if path.name != "setup.py")]
    own = {path.stem for path in ROOT.glob("*.py")} | {"songbloom"}
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - own - set(sys.stdlib_module_names)


def test_every_package_is_explained() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    core, others = page.split("Extras, installed only when asked for:")
    told = {name.strip() for row in re.findall(r"(?m)^\| ([^|]+) \|", core) for name in row.split(",")}
    needed = requirements("requirements.txt")
    assert {name.partition(" ")[0] for name in told} - {"package", "---"} == needed
    assert all(re.search(rf"\b{name}\b", others) for name in requirements("requirements-test.txt"))
    for name in imported():
        package = NAMES.get(name, name)
        assert package in told or re.search(rf"\b{package}\b", others), f"{name}: nobody says why it is imported"
