"""Vector quantisation with codebooks that follow moving averages.

Source: van den Oord et al. 2017, *Neural Discrete Representation Learning*, appendix A.1 (the moving-average update);
Dhariwal et al. 2020, *Jukebox*, section 3 (restarts of dead codes, one codebook a level).

All of it runs in float32 even under autocast. With several ranks the batch is the concatenation of the ranks' shares
in the order of their ranks: which rows become candidates is drawn from a generator that is alike on all ranks and seen
from that whole batch, so the number of ranks doesn't change what is drawn, and one sum over the ranks of ``l_bins``
vectors, candidates and counts is all that travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.distributed import all_reduce_, world
from songbloom.errors import UserError

CHUNK_ELEMENTS = 1 << 20  # distances computed at once: 4 MiB, which stay in a core's cache
TILE_NOISE = 0.01  # spread, before division by sqrt(width), of the copies that fill up too small a batch


class Randomness(Protocol):
    """Where a codebook's choices come from; must give the same on every rank."""

    def permutation(self, n: int) -> Tensor:
        """A random order of ``0 … n-1`` (int64); only its beginning is used."""

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Draws from the standard normal distribution."""


class SeededRandomness:
    """Choices from a generator of its own, on the CPU so that they don't depend on the device."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)

    def choose(self, n: int, count: int) -> Tensor:
        """``count`` different numbers below ``n`` in random order, without permuting all ``n`` where that's many."""
        if n >= 8 * count:
            drawn = torch.randint(n, (2 * count,), generator=self.generator).numpy()
            first = np.sort(np.unique(drawn, return_index=True)[1])
            if len(first) >= count:
                return torch.from_numpy(drawn[first[:count]])
        return self.permutation(n)[:count]

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _choose(randomness: Randomness, n: int, count: int) -> Tensor:
    choose = getattr(randomness, "choose", None)
    return choose(n, count) if choose else randomness.permutation(n)[:count]


