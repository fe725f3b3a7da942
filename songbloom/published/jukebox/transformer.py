"""Names and layouts of a transformer's weights as Jukebox's checkpoints have them, and as they are here.

Published matrices are ``[in, out]``, ours ``[out, in]``. Both directions only rename and transpose, so they are exact
and work on meta tensors. Ours are views of the published ones, so that nothing is copied before it is wanted. The state
dicts have no prefix: ``_attn_mods.0.attn.c_attn.w`` against ``layers.0.attention.query_key_value.weight``.
"""

from __future__ import annotations

import re

import torch

from songbloom.errors import UserError

State = dict[str, torch.Tensor]

_ATTENTION = {"attn.c_attn": "attention.query_key_value", "attn.c_proj": "attention.output"}
_CROSS_ATTENTION = {
    "attn.c_attn": "attention.query",
    "attn.c_enc_kv": "attention.key_value",
    "attn.c_proj": "attention.output",
}
_MLP = {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
_NORMS = {"ln_0": "attention_norm", "ln_1": "mlp_norm"}

_PUBLISHED = re.compile(r"_attn_mods\.(\d+)\.(.+)\.(w|b|weight|bias)")
_OURS = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def from_published(state: State) -> State:
    """Published names and layouts → ours.

    Raises:
        UserError: a name that no published transformer has.
    """
    cross = {name.split(".")[1] for name in state if name.endswith(".attn.c_enc_kv.w")}
    ours: State = {}
    for name, tensor in state.items():
        match = _PUBLISHED.fullmatch(name)
        layer, module, kind = match.groups() if match else ("", "", "")
        linear = {**(_CROSS_ATTENTION if layer in cross else _ATTENTION), **_MLP}.get(module)
        if linear and kind in ("w", "b"):
            ours[f"layers.{layer}.{linear}.{'weight' if kind == 'w' else 'bias'}"] = (
                tensor.t() if kind == "w" else tensor
            )
        elif module in _NORMS and kind in ("weight", "bias"):
            ours[f"layers.{layer}.{_NORMS[module]}.{kind}"] = tensor
        else:
            raise UserError(f"{name}: not the name of a weight of a published Jukebox transformer")
    return ours


def to_published(state: State) -> State:
    """Our names and layouts → the published ones.

    Raises:
        UserError: a name that is not a transformer's.
    """
    linears = {ours: theirs for theirs, ours in {**_ATTENTION, **_MLP}.items()}
    linears |= {ours: theirs for theirs, ours in _CROSS_ATTENTION.items()}
    norms = {ours: theirs for theirs, ours in _NORMS.items()}
    published: State = {}
    for name, tensor in state.items():
        match = _OURS.fullmatch(name)
        layer, module, kind = match.groups() if match else ("", "", "")
        if module in linears:
            matrix = kind == "weight"
            published[f"_attn_mods.{layer}.{linears[module]}.{'w' if matrix else 'b'}"] = _turned(tensor, matrix)
        elif module in norms:
            published[f"_attn_mods.{layer}.{norms[module]}.{kind}"] = tensor
        else:
            raise UserError(f"{name}: not the name of a transformer's weight")
    return published


def _turned(tensor: torch.Tensor, matrix: bool) -> torch.Tensor:
    return tensor.t().contiguous() if matrix else tensor
