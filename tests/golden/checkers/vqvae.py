"""``jukebox_vqvae_*``: a whole VQ-VAE, its codes, audio, losses, gradients and first training steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from songbloom.published.jukebox.vqvae import from_published, to_published
from songbloom.training.optim import Adam
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig
from tests.golden.checkers.bottleneck import RecordedRandomness
from tests.golden.report import Golden

AUDIO = 1e-4  # of the standard deviation
LOSS, SPECTRAL = 1e-5, 1e-4
GRADIENT = {"rel": 1e-4, "abs": 1e-6}
TRACE = 5e-4
PARAMETER_STEP = 0.05  # of the learning rate: Adam makes a whole step even of a gradient that is all but rounding


def _tolerance(metric: str) -> float:
    """The loss's own tolerance is a spectral term's, since such terms are most of it."""
    return SPECTRAL if "spec" in metric or metric == "loss" else LOSS


def _build(golden: Golden, config: VQVAEConfig) -> VQVAE:
    model = VQVAE(config)
    model.load_state_dict(from_published(golden.given("state_dict")), strict=True)
    return model


def _expect_metrics(golden: Golden, *path: Any, got: dict[str, Tensor], rel: float | None = None, name: str) -> None:
    missing = {str(key) for key in golden.look(*path)} ^ set(got)
    assert not missing, f"{name}: metrics {sorted(missing)} on one side only"
    for metric in golden.look(*path):
        tolerance = rel or _tolerance(metric)
        golden.expect(*path, metric, got=got[metric].float(), rel=tolerance, abs=1e-7, name=f"{name}.{metric}")


def _check_codes(golden: Golden, model: VQVAE, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        encoded = [encoder(x.transpose(1, 2)) for encoder in model.encoders]
    for level, output in enumerate(encoded):
        scale = AUDIO * float(golden.look("enc_out", level).std())
        golden.expect("enc_out", level, got=output, abs=scale, name="enc_out")
    codes = model.encode(x)
    golden.expect("zs", got=codes)
    for level, output in enumerate(encoded):  # the margins tell how sure each code is
        book = model.bottleneck.codebook(level).codebook
        distances = torch.cdist(output.transpose(1, 2).double(), book.double()).square()
        nearest = distances.topk(2, dim=-1, largest=False).values
        margin = nearest[..., 1] - nearest[..., 0]
        golden.expect("zs_margin", level, got=margin.float(), abs=1e-4 * float(nearest.mean()), name="zs_margin")
        golden.expect("zs_min_margin", level, got=float(golden.look("zs_margin", level).min()), rel=1e-6)
    golden.expect("encode_slice_1_end", got=model.encode(x, start_level=1))
    golden.expect("encode_bs_chunks2", got=model.encode(x, bs_chunks=2))
    return codes


def _check_decoding(golden: Golden, model: VQVAE, codes: list[Tensor]) -> None:
    for key, audio in golden.look("decode_from_level").items():
        level = int(key)
        got = model.decode(codes[level:], start_level=level)
        golden.expect("decode_from_level", key, got=got, abs=AUDIO * float(audio.std()), name="decode_from_level")
    got = model.decode(codes[:1], start_level=0, end_level=1, bs_chunks=2)
    golden.expect("decode_level0_only", got=got, abs=AUDIO * float(golden.look("decode_level0_only").std()))


def _statistics(model: VQVAE, level: int) -> dict[str, Tensor]:
    book = model.bottleneck.codebook(level)
    return {"k": book.codebook.clone(), "k_sum": book.k_sum.clone(), "k_elem": book.k_elem.clone()}


def _trainable(golden: Golden, config: VQVAEConfig, x: Tensor, draws: list[Tensor]) -> VQVAE:
    """A model in training mode, its codebooks restored for this batch, that draws what was recorded."""
    model = _build(golden, config).train()
    model.restore_codebooks(x.shape[0], x.shape[1])
    model.bottleneck.randomness = RecordedRandomness([("perm", draw) for draw in draws])
    return model


def _published_gradients(model: VQVAE) -> dict[str, Tensor]:
    return to_published({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def _check_training_forwards(golden: Golden, config: VQVAEConfig, x: Tensor, bandwidth: dict[str, float]) -> None:
    draws = golden.given("bottleneck_perms")
    for loss_fn in golden.look("train_forward"):
        path = ("train_forward", loss_fn)
        model = _trainable(golden, config, x, draws)
        for level in range(model.levels):
            for name, got in _statistics(model, level).items():
                at = _level_path(golden, "bottleneck_before", level=level)
                golden.expect(*at, name, got=got, rel=1e-6, abs=1e-7, name=f"bottleneck_before.{name}")
        output, loss, metrics = model(x, loss_fn=loss_fn, bandwidth=bandwidth)
        loss.backward()
        for level in range(model.levels):
            for name, got in _statistics(model, level).items():
                at = _level_path(golden, "bottleneck_after", level=level)
                golden.expect(*at, name, got=got, rel=1e-5, abs=1e-5, name=f"bottleneck_after.{name}")
        golden.expect(*path, "loss", got=loss, rel=SPECTRAL)
        _expect_metrics(golden, *path, "metrics", got=metrics, name="train_forward.metrics")
        if (want := golden.look(*path).get("x_out")) is not None:
            golden.expect(*path, "x_out", got=output, abs=AUDIO * float(want.std()))
        elif golden.has(*path, "x_out"):
            golden.given(*path, "x_out")
        gradients = _published_gradients(model)
        norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
        golden.expect(*path, "grad_norms", got=norms, **GRADIENT)
        if golden.has(*path, "grads"):
            # Relative to the largest value: single ones cancel, and any two float32 computations differ there.
            for name in golden.look(*path, "grads"):
                want = golden.look(*path, "grads", name)
                golden.expect(
                    *path, "grads", name, got=gradients[name], abs=1e-6 + 1e-4 * float(want.abs().max()), name="grads"
                )


def _level_path(golden: Golden, *path: str, level: int) -> tuple[Any, ...]:
    """The path of a level, whose key may be a number or its digits."""
    return (*path, level) if golden.has(*path, level) else (*path, str(level))


def _check_relative(golden: Golden, config: VQVAEConfig, x: Tensor, bandwidth: dict[str, float]) -> None:
    weight = golden.given("train_forward_relative_spec", "spectral")
    settings = {**vars(config), "spectral": weight, "use_nonrelative_specloss": False}
    model = _trainable(golden, VQVAEConfig(**settings), x, golden.given("bottleneck_perms"))
    _, loss, metrics = model(x, loss_fn="l1", bandwidth=bandwidth)
    golden.expect("train_forward_relative_spec", "loss", got=loss, rel=SPECTRAL)
    _expect_metrics(golden, "train_forward_relative_spec", "metrics", got=metrics, name="relative_spec.metrics")


def _check_trace(golden: Golden, config: VQVAEConfig, x: Tensor, bandwidth: dict[str, float]) -> None:
    lr, clip = golden.given("train_trace", "lr"), golden.given("train_trace", "clip")
    loss_fn = golden.given("train_trace", "loss_fn")
    model = _trainable(golden, config, x, golden.given("train_trace", "perms"))
    optimiser = Adam(model.parameters(), lr=lr)
    for step in range(len(golden.look("train_trace", "steps"))):
        path = ("train_trace", "steps", step)
        _, loss, metrics = model(x, loss_fn=loss_fn, bandwidth=bandwidth)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= max(1.0, float(norm) / clip)
        optimiser.step()
        optimiser.zero_grad()
        golden.expect(*path, "loss", got=loss.item(), rel=TRACE, name="train_trace.loss")
        golden.expect(*path, "grad_norm", got=float(norm), rel=TRACE, name="train_trace.grad_norm")
        _expect_metrics(golden, *path, "metrics", got=metrics, rel=TRACE, name="train_trace.metrics")
    final = to_published(dict(model.named_parameters()))
    norms = {name: p.norm().item() for name, p in final.items()}
    golden.expect("train_trace", "final_param_norms", got=norms, rel=TRACE)
    for name in golden.look("train_trace", "final_params_decoder_0"):
        at = ("train_trace", "final_params_decoder_0", name)
        golden.expect(
            *at, got=final[name], rel=TRACE, abs=PARAMETER_STEP * lr, name="train_trace.final_params_decoder_0"
        )
    for level in range(model.levels):
        at = _level_path(golden, "train_trace", "final_k", level=level)
        book = model.bottleneck.codebook(level).codebook
        golden.expect(*at, got=book, rel=1e-4, abs=1e-5, name="train_trace.final_k")


def check_vqvae(golden: Golden) -> None:
    """Everything in a ``jukebox_vqvae_*`` file."""
    config = VQVAEConfig.from_hps(golden.given("hps"))
    x, bandwidth = golden.given("x"), golden.given("bandwidth")
    model = _build(golden, config).eval()
    golden.expect("downsamples", got=list(model.downsamples))
    golden.expect("hop_lengths", got=list(model.hop_lengths))
    golden.expect("z_shapes", got=[list(shape) for shape in model.z_shapes])
    codes = _check_codes(golden, model, x)
    _check_decoding(golden, model, codes)
    output, loss, metrics = model(x, loss_fn="l2", bandwidth=bandwidth)
    want = golden.look("eval_forward_l2", "x_out")
    golden.expect("eval_forward_l2", "x_out", got=output, abs=AUDIO * float(want.std()))
    golden.expect("eval_forward_l2", "loss", got=loss, rel=SPECTRAL)
    _expect_metrics(golden, "eval_forward_l2", "metrics", got=metrics, name="eval_forward_l2.metrics")
    _check_training_forwards(golden, config, x, bandwidth)
    _check_relative(golden, config, x, bandwidth)
    _check_trace(golden, config, x, bandwidth)


CHECKS = {"jukebox_vqvae": check_vqvae}
