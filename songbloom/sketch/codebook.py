"""The codebook of a sketch: from features to one code a frame, and the file that it lives in.

A file is plain data that ``torch.load(path, weights_only=True)`` reads: the vectors, how features are normalised and
compared with them, which features they were made for (name, layer, a fingerprint of the weights), facts of its training
and a digest over all that decides a code. Built-in features travel inside the file; MuQ's weights don't.

Nothing here is ever made up: without a codebook, or with one of another size or for other features, there are no codes.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from songbloom import __version__
from songbloom.errors import UserError
from songbloom.files import written_beside
from songbloom.sketch.features import Features, weights_digest

FORMAT = 1
KIND = "sketch_codebook"
DISTANCES = ("cosine", "euclidean")
NORMALISATIONS = ("none", "standard", "layer")
SIMILARITIES_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}  # numbers held while codes are searched
STD_FLOOR = 1e-6


def normalise(features: Tensor, normalisation: str, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Features as they are compared with the codebook, float32.

    Args:
        features: ``[…, width]``.
        normalisation: ``none``; ``standard``, by ``mean`` and ``std [width]``; ``layer``, each frame by its own.
    """
    features = features.float()
    if normalisation == "layer":
        return F.layer_norm(features, features.shape[-1:])
    if normalisation == "standard":
        assert mean is not None and std is not None
        return (features - mean) / std.clamp_min(STD_FLOOR)
    return features


@torch.no_grad()
def nearest_codes(rows: Tensor, vectors: Tensor, distance: str) -> Tensor:
    """The nearest vector of each row; of equals the first.

    Args:
        rows: ``[R, width]``, float32.
        vectors: ``[codes, width]``.
        distance: ``cosine``, the smallest angle, or ``euclidean``.

    Returns:
        int64 ``[R]``. Similarities are held for a few rows at a time, so memory does not grow with them.
    """
    if distance == "cosine":
        vectors, offset = F.normalize(vectors, dim=1), None
    else:
        offset = 0.5 * vectors.square().sum(dim=1)
    transposed = vectors.t()
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    at_once = max(1, SIMILARITIES_AT_ONCE.get(rows.device.type, 1 << 24) // len(vectors))
    for start in range(0, len(rows), at_once):
        # |x - k|² is least where x·k - |k|²/2 is greatest; for the angle a row's own length does not matter.
        similarity = rows[start : start + at_once] @ transposed
        if offset is not None:
            similarity -= offset
        codes[start : start + at_once] = similarity.argmax(dim=1)
    return codes


@dataclass(frozen=True)
class SketchCodebook:
    """A codebook that is ready to be used.

    Attributes:
        vectors: float32 ``[codes, width]``.
        features: what the features were (:meth:`songbloom.sketch.features.Features.identity`).
        distance: one of :data:`DISTANCES`.
        normalisation: one of :data:`NORMALISATIONS`.
        mean, std: ``[width]``, for ``standard``.
        state: weights of the features, if they travel in the file.
        trained: facts about its training, to be shown.

    Raises:
        UserError: parts that don't belong together.
    """

    vectors: Tensor
    features: Mapping[str, Any]
    distance: str = "euclidean"
    normalisation: str = "none"
    mean: Tensor | None = None
    std: Tensor | None = None
    state: Mapping[str, Tensor] | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("distance", self.distance, DISTANCES),
            ("normalisation", self.normalisation, NORMALISATIONS),
        ):
            if value not in known:
                raise UserError(f"a sketch codebook's {name} is {value!r}; known are {', '.join(known)}")
        vectors = self.vectors
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.numel():
            raise UserError("a sketch codebook without vectors [codes, width]")
        if not vectors.isfinite().all():
            raise UserError("a sketch codebook with vectors that are no numbers: its training has failed")
        if len(vectors) > 1 and not (vectors != vectors[0]).any():
            raise UserError("a sketch codebook whose vectors are all the same: it was never trained")
        if self.width != self.features.get("width", self.width):
            raise UserError(
                f"a sketch codebook of width {self.width} for features of width {self.features['width']}: "
                "they don't belong together"
            )
        if self.normalisation == "standard":
            for part in (self.mean, self.std):
                if part is None or part.shape != (self.width,):
                    raise UserError(f"a sketch codebook that normalises needs mean and std of {self.width} numbers")

    @property
    def size(self) -> int:
        """Codes."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.vectors.shape[1]

    @property
    def digest(self) -> str:
        """A fingerprint of all that decides which code a frame gets; caches and models remember it."""
        told = {
            "features": {key: self.features[key] for key in sorted(self.features)},
            "distance": self.distance,
            "normalisation": self.normalisation,
        }
        tensors = {"vectors": self.vectors}
        if self.mean is not None and self.std is not None:
            tensors |= {"mean": self.mean, "std": self.std}
        if self.state is not None:
            tensors |= {f"state.{name}": tensor for name, tensor in self.state.items()}
        text = json.dumps(told, sort_keys=True) + weights_digest(tensors)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to(self, device: torch.device | str) -> SketchCodebook:
        """The same on another device; features that travel with it stay where they are."""
        mean = None if self.mean is None else self.mean.to(device)
        std = None if self.std is None else self.std.to(device)
        return replace(self, vectors=self.vectors.to(device), mean=mean, std=std)

    def rows(self, features: Tensor) -> Tensor:
        """Features ``[…, width]`` as they are compared with the vectors: normalised, in float32.

        Raises:
            UserError: another width.
        """
        if features.shape[-1] != self.width:
            raise UserError(
                f"features of width {features.shape[-1]} for a codebook of width {self.width}: they are not the ones "
                "that it was made for"
            )
        return normalise(features, self.normalisation, self.mean, self.std)

    def encode(self, features: Tensor) -> Tensor:
        """Features ``[N, frames, width]`` → codes, int64 ``[N, frames]``.

        Raises:
            UserError: another width, or features that are no numbers.
        """
        rows = self.rows(features)
        if not rows.isfinite().all():
            raise UserError("sketch features with values that are no numbers: compute them in fp32")
        return nearest_codes(rows.flatten(0, -2), self.vectors, self.distance).view(features.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[N, frames]`` → their vectors ``[N, frames, width]`` (of normalised features)."""
        return F.embedding(codes, self.vectors)

    # -- checks --------------------------------------------------------------------------------------------------

    def check_size(self, wanted: int, where: str = "the model") -> None:
        """That a model's table of codes has this codebook's size.

        Raises:
            UserError: it hasn't.
        """
        if self.size != wanted:
            raise UserError(
                f"the sketch codebook has {self.size} codes and {where} {wanted}: their codes don't mean the same; use "
                "the codebook that it was trained with"
            )

    def check_digest(self, wanted: str, where: str = "the model") -> None:
        """That a model was trained with this very codebook.

        Raises:
            UserError: it wasn't.
        """
        if self.digest != wanted:
            raise UserError(
                f"{where} was trained with another sketch codebook (digest {wanted}, this one's is {self.digest}): its "
                "codes would mean nothing; use the codebook that it was trained with"
            )

    def check_features(self, features: Features) -> None:
        """That it was made for these features.

        Raises:
            UserError: for others; tells what differs.
        """
        here, there = features.identity(), dict(self.features)
        for key in ("name", "width", "layer", "sample_rate", "weights", "sizes"):
            if there.get(key) is not None and there.get(key) != here.get(key):
                raise UserError(
                    f"the sketch codebook was made for features {there.get('name')!r} with {key} {there[key]!r}, but "
                    f"these have {here.get(key)!r}: use the features that it was made for, or train it on these"
                )

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write it, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        content = {
            "format": FORMAT,
            "kind": KIND,
            "version": __version__,
            "digest": self.digest,
            "vectors": self.vectors.detach().cpu().clone(),
            "features": dict(self.features),
            "distance": self.distance,
            "normalisation": self.normalisation,
            "mean": None if self.mean is None else self.mean.detach().cpu().clone(),
            "std": None if self.std is None else self.std.detach().cpu().clone(),
            "state": None
            if self.state is None
            else {name: tensor.detach().cpu().clone() for name, tensor in self.state.items()},
            "trained": dict(self.trained),
        }
        with written_beside(Path(path)) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # torch's writer tells a full disk in this way
                raise OSError(str(error).splitlines()[0]) from error


