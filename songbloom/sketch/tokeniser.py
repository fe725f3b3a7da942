"""Audio to sketch codes: features and their codebook, bound together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.sketch import builtin
from songbloom.sketch.codebook import SketchCodebook, load_codebook
from songbloom.sketch.extractors import make_features
from songbloom.sketch.features import FRAME_RATE, Features, frame_count


class SketchTokeniser:
    """Audio to codes, 25 a second.

    Args:
        features: the extractor.
        codebook: made for it.

    Raises:
        UserError: the codebook was made for other features.
    """

    def __init__(self, features: Features, codebook: SketchCodebook) -> None:
        codebook.check_features(features)
        self.features = features
        self.codebook = codebook.to(features.device)

    @property
    def size(self) -> int:
        """Codes."""
        return self.codebook.size

    @property
    def digest(self) -> str:
        """A fingerprint of features and codebook, for caches and models: equal ones give equal codes."""
        return self.codebook.digest

    def length(self, samples: int, sample_rate: int) -> int:
        """How many codes so many samples have: ``samples * 25 // sample_rate``, the whole frames."""
        return frame_count(samples, sample_rate)

    def encode(self, audio: Tensor, sample_rate: int) -> Tensor:
        """The sketch of audio.

        Args:
            audio: ``[N, T, C]``, any length and number of channels.
            sample_rate: of it, Hz.

        Returns:
            int64 ``[N, T * 25 // sample_rate]``; code ``i`` is of the audio from ``i / 25`` to ``(i + 1) / 25``
            seconds.

        Raises:
            UserError: no such audio.
        """
        made = self.codebook.encode(self.features.extract(audio, sample_rate))
        assert made.shape[1] == self.length(audio.shape[1], sample_rate)
        return made


def load_tokeniser(
    codebook: Path | str | None,
    *,
    size: int | None = None,
    features: str = "",
    width: int = 0,
    heard: int = 0,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> SketchTokeniser:
    """A tokeniser from a codebook's file.

    Args:
        codebook: the file.
        size: codes that the model has.
        features: the extractor's name (empty: the one that the file names).
        width, heard: numbers of a feature and the rate that it hears in Hz, as somebody takes them to be; 0: not said.
        device: where to compute.
        settings: of the extractor: for ``muq`` the ``path`` of its weights, ``precision``, ``piece``, ``context``.

    Raises:
        UserError: anything is missing, damaged or doesn't fit.
    """
    book = load_codebook(codebook, size=size)
    name = str(features or book.features.get("name"))
    if name == builtin.BuiltinFeatures.name and book.state is not None:
        if settings:
            raise UserError(f"built-in sketch features have no {next(iter(settings))}: they travel in the codebook")
        made: Features = builtin.from_identity(book.features, book.state)
    else:
        layer = book.features.get("layer")
        if layer is not None and book.features.get("name") == "muq":
            settings.setdefault("layer", int(layer))
        made = make_features(name, **settings)
    check_expected(made, width, heard)
    return SketchTokeniser(made.to(device), book)


def check_expected(features: Features, width: int, heard: int) -> None:
    """Refuse features of another width, or that hear another rate, than somebody takes them to have (0: not said).

    Raises:
        UserError: names the option.
    """
    if width and width != features.width:
        raise UserError(
            f"sketch_width={width}: features {features.name!r} have {features.width} numbers; leave it out, or give "
            "other features"
        )
    if heard and heard != features.sample_rate:
        raise UserError(
            f"--muq_sr={heard}: features {features.name!r} hear {features.sample_rate} Hz, whatever rate songs have; "
            "leave it out"
        )


__all__ = ["FRAME_RATE", "SketchTokeniser", "check_expected", "load_tokeniser"]
