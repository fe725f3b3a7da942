import json
from pathlib import Path

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.published.songbloom.prior import (
    codec_state,
    from_published,
    generation_from_published,
    is_published,
    settings_from_published,
    to_published,
    vocabulary_settings,
)

MANIFESTS = Path(__file__).parents[1] / "manifest"
VOCABULARY = json.loads((MANIFESTS / "songbloom_vocab_g2p.json").read_text())
NAMES = ("songbloom_full_150s", "songbloom_full_240s")


def manifest(name):
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def meta_state(content, dtype=torch.float32):
    return {name: torch.empty(t["shape"], dtype=dtype, device="meta") for name, t in content["tensors"].items()}


def build(settings):
    with torch.device("meta"):
        return SongBloomPrior(SongBloomConfig(**settings))


def kinds(state):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_published_tensor_has_a_name_here_and_comes_back(name, dtype):
    state = meta_state(manifest(name), dtype)
    assert is_published(state) and len(state) == 454
    ours = from_published(state)
    assert not is_published(ours)
    assert kinds(to_published(ours)) == kinds(state)


@pytest.mark.parametrize("name", NAMES)
def test_our_model_has_the_published_names_shapes_and_kinds(name):
    content = manifest(name)
    prior = build(settings_from_published(content["_meta"]["config"]))
    state = meta_state(content)
    assert kinds(to_published(prior.state_dict())) == kinds(state)
    assert kinds(from_published(state)) == kinds(prior.state_dict())
    buffers = to_published(dict(prior.named_buffers()))
    assert buffers.keys() == {key for key, entry in content["tensors"].items() if entry["kind"] == "buffer"}
    assert sum(p.numel() for p in prior.parameters()) == content["_meta"]["n_params"]
    assert prior.cost()["parameters"] == content["_meta"]["n_params"]


def test_published_settings_are_the_defaults():
    config = SongBloomConfig(**settings_from_published(manifest("songbloom_full_150s")["_meta"]["config"]))
    assert config == SongBloomConfig()
    assert config.n_ctx(4000) == 850 + 4251
    longer = SongBloomConfig(**settings_from_published(manifest("songbloom_full_240s")["_meta"]["config"]))
    assert (longer.rotary_base, longer.lyric_tokens) == (40000, 1000)


def test_the_published_vocabulary_gives_the_default_tokens():
    given = vocabulary_settings(VOCABULARY)
    assert SongBloomConfig(**given) == SongBloomConfig()
    assert [VOCABULARY[token] for token in given["structure_tokens"]][:3] == ["[verse]", "[chorus]", "[bridge]"]


def test_the_codec_beside_the_model_is_left_to_the_codec():
    state = meta_state(manifest("songbloom_full_150s"))
    codec = {"vae.vae.decoder.layers.0.bias": torch.zeros(2)}
    assert from_published({**state, **codec}).keys() == from_published(state).keys()
    assert codec_state({**state, **codec}).keys() == {"decoder.layers.0.bias"}


def test_other_files_and_options_are_refused():
    state = meta_state(manifest("songbloom_full_150s"))
    with pytest.raises(UserError, match="no checkpoint of a SongBloom model"):
        from_published({"model.x": torch.zeros(1)})
    with pytest.raises(UserError, match="another model's"):
        from_published({**state, "model.extra.weight": torch.zeros(1)})
    key = "model.ar_transformer.layers.3.self_attn.q_proj.weight"
    with pytest.raises(UserError, match="broken checkpoint"):
        from_published({name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(UserError, match="no name of our prior's"):
        to_published({"language_model.layers.0.other": torch.zeros(1)})
    model = manifest("songbloom_full_150s")["_meta"]["config"]
    for change in (
        {"backend": "bart"},
        {"pre_norm": True},
        {"time_cond_type": "cross"},
        {"fuser_cfg": {"cross": ["lyrics"]}},
        {"surprise": 1},
    ):
        with pytest.raises(UserError):
            settings_from_published({**model, **change})


def test_published_inference_settings_are_the_defaults():
    inference = {"cfg_coef": 1.5, "temp": 0.9, "diff_temp": 0.95, "top_k": 100, "penalty_repeat": True}
    inference |= {"penalty_window": 50, "steps": 36, "dit_cfg_type": "h"}
    assert GenerationSettings(**generation_from_published(inference, max_dur=150)) == GenerationSettings()
    pair = GenerationSettings(**generation_from_published({"cfg_coef": [2.0, 1.2], "use_sampling": False}, max_dur=240))
    assert (pair.cfg_lm, pair.cfg_diffusion, pair.temperature, pair.max_frames) == (2.0, 1.2, 0.0, 6250)
    with pytest.raises(UserError, match="surprise"):
        generation_from_published({"surprise": 1})


def test_numbers_that_yaml_takes_for_words_are_numbers():
    """``2e4`` has no point, so YAML reads a word."""
    model = manifest("songbloom_full_150s")["_meta"]["config"]
    found = settings_from_published({**model, "rotary_base_val": "2e4", "init_std": "2e-2", "dim": "1536"})
    assert SongBloomConfig(**found) == SongBloomConfig(**settings_from_published(model))
    assert generation_from_published({"temp": "9e-1", "cfg_coef": ["15e-1", 2], "steps": "36"}) == {
        **generation_from_published({"temp": 0.9, "cfg_coef": [1.5, 2], "steps": 36}),
    }
    for settings in ({"dim": "wide"}, {"dim": 1536.5}, {"num_heads": None}, {"init_std": [1]}, {"block_size": True}):
        with pytest.raises(UserError, match=f"the setting {next(iter(settings))} of the yaml is"):
            settings_from_published({**model, **settings})
    for part in ("condition_provider_cfg", "attribute_dropout", "fuser_cfg"):
        assert SongBloomConfig(**settings_from_published({**model, part: None})).prior_width == 1536
        with pytest.raises(UserError, match=f"the setting {part} of the yaml is 3"):
            settings_from_published({**model, part: 3})
    for settings in ({"steps": "three"}, {"temp": None}, {"cfg_coef": [1, 2, 3]}, {"cfg_coef": "x"}, {"top_k": 1.5}):
        with pytest.raises(UserError, match=f"the setting {next(iter(settings))} of the yaml is"):
            generation_from_published(settings)
