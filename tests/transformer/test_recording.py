"""What is recorded, in which order, and that replays compute with what their memory then holds."""

from __future__ import annotations

import pytest
import torch

from songbloom.transformer.recording import record
from tests.transformer import recorder


@pytest.mark.parametrize("times", [2, 3])
def test_a_function_is_warmed_up_recorded_and_replayed(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = recorder.install(monkeypatch)
    given, count = torch.tensor([2.0, 3.0]), torch.zeros(1)

    def run() -> torch.Tensor:
        told.append("run")
        count.add_(1)
        return (given * given + count).view(2, 1)

    def warm_up() -> None:
        run()
        count.zero_()
        told.append("put back")

    graph, made = record(run, warm_up=warm_up, times=times)
    rounds = ["run", "put back"] * times
    before = ["side waits for main", "on side", *rounds, "off side", "main waits for side"]
    assert told == [*before, "record", "run", "recorded"]
    count.zero_()
    for number, values in enumerate(([1.0, 2.0], [5.0, 7.0]), 1):
        given.copy_(torch.tensor(values))
        graph.replay()
        assert made.flatten().tolist() == [value * value + number for value in values]
    assert told[-2:] == ["replay", "replay"] and told.count("run") == times + 1  # nothing is called again
