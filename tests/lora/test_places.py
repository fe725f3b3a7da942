"""Which layers a target finds, in our names, the published ones and those of Llama-like models."""

from __future__ import annotations

import pytest

from songbloom.errors import UserError
from songbloom.lora.places import chosen, places, split_targets
from songbloom.lora.training import LoRASettings, attach
from tests.lora.models import jukebox, songbloom, with_lyrics


def names(model: object, *targets: str) -> list[str]:
    return [place.name for place in chosen(model, targets)]  # type: ignore[arg-type]


def test_peft_users_names_find_the_parts_of_the_language_models_matrix() -> None:
    found = chosen(songbloom(), ("q_proj", "v_proj"))
    assert [place.name for place in found] == [
        f"language_model.layers.{layer}.query_key_value.{part}" for layer in (0, 1) for part in ("query", "value")
    ]
    assert [(place.start, place.rows, place.inputs) for place in found[:2]] == [(0, 32, 32), (64, 32, 32)]
    assert found[1].published == "ar_transformer.layers.0.self_attn.v_proj"


def test_published_names_of_both_stacks() -> None:
    song = songbloom()
    assert names(song, "to_qkv") == [f"diffusion.layers.{layer}.query_key_value" for layer in (0, 1)]
    assert names(song, "ar_transformer.layers.1.self_attn") == [
        *(f"language_model.layers.1.query_key_value.{part}" for part in ("query", "key", "value")),
        "language_model.layers.1.attention_output",
    ]
    assert "language_model.layers.0.mlp.gate_up.up" in names(song, "up_proj")
    assert names(song, "skeleton_classifier.0") == ["classifier.hidden"]


def test_the_same_words_in_the_jukebox_family() -> None:
    prior = with_lyrics()
    found = names(prior, "q_proj")
    assert "autoregressive.transformer.layers.0.attention.query_key_value.query" in found
    assert "autoregressive.transformer.layers.3.attention.query" in found or any(
        name.endswith("attention.query") for name in found
    )
    assert any(name.startswith("lyric_encoder.") for name in found)
    assert names(jukebox(), "c_attn") == [
        f"autoregressive.transformer.layers.{layer}.attention.query_key_value" for layer in range(3)
    ]
    assert len(names(jukebox(), "o_proj", "up_proj", "down_proj")) == 9


def test_patterns_expressions_and_everything() -> None:
    song = songbloom()
    assert names(song, "language_model.layers.[0]*.value") == ["language_model.layers.0.query_key_value.value"]
    assert names(song, r"re:diffusion\.layers\.\d\.(mlp\.down|attention_output)") == [
        f"diffusion.layers.{layer}.{name}" for layer in (0, 1) for name in ("attention_output", "mlp.down")
    ]
    everything = chosen(song, ("all-linear",))
    assert {place.part for place in everything} == {"whole"}
    assert len(everything) == len({place.module for place in places(song)})
    assert split_targets("q_proj, v_proj,re:a{1,2}.*") == ("q_proj", "v_proj", "re:a{1,2}.*")


def test_a_whole_map_wins_over_its_parts() -> None:
    assert names(songbloom(), "language_model.layers.0.query_key_value", "v_proj")[:2] == [
        "language_model.layers.0.query_key_value",
        "language_model.layers.1.query_key_value.value",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LoRASettings(targets=("qproj",)), ["'qproj' matches no linear layer", "did you mean 'q_proj'", "v_proj"]),
        (LoRASettings(targets=("*.nothing",)), ["matches no linear layer", "query_key_value"]),
        (LoRASettings(targets=("re:(",)), ["is no regular expression"]),
        (LoRASettings(targets=()), ["lora_target_modules is empty"]),
        (LoRASettings(rank=33, targets=("q_proj",)), ["lora_rank=33", "query_key_value.query", "at most 32"]),
        (LoRASettings(rank=0), ["lora_rank=0"]),
    ],
)
def test_mistakes_are_told_in_one_line(settings: LoRASettings, words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        attach(songbloom(), settings)
    assert "\n" not in str(told.value)
    for word in words:
        assert word in str(told.value)
