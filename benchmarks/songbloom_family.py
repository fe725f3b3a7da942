"""How fast songs of the SongBloom family are written and learnt.

    python benchmarks/songbloom_family.py [--quick] [--key=value …]

(A ``songbloom.py`` in this folder would stand in the package's place for every program here.)

Prints one JSON object. For each precision and number of samples: the seconds that a song takes and its real-time
factor (seconds of computing a second of sound; below 1 is faster than the music), where the processor's seconds go, and
the share of the bound. Where others use the machine too, the processor's seconds are the fairer ones. The bound is the
arithmetic and the reading that must be: each weight of the language model read once a token and of the diffusion
transformer once a step at the memory's speed, or their products at the speed of large ones, whichever takes longer. Of
the diffusion transformer's products only those count that change from step to step and that something reads. Then
seconds of a forward and backward pass. The weights are random.

``--quality_model=NAME --codes_file=RUN`` makes the latents of a run's sketches again with fewer steps, and tells how
far they are from those of many.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch

from songbloom.allocator import keep_memory
from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.prior.config import dtype_of
from songbloom.prior.songbloom import native
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.generate import sample_patches
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.prior.songbloom.steps import DiffusionSteps
from songbloom.sampling.songbloom_writer import PatchDraws

COMMAND = group(
    "benchmark",
    "what to measure",
    quick=Knob(False, "tiny sizes, to see that it runs; the figures mean nothing"),
    precisions=Knob("fp32,bf16", "precisions to measure, commas between them"),
    n_samples_list=Knob((1, 4), "numbers of songs written together, of one prompt"),
    frames=Knob(128, "frames of a song, 25 a second; 128 are 5.12 s", minimum=1),
    steps=Knob(36, "steps a patch", minimum=1),
    prior_width=Knob(512, "width", minimum=32),
    prior_depth=Knob(8, "layers of the language model", minimum=1),
    dit_depth=Knob(4, "layers of the diffusion transformer", minimum=1),
    heads=Knob(8, "attention heads", minimum=1),
    l_bins=Knob(16384, "sketch tokens", minimum=2),
    fast=Knob(True, "the fast paths; False measures the plain ones, which the tests compare them with"),
    repeats=Knob(3, "measurements of each figure; the median and the best are told", minimum=1),
    training_frames=Knob(256, "frames of the forward and backward pass; 0: none", minimum=0),
    quality_model=Knob("", "model of make_models.py whose latents are compared over numbers of steps; empty: none"),
    codes_file=Knob("", "run of that model whose sketches are taken"),
    quality_steps=Knob((4, 8, 12, 18, 25, 36), "numbers of steps that are compared"),
    reference_steps=Knob(200, "steps of what they are compared with", minimum=1),
    local_logdir=Knob("logs", "folder of that model's checkpoints"),
    help=Knob(False, "print this, and stop"),
)
KNOBS = Knobs(COMMAND)


def build(told: dict[str, Any]) -> SongBloomPrior:
    """The prior with random weights."""
    sizes = {key: told[key] for key in ("prior_width", "prior_depth", "dit_depth", "heads", "l_bins")}
    config = SongBloomConfig(**sizes)
    if told["quick"]:
        config = replace(config, prior_width=64, prior_depth=2, dit_depth=1, heads=2, l_bins=64, lyric_tokens=20)
    return SongBloomPrior(config, torch.Generator().manual_seed(0))


@contextmanager
def timed(prior: SongBloomPrior, spent: dict[str, float]) -> Iterator[None]:
    """Add up the processor's seconds inside the parts of the prior."""
    parts: list[tuple[str, Any, str]] = [
        ("prefix", prior.language_model, "read"),
        ("language_model", prior.language_model, "step"),
        ("language_model", native.NativeLanguage, "step"),
        ("maps", native.NativeMaps, "__call__"),
        ("maps", prior.classifier, "forward"),
        ("diffusion", native.NativeDiffusion, "velocity"),
        ("diffusion", DiffusionSteps, "velocity"),
        ("diffusion", prior.diffusion, "velocity"),
        ("diffusion_once", native.NativeDiffusion, "__init__"),
        ("diffusion_once", native.NativeDiffusion, "begin"),
        ("diffusion_once", DiffusionSteps, "begin"),
        ("diffusion_once", prior.diffusion, "known"),
    ]
    before = [getattr(owner, method) for _, owner, method in parts]
    for (name, owner, method), real in zip(parts, before, strict=True):

        def measured(*arguments: Any, _name: str = name, _real: Any = real, **keywords: Any) -> Any:
            began = time.process_time()
            made = _real(*arguments, **keywords)
            spent[_name] = spent.get(_name, 0.0) + time.process_time() - began
            return made

        (setattr if isinstance(owner, type) else object.__setattr__)(owner, method, measured)
    try:
        yield
    finally:
        for (_, owner, method), real in zip(parts, before, strict=True):
            if isinstance(owner, type):
                setattr(owner, method, real)
            else:
                object.__delattr__(owner, method)


