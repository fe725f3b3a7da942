"""How fast codes are drawn: ``python benchmarks/sampling.py [--quick] [--shapes=small_prior,…] [--key=value …]``.

Prints one JSON object: what the machine is, and for each shape, precision and number of items the tokens a second,
draws included, by the native step, by torch with prepared weights (``packed``), by the plain modules, and the bound:
the tokens a second at which weights and caches, read once a step, would take all of the memory's speed. That speed is
measured between the repeats, because on a shared machine it changes within seconds; shares are medians of each
repeat's own. The weights are random, and the caches hold random entries up to the position that is measured from.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import machine
import torch

from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.prior.autoregressive import AutoregressiveModel
from songbloom.prior.config import dtype_of
from songbloom.prior.draws import Noise, draw_with
from songbloom.prior.steppers import Given, NativeStepper, Prepared, Stepper, TorchStepper, head_of
from songbloom.transformer.blocks import TransformerConfig
from songbloom.transformer.cache import step_window
from songbloom.transformer.decoding import DecodingTransformer
from songbloom.transformer.native import stepper as native

COMMAND = group(
    "benchmark",
    "what to measure",
    quick=Knob(False, "tiny sizes, to see that it runs; the figures mean nothing"),
    shapes=Knob("small_prior,small_prior_48,upsampler", "shapes to measure, commas between them; see SHAPES"),
    precisions=Knob("fp32,bf16,int8", "precisions to measure; int8 keeps its caches in bf16"),
    paths=Knob("native,packed,plain", "paths to measure"),
    n_samples_list=Knob((1, 4, 16), "numbers of items sampled together"),
    depth=Knob(None, "layers, in place of each shape's own", kind="int", minimum=1),
    repeats=Knob(7, "measurements of each figure; the median and the best are told", minimum=1),
    seconds=Knob(0.4, "about how long a measurement takes"),
    sample_from=Knob(4000, "position in the context from which sampling is measured"),
)


@dataclass(frozen=True)
class Shape:
    """A prior's transformer, its vocabulary, and whether codes above condition it."""

    transformer: dict[str, Any]
    bins: int
    conditioned: bool = False
    remark: str = ""


_SMALL = {"width": 1024, "n_ctx": 8192, "heads": 1, "depth": 8, "attn_order": 2, "blocks": 64}
SHAPES = {
    "small_prior": Shape(_SMALL, 1024, remark="depth 8 of 48, as in the published comparison"),
    "small_prior_48": Shape({**_SMALL, "depth": 48}, 1024),
    "upsampler": Shape(
        {**_SMALL, "width": 1920, "depth": 8, "blocks": 128},
        2048,
        conditioned=True,
        remark="depth 8 of upsampler_level_0's and upsampler_level_1's 72",
    ),
}
QUICK = {"width": 64, "n_ctx": 256, "depth": 2, "blocks": 8}


def build(shape: Shape, told: dict[str, Any]) -> AutoregressiveModel:
    """The model with random weights."""
    settings = {**shape.transformer, **(QUICK if told["quick"] else {})}
    if told["depth"]:
        settings["depth"] = told["depth"]
    torch.manual_seed(0)
    return AutoregressiveModel(TransformerConfig(**settings), bins=shape.bins).eval()


def given_of(model: AutoregressiveModel, shape: Shape, n_samples: int, precision: str) -> Given:
    """What a stepper is told, as ``sample`` would tell it."""
    condition = torch.randn(n_samples, model.n_ctx, model.width) if shape.conditioned else None
    return Given(
        model.transformer,
        model.embedding.weight,
        model.positions,
        model.output_weight,
        n_samples,
        before=condition,
        after=condition,
        dtype=dtype_of("bf16" if precision == "int8" else precision),
        quantize="int8" if precision == "int8" else "",
    )


def stepper_of(path: str, model: AutoregressiveModel, given: Given) -> Stepper | None:
    """The path's stepper; None where it does not exist."""
    if path == "native":
        if not native.available(given.dtype, given.positions.device):
            return None
        return NativeStepper(given, *Prepared().native(model, given))
    if path == "packed":
        return TorchStepper(
            given, DecodingTransformer(given.transformer, given.dtype, quantize=given.quantize), head_of(given, True)
        )
    return None if given.quantize else TorchStepper(given, given.transformer, head_of(given, False))


def bytes_per_step(model: AutoregressiveModel, given: Given, t: int) -> int:
    """Weights as they are kept, the output layer, and the cache entries that position ``t`` of each item sees."""
    config = model.transformer.config
    matrices = sum(p.numel() for p in model.transformer.parameters() if p.dim() == 2)
    vectors = sum(p.numel() for p in model.transformer.parameters() if p.dim() == 1)
    windows = [step_window(function, config.geometry, t) for function in model.transformer.funcs]
    entries = sum(stop - start for _, start, stop in windows) * 2 * config.state * given.n_samples
    size = 1 if given.quantize else given.dtype.itemsize
    head = model.output_weight.numel() * (1 if given.quantize else 4)
    return matrices * size + vectors * 4 + head + entries * given.dtype.itemsize


