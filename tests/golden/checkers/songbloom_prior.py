"""The SongBloom prior: ``songbloom_tiny*_model``, ``songbloom_cond*``, ``songbloom_lm*``, ``songbloom_train*`` and
``songbloom_gen*``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom.prior.songbloom import samplers
from songbloom.prior.songbloom.conditioners import Conditions, frames_as_published
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.generate import Trace, generate
from songbloom.prior.songbloom.loss import TrainingDraws, losses
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import Compatibility, GenerationSettings
from songbloom.published.songbloom import prior as published
from songbloom.published.songbloom import vae as published_vae
from songbloom.vae.vae import VAE
from tests.golden.report import Golden

PASS: dict[str, Any] = {"abs": 1e-5, "rel": 1e-4}
SONG: dict[str, Any] = {"abs": 1e-3}
# Through the codec's encoder, whose recorded results lie 1.2e-4 from those in double precision.
HEARD: dict[str, Any] = {"abs": 1e-4, "rel": 1e-4}
VOCABULARY = json.loads((Path(__file__).parents[2] / "manifest" / "songbloom_vocab_g2p.json").read_text())
NO_LYRICS = "<None>"


def swap(x: Tensor) -> Tensor:
    """``[N, C, T]`` as in the files ↔ ``[N, T, C]`` as here."""
    return x.transpose(1, 2)


def token_ids(phonemes: str) -> list[int]:
    """A phoneme string's tokens: what is in the vocabulary of the items between single spaces."""
    words = [""] if phonemes == NO_LYRICS else phonemes.split(" ")
    return [VOCABULARY.index(word) for word in words if word in VOCABULARY]


def model_in(content: dict[str, Any], **changes: Any) -> SongBloomPrior:
    """The model of a ``songbloom_tiny*_model`` file, some of its settings changed."""
    settings = published.settings_from_published(json.loads(content["config"]))
    settings |= published.vocabulary_settings(VOCABULARY)
    prior = SongBloomPrior(SongBloomConfig(**{**settings, **changes})).eval()
    prior.load_state_dict(published.from_published(content["state_dict"]))
    return prior


def beside(golden: Golden, name: str) -> dict[str, Any]:
    return torch.load(golden.folder / name, weights_only=True)


def model_of(golden: Golden, **changes: Any) -> SongBloomPrior:
    return model_in(beside(golden, golden.given("model_file")), **changes)


def codec_of(golden: Golden, name: str) -> VAE:
    content = beside(golden, beside(golden, name)["vae_file"])
    vae = VAE(published_vae.config_from_published(json.loads(content["config"]))).eval()
    vae.load_codec(published_vae.from_published(content["state_dict"]))
    return vae


def given_conditions(golden: Golden) -> Conditions:
    return Conditions(prompt=golden.given("cond_prompt_embed"), lyrics=golden.given("cond_lyrics_embed"))


# ------------------------------------------------------------------------------------------------------- the model


def check_model(golden: Golden) -> None:
    content = golden.content
    prior = model_in({"config": golden.given("config"), "state_dict": golden.look("state_dict")})
    for beside_it in ("vae_config", "vae_file"):
        if golden.has(beside_it):
            golden.given(beside_it)
    golden.expect("state_dict", got=published.to_published(prior.state_dict(), prefix=""))
    with_prefix = {published.PREFIX + name: tensor for name, tensor in content["state_dict"].items()}
    assert published.is_published(with_prefix) and not published.is_published(prior.state_dict())
    assert published.from_published(with_prefix).keys() == prior.state_dict().keys()
    golden.expect("eos_token_id", got=prior.config.eos)
    golden.expect("special_token_id", got=prior.config.ignored)
    if golden.has("n_params"):
        golden.expect("n_params", got=sum(p.numel() for p in prior.parameters()))


# -------------------------------------------------------------------------------------------------------- conditions


def _mask(frames: Sequence[int], positions: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(positions) < torch.tensor(list(frames))[:, None]).to(dtype)


