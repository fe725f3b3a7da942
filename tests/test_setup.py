"""What an installation brings: every program and package, without a word to be afraid of."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests import programs

PROGRAMS = {path.name for path in programs.ROOT.glob("*.py")} - {"setup.py"}
BUILD = """
import sys
import setuptools.build_meta
getattr(setuptools.build_meta, "build_" + sys.argv[1])(sys.argv[2], {})
"""


def built(kind: str, folder: Path, target: Path) -> tuple[set[str], str]:
    """The files of a wheel that is made of the project in ``folder``, and what was said on stderr."""
    done = programs.run(folder, "-c", BUILD, kind, str(target), fresh=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist()), done.stderr


def test_an_editable_installation_warns_of_nothing(tmp_path: Path) -> None:
    files, said = built("editable", programs.ROOT, tmp_path)
    assert "!!" not in said and "Warning" not in said and "Editable installation." not in said
    assert any(name.endswith(".pth") for name in files)


def test_an_installation_has_all_programs_and_all_that_they_read(tmp_path: Path) -> None:
    """Made of links to the project's files, for it leaves a folder beside them."""
    copy, target = tmp_path / "copy", tmp_path / "wheel"
    copy.mkdir()
    target.mkdir()
    for path in programs.ROOT.iterdir():
        if path.is_file() or path.name == "songbloom":
            (copy / path.name).symlink_to(path)
    files, _ = built("wheel", copy, target)
    assert {name for name in files if "/" not in name} == PROGRAMS
    packages = programs.ROOT / "songbloom"
    wanted = {path for path in packages.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in files if name.startswith("songbloom/")} == {
        f"songbloom/{path.relative_to(packages).as_posix()}" for path in wanted
    }
