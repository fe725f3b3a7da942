"""The fast paths against the plain ones: velocities, the language model's steps, whole songs; where they are off."""

from dataclasses import replace

import pytest
import torch

from songbloom.prior.songbloom import layers, native, steps
from songbloom.prior.songbloom.generate import generate
from songbloom.prior.songbloom.layers import TiledMLP, can_step_fast
from songbloom.prior.songbloom.steps import DiffusionSteps
from songbloom.transformer.lora import LowRank, add_adapter
from songbloom.transformer.native import loader
from tests.prior.songbloom.tiny import SETTINGS, seeded, some_codes, some_conditions, tiny_prior, with_end

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MODELS = {
    "prepended time": {},
    "one layer": {"dit_depth": 1},
    "three layers": {"dit_depth": 3},
    "half of a head turned": {"heads": 1, "patch_size": 4},
    "adaln": {"time_conditioning": "adaln"},
    "adaln, one layer": {"time_conditioning": "adaln", "dit_depth": 1},
    "tiles that don't divide": {"m_mlp": 2.6},
}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(layers, "TILE", 64)  # several at the tests' width


def patch_inputs(prior, n, seed):
    generator = torch.Generator().manual_seed(seed)
    size, channels, width = prior.config.patch_size, prior.config.latent_width, prior.config.prior_width
    shapes = ((n, size, channels), (n, width), (n, size, width), (n, size, channels))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def adapted(prior):
    """The prior with an adapter on everything that the fast paths read by themselves."""
    parts = [part for layer in prior.diffusion.layers for part in (layer.query_key_value, layer.mlp.down)]
    parts += [part for layer in prior.language_model.layers for part in (layer.mlp.gate_up, layer.query_key_value)]
    for seed, part in enumerate(parts):
        generator = torch.Generator().manual_seed(seed)
        adapter = LowRank(part.weight.shape[1], part.weight.shape[0], rank=2, alpha=2.0, generator=generator)
        with torch.no_grad():
            adapter.B.normal_(std=0.3, generator=generator)
        add_adapter(part, "low", adapter)
    return prior


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_velocities_of_patch_after_patch_are_those_of_the_plain_transformer(model, copied, small_tiles, monkeypatch):
    if not copied:
        monkeypatch.setattr(steps, "COPIED_BYTES", 0)
    prior = tiny_prior(**MODELS[model])
    fast = DiffusionSteps(prior.diffusion)
    for seed, n in enumerate((2, 3, 1)):  # songs may end in between
        x, hidden, sketch, previous = patch_inputs(prior, n, seed)
        known = prior.diffusion.known(hidden, sketch, previous)
        fast.begin(known)
        for t in torch.tensor([1.0, 0.4, 0.0]):
            time = prior.diffusion.time(t[None]).expand(n, -1)
            torch.testing.assert_close(fast.velocity(x, t), prior.diffusion.velocity(x, time, known), **CLOSE)
            x = 0.5 * x + 0.1


@torch.no_grad()
def test_adapters_that_are_not_merged_are_heard():
    without, prior = tiny_prior(), adapted(tiny_prior())
    x, hidden, sketch, previous = patch_inputs(prior, 2, 0)
    known, t = prior.diffusion.known(hidden, sketch, previous), torch.tensor(0.3)
    found = []
    for each in (prior, without):
        fast = DiffusionSteps(each.diffusion)
        fast.begin(known)
        found.append(fast.velocity(x, t))
    time = prior.diffusion.time(t[None]).expand(2, -1)
    torch.testing.assert_close(found[0], prior.diffusion.velocity(x, time, known), **CLOSE)
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("with_adapters", [False, True])
@torch.no_grad()
def test_the_language_model_reads_and_steps_as_the_plain_one(length, with_adapters, small_tiles):
    prior = tiny_prior(prior_depth=3, m_mlp=2.6)
    model = (adapted(prior) if with_adapters else prior).language_model
    generator = torch.Generator().manual_seed(0)
    prefixes = [torch.randn(40, 64, generator=generator) for _ in range(2)]
    prefixes[1][:25] = 0  # as without a style prompt
    outputs = []
    for fast in (True, False):
        read = [model.read(prefix, fast=fast) for prefix in prefixes]
        cache = model.begin(read, [0, 0, 1], 50)
        song = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(1))
        parts = song.split([3, length, 50 - 3 - length], dim=1)
        outputs.append((torch.cat([model.step(part, cache, fast=fast) for part in parts], dim=1), read))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], **CLOSE)
    for one, other in zip(outputs[0][1], outputs[1][1], strict=True):
        for a, b in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda x: False)
    elif loader.library("song") is None:
        pytest.skip("the native steps cannot be built here")


@pytest.mark.parametrize("guidance", ["none", "h", "global"])
@pytest.mark.parametrize("time", ["prepend", "adaln"])
def test_whole_songs_are_those_of_the_plain_path(time, guidance, way):
    prior = with_end(tiny_prior(time_conditioning=time), 3.0)
    settings = replace(SETTINGS, dit_cfg_type=guidance, cfg_diffusion=2.0, diffusion_temperature=0.6, steps=4)
    conditions, known = some_conditions(prior), some_codes(prior, 3, 3)
    for given in ({}, {"known": known}, {"sketch": list(some_codes(prior, 3, 9)[0])}):
        one, other = (
            generate(prior, conditions, settings, counts=[2, 1], generators=seeded(1, 2, 3), fast=fast, **given)
            for fast in (True, False)
        )
        for song, plain in zip(one, other, strict=True):
            assert song.tokens.tolist() == plain.tokens.tolist()
            torch.testing.assert_close(song.latents, plain.latents, rtol=1e-4, atol=1e-4)


def test_fast_paths_are_taken_only_where_nobody_asks_for_gradients_and_in_float32(monkeypatch):
    x = torch.ones(2, 2)
    assert not can_step_fast(x)
    with torch.no_grad():
        assert can_step_fast(x) and not can_step_fast(x.bfloat16())
        assert not can_step_fast(torch.ones(2, 2, device="meta"))
    taken = []
    monkeypatch.setattr(native, "available", lambda x: False)  # where it is: test_native.py
    begin = DiffusionSteps.begin
    monkeypatch.setattr(DiffusionSteps, "begin", lambda self, known: (taken.append(1), begin(self, known))[1])
    prior = tiny_prior()
    for more, patches in (({}, 3), ({"fast": False}, 0), ({"precision": "bf16"}, 0)):
        taken.clear()
        settings = replace(SETTINGS, min_frames=100)
        generate(prior, some_conditions(prior, 1), settings, generators=seeded(1), **more)
        assert len(taken) == patches


def test_training_does_not_meet_them(monkeypatch):
    prior = tiny_prior().train()
    tokens, latents = some_codes(prior, 1, 6)
    for name in ("add_to", "__init__"):
        monkeypatch.setattr(TiledMLP, name, lambda *_, **__: pytest.fail("tiles know no gradients"))
    loss, _ = prior(tokens, latents, torch.tensor([6]), [[3]], generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert all(parameter.grad is not None for parameter in prior.language_model.parameters())