@torch.no_grad()
def check_cond(golden: Golden) -> None:
    name = golden.look("model_file")
    prior, vae = model_of(golden), codec_of(golden, name)
    config = prior.config
    for index in range(golden.given("n_lyrics")):
        key = f"lyrics_{index}_"
        ids = token_ids(golden.given(key + "text"))
        golden.expect(key + "ids", got=torch.tensor(ids))
        golden.expect(key + "embed", got=prior.lyrics([ids]), **PASS)
        golden.expect(key + "mask", got=_mask([len(ids)], config.lyric_tokens, torch.float32))

    def check_prompt(key: str, wav: Tensor, lengths: Tensor, noise: Tensor | None) -> None:
        latents = vae.encode_prompt(swap(wav), noise=None if noise is None else swap(noise))
        valid = frames_as_published(lengths, wav.shape[2], config.prompt_frames)
        golden.expect(key + "embed", got=prior.prompt(latents, valid), **HEARD)
        golden.expect(key + "mask", got=_mask(valid.tolist(), config.prompt_frames, torch.int32))

    if golden.has("prompt_wav"):
        wav, lengths = golden.given("prompt_wav"), golden.given("prompt_lengths")
        check_prompt("prompt_", wav, lengths, golden.given("prompt_vae_noise"))
    if golden.has("prompt_allnull_embed"):
        songs = len(golden.look("prompt_allnull_embed"))
        check_prompt("prompt_allnull_", torch.zeros(songs, 1, 1), torch.zeros(songs, dtype=torch.int64), None)
    if golden.has("prompt_short_wav"):
        wav = golden.given("prompt_short_wav")
        lengths = torch.full((len(wav),), wav.shape[2])
        check_prompt("prompt_short_", wav, lengths, golden.given("prompt_short_noise"))
    if golden.has("interp_ids"):
        _check_stretched(golden, prior)


def _check_stretched(golden: Golden, prior: SongBloomPrior) -> None:
    ids = token_ids(golden.given("interp_text"))
    golden.expect("interp_ids", got=torch.tensor(ids))
    starts, ends = golden.given("interp_starts").tolist(), golden.given("interp_ends").tolist()
    resolution = golden.given("interp_resolution")
    spans = list(zip(starts, ends, strict=True))
    vectors = prior.lyrics.stretched(ids, spans, resolution, next_tag_after_section=True)
    golden.expect("interp_embed", got=vectors[None], **PASS)
    before = next(place for place, token in enumerate(ids) if token in prior.config.structure_tokens)
    filled = before + sum(int(end / resolution) - int(start / resolution) for start, end in spans)
    golden.expect("interp_mask", got=_mask([filled], prior.config.lyric_tokens, torch.float32))


# -------------------------------------------------------------------------------------------- forward and samplers


def _toy(x: Tensor, t: Tensor) -> Tensor:
    return 0.7 * x - 0.3 * t + 0.1


def _toy_results(golden: Golden, key: str, noise: Tensor) -> Tensor:
    if found := re.fullmatch(r"toy_temp([\d.]+)_steps(\d+)", key):
        return samplers.euler(_toy, noise, int(found[2]), temperature=float(found[1]), estimate_at_one=True)
    if found := re.fullmatch(r"toy_euler(\d+)", key):
        return samplers.euler(_toy, noise, int(found[1]))
    if found := re.fullmatch(r"toy_vddim(\d+)", key):
        return samplers.ddim(_toy, noise, int(found[1]))
    if found := re.fullmatch(r"fork_toy_(spiral|pingpong)_s(\d+)_t([\d.]+)", key):
        sampler = samplers.FLOW_SAMPLERS[found[1]]
        return sampler(_toy, noise, int(found[2]), temperature=float(found[3]), estimate_at_one=True)
    found = re.fullmatch(r"fork_toy_spiral_ensemble_(\d+)paths", key)
    assert found, key
    # The fork weighs by the variance over its whole batch, which here is an item's: the batch as one item, then.
    settings = {"temperature": 0.95, "estimate_at_one": True, "strength": 0.2, "ensemble": "inverse_variance"}
    whole = samplers.spiral(_toy, noise.flatten(0, 1)[None], 12, paths=int(found[1]), **settings)
    return whole[0].unflatten(0, noise.shape[:2])


