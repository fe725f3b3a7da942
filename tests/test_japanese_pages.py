"""The Japanese pages: a line of prose ends where a sentence does, since a browser shows a space where a line ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*_ja.md")), *sorted(ROOT.glob("*_ja.md"))]
_ITEM = re.compile(r"(?:[*-]|\d+\.) ")
# A sentence's end, and what may close behind it.
_END = re.compile(r"[。！？：][）」』*_`]*$")


def paragraphs(text: str) -> list[list[str]]:
    """The lines of each paragraph and list item; code, tables, headings and comments are left out."""
    found: list[list[str]] = []
    inside = fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced, inside = not fenced, False
        elif fenced or not line.strip() or line.startswith(("|", "#", "<!--")) or (line[:4] == "    " and not inside):
            inside = False
        elif inside and not _ITEM.match(line.lstrip()):
            found[-1].append(line)
        else:
            found.append([line])
            inside = True
    return found


def test_paragraphs() -> None:
    text = "# 題\n\n一。\n二\n三\n* 四\n  五。\n* 六\n\n    code\n    code\n\n| a |\n| b |\n```sh\n七\n八\n```\n九\n"
    assert paragraphs(text) == [["一。", "二", "三"], ["* 四", "  五。"], ["* 六"], ["九"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_end_where_sentences_do(page: Path) -> None:
    found = paragraphs(page.read_text(encoding="utf-8"))
    assert len(found) > 5
    broken = [line for lines in found for line in lines[:-1] if not _END.search(line)]
    assert broken == []
