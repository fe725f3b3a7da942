"""Packaging: ``pip install -e .`` installs the library; the programs at the root run from the checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (HERE / "songbloom" / "__init__.py").read_text())[0]


def requirements(name: str) -> list[str]:
    """Requirement lines of one file, without comments and blank lines."""
    lines = (line.split("#")[0].strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="songbloom",
    version=VERSION,
    description="Train and sample song models on your own music, Japanese singing first",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "."},  # so that an editable installation is this folder on the path, and nothing to be warned of
    packages=find_packages(include=["songbloom", "songbloom.*"]),
    py_modules=["hparams", "make_models", "make_tasks", "train", "sample", "align", "evaluate"],
    package_data={
        "songbloom": [
            "**/*.html",
            "**/*.css",
            "**/*.js",
            "**/*.txt",
            "**/*.json",
            "**/*.gz",
            "**/*.npz",
            "**/*.cpp",
            "**/*.h",
        ]
    },
    install_requires=requirements("requirements.txt"),
    extras_require={
        # Second sung voice (NIT SONG070); built from source: needs a C++ compiler, and setuptools < 82 at run time.
        "voices": ["pysinsy==0.0.5", "setuptools<82"],
        # Chinese words as phonemes; other versions would make other phonemes
        "chinese": ["jieba==0.42.1", "pypinyin==0.51.0"],
        "test": requirements("requirements-test.txt"),
    },
)
