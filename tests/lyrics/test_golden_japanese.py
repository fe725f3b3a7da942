"""The reference lines: sixty kinds of trouble in Japanese lyrics give the phonemes that are sung."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.checkers.japanese import check_json

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", ["japanese_g2p.json", "japanese_kana_phonemes.json"])
def test_reference_files(name: str):
    assert check_json(GOLDEN / name) == []


def test_a_wrong_phoneme_fails(tmp_path: Path):
    content = json.loads((GOLDEN / "japanese_g2p.json").read_text(encoding="utf-8"))
    content["items"] = content["items"][5:6]  # 人気, which the dictionary reads otherwise
    content["items"][0]["sung_phonemes"][0] = "g"
    content["items"][0]["correct_kana"] = "キョーワ"
    path = tmp_path / "japanese_g2p.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert len(check_json(path)) == 3  # by phonemes, by kana, and with the word's reading given