@torch.inference_mode()
def measure_path(
    stepper: Stepper, model: AutoregressiveModel, given: Given, told: dict[str, Any], buffer: torch.Tensor
) -> dict[str, Any]:
    """Tokens a second of one path, and its share of the memory's speed."""
    n, cache = given.n_samples, stepper.cache
    for entries in cache.entries:
        entries.normal_()
    position = cache.length = min(told["sample_from"], model.n_ctx // 2)
    noise = Noise([torch.Generator().manual_seed(item) for item in range(n)], model.bins, torch.device("cpu"))
    tokens = torch.zeros(n, dtype=torch.int64)

    def draw(steps: int) -> float:
        nonlocal position, tokens
        began = time.perf_counter()
        for _ in range(steps):
            tokens = draw_with(stepper.after(tokens, position), noise, temperature=0.99)
            position += 1
        return time.perf_counter() - began

    draw(2)
    room = (model.n_ctx - position - 2) // (told["repeats"] + 1)
    steps = max(1, min(room, 4 if told["quick"] else int(told["seconds"] / max(draw(1), 1e-5))))
    size = bytes_per_step(model, given, position)
    part, read = buffer[: max(size // 4, 1 << 16)], machine.reader()[1]  # as much as a step reads, where there is that
    taken, reads = [], []
    for _ in range(told["repeats"]):
        taken.append(draw(steps) / steps)
        reads.append(part.nbytes / min(machine.seconds(lambda: read(part), 2, warmup=0)))
    shares = [size / seconds / read for seconds, read in zip(taken, reads, strict=True)]
    return {
        "tokens_per_second": round(n / statistics.median(taken), 1),
        "tokens_per_second_best": round(n / min(taken), 1),
        "gigabytes_per_second": round(size / statistics.median(taken) / 1e9, 2),
        "read_gigabytes_per_second": round(statistics.median(reads) / 1e9, 2),
        "share_of_read_bandwidth": round(statistics.median(shares), 3),
        "bound_tokens_per_second": round(n * statistics.median(reads) / size, 1),
        "megabytes_per_step": round(size / 1e6, 3),
        "steps": steps,
    }


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """All figures, as one object."""
    options = Knobs(COMMAND).parse(arguments)
    told = {key: options.get(key, knob.default) for key, knob in COMMAND.knobs.items()}
    if told["quick"]:
        told |= {"repeats": 2, "n_samples_list": (1, 4)}
    names, precisions, paths = (Knobs.split_names(told[key]) for key in ("shapes", "precisions", "paths"))
    for key, chosen, known in (
        ("shapes", names, SHAPES),
        ("precisions", precisions, ("fp32", "bf16", "int8")),
        ("paths", paths, ("native", "packed", "plain")),
    ):
        if strange := [name for name in chosen if name not in known]:
            raise UserError(f"--{key}: {strange[0]!r} is not one of {', '.join(known)}")
    buffer = torch.ones((8 if told["quick"] else 256) << 18)
    result = machine.facts()
    result["config"] = {**told, "quick": told["quick"], "read_by": machine.reader()[0]}
    result["shapes"] = {}
    for name in names:
        shape = SHAPES[name]
        model = build(shape, told)
        found: dict[str, Any] = {
            "transformer": vars(model.transformer.config),
            "bins": shape.bins,
            "parameters": sum(p.numel() for p in model.transformer.parameters()),
            "remark": shape.remark,
            "measured": {},
        }
        for precision in precisions:
            for n in told["n_samples_list"]:
                found["measured"][f"{precision}, n_samples {n}"] = compare(
                    model, shape, n, precision, paths, told, buffer
                )
        result["shapes"][name] = found
    result["load_average_after"] = machine.facts()["machine"]["load_average"]
    return result


def compare(
    model: AutoregressiveModel,
    shape: Shape,
    n_samples: int,
    precision: str,
    paths: Sequence[str],
    told: dict[str, Any],
    buffer: torch.Tensor,
) -> dict[str, Any]:
    """Every path there is, and how many times faster the native one is than the others."""
    figures: dict[str, Any] = {}
    for path in paths:
        given = given_of(model, shape, n_samples, precision)
        stepper = stepper_of(path, model, given)
        if stepper is not None:
            figures[path] = measure_path(stepper, model, given, told, buffer)
        del stepper
    ratios = {
        f"native_over_{path}": round(figures["native"]["tokens_per_second"] / figures[path]["tokens_per_second"], 2)
        for path in figures
        if path != "native" and "native" in figures
    }
    return {**figures, **ratios}


if __name__ == "__main__":
    sys.exit(machine.run(measure))
