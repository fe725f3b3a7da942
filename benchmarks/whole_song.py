"""How long a whole song takes: ``python benchmarks/whole_song.py [--model=5b_lyrics] [--seconds=20] [--windows=2] …``

All levels of a published model's shapes, with random weights, one after the other as ``sample.py`` writes them, and the
sound at the end. Prints one JSON object: for each level its seconds and steps a second, what the memory's speed alone
would allow, and a profile of single steps, which shows where the time goes; and whether all of it keeps within
``--aim``. With ``--windows`` only the first windows of each level are written, and the rest is reckoned from them.

It was made for one GPU (the weights of 5b_lyrics take 12 GB in fp16) and runs on a CPU too: ``--quick`` has tiny sizes.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import sys
import time
from collections.abc import Sequence
from typing import Any

import machine
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from make_models import MODELS, make_model
from songbloom import distributed
from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.prior.config import dtype_of
from songbloom.prior.prior import Prior
from songbloom.sampling.sampler import LevelSettings, TokenWriter, item_seeds, sample_level
from songbloom.transformer.layers import Linear
from songbloom.vqvae.vqvae import VQVAE

COMMAND = group(
    "benchmark",
    "what to measure",
    model=Knob("5b_lyrics", "Model whose shapes are taken; a name in MODELS of make_models.py"),
    seconds=Knob(20.0, "Length of the song", minimum=0),
    n_samples=Knob(1, "Items written together", minimum=1),
    precision=Knob("", "Arithmetic; empty: fp16 on CUDA, else fp32", choices=("", "fp32", "bf16", "fp16")),
    quantize=Knob("", "int8 keeps weights in 8 bits", choices=("", "int8")),
    device=Knob("", "cuda or cpu; empty: the best there is"),
    windows=Knob(None, "Write only so many windows of each level; None: all", kind="int", minimum=1),
    profiled=Knob(16, "Steps of each level that are profiled; 0: none", minimum=0),
    aim=Knob(300.0, "Seconds that all of it may take", minimum=0),
    quick=Knob(False, "Tiny sizes, to see that it runs; the figures mean nothing"),
)
QUICK = {
    **{"prior_width": 64, "prior_depth": 12, "heads": 2, "n_ctx": 256, "blocks": 8, "n_tokens": 16},
    **{"prime_width": 32, "prime_depth": 2, "prime_heads": 2, "prime_blocks": 4},
    **{"cond_width": 16, "cond_depth": 2, "width": 8, "depth": 1},
}


@torch.no_grad()
def filled(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Give a module on the meta device random weights on ``device``, its matrices in ``dtype``."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.weight = nn.Parameter(part.weight.to(dtype), requires_grad=False)
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(std=0.02, generator=generator)
        else:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    module.requires_grad_(False).eval()


def labels_of(prior: Prior, items: int, start: int, total: int) -> Tensor | None:
    """What the window that begins at code ``start`` is told of a song of ``total`` samples; None without labels."""
    if not prior.label_width:
        return None
    row = torch.zeros(items, prior.label_width, dtype=torch.int64)
    row[:, 0], row[:, 1], row[:, 2] = total, start * prior.hop_length, prior.sample_length
    if prior.n_tokens:
        row[:, -prior.n_tokens :] = torch.arange(prior.n_tokens) % prior.config.lyric_bins(prior.l_bins)
    return row


def waited(device: torch.device) -> float:
    """The time at which the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_rate(device: torch.device, megabytes: int) -> float:
    """Bytes a second at which the device reads its memory."""
    buffer = torch.ones(megabytes << 18, device=device)
    taken = []
    for _ in range(7):
        began = waited(device)
        buffer.sum()
        taken.append(waited(device) - began)
    return buffer.nbytes / min(taken[2:])


def measure_level(
    prior: Prior, codes: list[Tensor], total: int, settings: LevelSettings, told: dict[str, Any], rate: float
) -> dict[str, Any]:
    """Write a level, or its first windows, into ``codes``; what it took."""
    device, items, level = codes[0].device, told["n_samples"], prior.level
    planned = TokenWriter(prior).plan(total, settings, 0)
    some = planned[: told["windows"] or len(planned)]
    end = sum(window.new for window in some)
    song = int(240 * prior.config.sr)

    def labels(start: int, _: slice) -> Tensor | None:
        return labels_of(prior, items, start, song)

    began = waited(device)
    written = sample_level(prior, codes, end, settings, seeds=item_seeds(0, range(items)), labels=labels)
    seconds = waited(device) - began
    rest = torch.randint(prior.l_bins, (items, total - end), generator=torch.Generator().manual_seed(level))
    codes[level] = torch.cat([written, rest.to(device)], dim=1)
    size = prior.cost(settings.precision)["bytes_per_decoded_token"]
    return {
        "codes": total,
        "codes_written": end,
        "windows": f"{len(some)} of {len(planned)}",
        "seconds": round(seconds, 3),
        "seconds_for_all": round(seconds * total / end, 3),
        "steps_per_second": round(end / seconds, 1),
        "milliseconds_per_step": round(1e3 * seconds / end, 4),
        "bound_by_reading_weights_seconds": round(total * size / rate, 3),
        "profile": measure_steps(prior, codes, settings, told, song) if told["profiled"] else {},
    }


