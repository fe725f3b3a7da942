"""What messages are made of."""

from __future__ import annotations

from songbloom.errors import counted


def test_a_count_and_its_noun_agree() -> None:
    assert [counted(number, "song") for number in (0, 1, 2, 1000)] == ["0 songs", "1 song", "2 songs", "1000 songs"]
    assert [counted(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]
    assert counted(1, "item is", "items are") == "1 item is"
