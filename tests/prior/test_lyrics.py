import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.filters import filter_logits
from songbloom.prior.prior import Prior, PriorConfig
from songbloom.transformer import attention
from songbloom.transformer.native.stepper import available
from tests.prior.test_labels import LABELS, TWO
from tests.prior.test_prior import CONDITIONER, SMALL, codec, codes_of

WORDS, VOCAB, CODES = 6, 5, 13
LYRICS = {**SMALL, **CONDITIONER, **LABELS, "use_tokens": True, "n_tokens": WORDS, "n_vocab": VOCAB}
LYRICS |= {"prime_loss_fraction": 0.4, "m_attn": 0.5, "level": 2}
SINGLE = {**LYRICS, "single_enc_dec": True, "attn_order": 12, "prior_depth": 16}
DENSE = {**LYRICS, "single_enc_dec": True, "attn_order": 0, "prior_depth": 2}
ENCODER = {"prime_width": 8, "prime_depth": 2, "prime_heads": 2, "prime_attn_order": 1, "prime_blocks": 3}
SEPARATE = {**LYRICS, **ENCODER, "attn_order": 6, "prior_depth": 5, "prime_m_attn": 0.5}
KINDS = {"single": SINGLE, "dense": DENSE, "separate": SEPARATE}
kinds = pytest.mark.parametrize("hps", KINDS.values(), ids=KINDS)


def build(hps, seed=0, **more):
    """A small model whose weights are all far from zero, so that every part of it matters."""
    torch.manual_seed(seed)
    prior = Prior(PriorConfig.from_hps({**hps, **more}), codec()).eval()
    with torch.no_grad():
        for name, p in prior.named_parameters():
            scale = 0.35 if p.ndim > 1 else 0.1
            p.copy_(scale * torch.randn(p.shape) + (1.0 if "norm.weight" in name else 0.0))
    return prior


def labels_of(batch=2, seed=5, bins=VOCAB):
    words = torch.randint(bins, (batch, WORDS), generator=torch.Generator().manual_seed(seed))
    return torch.cat([TWO.repeat(batch, 1)[:batch], words], dim=1)


