"""Weights & Biases beside TensorBoard, for those who ask for it; offline too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from songbloom.errors import UserError

SECRETS = ("wandb_entity",)  # settings that are the account's, not the run's


class WandbLog:
    """One run there (rank 0 only).

    Args:
        hps: ``wandb_project``, ``wandb_entity``, ``wandb_name`` (empty: ``name``), ``wandb_mode``; all others are shown
            as the run's configuration.
        folder: the run's folder; files go to its ``wandb``. The run's id is its name, so that a run that goes on is
            one run there too.

    Raises:
        UserError: the package is missing, or it cannot begin.
    """

    def __init__(self, hps: Mapping[str, Any], folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs the wandb package: pip install wandb, or leave --wandb out") from None
        self._wandb = wandb
        folder.mkdir(parents=True, exist_ok=True)
        name = hps["wandb_name"] or hps["name"]
        try:
            self._run = wandb.init(
                project=hps["wandb_project"],
                entity=hps["wandb_entity"] or None,
                name=name,
                id="".join(c if c.isalnum() or c in "-_" else "_" for c in f"{hps['wandb_project']}-{hps['name']}"),
                mode=hps["wandb_mode"],
                resume="allow",
                dir=str(folder),
                config={key: value for key, value in hps.items() if key not in SECRETS},
            )
        except (
            Exception
        ) as error:  # its errors share no base; an account or a network that is missing are the usual ones
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
            raise UserError(f"--wandb: cannot begin ({reason}); --wandb_mode=offline needs no network") from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        self._run.log(dict(values), step=step)

    def audio(self, tag: str, clip: np.ndarray, step: int, sample_rate: int) -> None:
        """A clip ``[T, C]`` in ±1."""
        self._run.log({tag: self._wandb.Audio(clip, sample_rate=sample_rate)}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()
