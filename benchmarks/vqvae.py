"""How fast a VQ-VAE encodes, decodes and trains: ``python benchmarks/vqvae.py [--hps=small_vqvae] [--key=value …]``.

Prints one JSON object: what the machine is and what its matrix products and its memory reach in this same run, then
seconds, audio-seconds a second and shares of those limits, for the fast paths (``fast``) and for the same arithmetic
through PyTorch's own convolutions and STFTs (``plain``). Any hyperparameter may be given; without any it is
``small_vqvae`` on one piece of 262144 samples.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import sys
from collections.abc import Callable, Sequence
from typing import Any

import machine
import torch
from torch import Tensor

from hparams import KNOBS, setup_hparams
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.training.optim import Adam
from songbloom.vqvae import plain
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

DEFAULTS = {"sample_length": 262144, "bs": 1}
QUICK = {"sample_length": 4096, "width": 4, "depth": 1, "l_bins": 16, "emb_width": 4}
COMMAND = group(
    "benchmark",
    "what to measure",
    hps=Knob("small_vqvae", "names of sets of hyperparameters"),
    quick=Knob(False, "tiny sizes, to see that it runs; the figures mean nothing"),
    repeats=Knob(5, "measurements of each figure; the median and the best are told"),
)


def build(hps: dict[str, Any]) -> tuple[VQVAE, Tensor]:
    """A model with codebooks of its own rows, and audio to give it: noise that gets quieter."""
    generator = torch.Generator().manual_seed(0)
    model = VQVAE(VQVAEConfig.from_hps(hps), generator)
    shape = (hps["bs"], model.sample_length, 1)
    audio = torch.randn(shape, generator=generator) * torch.linspace(0.3, 0.01, shape[1])[:, None]
    model.train()(audio)
    return model, audio


def training_step(model: VQVAE, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimiser step: forward, backward, Adam."""
    adam = Adam(model.parameters(), lr=1e-5)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def activations(model: VQVAE, audio: Tensor) -> list[float]:
    """Bytes a level's encoder has to write at least: what each of its convolutions puts out, once."""
    written = []
    for encoder in model.encoders:
        rate, total = 1.0, 0.0
        for part in encoder.modules():
            if isinstance(part, torch.nn.Conv1d):
                rate /= part.stride[0]
                total += part.out_channels * rate
        written.append(4 * total * audio.numel())
    return written


def compare(
    fast: Callable[[], object],
    slow: Callable[[], object],
    told: dict[str, Any],
    operations: float,
    moved: float,
    rates: dict[str, float],
) -> dict[str, Any]:
    """Both ways, in turns, so that a busy moment of the machine touches both."""
    taken: dict[str, list[float]] = {"fast": [], "plain": []}
    for repeat in range(told["repeats"] + 1):
        for name, function in (("fast", fast), ("plain", slow)):
            (one,) = machine.seconds(function, 1, warmup=0)
            if repeat:  # the first round warms up
                taken[name].append(one)
    result: dict[str, Any] = {}
    for name, times in taken.items():
        best = min(times)
        result[name] = {
            **machine.summary(times),
            "audio_seconds_per_second": round(rates["audio_seconds"] / best, 2),
            "share_of_gemm": round(operations / best / rates["gemm"], 3),
            "share_of_read_rate": round(moved / best / rates["read"], 3),
        }
    ratio = min(taken["plain"]) / min(taken["fast"])
    return {**result, "fast_over_plain": round(ratio, 3)}


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """All figures, as one plain dictionary."""
    options = Knobs(COMMAND, *KNOBS.groups).parse(arguments)
    told = {key: options.pop(key, knob.default) for key, knob in COMMAND.knobs.items()}
    if told["quick"]:
        told |= {"repeats": 2}
    hps = setup_hparams(told["hps"], {**DEFAULTS, **(QUICK if told["quick"] else {}), **options})
    result = machine.facts()
    model, audio = build(hps)
    cost, samples = model.cost(), audio.numel()
    rates = {
        "gemm": machine.gemm_rate(torch.float32, 256 if told["quick"] else 2048),
        "read": machine.read_rate(8 if told["quick"] else 256),
        "audio_seconds": samples / model.sample_rate,
    }
    result["limits"] = {
        "gemm_gflops": {"fp32": round(rates["gemm"] / 1e9, 1)},
        "read_gigabytes_per_second": round(rates["read"] / 1e9, 2),
    }
    result["config"] = {**vars(model.config), "hps": told["hps"], "bs": hps["bs"], "quick": told["quick"]}
    result["cost"] = cost
    encode, written = sum(cost["encode_operations"]) * samples, activations(model, audio)
    decode = cost["decode_operations"]
    bandwidth = model.bandwidth
    model.eval()
    codes = model.encode(audio)
    result["encode"] = compare(
        lambda: model.encode(audio), lambda: plain.encode(model, audio), told, encode, sum(written), rates
    )
    result["decode_level_0"] = compare(
        lambda: model.decode(codes[:1], end_level=1),
        lambda: plain.decode(model, codes[0], 0),
        told,
        decode[0] * samples,
        written[0],
        rates,
    )
    model.train()
    result["training_step"] = compare(
        training_step(model, lambda: model(audio)[1]),
        training_step(model, lambda: plain.loss(model, audio, bandwidth)[0]),
        told,
        3 * (encode + sum(decode) * samples),  # a backward pass takes two products for each of the forward pass
        6 * sum(written),
        rates,
    )
    result["load_average_after"] = machine.facts()["machine"]["load_average"]
    return result


if __name__ == "__main__":
    sys.exit(machine.run(measure))
