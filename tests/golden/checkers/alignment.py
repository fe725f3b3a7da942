"""Golden alignments: from the attention of windows to matrices, blurred rows, symbols and pictures."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.lyrics.vocabulary import vocabulary
from songbloom.lyrics.window import lyric_window
from songbloom.sampling import alignment
from tests.golden.report import Golden

FILES = {"align.json", "align.png", "lyrics.json"}  # what the numbers below are written to, for each item


def check_alignment(golden: Golden) -> None:
    """All of a file's cases; indices and rows exact, the matrix too, for nothing is computed on the way."""
    for case in golden.look():
        _check_case(golden, case)


def _check_case(golden: Golden, case: str) -> None:
    n_ctx, n_tokens = golden.given(case, "n_ctx"), golden.given(case, "n_tokens")
    total, head = golden.given(case, "total_length"), golden.given(case, "alignment_head")
    hop = int(golden.given(case, "hop_fraction") * n_ctx)
    metas, y = golden.given(case, "metas"), golden.given(case, "y")
    attention, full = golden.given(case, "attn"), golden.given(case, "full_tokens")
    starts = alignment.window_starts(total, n_ctx, hop)
    golden.expect(case, "starts", got=starts)
    per_code = int(y[0, 2]) // n_ctx  # the third column is the length of a window in samples
    # Numbers stay tensors of int64, so that their products are float32, as a prior's labels are moved to a window.
    indices = {
        start: [
            lyric_window(len(tokens), n_tokens, row[0], row[1] + start * per_code, row[2])
            for tokens, row in zip(full, y, strict=True)
        ]
        for start in starts
    }
    golden.expect(case, "indices", got=indices)
    written = golden.given(case, "item_files")
    for item, (tokens, meta) in enumerate(zip(full, metas, strict=True)):
        matrix = alignment.assemble(_attend(attention, indices, item, head), starts, total, len(tokens))
        golden.expect(case, "alignments", item, got=torch.from_numpy(matrix), name=f"{case}.alignments")
        golden.expect(case, "align_json", item, got=alignment.grey_rows(matrix), name=f"{case}.align_json")
        symbols = alignment.shifted_symbols(_symbols(tokens, meta["lyrics"]), matrix)
        golden.expect(case, "lyrics_json", item, got=symbols, name=f"{case}.lyrics_json")
        picture = alignment.grey_picture(matrix)
        golden.expect(case, "align_png_shape", item, got=list(picture.shape), name=f"{case}.align_png_shape")
        means = torch.from_numpy(picture.mean(axis=1)).float()
        golden.expect(case, "align_png_rowmean", item, got=means, abs=2e-5, rel=1e-5, name=f"{case}.align_png_rowmean")
        assert set(written[item]) >= FILES


def _symbols(tokens: list[int], lyrics: str) -> list[str]:
    """The characters of a file's tokens, by the vocabulary that gives these tokens for its lyrics."""
    for name in ("v2", "v3"):
        one = vocabulary(name)
        if list(one.tokenize(lyrics).ids) == list(tokens):
            return [one.symbols[token] for token in tokens]
    raise AssertionError(f"no vocabulary gives the file's tokens for {lyrics!r}")


def _attend(attention: Any, indices: dict[int, list[list[int]]], item: int, head: int) -> alignment.Attend:
    return lambda start: (attention[start][item, head].numpy(), indices[start][item])


CHECKS = {"jukebox_alignment": check_alignment}
