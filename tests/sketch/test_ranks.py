"""Real processes: the number of ranks doesn't change what a sketch codebook learns, and ranks stay alike to the bit."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.programs import results_of_ranks

PROGRAM = """
import sys, torch
from songbloom import distributed
from tests.sketch.tiny import trainer, sound

def main():
    place = distributed.start("cpu")
    torch.set_num_threads(1)
    model = trainer(sketch_codes=24, sketch_start_rows=150)
    share = 4 // place.size
    mine = slice(place.rank * share, (place.rank + 1) * share)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(6):
        loss, numbers = model(sound(4, 1.0, 8000, seed=step)[mine])
        optimiser.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            distributed.all_reduce_(parameter.grad)
            parameter.grad /= place.size
        optimiser.step()
    numbers = {name: float(number) for name, number in numbers.items()}
    torch.save({"model": model.state_dict(), "state": model.codebook_state(), "numbers": numbers},
               f"{sys.argv[1]}/{place.size}_{place.rank}.pt")

distributed.run(main)
"""


def test_ranks_learn_the_same_codebook(tmp_path: Path) -> None:
    (alone,) = results_of_ranks(PROGRAM, tmp_path, 1)
    several = results_of_ranks(PROGRAM, tmp_path, 2)
    assert alone["numbers"]["started"] == 1.0
    for one in several:
        for name, tensor in one["model"].items():
            assert torch.equal(tensor, several[0]["model"][name]), f"ranks differ in {name}"
            torch.testing.assert_close(tensor, alone["model"][name], atol=1e-4, rtol=1e-3)
        mine, first, whole = (each["state"]["quantiser"] for each in (one, several[0], alone))
        for name in ("sums", "uses"):
            assert torch.equal(mine[name], first[name]), f"ranks differ in {name}"
            torch.testing.assert_close(mine[name], whole[name], atol=1e-3, rtol=1e-3)
        assert torch.equal(mine["random"], whole["random"])
        for name in ("usage", "perplexity", "revived"):
            assert abs(one["numbers"][name] - alone["numbers"][name]) < 1e-2
