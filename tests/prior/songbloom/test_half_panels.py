"""Looks whose matrices are multiplied in half precision, against those of float32 and of torch's bfloat16."""

from dataclasses import replace

import pytest
import torch

from songbloom.prior.songbloom import native
from songbloom.prior.songbloom.generate import generate
from songbloom.prior.songbloom.native import NativeDiffusion
from songbloom.transformer import halves as half_products
from songbloom.transformer.native import loader
from tests.prior.songbloom.test_native import plain_velocities, velocities
from tests.prior.songbloom.test_steps import MODELS, adapted, patch_inputs
from tests.prior.songbloom.tiny import SETTINGS, forbid_end, seeded, some_conditions, tiny_prior


def lacking(of_prompts: bool = False) -> str:
    """What looks, or prompts, lack for products in half precision here, in words; empty where they have them."""
    features = loader.cpu_features().split()
    if loader.library("song") is None:
        return "the native steps cannot be built here, or are switched off"
    if "avx512_fp16" not in features:
        return "this processor has no AVX512-FP16"
    if not native.multiplies_halves():
        return "the compiler here knows no AVX512-FP16"
    if of_prompts and "amx_bf16" in features:
        return "torch has a matrix unit here"
    return "the products of halves cannot be built here" if of_prompts and not half_products.available() else ""


pytestmark = pytest.mark.skipif(loader.library("song") is None, reason=lacking())
needs_halves = pytest.mark.skipif(bool(lacking()), reason=lacking())
needs_halves_of_prompts = pytest.mark.skipif(bool(lacking(of_prompts=True)), reason=lacking(of_prompts=True))
# Neither are whole panels of 32 outputs, nor whole runs or lanes of inputs.
SHAPES = {**MODELS, "odd width": {"prior_width": 72, "m_mlp": 0.99}, "long rows": {"prior_width": 160, "m_mlp": 3.0}}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def halves(prior, inputs, **more):
    return velocities(prior, inputs, half=True, **more)


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@needs_halves
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("songs", [1, 4, 30])  # of 11 positions: some tiles of 14 rows, one row less or more
def test_velocities_are_nearer_than_those_of_bfloat16(shape, songs):
    prior = tiny_prior(**SHAPES[shape])
    inputs = patch_inputs(prior, songs, 0)
    wanted, found = plain_velocities(prior, inputs), halves(prior, inputs)
    assert distance(found, wanted) < 6e-3
    plain = plain_velocities(prior, [inputs[0], *(each.bfloat16() for each in inputs[1:])])
    assert distance(found, wanted) < 0.4 * distance(plain, wanted)


@needs_halves
def test_matrices_may_be_bfloat16():
    prior = tiny_prior().store_matrices(torch.bfloat16)
    inputs = patch_inputs(prior, 3, 0)
    exact = velocities(prior, inputs)  # of the same matrices in float32
    assert 0 < distance(halves(prior, inputs), exact) < 6e-3


@needs_halves
@pytest.mark.parametrize("model", ["prepended time", "adaln", "tiles that don't divide"])
def test_a_songs_velocity_depends_on_nothing_but_the_song(model):
    prior = tiny_prior(**MODELS[model])
    inputs = patch_inputs(prior, 17, 0)
    inputs[1][3] *= 1e4  # a loud neighbour
    together, before = halves(prior, inputs), torch.get_num_threads()
    for first, count in ((0, 1), (5, 1), (3, 4), (16, 1)):
        part = [each[first : first + count] for each in inputs]
        assert torch.equal(halves(prior, part), together[first : first + count])
    assert torch.equal(halves(prior, inputs, copied_bytes=0), together)
    try:
        torch.set_num_threads(3)
        assert torch.equal(halves(prior, inputs), together)
    finally:
        torch.set_num_threads(before)


@needs_halves
def test_rows_that_are_alike_are_computed_once_and_exactly(monkeypatch):
    prior = tiny_prior(dit_depth=3)
    prior.diffusion.layers[0].attention_norm.bias.zero_()
    inputs = patch_inputs(prior, 6, 0)
    for part in inputs[1:3]:
        part[4:] = 0
    once = halves(prior, inputs)
    monkeypatch.setattr(NativeDiffusion, "_blind_from", lambda self, known: len(known))
    assert torch.equal(halves(prior, inputs), once)


