"""MuQ: pieces and whole, layers, published names, and the package it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.audio.filters import mel_filters
from songbloom.errors import UserError
from songbloom.published.songbloom import muq as published
from songbloom.sketch.extractors import make_features
from songbloom.sketch.features import weights_digest
from songbloom.sketch.muq import MuQ, MuQConfig
from tests.sketch.tiny import muq, muq_features, sound

MANIFEST = Path(__file__).parents[1] / "manifest" / "songbloom_muq_assumed.json"
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def _audio(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(0, 20000), piece=st.integers(1, 40))
def test_what_comes_before_the_conformer_is_exact_in_pieces(samples: int, piece: int) -> None:
    model = muq()
    mel = model.normalised(model.mel(_audio(samples)))
    assert mel.shape == (2, 128, samples // 240)
    whole = model.subsample(mel, piece=10**6)
    assert whole.shape == (2, -(-mel.shape[2] // 4), 16)
    torch.testing.assert_close(model.subsample(mel, piece=piece), whole, **CLOSE)


def test_the_conformer_hears_pieces_with_context() -> None:
    model, audio = muq(), _audio(60 * 960)
    whole = model.encode(audio, piece=None)
    torch.testing.assert_close(model.encode(audio, piece=40, context=10), whole)  # 60 = 40 + 2 · 10: one piece
    pieces = model.encode(audio, piece=20, context=5)
    assert pieces.shape == whole.shape and not torch.allclose(pieces, whole, **CLOSE)
    x = model.subsample(model.normalised(model.mel(audio)))
    middle = model.state(x[:, 15:45], 2)[:, 5:25]  # the second piece: frames 20 to 40 and 5 at either side
    torch.testing.assert_close(pieces[:, 20:40], middle)
    wide = model.encode(audio, piece=20, context=15)
    assert (wide - whole).abs().mean() < (model.encode(audio, piece=20, context=0) - whole).abs().mean()


def test_layers_by_number() -> None:
    model, audio = muq(), _audio(9600)
    states = list(model.hidden_states(model.subsample(model.normalised(model.mel(audio)))))
    assert len(states) == 3
    for layer in range(3):
        torch.testing.assert_close(model.encode(audio, layer), states[layer])
        torch.testing.assert_close(model.encode(audio, layer - 3), states[layer])
    for layer in (3, -4):
        with pytest.raises(UserError, match=r"layer -?\d of 3 states"):
            model.encode(audio, layer)
    with pytest.raises(UserError, match="pieces of 0 frames"):
        model.encode(audio, piece=0)


def test_positions_matter_and_the_batch_does_not() -> None:
    model, audio = muq(), _audio(9600)
    torch.testing.assert_close(model.encode(audio)[:1], model.encode(audio[:1]), **CLOSE)
    x = model.subsample(model.normalised(model.mel(audio)))
    still = muq(rotary_base=1e30, kernel=1)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    turned = [model.state(part, 2) for part in (x, x[:, order])]
    assert not torch.allclose(turned[0][:, order], turned[1], atol=1e-3)
    assert not torch.allclose(still.state(x, 2)[:, order], still.state(x[:, order], 2), atol=1e-6)  # rate 1 remains


def test_half_precision_is_near() -> None:
    audio = sound(1, 2.0, 24000)
    full, half = muq_features(), muq_features(precision="bf16")
    a, b = full.extract(audio, 24000), half.extract(audio, 24000)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert (a - b).abs().mean() < 0.05 * a.abs().mean()
    assert full.fingerprint() == half.fingerprint()


def test_names_of_the_whole_published_model() -> None:
    """Every key of the manifest finds its place, with its shape, and none of ours stays empty."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))["tensors"]
    state = {name: torch.empty(entry["shape"], device="meta") for name, entry in manifest.items()}
    ours = published.from_published(state)
    with torch.device("meta"):
        model = MuQ(MuQConfig())
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == wanted
    back = published.to_published(ours)
    assert set(back) <= set(state) and all(back[name].shape == state[name].shape for name in back)
    left = {name for name in state if name not in back}
    assert all(
        name.startswith(("model.cls_token", "model.linear.", "model.conformer.pos_conv", "model.conformer.embed_pos"))
        or name.endswith("stale_counter")
        for name in left
    )


