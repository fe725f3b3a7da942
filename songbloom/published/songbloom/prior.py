"""Names, layouts and settings of SongBloom's checkpoints, and as they are here.

Both directions of the names only rename, join and split, so they are exact and work on meta tensors. A checkpoint's
keys begin with ``model.``; keys that begin with ``vae.`` are the codec's, which some files hold as well, and are left
to it. Query, key and value are three matrices in the language model's files and one here, as are gate and up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError

State = dict[str, Tensor]

PREFIX = "model."
CODEC_PREFIX = "vae."
_MARK = "skeleton_emb.weight"
_CONDITIONERS = "condition_provider.conditioners."
_NAMES = {
    "bos_token": "start",
    _CONDITIONERS + "prompt_wav.output_proj.weight": "prompt.projection.weight",
    _CONDITIONERS + "lyrics.blank_emb": "lyrics.blank",
    _CONDITIONERS + "lyrics.output_proj.weight": "lyrics.tokens.weight",
    _CONDITIONERS + "lyrics.sentence_idx_in_structure_emb.weight": "lyrics.sentences.weight",
    _MARK: "sketch_embedding.weight",
    "ar_transformer.norm.weight": "language_model.norm.weight",
    "skeleton_classifier.0.weight": "classifier.hidden.weight",
    "skeleton_classifier.2.weight": "classifier.output.weight",
    "skeleton_classifier.2.bias": "classifier.output.bias",
    "block_conv.1.weight": "patch_encoder.hidden.weight",
    "block_conv.1.bias": "patch_encoder.hidden.bias",
    "block_conv.3.weight": "patch_encoder.output.weight",
    "block_conv.3.bias": "patch_encoder.output.bias",
    "project_in.weight": "diffusion.project_in.weight",
    "project_in.bias": "diffusion.project_in.bias",
    "project_out.weight": "diffusion.project_out.weight",
    "project_out.bias": "diffusion.project_out.bias",
    "timestep_features.weight": "diffusion.time.frequencies",
    "to_timestep_embed.0.weight": "diffusion.time.hidden.weight",
    "to_timestep_embed.2.weight": "diffusion.time.output.weight",
    "to_timestep_embed.2.bias": "diffusion.time.output.bias",
}
# Inside a layer: our name → the published names whose rows it joins, in order.
_LANGUAGE_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "query_key_value.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention_output.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
_DIFFUSION_LAYER = {
    "attention_norm.weight": ("pre_norm.gamma",),
    "attention_norm.bias": ("pre_norm.beta",),
    "query_key_value.weight": ("self_attn.to_qkv.weight",),
    "attention_output.weight": ("self_attn.to_out.weight",),
    "mlp_norm.weight": ("ff_norm.gamma",),
    "mlp_norm.bias": ("ff_norm.beta",),
    "mlp.gate_up.weight": ("ff.ff.0.gate_proj.weight", "ff.ff.0.up_proj.weight"),
    "mlp.down.weight": ("ff.ff.2.weight",),
    "modulation.weight": ("to_scale_shift_gate.1.weight",),
}
_STACKS = {
    "ar_transformer.layers.": ("language_model.layers.", _LANGUAGE_LAYER),
    "nar_dit.layers.": ("diffusion.layers.", _DIFFUSION_LAYER),
}


def _bare(state: Mapping[str, Tensor]) -> State:
    """The model's own keys without ``model.``; the codec's left out."""
    return {key.removeprefix(PREFIX): t for key, t in state.items() if not key.startswith(CODEC_PREFIX)}


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has a published SongBloom model's names (``model.`` before them or not)."""
    return any(key.removeprefix(PREFIX) == _MARK for key in state)


def codec_state(state: Mapping[str, Tensor]) -> State:
    """The codec's tensors that a file holds beside the model, under the names of the codec's own file; often none."""
    return {key.removeprefix("vae.vae."): t for key, t in state.items() if key.startswith(CODEC_PREFIX)}


