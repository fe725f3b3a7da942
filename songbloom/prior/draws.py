"""Drawing one token an item from logits, each item from its own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.prior.filters import check_filters, filter_logits

WITHOUT_DOUBLES = ("mps",)  # kinds of devices that have no float64


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Refuse settings that cannot be sampled with.

    Raises:
        UserError: a setting is out of its range, or both filters are set.
    """
    if not temperature >= 0:
        raise UserError(f"temperature is {temperature}: it must be 0 (always the likeliest code) or more")
    check_filters(top_k, top_p)


def item_generators(
    n_samples: int, temperature: float, generators: Sequence[torch.Generator] | None
) -> Sequence[torch.Generator]:
    """One generator an item: those given, or else generators seeded 0, 1, 2, …

    Raises:
        UserError: the number of generators is not ``n_samples``.
    """
    if temperature == 0:
        return ()
    if generators is None:
        return [torch.Generator().manual_seed(item) for item in range(n_samples)]
    if len(generators) != n_samples:
        raise UserError(f"{len(generators)} generators for {n_samples} samples: give one generator a sample")
    return generators


def draw(
    logits: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 0.0, generators: Sequence[torch.Generator]
) -> Tensor:
    """One token an item: ``[N, bins]`` logits → ``[N]`` int64.

    The largest of logits plus Gumbel noise is a draw from their softmax (Gumbel 1954). Against the inverse of the
    cumulative sum it has the merit that a rounding difference of 1e-6 in the logits (a batch of another size runs
    other matrix kernels) changes about one draw in a million instead of one in some thousands. Each call takes exactly
    ``bins`` float64 numbers from each generator, so a run can be resumed from the generators' states; in float32 the
    largest of some thousand noises would have only about 13 bits left.
    """
    noise = Noise(generators, logits.shape[-1], logits.device, ahead=1)
    return draw_with(logits, noise, temperature=temperature, top_k=top_k, top_p=top_p)


class Noise:
    """Gumbel noise for one draw after the other, in memory that is taken once.

    Random numbers come from where the generators are, as a rule the CPU. On CUDA they reach the device without anybody
    waiting: from pinned memory, of which there is a ring, so that the host can run some draws ahead. For a device
    without float64 they stay on the CPU, and there :func:`draw_with` chooses.

    Args:
        generators: one an item.
        bins: numbers of each.
        device: of the logits.
        ahead: places of that ring.
    """

    AHEAD = 8

    def __init__(
        self, generators: Sequence[torch.Generator], bins: int, device: torch.device, *, ahead: int = AHEAD
    ) -> None:
        device = torch.device("cpu") if device.type in WITHOUT_DOUBLES else device
        self._generators, self._device = generators, device
        source = generators[0].device if generators else device
        self._copied = source.type == "cpu" and device.type == "cuda"
        self._ring = [
            torch.empty(
                (len(generators), bins),
                dtype=torch.float64,
                device=source,
                pin_memory=self._copied,
            )
            for _ in range(ahead if self._copied else 1)
        ]
        self._free: list[torch.cuda.Event | None] = [None] * len(self._ring)
        self._turn = 0

    def next(self) -> Tensor:
        """float64 ``[N, bins]``, minus Gumbel variables, on the device where it can be; overwritten by later calls."""
        self._turn = (self._turn + 1) % len(self._ring)
        noise, free = self._ring[self._turn], self._free[self._turn]
        if free is not None:
            free.synchronize()  # long past, unless the device is all of the ring behind
        for row, generator in zip(noise, self._generators, strict=True):
            torch.rand(row.shape, generator=generator, out=row)
        noise.log_().neg_().log_()  # a uniform of exactly 0 becomes +inf: never drawn
        if not self._copied:
            return noise.to(self._device)
        sent = noise.to(self._device, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._free[self._turn] = event
        return sent


def draw_with(logits: Tensor, noise: Noise, *, temperature: float, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """As :func:`draw`, with the next of ``noise``; the host waits for nothing."""
    if temperature == 0:
        return logits.argmax(-1)
    if temperature != 1.0:
        logits = logits / temperature
    if top_k or top_p:
        logits = filter_logits(logits, top_k=top_k, top_p=top_p)
    drawn = noise.next()
    return (logits.to(drawn.device) - drawn).argmax(-1).to(logits.device)