def write(prior: SongBloomPrior, told: dict[str, Any], precision: str, n: int) -> None:
    """Write n songs of one prompt, none of which may end, as the sampler does."""
    settings = GenerationSettings(max_frames=told["frames"], min_frames=told["frames"] + 16, steps=told["steps"])
    prompt = torch.randn(1, prior.config.prompt_frames, 64, generator=torch.Generator().manual_seed(0))
    conditions = prior.conditions([range(1, 60)], prompt)
    dtype = dtype_of(precision)
    read, fast = prior.language_model.read, told["fast"]
    prefixes = [read(each.prefix()[0].to(dtype), fast=fast) for each in (conditions, prior.null_conditions())]
    more = {"precision": dtype, "prefixes": prefixes, "fast": fast}
    for _ in sample_patches(
        prior, conditions, settings, counts=[n], draws=PatchDraws(list(range(n)), prior.config.patch_size), **more
    ):
        pass


def bound(prior: SongBloomPrior, told: dict[str, Any], precision: str, n: int, rates: dict[str, float]) -> float:
    """Seconds that the arithmetic and the reading of n songs take at least; guided rows count twice."""
    cost, config, itemsize = prior.cost(), prior.config, dtype_of(precision).itemsize
    patches = -(-told["frames"] // config.patch_size)
    operations = rates[f"operations_{precision}"]

    def least(bytes_fp32: float, work: float) -> float:
        return max(bytes_fp32 / 4 * itemsize / rates["bytes"], work / operations)

    rows, calls = 2 * n, patches * (config.patch_size + 1)
    token = least(cost["language_model_bytes_a_position"], rows * cost["language_model_operations_a_position"])
    logits = least(2 * cost["classifier_operations_a_token"], rows * cost["classifier_operations_a_token"])
    step = least(cost["diffusion_bytes_a_step"], rows * cost["diffusion_operations_needed_a_step"])
    prefix = 2 * config.prefix * cost["language_model_operations_a_position"] / operations
    return prefix + calls * token + patches * config.patch_size * logits + patches * told["steps"] * step


def measure_writing(prior: SongBloomPrior, told: dict[str, Any], precision: str, n: int) -> dict[str, Any]:
    """One row of the report."""
    prior = prior.eval()
    if precision != "fp32":
        prior.store_matrices(dtype_of(precision))
    size = 256 if told["quick"] else 2048
    halves = (
        machine.halves_rate(size, 3) if precision == "bf16" else None
    )  # what bfloat16 is multiplied by, if anything
    rates = {
        "bytes": machine.read_rate(32 if told["quick"] else 256),
        f"operations_{precision}": halves or machine.gemm_rate(dtype_of(precision), size, 3),
    }
    write(prior, {**told, "frames": 16, "steps": 1}, precision, n)  # warm up
    taken, processor, spent = [], [], {}
    for _ in range(told["repeats"]):
        began, used = time.perf_counter(), _cpu_seconds()
        parts: dict[str, float] = {}
        with timed(prior, parts):
            write(prior, told, precision, n)
        taken.append(time.perf_counter() - began)
        processor.append(_cpu_seconds() - used)
        if taken[-1] == min(taken):
            spent = parts
    sound = n * told["frames"] / 25
    median = statistics.median(taken)
    return {
        "precision": precision,
        "n_samples": n,
        "seconds_of_sound": sound,
        **machine.summary(taken),
        "cpu_seconds_best": round(min(processor), 3),
        "real_time_factor": round(median / sound, 3),
        "real_time_factor_best": round(min(taken) / sound, 3),
        "parts_cpu_seconds_best": {name: round(seconds, 3) for name, seconds in spent.items()},
        "bound_seconds": round(bound(prior, told, precision, n, rates), 3),
        "share_of_bound": round(bound(prior, told, precision, n, rates) / min(taken), 3),
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure_training(told: dict[str, Any], precision: str) -> dict[str, Any]:
    """A forward and backward pass over one song."""
    prior, frames = build(told).train(), told["training_frames"]
    config = prior.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.l_bins, (1, frames), generator=generator)
    latents = torch.randn(1, frames, config.latent_width, generator=generator)
    prompt = torch.randn(1, config.prompt_frames, config.latent_width, generator=generator)

    def once() -> None:
        prior.zero_grad(set_to_none=True)
        length = torch.tensor([frames])
        loss, _ = prior(tokens, latents, length, [range(1, 60)], prompt, generator=generator, precision=precision)
        loss.backward()

    once()
    taken, used = [], []
    for _ in range(told["repeats"]):
        began, before = time.perf_counter(), _cpu_seconds()
        once()
        taken.append(time.perf_counter() - began)
        used.append(_cpu_seconds() - before)
    told_of = {"precision": precision, "frames": frames}
    return {**told_of, **machine.summary(taken), "cpu_seconds_best": round(min(used), 3)}


def measure_quality(told: dict[str, Any]) -> list[dict[str, Any]]:
    """How far latents of few steps are from those of many, with the same sketch, noise and conditions.

    Raises:
        UserError: no run is given, or it does not fit the model.
    """
    if not told["codes_file"]:
        raise UserError("--quality_model needs --codes_file=FOLDER, a run of that model, whose sketches are taken")
    sys.path.insert(0, str(Path(__file__).parents[1]))  # models are built by the programs' floor
    from make_models import make_songbloom
    from songbloom.sampling.form import Frames
    from songbloom.sampling.origin import data_file
    from songbloom.sampling.run import read_data
    from songbloom.sampling.songbloom_writer import SongSettings, SongWriter, Told

    codec, prior = make_songbloom(told["quality_model"], "cpu", {"local_logdir": told["local_logdir"]})
    data = read_data(data_file(told["codes_file"]))
    latents, sketch = data.codes
    infos = (data.labels[0] or {}).get("info") or [{}] * len(sketch)
    heard = [
        Told(tuple(info.get("full_tokens") or ()), info.get("prompt"), str(item)) for item, info in enumerate(infos)
    ]
    writer, form = SongWriter(prior, keeps_sketch=True), Frames(prior.config.eos)
    usual = GenerationSettings()
    if prior.config.diffusion_objective == "v":
        usual = replace(usual, sampler="ddim")

    def made(steps: int) -> tuple[torch.Tensor, float]:
        settings = SongSettings(replace(usual, steps=steps), window_patches=1 << 20)
        frames = form.joined(latents[:, :0], sketch[:, :0])
        (window,) = writer.plan(sketch.shape[1], settings, 0)
        began = time.perf_counter()
        written = writer.write(
            [frames, sketch],
            window,
            settings,
            slice(0, len(sketch)),
            seeds=list(range(len(sketch))),
            labels=lambda _, part: heard[part],
        )
        return form.latents(written), time.perf_counter() - began

    reference, _ = made(told["reference_steps"])
    sound = codec.decode([reference])
    power = reference.square().mean()
    found = []
    for steps in told["quality_steps"]:
        there, seconds = made(steps)
        audio = codec.decode([there])
        found.append(
            {
                "steps": steps,
                "seconds": round(seconds, 3),
                "latent_error": round(float(((there - reference).square().mean() / power).sqrt()), 4),
                "sound_error_dB": round(
                    float(10 * torch.log10((audio - sound).square().mean() / sound.square().mean())), 2
                ),
            }
        )
    return found


@torch.inference_mode()
def writing(told: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of writing."""
    rows = []
    for precision in told["precisions"].split(","):
        rows += [measure_writing(build(told), told, precision, n) for n in told["n_samples_list"]]
    return rows


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """The whole report.

    Raises:
        UserError: an option that is wrong.
    """
    told = dict(KNOBS.merge({}, "", KNOBS.parse(arguments)))
    if told["help"]:
        return {"help": KNOBS.help("usage: python benchmarks/songbloom_family.py [--key=value] …").splitlines()}
    if told["quick"]:
        told |= {"frames": 32, "steps": 2, "repeats": 1, "training_frames": min(told["training_frames"], 32)}
    report: dict[str, Any] = {**machine.facts(), "settings": told, "writing": writing(told)}
    if told["training_frames"]:
        keep_memory()  # as train.py does on a CPU
        report["training"] = [measure_training(told, precision) for precision in told["precisions"].split(",")]
    if told["quality_model"]:
        report["quality"] = measure_quality(told)
    return report


if __name__ == "__main__":
    sys.exit(machine.run(measure))
