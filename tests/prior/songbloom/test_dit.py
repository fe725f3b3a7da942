"""The diffusion transformer: items apart, everything known heard, the last layer cut where nothing reads it."""

import pytest
import torch

from songbloom.prior.songbloom.layers import rotary_table, rotate
from tests.prior.songbloom.tiny import CONFIG, tiny_prior


def inputs(prior, n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size, channels, width = prior.config.patch_size, prior.config.latent_width, prior.config.prior_width
    shapes = ((n, size, channels), (n,), (n, width), (n, size, width), (n, size, channels))
    x, t, hidden, sketch, previous = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x, t.sigmoid(), hidden, sketch, previous]


@pytest.mark.parametrize("time", ["prepend", "adaln"])
@torch.no_grad()
def test_an_item_does_not_depend_on_its_neighbours_and_on_everything_else_it_does(time):
    prior = tiny_prior(time_conditioning=time)
    given = inputs(prior)
    out = prior.diffusion(*given)
    assert out.shape == given[0].shape
    torch.testing.assert_close(prior.diffusion(*(part[1:2] for part in given)), out[1:2], rtol=1e-4, atol=1e-5)
    for place, (part, other) in enumerate(zip(given, inputs(prior, seed=1), strict=True)):
        changed = list(given)
        changed[place] = (part + other) / 2
        assert (prior.diffusion(*changed) - out).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("time", ["prepend", "adaln"])
@torch.no_grad()
def test_a_layer_cut_to_its_last_positions_is_the_end_of_the_whole(time):
    prior = tiny_prior(time_conditioning=time)
    layer = prior.diffusion.layers[0]
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 8, 64, generator=generator), torch.randn(2, 64, generator=generator)
    table = rotary_table(torch.arange(8), CONFIG.rotated, 100.0)
    torch.testing.assert_close(layer(x, table, t, 3), layer(x, table, t)[:, -3:], rtol=1e-4, atol=1e-5)


def test_rotation_turns_by_the_distance_alone_and_leaves_the_rest():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, generator=generator)
    table = rotary_table(torch.tensor([3, 7, 10, 14]), 8, 50.0)
    a, b = rotate(x.expand(4, 12), table), rotate(y.expand(4, 12), table)
    torch.testing.assert_close(a[0] @ b[1], a[2] @ b[3])  # 4 apart both times
    assert (a[0] @ b[1] - a[0] @ b[2]).abs() > 1e-3
    assert torch.equal(a[:, 8:], x[8:].expand(4, 4))
    torch.testing.assert_close(a.norm(dim=-1), x.norm().expand(4))


def test_time_features_are_cosines_then_sines():
    prior = tiny_prior()
    with torch.no_grad():
        prior.diffusion.time.frequencies[:] = torch.tensor([[0.0], [0.25], [0.5], [1.0]])
    found = prior.diffusion.time.features(torch.tensor(1.0)).tolist()
    assert found == pytest.approx([1, 0, -1, 1, 0, 1, 0, 0], abs=1e-6)


@torch.no_grad()
def test_sampling_in_inference_mode_leaves_training_possible():
    prior = tiny_prior()
    with torch.inference_mode():
        prior.diffusion(*inputs(prior))
    with torch.enable_grad():
        prior.diffusion(*inputs(prior)).sum().backward()
    assert prior.diffusion.project_in.weight.grad.abs().sum() > 0
