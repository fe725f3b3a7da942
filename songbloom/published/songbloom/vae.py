"""Names and configuration of the published 48 kHz stereo VAE, translated to ours and back.

Only names differ; every tensor keeps its shape and layout. Published files hold each convolution as ``weight_g`` and
``weight_v``. Files written through PyTorch's newer parametrisation hold the same two as
``parametrizations.weight.original0`` and ``original1``, and files whose convolutions were put together hold one
``weight``; both are understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError, reason
from songbloom.vae.config import VAEConfig

BUNDLED = "vae.vae."  # where a file of the whole song model holds its VAE
PUBLISHED_DILATIONS = (1, 3, 9)
_PREFIXES = (BUNDLED, "vae.", "module.")

_LAYER = re.compile(r"(?P<side>encoder|decoder)\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_UNIT = re.compile(r"layers\.(?P<unit>\d+)\.layers\.(?P<part>[0-3])\.(?P<leaf>.+)")
_PART = re.compile(r"layers\.(?P<part>\d+)\.(?P<leaf>.+)")
_UNIT_PARTS = ("first_activation", "dilated", "second_activation", "pointwise")
_SNAKES = ("alpha", "beta")
_CONVOLUTIONS = {
    "weight_g": "magnitude",
    "weight_v": "direction",
    "bias": "bias",
    "parametrizations.weight.original0": "magnitude",
    "parametrizations.weight.original1": "direction",
    "weight": "weight",  # put together; split again below
}
_PUBLISHED_LEAVES = {"magnitude": "weight_g", "direction": "weight_v", "bias": "bias", "alpha": "alpha", "beta": "beta"}

_OUR_UNIT = re.compile(
    rf"(?P<side>encoder|decoder)\.blocks\.(?P<block>\d+)\.units\.(?P<unit>\d+)\.(?P<part>{'|'.join(_UNIT_PARTS)})\.(?P<leaf>\w+)"
)
_OUR_BLOCK = re.compile(
    r"(?P<side>encoder|decoder)\.blocks\.(?P<block>\d+)\.(?P<part>activation|resample)\.(?P<leaf>\w+)"
)
_OUR_END = re.compile(r"(?P<side>encoder|decoder)\.(?P<part>input|activation|output)\.(?P<leaf>\w+)")


def _bare(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` is a published VAE's alone (a leading ``vae.vae.``, ``vae.`` or ``module.`` allowed)."""
    return bool(state) and all(_LAYER.fullmatch(_bare(key)) for key in state)


