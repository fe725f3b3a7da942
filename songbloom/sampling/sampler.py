"""Writing codes: window after window along a level, level after level from the coarsest to the finest.

Every item has random numbers of its own. What is drawn for a window depends on the run's seed, the item's number, the
level and where the window starts, and on nothing else: not on how many items there are, how they are batched, or which
rank writes them. So a run can also be taken up again at any window with nothing but the codes that exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from songbloom.sampling import windows
from songbloom.sampling.windows import Window

Labels = Callable[[int, slice], Any]
"""From the start of a window and a slice of items to what the prior takes as their labels."""


class Keeper(Protocol):
    """What keeps the windows of a level for later; :class:`songbloom.sampling.journal.LevelJournal` does."""

    def restore(self, windows: Sequence[Window]) -> list[Tensor]:
        """For each item the codes that it got of these windows before, ``[codes]``: whole windows from the first."""
        ...

    def append(self, items: Sequence[int], window: Window, codes: Tensor) -> None:
        """Keep the new codes ``[len(items), window.new]`` of a window."""
        ...


@dataclass(frozen=True)
class Work:
    """How much there is to do at a level.

    Attributes:
        there: codes that the items have already, all together.
        new: codes to write, all together.
        steps: times that the prior takes a step, for whole batches.
    """

    there: int
    new: int
    steps: int


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


@runtime_checkable
class Writer(Protocol):
    """What writes a level in windows of its own kind; a :class:`LevelPrior` gets a :class:`TokenWriter`.

    A model that writes several levels at once is the writer of the finest of them, and its codes are rows
    ``[items, codes, width]`` that hold what it writes of all of them.
    """

    level: int

    def plan(self, total: int, settings: Any, have: int) -> list[Window]:
        """The windows that take items from ``have`` codes to ``total``."""
        ...

    def write(
        self,
        codes: Sequence[Tensor],
        window: Window,
        settings: Any,
        part: slice,
        *,
        seeds: Sequence[int],
        labels: Labels | None,
        on_token: Callable[[int], None] | None,
    ) -> Tensor:
        """The codes ``[items of part, window.new, …]`` that ``window`` adds to one batch; see :func:`sample_part`."""
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

    def identity(self) -> dict[str, Any]:
        """What of :meth:`plain` decides the codes, but for rounding."""
        kept = self.plain()
        del kept["max_batch_size"], kept["chunk_size"]
        return kept

    def told(self) -> list[tuple[str, str]]:
        """As (word, value) pairs for a page."""
        filters = [(key, f"{value:g}") for key, value in (("top_k", self.top_k), ("top_p", self.top_p)) if value]
        return [("temp", f"{self.temperature:g}"), *filters, ("hop_fraction", f"{self.hop_fraction:g}")]


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
    """The codes that ``window`` adds to all items, in batches.

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
    written = []
    for part in windows.batches(codes[prior.level].shape[0], settings.max_batch_size):
        counted = _counted(on_codes, part.stop - part.start, window.prompt) if on_codes else None
        written.append(sample_part(prior, codes, window, settings, part, seeds=seeds, labels=labels, on_token=counted))
    return torch.cat(written)


