from types import SimpleNamespace

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.prior import Prior, PriorConfig, dtype_of

SMALL = {"n_ctx": 24, "prior_width": 16, "prior_depth": 3, "heads": 2, "attn_order": 2, "blocks": 6, "labels": False}
CONDITIONER = {"cond_width": 8, "cond_depth": 2, "cond_c_res": 1}


def codec(downs_t=(1, 2, 1), strides_t=(2, 2, 3), l_bins=13, length=480, **more):
    downsamples = [stride**down for stride, down in zip(strides_t, downs_t, strict=True)]
    hops = [downsamples[0], downsamples[0] * downsamples[1], downsamples[0] * downsamples[1] * downsamples[2]]
    return SimpleNamespace(
        levels=3,
        l_bins=l_bins,
        downsamples=downsamples,
        hop_lengths=hops,
        z_shapes=[(length // hop,) for hop in hops],
        config=SimpleNamespace(downs_t=downs_t, strides_t=strides_t),
        **more,
    )


def build(level=0, seed=0, **hps):
    torch.manual_seed(seed)
    return Prior(PriorConfig.from_hps({**SMALL, **CONDITIONER, "level": level, **hps}), codec()).eval()


def codes_of(*shape, seed=0):
    return torch.randint(13, shape, generator=torch.Generator().manual_seed(seed))


def test_from_hps_takes_what_it_knows():
    config = PriorConfig.from_hps({**SMALL, "downs_t": [1, 2], "unheard_of": 1, "spread": None})
    assert config.downs_t == (1, 2)
    assert config.n_ctx == 24 and config.cond_depth == 3


def test_geometry_follows_from_the_codec():
    top, middle, bottom = build(2), build(1), build(0)
    assert (top.cond_downsample, middle.cond_downsample, bottom.cond_downsample) == (None, 3, 4)
    assert (top.hop_length, middle.hop_length, bottom.hop_length) == (24, 8, 2)
    assert bottom.sample_length == 48 and top.sample_length == 576
    assert middle.z_shapes == [(96,), (24,), (8,)]
    assert top.conditioner is None and middle.levels == (1,)
    assert not any(name.startswith("conditioner") for name in top.state_dict())


@pytest.mark.parametrize(("level", "above"), [(0, 6), (1, 8)])
def test_an_upsampler_listens_to_the_level_above(level, above):
    prior, codes = build(level), codes_of(2, 24)
    upper = codes_of(2, above, seed=1)
    x_cond = prior.condition(upper, batch=2)
    assert x_cond.shape == (2, 24, 16)
    changed = upper.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 13
    difference = (prior.logits(codes, changed) - prior.logits(codes, upper)).abs().amax(-1)
    assert float(difference[0].max()) > 0 and float(difference[1].max()) == 0


def test_the_codec_knows_better_than_the_configuration_how_levels_are_strided():
    """A factor of 4 may be two strides of 2 or one of 4; weights fit only the codec's own."""
    prior = Prior(PriorConfig.from_hps({**SMALL, **CONDITIONER, "downs_t": (1, 1, 1), "strides_t": (2, 4, 3)}), codec())
    assert len(prior.conditioner.upsample.stages) == 2
    bare = codec()
    del bare.config
    with pytest.raises(UserError, match="don't give the codec's downsampling of 4 at level 1"):
        Prior(PriorConfig.from_hps({**SMALL, "downs_t": (1, 3, 1), "strides_t": (2, 2, 3)}), bare)


def test_metrics_and_a_loss_that_falls():
    prior = build(1, init_scale=1.0).train()
    codes, upper = codes_of(2, 24), codes_of(2, 8)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss, metrics = prior(codes, upper)
        assert set(metrics) == {"bpd", "gen_loss", "prime_loss"}
        assert metrics["bpd"] == metrics["gen_loss"] == loss.detach() and metrics["prime_loss"] == 0
        assert not any(value.requires_grad for value in metrics.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - 3.7) < 0.3  # log2 of 13 codes
    assert losses[-1] < 1.0


@pytest.mark.parametrize("precision", ["bf16", torch.bfloat16])
def test_training_in_bfloat16_agrees_with_float32(precision):
    prior = build(0).train()
    codes, upper = codes_of(2, 24), codes_of(2, 6)
    grads = []
    for chosen in ("fp32", precision):
        prior.zero_grad()
        loss, _ = prior(codes, upper, precision=chosen)
        loss.backward()
        assert loss.dtype == torch.float32
        grads.append(torch.cat([p.grad.flatten() for p in prior.parameters()]))
    assert all(p.grad.dtype == torch.float32 for p in prior.parameters())
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.05


def test_sampling_leaves_the_mode_as_it_was():
    prior = build(1).train()
    upper = codes_of(2, 8)
    assert prior.sample(2, upper_codes=upper, sample_tokens=3).shape == (2, 3)
    assert prior.training and prior.conditioner.training
    with pytest.raises(UserError):
        prior.sample(2, upper_codes=upper, sample_tokens=99)
    assert prior.training
    prior.eval()
    prior.sample(2, upper_codes=upper, sample_tokens=1)
    assert not prior.training


def test_each_item_hears_its_own_codes_from_above():
    prior, upper = build(0, emb_dropout=0.5), codes_of(3, 6)
    together = prior.sample(3, upper_codes=upper)
    for item in range(3):
        alone = prior.sample(
            1, upper_codes=upper[item : item + 1], generators=[torch.Generator().manual_seed(item)], chunk_size=2
        )
        assert torch.equal(alone[0], together[item])


def test_windows_of_the_codes_above():
    prior = build(0)
    codes = [codes_of(2, 60), codes_of(2, 15, seed=1), codes_of(2, 5, seed=2)]
    assert torch.equal(prior.window_of(codes, 0, 24), codes[1][:, :6])
    assert torch.equal(prior.window_of(codes, 36, 60), codes[1][:, 9:15])
    assert build(2).window_of(codes, 0, 24) is None


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2, 26, "multiples of 4"),
        (0, 22, "multiples of 4"),
        (0, 20, "must hold n_ctx = 24 codes"),
        (-4, 20, "must hold n_ctx"),
        (40, 64, "level 1 has 15 codes: the window 40 to 64 of level 0 needs 16, so sample level 1 further first"),
    ],
)
def test_windows_that_do_not_fit(start, end, message):
    with pytest.raises(UserError, match=message):
        build(0).window_of([codes_of(1, 60), codes_of(1, 15), codes_of(1, 5)], start, end)