@needs_halves
def test_neither_large_nor_small_numbers_leave_its_range():
    """Numbers of 1e5 and more times numbers of 1e-6: powers of two change nothing, bit by bit."""
    prior, hidden = tiny_prior(), tiny_prior().config.mlp_width
    inputs = patch_inputs(prior, 3, 0)
    wanted = halves(prior, inputs)
    for layer in prior.diffusion.diffusion_layers():
        for norm, matrix in (
            (layer.attention_norm, layer.query_key_value),
            (layer.mlp_norm, layer.mlp.gate_up),
        ):
            norm.weight.mul_(2.0**17)
            norm.bias.mul_(2.0**17)
            matrix.weight.mul_(2.0**-17)
        layer.mlp.gate_up.weight[hidden:].mul_(2.0**24)
        layer.mlp.down.weight.mul_(2.0**-24)
    assert prior.diffusion.layers[0].mlp.down.weight.abs().max() < 1e-6
    assert torch.equal(halves(prior, inputs), wanted)


@needs_halves
def test_channels_of_very_different_sizes_and_rows_of_zeros():
    prior = tiny_prior()
    inputs = patch_inputs(prior, 3, 0)
    inputs[1][:, 0] = 1e5
    inputs[2][1] = 0
    for layer in prior.diffusion.diffusion_layers():
        layer.attention_norm.weight[1] = 1e5
        layer.mlp.gate_up.weight[:, 2] *= 1e-6
        layer.mlp.down.weight[3] = 0
    found, wanted = halves(prior, inputs), plain_velocities(prior, inputs)
    assert bool(found.isfinite().all())
    plain = plain_velocities(prior, [inputs[0], *(each.bfloat16() for each in inputs[1:])])
    assert distance(found, wanted) < 0.4 * distance(plain, wanted)


@needs_halves
def test_what_is_not_finite_stays_so():
    prior = tiny_prior()
    for bad in (float("nan"), float("inf")):
        inputs = patch_inputs(prior, 2, 0)
        inputs[0][1, 0, 0] = bad
        found = halves(prior, inputs)
        assert bool(found[0].isfinite().all()) and not bool(found[1].isfinite().any())


@needs_halves_of_prompts
@pytest.mark.parametrize("with_adapters", [False, True])
def test_prompts_are_nearer_than_those_of_bfloat16(with_adapters):
    prior = tiny_prior(prior_depth=4, m_mlp=2.6)
    model = (adapted(prior) if with_adapters else prior).language_model
    prefix = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    prefix[:25] = 0  # as without a style prompt
    read = [model.read(prefix.float()), model.read(prefix), model.read(prefix, fast=False)]
    for wanted, near, far in zip(*((*each.keys, *each.values) for each in read), strict=True):
        assert near.dtype == torch.bfloat16 and torch.equal(near[:, :25], torch.zeros_like(near[:, :25]))
        assert distance(near.float(), wanted) < min(6e-3, distance(far.float(), wanted))  # of which rounding takes 2e-3


def test_without_such_products_float32_takes_their_place(monkeypatch):
    monkeypatch.setattr(native, "multiplies_halves", lambda: False)
    prior = tiny_prior()
    inputs = patch_inputs(prior, 3, 0)
    assert torch.equal(halves(prior, inputs), velocities(prior, inputs))


def test_songs_in_float32_never_take_them_and_those_in_bf16_do(monkeypatch):
    asked = []
    real = NativeDiffusion.__init__

    def made(self, diffusion, *, half=False, **more):
        asked.append(half)
        real(self, diffusion, half=half, **more)

    monkeypatch.setattr(NativeDiffusion, "__init__", made)
    prior = forbid_end(tiny_prior())
    for precision in ("fp32", "bf16"):
        generate(prior, some_conditions(prior, 1), SETTINGS, generators=seeded(1), precision=precision)
    assert asked == [False, True]


@pytest.mark.parametrize("guidance", ["none", "h", "global"])
def test_songs_of_a_batch_in_bf16_are_those_of_batches_of_one(guidance):
    prior = forbid_end(tiny_prior()).store_matrices(torch.bfloat16)
    settings = replace(SETTINGS, dit_cfg_type=guidance, cfg_diffusion=2.0, max_frames=12)
    conditions = some_conditions(prior, 1)
    together = generate(prior, conditions, settings, counts=[5], generators=seeded(1, 2, 3, 4, 5), precision="bf16")
    for seed, song in enumerate(together, 1):
        (alone,) = generate(prior, conditions, settings, generators=seeded(seed), precision="bf16")
        assert torch.equal(alone.tokens, song.tokens) and torch.equal(alone.latents, song.latents)


@pytest.mark.slow
def test_code_without_the_instructions_says_so(tmp_path):
    if "-march=native" not in loader.machine_flags() or "avx2" not in loader.cpu_features():
        pytest.skip("needs a processor that runs such code")
    flags = (*loader.FLAGS, *loader.thread_flags(), "-mavx2", "-mfma")
    assert loader.load(flags, tmp_path, "song").song_halves() == 0
