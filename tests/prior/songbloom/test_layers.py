"""Layers that compute in bfloat16: as near to float64 in one pass as in torch's many, and the same computed again."""

import copy

import pytest
import torch

from songbloom.prior.songbloom.layers import LayerNorm, RMSNorm
from songbloom.transformer import fused_rows, halves
from tests.prior.songbloom.tiny import CONFIG, tiny_prior

needs_halves = pytest.mark.skipif(not halves.available(), reason="this processor does not multiply halves")


def vectors(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, CONFIG.prior_width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def gradients(model: torch.nn.Module, function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a function gives of inputs, and the gradients of these and of the model's parameters."""
    model.zero_grad()
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    y = function(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype))
    own = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [y.detach(), *(x.grad for x in inputs), *own]


def errors(found: list[torch.Tensor], right: list[torch.Tensor]) -> list[float]:
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, right, strict=True)]


@needs_halves
@pytest.mark.parametrize("time_conditioning", ["prepend", "adaln"])
@pytest.mark.parametrize("part", ["language_model", "diffusion"])
def test_fused_rows_are_as_near_to_float64_as_torchs(part, time_conditioning, monkeypatch) -> None:
    monkeypatch.setattr(fused_rows, "FEWEST", 1)
    prior = tiny_prior(time_conditioning=time_conditioning).train()
    model, exact = getattr(prior, part), copy.deepcopy(getattr(prior, part)).double()

    def whole(model: torch.nn.Module):
        if part == "language_model":
            return model
        return lambda x, known, time: model.velocity(x[..., : CONFIG.latent_width], time, known).to(x.dtype)

    inputs = [vectors(2, 40, seed=0)]
    if part == "diffusion":
        inputs = [
            vectors(4, CONFIG.patch_size, seed=1),
            vectors(4, 1 + 2 * CONFIG.patch_size, seed=2),
            vectors(4, seed=3),
        ]
    right = gradients(exact, whole(exact), *(x.double() for x in inputs))
    calls = []
    for name in ("_NormOfSum", "_SwiGLU", "_TurnedHeads"):
        function = getattr(fused_rows, name)
        monkeypatch.setattr(function, "apply", lambda *x, n=name, real=function.apply: calls.append(n) or real(*x))
    fused = errors(gradients(model, whole(model), *inputs), right)
    assert set(calls) == {"_NormOfSum", "_SwiGLU", "_TurnedHeads"}
    monkeypatch.setattr(fused_rows, "FEWEST", 2**60)
    calls.clear()
    plain = errors(gradients(model, whole(model), *inputs), right)
    assert not calls and max(fused) < 2e-2
    assert sum(fused) < 1.1 * sum(plain)  # of sizes so small most comes from the products


@needs_halves
@pytest.mark.parametrize("part", ["language_model", "diffusion"])
def test_layers_computed_again_are_the_same_bit_by_bit(part, monkeypatch) -> None:
    monkeypatch.setattr(fused_rows, "FEWEST", 1)
    latents = torch.randn(4, CONFIG.patch_size, CONFIG.latent_width, generator=torch.Generator().manual_seed(4))
    time, known, found = vectors(4, seed=5), vectors(4, 1 + 2 * CONFIG.patch_size, seed=6), []
    for c_res in (0, 2):
        prior = tiny_prior(c_res=c_res).train()
        if part == "language_model":
            found.append(gradients(prior.language_model, prior.language_model, vectors(2, 40, seed=7)))
        else:
            velocity = prior.diffusion.velocity
            found.append(gradients(prior.diffusion, lambda y, v=velocity: v(latents, time, y), known))
    assert all(torch.equal(one, again) for one, again in zip(*found, strict=True))


@pytest.mark.parametrize("norm", [RMSNorm(24), LayerNorm(24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_of_a_sum_is_the_sum_and_its_norm(norm, dtype) -> None:
    x, branch = (torch.randn(5, 24, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (8, 9))
    total, normed = norm.of_sum(x, branch)
    assert torch.equal(total, x + branch) and torch.equal(normed, norm(x + branch))
    alone, normed = norm.of_sum(x)
    assert alone is x and torch.equal(normed, norm(x))