def upper_of(prior, batch=2):
    return codes_of(batch, 24 // prior.cond_downsample, seed=2) if prior.cond_downsample else None


def bits(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


# ----------------------------------------------------------------------------------------------------- training


@kinds
@pytest.mark.parametrize("level", [2, 0])
def test_the_loss_is_that_of_words_and_music_by_their_numbers(hps, level):
    prior, codes, labels = build(hps, level=level), codes_of(2, 24), labels_of()
    upper, words = upper_of(prior), labels[:, -WORDS:]
    loss, metrics = prior(codes, upper, labels)
    gen_loss = bits(prior.logits(codes, upper, labels), codes) if not hps.get("single_enc_dec") else None
    given = prior.conditions(upper, labels, batch=2)
    if gen_loss is None:
        # Among all tokens, of which the codes are the last 13: the vocabulary is one.
        tokens, arguments = prior.inputs(codes, given)
        assert torch.equal(tokens, torch.cat([words, VOCAB + codes], dim=1))
        logits = prior.autoregressive.logits(tokens, **arguments)
        assert logits.shape == (2, WORDS + 24, VOCAB + CODES)
        prime_loss, gen_loss = bits(logits[:, :WORDS], words), bits(logits[:, WORDS:], tokens[:, WORDS:])
    else:
        states = prior.lyric_encoder(words)
        prime_loss = bits(states @ prior.lyric_encoder.output.weight.T, words)
    torch.testing.assert_close(metrics["prime_loss"], prime_loss.detach())
    torch.testing.assert_close(metrics["gen_loss"], gen_loss.detach())
    torch.testing.assert_close(metrics["bpd"], gen_loss.detach())
    torch.testing.assert_close(loss, (0.4 * WORDS * prime_loss + 24 * gen_loss) / (WORDS + 24))
    assert not any(value.requires_grad for value in metrics.values())


@kinds
def test_gradients_reach_everything(hps):
    prior = build(hps).train()
    prior(codes_of(2, 24), labels=labels_of())[0].backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@kinds
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_is_its_items(hps, batch):
    prior, codes, labels = build(hps), codes_of(batch, 24), labels_of(batch)
    together = prior.logits(codes, labels=labels)
    for item in range(batch):
        part = slice(item, item + 1)
        torch.testing.assert_close(prior.logits(codes[part], labels=labels[part]), together[part], rtol=1e-4, atol=1e-5)
    losses = [prior(codes[item : item + 1], labels=labels[item : item + 1])[0] for item in range(batch)]
    torch.testing.assert_close(prior(codes, labels=labels)[0], torch.stack(losses).mean())


@kinds
def test_the_music_hears_every_word_of_its_own_item(hps):
    prior, codes = build(hps), codes_of(2, 24)
    before = prior.logits(codes, labels=labels_of())
    for word in range(WORDS):
        changed = labels_of()
        changed[0, word - WORDS] = (changed[0, word - WORDS] + 1) % VOCAB
        difference = (prior.logits(codes, labels=changed) - before).abs().amax(-1)
        # An encoder's place t has read the words before t, so its last word is only ever asked for, not heard.
        heard = word < WORDS - 1 or "prime_width" not in hps
        assert bool((difference[0] > 0).all()) == heard
        assert difference[1].amax() == 0


@kinds
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_reduced_precision_stays_near(hps, precision, tolerance):
    prior, codes, labels = build(hps, prior_depth=min(hps["prior_depth"], 5)), codes_of(3, 24), labels_of(3)
    want = prior.logits(codes, labels=labels).detach()
    got = prior.logits(codes, labels=labels, precision=precision).detach()
    assert float((got - want).norm() / want.norm()) < tolerance
    preds = torch.zeros(3, 24, CODES)
    prior.sample(3, prompt=codes, labels=labels, preds=preds, precision=precision)
    assert float((preds - want).norm() / want.norm()) < tolerance
    prior.train()
    grads = []
    for chosen in ("fp32", precision):
        prior.zero_grad()
        prior(codes, labels=labels, precision=chosen)[0].backward()
        grads.append(torch.cat([p.grad.flatten() for p in prior.parameters()]))
        assert all(p.grad.dtype == torch.float32 for p in prior.parameters())
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 3 * tolerance


@pytest.mark.parametrize("hps", [DENSE, SEPARATE], ids=["single", "separate"])
def test_copied_input_takes_the_place_of_words(hps):
    prior, codes = build(hps, copy_input=True), codes_of(2, 24)
    labels = labels_of(bins=CODES)
    copied = torch.cat([labels[:, :-WORDS], codes[:, :WORDS]], dim=1)
    assert torch.equal(prior(codes, labels=labels)[0], prior(codes, labels=copied)[0])
    assert torch.equal(prior.logits(codes, labels=labels), prior.logits(codes, labels=copied))
    # Sampling doesn't know the codes in advance, so there the labels bring them.
    preds = torch.zeros(2, 24, CODES)
    prior.sample(2, prompt=codes, labels=copied, preds=preds)
    torch.testing.assert_close(preds, prior.logits(codes, labels=labels).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="first n_tokens=30 codes, but a window has n_ctx=24"):
        build(hps, copy_input=True, n_tokens=30)


# ----------------------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def sample_slowly(prior, labels, *, prompt, total, seeds, upper=None, temperature=1.0, top_k=0, top_p=0.0):
    """A full forward pass for each code; a draw takes noise for every token, words included, and uses the codes'."""
    codes = torch.zeros(len(labels), prior.n_ctx, dtype=torch.int64)
    codes[:, : prompt.shape[1]] = prompt
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens = prior.autoregressive.bins
    for position in range(prompt.shape[1], total):
        logits = prior.logits(codes, upper, labels)[:, position]
        for item, generator in enumerate(generators):
            if temperature == 0:
                codes[item, position] = logits[item].argmax()
                continue
            scores = filter_logits(logits[item] / temperature, top_k, top_p)
            uniform = torch.rand(tokens, generator=generator, dtype=torch.float64)[tokens - CODES :]
            codes[item, position] = (scores - torch.log(-torch.log(uniform))).argmax()
    return codes[:, :total], prior.logits(codes, upper, labels)[:, :total]


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    level=st.sampled_from([0, 2]),
    merged=st.booleans(),
    fast=st.booleans(),
    prompted=st.integers(0, 24),
    more=st.integers(1, 24),
    chunk_size=st.one_of(st.none(), st.integers(1, 30)),
    filters=st.sampled_from([{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 4}, {"top_p": 0.7}]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_a_full_forward_for_each_code(kind, level, merged, fast, prompted, more, chunk_size, filters, seed):
    prior = build(KINDS[kind], seed, level=level, merged_decoder=merged)
    total = min(24, prompted + more)
    labels, prompt, upper = labels_of(2, seed), codes_of(2, prompted, seed=seed), upper_of(prior)
    preds = torch.zeros(2, total, CODES)
    got = prior.sample(
        2,
        prompt=prompt if prompted else None,
        upper_codes=upper,
        labels=labels,
        sample_tokens=total,
        generators=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        chunk_size=chunk_size,
        fast=fast,
        preds=preds,
        **filters,
    )
    want, want_preds = sample_slowly(prior, labels, prompt=prompt, total=total, seeds=(1, 2), upper=upper, **filters)
    assert torch.equal(got, want)
    torch.testing.assert_close(preds, want_preds, rtol=1e-4, atol=2e-4)


@kinds
def test_steps_can_be_taken_one_by_one(hps):
    prior, labels = build(hps), labels_of()
    told, out, preds = [], torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, CODES)
    prompt = codes_of(2, 4)
    want_preds = torch.zeros(2, 9, CODES)
    want = prior.sample(
        2, prompt=prompt, labels=labels, sample_tokens=9, on_token=told.append, temperature=0, preds=want_preds
    )
    assert told == [4, 5, 6, 7, 8, 9]
    steps = prior.sample_steps(2, prompt=prompt, labels=labels, sample_tokens=9, temperature=0, out=out, preds=preds)
    for expected, done in zip(told[:4], steps, strict=False):
        assert done == expected
        assert torch.equal(out[:, :done], want[:, :done])
    assert torch.equal(preds[:, :7], want_preds[:, :7]) and not preds[:, 7:].any()
    steps.close()
    assert torch.equal(prior.sample(2, prompt=out[:, :7], labels=labels, sample_tokens=9, temperature=0), want)


@kinds
def test_an_item_does_not_depend_on_its_batch(hps):
    prior, labels = build(hps), labels_of(3)
    together = prior.sample(3, labels=labels)
    for item in range(3):
        alone = prior.sample(1, labels=labels[item : item + 1], generators=[torch.Generator().manual_seed(item)])
        assert torch.equal(alone[0], together[item])


@pytest.mark.parametrize("fast", [True, False])
def test_no_word_is_drawn_for_a_code(fast):
    """Even where the model would like nothing better: then the published sampler gives code 0 and reads on."""
    labels = labels_of()
    drawn = {}
    for draw_lyric_ids in (False, True):
        prior = build(DENSE, draw_lyric_ids=draw_lyric_ids, merged_decoder=True)
        with torch.no_grad():
            # Every word's logit is a hundred times the size that it had, and about half of them are high.
            prior.autoregressive.output.weight[:VOCAB] *= 100
        codes = prior.sample(2, labels=labels, temperature=0, fast=fast)
        assert codes.min() >= 0 and codes.max() < CODES
        drawn[draw_lyric_ids] = codes
    want, _ = sample_slowly(prior, labels, prompt=codes_of(2, 0), total=24, seeds=(1, 2), temperature=0)
    assert torch.equal(drawn[False], want)
    assert (drawn[True] == 0).float().mean() > 0.5 > (drawn[False] == 0).float().mean()


@pytest.mark.parametrize("fast", [True, False])
def test_the_encoder_is_read_once_a_window(fast, monkeypatch):
    prior, labels, calls = build(SEPARATE), labels_of(), []
    for layer in prior.autoregressive.transformer.stack:
        if layer.attention.crosses:
            layer.attention.key_value.register_forward_hook(lambda *_: calls.append("keys"))
    prior.lyric_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    prior.sample(2, labels=labels, prompt=codes_of(2, 3), fast=fast)
    by_item = fast and available(torch.float32, torch.device("cpu"))
    # Once an item, because a batch of another size may round otherwise.
    assert calls == ["encoder"] * 2 + ["keys"] * (2 if by_item else 1)


def test_sampling_is_in_eval_mode_and_leaves_the_mode_as_it_was():
    prior = build(SEPARATE, prime_emb_dropout=0.5, prime_resid_dropout=0.5, emb_dropout=0.5)
    want = prior.sample(2, labels=labels_of())
    prior.train()
    assert torch.equal(prior.sample(2, labels=labels_of()), want)
    wanted = prior.lyric_heads()
    weights = prior.lyric_attention(codes_of(2, 24), labels_of(), wanted=wanted)
    assert prior.training and prior.lyric_encoder.training
    assert torch.equal(prior.eval().lyric_attention(codes_of(2, 24), labels_of(), wanted=wanted), weights)
    prior.train().lyric_encoder.eval()


# ---------------------------------------------------------------------------------------------------- alignment


@kinds
@pytest.mark.parametrize("level", [2, 0])
@pytest.mark.parametrize("rows", [7, 1024])
def test_weights_from_music_to_words_are_those_that_were_used(hps, level, rows, monkeypatch):
    monkeypatch.setattr(attention, "WEIGHT_ROWS", rows)
    prior, codes, labels = build(hps, level=level), codes_of(2, 24), labels_of()
    upper, heads = upper_of(prior), prior.lyric_heads()
    layers = {"single": [15], "dense": [0, 1], "separate": [3]}[next(k for k, v in KINDS.items() if v is hps)]
    assert heads == [(layer, head) for layer in layers for head in range(2)]
    found = prior.lyric_attention(codes, labels, upper, wanted=heads[::-1])
    assert found.shape == (len(heads), 2, 24, WORDS) and found.dtype == torch.float32 and not found.requires_grad
    with torch.no_grad(), prior.autoregressive.transformer.record_attention(set(layers)) as recorded:
        prior.logits(codes, upper, labels)
    for place, (layer, head) in enumerate(heads[::-1]):
        torch.testing.assert_close(found[place], recorded[layer][:, head, -24:, :WORDS], rtol=1e-5, atol=1e-6)
    sums = found.sum(-1)
    assert bool((sums > 0).all()) and bool((sums < 1 + 1e-5).all())
    if "prime_width" in hps:
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_only_what_is_wanted_is_computed_and_kept():
    prior, codes, labels, seen = build(SEPARATE, prior_depth=9), codes_of(1, 24), labels_of(1), []
    assert {layer for layer, _ in prior.lyric_heads()} == {3, 7}
    for index, layer in enumerate(prior.autoregressive.transformer.stack):
        layer.register_forward_hook(lambda *_, index=index: seen.append(index))
    assert prior.lyric_attention(codes, labels, wanted=[(3, 1)]).shape == (1, 1, 24, WORDS)
    assert seen == [0, 1, 2]
    assert prior.lyric_attention(codes, labels, wanted=[]).shape == (0, 1, 24, WORDS)


def test_attention_in_half_precision_stays_near():
    prior, codes, labels = build(SEPARATE), codes_of(2, 24), labels_of()
    want = prior.lyric_attention(codes, labels, wanted=[(3, 0)])
    for precision, tolerance in (("bf16", 0.1), ("fp16", 0.0125)):
        got = prior.lyric_attention(codes, labels, wanted=[(3, 0)], precision=precision)
        assert got.dtype == torch.float32 and float((got - want).norm() / want.norm()) < tolerance


def test_heads_that_read_no_words_are_named():
    prior = build(SEPARATE)
    with pytest.raises(
        UserError, match="layer 2, head 0 does not attend from music to lyrics: layers 3 do, heads 0 to 1"
    ):
        prior.lyric_attention(codes_of(2, 24), labels_of(), wanted=[(3, 0), (2, 0)])
    without = build({**LYRICS, "use_tokens": False})
    assert without.lyric_heads() == [] and without.n_tokens == 0 and without.label_width == 7
    with pytest.raises(UserError, match="no layer of it does"):
        without.lyric_attention(codes_of(2, 24), TWO, wanted=[(0, 0)])


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("hps", "message"),
    [
        ({**SEPARATE, "n_vocab": 0}, "set --n_vocab"),
        ({**SINGLE, "use_tokens": True, "n_tokens": 0}, "set --use_tokens=True and --n_tokens"),
        ({**SEPARATE, "labels": False}, "lyrics need labels"),
        ({**SEPARATE, "prime_blocks": 4}, "lyric encoder, whose settings begin with prime_.*n_ctx=6.*blocks=4"),
        ({**SEPARATE, "prime_heads": 3}, "lyric encoder.*heads=3"),
        ({**SEPARATE, "use_tokens": False}, "encoder_dims: attn_order=6"),
        ({**SINGLE, "blocks": 7}, "n_ctx=30 must be a multiple of blocks=7"),
    ],
)
def test_settings_that_do_not_fit(hps, message):
    with pytest.raises(UserError, match=message):
        Prior(PriorConfig.from_hps(hps), codec())


@kinds
def test_requests_that_cannot_be_met(hps):
    prior, labels = build(hps), labels_of()
    assert prior.label_width == 7 + WORDS
    wrong = labels.clone()
    wrong[1, -1] = VOCAB
    with pytest.raises(UserError, match="lyric tokens from 0 to 5: this model knows 0 to 4; were they made with anoth"):
        prior(codes_of(2, 24), labels=wrong)
    wrong[1, -1] = -1
    with pytest.raises(UserError, match="lyric tokens from -1"):
        prior.sample(2, labels=wrong)
    with pytest.raises(UserError, match=r"shape \[2, 13\] \(4 numbers, 3 genre ids and 6 lyric tokens an item\)"):
        prior(codes_of(2, 24), labels=TWO)
    with pytest.raises(UserError, match=r"codes of shape \[2, 30\]: this model takes \[batch, 24\]"):
        prior(codes_of(2, 30), labels=labels)
    for request, message in (
        ({"sample_tokens": 25}, "between 1 and n_ctx = 24"),
        ({"sample_tokens": 0}, "sample_tokens is 0"),
        ({"prompt": torch.full((2, 3), CODES)}, "codes from 13 to 13: this model knows 0 to 12"),
        ({"prompt": torch.full((2, 3), -1)}, "codes from -1 to -1"),
        ({"prompt": codes_of(1, 3)}, "for 2 samples"),
        ({"prompt": codes_of(2, 9), "sample_tokens": 8}, "9 tokens, more than the 8"),
        ({"preds": torch.zeros(2, 24, CODES + 1)}, "preds has shape"),
        ({"top_k": 3, "top_p": 0.5}, "exclude"),
    ):
        with pytest.raises(UserError, match=message):
            prior.sample(2, labels=labels, **request)
    with pytest.raises(UserError, match="n_samples is 0"):
        prior.sample(0, labels=labels[:0])


def test_costs_add_up():
    for hps in KINDS.values():
        prior = build(hps)
        cost, inner = prior.cost(), prior.autoregressive.transformer.cost()
        assert cost["parameters"] == sum(p.numel() for p in prior.parameters())
        head = 2 * prior.autoregressive.output_weight.numel()
        if prior.lyric_encoder is None:
            assert cost["operations_per_token"] == pytest.approx(30 / 24 * (inner["operations_per_token"] + head))
            assert cost["cache_bytes_per_token"] == pytest.approx(inner["cache_bytes"] / 24)
        else:
            encoder = prior.lyric_encoder
            once = encoder.model.transformer.cost()["operations_per_token"] + 2 * 8 * 16 + 2 * VOCAB * 16
            once += 2 * 2 * 16 * 8  # keys and values of the one layer that reads it
            assert cost["operations_per_token"] == pytest.approx(inner["operations_per_token"] + head + once * 6 / 24)
        assert cost["cache_bytes"] == inner["cache_bytes"]


def test_the_parts_start_at_their_sizes():
    torch.manual_seed(0)
    sizes = {"n_vocab": 200, "prior_width": 128, "prime_width": 64, "init_scale": 0.5, "prime_init_scale": 2.0}
    prior = Prior(PriorConfig.from_hps({**SEPARATE, **sizes}), codec())
    encoder = prior.lyric_encoder
    for weight, size in (
        (encoder.output.weight, 0.02 * 0.5),
        (encoder.project.weight, 0.02 * 2.0),
        (encoder.model.embedding.weight, 0.02 * 2.0),
    ):
        assert float(weight.detach().std()) == pytest.approx(size, rel=0.1)


@kinds
def test_a_few_steps_of_training_learn_words_and_music(hps):
    torch.manual_seed(0)
    prior = Prior(PriorConfig.from_hps({**hps, "prior_depth": min(5, hps["prior_depth"])}), codec()).train()
    codes, labels = codes_of(2, 24), labels_of()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    told = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = prior(codes, labels=labels)
        loss.backward()
        optimizer.step()
        told.append(metrics)
    assert told[-1]["gen_loss"] < 0.5 * told[0]["gen_loss"] and told[-1]["prime_loss"] < 0.7 * told[0]["prime_loss"]
