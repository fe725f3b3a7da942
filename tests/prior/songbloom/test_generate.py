"""Songs from caches and batches against the slow reference; where they end, go on, and what they refuse."""

import math
from dataclasses import replace

import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.songbloom.generate import Trace, generate, penalise, sample_patches
from songbloom.prior.songbloom.settings import Compatibility, GenerationSettings
from tests.prior.songbloom.reference import write_song
from tests.prior.songbloom.tiny import SETTINGS, forbid_end, seeded, some_codes, some_conditions, tiny_prior, with_end

CASES = {
    "h": {},
    "h from a start temperature": {"diffusion_temperature": 0.6, "steps": 4},
    "global": {"dit_cfg_type": "global", "cfg_diffusion": 2.0},
    "none": {"dit_cfg_type": "none", "cfg_lm": 1.0},
    "one guidance of two": {"cfg_lm": 1.0, "cfg_diffusion": 2.5},
    "greedy": {"temperature": 0.0},
    "top k": {"top_k": 4, "temperature": 0.8},
    "top p": {"top_p": 0.7, "top_k": 3},
    "short window": {"penalty_window": 2, "penalty": 3.0},
    "no window": {"penalty_window": 0},
    "as published": {"compatibility": Compatibility.published(), "diffusion_temperature": 0.6, "penalty": 2.0},
}


