"""What reduced precision costs a trained prior: ``python benchmarks/precision.py --hps=… --restore_vqvae=… --songs=…``.

Codes of real songs are fed to the decoding step one after the other, as if it had drawn them, and their bits are
counted: what is measured is the step that samples, not a stand-in. Prints one JSON object with bits a code for each
precision, the difference from the plain float32 forward pass, and how often the likeliest code is another. Priors
without labels only.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import math
import sys
from collections.abc import Sequence
from typing import Any

import machine
import torch
from torch.nn import functional as F

from hparams import KNOBS, setup_hparams
from make_models import make_prior, make_vqvae
from songbloom.audio.files import find_audio, read_audio
from songbloom.errors import UserError
from songbloom.hyperparams import Knob, Knobs, group
from songbloom.prior.prior import Prior
from songbloom.prior.steppers import Given, Prepared, stepper_for

COMMAND = group(
    "benchmark",
    "what to measure",
    hps=Knob("", "names of sets of hyperparameters, a codec's and a prior's"),
    songs=Knob("", "folder with songs"),
    windows=Knob(8, "windows measured, each from the beginning of a song", minimum=1),
)
# Name, precision of the caches and of what torch computes, and how weights are kept.
WAYS = (("fp32", torch.float32, ""), ("bf16", torch.bfloat16, ""), ("int8", torch.float32, "int8"))
WAYS += (("int8, caches in bf16", torch.bfloat16, "int8"),)


def windows_of(prior: Prior, vqvae: Any, folder: str, count: int) -> list[torch.Tensor]:
    """Codes of all levels ``[count, …]`` for the first window of as many songs."""
    rows = []
    for path in find_audio(folder):
        if len(rows) < count:
            audio = read_audio(path, sample_rate=vqvae.sample_rate, length=prior.sample_length, channels=1)
            if len(audio) == prior.sample_length:
                rows.append(torch.from_numpy(audio)[None])
    if len(rows) < count:
        raise UserError(f"{folder}: {len(rows)} songs are as long as a window; give --windows={max(len(rows), 1)}")
    with torch.no_grad():
        return vqvae.encode(torch.cat(rows))


@torch.inference_mode()
def bits_and_choices(prior: Prior, codes: torch.Tensor, arguments: dict[str, Any], dtype: Any, quantize: str) -> Any:
    """Bits a code, and the likeliest code at each position ``[N, n_ctx]``."""
    model, n = prior.autoregressive, len(codes)
    x_cond = arguments["x_cond"]
    given = Given(
        model.transformer,
        model.embedding.weight,
        model.positions,
        model.output_weight,
        n,
        before=x_cond,
        after=None if model.merged_decoder else x_cond,
        dtype=dtype,
        quantize=quantize,
    )
    stepper = stepper_for(model, given, Prepared(), fast=True)
    assert model.start is not None
    logits = stepper.first(model.start.expand(n, 1, -1), 0)
    bits, choices = 0.0, []
    for t in range(codes.shape[1]):
        bits += float(F.cross_entropy(logits, codes[:, t], reduction="sum")) / math.log(2)
        choices.append(logits.argmax(-1))
        if t + 1 < codes.shape[1]:
            logits = stepper.after(codes[:, t].contiguous(), t + 1)
    return bits / codes.numel(), torch.stack(choices, dim=1)


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """All figures, as one object."""
    options = Knobs(COMMAND, *KNOBS.groups).parse(arguments)
    told = {key: options.pop(key, knob.default) for key, knob in COMMAND.knobs.items()}
    if not told["hps"] or not told["songs"]:
        raise UserError("--hps names a trained prior's sets, and --songs a folder: give both")
    hps = setup_hparams(told["hps"], options)
    vqvae = make_vqvae(hps)
    prior = make_prior(hps, vqvae)
    if prior.label_width:
        raise UserError("this prior reads labels, which are not measured here: give one without")
    codes = windows_of(prior, vqvae, told["songs"], told["windows"])
    upper = prior.window_of(codes, 0, prior.n_ctx)
    own = codes[prior.level][:, : prior.n_ctx]
    with torch.no_grad():
        _, given = prior.inputs(None, prior.conditions(upper, None, batch=len(own)))
        plain = float(prior(own, upper)[1]["bpd"])
        likeliest = prior.logits(own, upper).argmax(-1)
    result = {**machine.facts(), "config": {**told, "codes": own.numel()}, "plain_fp32_bits": round(plain, 5)}
    for name, dtype, quantize in WAYS:
        bits, choices = bits_and_choices(prior, own, given, dtype, quantize)
        result[name] = {
            "bits": round(bits, 5),
            "difference": round(bits - plain, 5),
            "likeliest_differs": round(float((choices != likeliest).float().mean()), 5),
        }
    return result


if __name__ == "__main__":
    sys.exit(machine.run(measure))
