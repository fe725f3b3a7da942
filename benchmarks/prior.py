"""How fast a prior trains and samples: ``python benchmarks/prior.py [--hps=small_vqvae,small_prior] [--key=value …]``.

Prints one JSON object: what the machine is and what its matrix products and its memory reach in this same run, then
training steps in float32 and bfloat16, and sampling for each of ``--n_samples_list``, through the prepared weights of
decoding (``fast``) and through the plain modules (``plain``). Any hyperparameter may be given. Without any it is
``small_prior`` at depth 8 over the codes of ``small_vqvae``.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import machine
import torch

from hparams import KNOBS, setup_hparams
from songbloom.allocator import keep_memory
from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.prior.prior import Prior, PriorConfig, dtype_of
from songbloom.training.optim import Adam
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

QUICK = {"n_ctx": 64, "prior_width": 32, "prior_depth": 2, "blocks": 8, "l_bins": 32, "cond_width": 8, "cond_depth": 2}
COMMAND = group(
    "benchmark",
    "what to measure",
    hps=Knob("small_vqvae,small_prior", "names of sets of hyperparameters, a codec's and a prior's"),
    quick=Knob(False, "tiny sizes, to see that it runs; the figures mean nothing"),
    repeats=Knob(5, "measurements of each figure; the median and the best are told"),
    sample_from=Knob(4000, "position in the context from which sampling is measured"),
    tokens=Knob(100, "tokens drawn in a measurement"),
    n_samples_list=Knob((1, 4), "numbers of items sampled together"),
    precisions=Knob("fp32,bf16", "precisions measured, commas between them"),
)


def configuration(options: dict[str, Any], names: str, quick: bool) -> dict[str, Any]:
    """The merged hyperparameters, without labels unless the options say otherwise."""
    defaults: dict[str, Any] = {"labels": False}
    if names == COMMAND.knobs["hps"].default:
        defaults |= {"level": 1, "prior_depth": 8}
    return setup_hparams(names, {**defaults, **(QUICK if quick else {}), **options})


def build(hps: dict[str, Any]) -> Prior:
    """The prior, with a codec of which only the geometry is built."""
    length = hps["n_ctx"] * torch.tensor([s**d for s, d in zip(hps["strides_t"], hps["downs_t"], strict=True)]).prod()
    with torch.device("meta"):
        codec = VQVAE(VQVAEConfig.from_hps({**hps, "sample_length": int(length)}))
    torch.manual_seed(0)
    return Prior(PriorConfig.from_hps(hps), codec)


def measure_training(prior: Prior, hps: dict[str, Any], precision: str, repeats: int, rate: float) -> dict[str, Any]:
    """One optimiser step on ``bs`` windows: forward and backward, then Adam."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(prior.l_bins, (hps["bs"], prior.n_ctx), generator=generator)
    upper = None
    if prior.cond_downsample:
        shape = (hps["bs"], prior.n_ctx // prior.cond_downsample)
        upper = torch.randint(prior.l_bins, shape, generator=generator)
    prior.train()
    adam = Adam(prior.parameters(), lr=1e-5)
    times: dict[str, list[float]] = {"forward_and_backward": [], "optimizer": []}

    def step() -> None:
        start = time.perf_counter()
        loss, _ = prior(codes, upper, precision=precision)
        loss.backward()
        middle = time.perf_counter()
        adam.step()
        adam.zero_grad(set_to_none=True)
        times["forward_and_backward"].append(middle - start)
        times["optimizer"].append(time.perf_counter() - middle)

    taken = machine.seconds(step, repeats)
    median = statistics.median(taken)
    operations = 3 * prior.cost()["operations_per_token"] * codes.numel()
    return {
        **machine.summary(taken),
        "tokens_per_second": round(codes.numel() / median, 1),
        "model_operations": operations,
        "share_of_gemm_peak": round(operations / median / rate, 4),
        **{f"{name}_seconds": round(statistics.median(values[1:]), 4) for name, values in times.items()},
    }


def measure_sampling(
    prior: Prior, n_samples: int, precision: str, fast: bool, told: dict[str, Any], bandwidth: float
) -> dict[str, Any]:
    """Tokens a second, draws included, of ``tokens`` steps that follow ``sample_from`` positions."""
    tokens, repeats = told["tokens"], told["repeats"]
    first = min(told["sample_from"], prior.n_ctx - tokens * (repeats + 1))
    if first < 0:
        raise UserError(f"tokens={tokens}: (repeats + 1) times as many don't fit n_ctx={prior.n_ctx}; give fewer")
    prompt = torch.randint(prior.l_bins, (n_samples, first), generator=torch.Generator().manual_seed(0))
    x_cond = None
    if prior.cond_downsample:
        shape = (n_samples, prior.n_ctx // prior.cond_downsample)
        x_cond = prior.condition(torch.zeros(shape, dtype=torch.int64), batch=n_samples)
    prior.eval()
    steps = prior.autoregressive.sample_steps(
        n_samples, prompt=prompt, x_cond=x_cond, dtype=dtype_of(precision), fast=fast, chunk_size=2048
    )
    next(steps)
    taken = machine.seconds(lambda: [next(steps) for _ in range(tokens)], repeats)  # the first reads the prompt
    steps.close()
    median = statistics.median(taken)
    bytes_read = prior.cost(precision)["bytes_per_decoded_token"] * tokens / median
    return {
        **machine.summary(taken),
        "tokens_per_second": round(n_samples * tokens / median, 1),
        "megabytes_read_per_step": round(prior.cost(precision)["bytes_per_decoded_token"] / 1e6, 3),
        "share_of_read_bandwidth": round(bytes_read / bandwidth, 4),
    }


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """All figures, as one object."""
    keep_memory()  # as train.py does on a CPU
    knobs = Knobs(COMMAND, *KNOBS.groups)
    options = knobs.parse(arguments)
    told = {key: options.pop(key, knob.default) for key, knob in COMMAND.knobs.items()}
    told["precisions"] = Knobs.split_names(told["precisions"])
    if told["quick"]:
        told |= {"repeats": 2, "tokens": 4, "sample_from": 20}
    hps = configuration(options, told["hps"], told["quick"])
    result = machine.facts()
    prior = build(hps)
    size = 256 if told["quick"] else 2048
    rates = {name: machine.gemm_rate(dtype_of(name), size) for name in told["precisions"]}
    limits = {"gemm_gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()}}
    if "bf16" in rates and (faster := machine.halves_rate(size)):
        limits["gemm_gflops"]["bf16, as multiplied here"] = round(faster / 1e9, 1)
        rates["bf16"] = faster
    instructions = machine.instruction_rates(100_000 if told["quick"] else 10_000_000)
    limits["instruction_gflops"] = {name: round(rate / 1e9, 1) for name, rate in instructions.items()}
    bandwidth = machine.read_rate(8 if told["quick"] else 256)
    result["limits"] = {**limits, "read_gigabytes_per_second": round(bandwidth / 1e9, 2)}
    result["config"] = {**vars(prior.config), "hps": told["hps"], "bs": hps["bs"], "quick": told["quick"]}
    result["cost"] = prior.cost()
    result["train"] = {
        name: measure_training(prior, hps, name, told["repeats"], rates[name]) for name in told["precisions"]
    }
    result["sample"] = {
        f"{name}, n_samples {n}": compare(prior, n, name, told, bandwidth)
        for name in told["precisions"]
        for n in told["n_samples_list"]
    }
    if {"fp32", "bf16"} <= set(told["precisions"]):
        speed = {name: result["train"][name]["tokens_per_second"] for name in ("fp32", "bf16")}
        result["bf16_over_fp32_training"] = round(speed["bf16"] / speed["fp32"], 3)
    result["load_average_after"] = machine.facts()["machine"]["load_average"]
    return result


def compare(prior: Prior, n_samples: int, precision: str, told: dict[str, Any], bandwidth: float) -> dict[str, Any]:
    """The fast path, the plain one, and how many times faster the first is."""
    paths = {
        name: measure_sampling(prior, n_samples, precision, fast, told, bandwidth)
        for name, fast in (("fast", True), ("plain", False))
    }
    ratio = paths["fast"]["tokens_per_second"] / paths["plain"]["tokens_per_second"]
    return {**paths, "fast_over_plain": round(ratio, 3)}


if __name__ == "__main__":
    sys.exit(machine.run(measure))
