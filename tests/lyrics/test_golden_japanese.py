"""The reference lines: trouble of many kinds in Japanese lyrics gives the phonemes that are sung."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.check import check_file

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", ["japanese_g2p.json", "japanese_kana_phonemes.json"])
def test_reference_files(name: str):
    golden = check_file(GOLDEN / name)
    assert not golden.failures(), "\n".join(golden.failures())


def test_a_wrong_phoneme_fails(tmp_path: Path):
    content = json.loads((GOLDEN / "japanese_g2p.json").read_text(encoding="utf-8"))
    content["items"] = content["items"][5:6]  # 人気, which the dictionary reads otherwise
    content["count"] = 1
    content["items"][0]["sung_phonemes"][0] = "g"
    content["items"][0]["correct_kana"] = "キョーワ、ニンキ"
    path = tmp_path / "japanese_g2p.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    failures = check_file(path).failures()
    assert len(failures) == 3, failures  # by phonemes, by kana, and with the word's reading given
