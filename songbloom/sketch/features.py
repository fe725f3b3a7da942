"""What a sketch is made of: feature extractors by name, all with one face.

An extractor hears audio at any sample rate with any number of channels, and gives 25 frames a second. A sketch of ``T``
samples has ``T * 25 // sample_rate`` frames, the number of whole frames, which is also how many latents the VAE makes
of them; frame ``i`` is about the audio from ``i / 25`` to ``(i + 1) / 25`` seconds.

Add one of your own with :func:`register`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from songbloom.errors import UserError, did_you_mean
from songbloom.sketch import muq

FRAME_RATE = 25
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frame_count(samples: int, sample_rate: int) -> int:
    """Frames of so many samples: the whole ones, ``samples * 25 // sample_rate``."""
    return samples * FRAME_RATE // sample_rate


def samples_of(frames: int, sample_rate: int) -> int:
    """The fewest samples that have so many frames."""
    return -(-frames * sample_rate // FRAME_RATE)


def to_mono_at(audio: Tensor, sample_rate: int, wanted: int) -> Tensor:
    """``[N, T, C]`` → the mean of the channels at another rate, float32 ``[N, ceil(T * wanted / sample_rate)]``.

    Raises:
        UserError: another shape, a sample rate that is none, or values that are no audio.
    """
    if audio.ndim != 3 or audio.shape[2] < 1:
        raise UserError(f"audio of shape {list(audio.shape)}: a sketch is made of [batch, time, channels]")
    if sample_rate < FRAME_RATE:
        raise UserError(f"a sample rate of {sample_rate} Hz: give that of the audio, at least {FRAME_RATE}")
    mono = audio.float().mean(dim=2)
    if not mono.isfinite().all():
        raise UserError("audio with values that are no numbers: no sketch can be made of it")
    if sample_rate == wanted:
        return mono
    length = -(-mono.shape[1] * wanted // sample_rate)
    made = np.zeros((len(mono), length), np.float32)
    for row, samples in enumerate(mono.cpu().numpy()):
        if samples.size:
            resampled = soxr.resample(samples, sample_rate, wanted, quality="VHQ")[:length]
            made[row, : len(resampled)] = resampled
    return torch.from_numpy(made).to(audio.device)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights: of their names, shapes and values, wherever they lie and in whatever order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


class Features(nn.Module):
    """The base of extractors.

    Attributes:
        name: what codebooks call it; extractors that give the same features share it.
        width: of a feature.
        sample_rate: what it hears inside, Hz.
        layer: which of its states the features are, for those that have several.
    """

    name = ""
    width: int
    sample_rate: int
    layer: int | None = None

    def hear(self, mono: Tensor) -> Tensor:
        """``[N, T]`` at ``sample_rate`` → features, at least ``frame_count(T, sample_rate)`` frames of them."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A fingerprint of the weights that make the features."""
        return weights_digest(self.state_dict())

    def identity(self) -> dict[str, Any]:
        """What a codebook remembers of the features that it was made for: plain data."""
        return {
            "name": self.name,
            "layer": self.layer,
            "width": self.width,
            "sample_rate": self.sample_rate,
            "weights": self.fingerprint(),
        }

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def extract(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Features of audio.

        Args:
            audio: ``[N, T, C]``, of any length; the channels are averaged.
            sample_rate: of it, Hz.

        Returns:
            float32 ``[N, T * 25 // sample_rate, width]``, on the extractor's device.

        Raises:
            UserError: no such audio.
        """
        frames = frame_count(audio.shape[1] if audio.ndim == 3 else 0, sample_rate)
        mono = to_mono_at(audio, sample_rate, self.sample_rate).to(self.device)
        if not frames or not len(mono):
            return torch.zeros(len(mono), frames, self.width, device=self.device)
        return self.hear(mono)[:, :frames].float()


REGISTRY: dict[str, Callable[..., Features]] = {}


def register(name: str, maker: Callable[..., Features]) -> None:
    """Let :func:`make_features` know a maker of extractors.

    Raises:
        ValueError: the name is taken.
    """
    if name in REGISTRY:
        raise ValueError(f"there are features {name!r} already")
    REGISTRY[name] = maker


def make_features(name: str, **settings: Any) -> Features:
    """An extractor by name, in eval mode, its weights frozen.

    Args:
        name: one of :data:`REGISTRY`.
        settings: its maker's own.

    Raises:
        UserError: no such name.
    """
    import songbloom.sketch.builtin  # noqa: F401  (it registers itself, and needs this module for that)

    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UserError(f"no sketch features are called {name!r}{did_you_mean(name, REGISTRY)}; there are {known}")
    return REGISTRY[name](**settings).eval().requires_grad_(False)


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


def _muq_from_files(path: str | Path = "", **settings: Any) -> Features:
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


def _muq_package(path: str = "OpenMuQ/MuQ-large-msd-iter", device: str = "cpu", **settings: Any) -> Features:
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


register("muq", _muq_from_files)
register("muq_package", _muq_package)
