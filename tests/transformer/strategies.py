"""Random transformers for property tests: shapes, patterns, and weights of a size at which every part matters."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from songbloom.transformer.attention import Geometry
from songbloom.transformer.blocks import Transformer, TransformerConfig

seeds = st.integers(0, 2**31 - 1)


def examples(count: int) -> settings:
    """The same ``count`` examples on every run, however slow the machine is."""
    return settings(max_examples=count, deadline=None, derandomize=True)


@st.composite
def geometries(draw: st.DrawFn, *, causal: bool | None = None) -> Geometry:
    """Contexts of up to 8 blocks of up to 7 positions."""
    blocks, block_ctx = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    return Geometry(
        n_ctx=blocks * block_ctx,
        heads=draw(st.sampled_from([1, 2, 3])),
        blocks=blocks,
        spread=draw(st.integers(1, block_ctx)),
        prime_len=draw(st.integers(0, blocks * block_ctx)),
        encoder_dims=draw(st.integers(1, 9)),
        causal=draw(st.booleans()) if causal is None else causal,
    )


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> TransformerConfig:
    """Causal transformers of any order, at depths that reach each function of the order's start."""
    geometry = draw(geometries(causal=True))
    order = draw(st.integers(0, 12))
    settings: dict[str, Any] = {
        "width": 12,
        "n_ctx": geometry.n_ctx,
        "heads": geometry.heads,
        "depth": draw(st.integers(1, 4 if order < 7 else 17)),
        "attn_order": order,
        "blocks": geometry.blocks,
        "spread": geometry.spread,
        "m_attn": draw(st.sampled_from([0.5, 1.0])),
        "m_mlp": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "res_scale": draw(st.booleans()),
        "encoder_dims": geometry.encoder_dims,
        "prime_len": geometry.prime_len,
        "activation": draw(st.sampled_from(["quick_gelu", "gelu", "swish", "relu"])),
    }
    return TransformerConfig(**(settings | fixed))


def transformer(config: TransformerConfig, seed: int) -> Transformer:
    """A transformer in evaluation mode whose weights, biases and norms are all random and none is zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config, generator=generator).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            if p.dim() == 2:
                p.copy_(draw * p.shape[1] ** -0.5)
            else:
                p.copy_(0.1 * draw + (1.0 if name.endswith("norm.weight") else 0.0))
    return model


def inputs(config: TransformerConfig, seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """``x [N, n_ctx, W]`` and ``encoder_kv [N, encoder_dims, W]``."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, config.n_ctx, config.width, generator=generator)
    return x, torch.randn(batch, config.encoder_dims, config.width, generator=generator)
