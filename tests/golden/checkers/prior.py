"""Whole priors, with and without labels and lyrics (``jukebox_prior_…``, ``jukebox_upsampler_…``)."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from operator import mul
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from songbloom.prior.prior import Prior, PriorConfig, dtype_of
from songbloom.published.jukebox.prior import from_published, is_published, to_published
from songbloom.training.ema import WeightAverage
from songbloom.training.optim import Adam, clipped_scale, gradient_norm
from songbloom.training.schedule import Schedule
from songbloom.training.tasks import halve_matrices
from tests.golden.report import Golden

LOSS = {"rel": 1e-5}
OUTPUT = {"abs": 2e-5, "rel": 1e-5}
STEPWISE = {"abs": 5e-5, "rel": 1e-5}
GRADIENT = {"rel": 1e-4, "abs": 1e-6}
TRACE = {"rel": 1e-4}
HALF_LOSS = {"rel": 5e-3}
HALF_OUTPUT = {"abs": 2e-2}


def codec_of(hps: dict[str, Any], z_shapes: list[list[int]]) -> SimpleNamespace:
    """What a prior reads of the codec that these hyperparameters describe."""
    downsamples = [stride**down for stride, down in zip(hps["strides_t"], hps["downs_t"], strict=True)]
    return SimpleNamespace(
        levels=hps["levels"],
        l_bins=hps["l_bins"],
        downsamples=downsamples,
        hop_lengths=list(accumulate(downsamples, mul)),
        z_shapes=[(3 * shape[0],) for shape in z_shapes],  # of another sample length: the prior must rescale them
    )


def published(model: Prior, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our parameter names → by published names, a tied output layer left out."""
    container = "blocks" if model.config.cond_c_res == 1 else "model"
    named = to_published(tensors, container=container)
    if not model.config.merged_decoder:
        named.pop("prior.x_out.weight", None)
    return named


def norms(model: Prior, tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(tensor.norm()) for name, tensor in published(model, tensors).items()}