@torch.no_grad()
def check_lm(golden: Golden) -> None:
    prior, conditions = model_of(golden), given_conditions(golden)
    prefix = conditions.prefix()
    golden.expect("prefix_len", got=prefix.shape[1])
    golden.expect("prefix_head", got=prefix[:, : golden.look("prefix_head").shape[1]])
    song = golden.given("lm_input_embeds")
    hidden = prior.language_model(torch.cat([prefix, song], dim=1))[:, prefix.shape[1] :]
    golden.expect("lm_hidden", got=hidden, **PASS)
    golden.expect("lm_logits", got=prior.classifier(hidden), **PASS)
    for name, sizes in (("by one", 1), ("by three", 3)):
        cache = prior.language_model.begin(prefix, range(len(song)), song.shape[1])
        steps = [prior.language_model.step(part, cache) for part in song.split(sizes, dim=1)]
        golden.expect("lm_hidden_streaming", got=torch.cat(steps, 1), name=f"lm_hidden_streaming {name}", **PASS)
    golden.expect("block_conv_out", got=prior.patch_encoder(golden.given("block_conv_in"))[:, None], **PASS)

    diffusion = prior.diffusion
    x, t, h, s, previous = (golden.given(f"dit_{name}") for name in ("x", "t", "h", "s", "prev"))
    golden.expect("dit_time_features", got=diffusion.time.features(t), **PASS)
    golden.expect("dit_time_embed", got=diffusion.time(t), **PASS)
    given = diffusion(x, t, h, s, previous)
    blind = diffusion(x, t, torch.zeros_like(h), torch.zeros_like(s), previous)
    golden.expect("dit_out", got=given, **PASS)
    golden.expect("dit_out_uncond", got=blind, **PASS)

    def guided(x: Tensor, t: Tensor, coefficient: float = 1.5) -> Tensor:
        times = t.expand(len(x))
        given = diffusion(x, times, h, s, previous)
        blind = diffusion(x, times, torch.zeros_like(h), torch.zeros_like(s), previous)
        return blind + (given - blind) * coefficient

    for key in golden.content:
        if found := re.fullmatch(r"dit_out_cfg(\d+)p(\d+)", key):
            golden.expect(key, got=guided(x, t, float(f"{found[1]}.{found[2]}")), **PASS)
        elif found := re.fullmatch(r"sampler_temp([\d.]+)_steps(\d+)", key):
            settings = {"temperature": float(found[1]), "estimate_at_one": True}
            golden.expect(key, got=samplers.euler(guided, x, int(found[2]), **settings), **PASS)
        elif found := re.fullmatch(r"sampler_(euler|vddim)_steps(\d+)", key):
            sampler = {"euler": samplers.euler, "vddim": samplers.ddim}[found[1]]
            golden.expect(key, got=sampler(guided, x, int(found[2])), **PASS)
        elif key.startswith(("toy_", "fork_toy_")) and key != "toy_x":
            golden.expect(key, got=_toy_results(golden, key, golden.given("toy_x")), **PASS)


# --------------------------------------------------------------------------------------------------------- training


def check_train(golden: Golden) -> None:
    prior = model_of(
        golden,
        diffusion_objective=golden.given("objective"),
        timestep_sampler=golden.given("timestep_sampler"),
        patch_dropout=golden.given("h_dropout"),
    )
    prior.train(bool(golden.given("train_mode")))
    tokens, latents, lengths = golden.given("x_sketch"), swap(golden.given("x_latent")), golden.given("x_len")
    noise = golden.given("noise")
    never = torch.zeros(len(noise), dtype=torch.bool)
    hidden, sketch = (
        golden.given(key).flatten() if golden.has(key) and golden.look(key) is not None else never
        for key in ("drop_h", "drop_s")
    )
    draws = TrainingDraws(golden.look("t"), noise, hidden, sketch)
    outputs = prior.training_outputs(tokens, latents, lengths, given_conditions(golden), draws=draws)
    golden.expect("t", got=outputs.t)
    golden.expect("ar_logit", got=outputs.logits, **PASS)
    golden.expect("ar_target", got=outputs.targets)
    golden.expect("nar_pred", got=outputs.velocity, **PASS)
    golden.expect("nar_target", got=outputs.velocity_target, **PASS)
    loss, metrics = losses(outputs, prior.config)
    golden.expect("loss_ce", got=metrics["sketch_loss"], **PASS)
    golden.expect("loss_flow", got=metrics["flow_loss"], **PASS)
    golden.expect("loss_total", got=loss, **PASS)
    loss.backward()
    ours = {name: p.grad for name, p in prior.named_parameters() if p.grad is not None}
    found = published.to_published(ours, prefix="")
    golden.expect("grad_norms", got={name: float(tensor.norm()) for name, tensor in found.items()}, **PASS)
    every = published.to_published(prior.state_dict(keep_vars=True), prefix="")
    buffers = published.to_published(dict(prior.named_buffers()), prefix="")
    missing = every.keys() - found.keys() - buffers.keys()
    listed = golden.look("no_grad_params")  # in the order of their modules
    golden.expect("no_grad_params", got=[n for n in listed if n in missing] + sorted(missing.difference(listed)))
    for key in golden.content:
        if key.startswith("grad/"):
            golden.expect(key, got=found[key.removeprefix("grad/")], **PASS)


