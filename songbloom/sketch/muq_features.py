"""MuQ's hidden layers as features of a sketch (Zhu et al. 2025): by our own model, and by the muq package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.sketch import muq
from songbloom.sketch.features import FRAME_RATE, Features, weights_digest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _dtype(precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} for sketch features; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


class MuQFeatures(Features):
    """Features of our own MuQ.

    Args:
        model: the network; its weights are frozen.
        layer: which state, counted from 0 or from the end.
        precision: what the network computes in, ``fp32``, ``bf16`` or ``fp16``; its spectrum stays in float32.
        piece, context: seconds that its attention hears at a time, and besides at either side (see
            :meth:`songbloom.sketch.muq.MuQ.encode`); ``piece=0`` hears all at once.

    Raises:
        UserError: no such layer or precision.
    """

    name = "muq"

    def __init__(
        self, model: muq.MuQ, *, layer: int = -1, precision: str = "fp32", piece: float = 30.0, context: float = 5.0
    ) -> None:
        super().__init__()
        self.width, self.sample_rate = model.config.width, muq.SAMPLE_RATE
        if model.config.frame_length * FRAME_RATE != muq.SAMPLE_RATE:
            raise UserError(
                f"this MuQ has a feature every {model.config.frame_length} samples; sketches need every 960"
            )
        self.layer = model.layer_number(layer)
        self.piece, self.context = round(piece * FRAME_RATE) or None, round(context * FRAME_RATE)
        self._fingerprint = weights_digest(_heard(model.state_dict()))  # of the weights before they are rounded
        self.model = model.to(_dtype(precision)).eval().requires_grad_(False)

    def fingerprint(self) -> str:
        return self._fingerprint

    def hear(self, mono: Tensor) -> Tensor:
        return self.model.encode(mono, int(self.layer or 0), piece=self.piece, context=self.context)

    def train(self, mode: bool = True) -> MuQFeatures:
        """It stays in eval mode: its normalisation follows no batch."""
        return super().train(False)


def _heard(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that features depend on."""
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("targets.") and not name.endswith("num_batches_tracked")
    }


def from_files(path: str | Path = "", **settings: Any) -> Features:
    from songbloom.published.songbloom.muq import load_muq

    if not path:
        raise UserError("sketch features 'muq' need the folder of MuQ's weights: give its path (config.json inside)")
    return MuQFeatures(load_muq(path), **settings)


class MuQPackageFeatures(Features):
    """Features of the ``muq`` package's own network; the same as :class:`MuQFeatures`, to compare with.

    Args:
        model: a ``muq.MuQ``.
        layer: which state.
    """

    name = "muq"

    def __init__(self, model: Any, *, layer: int = -1) -> None:
        super().__init__()
        from songbloom.published.songbloom.muq import from_published

        self.model = model.eval().requires_grad_(False)
        self.sample_rate = muq.SAMPLE_RATE
        ours = from_published(model.state_dict())
        self.width = int(ours["norm.weight"].shape[0])
        depth = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("layers."))
        self.layer = muq.MuQ.layer_number_of(layer, depth)
        self._fingerprint = weights_digest(_heard(ours))

    def fingerprint(self) -> str:
        return self._fingerprint

    def hear(self, mono: Tensor) -> Tensor:
        short = max(0, muq.N_FFT // 2 + 1 - mono.shape[1])
        made = self.model(nn.functional.pad(mono, (0, short)), output_hidden_states=True)
        return made.hidden_states[int(self.layer or 0)]


def from_package(path: str = "OpenMuQ/MuQ-large-msd-iter", device: str = "cpu", **settings: Any) -> Features:
    try:
        from muq import MuQ as Package
    except ImportError as error:
        raise UserError(
            f"sketch features 'muq_package' need the muq package ({error}): pip install muq, or use 'muq'"
        ) from error
    try:
        model = Package.from_pretrained(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: the muq package cannot load it ({reason}); give a local folder") from error
    return MuQPackageFeatures(model, **settings).to(device)
