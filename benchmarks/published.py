"""The table of docs/published.md: names, sizes and memory of published models, from their configurations.

python -m benchmarks.published
"""

from __future__ import annotations

from make_models import MODELS, make_model
from songbloom.prior.prior import Prior
from songbloom.published.jukebox.files import FILES
from songbloom.sampling.memory import item_bytes, weight_bytes

GIGABYTE = 1e9


def rows() -> list[str]:
    """The table in Markdown, a file a row; nothing is downloaded, and no memory used for weights."""
    priors: dict[str, Prior] = {}
    for model in ("5b", "5b_lyrics", "1b_lyrics"):
        _, made = make_model(model, "meta")
        priors |= dict(zip(MODELS[model][1:], made, strict=True))
    lines = [
        "| set | file | parameters | at least, GB | weights fp32, GB | weights fp16 or bf16, GB | an item fp32, GB | "
        "an item fp16 or bf16, GB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for file in FILES:
        of = priors.get(file.name)
        figures = [file.bytes]
        if of is None:
            cells = [f"{file.bytes / GIGABYTE:.3f}", f"{4 * file.parameters / GIGABYTE:.3f}", "–", "–", "–"]
        else:
            figures += [weight_bytes(of, "fp32"), weight_bytes(of, "fp16")]
            figures += [item_bytes(of, "fp32"), item_bytes(of, "fp16")]
            cells = [f"{figure / GIGABYTE:.2f}" for figure in figures]
        path = file.path.removeprefix("jukebox/models/")
        lines.append(f"| `{file.name}` | `{path}` | {file.parameters:,} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
