"""Feature extractors by name. Add one of your own with :func:`register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from songbloom.errors import UserError, did_you_mean
from songbloom.sketch import builtin, muq_features
from songbloom.sketch.features import Features

REGISTRY: dict[str, Callable[..., Features]] = {
    "builtin": builtin.from_settings,
    "muq": muq_features.from_files,
    "muq_package": muq_features.from_package,
}


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
    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UserError(f"no sketch features are called {name!r}{did_you_mean(name, REGISTRY)}; there are {known}")
    return REGISTRY[name](**settings).eval().requires_grad_(False)
