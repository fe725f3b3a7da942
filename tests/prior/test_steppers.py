"""Every way to decode draws what the slow reference draws, and an item knows nothing of its batch."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.prior import steppers
from songbloom.prior.steppers import GraphStepper, NativeStepper, Prepared, TorchStepper, head_of
from songbloom.transformer.decoding import DecodingTransformer
from songbloom.transformer.native import loader
from songbloom.transformer.quantized import dequantized, quantized
from tests.prior import test_lyrics
from tests.prior.reference import sample_slowly
from tests.prior.test_autoregressive import BINS, N_CTX, build, conditions, generators, tokens_of
from tests.transformer import recorder

WAYS = ["torch", "graph", "plain"] + (["native"] if loader.library() is not None else [])


def by(way):
    """A stand-in for ``stepper_for`` that goes one way, whatever there is here."""

    def choose(model, given, prepared, *, fast):
        if way == "plain":
            return TorchStepper(given, given.transformer, head_of(given, False))
        if way == "native":
            return NativeStepper(given, *prepared.native(model, given))
        decoder = DecodingTransformer(given.transformer, given.dtype, quantize=given.quantize)
        if way == "graph":
            return GraphStepper(given, decoder, head_of(given, True), record=False)
        return TorchStepper(given, decoder, head_of(given, True))

    return choose


def drawn(way, model, batch, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("songbloom.prior.autoregressive.stepper_for", by(way))
        return model.sample(batch, **options)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    way=st.sampled_from(WAYS),
    attn_order=st.integers(0, 12),
    merged=st.booleans(),
    y_cond=st.booleans(),
    whole=st.booleans(),
    heads=st.sampled_from([1, 2]),
    batch=st.sampled_from([1, 2, 4, 5]),
    prompted=st.integers(0, N_CTX),
    more=st.integers(0, N_CTX),
    chunk_size=st.one_of(st.none(), st.integers(1, N_CTX)),
    filters=st.sampled_from([{"temperature": 0}, {"temperature": 0}, {"temperature": 0.8, "top_k": 4}, {"top_p": 0.7}]),
    seed=st.integers(0, 1000),
)
def test_every_way_draws_what_the_reference_draws(
    way, attn_order, merged, y_cond, whole, heads, batch, prompted, more, chunk_size, filters, seed
):
    reads = attn_order in (6, 7, 8, 10, 11, 12)
    options = {"merged_decoder": merged, "y_cond": y_cond, "heads": heads, "encoder_dims": 3 if reads else 0}
    model = build(seed, attn_order=attn_order, **options)
    total = min(N_CTX, max(1, prompted + more))
    prompt = tokens_of(batch, seed, prompted) if prompted else None
    given_ = {"prompt": prompt, "sample_tokens": total, **filters, **conditions(model, batch, whole=whole)}
    seeds = range(batch)
    preds, want_preds = torch.zeros(batch, total, BINS), None
    got = drawn(way, model, batch, generators=generators(*seeds), chunk_size=chunk_size, preds=preds, **given_)
    want, want_preds = sample_slowly(model, batch, generators=generators(*seeds), **given_)
    assert torch.equal(got, want)
    torch.testing.assert_close(preds, want_preds, rtol=1e-4, atol=5e-5)


@pytest.mark.skipif("native" not in WAYS, reason="the native step cannot be built here")
@pytest.mark.parametrize("attn_order", [0, 2, 6, 8])
@pytest.mark.parametrize("prompted", [0, 1, 7])
def test_logits_are_bit_for_bit_the_same_in_any_batch(attn_order, prompted):
    model = build(attn_order=attn_order, encoder_dims=3 if attn_order >= 6 else 0)
    prompt, given_ = tokens_of(6, length=prompted), conditions(model, 6)
    preds = torch.zeros(6, N_CTX, BINS)
    together = model.sample(6, prompt=prompt, generators=generators(*range(6)), preds=preds, **given_)
    for first, count in ((0, 1), (5, 1), (1, 2), (2, 3)):
        some = slice(first, first + count)
        own = torch.zeros(count, N_CTX, BINS)
        got = model.sample(
            count,
            prompt=prompt[some],
            generators=generators(*range(6))[some],
            preds=own,
            **{name: value[some] for name, value in given_.items()},
        )
        assert torch.equal(got, together[some])
        assert torch.equal(own, preds[some])


@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
def test_int8_samples_the_model_of_the_rounded_weights(way):
    model = build(merged_decoder=True)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(dequantized(*quantized(module.weight)))
    prompt = tokens_of(2, length=9)
    preds, want = torch.zeros(2, N_CTX, BINS), torch.zeros(2, N_CTX, BINS)
    got = drawn(way, model, 2, prompt=prompt, quantize="int8", temperature=0, preds=preds)
    assert torch.equal(got, rounded.sample(2, prompt=prompt, temperature=0, preds=want, fast=False))
    torch.testing.assert_close(preds, want, rtol=1e-4, atol=5e-5)


def test_prepared_weights_are_kept_until_the_model_changes():
    model, made = build(), []
    if "native" not in WAYS:
        pytest.skip("the native step cannot be built here")
    with pytest.MonkeyPatch.context() as patch:
        original = steppers.native.NativeTransformer
        patch.setattr(steppers.native, "NativeTransformer", lambda *a: made.append(a) or original(*a))
        first = model.sample(1, quantize="int8", temperature=0)
        assert torch.equal(model.sample(1, quantize="int8", temperature=0), first) and len(made) == 1
        model.sample(1, temperature=0)
        assert len(made) == 2
        with torch.no_grad():
            model.embedding.weight.mul_(-1)
            for layer in model.transformer.layers:
                layer.mlp.up.weight.mul_(-3)
        assert torch.equal(model.sample(1, temperature=0), model.sample(1, temperature=0, fast=False))
        assert len(made) == 3
    assert isinstance(copy.deepcopy(model)._prepared, Prepared)
    assert pickle.loads(pickle.dumps(model)).sample(1).shape == (1, N_CTX)


def test_weights_prepared_for_torch_serve_all_windows(monkeypatch):
    model, made, original = build(), [], steppers.DecodingTransformer
    monkeypatch.setattr(steppers.native, "available", lambda dtype, device: False)
    monkeypatch.setattr(steppers, "DecodingTransformer", lambda *a, **b: made.append(a) or original(*a, **b))
    first = model.sample(1, quantize="int8", temperature=0)
    assert torch.equal(model.sample(1, quantize="int8", temperature=0), first) and len(made) == 1
    model.sample(1, temperature=0)
    with torch.no_grad():
        model.transformer.layers[0].mlp.up.weight.mul_(-3)
    assert torch.equal(model.sample(1, temperature=0), model.sample(1, temperature=0, fast=False))
    assert len(made) == 3


@pytest.mark.skipif("native" not in WAYS, reason="the native step cannot be built here")
@pytest.mark.parametrize("level", [2, 0])
@pytest.mark.parametrize("kind", ["single", "dense", "separate"])
def test_a_priors_logits_are_bit_for_bit_the_same_in_any_batch(kind, level):
    """Labels, lyrics, their encoder and the codes above are computed an item at a time, too."""
    prior = test_lyrics.build(test_lyrics.KINDS[kind], level=level)
    labels, upper = test_lyrics.labels_of(2), test_lyrics.upper_of(prior)
    prompt = test_lyrics.codes_of(2, 7)
    preds, own = (torch.zeros(n, 24, prior.l_bins) for n in (2, 1))
    together = prior.sample(2, prompt=prompt, labels=labels, upper_codes=upper, preds=preds)
    for item in range(2):
        one = slice(item, item + 1)
        above = None if upper is None else upper[one]
        gens = generators(item)
        alone = prior.sample(1, prompt=prompt[one], labels=labels[one], upper_codes=above, preds=own, generators=gens)
        assert torch.equal(alone[0], together[item])
        assert torch.equal(own[0], preds[item])


@pytest.mark.parametrize("prompted", [0, 3])
def test_recorded_steps_draw_what_the_reference_draws(prompted, monkeypatch):
    """Recorded once, three rounds before it, and replayed at every position, on the memory of the first."""
    model = build(attn_order=2)
    told = recorder.install(monkeypatch)
    run = GraphStepper._run
    monkeypatch.setattr(GraphStepper, "_run", lambda stepper: told.append("run") or run(stepper))

    def recording(model, given, prepared, *, fast):
        decoder = DecodingTransformer(given.transformer, given.dtype, quantize=given.quantize)
        return GraphStepper(given, decoder, head_of(given, True), record=True)

    monkeypatch.setattr("songbloom.prior.autoregressive.stepper_for", recording)
    prompt = tokens_of(2, length=prompted) if prompted else None
    made = model.sample(2, prompt=prompt, temperature=0.0)
    assert torch.equal(made, sample_slowly(model, 2, prompt=prompt, temperature=0.0)[0])
    before = ["side waits for main", "on side", "run", "run", "run", "off side", "main waits for side"]
    assert told[:10] == [*before, "record", "run", "recorded"]
    assert set(told[10:]) == {"replay"} and len(told[10:]) >= N_CTX - prompted - 1
