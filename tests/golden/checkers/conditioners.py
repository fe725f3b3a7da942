"""Range embeddings and the upsampling conditioner (``jukebox_conditioners``)."""

from __future__ import annotations

import torch

from songbloom.prior.conditioners import RangeEmbedding, UpsamplingConditioner
from songbloom.published.jukebox.vqvae import upsampling_block_from_published
from tests.golden.report import Golden

NAMES = {"x_emb.weight": "embedding.weight", "ln.weight": "norm.weight", "ln.bias": "norm.bias"}


def check_range(golden: Golden, name: str) -> None:
    low, high = golden.given(name, "range")
    n_time, bins, clamp = (golden.given(name, key) for key in ("n_time", "bins", "clamp"))
    embedding = RangeEmbedding(n_time, bins, low, high, width=3, clamp=clamp)
    start, end = golden.given(name, "start"), golden.given(name, "end")
    golden.expect(name, "bin_index", got=embedding.bin_index(start, end))
    torch.testing.assert_close(embedding(start, end), embedding.embedding.weight[golden.look(name, "bin_index")])


@torch.no_grad()
def check_conditioner(golden: Golden, name: str) -> None:
    cfg = golden.given(name, "cfg")
    conditioner = UpsamplingConditioner(
        cfg["bins"],
        cfg["out_width"],
        down_t=cfg["down_t"],
        stride_t=cfg["stride_t"],
        cond_width=cfg["width"],
        cond_depth=cfg["depth"],
        m_conv=cfg["m_conv"],
        dilation_growth_rate=cfg["dilation_growth_rate"],
        dilation_cycle=cfg["dilation_cycle"],
        zero_out=cfg["zero_out"],
        res_scale=cfg["res_scale"],
        checkpoint=cfg["checkpoint_res"] == 1,
        init_scale=cfg["init_scale"],
    ).eval()
    published = golden.given(name, "state_dict")
    state = {ours: published[theirs] for theirs, ours in NAMES.items()}
    block = {key.removeprefix("cond."): tensor for key, tensor in published.items() if key.startswith("cond.")}
    state |= {f"upsample.{key}": tensor for key, tensor in upsampling_block_from_published(block).items()}
    assert len(state) == len(published)
    conditioner.load_state_dict(state)
    codes = golden.given(name, "z")
    golden.expect(name, "out", got=conditioner(codes), abs=2e-5, rel=1e-5)
    with_condition = conditioner(codes, golden.given(name, "x_cond"))
    golden.expect(name, "out_with_x_cond", got=with_condition, abs=2e-5, rel=1e-5)


def check(golden: Golden) -> None:
    for name in golden.look():
        check_range(golden, name) if golden.has(name, "bin_index") else check_conditioner(golden, name)


CHECKS = {"jukebox_conditioners": check}
