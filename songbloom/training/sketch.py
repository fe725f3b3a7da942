"""Training a sketch codebook: the task for the training loop, and its model from hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.sketch.builtin import BuiltinConfig
from songbloom.sketch.extractors import make_features
from songbloom.sketch.features import Features
from songbloom.sketch.tokeniser import check_expected
from songbloom.sketch.training import SketchVQ, SketchVQConfig
from songbloom.training.logger import Logger
from songbloom.training.tasks import Batch, CodecTask

CODEBOOK = "sketch_codebook.pt"  # beside the checkpoints of a run


def make_sketch(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> SketchVQ:
    """The sketch codebook that ``hps`` describes, untrained, with its features.

    Raises:
        UserError: settings that make none, features that cannot be had, are of another width than ``sketch_width`` or
            hear another rate than ``muq_sr``.
    """
    config = SketchVQConfig.from_hps(hps)
    made = SketchVQ(config, features_of(hps, device), BuiltinConfig.from_hps(hps))
    check_expected(made.features, int(hps.get("sketch_width", 0)), int(hps.get("muq_sr", 0)))
    return made.to(device)


def features_of(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> Features | None:
    """The frozen extractor that ``hps`` names, on its device; None for the built-in one."""
    config = SketchVQConfig.from_hps(hps)
    if config.is_builtin:
        return None
    settings: dict[str, Any] = {}
    if config.sketch_features in ("muq", "muq_package"):
        settings["layer"] = int(hps.get("sketch_muq_layer", -1))
        if hps.get("sketch_muq_path"):
            settings["path"] = hps["sketch_muq_path"]
        if config.sketch_features == "muq" and hps.get("precision"):
            settings["precision"] = hps["precision"]
    return make_features(config.sketch_features, **settings).to(device)


class SketchTask(CodecTask):
    """Train a sketch codebook on audio.

    Args:
        sketch: the codebook with its features.
        hps: hyperparameters.
    """

    kind = "sketch"
    shown = ("loss", "shape_error", "pitch_error", "melody", "error", "usage", "perplexity", "gn")

    def __init__(self, sketch: SketchVQ, hps: Mapping[str, Any]) -> None:
        super().__init__(sketch, hps)
        self._told = False

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(audio [N, T, C],)`` → the loss and metrics of :class:`SketchVQ`; in float32, whatever the precision."""
        audio = inputs[0]
        assert audio is not None
        started = self.model.quantiser.ready
        loss, metrics = self.model(audio)
        if self.model.quantiser.ready and not started:
            say(f"the codebook of {self.model.quantiser.codes} codes has started (k-means)")
        return loss, metrics

    @torch.no_grad()
    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        logger.audio("train_x_in", batch.audio[: logger.max_log], step)

    def save_beside(self, folder: Path) -> None:
        """Write the codebook's file, once it has started, to ``sketch_output`` or into the run's folder."""
        if not self.model.quantiser.ready:
            if not self._told:
                have, wanted = self.model.quantiser.gathered, self.model.quantiser.start_rows
                say(f"no codebook's file yet: {have} of {wanted} frames for the k-means start are gathered")
                self._told = True
            return
        path = Path(self.hps.get("sketch_output") or folder / CODEBOOK)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.model.codebook().save(path)

    def load_codebook_state(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            raise UserError("a checkpoint without a sketch codebook's statistics cannot be gone on from")
        super().load_codebook_state(state)