def same(song, tokens, latents):
    assert song.tokens.tolist() == tokens.tolist()
    torch.testing.assert_close(song.latents, latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_two_songs_in_step_are_two_songs_of_the_slow_reference(case):
    prior = with_end(tiny_prior(), 5.0)  # a patch of the last case, say, has an end inside
    settings = replace(SETTINGS, **CASES[case])
    conditions = some_conditions(prior)
    songs = generate(prior, conditions, settings, generators=seeded(5, 6))
    for item, seed in enumerate((5, 6)):
        tokens, latents = write_song(prior, conditions[[item]], settings, seeded(seed)[0])
        same(songs[item], tokens, latents)


@pytest.mark.parametrize("changes", [{"time_conditioning": "adaln"}, {"diffusion_objective": "v"}])
def test_other_models_agree_with_the_slow_reference(changes):
    prior = tiny_prior(**changes)
    conditions = some_conditions(prior, 1)
    (song,) = generate(prior, conditions, SETTINGS, generators=seeded(7))
    same(song, *write_song(prior, conditions, SETTINGS, seeded(7)[0]))


def test_a_song_does_not_depend_on_its_batch_and_prompts_may_be_shared():
    prior = with_end(tiny_prior(), 5.0)
    conditions = some_conditions(prior)
    together = generate(prior, conditions, SETTINGS, counts=[3, 1], generators=seeded(1, 2, 3, 4))
    assert len({len(song.tokens) for song in together}) > 1  # some end earlier than others
    for item, row in enumerate((0, 0, 0, 1)):
        (alone,) = generate(prior, conditions[[row]], SETTINGS, generators=seeded(item + 1))
        same(together[item], alone.tokens, alone.latents)
        assert together[item].ended == alone.ended


def test_a_song_goes_on_between_any_two_patches_as_if_nothing_had_been():
    prior = forbid_end(tiny_prior())
    conditions = some_conditions(prior)

    def generators(patch):
        return seeded(100 + patch, 200 + patch)

    whole = generate(prior, conditions, SETTINGS, generators=generators)
    for patches in (1, 2):
        frames = patches * prior.config.patch_size
        known = (
            torch.stack([song.tokens[:frames] for song in whole]),
            torch.stack([song.latents[:frames] for song in whole]),
        )
        rest = list(sample_patches(prior, conditions, SETTINGS, generators=generators, known=known))
        assert [patch.index for patch in rest] == list(range(patches, 3))
        again = generate(prior, conditions, SETTINGS, generators=generators, known=known)
        for song, before in zip(again, whole, strict=True):
            same(song, before.tokens, before.latents)


def test_new_latents_for_a_sketch_are_those_that_came_with_it():
    prior = forbid_end(tiny_prior())
    conditions = some_conditions(prior)
    settings = replace(SETTINGS, temperature=0.0)  # the sketch takes no draws, so the noise is the same
    first = generate(prior, conditions, settings, generators=seeded(1, 2))
    again = generate(
        prior, conditions, settings, generators=seeded(1, 2), sketch=[first[0].tokens, first[1].tokens[:6]]
    )
    same(again[0], first[0].tokens, first[0].latents)
    same(again[1], first[1].tokens[:6], first[1].latents[:6])
    assert not again[0].ended


def test_a_song_ends_at_the_first_place_of_a_patch_only():
    prior = with_end(tiny_prior(), 1000.0)
    conditions = some_conditions(prior, 1)
    (nothing,) = generate(prior, conditions, SETTINGS)
    assert nothing.ended and len(nothing.tokens) == len(nothing.latents) == 0
    (silent,) = generate(prior, conditions, replace(SETTINGS, compatibility=Compatibility(silent_first_patch=True)))
    assert silent.latents.shape == (3, 4) and not silent.latents.any() and not len(silent.tokens)
    (longer,) = generate(prior, conditions, replace(SETTINGS, min_frames=4))
    assert longer.ended and len(longer.tokens) == 6 and int(longer.tokens.max()) < prior.config.eos


@pytest.mark.parametrize(("frames", "patches"), [(1, 1), (3, 1), (4, 2), (9, 3)])
def test_lengths_are_rounded_up_to_whole_patches(frames, patches):
    prior = forbid_end(tiny_prior())
    (song,) = generate(prior, some_conditions(prior, 1), replace(SETTINGS, max_frames=frames))
    assert len(song.tokens) == 3 * patches and not song.ended


def test_published_lengths():
    assert GenerationSettings(max_frames=4000).patches(16) == 250
    assert GenerationSettings(max_frames=6250).patches(16) == 391


def test_the_penalty_lowers_every_repeated_token_once_but_the_end():
    logits = torch.tensor([[2.0, -2.0, 2.0, 2.0]])
    recent = torch.tensor([[0, 0, 1, 3]])
    assert penalise(logits, recent, 2.0, 3).tolist() == [[1.0, -4.0, 2.0, 2.0]]
    assert penalise(logits, recent, 2.0, 3, raises_negative_logits=True).tolist() == [[1.0, -1.0, 2.0, 2.0]]


def test_a_trace_holds_both_rows_and_what_was_drawn_from():
    prior = forbid_end(tiny_prior())
    conditions, trace, songs = some_conditions(prior), Trace(), []
    for asked in (None, trace):
        settings = replace(SETTINGS, cfg_lm=1.0, top_k=2)
        songs.append(generate(prior, conditions, settings, generators=seeded(1, 2), trace=asked))
    assert [s.tokens.tolist() for s in songs[0]] == [s.tokens.tolist() for s in songs[1]]
    assert torch.stack(trace.logits).shape == (9, 2, 2, 13)
    assert ((torch.stack(trace.drawn_from) > 0).sum(-1) == 2).all()


def test_half_precision_keeps_latents_in_single_and_close():
    prior = forbid_end(tiny_prior())
    conditions = some_conditions(prior)
    (tokens, _) = some_codes(prior, 2, 6)
    exact = generate(prior, conditions, SETTINGS, sketch=list(tokens), generators=seeded(1, 2))
    for stored in (torch.float32, torch.bfloat16):
        prior.store_matrices(stored)
        half = generate(prior, conditions, SETTINGS, sketch=list(tokens), generators=seeded(1, 2), precision="bf16")
        for one, other in zip(exact, half, strict=True):
            assert other.latents.dtype == torch.float32
            assert 0 < (one.latents - other.latents).norm() < 0.1 * one.latents.norm()


def test_patches_are_given_out_as_they_are_made():
    prior = forbid_end(tiny_prior())
    seen = []
    generate(prior, some_conditions(prior), SETTINGS, on_patch=lambda patch: seen.append((patch.index, patch.items)))
    assert seen == [(0, (0, 1)), (1, (0, 1)), (2, (0, 1))]


def test_requests_that_do_not_fit_are_refused():
    prior = tiny_prior()
    conditions = some_conditions(prior)
    tokens, latents = some_codes(prior, 2, 6)
    for arguments in (
        {"counts": [1]},
        {"counts": [1, 0]},
        {"generators": seeded(1)},
        {"known": (tokens[:, :4], latents[:, :4])},
        {"known": (tokens, latents[:, :3])},
        {"known": (tokens + 12, latents)},
        {"sketch": [tokens[0]]},
        {"sketch": [tokens[0], tokens[1][:2]]},
        {"sketch": [tokens[0], tokens[1] - 50]},
    ):
        with pytest.raises(UserError):
            generate(prior, conditions, SETTINGS, **arguments)
    for change in (
        {"dit_cfg_type": "hh"},
        {"sampler": "heun"},
        {"max_frames": 0},
        {"steps": 0},
        {"temperature": -1.0},
        {"top_p": 1.5},
        {"penalty": 0.0},
        {"penalty": math.inf},
        {"temperature": math.inf},
        {"diffusion_temperature": math.inf},
        {"cfg_lm": math.inf},
        {"cfg_diffusion": math.nan},
    ):
        with pytest.raises(UserError):
            replace(SETTINGS, **change)
