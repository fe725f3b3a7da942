"""Settings that cannot be built are named, and the cost is counted right."""

from dataclasses import replace

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.prior import SongBloomPrior
from tests.prior.songbloom.tiny import CONFIG, seeded, tiny_prior
from tests.transformer.test_recomputation import kept_bytes


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"heads": 3}, "heads=3"),
        ({"heads": 4}, "fewer heads"),
        ({"patch_size": 0}, "patch_size"),
        ({"time_features": 7}, "time_features"),
        ({"time_conditioning": "adaLN"}, "time_conditioning"),
        ({"diffusion_objective": "eps"}, "diffusion_objective"),
        ({"timestep_sampler": "sobol"}, "timestep_sampler"),
        ({"patch_dropout": 1.5}, "patch_dropout"),
        ({"sentences": 1}, "sentences"),
        ({"section_token": 16}, "lyric token 16"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, word):
    with pytest.raises(UserError, match=word):
        replace(CONFIG, **change)


def test_settings_come_from_any_mapping():
    config = SongBloomConfig.from_hps({"prior_width": 128, "heads": 2, "structure_tokens": [1, 2], "lr": 0.1})
    assert (config.prior_width, config.structure_tokens, config.prior_depth) == (128, (1, 2), 36)


def test_weights_start_as_published_and_from_the_generator():
    config = replace(CONFIG, init_std=0.05)
    one, same, other = (SongBloomPrior(config, seeded(seed)[0]).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["start"], other["start"])
    assert float(one["language_model.layers.0.mlp.gate_up.weight"].std()) == pytest.approx(0.05, rel=0.1)
    for name, tensor in one.items():
        if name.endswith("bias") or name == "lyrics.blank":
            assert not tensor.any(), name
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name


def test_the_cost_counts_every_matrix():
    prior = tiny_prior()
    cost, matrices = prior.cost(), 0
    for name, tensor in prior.language_model.named_parameters():
        matrices += tensor.numel() if "norm" not in name else 0
    assert cost["language_model_operations_a_position"] == 2 * matrices
    assert cost["diffusion_operations_a_step"] == 2 * 11 * matrices  # as deep and wide; 2 + 3 · 3 positions
    first = 3 * 3 * 64**2 + 11 * (64**2 + 3 * 64 * 64)  # three positions of eleven change in the first layer …
    last = 11 * 2 * 64**2 + 3 * (2 * 64**2 + 3 * 64 * 64)  # … and three are read in the last
    assert cost["diffusion_operations_needed_a_step"] == 2 * (first + last)
    both = 3 * 3 * 64**2 + 3 * (64**2 + 3 * 64 * 64)  # one layer that is first and last
    assert tiny_prior(dit_depth=1).cost()["diffusion_operations_needed_a_step"] == 2 * both
    adaln = tiny_prior(dit_depth=1, time_conditioning="adaln").cost()["diffusion_operations_needed_a_step"]
    assert adaln == 2 * (10 * 2 * 64**2 + 3 * (2 * 64**2 + 3 * 64 * 64))
    assert cost["cache_bytes_a_position"] == 2 * 2 * 64 * 4
    assert cost["parameters"] == sum(p.numel() for p in prior.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conditioning", ["prepend", "adaln"])
def test_what_layers_keep_is_reckoned(conditioning, dtype):
    """With float32's attention and norms a bfloat16 model keeps more than half of what float32 does."""
    prior = tiny_prior(prior_width=256, heads=4, m_mlp=2.6875, time_conditioning=conditioning).train()
    prior.store_matrices(dtype)  # copies of matrices in another type would be kept as well
    generator, numbers = torch.Generator().manual_seed(0), prior.config.kept_numbers
    x, patches, time = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((2, 200, 256), (40, 10, 256), (40, 256))
    )

    def look():
        y, table = patches, prior.diffusion.rotary(10, patches.device)
        for layer in prior.diffusion.diffusion_layers():
            y = layer(y, table, time)
        return y

    language, diffusion = prior.language_model, prior.diffusion
    for model, run, depth in (
        (language, lambda: language(x), prior.config.prior_depth),
        (diffusion, look, prior.config.dit_depth),
    ):
        reckoned = 400 * numbers * depth * dtype.itemsize
        assert 0.6 * reckoned < kept_bytes(model, run) < 1.3 * reckoned
