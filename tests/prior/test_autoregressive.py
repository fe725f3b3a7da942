import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.prior.autoregressive import AutoregressiveModel, sinusoids
from songbloom.transformer.blocks import TransformerConfig
from tests.prior.reference import sample_slowly

N_CTX, WIDTH, BINS = 24, 16, 11


def build(seed=0, *, attn_order=2, encoder_dims=0, heads=2, res_scale=False, **options):
    """A small model whose weights are all far from zero, so that every part of it matters."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        width=WIDTH,
        n_ctx=N_CTX,
        heads=heads,
        depth=4,
        attn_order=attn_order,
        blocks=6,
        spread=2,
        m_attn=0.5,
        encoder_dims=encoder_dims,
        prime_len=5,
        res_scale=res_scale,
    )
    model = AutoregressiveModel(config, bins=BINS, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.25 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape) + (1.0 if "norm.weight" in name else 0.0))
    return model


def tokens_of(batch, seed=0, length=N_CTX):
    return torch.randint(BINS, (batch, length), generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def conditions(model, batch, *, whole=True, seed=3):
    generator = torch.Generator().manual_seed(seed)
    given = {"x_cond": torch.randn(batch, N_CTX if whole else 1, WIDTH, generator=generator)}
    if model.start is None:
        given["y_cond"] = torch.randn(batch, 1, WIDTH, generator=generator)
    if model.transformer.config.encoder_dims:
        given["encoder_kv"] = torch.randn(batch, model.transformer.config.encoder_dims, WIDTH, generator=generator)
    return given


def test_a_prediction_sees_only_what_came_before():
    model, tokens = build(), tokens_of(1)
    before = model.logits(tokens)
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % BINS
    after = model.logits(changed)
    torch.testing.assert_close(after[:, :10], before[:, :10])
    assert not torch.allclose(after[:, 10:], before[:, 10:])


def test_the_first_prediction_comes_from_the_start_alone():
    model = build()
    logits = model.logits(tokens_of(3))
    torch.testing.assert_close(logits[:, 0], logits[:1, 0].expand(3, -1))
    with torch.no_grad():
        model.start.add_(1.0)
    assert not torch.allclose(model.logits(tokens_of(3))[:, 0], logits[:, 0])


def test_y_cond_stands_in_for_the_start():
    model = build(y_cond=True)
    assert model.start is None and "start" not in model.state_dict()
    one, other = torch.randn(2, 1, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(1)
    assert not torch.allclose(model.logits(tokens, y_cond=one)[:, 0], model.logits(tokens, y_cond=other)[:, 0])
    with pytest.raises(RuntimeError, match="y_cond"):
        model.logits(tokens)
    with pytest.raises(RuntimeError, match="takes none"):
        build().logits(tokens, y_cond=one)


@pytest.mark.parametrize("merged", [False, True])
def test_the_condition_joins_after_the_transformer_unless_merged(merged):
    model = build(merged_decoder=merged)
    tokens, x_cond = tokens_of(2), conditions(model, 2)["x_cond"]
    hidden = model.hidden(tokens, x_cond=x_cond)
    x = torch.cat([model.start.expand(2, 1, -1), model.embedding(tokens[:, :-1])], dim=1)
    want = model.transformer(x + model.positions + x_cond)
    torch.testing.assert_close(hidden, want if merged else want + x_cond)
    weight = model.output.weight if merged else model.embedding.weight
    torch.testing.assert_close(model.logits(tokens, x_cond=x_cond), hidden @ weight.T)


def test_the_output_layer_is_the_embedding_unless_merged():
    model = build()
    assert model.output is None
    assert model.output_weight is model.embedding.weight
    assert not any(name.startswith("output") for name in model.state_dict())
    assert build(merged_decoder=True).output_weight.shape == (BINS, WIDTH)


def test_the_loss_is_bits_per_token():
    model, tokens = build(), tokens_of(2)
    loss, bits = model(tokens)
    want = torch.nn.functional.cross_entropy(model.logits(tokens).flatten(0, 1), tokens.flatten()) / math.log(2)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(bits.mean(), loss.detach())
    weights = torch.rand(N_CTX, generator=torch.Generator().manual_seed(0))
    weighted, bits = model(tokens, weights=weights)
    torch.testing.assert_close(weighted.detach(), (bits * weights).sum(1).mean())


def test_gradients_reach_everything():
    for options in ({}, {"merged_decoder": True}, {"y_cond": True}):
        model = build(**options).train()
        given = conditions(model, 2)
        given = {name: value.requires_grad_() for name, value in given.items()}
        model(tokens_of(2), **given)[0].backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not missing
        assert all(value.grad is not None for value in given.values())


def test_an_encoder_gives_hidden_states_and_no_logits():
    model = build(only_encode=True, merged_decoder=True)
    assert model.output is None
    assert model.hidden(tokens_of(2)).shape == (2, N_CTX, WIDTH)
    with pytest.raises(RuntimeError, match="no output layer"):
        model.logits(tokens_of(2))


def test_positions_may_start_as_sinusoids():
    torch.manual_seed(0)
    config = TransformerConfig(width=WIDTH, n_ctx=N_CTX, heads=1, depth=1, init_scale=0.5)
    model = AutoregressiveModel(config, bins=BINS, pos_init=True)
    drawn = AutoregressiveModel(config, bins=BINS)
    assert torch.equal(model.positions, 0.005 * sinusoids(N_CTX, WIDTH))
    assert isinstance(model.positions, torch.nn.Parameter)
    sizes = [float(table.detach().square().mean().sqrt()) for table in (model.positions, drawn.positions)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
    assert sinusoids(7, 5).shape == (7, 5)
    # The product of two positions depends on their distance alone.
    table = sinusoids(40, 16)
    products = table @ table.T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(37), rtol=1e-4, atol=1e-4)


def test_embedding_dropout_only_while_training():
    model = build(emb_dropout=0.5)
    tokens = tokens_of(1)
    assert torch.equal(model.logits(tokens), model.logits(tokens))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model.logits(tokens), model.logits(tokens))


# ------------------------------------------------------------------------------------------------------- sampling


@settings(max_examples=25, deadline=None)
@given(
    attn_order=st.sampled_from([0, 1, 2, 3, 4, 6, 9]),
    merged=st.booleans(),
    y_cond=st.booleans(),
    whole=st.booleans(),
    res_scale=st.booleans(),
    heads=st.sampled_from([1, 2]),
    fast=st.booleans(),
    prompted=st.integers(0, N_CTX),
    more=st.integers(0, N_CTX),
    chunk_size=st.one_of(st.none(), st.integers(1, N_CTX)),
    filters=st.sampled_from([{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 4}, {"top_p": 0.7}]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_a_full_forward_for_each_token(
    attn_order, merged, y_cond, whole, res_scale, heads, fast, prompted, more, chunk_size, filters, seed
):
    model = build(
        seed,
        attn_order=attn_order,
        merged_decoder=merged,
        y_cond=y_cond,
        heads=heads,
        res_scale=res_scale,
        encoder_dims=3 if attn_order == 6 else 0,
    )
    total = min(N_CTX, max(1, prompted + more))
    prompt = tokens_of(2, seed, prompted) if prompted else None
    given = conditions(model, 2, whole=whole)
    preds = torch.zeros(2, total, BINS)
    settings_ = {"prompt": prompt, "sample_tokens": total, **filters, **given}
    got = model.sample(2, generators=generators(1, 2), chunk_size=chunk_size, fast=fast, preds=preds, **settings_)
    want, want_preds = sample_slowly(model, 2, generators=generators(1, 2), **settings_)
    assert torch.equal(got, want)
    torch.testing.assert_close(preds, want_preds, rtol=1e-4, atol=1e-4)


def test_an_item_does_not_depend_on_its_batch():
    model = build()
    together = model.sample(3, generators=generators(5, 6, 7))
    for item in range(3):
        assert torch.equal(model.sample(1, generators=generators(5 + item))[0], together[item])
    assert not torch.equal(together[0], together[1])


def test_without_generators_the_items_are_seeded_by_their_number():
    model = build()
    assert torch.equal(model.sample(2), model.sample(2, generators=generators(0, 1)))


def test_progress_is_told_after_each_token():
    model, told = build(), []
    model.sample(1, prompt=tokens_of(1, length=4), sample_tokens=8, on_token=told.append)
    assert told == [4, 5, 6, 7, 8]


def test_steps_can_be_taken_one_by_one_and_continued():
    """What has been drawn so far, with the generators as they are then, is all one needs to go on."""
    model, gens = build(), generators(1, 2)
    want = model.sample(2, generators=generators(1, 2), temperature=0.9)
    out = torch.zeros(2, N_CTX, dtype=torch.int64)
    steps = model.sample_steps(2, generators=gens, temperature=0.9, out=out)
    for done in steps:
        if done == 10:
            break
    steps.close()
    assert torch.equal(out[:, :10], want[:, :10])
    assert torch.equal(model.sample(2, prompt=out[:, :10], generators=gens, temperature=0.9), want)


def test_a_whole_prompt_comes_back():
    model, prompt = build(), tokens_of(2, length=7)
    assert torch.equal(model.sample(2, prompt=prompt, sample_tokens=7), prompt)
    preds = torch.zeros(2, 7, BINS)
    model.sample(2, prompt=prompt, sample_tokens=7, preds=preds)
    full = torch.cat([prompt, torch.zeros(2, N_CTX - 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(preds, model.logits(full)[:, :7], rtol=1e-4, atol=1e-4)


def test_samples_can_be_trained_on():
    model = build()
    codes = model.sample(1)
    model.train()(codes)[0].backward()  # would fail for a tensor made in inference mode
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_stays_near(dtype):
    model, tokens = build(), tokens_of(2)
    want = model.logits(tokens).detach()
    assert float((model.logits(tokens, dtype=dtype).detach() - want).abs().max()) < 0.05 * float(want.std())
    preds = torch.zeros(2, N_CTX, BINS)
    model.sample(2, prompt=tokens, preds=preds, dtype=dtype, chunk_size=5)
    assert preds.dtype == torch.float32
    assert float((preds - want).abs().max()) < 0.05 * float(want.std())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"sample_tokens": 0}, "sample_tokens is 0"),
        ({"sample_tokens": N_CTX + 1}, "between 1 and n_ctx = 24"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"prompt": torch.zeros(2, 3, dtype=torch.int64)}, "for 1 samples"),
        ({"prompt": torch.zeros(1, 9, dtype=torch.int64), "sample_tokens": 8}, "9 tokens, more than the 8"),
        ({"prompt": torch.full((1, 2), BINS)}, "codes from 11 to 11: this model knows 0 to 10"),
        ({"generators": []}, "0 generators for 1 samples"),
        ({"top_k": 3, "top_p": 0.5}, "exclude"),
        ({"preds": torch.zeros(1, 2, 3)}, "preds has shape"),
    ],
)
def test_requests_that_cannot_be_met(request_, message):
    with pytest.raises(UserError, match=message):
        build().sample(**{"n_samples": 1, **request_})


def test_tokens_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"this model takes \[batch, 24\]"):
        build().logits(tokens_of(1, length=23))
