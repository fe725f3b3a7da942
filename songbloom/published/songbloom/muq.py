"""MuQ as published: names, layouts, configuration.

The published files are those of the ``muq`` package (weights CC-BY-NC 4.0, code MIT): ``config.json`` beside
``model.safetensors`` or ``pytorch_model.bin``, every name with ``model.`` before it. What only MuQ's own training uses
(its prediction heads, the class token, a positional convolution that its encoder never runs) is left out.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.published.safetensors import SUFFIX, read_safetensors
from songbloom.sketch.muq import MuQ, MuQConfig

_PREFIX = "model."
_UNUSED = re.compile(
    r"cls_token|mask_emb|linear(s\.\d+)?\.(weight|bias)|conformer\.pos_conv_embed\..+|conformer\.embed_positions\..+"
    r"|.+\.stale_counter|preprocessor_.+|quantizer_.+|conformer\.masked_spec_embed"
)
_CONVOLUTIONS = {
    "conv1": "first",
    "bn1": "first_norm",
    "conv2": "second",
    "bn2": "second_norm",
    "conv3": "skip",
    "bn3": "skip_norm",
}
_LAYER_PARTS = {
    "ffn1_layer_norm": "first_half.norm",
    "ffn1.intermediate_dense": "first_half.up",
    "ffn1.output_dense": "first_half.down",
    "self_attn_layer_norm": "attention.norm",
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.output",
    "conv_module.layer_norm": "convolution.norm",
    "conv_module.pointwise_conv1": "convolution.up",
    "conv_module.depthwise_conv": "convolution.depthwise",
    "conv_module.batch_norm": "convolution.batch_norm",
    "conv_module.pointwise_conv2": "convolution.down",
    "ffn2_layer_norm": "second_half.norm",
    "ffn2.intermediate_dense": "second_half.up",
    "ffn2.output_dense": "second_half.down",
    "final_layer_norm": "norm",
}
_LEAF = r"(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
_CONVOLUTION = re.compile(rf"conv\.conv\.(?P<block>\d+)\.(?P<part>conv[123]|bn[123])\.{_LEAF}")
_LAYER = re.compile(rf"conformer\.layers\.(?P<layer>\d+)\.(?P<part>.+)\.{_LEAF}")
_PROJECTION = re.compile(
    r"rvq\.quantizers\.(?P<number>\d+)\.(?P<side>in|out)_proj\.(?P<leaf>bias|weight_g|weight_v|weight)"
)
_CODEBOOK = re.compile(r"rvq\.quantizers\.(?P<number>\d+)\.codebook\.weight")
_PLAIN = {
    "conv.linear.weight": "project.weight",
    "conv.linear.bias": "project.bias",
    "conformer.layer_norm.weight": "norm.weight",
    "conformer.layer_norm.bias": "norm.bias",
}


def _bare(key: str) -> str:
    """A published key without its prefix; PyTorch's newer names of weight norms become the old ones."""
    key = key.removeprefix(_PREFIX)
    return re.sub(r"parametrizations\.weight\.original([01])", lambda m: f"weight_{'gv'[int(m[1])]}", key)


def is_published(state: Mapping[str, Any]) -> bool:
    """Whether a state's names are those of a published MuQ."""
    return any(_bare(key).startswith(("conformer.layers.", "conv.conv.")) for key in state)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published MuQ's state under our names; works on meta tensors too.

    Raises:
        UserError: a key that no published MuQ has.
    """
    ours: dict[str, Tensor] = {}
    bare = {_bare(key): tensor for key, tensor in state.items()}
    for key, tensor in bare.items():
        if key in _PLAIN:
            ours[_PLAIN[key]] = tensor
        elif found := _CONVOLUTION.fullmatch(key):
            ours[f"blocks.{found['block']}.{_CONVOLUTIONS[found['part']]}.{found['leaf']}"] = tensor
        elif (found := _LAYER.fullmatch(key)) and found["part"] in _LAYER_PARTS:
            ours[f"layers.{found['layer']}.{_LAYER_PARTS[found['part']]}.{found['leaf']}"] = tensor
        elif found := _CODEBOOK.fullmatch(key):
            ours[f"targets.{found['number']}.codebook"] = tensor
        elif found := _PROJECTION.fullmatch(key):
            name = f"targets.{found['number']}.project_{found['side']}"
            if found["leaf"] == "bias":
                ours[f"{name}.bias"] = tensor
            elif found["leaf"] == "weight":
                ours[f"{name}.weight"] = tensor.flatten(1)
            elif found["leaf"] == "weight_v":
                ours[f"{name}.weight"] = _weight(bare, key, tensor)
        elif not _UNUSED.fullmatch(key):
            raise UserError(f"{key!r} is no name of a published MuQ's weights: is this the file of another model?")
    return ours


def _weight(bare: Mapping[str, Tensor], key: str, direction: Tensor) -> Tensor:
    magnitude = bare.get(key.removesuffix("v") + "g")
    if magnitude is None:
        raise UserError(f"{key!r} comes without its magnitude (weight_g): the file of weights is not whole")
    flat = direction.flatten(1)
    return flat * (magnitude.flatten(1) / torch.linalg.vector_norm(flat, dim=1, keepdim=True))


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our ``state_dict()`` under the published names; what :func:`from_published` leaves out isn't there.

    Raises:
        UserError: a key that no MuQ of ours has.
    """
    convolutions = {ours: theirs for theirs, ours in _CONVOLUTIONS.items()}
    parts = {ours: theirs for theirs, ours in _LAYER_PARTS.items()}
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    made: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stem, _, leaf = key.rpartition(".")
        words = stem.split(".")
        rest = ".".join(words[2:])
        if key in plain:
            made[_PREFIX + plain[key]] = tensor
        elif words[0] == "blocks" and rest in convolutions:
            made[f"{_PREFIX}conv.conv.{words[1]}.{convolutions[rest]}.{leaf}"] = tensor
        elif words[0] == "layers" and rest in parts:
            made[f"{_PREFIX}conformer.layers.{words[1]}.{parts[rest]}.{leaf}"] = tensor
        elif words[0] == "targets" and leaf == "codebook":
            made[f"{_PREFIX}rvq.quantizers.{words[1]}.codebook.weight"] = tensor
        elif words[0] == "targets":
            name = f"{_PREFIX}rvq.quantizers.{words[1]}.{rest.removeprefix('project_')}_proj"
            if leaf == "bias":
                made[f"{name}.bias"] = tensor
            else:
                norm = torch.linalg.vector_norm(tensor, dim=1, keepdim=True)
                made |= {f"{name}.weight_g": norm[..., None], f"{name}.weight_v": tensor[..., None]}
        else:
            raise UserError(f"{key!r} is no name of our MuQ's weights: give the state_dict of a songbloom MuQ")
    return made


