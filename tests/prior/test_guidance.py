"""One head is taught to look at the words that are sung."""

import math

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.guidance import alignment_loss
from tests.prior.test_lyrics import DENSE, SEPARATE, SINGLE, WORDS, build, labels_of, upper_of
from tests.prior.test_prior import codes_of

N_CTX = 24


def sung_of(prior, batch=2):
    """Each lyric position has 4 codes of time, one after the other."""
    edges = torch.arange(WORDS + 1) * (N_CTX // WORDS * prior.hop_length)
    return torch.stack([edges[:-1], edges[1:]], dim=-1).float().expand(batch, -1, -1)


def test_the_loss_is_the_bits_that_are_missing():
    weights = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]])
    nan = math.nan
    sung = torch.tensor([[[0.0, 1.4], [1.6, 2.4], [nan, nan]]])
    # Codes 0 and 1 are the first position's and, within half a code, 2 is the second's; nobody knows of code 3.
    assert float(alignment_loss(weights, sung)) == pytest.approx((1 + 2 + 1) / 3)
    assert float(alignment_loss(weights, torch.full((1, 3, 2), nan))) == 0.0
    nothing = alignment_loss(torch.zeros(1, 4, 3), sung)
    assert 10 < float(nothing) < 40  # finite where the head looks elsewhere altogether


@pytest.mark.parametrize("hps", [SINGLE, DENSE, SEPARATE], ids=["single", "dense", "separate"])
@pytest.mark.parametrize("c_res", [0, 2])
def test_it_is_added_and_measures_the_head_that_is_asked_later(hps, c_res):
    prior = build(hps, alignment_loss_fraction=0.25, c_res=c_res)
    codes, labels, upper = codes_of(2, N_CTX), labels_of(), upper_of(prior)
    sung, wanted = sung_of(prior), prior.lyric_heads()[-prior.config.heads]
    plain, _ = prior(codes, upper, labels)
    loss, metrics = prior.train()(codes, upper, labels, sung=sung)
    seen = prior.eval().lyric_attention(codes, labels, upper, wanted=[wanted])[0]
    expected = alignment_loss(seen, sung / prior.hop_length)
    torch.testing.assert_close(metrics["alignment_loss"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, plain + 0.25 * expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    layer = prior.autoregressive.transformer.stack[wanted[0]].attention
    projection = layer.query if layer.crosses else layer.query_key_value
    assert float(projection.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("head", [None, 1])
def test_a_few_steps_teach_it(head):
    chosen = {} if head is None else {"alignment_layer": 3, "alignment_head": head}
    prior = build(SEPARATE, alignment_loss_fraction=1.0, **chosen).train()
    codes, labels, sung = codes_of(2, N_CTX), labels_of(), sung_of(prior)
    optimiser, seen = torch.optim.Adam(prior.parameters(), lr=0.02), []
    for _ in range(40):
        loss, metrics = prior(codes, None, labels, sung=sung)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(metrics["alignment_loss"]))
    assert seen[-1] < 0.3 < 1.5 < seen[0]
    looked = prior.eval().lyric_attention(codes, labels, wanted=[(3, head or 0)])[0].argmax(-1)
    told = torch.arange(N_CTX) // (N_CTX // WORDS)
    assert float((looked == told).float().mean()) > 0.8


def test_heads_that_cannot_be_taught():
    with pytest.raises(UserError, match="no layer of this prior reads any"):
        build(SEPARATE, attn_order=2, alignment_loss_fraction=0.3)
    with pytest.raises(UserError, match="alignment_layer=2 and alignment_head=0: this prior reads lyrics in layers 3"):
        build(SEPARATE, alignment_layer=2, alignment_head=0, alignment_loss_fraction=0.3)