def sample_part(
    prior: LevelPrior,
    codes: Sequence[Tensor],
    window: Window,
    settings: LevelSettings,
    part: slice,
    *,
    seeds: Sequence[int],
    labels: Labels | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Tensor:
    """The codes ``[items of part, window.new]`` that ``window`` adds to one batch; see :func:`sample_window`.

    ``on_token`` is called now and then with how many codes of the window are there, its prompt included.
    """
    level, items = prior.level, part.stop - part.start
    here = [each[part] for each in codes]
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
    if on_token:
        keywords["on_token"] = on_token
    written = prior.sample(
        items,
        prompt=here[level][:, window.start : window.start + window.prompt] if window.prompt else None,
        upper_codes=prior.window_of(_reaching(here, prior, window.end), window.start, window.end),
        labels=labels(window.start, part) if labels else None,
        generators=window_generators(seeds[part], level, window.start),
        **keywords,
    )
    return written[:, window.prompt :].to(codes[level].device)


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


@dataclass(frozen=True)
class TokenWriter:
    """Writes the tokens of one level with its prior, in windows of the prior's context."""

    prior: LevelPrior

    @property
    def level(self) -> int:
        """The prior's."""
        return self.prior.level

    def plan(self, total: int, settings: LevelSettings, have: int) -> list[Window]:
        """Windows that move on by the settings' hop.

        Raises:
            UserError: the hop fraction does not fit the prior.
        """
        prior = self.prior
        hop = prior.n_ctx
        if total > prior.n_ctx:
            multiple = prior.cond_downsample or 1
            hop = windows.hop_of(settings.hop_fraction, prior.n_ctx, level=prior.level, multiple_of=multiple)
        return windows.plan(total, prior.n_ctx, hop, have)

    def write(
        self, codes: Sequence[Tensor], window: Window, settings: LevelSettings, part: slice, **keywords: Any
    ) -> Tensor:
        """:func:`sample_part`."""
        return sample_part(self.prior, codes, window, settings, part, **keywords)


def sample_level(
    prior: LevelPrior | Writer,
    codes: Sequence[Tensor],
    total: int,
    settings: Any,
    *,
    seeds: Sequence[int],
    labels: Labels | None = None,
    keeper: Keeper | None = None,
    on_begin: Callable[[Work], None] | None = None,
    on_window: Callable[[Window, Tensor], None] | None = None,
    on_codes: Callable[[int], None] | None = None,
) -> Tensor:
    """Extend the codes of ``prior.level`` to ``total`` codes an item.

    Items may have got differently far in an earlier run. They are batched as if they had not: a batch takes up the
    first window that one of its items lacks, in the same company as ever, and what the others have of it stays. So
    nothing that is written depends on where that run was broken off, not even by rounding.

    Args:
        prior: writes ``prior.level``.
        codes: of each level, ``[items, …]`` int64; those of the prior's level are the prompt and may be empty, and
            are rows ``[items, codes, width]`` where a :class:`Writer` says so.
        total: codes an item at the end.
        settings: temperature, windows and the like; for a :class:`Writer` its own.
        seeds: one an item (:func:`item_seeds`).
        labels: gives the labels of a window, for priors that have any.
        keeper: knows the windows that were written before, and keeps each batch of each window that is written now.
        on_begin: called once with how much there is to do.
        on_window: called after each window that was written with it and with all codes of the level up to its end.
        on_codes: called now and then with how many codes were added since it was last called.

    Returns:
        ``[items, max(total, codes there were)]``; existing codes are never rewritten.

    Raises:
        UserError: the hop fraction does not fit the prior.
    """
    level = prior.level
    writer = prior if isinstance(prior, Writer) else TokenWriter(prior)
    items, begin, *width = codes[level].shape
    planned = writer.plan(total, settings, begin)
    song = torch.cat([codes[level], codes[level].new_zeros(items, max(total - begin, 0), *width)], dim=1)
    codes = [*codes[:level], song, *codes[level + 1 :]]
    have = [begin] * items
    for item, kept in enumerate(keeper.restore(planned) if keeper else []):
        song[item, begin : begin + len(kept)] = kept
        have[item] += len(kept)
    parts = list(windows.batches(items, settings.max_batch_size))
    if on_begin:
        on_begin(_work(planned, parts, have))
    for window in planned:
        new = slice(window.start + window.prompt, window.start + window.prompt + window.new)
        lacking = [[item for item in range(items)[part] if have[item] < new.stop] for part in parts]
        for part, missing in zip(parts, lacking, strict=True):
            if missing:
                on_token = _counted(on_codes, len(missing), window.prompt) if on_codes else None
                written = writer.write(codes, window, settings, part, seeds=seeds, labels=labels, on_token=on_token)[
                    [item - part.start for item in missing]
                ]
                song[missing, new] = written
                if keeper:
                    keeper.append(missing, window, written)
        if on_window and any(lacking):
            on_window(window, song[:, : new.stop])
    return song


def _work(planned: Sequence[Window], parts: Sequence[slice], have: Sequence[int]) -> Work:
    """How much is to do for items that have so many codes, batched in these parts."""
    new = steps = 0
    for window in planned:
        end = window.start + window.prompt + window.new
        for part in parts:
            missing = sum(codes < end for codes in have[part])
            new += missing * window.new
            steps += window.new if missing else 0
    return Work(sum(have), new, steps)


def sample(
    load_prior: Callable[[int], LevelPrior | Writer],
    codes: Sequence[Tensor],
    totals: Mapping[int, int],
    settings: Mapping[int, Any],
    *,
    seeds: Sequence[int],
    labels: Mapping[int, Labels] | None = None,
    keeper: Callable[[int, Sequence[Tensor]], Keeper] | None = None,
    on_begin: Callable[[int, Work], None] | None = None,
    on_window: Callable[[int, Window, Tensor], None] | None = None,
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
        keeper: from a level and all codes before it is written to what keeps its windows.
        on_begin, on_window: see :func:`sample_level`, with the level before; ``on_begin`` without items too.
        on_codes: see :func:`sample_level`.
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
                keeper=keeper(level, codes) if keeper else None,
                on_begin=partial(on_begin, level) if on_begin else None,
                on_window=partial(on_window, level) if on_window else None,
                on_codes=on_codes,
            )
            del prior
        else:
            codes[level] = codes[level].new_zeros(0, totals[level], *codes[level].shape[2:])
            if on_begin:
                on_begin(level, Work(0, 0, 0))
        if after_level:
            after_level(level, codes)
    return codes
