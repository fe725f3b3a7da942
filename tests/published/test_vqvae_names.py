"""Every tensor of the published VQ-VAE becomes one of ours, and back, shape for shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from songbloom.errors import UserError
from songbloom.published.jukebox import vqvae as names
from songbloom.vqvae.blocks import UpsamplingBlock
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

MANIFESTS = Path(__file__).parents[1] / "manifest"
PUBLISHED = VQVAEConfig(
    levels=3,
    downs_t=(3, 2, 2),
    strides_t=(2, 2, 2),
    hvqvae_multipliers=(2, 1, 1),
    emb_width=64,
    l_bins=2048,
    width=32,
    depth=4,
    dilation_growth_rate=3,
)


def _manifest(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    keys = json.loads((MANIFESTS / name).read_text())["keys"]
    return {
        key.removeprefix(prefix): torch.empty(entry["shape"], device="meta")
        for key, entry in keys.items()
        if key.startswith(prefix)
    }


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_the_whole_manifest_there_and_back() -> None:
    published = _manifest("jukebox_vqvae.json")
    assert len(published) == 669
    with torch.device("meta"):
        model = VQVAE(PUBLISHED)
    ours = names.from_published(published)
    assert _shapes(ours) == _shapes(model.state_dict())
    assert _shapes(names.to_published(ours)) == _shapes(published)
    assert sum(p.numel() for p in model.parameters()) == 1_485_763


@pytest.mark.parametrize("level", [0, 1])
def test_the_conditioners_block_of_an_upsampler(level: int) -> None:
    published = _manifest(f"jukebox_upsampler_level_{level}.json", "conditioner_blocks.0.cond.")
    with torch.device("meta"):
        block = UpsamplingBlock(
            1920, 1920, down_t=2, stride_t=2, width=1024, depth=16, dilation_growth_rate=3, dilation_cycle=8
        )
    ours = names.upsampling_block_from_published(published)
    assert _shapes(ours) == _shapes(block.state_dict())
    assert _shapes(names.upsampling_block_to_published(ours)) == _shapes(published)
    other = names.upsampling_block_to_published(ours, container="model")
    assert not any(".blocks." in name for name in other)
    assert _shapes(names.upsampling_block_from_published(other)) == _shapes(ours)


def test_every_number_stays_at_its_place() -> None:
    model = VQVAE(VQVAEConfig(downs_t=(2, 1), width=4, depth=2, emb_width=3, l_bins=5))
    state = model.state_dict()
    again = names.from_published(names.to_published(state))
    assert list(again) == list(state)
    assert all(again[name] is tensor for name, tensor in state.items())


def test_recognition_and_a_wrapped_model() -> None:
    model = VQVAE(VQVAEConfig(width=4, depth=1, emb_width=3, l_bins=5))
    published = names.to_published(model.state_dict())
    assert names.is_published(published)
    assert not names.is_published(model.state_dict())
    wrapped = {f"module.{name}": tensor for name, tensor in published.items()}
    assert names.is_published(wrapped)
    assert list(names.from_published(wrapped)) == list(model.state_dict())


@pytest.mark.parametrize(
    "key",
    ["prior.x_emb.weight", "encoders.0.level_blocks.0.model.0.2.weight", "decoders.0.level_blocks.0.model.1.weight"],
)
def test_a_strange_name_is_named(key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        names.from_published({key: torch.empty(1)})
    with pytest.raises(UserError, match="songbloom VQVAE"):
        names.to_published({key: torch.empty(1)})


def test_a_strange_name_in_a_block() -> None:
    with pytest.raises(UserError, match="x_emb"):
        names.upsampling_block_from_published({"x_emb.weight": torch.empty(1)})
    with pytest.raises(UserError, match="container"):
        names.upsampling_block_to_published({}, container="layers")
