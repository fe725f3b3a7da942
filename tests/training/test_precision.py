"""What is computed with, and the loss scale."""

from __future__ import annotations

import pytest
import torch

from songbloom.errors import UserError
from songbloom.training.precision import LossScaler, Precision, make_scaler, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALL_FP16 = {"fp16": True, "fp16_params": True, "fp16_opt": True, "fp16_loss_scale": None, "fp16_scale_window": 250}
PLAIN = ALL_FP16 | {"fp16": False, "fp16_params": False, "fp16_opt": False}


def test_all_fp16_means_it_on_cuda() -> None:
    assert resolve_precision(ALL_FP16, CUDA) == Precision(torch.float16, True, True)


def test_a_cpu_takes_bf16_and_says_so_once() -> None:
    told: list[str] = []
    assert resolve_precision(ALL_FP16, CPU, told.append) == Precision(torch.bfloat16)
    assert len(told) == 1 and "bf16" in told[0]


def test_by_hand() -> None:
    told: list[str] = []
    assert resolve_precision(ALL_FP16 | {"precision": "fp32"}, CPU, told.append) == Precision()
    assert resolve_precision(ALL_FP16 | {"precision": "fp16"}, CPU, told.append) == Precision(torch.float16, True, True)
    assert resolve_precision(PLAIN | {"precision": "bf16"}, CUDA, told.append) == Precision(torch.bfloat16)
    assert resolve_precision(PLAIN | {"precision": "fp16"}, CUDA, told.append) == Precision(torch.float16)
    assert resolve_precision(PLAIN, CUDA, told.append) == Precision()
    assert not told
    with pytest.raises(UserError, match="did you mean 'bf16'"):
        resolve_precision(PLAIN | {"precision": "bf15"}, CPU)


def test_only_fp16_scales_the_loss() -> None:
    assert make_scaler(Precision(torch.float16), ALL_FP16).scale == 2.0**16
    for precision in (Precision(), Precision(torch.bfloat16)):
        scaler = make_scaler(precision, ALL_FP16)
        scaler.update(False)
        scaler.update(True)
        assert scaler.scale == 1.0


def test_scale_doubles_in_a_window_and_halves_on_overflow() -> None:
    scaler = LossScaler(scale_window=10)
    for _ in range(10):
        scaler.update(False)
    assert scaler.scale == pytest.approx(2.0**17)
    scaler.update(True)
    assert scaler.scale == pytest.approx(2.0**16)
    for _ in range(1000):
        scaler.update(False)
    assert scaler.scale == 2.0**24


def test_goes_on_from_a_checkpoint_unless_static() -> None:
    scaler, static = LossScaler(), LossScaler(static=8.0)
    for one in (scaler, static):
        one.load_state_dict({"scale": 123.0})
    assert scaler.scale == 123.0 and static.scale == 8.0