def load_codebook(path: Path | str | None, *, size: int | None = None) -> SketchCodebook:
    """Read a codebook, ours or one of those that other programs write for SongBloom.

    Of others two layouts are known: ``vector_quantize_pytorch``'s state (``_codebook.embed``), bare or under
    ``state_dict``, and one tensor ``codebook.weight``. Neither says which features it was made for; the last hidden
    state of MuQ is assumed, as those programs use it, and the nearest vector by Euclidean distance.

    Args:
        path: the file; None or an empty path is a missing codebook.
        size: codes that the model has; another number is an error.

    Raises:
        UserError: it is missing, damaged, of a newer version, not a codebook, changed since it was written, or of
            another size.
    """
    if not path:
        raise UserError(
            "no sketch codebook is given: train one (train.py --vq --hps=sketch_vq) or give its file; without one "
            "there are no sketch codes"
        )
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such sketch codebook; train one (train.py --vq --hps=sketch_vq) or give its file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: not a file that can be read safely, so no sketch codebook") from error
    except Exception as error:  # bytes that are no file of torch's can make it raise anything
        raise UserError(f"{path}: damaged or cut short, or no sketch codebook") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: no sketch codebook (it holds a {type(content).__name__})")
    try:
        found = _ours(content, path) if content.get("kind") == KIND else _of_others(content, path)
        if size is not None:
            found.check_size(size)
    except UserError as error:
        raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from error
    return found


def _ours(content: Mapping[str, Any], path: Path) -> SketchCodebook:
    if not isinstance(content.get("format"), int) or content["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version ({content.get('version')}); update this one")
    try:
        names = ("vectors", "features", "distance", "normalisation", "mean", "std", "state", "trained")
        found = SketchCodebook(**{name: content[name] for name in names})
        same = found.digest == content["digest"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a sketch codebook with parts missing ({error}); it is damaged") from error
    if not same:
        raise UserError(f"{path}: its digest doesn't fit what it holds: the file is damaged, or was changed by hand")
    return found


def _of_others(content: Mapping[str, Any], path: Path) -> SketchCodebook:
    state = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    for name in ("_codebook.embed", "codebook.weight"):
        found = state.get(name)
        if isinstance(found, Tensor):
            vectors = found.float().squeeze(0) if found.ndim == 3 else found.float()
            initted = state.get("_codebook.initted")
            if isinstance(initted, Tensor) and not bool(initted.bool().all()):
                raise UserError(f"{path}: a codebook that was never started; train it")
            width = vectors.shape[-1] if vectors.ndim else 0
            identity = {"name": "muq", "layer": None, "width": width, "sample_rate": 24000, "weights": None}
            return SketchCodebook(vectors, identity, trained={"from": path.name})
    raise UserError(f"{path}: no sketch codebook is in it (keys: {', '.join(map(str, list(content)[:4])) or 'none'})")
