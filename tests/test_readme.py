"""The READMEs' commands run as they stand, in a folder of their own, and both READMEs have the same ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROGRAMS = [path for path in ROOT.glob("*.py") if path.name != "setup.py"]

# What the commands of published size get in addition here, so that they end in seconds; options given last win.
FEW = "--bs=2 --nworkers=0 --train_steps=2"
PRIOR = f"--blocks=8 --prior_width=32 --prior_depth=3 {FEW}"
SHRINK = {
    "--hps=small_vqvae ": f"--sample_length=8192 --width=8 --depth=1 --l_bins=32 {FEW}",
    "small_prior": f"--n_ctx=64 --sample_length=16384 {PRIOR}",
    "small_upsampler": f"--n_ctx=128 --sample_length=4096 --cond_width=16 --cond_depth=2 {PRIOR}",
    "--model=small": "--n_samples=1 --sample_length_in_seconds=1",
}


def blocks(readme: str) -> dict[str, list[str]]:
    """The commands of each marked block, without comments."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    found = re.findall(r"<!-- commands: (\w+) -->\n```sh\n(.*?)```", text, re.DOTALL)
    return {name: [line for line in body.splitlines() if line and not line.startswith("#")] for name, body in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for program in PROGRAMS:
        shutil.copy(program, tmp_path)
    shutil.copytree(ROOT / "docs" / "demo", tmp_path / "docs" / "demo")
    return tmp_path


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_both_readmes_have_the_same_commands() -> None:
    english, japanese = blocks("README.md"), blocks("README_ja.md")
    assert set(english) == {"tour", "words", "bloom", "small", "help"}
    assert english == japanese


def test_links_lead_somewhere() -> None:
    for readme in ("README.md", "README_ja.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / readme).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{readme}: {target}"


@pytest.mark.slow
def test_the_tour(folder: Path) -> None:
    commands = blocks("README.md")
    for command in commands["tour"] + commands["words"] + commands["bloom"]:
        run(command, folder)
    assert (folder / "samples" / "words" / "alignment" / "item_0.lrc").exists()
    page = folder / "samples" / "tour" / "index.html"
    assert page.exists()
    for name in ("tour", "bloom"):
        assert len(list((folder / "samples" / name / "level_0").glob("*.wav"))) == 2


@pytest.mark.slow
def test_published_commands(folder: Path) -> None:
    run("python -m songbloom.data.prepare.sung_corpus --output_dir songs --songs 3 --seconds 6 --seed 2", folder)
    codec = " --width=8 --depth=1 --l_bins=32"
    for command in blocks("README.md")["small"]:
        extra = next(extra for words, extra in SHRINK.items() if words in command)
        if "--prior" in command:
            extra += codec
        run(f"{command} {extra}", folder)
    assert (folder / "samples" / "mine" / "level_0" / "item_0.wav").exists()


def test_help(folder: Path) -> None:
    for command in blocks("README.md")["help"]:
        assert len(run(command, folder).splitlines()) > 20