def measure_steps(
    prior: Prior, codes: list[Tensor], settings: LevelSettings, told: dict[str, Any], song: int
) -> dict[str, Any]:
    """Where the time of single steps goes, in the middle of a window whose first half is the prompt."""
    items, device, half = told["n_samples"], codes[0].device, min(prior.n_ctx, codes[prior.level].shape[1]) // 2
    above = codes[prior.level + 1] if prior.cond_downsample else None
    if above is not None and prior.cond_downsample:
        above = torch.cat([above, above[:, :1].expand(-1, prior.n_ctx)], dim=1)[
            :, : prior.n_ctx // prior.cond_downsample
        ]
    began = waited(device)
    steps = prior.sample_steps(
        items,
        prompt=codes[prior.level][:, :half],
        upper_codes=above,
        labels=labels_of(prior, items, 0, song),
        temperature=settings.temperature,
        precision=settings.precision,
        quantize=settings.quantize,
    )
    next(steps)
    next(steps)  # the prompt is read, what can be recorded is recorded
    ready = waited(device) - began
    count = min(told["profiled"], max(prior.n_ctx - half - 10, 1))  # two steps, four and up to four come besides
    for _ in range(4):
        next(steps)
    began = waited(device)
    for _ in range(count):
        next(steps)
    plain = waited(device) - began
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(min(count, 4)):
            next(steps)
        waited(device)
    steps.close()
    spent = [
        (each.key, each.count, each.self_device_time_total if on_gpu else each.self_cpu_time_total)
        for each in found.key_averages()
    ]
    spent.sort(key=lambda each: -each[2])
    profiled = min(count, 4)
    return {
        "seconds_until_the_first_step": round(ready, 3),
        "microseconds_per_step": round(1e6 * plain / count, 1),
        "microseconds_in_kernels": round(sum(time for *_, time in spent) / profiled, 1),
        "kernels_per_step": round(sum(times for _, times, _ in spent) / profiled, 1),
        "largest": [
            {"name": name[:100], "per_step": round(times / profiled, 1), "microseconds": round(time / profiled, 1)}
            for name, times, time in spent[:12]
        ],
    }


def measure_decoding(vqvae: VQVAE, codes: Tensor, device: torch.device) -> float:
    """Seconds that the sound of the finest level takes."""
    filled(vqvae, device)
    began = waited(device)
    for _ in vqvae.decode_pieces([codes], 0):
        pass
    return waited(device) - began


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """All figures, as one object."""
    options = Knobs(COMMAND).parse(arguments)
    told = {key: options.get(key, knob.default) for key, knob in COMMAND.knobs.items()}
    if told["model"] not in MODELS:
        raise UserError(f"--model: no model is named {told['model']!r}{did_you_mean(told['model'], MODELS)}")
    device = distributed.start(told["device"] or None).device
    told["precision"] = told["precision"] or ("fp16" if device.type == "cuda" else "fp32")
    vqvae, priors = make_model(told["model"], "meta", QUICK if told["quick"] else {}, restored=False)
    length = int(told["seconds"] * vqvae.sample_rate) // vqvae.hop_lengths[-1] * vqvae.hop_lengths[-1]
    if not length:
        raise UserError(f"--seconds={told['seconds']:g} is less than one code of the top level")
    result = machine.facts()
    result["machine"]["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rate = read_rate(device, 8 if told["quick"] else 1024)
    result["read_gigabytes_per_second"] = round(rate / 1e9, 1)
    result["config"] = told
    result["levels"] = {}
    codes = [torch.zeros(told["n_samples"], 0, dtype=torch.int64, device=device) for _ in priors]
    while priors:
        prior = priors.pop()
        filled(prior, device, dtype_of(told["precision"]))
        settings = LevelSettings(
            hop_fraction=0.125 if prior.cond_downsample is None else 0.5,
            max_batch_size=told["n_samples"],
            chunk_size=None,
            precision=told["precision"],
            quantize=told["quantize"],
        )
        total = length // prior.hop_length
        result["levels"][str(prior.level)] = measure_level(prior, codes, total, settings, told, rate)
        del prior  # before the next level's turn
    sound = measure_decoding(vqvae, codes[0], device)
    seconds = sum(each["seconds_for_all"] for each in result["levels"].values()) + sound
    if device.type == "cuda":
        result["largest_gigabytes"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    result |= {"decoding_seconds": round(sound, 3), "seconds": round(seconds, 3), "within_aim": seconds <= told["aim"]}
    return result


if __name__ == "__main__":
    sys.exit(machine.run(measure))