def bundled(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The published VAE's state inside a file of the whole song model, its prefix cut off, or None without one."""
    found = {key.removeprefix(BUNDLED): tensor for key, tensor in state.items() if key.startswith(BUNDLED)}
    return found or None


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published VAE's state under our names.

    Raises:
        UserError: a key that no published VAE has.
    """
    bare = {_bare(key): tensor for key, tensor in state.items()}
    blocks, units = _depths(bare)
    ours: dict[str, Tensor] = {}
    for key, tensor in bare.items():
        name = _from_published_name(key, blocks, units)
        if name is None:
            raise UserError(
                f"{key!r} is no name of a published VAE's weights: is this the checkpoint of another model?"
            )
        if name.endswith(".weight"):  # the norm of what was put together is the magnitude, itself a direction
            stem = name.removesuffix("weight")
            axes = tuple(range(1, tensor.ndim))
            ours[stem + "magnitude"] = torch.linalg.vector_norm(tensor.float(), dim=axes, keepdim=True).to(tensor.dtype)
            ours[stem + "direction"] = tensor
        else:
            ours[name] = tensor
    return ours


def _depths(state: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Blocks of each side, and residual units of each block by its side and number (``"encoder.1"``)."""
    blocks: dict[str, int] = {}
    units: dict[str, int] = {}
    for key in state:
        if found := _LAYER.fullmatch(key):
            side, layer = found["side"], int(found["layer"])
            if found["rest"].startswith("layers."):
                blocks[side] = max(blocks.get(side, 0), layer)
            if unit := _UNIT.fullmatch(found["rest"]):
                first = 0 if side == "encoder" else 2
                place = f"{side}.{layer}"
                units[place] = max(units.get(place, 0), int(unit["unit"]) - first + 1)
    return blocks, units


def _leaf(part: str, leaf: str) -> str | None:
    """Our name of a published leaf of our ``part``, or None if such a part has none."""
    if part.endswith("activation"):
        return leaf if leaf in _SNAKES else None
    return _CONVOLUTIONS.get(leaf)


def _from_published_name(key: str, blocks: Mapping[str, int], units: Mapping[str, int]) -> str | None:
    found = _LAYER.fullmatch(key)
    if not found:
        return None
    side, layer, rest = found["side"], int(found["layer"]), found["rest"]
    depth = blocks.get(side, 0)
    ends = {0: "input", depth + 1: "activation", depth + 2: "output"}
    if layer in ends and depth:
        leaf = _leaf(ends[layer], rest)
        return f"{side}.{ends[layer]}.{leaf}" if leaf else None
    place = f"{side}.blocks.{layer - 1}"
    if unit := _UNIT.fullmatch(rest):
        part, leaf = _UNIT_PARTS[int(unit["part"])], _leaf(_UNIT_PARTS[int(unit["part"])], unit["leaf"])
        number = int(unit["unit"]) - (0 if side == "encoder" else 2)
        return f"{place}.units.{number}.{part}.{leaf}" if leaf and number >= 0 else None
    if inner := _PART.fullmatch(rest):
        first = units.get(f"{side}.{layer}", 0) if side == "encoder" else 0
        part = {first: "activation", first + 1: "resample"}.get(int(inner["part"]), "")
        leaf = _leaf(part, inner["leaf"]) if part else None
        return f"{place}.{part}.{leaf}" if leaf else None
    return None


def to_published(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Our VAE's ``state_dict()`` under the published names; a discriminator's weights are left out.

    Args:
        state: of our VAE.
        prefix: put before every name; :data:`BUNDLED` for a file of the whole song model.

    Raises:
        UserError: a key that no VAE of ours has.
    """
    blocks: dict[str, int] = {}
    units: dict[str, int] = {}
    for key in state:
        if found := _OUR_UNIT.fullmatch(key) or _OUR_BLOCK.fullmatch(key):
            side, block = found["side"], int(found["block"])
            blocks[side] = max(blocks.get(side, 0), block + 1)
        if found := _OUR_UNIT.fullmatch(key):
            place = f"{found['side']}.{found['block']}"
            units[place] = max(units.get(place, 0), int(found["unit"]) + 1)
    return {
        prefix + _to_published_name(key, blocks, units): tensor
        for key, tensor in state.items()
        if not key.startswith("discriminator.")
    }


def _to_published_name(key: str, blocks: Mapping[str, int], units: Mapping[str, int]) -> str:
    found = _OUR_UNIT.fullmatch(key) or _OUR_BLOCK.fullmatch(key) or _OUR_END.fullmatch(key)
    if not found or found["leaf"] not in _PUBLISHED_LEAVES:
        raise UserError(f"{key!r} is no name of our VAE's weights: give the state_dict of a songbloom VAE")
    side, part, leaf = found["side"], found["part"], _PUBLISHED_LEAVES[found["leaf"]]
    if "block" not in found.groupdict():
        depth = blocks.get(side, 0)
        return f"{side}.layers.{ {'input': 0, 'activation': depth + 1, 'output': depth + 2}[part] }.{leaf}"
    place = f"{side}.layers.{int(found['block']) + 1}"
    if "unit" in found.groupdict():
        number = int(found["unit"]) + (0 if side == "encoder" else 2)
        return f"{place}.layers.{number}.layers.{_UNIT_PARTS.index(part)}.{leaf}"
    first = units.get(f"{side}.{found['block']}", 0) if side == "encoder" else 0
    return f"{place}.layers.{first + (part == 'resample')}.{leaf}"


def config_from_published(content: Mapping[str, Any], **changes: Any) -> VAEConfig:
    """The configuration of a published model from its json (``stable_audio_1920_vae.json``).

    Args:
        content: the parsed json.
        changes: fields of :class:`VAEConfig` that the json does not decide (losses, example length).

    Raises:
        UserError: a kind of autoencoder that ours is not, or a json without the needed entries.
    """
    try:
        model = content["model"]
        encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
        kinds = {"encoder": model["encoder"]["type"], "decoder": model["decoder"]["type"]}
        bottleneck = model.get("bottleneck", {}).get("type", "none")
        latents = model.get("latent_dim", decoder["latent_dim"])
        same: dict[str, tuple[Any, Any, Any]] = {
            "channels": (encoder["channels"], decoder["channels"], None),
            "c_mults": (list(encoder["c_mults"]), list(decoder["c_mults"]), None),
            "strides": (list(encoder["strides"]), list(decoder["strides"]), None),
            "in_channels and out_channels": (encoder["in_channels"], decoder["out_channels"], None),
            "latent_dim (the encoder has means and scales)": (encoder["latent_dim"], 2 * decoder["latent_dim"], None),
            "use_snake": (encoder.get("use_snake", False), decoder.get("use_snake", False), True),
        }
        values = {
            "sr": int(content["sample_rate"]),
            "vae_channels": encoder["in_channels"],
            "vae_width": encoder["channels"],
            "vae_multipliers": tuple(encoder["c_mults"]),
            "vae_strides": tuple(encoder["strides"]),
            "vae_latent_dim": latents,
            "vae_final_tanh": bool(decoder["final_tanh"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the VAE's configuration lacks an entry, or has an unusable one ({reason(error)}): give the json "
            "published with it"
        ) from error
    for side, kind in kinds.items():
        if kind != "oobleck":
            raise UserError(f"the VAE's {side} is of type {kind!r}: only 'oobleck' is supported")
    if bottleneck != "vae":
        raise UserError(f"the autoencoder's bottleneck is of type {bottleneck!r}: only 'vae' is supported")
    for name, (ours, theirs, must) in same.items():
        if ours != theirs or must not in (None, ours):
            wanted = "the same in both" if must is None else f"{must} in both"
            raise UserError(f"the VAE's {name}: {ours} in the encoder, {theirs} in the decoder; must be {wanted}")
    config = VAEConfig(**{**values, **changes})
    if model.get("downsampling_ratio", config.hop_length) != config.hop_length:
        raise UserError(
            f"the VAE's downsampling_ratio is {model['downsampling_ratio']}, but its strides make {config.hop_length}"
        )
    return config


def read_config(path: Path | str, **changes: Any) -> VAEConfig:
    """:func:`config_from_published` of a json file.

    Raises:
        UserError: no such file, or not such a json.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a VAE's json configuration ({reason(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no VAE's configuration; give the json published with it")
    return config_from_published(content, **changes)


def weights_of(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state inside a loaded VAE checkpoint, which published files keep under ``state_dict``."""
    inner = content.get("state_dict", content)
    return inner if isinstance(inner, Mapping) else content


def state_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The VAE's state inside any loaded checkpoint: ours, a published VAE's, or a whole song model's that holds one."""
    ours = content.get("model")
    state = ours if isinstance(ours, Mapping) else weights_of(content)
    return bundled(state) or state


def config_to_published(config: VAEConfig) -> dict[str, Any]:
    """What :func:`config_from_published` reads, for other programs: the json that belongs beside a ``.ckpt``.

    Raises:
        UserError: dilations that the published format cannot tell.
    """
    if config.vae_dilations != PUBLISHED_DILATIONS:
        raise UserError(
            f"vae_dilations={config.vae_dilations}: published VAEs have {PUBLISHED_DILATIONS}, so other programs "
            "could not read this one"
        )
    shared = {
        "channels": config.vae_width,
        "c_mults": list(config.vae_multipliers),
        "strides": list(config.vae_strides),
        "use_snake": True,
    }
    latents = config.vae_latent_dim
    encoder = {"in_channels": config.vae_channels, "latent_dim": 2 * latents, **shared}
    decoder = {"out_channels": config.vae_channels, "latent_dim": latents, "final_tanh": config.vae_final_tanh}
    return {
        "model_type": "autoencoder",
        "sample_rate": config.sr,
        "audio_channels": config.vae_channels,
        "model": {
            "encoder": {"type": "oobleck", "config": encoder},
            "decoder": {"type": "oobleck", "config": {**decoder, **shared}},
            "bottleneck": {"type": "vae"},
            "latent_dim": latents,
            "downsampling_ratio": config.hop_length,
            "io_channels": config.vae_channels,
        },
    }
