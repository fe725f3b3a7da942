"""``jukebox_masks``: which positions depend on which, for each attention function and for stacks of each order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from songbloom.transformer.attention import Geometry, attend
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.patterns import AttentionFunction, layer_functions
from tests.golden.report import Golden


def dependence(function: int, geometry: Geometry) -> Tensor:
    """Bool ``[n_ctx, keys]``: whether what the fast path gives for position i contains value vector j."""
    generator = torch.Generator().manual_seed(0)
    crosses = function == AttentionFunction.ENCODER_DECODER
    keys = geometry.encoder_dims if crosses else geometry.n_ctx
    query = torch.rand(1, geometry.n_ctx, 4, generator=generator)
    key = torch.rand(1, keys, 4, generator=generator)
    weights = attend(function, query, key, torch.eye(keys)[None], geometry)  # value j is the j-th unit vector
    return weights[0] != 0


def receptive_field(config: TransformerConfig) -> Tensor:
    """Bool ``[n_ctx, n_ctx]``: whether position i of a stack's output depends on position j of its input."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator=generator)
    x = torch.randn(1, config.n_ctx, config.width, generator=generator)
    x = x.repeat(config.n_ctx, 1, 1).requires_grad_()  # item i of the batch asks for output i
    encoder_kv = torch.randn(1, config.encoder_dims, config.width, generator=generator).expand(config.n_ctx, -1, -1)
    out = model(x, encoder_kv)
    weights = torch.randn(config.width, generator=generator)  # a plain sum would cancel in the norms
    (gradient,) = torch.autograd.grad((out.diagonal(dim1=0, dim2=1).t() @ weights).sum(), x)
    return (gradient != 0).any(-1)


def check(golden: Golden) -> None:
    names = ("n_ctx", "blocks", "spread", "prime_len", "encoder_dims")
    settings: dict[str, Any] = {name: golden.given(name) for name in names}
    golden.expect("block_ctx", got=Geometry(heads=1, **settings).block_ctx)
    for key in golden.look("funcs"):
        for name, causal in (("mask", True), ("mask_when_unmasked", False)):
            if golden.has("funcs", key, name):
                got = dependence(int(key), Geometry(heads=1, causal=causal, **settings))
                golden.expect("funcs", key, name, got=got)
    for key in golden.look("orders"):
        for name in ("attn_func_by_layer_depth96", "layer_masks_first_cycle"):
            functions = layer_functions(int(key), len(golden.look("orders", key, name)))
            golden.expect("orders", key, name, got=[int(function) for function in functions], name=name)
        depth = golden.given("orders", key, "stack_depth")
        config = TransformerConfig(
            width=8, heads=1, depth=depth, attn_order=int(key), m_attn=1.0, init_scale=20.0, **settings
        )
        golden.expect("orders", key, "stack_receptive_field", got=receptive_field(config))


CHECKS = {"jukebox_masks": check}
