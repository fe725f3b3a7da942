"""The sung corpus passes the check, divided and joined, too."""

from __future__ import annotations

from pathlib import Path

from songbloom.data.check import check_songs
from songbloom.data.combine import combine
from songbloom.data.split_jsonl import split_jsonl


def test_the_sung_corpus_through_check_split_and_combine(corpus: Path, tmp_path: Path):
    whole = corpus / "songs.jsonl"
    report = check_songs(whole, remember=False)
    assert [str(finding) for finding in report.findings] == []
    assert all(song.tokens and song.licence for song in report.songs)
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    assert split_jsonl(whole, train, val, ratio=0.3, seed=1) == (2, 1)
    assert check_songs(train, val).findings == []
    assert combine([train, val], tmp_path / "all.jsonl")[0] == 3
    assert check_songs(tmp_path / "all.jsonl").findings == []
    twice = check_songs(whole, val, remember=False)
    assert {finding.kind for finding in twice.errors} >= {"duplicate path", "group"}