def gradients(model: Prior) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Case:
    """One file: the model with its drawn weights, and its inputs."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        hps, state = golden.given("hps"), golden.given("state_dict")
        # The files hold what the published sampler draws, which is a lyric token's id now and then.
        config = PriorConfig.from_hps({**hps, "draw_lyric_ids": True})
        self.model = Prior(config, codec_of(hps, golden.look("z_shapes"))).eval()
        if hps.get("fp16_params"):
            halve_matrices(self.model)
        assert is_published(state)
        assert not is_published(self.model.state_dict())
        self.model.load_state_dict(from_published(state, tied=not hps["merged_decoder"]))
        self.check_round_trip(state)
        self.codes = golden.given("z")
        upper = golden.given("z_conds")
        self.upper = upper[0] if upper else None
        self.labels = golden.given("y") if golden.has("y") else None

    def check_round_trip(self, state: dict[str, Tensor]) -> None:
        container = "blocks" if self.model.config.cond_c_res == 1 else "model"
        back = to_published(self.model.state_dict(), container=container)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)

    def check_shape(self) -> None:
        model, expect = self.model, self.golden.expect
        expect("n_ctx", got=model.n_ctx)
        expect("raw_to_tokens", got=model.hop_length)
        expect("sample_length", got=model.sample_length)
        expect("cond_downsample", got=model.cond_downsample)
        expect("z_shapes", got=[list(shape) for shape in model.z_shapes])
        expect("attn_funcs", got=[int(function) for function in model.autoregressive.transformer.funcs])
        expect("prime_loss_dims", got=model.n_tokens)
        expect("gen_loss_dims", got=model.n_ctx)
        expect("total_loss_dims", got=model.n_tokens + model.n_ctx)

    @torch.no_grad()
    def check_conditions(self) -> None:
        model, golden, batch = self.model, self.golden, len(self.codes)
        given = model.conditions(self.upper, self.labels, batch=batch)
        arguments = model.inputs(None, given)[1]
        lyrics = given.lyrics
        if lyrics is None and self.labels is not None:
            lyrics = torch.zeros(batch, 0, dtype=torch.int64)
        found = {"x_cond": given.x_cond, "y_cond": given.y_cond, "encoder_kv": arguments["encoder_kv"]}
        for name, value in found.items():
            if golden.has(name):
                golden.expect(name, got=value, **OUTPUT)
        if golden.has("prime"):
            golden.expect("prime", got=lyrics)

    def all_logits(self, precision: str) -> Tensor:
        """Logits of the whole sequence over the whole vocabulary, the lyrics' where they are a part of it."""
        model, dtype = self.model, dtype_of(precision)
        given = model.conditions(self.upper, self.labels, batch=len(self.codes))
        if model.config.copy_input and model.n_tokens:
            given = replace(given, lyrics=self.codes[:, : model.n_tokens])
        tokens, arguments = model.inputs(self.codes, given, dtype=dtype)
        logits = model.autoregressive.logits(tokens, **arguments, dtype=dtype)
        music = model.logits(self.codes, self.upper, self.labels, precision=precision)
        assert torch.equal(music, logits[:, -model.n_ctx :, -model.l_bins :])
        return logits

    @torch.no_grad()
    def check_eval(self) -> None:
        expect = self.golden.expect
        for section, precision, loss_tolerance, tolerance in (
            ("eval", "fp32", LOSS, OUTPUT),
            ("eval_fp16", "fp16", HALF_LOSS, HALF_OUTPUT),
        ):
            loss, metrics = self.model(self.codes, self.upper, self.labels, precision=precision)
            for name, value in {"loss": loss, **metrics}.items():
                expect(section, name, got=value, **loss_tolerance)
            if self.golden.has(section, "preds"):
                expect(section, "preds", got=self.all_logits(precision), **tolerance)

    def check_attention(self) -> None:
        if not self.golden.has("attn_weights"):
            return
        layer = self.golden.given("attn_weights", "layer")
        wanted = [(layer, head) for head in range(self.model.config.heads)]
        assert set(wanted) <= set(self.model.lyric_heads())
        weights = self.model.lyric_attention(self.codes, self.labels, self.upper, wanted=wanted)
        self.golden.expect("attn_weights", "w", got=weights.transpose(0, 1), **OUTPUT)

    def check_sampling(self) -> None:
        for fast in (True, False):
            self.check_samples(fast)

    def check_samples(self, fast: bool) -> None:
        golden, codes = self.golden, self.codes
        golden.given("sample", "min_margin")
        primed = golden.given("sample", "primed_len")

        def sample(prompt: Tensor | None, **settings: Any) -> Tensor:
            settings = {"temperature": 0.0, **settings}
            return self.model.sample(
                len(codes), prompt=prompt, upper_codes=self.upper, labels=self.labels, fast=fast, **settings
            )

        preds = torch.zeros(*codes.shape, self.model.l_bins)
        prompt = codes[:, :primed]
        results = {
            "ancestral": lambda: sample(None, preds=preds),
            "ancestral_empty_z": lambda: sample(codes[:, :0]),
            "primed": lambda: sample(prompt),
            "primed_chunk3": lambda: sample(prompt, chunk_size=3),
            "primed_partial": lambda: sample(prompt, chunk_size=4, sample_tokens=primed + 5),
            # The likeliest code stays the likeliest whatever the temperature and the filter, so a draw from one code
            # left over has to be it.
            "primed_topk_temp": lambda: sample(prompt, top_k=1, temperature=0.7),
        }
        path = "packed" if fast else "plain"
        for name, result in results.items():
            if golden.has("sample", name):
                golden.expect("sample", name, got=result(), name=f"sample.{name} ({path})")
        if golden.has("sample", "inner_preds"):
            golden.expect("sample", "inner_preds", got=preds, name=f"sample.inner_preds ({path})", **STEPWISE)

    def check_training(self) -> None:
        golden, model = self.golden, self.model.train()
        model.zero_grad(set_to_none=True)
        loss, metrics = model(self.codes, self.upper, self.labels)
        loss.backward()
        for name, value in {"loss": loss, **metrics}.items():
            golden.expect("train", name, got=value, **LOSS)
        found = gradients(model)
        golden.expect("train", "grad_norms", got=norms(model, found), **GRADIENT)
        missing = set(published(model, {name: p for name, p in model.named_parameters() if name not in found}))
        listed = golden.look("train", "no_grad_params")  # in the order of their modules
        in_order = [name for name in listed if name in missing] + sorted(missing.difference(listed))
        golden.expect("train", "no_grad_params", got=in_order)
        named = published(model, found)
        golden.expect("train", "grads", got={name: named[name] for name in golden.look("train", "grads")}, **GRADIENT)

    def check_trace(self) -> None:
        """Three optimiser steps on one batch."""
        golden, model = self.golden, self.model.train()
        lr, clip = golden.given("train_trace", "lr"), golden.given("train_trace", "clip")
        decay, warmup = golden.given("train_trace", "weight_decay"), golden.given("train_trace", "lr_warmup")
        adam = Adam(model.parameters(), lr=lr, weight_decay=decay)
        average = WeightAverage(model.parameters(), golden.given("train_trace", "ema_mu"))
        linear = {"lr_use_linear_decay": False, "lr_gamma": 1.0, "lr_decay": 1e10, "lr_scale": 1.0}
        schedule = Schedule({"lr": lr, "lr_warmup": warmup, "lr_use_cosine_decay": False, **linear})
        steps = []
        for _ in golden.look("train_trace", "steps"):
            model.zero_grad(set_to_none=True)
            loss, _ = model(self.codes, self.upper, self.labels)
            loss.backward()
            norm = float(gradient_norm(model.parameters()))
            adam.param_groups[0]["lr"] = schedule.lr
            steps.append({"loss": loss.item(), "grad_norm": norm, "lr": schedule.lr})
            adam.step(scale=clipped_scale(norm, clip))
            schedule.step()
            average.step()
        golden.expect("train_trace", "steps", got=steps, **TRACE)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        golden.expect("train_trace", "final_param_norms", got=norms(model, weights), **TRACE)
        averages = dict(zip(weights, average.shadow, strict=True))
        golden.expect("train_trace", "final_ema_param_norms", got=norms(model, averages), **TRACE)


def check(golden: Golden) -> None:
    case = Case(golden)
    case.check_shape()
    case.check_conditions()
    case.check_eval()
    case.check_attention()
    case.check_sampling()
    case.check_training()
    case.check_trace()


CHECKS = {"jukebox_prior": check, "jukebox_upsampler": check}
