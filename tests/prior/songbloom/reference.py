"""Generation the slow way: one song, no cache, all of the sequence again for every token."""

import torch

from songbloom.prior.songbloom.samplers import ddim, euler


def last_vector(prior, conditions, tokens, latents, fresh):
    """The language model's output at the end of whole patches and then the tokens ``fresh`` of the next one."""
    parts = [conditions.prefix(), prior.sequence(tokens, latents)]
    if fresh:
        parts.append(prior.sketch_embedding(torch.tensor([fresh])))
    return prior.language_model(torch.cat(parts, dim=1))[0, -1]


def choose(prior, settings, given, null, past, patch, place, generator):
    config, compatibility = prior.config, settings.compatibility
    logits = null + (given - null) * settings.cfg_lm
    if not (patch == 0 and compatibility.first_patch_unpenalised) and settings.penalty_window:
        for token in set(past[-settings.penalty_window :]):
            if logits[token] >= 0 or compatibility.penalty_raises_negative_logits:
                logits[token] /= settings.penalty
            else:
                logits[token] *= settings.penalty
    ends = place == 0 or compatibility.eos_inside_patch
    if not ends or patch * config.patch_size < settings.min_frames:
        logits[config.eos] = -torch.inf
    if settings.temperature == 0:
        return int(logits.argmax())
    logits = logits / settings.temperature
    if settings.top_p:
        order = logits.argsort(descending=True).tolist()
        held = 0.0
        for token in order:
            share = float(logits.softmax(0)[token])
            if held > settings.top_p:
                logits[token] = -torch.inf
            else:
                held += share
            if held > settings.top_p:
                for other in order[order.index(token) + 1 :]:
                    logits[other] = -torch.inf
                break
    elif settings.top_k:
        logits[logits < logits.sort().values[-settings.top_k]] = -torch.inf
    noise = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    return int((logits - torch.log(-torch.log(noise))).argmax())


def draw_latents(prior, settings, hidden, hidden_null, tokens, previous, noise):
    sketch = prior.sketch_embedding(tokens)[None]

    def field(h, s):
        return lambda x, t: prior.diffusion(x, t[None], h[None], s, previous)

    given = field(hidden, sketch)
    blind = field(torch.zeros_like(hidden), torch.zeros_like(sketch))

    def run(velocity):
        if prior.config.diffusion_objective == "v":
            return ddim(velocity, noise, settings.steps)
        at_one = settings.compatibility.start_estimate_at_one
        return euler(
            velocity, noise, settings.steps, temperature=settings.diffusion_temperature, estimate_at_one=at_one
        )

    c = settings.cfg_diffusion
    if settings.dit_cfg_type == "none":
        return run(given)
    if settings.dit_cfg_type == "global":
        null = run(field(hidden_null, sketch))
        return null + (run(given) - null) * c
    return run(lambda x, t: blind(x, t) + (given(x, t) - blind(x, t)) * c)


@torch.no_grad()
def write_song(prior, conditions, settings, generator):
    """``(tokens [T], latents [T, C])`` of the one song of ``conditions``."""
    config, null = prior.config, prior.null_conditions()
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    latents = torch.zeros(1, 0, config.latent_width)
    previous = torch.zeros(1, config.patch_size, config.latent_width)
    for patch in range(settings.patches(config.patch_size)):
        fresh = []
        for place in range(config.patch_size):
            given = prior.classifier(last_vector(prior, conditions, tokens, latents, fresh))
            without = prior.classifier(last_vector(prior, null, tokens, latents, fresh))
            past = [token for token in tokens[0].tolist() + fresh if token != config.eos]
            if settings.penalty_window:  # end-of-song in the window counts as nothing, but has its place there
                past = [t for t in (tokens[0].tolist() + fresh)[-settings.penalty_window :] if t != config.eos]
            fresh.append(choose(prior, settings, given, without, past, patch, place, generator))
            if fresh[0] == config.eos and not settings.compatibility.eos_inside_patch:
                return tokens[0], latents[0]
        if config.eos in fresh:
            return tokens[0], latents[0]
        hidden = last_vector(prior, conditions, tokens, latents, fresh)
        hidden_null = last_vector(prior, null, tokens, latents, fresh)
        noise = torch.randn(config.patch_size, config.latent_width, generator=generator)[None]
        made = torch.tensor(fresh)
        previous = draw_latents(prior, settings, hidden, hidden_null, made, previous, noise)
        tokens, latents = torch.cat([tokens, made[None]], dim=1), torch.cat([latents, previous], dim=1)
    return tokens[0], latents[0]
