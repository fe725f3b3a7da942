"""Learning rates, Adam, loss scale, weight averages and gradient clipping (``jukebox_train_utils``)."""

from __future__ import annotations

from typing import Any

import torch

from songbloom.training.ema import WeightAverage, default_mu
from songbloom.training.optim import Adam, clipped_scale, gradient_norm
from songbloom.training.precision import LossScaler
from songbloom.training.schedule import Schedule
from tests.golden.report import Golden

RELATIVE = 1e-6
TINY = 1e-12  # so that a reference of exactly 0 can be compared
HALF_ULP = 2.0**-10  # a float16 step is at most this share of the value


def check_schedules(golden: Golden) -> None:
    for case in golden.look("lr_schedule"):
        at = ("lr_schedule", case)
        schedule = Schedule(golden.given(*at, "hps"))
        rates = []
        for _ in golden.look(*at, "lr_used_at_optimizer_step"):
            rates.append(schedule.lr)
            schedule.step()
        golden.expect(*at, "lr_used_at_optimizer_step", got=rates, rel=RELATIVE, abs=1e-15)


def check_adam(golden: Golden) -> None:
    for case in golden.look("adam"):
        for implementation in ("foreach", "fused"):
            check_adam_case(golden, case, implementation)


def check_adam_case(golden: Golden, case: str, implementation: str) -> None:
    at = ("adam", case)
    settings = {key: golden.given(*at, key) for key in ("lr", "betas", "eps", "weight_decay")}
    parameter = torch.nn.Parameter(golden.given(*at, "param0").clone())
    adam = Adam([parameter], **settings, half_moments="fp16opt" in case, implementation=implementation)
    for index, want in enumerate(golden.look(*at, "steps")):
        here = (*at, "steps", index)
        parameter.grad = golden.given(*here, "grad").clone()
        adam.step(scale=golden.given(*here, "scale"))
        state = adam.state[parameter]
        got = {"param": parameter.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        for key, value in got.items():
            half = value.dtype == torch.float16
            # torch's kernel sums in another order, so entries where terms cancel are held to the tensor's size.
            size = float(want[key].abs().max()) * RELATIVE if implementation == "fused" and not half else 0.0
            smallest = 2.0**-24 if half else TINY
            rel = HALF_ULP if half else RELATIVE
            golden.expect(
                *here, key, got=value, rel=rel, abs=size + smallest, name=f"adam.{case}.{implementation}.{key}"
            )
        for key in ("scale_exp_avg", "scale_exp_avg_sq"):
            value = state.get(key)
            value = None if value is None else float(value)
            golden.expect(*here, key, got=value, rel=RELATIVE, name=f"adam.{case}.{implementation}.{key}")


def check_scalers(golden: Golden) -> None:
    for case, content in golden.look("loss_scaler").items():
        at = ("loss_scaler", case)
        if "overflow_sequence" in content:
            scaler = LossScaler(golden.given(*at, "fp16_scale_window"), golden.given(*at, "fp16_loss_scale"))
            sequence = golden.given(*at, "overflow_sequence")
        else:
            scaler = LossScaler(scale=golden.given(*at, "init_scale"))
            scaler.factor = golden.given(*at, "scale_factor")
            sequence = [0] * (len(content["scales"]) - 1)
        scales = [scaler.scale]
        for overflow in sequence:
            scaler.update(bool(overflow))
            scales.append(scaler.scale)
        golden.expect(*at, "scales", got=scales, rel=RELATIVE)


def check_averages(golden: Golden) -> None:
    for case, content in golden.look("ema").items():
        at = ("ema", case)
        parameters = [torch.nn.Parameter(p.clone()) for p in golden.given(*at, "params0")]
        every = golden.given(*at, "freq") if "freq" in content else 1
        device = "cpu" if case.startswith("cpu") else None
        average = WeightAverage(parameters, golden.given(*at, "mu"), every=every, device=device, round_on_swap=True)
        for index in range(len(content["steps"])):
            here = (*at, "steps", index)
            for parameter, value in zip(parameters, golden.given(*here, "params"), strict=True):
                parameter.data.copy_(value)
            average.step()
            with average.averaged():
                seen = [p.detach().clone() for p in parameters]
            for number, value in enumerate(seen):
                half = value.dtype == torch.float16
                rel, smallest = (HALF_ULP, 2.0**-24) if half else (RELATIVE, TINY)
                name = f"ema.{case}.{'half' if half else 'float'}"
                golden.expect(*here, "ema", number, got=value, rel=rel, abs=smallest, name=name)


def check_default_mu(golden: Golden) -> None:
    for case in golden.look("ema_default_mu"):
        numbers: dict[str, Any] = dict(part.split("=") for part in case.split(","))
        got = default_mu(int(numbers["bs"]), int(numbers["ngpus"]))
        golden.expect("ema_default_mu", case, got=got, rel=RELATIVE)


def check_clipping(golden: Golden) -> None:
    scale = golden.given("grad_norm", "scale")
    parameters = []
    for grad in golden.given("grad_norm", "grads"):
        parameters.append(torch.nn.Parameter(torch.zeros_like(grad)))
        parameters[-1].grad = grad.clone()
    norm = float(gradient_norm(parameters, scale))
    golden.expect("grad_norm", "norm", got=norm, rel=RELATIVE)
    for clip in golden.look("grad_norm", "clipped_scale"):
        got = clipped_scale(norm, float(clip), scale)
        golden.expect("grad_norm", "clipped_scale", clip, got=got, rel=RELATIVE)


def check(golden: Golden) -> None:
    check_schedules(golden)
    check_adam(golden)
    check_scalers(golden)
    check_averages(golden)
    check_default_mu(golden)
    check_clipping(golden)


CHECKS = {"jukebox_train_utils": check}