class _StraightThrough(torch.autograd.Function):
    """The quantised value forwards, the gradient unchanged to the value that was quantised backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor) -> Tensor:
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def shares_of_ranks(local: int, device: torch.device) -> list[int]:
    """How many items (or rows) each rank holds, in the order of the ranks; a collective operation."""
    place = world()
    if place.size == 1:
        return [local]
    shares = torch.zeros(place.size, dtype=torch.int64, device=device)
    shares[place.rank] = local
    return all_reduce_(shares).tolist()


class Codebook(nn.Module):
    """One level's ``l_bins`` vectors of ``width`` numbers.

    The moving averages (``k_sum``, ``k_elem``) are no part of ``state_dict()``, as in published checkpoints;
    :meth:`Bottleneck.state` keeps them.

    Args:
        l_bins: number of vectors.
        width: their width.
        mu: what the moving averages keep a step.
        revival_threshold: restart a code used less than this a step, once training goes on from loaded weights.
    """

    codebook: Tensor
    k_sum: Tensor
    k_elem: Tensor

    def __init__(self, l_bins: int, width: int, mu: float, revival_threshold: float = 1.0) -> None:
        super().__init__()
        self.l_bins, self.width, self.mu, self.revival_threshold = l_bins, width, mu, revival_threshold
        self.initialised = False
        self.threshold = 1.0
        self.register_buffer("codebook", torch.zeros(l_bins, width))
        self.register_buffer("k_sum", torch.zeros(l_bins, width), persistent=False)
        self.register_buffer("k_elem", torch.zeros(l_bins), persistent=False)

    # -- quantising ----------------------------------------------------------------------------------------------

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output ``[N, W, T]`` → rows ``[N * T, width]`` and its spread, a number.

        Of an input twice as wide as the codebook the two halves are summed.

        Raises:
            UserError: any other width.
        """
        rows = x.float().transpose(1, 2).contiguous().view(-1, x.shape[1])
        if x.shape[1] == self.width:
            return rows, _spread(rows)
        if x.shape[1] == 2 * self.width:
            first, second = rows[:, : self.width], rows[:, self.width :]
            return first + second, _spread(first) + _spread(second)
        raise UserError(
            f"{x.shape[1]} channels reach a codebook of width {self.width}: set emb_width to match the encoder"
        )

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Index (int64 ``[R]``) and squared distance (``[R]``) of the nearest vector of each row ``[R, width]``.

        Distances are rounded in the published order, ``(|x|² - 2 x·k) + |k|²``, which decides between vectors that are
        nearly as near. Rows go by in chunks, so memory doesn't grow with them.
        """
        transposed = self.codebook.t()
        norms = transposed.square().sum(dim=0)
        codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        nearest = rows.new_empty(len(rows))
        chunk = max(1, (CHUNK_ELEMENTS if rows.device.type == "cpu" else 64 * CHUNK_ELEMENTS) // self.l_bins)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            distances = part @ transposed
            torch.sub(part.square().sum(dim=1, keepdim=True), distances, alpha=2, out=distances).add_(norms)
            torch.min(distances, dim=1, out=(nearest[start : start + chunk], codes[start : start + chunk]))
        return codes, nearest

    def encode(self, x: Tensor) -> Tensor:
        """``[N, W, T]`` → codes ``[N, T]``."""
        with torch.autocast(x.device.type, enabled=False):
            return self.nearest(self.rows(x)[0])[0].view(x.shape[0], x.shape[2])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[N, T]`` → ``[N, width, T]``."""
        return F.embedding(codes, self.codebook).transpose(1, 2)

    def forward(
        self, x: Tensor, randomness: Randomness, update: bool
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Quantise, and learn from the batch if ``update``.

        Args:
            x: encoder output ``[N, width, T]`` (or ``2 * width`` channels).
            randomness: for restarts; not drawn from unless ``update``.
            update: let the moving averages and the codebook follow this batch.

        Returns:
            codes ``[N, T]``, quantised float32 ``[N, width, T]`` (straight-through in training, without gradient in
            eval mode), commit loss, metrics ``fit`` and ``pn``, with ``update`` also ``entropy``, ``used_curr``,
            ``usage`` and ``dk``.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows, spread = self.rows(x)
            detached = rows.detach()
            if update and not self.initialised:
                self._begin(detached, randomness)
            codes, distances = self.nearest(detached)
            looked_up = F.embedding(codes, self.codebook)
            metrics = self._update(detached, codes, randomness) if update else {}
            commit_loss = F.mse_loss(rows, looked_up)
            metrics = {"fit": distances.mean(), "pn": spread.detach(), **metrics}
            quantised = _StraightThrough.apply(rows, looked_up) if self.training else looked_up
            batch, _, time = x.shape
            return codes.view(batch, time), quantised.view(batch, time, -1).transpose(1, 2), commit_loss, metrics

    # -- learning ------------------------------------------------------------------------------------------------

    def restore(self, num_tokens: float, threshold: float | None = None) -> None:
        """Rebuild the moving averages of a codebook that came without them, as if its codes were used evenly.

        Args:
            num_tokens: codes in one step's whole batch, all ranks together.
            threshold: restart a code whose moving average of uses a step falls below this (None: leave as it is).
        """
        each = num_tokens / self.l_bins
        self.k_sum.copy_(self.codebook * each)
        self.k_elem.fill_(each)
        self.initialised = True
        if threshold is not None:
            self.threshold = threshold

    def _begin(self, rows: Tensor, randomness: Randomness) -> None:
        """Start from the first batch; or, if there is a codebook already (loaded weights), from even use of it."""
        shares = shares_of_ranks(len(rows), rows.device)
        if self.codebook.any():
            self.restore(sum(shares), self.revival_threshold)
            return
        local, noise = self._candidates(rows, shares, randomness)
        drawn = all_reduce_(local) + noise
        if not drawn.isfinite().all():
            return  # an overflowed batch, whose step is skipped anyway: the next one will do
        self.codebook.copy_(drawn)
        self.k_sum.copy_(drawn)
        self.k_elem.fill_(1.0)
        self.initialised = True

    def _candidates(self, rows: Tensor, shares: Sequence[int], randomness: Randomness) -> tuple[Tensor, Tensor | float]:
        """``l_bins`` rows drawn from the whole batch.

        A batch of fewer rows than bins is repeated, with noise, until there are enough.

        Returns:
            the rows that this rank holds and zeros elsewhere ``[l_bins, width]``, to be summed over ranks; noise to
            add after the sum (0 if none).
        """
        total = sum(shares)
        noise: Tensor | float = 0.0
        if total < self.l_bins:
            repeats = -(-self.l_bins // total)
            drawn = randomness.noise((repeats * total, self.width))
            index = _choose(randomness, repeats * total, self.l_bins)
            noise = (drawn[index] * (TILE_NOISE / self.width**0.5)).to(rows)
            index = index % total
        else:
            index = _choose(randomness, total, self.l_bins)
        index = index.to(rows.device)
        if len(shares) == 1:
            return rows[index], noise
        first = sum(shares[: world().rank])
        mine = (index >= first) & (index < first + len(rows))
        return rows[(index - first).clamp(0, len(rows) - 1)].where(mine[:, None], 0.0), noise

    @torch.no_grad()
    def _update(self, rows: Tensor, codes: Tensor, randomness: Randomness) -> dict[str, Tensor]:
        """Follow the batch; codes that fell out of use restart at candidates. Returns the step's metrics."""
        shares = shares_of_ranks(len(rows), rows.device)
        candidates, noise = self._candidates(rows, shares, randomness)
        sums = torch.zeros_like(self.k_sum).index_add_(0, codes, rows)
        counts = torch.bincount(codes, minlength=self.l_bins).to(rows.dtype)
        if len(shares) > 1:
            travelling = all_reduce_(torch.cat([sums, candidates, counts[:, None]], dim=1))
            sums, candidates, one = travelling.split([self.width, self.width, 1], dim=1)
            counts = one[:, 0]
        k_sum = self.mu * self.k_sum + (1 - self.mu) * sums
        k_elem = self.mu * self.k_elem + (1 - self.mu) * counts
        used = k_elem >= self.threshold
        average = k_sum / k_elem.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codebook = torch.where(used[:, None], average, candidates + noise)
        change = _spread(codebook - self.codebook, centred=False)
        # An overflowed batch (half precision) is not learned from: its step is skipped too. Decided without waiting for
        # the device, and alike on every rank, since the sums are everybody's.
        healthy = sums.isfinite().all()
        for buffer, new in ((self.k_sum, k_sum), (self.k_elem, k_elem), (self.codebook, codebook)):
            buffer.copy_(torch.where(healthy, new, buffer))
        share = counts / counts.sum()
        return {
            "entropy": -(share * (share + 1e-8).log()).sum(),
            "used_curr": (counts >= self.threshold).sum(),
            "usage": used.sum().to(rows.dtype),
            "dk": change,
        }


def _spread(x: Tensor, centred: bool = True) -> Tensor:
    """Root mean square of the numbers, without their mean if ``centred``."""
    x = x.detach()
    return torch.linalg.vector_norm(x - x.mean() if centred else x) / x.numel() ** 0.5


class Bottleneck(nn.Module):
    """One :class:`Codebook` a level.

    Args:
        l_bins: vectors a codebook.
        width: their width (``emb_width``).
        mu: what the moving averages keep a step (``l_mu``).
        levels: number of levels.
        revival_threshold: restart a code used less than this a step, once training goes on from loaded weights.
        seed: of the draws; must be the same on every rank.

    Attributes:
        randomness: where draws come from; may be replaced (tests put recorded draws here).
    """

    def __init__(
        self, l_bins: int, width: int, mu: float, levels: int, *, revival_threshold: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Codebook(l_bins, width, mu, revival_threshold) for _ in range(levels))
        self.randomness: Randomness = SeededRandomness(seed)

    def codebook(self, level: int) -> Codebook:
        """The codebook of one level."""
        found = self.levels[level]
        assert isinstance(found, Codebook)
        return found

    def encode(self, x: Tensor, level: int) -> Tensor:
        """Encoder output ``[N, W, T]`` of one level → codes ``[N, T]``."""
        return self.codebook(level).encode(x)

    def decode(self, codes: Tensor, level: int) -> Tensor:
        """Codes ``[N, T]`` of one level → ``[N, width, T]``."""
        return self.codebook(level).decode(codes)

    def forward(self, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        """Quantise every level's encoder output, learning in training mode; per level as :meth:`Codebook.forward`."""
        results = [self.codebook(level)(x, self.randomness, self.training) for level, x in enumerate(xs)]
        codes, quantised, commits, metrics = (list(column) for column in zip(*results, strict=True))
        return codes, quantised, commits, metrics

    def restore(self, num_tokens: Sequence[float], threshold: float | None = None) -> None:
        """:meth:`Codebook.restore` for each level."""
        for level, tokens in enumerate(num_tokens):
            self.codebook(level).restore(tokens, threshold)

    def state(self) -> dict[str, Any]:
        """What a restart needs beyond the weights: plain data, copied, on the CPU."""
        levels = []
        for level in range(len(self.levels)):
            book = self.codebook(level)
            sums, counts = book.k_sum.detach().cpu().clone(), book.k_elem.detach().cpu().clone()
            levels.append(
                {"k_sum": sums, "k_elem": counts, "initialised": book.initialised, "threshold": book.threshold}
            )
        random = self.randomness.generator.get_state() if isinstance(self.randomness, SeededRandomness) else None
        return {"levels": levels, "random": random}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            UserError: it belongs to a bottleneck of other sizes, or is none.
        """
        levels = state.get("levels")
        if not isinstance(levels, (list, tuple)) or len(levels) != len(self.levels):
            count = len(levels) if isinstance(levels, (list, tuple)) else "no"
            raise UserError(
                f"codebook statistics of {count} levels for a model of {len(self.levels)}: set levels alike"
            )
        for index, saved in enumerate(levels):
            book = self.codebook(index)
            if saved["k_sum"].shape != book.k_sum.shape or saved["k_elem"].shape != book.k_elem.shape:
                raise UserError(
                    f"codebook statistics of shape {list(saved['k_sum'].shape)} for a codebook of shape "
                    f"{list(book.k_sum.shape)}: set l_bins and emb_width as in the checkpoint"
                )
        for index, saved in enumerate(levels):
            book = self.codebook(index)
            book.k_sum.copy_(saved["k_sum"])
            book.k_elem.copy_(saved["k_elem"])
            book.initialised, book.threshold = bool(saved["initialised"]), float(saved["threshold"])
        if state.get("random") is not None and isinstance(self.randomness, SeededRandomness):
            self.randomness.generator.set_state(state["random"])


class NoBottleneck(nn.Module):
    """In place of :class:`Bottleneck`, nothing is quantised: codes and quantised values are the encoder's output."""

    def encode(self, x: Tensor, level: int) -> Tensor:
        return x

    def decode(self, codes: Tensor, level: int) -> Tensor:
        return codes

    def forward(self, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        """``xs, xs``, and zeros for commit losses and metrics."""
        names = ["fit", "pn", "entropy", "used_curr", "usage", "dk"] if self.training else ["fit", "pn"]
        zero = torch.zeros((), device=xs[0].device)
        return list(xs), list(xs), [zero for _ in xs], [dict.fromkeys(names, zero) for _ in xs]

    def restore(self, num_tokens: Sequence[float], threshold: float | None = None) -> None:
        """Nothing to restore."""

    def state(self) -> dict[str, Any]:
        return {"levels": [], "random": None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""
