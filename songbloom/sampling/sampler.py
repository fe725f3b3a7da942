"""Writing codes: window after window along a level, level after level from the coarsest to the finest.

Every item has random numbers of its own. What is drawn for a window depends on the run's seed, the item's number, the
level and where the window starts, and on nothing else: not on how many items there are, how they are batched, or which
rank writes them. So a run can also be taken up again at any window with nothing but the codes that exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from songbloom.sampling import windows
from songbloom.sampling.windows import Window

Labels = Callable[[int, slice], Any]
"""From the start of a window and a slice of items to what the prior takes as their labels."""


class LevelPrior(Protocol):
    """What is asked of a prior here; :class:`songbloom.prior.prior.Prior` has it."""

    @property
    def level(self) -> int:
        """The level that it writes; 0 is the finest."""
        ...

    @property
    def n_ctx(self) -> int:
        """Codes in a window."""
        ...

    @property
    def cond_downsample(self) -> int | None:
        """Codes of this level per code of the level above; None at the top."""
        ...

    def window_of(self, codes_by_level: Sequence[Tensor], start: int, end: int) -> Tensor | None:
        """The codes above that condition the window ``start … end``."""
        ...

    @property
    def sample(self) -> Callable[..., Tensor]:
        """Writes codes of a whole window, the prompt first."""
        ...


@dataclass(frozen=True)
class LevelSettings:
    """How one level is sampled.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest code always.
        top_k: keep only the k likeliest codes; 0 keeps all.
        top_p: keep only the likeliest codes that together have this probability; 0 keeps all.
        hop_fraction: how far a window moves on, as a share of the context.
        max_batch_size: items sampled together.
        chunk_size: codes of a prompt that are read at once; None reads all at once.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        quantize: ``int8`` to keep the priors' weights in 8 bits; empty: as they are.
    """

    temperature: float = 0.99
    top_k: int = 0
    top_p: float = 0.0
    hop_fraction: float = 0.5
    max_batch_size: int = 16
    chunk_size: int | None = 32
    precision: str = "fp32"
    quantize: str = ""

    def plain(self) -> dict[str, Any]:
        """As a dict, with Jukebox's name for the temperature."""
        values = asdict(self)
        return {"temp": values.pop("temperature"), **values}


def stable_seed(*parts: int | str) -> int:
    """63 bits that depend on nothing but ``parts``: the same in every process, version and machine."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def item_seeds(seed: int, items: Iterable[int]) -> list[int]:
    """The seed of each item of a run, by the items' numbers."""
    return [stable_seed("item", seed, item) for item in items]


def window_generators(seeds: Sequence[int], level: int, start: int) -> list[torch.Generator]:
    """One generator an item for the window of ``level`` that starts at code ``start``."""
    return [torch.Generator().manual_seed(stable_seed("window", seed, level, start)) for seed in seeds]


