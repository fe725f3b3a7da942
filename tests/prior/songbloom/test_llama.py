"""The language model: causal, and the same by pieces with a shared prefix as in one go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.prior.songbloom.llama import CHUNK, LanguageModel
from tests.prior.songbloom.tiny import CONFIG, some_codes, some_conditions, tiny_prior

PRIOR = tiny_prior()
MODEL = PRIOR.language_model


def vectors(*shape, seed=0):
    return torch.randn(*shape, CONFIG.prior_width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_position_sees_only_those_before_it():
    x = vectors(1, 9)
    changed = x.clone()
    changed[:, 5:] += 1.0
    one, other = MODEL(x), MODEL(changed)
    torch.testing.assert_close(one[:, :5], other[:, :5], rtol=0, atol=1e-6)
    assert (one[:, 5:] - other[:, 5:]).abs().amax(-1).min() > 1e-3


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
@torch.no_grad()
def test_pieces_with_a_shared_prefix_are_the_whole(rows, pieces, seed):
    prefix, total = vectors(len(rows), 5, seed=seed), sum(pieces)
    readers = [condition for condition, count in enumerate(rows) for _ in range(count)]
    song = vectors(len(readers), total, seed=seed + 1)
    whole = MODEL(torch.cat([prefix[readers], song], dim=1))[:, 5:]
    cache = MODEL.begin(prefix, readers, total)
    stepped = torch.cat([MODEL.step(part, cache) for part in song.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_can_leave():
    prefix, song = vectors(2, 4), vectors(4, 6, seed=1)
    readers, kept = [0, 0, 1, 1], [3, 0]
    cache = MODEL.begin(prefix, readers, 6)
    MODEL.step(song[:, :3], cache)
    cache.select(kept)
    rest = MODEL.step(song[kept, 3:], cache)
    whole = MODEL(torch.cat([prefix[readers], song], dim=1))[kept, 7:]
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_long_piece_is_done_in_parts():
    prefix, song = vectors(1, 2), vectors(1, CHUNK + 3)
    stepped = MODEL.step(song, MODEL.begin(prefix, [0], CHUNK + 3))
    torch.testing.assert_close(stepped, MODEL(torch.cat([prefix, song], dim=1))[:, 2:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_weights_are_those_that_the_layers_use():
    x = vectors(2, 7)
    weights = MODEL.attention_weights(x, [(1, 1), (0, 0), (1, 0)])
    assert weights.shape == (3, 2, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 7))
    assert not weights.triu(1).any()
    first = MODEL.layers[0]
    query, key, value = first.queries_keys_values(x, MODEL.positions(0, 7, x.device))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(weights[1] @ value[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lyric_attention_has_a_row_a_frame_and_a_column_a_lyric_position():
    conditions = some_conditions(PRIOR)
    tokens, latents = some_codes(PRIOR, 2, 6)
    assert {(0, 1), (1, 0)} < set(PRIOR.lyric_heads()) and len(PRIOR.lyric_heads()) == 4
    found = PRIOR.lyric_attention(tokens, latents, conditions, wanted=[(0, 1), (1, 0)])
    assert found.shape == (2, 2, 6, CONFIG.lyric_tokens)
    whole = torch.cat([conditions.prefix(), PRIOR.sequence(tokens, latents)], dim=1)
    weights = MODEL.attention_weights(whole, [(0, 1)])[0]
    # Frame 4 is the second token of the second patch; what predicts it stands at the token before: 11 + 1 + 4 + 0.
    position = CONFIG.prefix + 1 + (CONFIG.patch_size + 1)
    lyrics = slice(CONFIG.prompt_frames, CONFIG.prefix)
    torch.testing.assert_close(found[0, :, 4], weights[:, position, lyrics])


@pytest.mark.parametrize("c_res", [0, 1, 2])
def test_checkpointing_changes_no_gradient(c_res):
    plain = tiny_prior()
    tested = tiny_prior(c_res=c_res)
    x = vectors(1, 5)
    for prior in (plain, tested):
        prior.language_model.train()(x).square().sum().backward()
    for one, other in zip(plain.language_model.parameters(), tested.language_model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        assert all(p.is_meta for p in LanguageModel(CONFIG).parameters())
