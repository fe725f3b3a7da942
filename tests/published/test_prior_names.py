import json
from pathlib import Path

import pytest
import torch

from hparams import setup_hparams
from songbloom.errors import UserError
from songbloom.prior.prior import Prior, PriorConfig
from songbloom.published.jukebox.prior import from_published, is_published, is_tied, to_published
from songbloom.training.tasks import halve_matrices
from tests.golden.checkers.prior import codec_of

MANIFESTS = Path(__file__).parents[1] / "manifest"
COUNTS = json.loads((MANIFESTS / "jukebox_small_param_counts.json").read_text())


PUBLISHED = {
    "upsampler_level_0": "vqvae",
    "upsampler_level_1": "vqvae",
    "prior_5b": "vqvae",
    "prior_5b_lyrics": "vqvae",
    "prior_1b_lyrics": "vqvae",
    "small_single_enc_dec_prior": "small_vqvae",
    "small_sep_enc_dec_prior": "small_vqvae",
}
TIED = {"upsampler_level_0", "upsampler_level_1", "prior_1b_lyrics"} | {n for n in PUBLISHED if n.startswith("small")}


def manifest(name):
    return json.loads((MANIFESTS / f"jukebox_{name}.json").read_text())


def meta_state(content):
    dtypes = {"float32": torch.float32, "float16": torch.float16}
    state = {
        name: torch.empty(entry["shape"], dtype=dtypes[entry["dtype"]], device="meta")
        for name, entry in content["keys"].items()
    }
    for first, *others in content["tied"]:
        state.update(dict.fromkeys(others, state[first]))
    return state


def build(names, codec_names, **overrides):
    codec_hps = setup_hparams(codec_names)
    hps = setup_hparams(names, overrides)
    if "level" not in overrides and names.startswith("small"):
        hps["level"] = codec_hps["levels"] - 1
    hps = {**hps, **{key: codec_hps[key] for key in ("levels", "downs_t", "strides_t", "l_bins")}}
    codes = [[2**20 // hop] for hop in codec_of(hps, [[1]] * hps["levels"]).hop_lengths]
    with torch.device("meta"):
        return Prior(PriorConfig.from_hps(hps), codec_of(hps, codes))


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def kinds(state):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_has_a_name_here_and_comes_back(name):
    content = manifest(name)
    state = meta_state(content)
    assert len(state) == content["n_keys"] and is_published(state)
    ours = from_published(state)
    assert not is_published(ours)
    assert len(ours) == len(state) - (name in TIED)  # the output layer is the embedding
    assert kinds(to_published(ours)) == kinds(state)
    assert sum(tensor.numel() for tensor in ours.values()) == content["param_count"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_model_has_the_published_names_and_shapes(name):
    content = manifest(name)
    prior = build(name, PUBLISHED[name])
    state = meta_state(content)
    ours = from_published(state, tied=not prior.config.merged_decoder)
    assert shapes(prior.state_dict()) == shapes(ours)
    assert shapes(to_published(prior.state_dict())) == shapes(state)
    assert sum(p.numel() for p in prior.parameters()) == content["param_count"]
    # What a published file holds as float16 are the matrices of the transformers, the lyrics' projection among them.
    halve_matrices(prior)
    stored, halved = (
        {key for key, tensor in tensors.items() if tensor.dtype == torch.float16}
        for tensors in (ours, prior.state_dict())
    )
    assert stored == (halved if setup_hparams(name)["fp16_params"] else set())
    if name.startswith("small"):
        return
    assert prior.sample_length == content["sample_length"]
    assert prior.hop_length == content["raw_to_tokens"]
    assert prior.z_shapes == [tuple(shape) for shape in content["z_shapes"]]
    assert prior.n_tokens == content["prime_loss_dims"]
    assert prior.n_tokens + prior.n_ctx == content["total_loss_dims"]
    assert [int(function) for function in prior.autoregressive.transformer.funcs] == content["attn_funcs"]


@pytest.mark.parametrize(
    ("name", "pairs", "chosen"),
    [("prior_5b_lyrics", 7 * 8, (68, 2)), ("prior_1b_lyrics", 4 * 2, (63, 0)), ("prior_5b", 0, None)],
)
def test_the_published_choice_is_among_the_lyric_heads(name, pairs, chosen):
    heads = build(name, "vqvae").lyric_heads()
    assert len(heads) == pairs and (chosen in heads or chosen is None)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("small_prior", {"level": 1, "labels": False}),
        ("small_upsampler", {"level": 0, "labels": False}),
        ("small_labelled_prior", {"level": 1}),
        ("small_single_enc_dec_prior", {"level": 1}),
        ("small_sep_enc_dec_prior", {"level": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_small_models_have_the_published_number_of_parameters(name, overrides):
    prior = build(name, "small_vqvae", **overrides)
    assert sum(p.numel() for p in prior.parameters()) == COUNTS[name]


def test_a_trained_model_goes_out_and_comes_back():
    hps = {"n_ctx": 8, "prior_width": 8, "prior_depth": 3, "attn_order": 2, "blocks": 2, "labels": False}
    hps |= {"level": 0, "levels": 2, "downs_t": (1, 2), "strides_t": (2, 2), "l_bins": 5, "cond_width": 4}
    prior = Prior(PriorConfig.from_hps(hps), codec_of(hps, [[8], [2]]))
    state = prior.state_dict()
    for container in ("model", "blocks"):
        published = to_published(state, container=container)
        assert any(f".0.{container}.0.model.1.weight" in name for name in published)
        back = from_published({f"module.{name}": tensor for name, tensor in published.items()})
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_whether_the_output_layer_is_the_embedding():
    embedding = torch.randn(3, 2)
    tied = {"prior.x_emb.weight": embedding, "prior.x_out.weight": embedding.clone()}
    merged = {**tied, "prior.x_out.weight": torch.randn(3, 2)}
    assert is_tied(tied) and not is_tied(merged)
    assert list(from_published(tied)) == ["autoregressive.embedding.weight"]
    assert list(from_published(tied, tied=False)) == ["autoregressive.embedding.weight", "autoregressive.output.weight"]
    assert "autoregressive.output.weight" in from_published(merged)
    with pytest.raises(UserError, match="--merged_decoder=True"):
        from_published(merged, tied=True)
    assert to_published(from_published(tied)).keys() == tied.keys()


def test_strange_names_are_refused():
    with pytest.raises(UserError, match=r"'prior\.x_emb\.weight' is missing"):
        from_published({"encoders.0.level_blocks.0.model.0.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'y_emb\.other' is no name"):
        from_published({"prior.x_emb.weight": torch.zeros(2, 2), "y_emb.other": torch.zeros(1)})
    with pytest.raises(UserError, match="'something' is no name of our prior"):
        to_published({"something": torch.zeros(1)})