def from_published(state: Mapping[str, Tensor]) -> State:
    """A published model's state under our names.

    Raises:
        UserError: a name that no published model has, or one without its fellow.
    """
    bare = _bare(state)
    if _MARK not in bare:
        raise UserError(f"{_MARK!r} is missing: this is no checkpoint of a SongBloom model")
    ours: State = {}
    known = set()
    for theirs, (mine, layer) in _STACKS.items():
        numbers = {found[1] for key in bare if (found := re.match(re.escape(theirs) + r"(\d+)\.", key))}
        for number in sorted(numbers, key=int):
            for name, parts in layer.items():
                keys = [f"{theirs}{number}.{part}" for part in parts]
                present = [key for key in keys if key in bare]
                if not present:
                    continue
                if len(present) < len(keys):
                    raise UserError(f"{present[0]!r} is there without {set(keys) - set(present)}: a broken checkpoint")
                known.update(keys)
                ours[f"{mine}{number}.{name}"] = torch.cat([bare[key] for key in keys]) if keys[1:] else bare[keys[0]]
    for key, tensor in bare.items():
        if key in _NAMES:
            ours[_NAMES[key]] = tensor
        elif key not in known:
            raise UserError(f"{key!r} is no name of a SongBloom model's weights: is this another model's checkpoint?")
    return ours


def to_published(state: Mapping[str, Tensor], *, prefix: str = PREFIX) -> State:
    """Our prior's ``state_dict()`` (or anything else by its names, gradients, say) under the published names.

    Raises:
        UserError: a name that no SongBloom prior of ours has.
    """
    theirs_of = {mine: theirs for theirs, mine in _NAMES.items()}
    published: State = {}
    for key, tensor in state.items():
        if key in theirs_of:
            published[prefix + theirs_of[key]] = tensor
            continue
        for theirs, (mine, layer) in _STACKS.items():
            found = re.match(re.escape(mine) + r"(\d+)\.(.+)", key)
            if found and found[2] in layer:
                parts = layer[found[2]]
                for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
                    published[f"{prefix}{theirs}{found[1]}.{part}"] = rows
                break
        else:
            raise UserError(f"{key!r} is no name of our prior's weights: give the state_dict of a SongBloomPrior")
    return published


_SETTINGS = {
    "block_size": "patch_size",
    "latent_dim": "latent_width",
    "dim": "prior_width",
    "num_heads": "heads",
    "lm_layers": "prior_depth",
    "diff_layers": "dit_depth",
    "num_pitch": "l_bins",
    "hidden_scale": "m_mlp",
    "timestep_features_dim": "time_features",
    "diffusion_objective": "diffusion_objective",
    "timestep_sampler": "timestep_sampler",
    "rotary_base_val": "rotary_base",
    "init_std": "init_std",
    "h_dropout": "patch_dropout",
    "cfg_dropout": "condition_dropout",
}
_WORDS = ("diffusion_objective", "timestep_sampler", "dit_cfg_type")  # settings that are no numbers
_FRACTIONS = {
    "cfg_coef",
    "hidden_scale",
    "rotary_base_val",
    "init_std",
    "h_dropout",
    "cfg_dropout",
    "temp",
    "diff_temp",
    "top_p",
}