def config_from_published(content: Mapping[str, Any], conformer: Mapping[str, Any] | None = None) -> MuQConfig:
    """The configuration from the published ``config.json``, parsed.

    Args:
        content: the json.
        conformer: the conformer's own settings, where they aren't inside (``w2v2_config``).

    Raises:
        UserError: a kind of MuQ that ours is not.
    """
    inner = conformer if conformer is not None else content.get("w2v2_config") or {}
    default = MuQConfig()
    features = list(content.get("features", ["melspec_2048"]))
    if features != ["melspec_2048"]:
        raise UserError(f"MuQ: features {features} in its configuration; only ['melspec_2048'] is supported")
    positions = inner.get("position_embeddings_type", "rotary")
    if positions != "rotary":
        raise UserError(f"MuQ: position_embeddings_type {positions!r} in its configuration; only 'rotary' is supported")
    statistics = content.get("stat") or {}
    width = int(content.get("encoder_dim", default.width))
    if int(inner.get("hidden_size", width)) != width:
        raise UserError(f"MuQ: encoder_dim is {width}, but hidden_size {inner['hidden_size']}; they must be the same")
    return MuQConfig(
        hop_length=int(content.get("hop_length", default.hop_length)),
        n_mels=int(content.get("n_mels", default.n_mels)),
        mel_mean=float(statistics.get("melspec_2048_mean", default.mel_mean)),
        mel_std=float(statistics.get("melspec_2048_std", default.mel_std)),
        conv_dim=int(content.get("conv_dim", default.conv_dim)),
        width=width,
        depth=int(content.get("encoder_depth", default.depth)),
        heads=int(inner.get("num_attention_heads", default.heads)),
        feed_forward=int(inner.get("intermediate_size", default.feed_forward)),
        kernel=int(inner.get("conv_depthwise_kernel_size", default.kernel)),
        rotary_base=float(inner.get("rotary_embedding_base", default.rotary_base)),
        layer_norm_eps=float(inner.get("layer_norm_eps", default.layer_norm_eps)),
        activation=str(inner.get("hidden_act", default.activation)),
        rvq_codebooks=int(content.get("rvq_n_codebooks", default.rvq_codebooks))
        if content.get("use_rvq_target", True)
        else 0,
    )


WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load_muq(folder: Path | str) -> MuQ:
    """A published MuQ from its folder: ``config.json`` beside one of :data:`WEIGHTS`; on the CPU, in eval mode.

    Raises:
        UserError: a file is missing, unreadable, or of another model.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config_from_published(content)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)[:80]
        raise UserError(
            f"{folder}: no folder of a MuQ's weights (config.json: {reason}); it needs config.json and {WEIGHTS[0]}"
        ) from error
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: holds neither {' nor '.join(WEIGHTS)}; give the folder of MuQ's weights")
    if found.suffix == SUFFIX:
        state = read_safetensors(found)
    else:
        try:
            state = torch.load(found, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{found}: damaged, or no weights ({str(error).splitlines()[0][:80]})") from error
    return muq_of(state, config, str(found))


def muq_of(state: Mapping[str, Tensor], config: MuQConfig, where: str = "MuQ's weights") -> MuQ:
    """A MuQ with a published state; the codebooks of its training targets are kept if they are there.

    Raises:
        UserError: names or shapes of another model.
    """
    ours = from_published(state)
    books = [tensor for name, tensor in ours.items() if name.endswith(".codebook")]
    sizes: dict[str, Any] = {"rvq_codes": books[0].shape[0], "rvq_dim": books[0].shape[1]} if books else {}
    config = replace(config, rvq_codebooks=len(books), **sizes)
    with torch.device("meta"):
        model = MuQ(config)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted({*own, *ours}):
        there, here = ours.get(name), own.get(name)
        if there is None or here is None or there.shape != here:
            told = "is missing" if there is None else f"has shape {list(there.shape)}"
            wanted = "doesn't know it" if here is None else f"wants {list(here)}"
            raise UserError(
                f"{where}: {name} {told}, its configuration {wanted}; is the config.json that of these weights?"
            )
    ready = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in ours.items()}
    model.load_state_dict(ready, strict=True, assign=True)
    return model.eval()
