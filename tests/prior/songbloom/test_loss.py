"""The training forward against loops, and what training draws."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.songbloom.diffusion import draw_times, mix
from songbloom.prior.songbloom.loss import draw_for_training, drop_conditions, losses
from tests.prior.songbloom.tiny import CONFIG, seeded, some_codes, some_conditions, tiny_prior

LENGTHS = torch.tensor([9, 6])


def forward(prior, tokens, latents, lengths=LENGTHS, seed=3):
    conditions = some_conditions(prior)
    return prior.training_outputs(tokens, latents, lengths, conditions, generator=seeded(seed)[0]), conditions


def slow_loss(prior, tokens, latents, lengths, conditions, draws):
    """Song by song, patch by patch."""
    config, size, entropies, errors, row = prior.config, prior.config.patch_size, [], [], 0
    for item, length in enumerate(lengths.tolist()):
        song, codes = tokens[item : item + 1, :length], latents[item : item + 1, :length]
        hidden = prior.hidden(song, codes, conditions[[item]])[0]
        targets, position = [*song[0].tolist(), config.eos], 0
        for frame, target in enumerate(targets):
            position = frame + frame // size  # a position of latents after each patch
            entropies.append(-prior.classifier(hidden[position]).log_softmax(-1)[target])
        for patch in range(length // size):
            frames = slice(patch * size, (patch + 1) * size)
            previous = codes[:, frames.start - size : frames.start] if patch else torch.zeros_like(codes[:, :size])
            noise, t = draws.noise[row : row + 1], draws.t[row : row + 1]
            h = hidden[(patch + 1) * (size + 1) - 1][None] * (0 if draws.hide_hidden[row] else 1)
            s = prior.sketch_embedding(song[:, frames]) * (0 if draws.hide_sketch[row] else 1)
            noisy, target = mix(config.diffusion_objective, codes[:, frames], noise, t)
            errors.append((prior.diffusion(noisy, t, h, s, previous) - target).square().mean())
            row += 1
    return torch.stack(entropies).mean() + config.flow_loss_fraction * torch.stack(errors).mean()


@pytest.mark.parametrize("objective", ["rectified_flow", "v"])
def test_the_loss_is_that_of_the_loops_and_so_are_its_gradients(objective):
    prior = tiny_prior(diffusion_objective=objective, patch_dropout=0.5).train()
    tokens, latents = some_codes(prior, 2, 9)
    draws = draw_for_training(prior.config, 5, training=True, generator=seeded(5)[0], device=tokens.device)
    assert 0 < draws.hide_hidden.sum() + draws.hide_sketch.sum() < 10
    conditions = some_conditions(prior)
    loss, metrics = losses(prior.training_outputs(tokens, latents, LENGTHS, conditions, draws=draws), prior.config)
    loss.backward()
    found = {name: p.grad.clone() for name, p in prior.named_parameters() if p.grad is not None}
    prior.zero_grad(set_to_none=True)
    slow = slow_loss(prior, tokens, latents, LENGTHS, some_conditions(prior), draws)
    slow.backward()
    torch.testing.assert_close(loss, slow, rtol=1e-5, atol=1e-5)
    assert metrics["loss"] == loss and not metrics["loss"].requires_grad
    for name, p in prior.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_what_lies_behind_a_length_is_not_looked_at():
    prior = tiny_prior()
    tokens, latents = some_codes(prior, 2, 9)
    other, noisy = tokens.clone(), latents.clone()
    other[1, 6:], noisy[1, 6:] = prior.config.eos, 100.0
    (one, _), (two, _) = forward(prior, tokens, latents), forward(prior, other, noisy)
    assert one.targets.tolist() == two.targets.tolist()
    assert one.targets[1].tolist() == [*tokens[1, :6].tolist(), 12, 13, 13, 13] and one.targets[0, 9] == 12
    torch.testing.assert_close(losses(one, prior.config)[0], losses(two, prior.config)[0], rtol=1e-5, atol=1e-5)


def test_training_draws_can_be_repeated_and_lowers_the_loss():
    prior = tiny_prior().train()
    tokens, latents = some_codes(prior, 2, 9)
    lyrics, prompt = [[1, 8], [2]], torch.randn(2, 5, 4, generator=seeded(0)[0])

    def loss(seed, precision="fp32"):
        return prior(tokens, latents, LENGTHS, lyrics, prompt, generator=seeded(seed)[0], precision=precision)[0]

    assert loss(1).item() == loss(1).item() != loss(2).item()
    assert loss(1, "bf16").item() == pytest.approx(loss(1).item(), rel=0.05)
    optimizer = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr=1e-3)
    first = loss(0).item()
    for step in range(8):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert loss(0).item() < 0.8 * first
    assert prior.lyrics.blank.grad is None


def test_conditions_are_dropped_by_item_or_by_batch():
    prior = tiny_prior()
    given, null = some_conditions(prior, 4), prior.null_conditions()
    seen = set()
    for by_batch in (False, True):
        config = replace(
            CONFIG, condition_dropout=0.3, lyric_dropout=0.3, prompt_dropout=0.3, dropout_by_batch=by_batch
        )
        for seed in range(30):
            found = drop_conditions(config, given, null, seeded(seed)[0])
            gone = []
            for mine, theirs, nothing in (
                (found.lyrics, given.lyrics, null.lyrics),
                (found.prompt, given.prompt, null.prompt),
            ):
                same = [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)]
                dropped = [torch.equal(a, nothing[0]) for a in mine]
                assert all(a != b for a, b in zip(same, dropped, strict=True))
                gone.append(tuple(dropped))
            if by_batch:
                assert all(len(set(part)) == 1 for part in gone)
            seen.add((by_batch, *gone))
    assert len(seen) > 20
    kept = drop_conditions(replace(CONFIG, condition_dropout=0.0, prompt_dropout=0.0), given, null, None)
    assert torch.equal(kept.prefix(), given.prefix())


@pytest.mark.parametrize("sampler", ["logit_normal", "uniform", "trunc_logit_normal"])
def test_times_are_drawn_as_named(sampler):
    t = draw_times(sampler, 4000, seeded(0)[0], torch.device("cpu"))
    assert t.dtype == torch.float32 and t.min() > 0 and t.max() < 1
    if sampler == "uniform":
        assert (t.sort().values * 4000).floor().tolist() == list(range(4000))
        assert t[:100].sort().values.tolist() != t[:100].tolist()
    else:
        normal = torch.logit(t.double())
        assert abs(float(normal.median())) < 0.08
        assert (t.min() >= 0.075) == (sampler == "trunc_logit_normal")
        expected = torch.tensor([0.8413]) if sampler == "logit_normal" else torch.tensor([0.8404])
        assert F.l1_loss((normal < 1).float().mean()[None], expected) < 0.02


@pytest.mark.parametrize("objective", ["rectified_flow", "v"])
def test_mixing_begins_clean_and_ends_as_noise(objective):
    clean, noise = torch.randn(2, 3, 2, 4, generator=seeded(0)[0])
    noisy, _ = mix(objective, clean, noise, torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], noise[1])
    early, target = mix(objective, clean, noise, torch.full((3,), 0.4))
    late, _ = mix(objective, clean, noise, torch.full((3,), 0.401))
    slope = (late - early) / 0.001
    scale = 1.0 if objective == "rectified_flow" else torch.pi / 2  # the target is the path's slope by its angle
    torch.testing.assert_close(slope, target * scale, rtol=5e-3, atol=5e-3)


def test_batches_that_are_no_whole_patches_are_refused():
    prior = tiny_prior()
    tokens, latents = some_codes(prior, 2, 9)
    for wrong in (torch.tensor([9, 5]), torch.tensor([9, 0]), torch.tensor([12, 3])):
        with pytest.raises(UserError, match="whole patches"):
            forward(prior, tokens, latents, wrong)
    with pytest.raises(UserError, match="latents of shape"):
        forward(prior, tokens, latents[:, :6])