def _number(name: str, value: Any) -> Any:
    """A setting as the number that it means: YAML takes ``2e-2`` for a word, and the published program for a number.

    Raises:
        UserError: it is none, or not whole where it must be.
    """
    if name in _WORDS:
        return value
    try:
        number = float(value)
        if isinstance(value, bool) or (name not in _FRACTIONS and number != int(number)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        kind = "number" if name in _FRACTIONS else "whole number"
        raise UserError(f"the setting {name} of the yaml is {value!r}: it must be a {kind}") from None
    return value if isinstance(value, (int, float)) else number if name in _FRACTIONS else int(number)


def _part(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the settings that has names of its own; empty where there is none.

    Raises:
        UserError: it has no names.
    """
    part = settings.get(name) or {}
    if not isinstance(part, Mapping):
        raise UserError(f"the setting {name} of the yaml is {part!r}: it must have names and values")
    return part


_TIME = {"prepend": "prepend", "adaLN": "adaln"}


def settings_from_published(model: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` part of a published yaml as settings of our ``SongBloomConfig`` (what is missing: its defaults).

    Raises:
        UserError: an option that the published models do not use and this prior does not have.
    """
    used: dict[str, Any] = {
        ours: _number(theirs, model[theirs]) for theirs, ours in _SETTINGS.items() if theirs in model
    }
    handled = {*_SETTINGS, "time_cond_type", "backend", "pre_norm", "condition_provider_cfg", "attribute_dropout"}
    unknown = set(model) - handled - {"fuser_cfg"}
    if unknown:
        raise UserError(f"the model's settings {', '.join(sorted(unknown))} are not known: is this a SongBloom yaml?")
    if model.get("backend", "llama") != "llama" or model.get("pre_norm"):
        raise UserError("only backend: llama without pre_norm is supported, as every published SongBloom model has it")
    time = model.get("time_cond_type", "prepend")
    if time not in _TIME:
        raise UserError(f"time_cond_type is {time!r}: it must be one of {', '.join(_TIME)}")
    fuser = _part(model, "fuser_cfg")
    if any(fuser.get(way) for way in ("sum", "cross", "input_interpolate")):
        raise UserError("fuser_cfg puts conditions elsewhere than before the song, which no published model does")
    conditions = _part(model, "condition_provider_cfg")
    lyrics, prompt = _part(conditions, "lyrics"), _part(conditions, "prompt_wav")
    if lyrics.get("mode", "sum") != "sum":
        raise UserError(f"the lyrics' mode is {lyrics['mode']!r}: only sum is supported, as published models have it")
    used["time_conditioning"] = _TIME[time]
    for part, theirs, ours in (
        (lyrics, "max_len", "lyric_tokens"),
        (lyrics, "max_sentence_per_structure", "sentences"),
        (prompt, "max_len", "prompt_frames"),
    ):
        if theirs in part:
            used[ours] = _number(theirs, part[theirs])
    if isinstance(vocabulary := lyrics.get("vocab_list"), (list, tuple)):
        used |= vocabulary_settings(vocabulary)
    dropout = _part(model, "attribute_dropout")
    used["lyric_dropout"] = _number("cfg_dropout", _part(dropout, "text").get("lyrics", 0.0))
    used["prompt_dropout"] = _number("cfg_dropout", _part(dropout, "wav").get("prompt_wav", 0.0))
    return used


_GENERATION = {
    "temp": "temperature",
    "diff_temp": "diffusion_temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "penalty_window": "penalty_window",
    "steps": "steps",
    "dit_cfg_type": "dit_cfg_type",
    "max_frames": "max_frames",
}
PENALTY = 1.1  # what the published program divides by where penalty_repeat is on
FRAME_RATE = 25
EXTRA_SECONDS = 10  # that the published program adds to a model's max_dur


def generation_from_published(inference: Mapping[str, Any], *, max_dur: float | None = None) -> dict[str, Any]:
    """The ``inference`` part of a published yaml as settings of our ``GenerationSettings``.

    What it leaves out gets the published program's own defaults where these are known, else ours.

    Args:
        max_dur: the model's longest song in seconds, which the program makes 10 s longer.

    Raises:
        UserError: an option that is not known.
    """
    unknown = set(inference) - {*_GENERATION, "cfg_coef", "use_sampling", "penalty_repeat"}
    if unknown:
        raise UserError(f"the inference settings {', '.join(sorted(unknown))} are not known: is this a SongBloom yaml?")
    used: dict[str, Any] = {"temperature": 1.0, "diffusion_temperature": 1.0, "top_k": 200}
    used |= {ours: _number(theirs, inference[theirs]) for theirs, ours in _GENERATION.items() if theirs in inference}
    if "cfg_coef" in inference:
        given = inference["cfg_coef"]
        both = list(given) if isinstance(given, (list, tuple)) else [given, given]
        if len(both) != 2:
            raise UserError(f"the setting cfg_coef of the yaml is {given!r}: it must be a number, or two")
        used["cfg_lm"], used["cfg_diffusion"] = (_number("cfg_coef", each) for each in both)
    used["penalty"] = PENALTY if inference.get("penalty_repeat") else 1.0
    if not inference.get("use_sampling", True) or used["temperature"] <= 0:
        used["temperature"] = 0.0
    if max_dur is not None:
        used.setdefault("max_frames", int((max_dur + EXTRA_SECONDS) * FRAME_RATE))
    return used


def vocabulary_settings(vocabulary: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """What of the settings a lyric vocabulary decides: its size, and which tokens are tags, ``,`` and ``.``.

    Raises:
        UserError: it has no separators.
    """
    for mark in (",", "."):
        if mark not in vocabulary:
            raise UserError(f"the lyric vocabulary has no {mark!r}, which separates sections or sentences")
    tags = tuple(place for place, entry in enumerate(vocabulary) if entry.startswith("[") and entry.endswith("]"))
    return {
        "lyric_vocabulary": len(vocabulary),
        "structure_tokens": tags,
        "section_token": vocabulary.index(","),
        "sentence_token": vocabulary.index("."),
    }