def share(items: int, rank: int, size: int) -> range:
    """The items of one rank: contiguous, as even as can be, the first ranks having one more."""
    return range(-(-items * rank // size), -(-items * (rank + 1) // size))


def sample_window(
    prior: LevelPrior,
    codes: Sequence[Tensor],
    window: Window,
    settings: LevelSettings,
    *,
    seeds: Sequence[int],
    labels: Labels | None = None,
    on_codes: Callable[[int], None] | None = None,
) -> Tensor:
    """The codes that ``window`` adds.

    Args:
        prior: writes ``prior.level``.
        codes: of each level, ``[items, …]`` int64; of the prior's level at least those before the window's end.
        window: where, and how much of it is there.
        settings: temperature and the like.
        seeds: one an item (:func:`item_seeds`).
        labels: gives the labels of a window, for priors that have any.
        on_codes: called now and then with how many codes have been written since it was last called.

    Returns:
        ``[items, window.new]``.
    """
    level, items = prior.level, codes[prior.level].shape[0]
    prompt = codes[level][:, window.start : window.start + window.prompt]
    upper = prior.window_of(_reaching(codes, prior, window.end), window.start, window.end)
    generators = window_generators(seeds, level, window.start)
    keywords: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "chunk_size": settings.chunk_size,
        "precision": settings.precision,
    }
    if settings.quantize:
        keywords["quantize"] = settings.quantize
    if window.sample_tokens is not None:
        keywords["sample_tokens"] = window.sample_tokens
    written = []
    for part in windows.batches(items, settings.max_batch_size):
        if on_codes:
            keywords["on_token"] = _counted(on_codes, part.stop - part.start, window.prompt)
        codes_of_part = prior.sample(
            part.stop - part.start,
            prompt=prompt[part] if window.prompt else None,
            upper_codes=None if upper is None else upper[part],
            labels=labels(window.start, part) if labels else None,
            generators=generators[part],
            **keywords,
        )
        written.append(codes_of_part[:, window.prompt :])
    return torch.cat(written).to(codes[level].device)


def _counted(on_codes: Callable[[int], None], items: int, prompt: int) -> Callable[[int], None]:
    """From the length of a window so far, as the prior tells it, to the codes that were added to all items."""
    before = prompt

    def on_token(done: int) -> None:
        nonlocal before
        on_codes((done - before) * items)
        before = done

    return on_token


def _reaching(codes: Sequence[Tensor], prior: LevelPrior, end: int) -> list[Tensor]:
    """``codes`` with the level above long enough for a window up to ``end``.

    Only a window that reaches past the end of a short song needs it; the last code is repeated there, so that what is
    kept does not border on a sound that the codec never wrote.
    """
    codes = list(codes)
    if prior.cond_downsample and prior.level + 1 < len(codes):
        upper = codes[prior.level + 1]
        missing = -(-end // prior.cond_downsample) - upper.shape[1]
        if missing > 0:
            codes[prior.level + 1] = torch.cat([upper, upper[:, -1:].expand(-1, missing)], dim=1)
    return codes


def sample_level(
    prior: LevelPrior,
    codes: Sequence[Tensor],
    total: int,
    settings: LevelSettings,
    *,
    seeds: Sequence[int],
    labels: Labels | None = None,
    on_window: Callable[[Window, Tensor], None] | None = None,
    on_codes: Callable[[int], None] | None = None,
) -> Tensor:
    """Extend the codes of ``prior.level`` to ``total`` codes an item.

    Args:
        prior: writes ``prior.level``.
        codes: of each level, ``[items, …]`` int64; those of the prior's level are the prompt and may be empty.
        total: codes an item at the end.
        settings: temperature, windows and the like.
        seeds: one an item (:func:`item_seeds`).
        labels: gives the labels of a window, for priors that have any.
        on_window: called after each window with it and with all codes of the level so far.
        on_codes: see :func:`sample_window`.

    Returns:
        ``[items, max(total, codes there were)]``; existing codes are never rewritten.

    Raises:
        UserError: the hop fraction does not fit the prior.
    """
    level = prior.level
    hop = prior.n_ctx
    if total > prior.n_ctx:
        hop = windows.hop_of(settings.hop_fraction, prior.n_ctx, level=level, multiple_of=prior.cond_downsample or 1)
    codes = list(codes)
    for window in windows.plan(total, prior.n_ctx, hop, codes[level].shape[1]):
        new = sample_window(prior, codes, window, settings, seeds=seeds, labels=labels, on_codes=on_codes)
        codes[level] = torch.cat([codes[level], new], dim=1)
        if on_window:
            on_window(window, codes[level])
    return codes[level]


def sample(
    load_prior: Callable[[int], LevelPrior],
    codes: Sequence[Tensor],
    totals: Mapping[int, int],
    settings: Mapping[int, LevelSettings],
    *,
    seeds: Sequence[int],
    labels: Mapping[int, Labels] | None = None,
    on_window: Callable[[Window, Tensor], None] | None = None,
    on_codes: Callable[[int], None] | None = None,
    after_level: Callable[[int, list[Tensor]], None] | None = None,
) -> list[Tensor]:
    """Write levels from the coarsest to the finest.

    Args:
        load_prior: gives the prior of a level when its turn comes; it is let go before the next one is asked for.
        codes: of each level of the codec, ``[items, …]`` int64; prompts, or empty. No items are fine too.
        totals: codes an item at the end, for the levels to write.
        settings: for the levels to write.
        seeds: one an item (:func:`item_seeds`).
        labels: for the levels whose priors have any.
        on_window, on_codes: see :func:`sample_level`.
        after_level: called with the level and all codes when a level is written.

    Returns:
        The codes of all levels.
    """
    codes = list(codes)
    for level in sorted(totals, reverse=True):
        if len(seeds):
            prior = load_prior(level)
            codes[level] = sample_level(
                prior,
                codes,
                totals[level],
                settings[level],
                seeds=seeds,
                labels=(labels or {}).get(level),
                on_window=on_window,
                on_codes=on_codes,
            )
            del prior
        else:
            codes[level] = codes[level].new_zeros(0, totals[level])
        if after_level:
            after_level(level, codes)
    return codes
