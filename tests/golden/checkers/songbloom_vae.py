"""``songbloom_vae*``: the stereo VAE whole and in pieces, its posterior, and how it hears style prompts."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor

from songbloom.published.songbloom.vae import config_from_published, from_published, to_published
from songbloom.vae.losses import kl_divergence
from songbloom.vae.vae import VAE
from tests.golden.report import Golden

AUDIO: dict[str, Any] = {"abs": 1e-4, "rel": 1e-4}
LOSS: dict[str, Any] = {"abs": 1e-5, "rel": 1e-4}


def _swap(x: Tensor) -> Tensor:
    """``[N, C, T]`` as in the files ↔ ``[N, T, C]`` as here."""
    return x.transpose(1, 2)


def _check_posterior(golden: Golden, model: VAE) -> None:
    audio = _swap(golden.given("wav"))
    with torch.no_grad():
        golden.expect("encoder_out", got=model.encoder(golden.given("wav")), **AUDIO)
        mean, std = model.posterior(audio)
    golden.expect("stdev", got=_swap(std), **AUDIO)
    latents = model.encode(audio, noise=_swap(golden.given("noise")))
    golden.expect("latent", got=_swap(latents), **AUDIO)
    golden.expect("kl", got=kl_divergence(mean, std), **LOSS)
    # From the recorded latents: the decoder makes ten times as much of the encoder's rounding, whoever computes it.
    golden.expect("decoded", got=_swap(model.decode(_swap(golden.look("latent")))), **AUDIO)
    exact = model.encode(audio, noise=_swap(golden.look("noise")), chunked=True, chunk=7)
    golden.expect("latent", got=_swap(exact), name="latent in exact pieces", **AUDIO)


def _check_pieces(golden: Golden, model: VAE) -> None:
    for key in list(golden.content):
        if found := re.fullmatch(r"decode_chunked_(\d+)_(\d+)", key):
            chunk, overlap = int(found[1]), int(found[2])
            if golden.has(f"chunk_{chunk}_{overlap}"):
                golden.expect(f"chunk_{chunk}_{overlap}", got=torch.tensor([chunk, overlap]))
            latents = _swap(_latents_of(golden, key, model.hop_lengths[0]))
            made = model.decode(latents, chunked=True, chunk=chunk, overlap=overlap)
            golden.expect(key, got=_swap(made), **AUDIO)
        elif found := re.fullmatch(r"decode_full_(\w+)", key):
            latents = _swap(golden.given(found[1]))
            golden.expect(key, got=_swap(model.decode(latents)), **AUDIO)
            for chunk in (1, 13, 128):
                exact = model.decode(latents, chunked=True, chunk=chunk)
                golden.expect(key, got=_swap(exact), name=f"{key} in exact pieces of {chunk}", **AUDIO)
        elif found := re.fullmatch(r"encode_mean_full_(\w+)", key):
            audio = _swap(golden.given(found[1]))
            golden.expect(key, got=_swap(model.encode(audio)), **AUDIO)
            for chunk in (1, 13, 128):
                exact = model.encode(audio, chunked=True, chunk=chunk)
                golden.expect(key, got=_swap(exact), name=f"{key} in exact pieces of {chunk}", **AUDIO)
        elif found := re.fullmatch(r"encode_mean_chunked_(\d+)_(\d+)_(\w+)", key):
            audio = _swap(golden.given(found[3]))
            latents = model.encode(audio, chunked=True, chunk=int(found[1]), overlap=int(found[2]))
            golden.expect(key, got=_swap(latents), **AUDIO)


def _latents_of(golden: Golden, key: str, hop: int) -> Tensor:
    """The latents ``z<T>`` of which ``key`` holds the audio, ``hop`` samples a latent."""
    frames = golden.look(key).shape[-1] // hop
    names = [name for name in golden.content if re.fullmatch(r"z\d+", name)]
    fitting = [name for name in names if golden.look(name).shape[-1] == frames]
    assert len(fitting) == 1, f"{key}: of which of {names} is it made?"
    return golden.given(fitting[0])


def _check_prompts(golden: Golden, model: VAE) -> None:
    length = golden.given("odd_len")
    whole = next(name for name in golden.content if re.fullmatch(r"wav\d+", name))
    golden.expect("encode_mean_odd_len", got=_swap(model.encode(_swap(golden.look(whole)[..., :length]))), **AUDIO)
    mono, noise = golden.given("front_mono"), _swap(golden.given("front_noise"))
    golden.expect("front_latent", got=_swap(model.encode_prompt(mono, noise=noise)), **AUDIO)
    generator = torch.Generator().manual_seed(0)
    short = model.encode_prompt(mono[:, :2047], generator=generator)
    golden.expect("front_short_shape", got=torch.tensor(_swap(short).shape))


def check_vae(golden: Golden) -> None:
    """Everything in a ``songbloom_vae*`` file."""
    config = config_from_published(json.loads(golden.given("config")))
    state = golden.given("state_dict")
    model = VAE(config).eval()
    model.load_state_dict(from_published(state), strict=True)
    back = to_published(model.state_dict())
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state), "names"
    _check_posterior(golden, model)
    _check_pieces(golden, model)
    _check_prompts(golden, model)


CHECKS = {"songbloom_vae": check_vae}
