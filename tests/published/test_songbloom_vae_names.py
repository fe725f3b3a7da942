"""Every tensor of the published VAE becomes one of ours, and back, shape for shape."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from songbloom.errors import UserError
from songbloom.published.songbloom import vae as names
from songbloom.vae.vae import VAE, VAEConfig
from tests.vae.tiny import sound, tiny_vae

MANIFEST = json.loads((Path(__file__).parents[1] / "manifest" / "songbloom_vae.json").read_text())
JSON: dict[str, Any] = {
    "model_type": "autoencoder",
    "sample_rate": MANIFEST["_meta"]["sample_rate"],
    "model": MANIFEST["_meta"]["config"],
}


def _published() -> dict[str, torch.Tensor]:
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in MANIFEST["tensors"].items()}


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_the_whole_manifest_there_and_back() -> None:
    published = _published()
    assert len(published) == 365
    with torch.device("meta"):
        model = VAE(names.config_from_published(JSON))
    ours = names.from_published(published)
    assert _shapes(ours) == _shapes(model.state_dict())
    assert _shapes(names.to_published(ours)) == _shapes(published)
    assert sum(p.numel() for p in model.encoder.parameters()) == 84_281_344
    assert sum(p.numel() for p in model.decoder.parameters()) == 84_414_082
    assert model.cost()["parameters"] == 168_695_426


def test_the_published_configuration_is_the_default() -> None:
    assert names.config_from_published(JSON) == VAEConfig()
    assert names.config_from_published(JSON, vae_kl=0.5).vae_kl == 0.5


def test_the_published_decoder_looks_no_farther_than_its_pieces_overlap() -> None:
    """That is why pieces of 128 latents that overlap by 32 give what the whole gives."""
    with torch.device("meta"):
        margins = VAE(VAEConfig()).cost()["decode_margin"]
    assert max(margins) <= 16


def test_every_number_stays_at_its_place() -> None:
    state = tiny_vae(vae_adversarial=0.1).state_dict()
    again = names.from_published(names.to_published(state))
    assert list(again) == [name for name in state if not name.startswith("discriminator.")]
    assert all(again[name] is state[name] for name in again)


@pytest.mark.parametrize("prefix", ["", "vae.vae.", "vae.", "module."])
def test_recognition_and_prefixes(prefix: str) -> None:
    state = tiny_vae().state_dict()
    published = names.to_published(state, prefix)
    assert names.is_published(published)
    assert not names.is_published(state)
    assert list(names.from_published(published)) == list(state)


def test_a_file_of_the_whole_song_model() -> None:
    state = tiny_vae().state_dict()
    file = {"model.bos_token": torch.zeros(3), **names.to_published(state, names.BUNDLED)}
    assert not names.is_published(file)
    part = names.bundled(file)
    assert part is not None and list(names.from_published(part)) == list(state)
    assert names.bundled({"model.bos_token": torch.zeros(3)}) is None
    assert names.weights_of({"state_dict": part, "epoch": 3}) is part
    assert names.weights_of(part) is part


def test_a_checkpoint_file_as_it_is_published(tmp_path: Path) -> None:
    model = tiny_vae().eval()
    path = tmp_path / "autoencoder.ckpt"
    torch.save({"state_dict": names.to_published(model.state_dict())}, path)
    other = tiny_vae(seed=1, vae_adversarial=0.1).eval()
    content = torch.load(path, weights_only=True, map_location="cpu")
    other.load_codec(names.from_published(names.weights_of(content)))
    latents = sound(1, 10, 2)
    assert torch.equal(other.decode(latents), model.decode(latents))


def test_newer_names_and_weights_that_were_put_together() -> None:
    model = tiny_vae().eval()
    audio = sound(1, 240, 2)
    wanted = model.encode(audio)
    published = names.to_published(model.state_dict())
    newer, folded = {}, {}
    for name, tensor in published.items():
        renamed = name.replace("weight_g", "parametrizations.weight.original0")
        newer[renamed.replace("weight_v", "parametrizations.weight.original1")] = tensor
        if name.endswith("weight_v"):
            folded[name.removesuffix("_v")] = torch._weight_norm(tensor, published[name[:-1] + "g"], 0)
        elif not name.endswith("weight_g"):
            folded[name] = tensor
    for state in (newer, folded):
        other = tiny_vae(seed=1).eval()
        other.load_state_dict(names.from_published(state), strict=True)
        torch.testing.assert_close(other.encode(audio), wanted, atol=1e-5, rtol=1e-4)


def test_pytorchs_own_modules_under_the_published_names() -> None:
    """A residual unit built of PyTorch's layers as the published names say gives what ours gives."""
    model = tiny_vae().eval()
    published = names.to_published(model.state_dict())
    prefix = "decoder.layers.1.layers.2.layers."
    x = sound(1, 3, 20)

    def snake(x: torch.Tensor, index: int) -> torch.Tensor:
        alpha, beta = (published[f"{prefix}{index}.{name}"].exp()[:, None] for name in ("alpha", "beta"))
        return x + (alpha * x).sin() ** 2 / (beta + 1e-9)

    def convolution(x: torch.Tensor, index: int) -> torch.Tensor:
        g, v, bias = (published[f"{prefix}{index}.{name}"] for name in ("weight_g", "weight_v", "bias"))
        return nn.functional.conv1d(x, torch._weight_norm(v, g, 0), bias, padding=v.shape[2] // 2)

    with torch.no_grad():
        wanted = x + convolution(snake(convolution(snake(x, 0), 1), 2), 3)
        torch.testing.assert_close(model.decoder.blocks[0].units[0](x), wanted)


@pytest.mark.parametrize(
    "key",
    [
        "model.bos_token",
        "encoder.layers.1.layers.0.alpha",
        "decoder.layers.1.layers.0.layers.1.bias",
        "encoder.layers.0.alpha",
    ],
)
def test_a_strange_name_is_named(key: str) -> None:
    published = {**names.to_published(tiny_vae().state_dict()), key: torch.empty(1)}
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        names.from_published(published)
    with pytest.raises(UserError, match="songbloom VAE"):
        names.to_published({key: torch.empty(1)})


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("model", "encoder", "type"), "dac", "encoder is of type 'dac'"),
        (("model", "bottleneck", "type"), "rvq", "bottleneck is of type 'rvq'"),
        (("model", "decoder", "config", "strides"), [2, 2], "strides"),
        (("model", "encoder", "config", "use_snake"), False, "use_snake"),
        (("model", "decoder", "config", "latent_dim"), 32, "latent_dim"),
        (("model", "downsampling_ratio"), 2048, "downsampling_ratio is 2048"),
        (("sample_rate",), None, "unusable"),
        (("sample_rate",), 0, "sr is 0"),
        (("model",), None, "unusable"),
    ],
)
def test_other_autoencoders_are_refused(place: tuple[str, ...], value: Any, complaint: str) -> None:
    content = copy.deepcopy(JSON)
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(UserError, match=complaint):
        names.config_from_published(content)


def test_the_json_file(tmp_path: Path) -> None:
    path = tmp_path / "stable_audio_1920_vae.json"
    path.write_text(json.dumps(JSON))
    assert names.read_config(path) == VAEConfig()
    path.write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        names.read_config(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="no VAE's configuration"):
        names.read_config(path)
    with pytest.raises(UserError, match="cannot be read"):
        names.read_config(tmp_path / "nothing.json")
