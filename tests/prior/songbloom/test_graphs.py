"""Steps as a GPU records them, unrecorded: the same functions with nothing but tensors changing, on a CPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from songbloom.prior.songbloom import graphs
from songbloom.prior.songbloom.generate import generate
from tests.prior.songbloom.tiny import SETTINGS, seeded, some_conditions, tiny_prior, with_end

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
RECORDED = graphs.Recorded


@torch.no_grad()
def test_positions_one_by_one_are_the_plain_ones():
    prior = tiny_prior()
    model, prefix = prior.language_model, some_conditions(prior).prefix()
    song = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(3))
    plain, static = (model.begin(prefix, [0, 0, 1], 12) for _ in range(2))
    static.values.fill_(torch.nan)  # as memory may hold anything
    static.keys.fill_(torch.nan)
    steps = graphs.LanguageSteps(model, static)
    for cache in (plain, static):
        model.step(song[:, :2], cache, fast=False)
    for t in range(2, 5):
        wanted = model.step(song[:, t : t + 1], plain, fast=False)
        torch.testing.assert_close(steps(song[:, t : t + 1]), wanted, **CLOSE)
    for cache in (plain, static):  # rows leave, and several positions come at once
        cache.select([0, 2])
        model.step(song[[0, 2], 5:7], cache, fast=False)
    for t in range(7, 9):
        wanted = model.step(song[[0, 2], t : t + 1], plain, fast=False)
        torch.testing.assert_close(steps(song[[0, 2], t : t + 1]), wanted, **CLOSE)
    assert plain.length == static.length == 9


@pytest.mark.parametrize("guidance", ["none", "h", "global"])
@pytest.mark.parametrize("changes", [{}, {"time_conditioning": "adaln"}, {"diffusion_objective": "v"}])
def test_whole_songs_are_those_of_the_plain_path(guidance, changes, monkeypatch):
    prior = with_end(tiny_prior(**changes), 5.0)
    conditions = some_conditions(prior)
    settings = replace(SETTINGS, dit_cfg_type=guidance, max_frames=12)

    def songs(**more):
        return generate(prior, conditions, settings, counts=[3, 1], generators=seeded(1, 2, 3, 4), **more)

    wanted = songs(fast=False)
    if not changes and guidance == "h":
        assert len({len(song.tokens) for song in wanted}) > 1, "songs leave"
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr("songbloom.prior.songbloom.generate.can_step_fast", lambda x: False)
    monkeypatch.setattr("songbloom.prior.songbloom.native.available", lambda x: False)
    taken = []
    monkeypatch.setattr(graphs, "Recorded", lambda *a, **k: taken.append(1) or RECORDED(*a, **k))
    for ours, theirs in zip(songs(), wanted, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.latents, theirs.latents, **CLOSE)
    assert len(taken) >= 2  # one of each kind of step


def test_a_recorded_function_is_fed_and_replayed(monkeypatch):
    """The order of things, with a recorder that notes them: warm up, record once, then copy in, replay, copy out."""
    told, recording = [], {}

    class Graph:
        def replay(self):
            told.append("replay")
            recording["made"].copy_(recording["run"]())

    class Entered:
        def __init__(self, graph=None):
            self.graph = graph

        def __enter__(self):
            told.extend(["record"] if self.graph else [])

        def __exit__(self, *of):
            pass

        def wait_stream(self, other):
            pass

    fake = SimpleNamespace(
        Stream=Entered, current_stream=Entered, stream=lambda stream: stream, CUDAGraph=Graph, graph=Entered
    )
    monkeypatch.setattr(torch, "cuda", fake)

    def function(a, b):
        told.append("run")
        recording["run"] = lambda: a * b
        recording["made"] = a * b
        return recording["made"]

    step = graphs.Recorded(function, record=True)
    first = step(torch.tensor([2.0]), torch.tensor([3.0]))
    second = step(torch.tensor([4.0]), torch.tensor([5.0]))
    assert (first.item(), second.item()) == (6.0, 20.0), "a result is the caller's own"
    assert told == ["run", "run", "record", "run", "replay", "replay"]
