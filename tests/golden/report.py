"""Comparing one golden file with what we compute, leaving no number unlooked at.

A checker walks a :class:`Golden` file: it *takes* what are inputs (``given``) and *expects* what are results
(``expect``). Every leaf of the file must end as one or the other; a leaf that no line of the checker knows is a
failure, so a new kind of quantity in a file cannot pass unnoticed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Path = tuple[Any, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf below ``value`` with its path; an empty dict or list is a leaf itself."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


@dataclass
class Quantity:
    """The comparison of one named quantity: the worst difference over all its leaves, relative to what is allowed."""

    name: str
    worst: float = 0.0  # largest |difference|
    share: float = 0.0  # largest |difference| / (abs + rel * |reference|); at most 1 passes
    tolerance: str = "exact"
    problem: str = ""  # a shape, type or exactness mismatch, in words

    @property
    def passed(self) -> bool:
        return not self.problem and self.share <= 1.0

    def shortfall(self) -> str:
        """By how much the numbers differ, in words."""
        return f"worst difference {self.worst:.3g}, {self.share:.3g} times its tolerance ({self.tolerance})"


@dataclass
class Golden:
    """One golden file: its content, and the record of which leaves were inputs, which were checked and how they did."""

    name: str
    content: Any
    folder: pathlib.Path = pathlib.Path()  # where the file lies, and those that it names
    seen: set[Path] = field(default_factory=set)
    quantities: dict[str, Quantity] = field(default_factory=dict)

    def _at(self, path: Path) -> Any:
        value = self.content
        for step in path:
            value = value[step]
        return value

    def _mark(self, path: Path) -> None:
        for leaf, _ in leaves(self._at(path), path):
            self.seen.add(leaf)

    def has(self, *path: Any) -> bool:
        """Whether the file holds something at ``path``."""
        try:
            self._at(path)
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def look(self, *path: Any) -> Any:
        """The value at ``path`` without counting it as known (to iterate over keys, say)."""
        return self._at(path)

    def given(self, *path: Any) -> Any:
        """The value at ``path``, an input of the computation; its leaves count as known."""
        self._mark(path)
        return self._at(path)

    def expect(self, *path: Any, got: Any, abs: float = 0.0, rel: float = 0.0, name: str | None = None) -> None:
        """Compare ``got`` with the value at ``path`` (nested alike); with ``abs`` and ``rel`` zero, exactly.

        A leaf passes if ``|got - reference| <= abs + rel * |reference|`` for each of its elements.
        """
        want = self._at(path)
        self._mark(path)
        name = name or ".".join(str(step) for step in path)
        quantity = self.quantities.setdefault(name, Quantity(name))
        if abs or rel:
            quantity.tolerance = " + ".join(filter(None, [f"{abs:g}" if abs else "", f"{rel:g} rel" if rel else ""]))
        self._compare(quantity, want, got, abs, rel, ())

    def _compare(self, quantity: Quantity, want: Any, got: Any, abs_: float, rel: float, where: Path) -> None:
        at = ".".join(map(str, where))
        if isinstance(want, dict):
            if not isinstance(got, dict) or {str(k) for k in want} != {str(k) for k in got}:
                keys = sorted(map(str, got)) if isinstance(got, dict) else type(got).__name__
                quantity.problem = quantity.problem or f"{at}: keys {keys} instead of {sorted(map(str, want))}"
                return
            by_name = {str(k): v for k, v in got.items()}
            for key, item in want.items():
                self._compare(quantity, item, by_name[str(key)], abs_, rel, (*where, key))
        elif isinstance(want, (list, tuple)):
            if isinstance(got, (torch.Tensor, np.ndarray)):
                got = list(got)
            if not isinstance(got, (list, tuple)) or len(got) != len(want):
                size = len(got) if hasattr(got, "__len__") else got
                quantity.problem = quantity.problem or f"{at}: {size} instead of {len(want)} items"
                return
            for index, item in enumerate(want):
                self._compare(quantity, item, got[index], abs_, rel, (*where, index))
        else:
            self._compare_leaf(quantity, want, got, abs_, rel, at)

    @staticmethod
    def _compare_leaf(quantity: Quantity, want: Any, got: Any, abs_: float, rel: float, at: str) -> None:
        numeric = isinstance(want, (int, float, torch.Tensor)) and not isinstance(want, bool)
        if not numeric or got is None or isinstance(got, str):
            if isinstance(got, torch.Tensor) and got.ndim == 0:
                got = got.item()
            if type(want) is not type(got) or want != got:
                quantity.problem = quantity.problem or f"{at}: {got!r} instead of {want!r}"
            return
        a, b = torch.as_tensor(want).detach().cpu(), torch.as_tensor(got).detach().cpu()
        if a.shape != b.shape:
            quantity.problem = quantity.problem or f"{at}: shape {tuple(b.shape)} instead of {tuple(a.shape)}"
            return
        if isinstance(want, torch.Tensor) and a.is_floating_point() != b.is_floating_point():
            quantity.problem = quantity.problem or f"{at}: {b.dtype} instead of {a.dtype}"
            return
        if not a.numel():
            return
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        difference = torch.where(same, torch.zeros_like(a), (a - b).abs())
        difference = torch.nan_to_num(difference, nan=float("inf"))
        allowed = abs_ + rel * torch.nan_to_num(a.abs(), posinf=0.0)
        share = torch.where(difference == 0, torch.zeros_like(a), difference / allowed)
        quantity.worst = max(quantity.worst, float(difference.max()))
        quantity.share = max(quantity.share, float(share.max()))

    def unknown(self) -> list[str]:
        """Paths of leaves that the checker neither took nor compared."""
        return [".".join(map(str, path)) for path, _ in leaves(self.content) if path not in self.seen]

    def failures(self) -> list[str]:
        """One line for each quantity that failed and for the quantities that nobody knows."""
        lines = [f"{q.name}: {q.problem or q.shortfall()}" for q in self.quantities.values() if not q.passed]
        unknown = self.unknown()
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            lines.append(f"quantities that no check knows: {', '.join(unknown[:5])}{more}")
        if not self.quantities:
            lines.append("nothing was compared")
        return lines

    def table(self) -> str:
        """The worst difference of each quantity against its tolerance, as text."""
        width = max([len(q.name) for q in self.quantities.values()] + [8])
        rows = [f"  {'quantity':<{width}}  {'worst':>10}  {'of allowed':>10}  tolerance"]
        for q in self.quantities.values():
            verdict = "" if q.passed else f"  FAILED {q.problem}"
            rows.append(f"  {q.name:<{width}}  {q.worst:>10.3g}  {q.share:>10.3g}  {q.tolerance}{verdict}")
        return "\n".join(rows)
