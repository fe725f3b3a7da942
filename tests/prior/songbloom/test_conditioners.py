"""Lyrics and prompts as vectors, by hand."""

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.songbloom.conditioners import frames_as_published
from tests.prior.songbloom.tiny import CONFIG, tiny_prior

PRIOR = tiny_prior()
LYRICS = PRIOR.lyrics
# Tags are 1 to 3, 4 is the comma, 5 the full stop.


def test_words_know_their_section_and_sentence():
    sections, sentences = LYRICS.places([7, 1, 8, 5, 9, 4, 9, 2, 8, 5, 5, 5, 5, 8])
    assert sections == [0, 1, 1, 5, 1, 4, 1, 2, 2, 5, 5, 5, 5, 2]
    assert sentences == [1, 0, 1, 0, 2, 0, 2, 0, 1, 0, 0, 0, 0, 3]  # the last row of the table of 4


@torch.no_grad()
def test_vectors_are_sums_filled_with_the_blank_and_cut():
    tokens, sentences = LYRICS.tokens.weight, LYRICS.sentences.weight
    short, long = LYRICS([[2, 8], [8] * 9])
    torch.testing.assert_close(short[0], 2 * tokens[2] + sentences[0])
    torch.testing.assert_close(short[1], tokens[8] + tokens[2] + sentences[1])
    assert torch.equal(short[2:], LYRICS.blank.expand(4, -1))
    torch.testing.assert_close(long, (tokens[8] + tokens[0] + sentences[1]).expand(6, -1))


@torch.no_grad()
def test_no_lyrics_are_one_empty_word():
    assert torch.equal(LYRICS([[]]), LYRICS([[0]]))
    assert torch.equal(PRIOR.null_conditions(2).lyrics[1], LYRICS([[0]])[0])
    assert not PRIOR.null_conditions().prompt.any()


@pytest.mark.parametrize("next_tag", [False, True])
@torch.no_grad()
def test_sections_are_stretched_over_their_times(next_tag):
    ids = [1, 8, 4, 2, 9]
    vectors = LYRICS.embed(ids)
    found = LYRICS.stretched(ids, [(0, 3), (3, 5)], 1.0, next_tag_after_section=next_tag)
    closing = 3 if next_tag else 2
    torch.testing.assert_close(found[:5], vectors[[0, 1, closing, 3, 4]])
    longer = LYRICS.stretched(ids, [(0, 3), (3, 6)], 1.0)
    torch.testing.assert_close(longer[:3], vectors[:3])
    assert torch.equal(found[5:], LYRICS.blank)


@torch.no_grad()
def test_stretching_goes_through_the_priors_own_door():
    plain = PRIOR.conditions([[1, 8], [1, 8, 4, 2, 9]], spans=[None, [(0, 3), (3, 5)]], resolution=1.0)
    torch.testing.assert_close(plain.lyrics[0], LYRICS([[1, 8]])[0])
    torch.testing.assert_close(plain.lyrics[1], LYRICS.stretched([1, 8, 4, 2, 9], [(0, 3), (3, 5)], 1.0))


def test_impossible_lyrics_are_refused():
    with pytest.raises(UserError, match="vocabulary"):
        LYRICS([[3, 16]])
    with pytest.raises(UserError, match="1 time for 2 sections"):
        LYRICS.stretched([1, 2], [(0, 1)], 1.0)
    with pytest.raises(UserError, match="less than a position"):
        LYRICS.stretched([1, 8, 2], [(0, 1), (1, 3)], 1.0)


@torch.no_grad()
def test_prompts_are_projected_filled_and_masked():
    latents = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = PRIOR.prompt(latents, torch.tensor([2, 0]))
    torch.testing.assert_close(found[0, :2], latents[0, :2] @ PRIOR.prompt.projection.weight.T)
    assert not found[0, 2:].any() and not found[1].any() and found.shape == (2, 5, 64)
    assert torch.equal(PRIOR.prompt(latents.repeat(1, 3, 1)), PRIOR.prompt(latents.repeat(1, 2, 1)))  # cut to 5
    assert not PRIOR.prompt(latents[:, :0]).any()


def test_latents_as_wide_as_the_model_need_no_projection():
    prior = tiny_prior(latent_width=64)
    assert prior.prompt.projection is None and not any(name.startswith("prompt") for name in prior.state_dict())
    latents = torch.ones(1, 5, 64)
    assert torch.equal(prior.prompt(latents), latents)


def test_published_prompt_lengths_count_the_batch_as_full():
    assert frames_as_published(torch.tensor([480000, 240000]), 480000, 250).tolist() == [250, 125]
    assert frames_as_published(torch.tensor([240000]), 240000, 250).tolist() == [250]  # though it has 125 frames


def test_prompts_and_lyrics_of_other_numbers_are_refused():
    with pytest.raises(UserError, match="2 lyrics and 1 style prompts"):
        PRIOR.conditions([[1], [2]], torch.zeros(1, 5, 4))
    with pytest.raises(UserError, match="own codec"):
        PRIOR.conditions([[1]], torch.zeros(1, 5, CONFIG.latent_width + 1))
