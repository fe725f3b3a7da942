"""``jukebox_attn_funcs``: one attention layer of each function, whole, in training, step by step and in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from songbloom.published.jukebox.transformer import from_published
from songbloom.transformer.attention import Attention, Geometry
from songbloom.transformer.cache import attend_chunk, slots, step_window
from tests.golden.report import Golden

OUTPUT = {"abs": 2e-5, "rel": 1e-5}
STEPWISE = {"abs": 5e-5, "rel": 1e-5}


def layer_of(state: dict[str, Tensor], width: int, state_width: int, function: int, geometry: Geometry) -> Attention:
    """An attention layer with published weights."""
    prefix = "layers.0.attention."
    named = from_published({f"_attn_mods.0.attn.{name}": tensor for name, tensor in state.items()})
    layer = Attention(width, state_width, function, geometry)
    layer.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in named.items()})
    return layer.eval()


def incrementally(layer: Attention, x: Tensor, encoder_kv: Tensor | None, chunk: int) -> Tensor:
    """The layer's output, ``chunk`` positions at a time."""
    function, geometry = layer.function, layer.geometry
    entries = torch.zeros(len(x), slots(function, geometry), 2, layer.state)
    if encoder_kv is not None:
        entries.copy_(layer.key_value(encoder_kv).view_as(entries))
    outputs, before = [], 0
    for part in x.split(chunk, dim=1):
        query, key, value = (layer.query(part), None, None) if layer.crosses else layer.project(part, None)
        outputs.append(layer.output(attend_chunk(function, geometry, entries, query, key, value, before)))
        before += part.shape[1]
    return torch.cat(outputs, dim=1)


def entries_held(function: int, geometry: Geometry) -> int:
    """Cache entries in use after a whole context."""
    written = {step_window(function, geometry, t)[0] for t in range(geometry.n_ctx)} - {-1}
    return len(written) or slots(function, geometry)


@torch.no_grad()
def check(golden: Golden) -> None:
    names = {"heads": "n_head", "blocks": "blocks", "spread": "spread"}
    settings: dict[str, Any] = {ours: golden.given(theirs) for ours, theirs in names.items()}
    settings |= {name: golden.given(name) for name in ("prime_len", "encoder_dims")}
    width, state_width = golden.given("n_in"), golden.given("n_state")
    for key in golden.look("funcs"):
        at, function = ("funcs", key), int(key)
        geometry = Geometry(n_ctx=golden.given(*at, "n_ctx"), **settings)
        golden.expect(*at, "block_ctx", got=geometry.block_ctx, name="block_ctx")
        layer = layer_of(golden.given(*at, "state_dict"), width, state_width, function, geometry)
        x, encoder_kv = golden.given(*at, "x"), golden.given(*at, "encoder_kv")

        layer.record = True
        golden.expect(*at, "out_eval", got=layer(x, encoder_kv), **OUTPUT)
        golden.expect(*at, "attn_w", got=layer.recorded, **OUTPUT)
        layer.record = False
        golden.expect(*at, "out_train", got=layer.train()(x, encoder_kv), **OUTPUT)
        layer.eval()
        if golden.has(*at, "out_sample_stepwise"):
            golden.expect(*at, "out_sample_stepwise", got=incrementally(layer, x, encoder_kv, 1), **STEPWISE)
        if golden.has(*at, "out_sample_chunked"):
            chunk = golden.given(*at, "chunk_size")
            golden.expect(*at, "out_sample_chunked", got=incrementally(layer, x, encoder_kv, chunk), **STEPWISE)
        if golden.has(*at, "final_cache_len"):
            golden.expect(*at, "final_cache_len", got=entries_held(function, geometry))
        if golden.has(*at, "_prime_len_rounded"):
            golden.expect(*at, "_prime_len_rounded", got=geometry.prime)
        if golden.has(*at, "out_eval_mask_false"):
            unmasked = Geometry(n_ctx=geometry.n_ctx, causal=False, **settings)
            layer = layer_of(golden.look(*at, "state_dict"), width, state_width, function, unmasked)
            golden.expect(*at, "out_eval_mask_false", got=layer(x, encoder_kv), **OUTPUT)


CHECKS = {"jukebox_attn_funcs": check}
