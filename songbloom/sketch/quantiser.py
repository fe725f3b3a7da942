"""A codebook that is being learned: k-means start, moving averages, revival of dead codes.

Source: van den Oord et al. 2017, *Neural Discrete Representation Learning*, appendix A.1 (the moving averages);
Łańcucki et al. 2020, *Robust Training of Vector Quantized Bottleneck Models* (k-means start); Zeghidour et al. 2021,
*SoundStream*, section 3.3 (codes that are hardly used start again from a row of the batch).

Every rank holds the same codebook, to the bit: what is learned from is summed over ranks, and draws come from one
generator that is alike on all of them. The rows for the k-means start are shared with all ranks as they come, so that a
run that is stopped in the middle of gathering goes on from the checkpoint of one rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.distributed import all_reduce_, world
from songbloom.errors import UserError
from songbloom.sketch.codebook import DISTANCES, nearest_codes
from songbloom.vqvae.bottleneck import SeededRandomness, shares_of_ranks


def gathered(rows: Tensor, shares: list[int]) -> Tensor:
    """The rows of all ranks ``[sum(shares), width]``, in the order of the ranks, on every rank."""
    if len(shares) == 1:
        return rows
    first = sum(shares[: world().rank])
    everybody = rows.new_zeros(sum(shares), rows.shape[1])
    everybody[first : first + len(rows)] = rows
    return all_reduce_(everybody)  # zeros elsewhere: nothing is rounded


def shared_nearest(rows: Tensor, vectors: Tensor, distance: str) -> Tensor:
    """:func:`nearest_codes` of rows that every rank holds, each rank searching for its part of them."""
    place = world()
    if place.size == 1:
        return nearest_codes(rows, vectors, distance)
    edges = [len(rows) * rank // place.size for rank in range(place.size + 1)]
    mine = slice(edges[place.rank], edges[place.rank + 1])
    codes = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    codes[mine] = nearest_codes(rows[mine], vectors, distance)
    return all_reduce_(codes)


class Quantiser(nn.Module):
    """``codes`` vectors of ``width`` numbers that follow the rows that come by.

    Args:
        codes: how many.
        width: of a vector.
        distance: ``cosine`` (rows and vectors of length 1) or ``euclidean``.
        decay: what the moving averages keep a step.
        start_rows: rows that are gathered before the k-means start.
        start_rounds: rounds of k-means.
        revival: a code that is used less than this share of an even use starts again; 0 revives none.
        seed: of the draws; the same on every rank.

    Attributes:
        ready: whether the start is done; before it, rows are only gathered.

    Raises:
        UserError: values that make no quantiser.
    """

    vectors: Tensor
    sums: Tensor
    uses: Tensor

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        distance: str = "cosine",
        decay: float = 0.99,
        start_rows: int = 0,
        start_rounds: int = 10,
        revival: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if codes < 2:
            raise UserError(f"a sketch codebook of {codes} codes: it needs at least 2")
        if distance not in DISTANCES:
            raise UserError(f"sketch_distance is {distance!r}; known are {', '.join(DISTANCES)}")
        if not 0 <= decay < 1 or not 0 <= revival < 1 or start_rounds < 0:
            raise UserError(
                f"sketch_decay is {decay}, sketch_revival {revival}, sketch_start_rounds {start_rounds}: the first two "
                "must be at least 0 and below 1, the last at least 0"
            )
        self.codes, self.width, self.distance, self.decay = codes, width, distance, decay
        self.start_rows, self.start_rounds, self.revival = max(codes, start_rows or 2 * codes), start_rounds, revival
        self.ready = False
        self.waiting: list[Tensor] = []  # rows for the start, alike on every rank
        self.randomness = SeededRandomness(seed)
        self.register_buffer("vectors", torch.zeros(codes, width))
        self.register_buffer("sums", torch.zeros(codes, width), persistent=False)
        self.register_buffer("uses", torch.zeros(codes), persistent=False)

    @property
    def gathered(self) -> int:
        """Rows that wait for the start."""
        return sum(map(len, self.waiting))

    def project(self, rows: Tensor) -> Tensor:
        """Rows as they are compared: of length 1 for ``cosine``."""
        return F.normalize(rows.float(), dim=-1) if self.distance == "cosine" else rows.float()

    def forward(self, rows: Tensor, gather: bool = True) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Quantise rows, and learn from them in training mode.

        Args:
            rows: ``[R, width]``, already through :meth:`project`.
            gather: whether rows count for the start, where it isn't done.

        Returns:
            codes ``[R]``; their vectors ``[R, width]`` without gradient (before the start: the rows themselves and
            codes of -1); metrics.
        """
        rows = rows.detach()
        if self.training and gather and not self.ready:
            self._gather(rows)
        if not self.ready:
            return torch.full((len(rows),), -1, device=rows.device), rows, {}
        codes = nearest_codes(rows, self.vectors, self.distance)
        looked_up = F.embedding(codes, self.vectors)
        spread = centred(rows).square().sum(dim=1).mean().clamp_min(1e-12)
        metrics = {"error": (rows - looked_up).square().sum(dim=1).mean() / spread}
        if self.training:
            metrics |= self._follow(rows, codes)
        return codes, looked_up, metrics

    # -- the start -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _gather(self, rows: Tensor) -> None:
        shares = shares_of_ranks(len(rows), rows.device)
        everybody = gathered(rows, shares)
        if not everybody.isfinite().all():
            return  # an overflowed batch, whose step is skipped anyway
        self.waiting.append(everybody.clone())
        if self.gathered >= self.start_rows:
            self._start(torch.cat(self.waiting), sum(shares))
            self.waiting = []

    def _start(self, rows: Tensor, rows_a_step: int) -> None:
        """K-means over the gathered rows; a cluster that loses all its rows starts again at one that is drawn."""
        drawn = self.randomness.choose(len(rows), self.codes).to(rows.device)
        self.vectors.copy_(rows[drawn])
        counts = rows.new_ones(self.codes)
        for _ in range(self.start_rounds):
            codes = shared_nearest(rows, self.vectors, self.distance)
            counts = torch.bincount(codes, minlength=self.codes).to(rows.dtype)
            means = torch.zeros_like(self.vectors).index_add_(0, codes, rows) / counts.clamp_min(1)[:, None]
            again = rows[self.randomness.choose(len(rows), self.codes).to(rows.device)]
            self.vectors.copy_(self.project(torch.where(counts[:, None] > 0, means, again)))
        even = rows_a_step / self.codes
        self.uses.copy_((counts * (rows_a_step / len(rows))).clamp_min(even * max(self.revival, 0.1)))
        self.sums.copy_(self.vectors * self.uses[:, None])
        self.ready = True

    # -- following -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _follow(self, rows: Tensor, codes: Tensor) -> dict[str, Tensor]:
        shares = shares_of_ranks(len(rows), rows.device)
        total = sum(shares)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
        counts = torch.bincount(codes, minlength=self.codes).to(rows.dtype)
        candidates = self._candidates(rows, shares)
        if len(shares) > 1:
            travelling = all_reduce_(torch.cat([sums, candidates, counts[:, None]], dim=1))
            sums, candidates, one = travelling.split([self.width, self.width, 1], dim=1)
            counts = one[:, 0]
        new_uses = self.decay * self.uses + (1 - self.decay) * counts
        new_sums = self.decay * self.sums + (1 - self.decay) * sums
        even = total / self.codes
        dead = new_uses < self.revival * even
        # A code that starts again gets an even use for a beginning, so that it has time to find rows of its own.
        new_uses = torch.where(dead, even, new_uses)
        new_sums = torch.where(dead[:, None], candidates * even, new_sums)
        average = new_sums / new_uses.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        # An overflowed batch is not learned from; decided alike on every rank, since the sums are everybody's.
        healthy = sums.isfinite().all()
        for buffer, new in ((self.uses, new_uses), (self.sums, new_sums), (self.vectors, self.project(average))):
            buffer.copy_(torch.where(healthy, new, buffer))
        return {
            "usage": 1 - dead.float().mean(),
            "revived": dead.sum().float(),
            "used_now": (counts > 0).float().mean(),
            "perplexity": perplexity(new_uses),
        }

    def _candidates(self, rows: Tensor, shares: list[int]) -> Tensor:
        """A row of the whole batch for each code; those of other ranks are zeros, to be summed over ranks."""
        total = sum(shares)
        order = self.randomness.choose(total, min(self.codes, total))
        index = order[torch.arange(self.codes) % len(order)].to(rows.device)
        if len(shares) == 1:
            return rows[index]
        first = sum(shares[: world().rank])
        mine = (index >= first) & (index < first + len(rows))
        return rows[(index - first).clamp(0, len(rows) - 1)].where(mine[:, None], 0.0)

    # -- going on ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a restart needs beyond the weights: plain data, copied, on the CPU."""
        return {
            "sums": self.sums.detach().cpu().clone(),
            "uses": self.uses.detach().cpu().clone(),
            "ready": self.ready,
            "waiting": [rows.cpu().clone() for rows in self.waiting],
            "random": self.randomness.generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            UserError: it belongs to a quantiser of another size.
        """
        if state["sums"].shape != self.sums.shape:
            raise UserError(
                f"statistics of a sketch codebook of {list(state['sums'].shape)}, but this one is of "
                f"{list(self.sums.shape)}: set sketch_codes, and the sizes of the features, as in the checkpoint"
            )
        self.sums.copy_(state["sums"])
        self.uses.copy_(state["uses"])
        self.ready = bool(state["ready"])
        self.waiting = [rows.to(self.sums.device) for rows in state["waiting"]]
        self.randomness.generator.set_state(state["random"])


def centred(rows: Tensor) -> Tensor:
    """Rows less their mean."""
    return rows - rows.mean(dim=0, keepdim=True)


def perplexity(uses: Tensor) -> Tensor:
    """How many codes, evenly used, would be as hard to guess as these: ``exp`` of the entropy of their uses."""
    share = uses / uses.sum().clamp_min(1e-12)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum())