# -------------------------------------------------------------------------------------------------------- generation


class Recorded:
    """The draws of the file: the first token whose cumulative probability exceeds the recorded uniform."""

    def __init__(self, noise: Tensor, uniforms: Tensor | None, *, ordered: bool) -> None:
        self.blocks = iter(noise)
        self.uniforms = None if uniforms is None else iter(uniforms)
        self.ordered = ordered
        self.probabilities: list[Tensor] = []
        self.indices: list[Tensor] = []

    def begin_patch(self, index: int) -> None:
        pass

    def tokens(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        assert self.uniforms is not None and len(items) == 1
        probabilities, tokens = logits.softmax(-1).squeeze(0), torch.arange(logits.shape[1])
        if self.ordered:
            probabilities, tokens = probabilities.sort(descending=True)
        # Past the end of the file no token matters any more.
        place = (probabilities.double().cumsum(0) > next(self.uniforms, 0.5)).int().argmax()
        self.probabilities.append(probabilities)
        self.indices.append(place)
        return tokens[place][None]

    def noise(self, shape: tuple[int, int], items: Sequence[int]) -> Tensor:
        return next(self.blocks, torch.zeros(shape))[None]


def check_generated(golden: Golden) -> None:
    name = golden.look("model_file")
    prior, vae = model_of(golden, diffusion_objective=golden.given("objective")), codec_of(golden, name)
    config, params = prior.config, json.loads(golden.given("params"))
    with torch.no_grad():
        bias = prior.classifier.output.bias
        assert bias is not None
        bias[config.eos] += golden.given("eos_bias")
        wav = golden.given("prompt_wav")
        audio = torch.stack([wav, torch.zeros_like(wav)])  # the null prompt, filled to the same length
        latents = vae.encode_prompt(swap(audio), noise=swap(golden.given("prompt_vae_noise")))
        valid = frames_as_published(torch.tensor([wav.shape[1], 0]), wav.shape[1], config.prompt_frames)
        lyrics = [token_ids(golden.given("lyrics_processed"))]
        conditions = prior.conditions(lyrics, latents[:1], valid[:1])
        null = prior.conditions([[0]], latents[1:], valid[1:])
    torch.testing.assert_close(null.prefix(), prior.null_conditions().prefix(), rtol=0, atol=0)

    # All of the published program's faults on.
    given = published.generation_from_published(params)
    settings = GenerationSettings(**given, compatibility=Compatibility.published())
    noise = golden.given("block_noise")
    uniforms = golden.given("uniforms") if golden.has("uniforms") else None

    def run(settings: GenerationSettings, trace: Trace | None) -> tuple[Any, Recorded]:
        draws = Recorded(noise, uniforms, ordered=bool(settings.top_p))
        return generate(prior, conditions, settings, draws=draws, trace=trace)[0], draws

    song, _ = run(settings, None)
    golden.expect("tokens", got=song.tokens[None])
    golden.expect("latents", got=swap(song.latents[None]), **SONG)
    golden.expect("n_blocks_sampled", got=len(song.tokens) // config.patch_size + 1)
    _check_inside(golden, settings, config, run)


def _check_inside(
    golden: Golden,
    settings: GenerationSettings,
    config: SongBloomConfig,
    run: Callable[[GenerationSettings, Trace | None], tuple[Any, Recorded]],
) -> None:
    """Logits and probabilities, also of the patch past the end, which the published program computes in vain."""
    trace, steps = Trace(), len(golden.look("raw_logits"))
    longer = {**settings.__dict__, "max_frames": golden.look("n_blocks_sampled") * config.patch_size}
    _, draws = run(GenerationSettings(**longer), trace)
    golden.expect("raw_logits", got=torch.stack(trace.logits)[:, :, 0], **PASS)
    if golden.has("probs_before_draw"):
        golden.expect("probs_before_draw", got=torch.stack(draws.probabilities)[:steps], **PASS)
        golden.expect("drawn_index", got=torch.stack(draws.indices)[:steps])


CHECKS = {
    "songbloom_tiny": check_model,
    "songbloom_cond": check_cond,
    "songbloom_lm": check_lm,
    "songbloom_train": check_train,
    "songbloom_gen": check_generated,
}