def _folder(tmp_path: Path, model: MuQ, safetensors: bool) -> Path:
    config = {
        "conv_dim": 4,
        "encoder_dim": 16,
        "encoder_depth": 2,
        "stat": {"melspec_2048_mean": model.config.mel_mean, "melspec_2048_std": model.config.mel_std},
        "w2v2_config": {"num_attention_heads": 2, "intermediate_size": 24, "hidden_act": "swish"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = published.to_published(model.state_dict())
    if not safetensors:
        torch.save(state, tmp_path / "pytorch_model.bin")
        return tmp_path
    table, content = {}, b""
    for name, tensor in state.items():
        raw = tensor.contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        table[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        content += raw
    head = json.dumps(table).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + content)
    return tmp_path


@pytest.mark.parametrize("safetensors", [False, True])
def test_a_published_folder_gives_the_same_features(tmp_path: Path, safetensors: bool) -> None:
    model, audio = muq(), sound(1, 1.0, 24000)
    loaded = published.load_muq(_folder(tmp_path, model, safetensors))
    torch.testing.assert_close(loaded.encode(audio[..., 0]), model.encode(audio[..., 0]), **CLOSE)
    features = make_features("muq", path=tmp_path, layer=1)
    torch.testing.assert_close(features.extract(audio, 24000), model.encode(audio[..., 0], 1), **CLOSE)
    assert features.identity()["layer"] == 1


def test_unusable_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give its path"):
        make_features("muq")
    with pytest.raises(UserError, match=r"config\.json"):
        published.load_muq(tmp_path)
    _folder(tmp_path, muq(), False)
    weights = tmp_path / "pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        published.load_muq(tmp_path)
    weights.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        published.load_muq(tmp_path)
    torch.save({**state, "model.unheard.of": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=r"'unheard\.of' is no name of a published MuQ"):
        published.load_muq(tmp_path)
    torch.save({name: part for name, part in state.items() if "layers.1.ffn1." not in name}, weights)
    with pytest.raises(UserError, match="is missing, its configuration wants"):
        published.load_muq(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="not a safetensors file"):
        published.load_muq(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["w2v2_config"]["position_embeddings_type"] = "relative"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'relative'"):
        published.load_muq(tmp_path)


def test_sizes_that_make_no_model() -> None:
    for change in ({"kernel": 4}, {"width": 17}, {"n_mels": 30}, {"activation": "tanh"}, {"depth": 0}):
        with pytest.raises(UserError, match="MuQ:"):
            MuQConfig.from_mapping(change)


def test_mel_filters_are_triangles() -> None:
    filters = mel_filters(24000, 2048, 128)
    assert filters.shape == (1025, 128) and filters.min() == 0 and filters.max() <= 1
    peaks = filters.argmax(dim=0)
    assert (peaks.diff() > 0).all() and filters.sum(dim=0).min() > 0


def test_the_package_agrees() -> None:
    package = pytest.importorskip("muq", reason="the muq package is not installed (pip install muq)")
    from songbloom.sketch.muq_features import MuQPackageFeatures

    conformer = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "conv_depthwise_kernel_size": 7, "position_embeddings_type": "rotary", "rotary_embedding_base": 500,
        "hidden_act": "gelu", "layer_norm_eps": 1e-3, "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16, "feat_extract_activation": "gelu", "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0, "max_source_positions": 5000,
        "conformer_conv_dropout": 0.0,
    }  # fmt: skip
    statistics = {"melspec_2048_mean": 6.7, "melspec_2048_std": 18.0}
    torch.manual_seed(0)
    settings_ = package.MuQConfig(
        encoder_dim=16, encoder_depth=2, conv_dim=4, codebook_size=8, stat=statistics, w2v2_config=conformer
    )
    theirs = package.MuQ(settings_).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = published.muq_of(theirs.state_dict(), published.config_from_published(vars(settings_), conformer))
    audio = sound(2, 1.3, 44100, 2)
    for layer in range(3):
        from songbloom.sketch.muq_features import MuQFeatures

        mine, other = MuQFeatures(ours, layer=layer), MuQPackageFeatures(theirs, layer=layer)
        torch.testing.assert_close(mine.extract(audio, 44100), other.extract(audio, 44100), **CLOSE)
        assert mine.identity() == other.identity()


def test_the_package_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "muq", None)
    with pytest.raises(UserError, match="pip install muq, or use 'muq'"):
        make_features("muq_package")


def test_digests_tell_weights_apart() -> None:
    state = muq().state_dict()
    other = {name: tensor.clone() for name, tensor in state.items()}
    assert weights_digest(state) == weights_digest(dict(reversed(list(other.items()))))
    other["project.bias"][0] += 1e-6
    assert weights_digest(state) != weights_digest(other)
