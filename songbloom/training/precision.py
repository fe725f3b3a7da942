"""In which number format to compute, and the loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from songbloom.errors import UserError, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16")
SCALE_START = 2.0**16
SCALE_LARGEST = 2.0**24


@dataclass(frozen=True)
class Precision:
    """What a run computes with.

    Attributes:
        compute: dtype of the model's matrix products.
        half_parameters: whether matrices that may be float16 are kept so (hyperparameter ``fp16_params``).
        half_moments: whether the optimiser keeps their moments in float16 (``fp16_opt``).
        scaled: whether the loss is scaled (float16 alone needs it: bfloat16 has float32's range).
    """

    compute: torch.dtype = torch.float32
    half_parameters: bool = False
    half_moments: bool = False

    @property
    def scaled(self) -> bool:
        return self.compute == torch.float16

    @property
    def name(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return names[self.compute]


def resolve_precision(
    hps: Mapping[str, Any], device: torch.device, say: Callable[[str], None] = lambda line: None
) -> Precision:
    """The precision that ``precision``, ``fp16``, ``fp16_params`` and ``fp16_opt`` mean on this device.

    ``precision`` (fp32, bf16 or fp16), when given, decides. Otherwise ``fp16`` means float16 on CUDA and MPS. On a
    CPU, where float16 matrix products are some thousand times slower than bfloat16 ones, bfloat16 takes its place.
    Parameters stay float32 with bfloat16: its 8 bits would lose most updates.

    Args:
        hps: hyperparameters.
        device: where the model runs.
        say: told, in one line, if something other than what was asked for is used.

    Raises:
        UserError: ``precision`` is none of the three.
    """
    asked = hps.get("precision", None) or ""
    if asked and asked not in PRECISIONS:
        raise UserError(f"--precision={asked}: choose one of {', '.join(PRECISIONS)}{did_you_mean(asked, PRECISIONS)}")
    if asked == "fp32" or not (asked or hps["fp16"]):
        return Precision()
    if asked == "bf16":
        return Precision(torch.bfloat16)
    if not asked and device.type == "cpu":
        say(
            "fp16: using bf16 with fp32 weights instead, since a CPU multiplies float16 matrices "
            "about 1000 times slower (--precision=fp16 insists)"
        )
        return Precision(torch.bfloat16)
    return Precision(torch.float16, bool(hps["fp16_params"]), bool(hps["fp16_params"] and hps["fp16_opt"]))


def codec_precision(
    hps: Mapping[str, Any], device: torch.device, say: Callable[[str], None] = lambda line: None
) -> Precision:
    """The precision of a codec's training: float32, as published codecs were trained, unless ``precision`` says more.

    Raises:
        UserError: ``precision`` is none of the three.
    """
    if hps["fp16"] and not hps.get("precision"):
        say("fp16: a codec trains in fp32 all the same (--precision=bf16 or fp16 changes that)")
        return Precision()
    return resolve_precision({**hps, "fp16": False, "fp16_params": False, "fp16_opt": False}, device, say)


class LossScaler:
    """The number that the loss is multiplied by before backward.

    Each good step multiplies it by ``2 ** (1 / scale_window)``, up to 2**24; an overflow in the gradients halves it.

    Args:
        scale_window: good steps after which the scale has doubled (``fp16_scale_window``).
        static: a fixed scale (``fp16_loss_scale``); None adapts it.
        scale: where an adapted scale starts.
    """

    def __init__(self, scale_window: float = 1000.0, static: float | None = None, scale: float = SCALE_START) -> None:
        self.factor = 2.0 ** (1.0 / scale_window)
        self.static = static is not None
        self.scale = float(static) if static is not None else float(scale)

    def update(self, overflow: bool) -> None:
        """A backward pass is over; ``overflow`` says whether its gradients were all finite."""
        if self.static:
            return
        self.scale = self.scale / 2.0 if overflow else min(self.scale * self.factor, SCALE_LARGEST)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint; a static scale stays what it is set to."""
        if not self.static:
            self.scale = float(state["scale"])


class NoScaler(LossScaler):
    """The scaler of float32 and bfloat16: always 1."""

    def __init__(self) -> None:
        super().__init__(static=1.0)


def make_scaler(precision: Precision, hps: Mapping[str, Any]) -> LossScaler:
    """The loss scaler that ``fp16_loss_scale`` and ``fp16_scale_window`` describe, or :class:`NoScaler`."""
    if not precision.scaled:
        return NoScaler()
    return LossScaler(hps["fp16_scale_window"], hps["fp16_loss_scale"])