@pytest.mark.parametrize(
    ("hps", "message"),
    [
        ({"level": 3}, "level is 3, but the codec has levels 0 to 2"),
        ({"use_tokens": True, "n_tokens": 8}, "pass --use_tokens=False"),
        ({"single_enc_dec": True}, "lyrics need labels"),
        ({"n_ctx": 18, "level": 0}, "multiple of 4"),
    ],
)
def test_settings_that_do_not_fit(hps, message):
    with pytest.raises(UserError, match=message):
        Prior(PriorConfig.from_hps({**SMALL, **hps}), codec())


def test_inputs_that_do_not_fit():
    top, bottom = build(2), build(0)
    codes = codes_of(2, 24)
    with pytest.raises(UserError, match="level 2 is the top level"):
        top(codes, codes_of(2, 6))
    with pytest.raises(UserError, match=r"level 0 needs the codes of level 1, of shape \[2, 6\]"):
        bottom(codes)
    with pytest.raises(UserError, match=r"have shape \[2, 5\]: level 0 needs \[2, 6\]"):
        bottom.sample(2, upper_codes=codes_of(2, 5))
    with pytest.raises(UserError, match="labels were given"):
        top(codes, labels=torch.zeros(2, 5))
    with pytest.raises(UserError, match="precision is 'fp8'"):
        dtype_of("fp8")


def test_costs_add_up():
    top, bottom = build(2), build(0)
    cost = bottom.cost()
    assert cost["parameters"] == sum(p.numel() for p in bottom.parameters())
    transformer = top.autoregressive.transformer.cost()
    head = 13 * 16
    assert top.cost()["operations_per_token"] == transformer["operations_per_token"] + 2 * head
    assert cost["operations_per_token"] > top.cost()["operations_per_token"]
    assert top.cost()["bytes_per_decoded_token"] == transformer["bytes_per_decoded_token"] + 4 * (head + 2 * 16)
    assert top.cost("bf16")["cache_bytes"] == top.cost()["cache_bytes"] / 2


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        prior = Prior(PriorConfig.from_hps({**SMALL, **CONDITIONER, "pos_init": True}), codec())
    assert all(p.is_meta for p in prior.parameters())
