"""Adapters from files laid over a model, for sampling: checked, scaled, added up, merged for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lora.files import AdapterFile
from songbloom.lora.lightning import BASE_FILE, read_any
from songbloom.lora.places import module_of, published_keys
from songbloom.lora.words import grow_vocabulary, started_rows
from songbloom.prior.prior import Prior
from songbloom.prior.songbloom.layers import Embedding
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.transformer.lora import LowRank, add_adapter, bake

_LYRICS = "lyrics.tokens.weight"
_STACKS = {"SongBloom": ("ar_transformer.", "nar_dit."), "Jukebox": ("prior.",)}  # how published names begin


@dataclass(frozen=True)
class Scaled:
    """An adapter and how strongly it counts (1 is as trained, 0 is not at all)."""

    adapter: AdapterFile
    scale: float

    def identity(self) -> dict[str, Any]:
        """What of it decides what is sampled."""
        return {"digest": self.adapter.digest, "scale": self.scale}


def parse(text: str) -> list[tuple[str, float]]:
    """Paths and scales of ``PATH[:scale],PATH2``.

    Raises:
        UserError: a scale that is no number, or no path before it.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        path, colon, scale = part.rpartition(":")
        if not colon or "/" in scale:
            path, scale = part, "1"
        try:
            number = float(scale)
        except ValueError:
            raise UserError(f"--lora={part}: {scale!r} is no scale: write --lora=PATH or --lora=PATH:0.8") from None
        if not path or number != number or abs(number) == float("inf"):
            raise UserError(f"--lora={part}: write --lora=PATH or --lora=PATH:0.8")
        found.append((path, number))
    return found


def read_all(text: str, alpha: float | None = None) -> list[Scaled]:
    """The adapters that ``--lora`` names.

    Args:
        text: the option.
        alpha: of adapters within Lightning checkpoints, which do not say theirs.

    Raises:
        UserError: as :func:`parse` and :func:`songbloom.lora.lightning.read_any`; or no adapter needs ``alpha``.
    """
    found = [Scaled(read_any(path, alpha), scale) for path, scale in parse(text)]
    if alpha is not None and not any(BASE_FILE in each.adapter.about for each in found):
        raise UserError(f"--lora_alpha={alpha:g} is for Lightning checkpoints; other adapters say theirs: leave it out")
    return found


def by_level(adapters: Iterable[Scaled], models: Mapping[int, nn.Module], levels: int = 1) -> dict[int, list[Scaled]]:
    """The adapters of each prior.

    Args:
        adapters: all of the command; those of levels that this run does not write are passed over.
        models: the priors of the levels that are written, by level; their sizes are enough.
        levels: of the whole model.

    Raises:
        UserError: an adapter does not fit, belongs to a level that there is not, or does not say to which of several
            that it fits.
    """
    found: dict[int, list[Scaled]] = {}
    for each in adapters:
        if each.adapter.about.get("level") in set(range(levels)) - set(models):
            _check_family(each.adapter, next(iter(models.values()), None))
            continue
        level = level_of(each, models)
        check(models[level], each.adapter)
        found.setdefault(level, []).append(each)
    return found


def identity(adapters: Mapping[int, Sequence[Scaled]]) -> dict[str, Any]:
    """What of the adapters decides what is sampled, for a run's identity; nothing where there are none."""
    told = {str(level): [each.identity() for each in own] for level, own in sorted(adapters.items())}
    return {"lora": told} if told else {}


def vocabulary_of(adapters: Sequence[Scaled]) -> dict[str, Any]:
    """The setting ``lyric_symbols`` of a prior with these adapters; nothing where they leave the prior's own.

    Raises:
        UserError: two of them number their symbols in different ways.
    """
    widest = max(adapters, key=lambda each: len(_vocabulary(each.adapter)), default=None)
    longest = _vocabulary(widest.adapter) if widest else ()
    for each in adapters:
        own = _vocabulary(each.adapter)
        if widest and own != longest[: len(own)]:
            raise UserError(
                f"{each.adapter.path} and {widest.adapter.path} were trained with different symbols for words "
                "(--lyrics_vocab): use one at a time"
            )
    return {"lyric_symbols": longest} if longest else {}


def level_of(each: Scaled, models: Mapping[int, nn.Module]) -> int:
    """The level that an adapter belongs to; the models are those of :func:`by_level`."""
    told = each.adapter.about.get("level")
    _check_family(each.adapter, next(iter(models.values()), None))
    if isinstance(told, int) and told in models:
        return told
    if isinstance(told, int):
        raise UserError(
            f"{each.adapter.path}: was trained for level {told}, and the levels here are "
            f"{', '.join(map(str, sorted(models)))}: it belongs to another model"
        )
    fits = [level for level, model in models.items() if not problems_of(model, each.adapter)]
    if len(fits) == 1 or len(models) == 1:
        return fits[0] if fits else next(iter(models))
    if not fits:
        level = min(models)
        raise UserError(_told(each.adapter, problems_of(models[level], each.adapter)))
    raise UserError(
        f"{each.adapter.path}: fits the priors of levels {', '.join(map(str, sorted(fits)))}, and does not say which "
        "it is for: sample one level at a time (--levels_to_sample)"
    )


def problems_of(model: nn.Module, adapter: AdapterFile) -> list[str]:
    """What of an adapter does not fit a model's shapes, in words; empty when all does."""
    problems = files.fitting(model, adapter)[1]
    embeddings = dict(_embeddings(model))
    for key, (ids, values) in adapter.rows.items():
        table = embeddings.get(key)
        if table is None or table.weight.shape[1] != values.shape[1]:
            problems.append(f"has rows of {key} that are {values.shape[1]} wide, which this model has not")
        elif max(ids, default=0) >= len(table.weight) and not _vocabulary(adapter):
            problems.append(f"has row {max(ids)} of {key}, which has {len(table.weight)} here")
    if not _vocabulary(adapter):
        problems += _whole(model, adapter)[1]
    return problems


def check(model: nn.Module, adapter: AdapterFile) -> None:
    """Refuse an adapter of other shapes, or of another model's weights.

    Raises:
        UserError: in one line.
    """
    _check_family(adapter, model)
    problems = problems_of(model, adapter)
    if problems:
        raise UserError(_told(adapter, problems))
    base = adapter.about.get("base")
    if base and not any(p.is_meta for p in model.parameters()):
        own = files.model_digest(model)
        if own != base:
            held = f"={adapter.about[BASE_FILE]}, which holds it" if BASE_FILE in adapter.about else ""
            raise UserError(
                f"{adapter.path}: was trained on other weights ({base}) than these ({own}): give the model that it was "
                f"trained on (--restore_prior{held})"
            )


def _check_family(adapter: AdapterFile, model: nn.Module | None) -> None:
    """Refuse an adapter of the other family of models, whose layers have other names."""
    here = "SongBloom" if isinstance(model, SongBloomPrior) else "Jukebox" if isinstance(model, Prior) else ""
    keys = (*adapter.entries, *adapter.rows, *adapter.full)
    made = next((name for name, begin in _STACKS.items() if any(key.startswith(begin) for key in keys)), "")
    if here and made and here != made:
        key = next(key for key in keys if key.startswith(_STACKS[made]))
        raise UserError(
            f"{adapter.path}: does not fit this model: has an adapter for {key}, which this model has not: it was made "
            f"for a {made} prior, and this is a {here} prior"
        )


def _told(adapter: AdapterFile, problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{adapter.path}: does not fit this model: {problems[0]}{more}"


@torch.no_grad()
def apply(model: nn.Module, adapters: Sequence[Scaled]) -> None:
    """Lay adapters over a plain model and merge them for good; what they add is added up, in float32, rounded once.

    Raises:
        UserError: one does not fit; the model is as it was then.
    """
    for each in adapters:
        check(model, each.adapter)
    symbols = vocabulary_of(adapters).get("lyric_symbols")
    if symbols and isinstance(model, SongBloomPrior):
        _grow(model, symbols)
    changes: dict[str, Tensor] = {}
    for each in adapters:
        for name, value in whole_of(model, each.adapter).items():
            weight = model.get_parameter(name).data.float()
            change = changes.setdefault(name, torch.zeros_like(weight))
            part = slice(len(value)) if value.ndim else ()
            change[part] += each.scale * (value.to(weight) - weight[part])
    for index, each in enumerate(adapters):
        for key, place in files.fitting(model, each.adapter)[0].items():
            entry = each.adapter.entries[key]
            rank = len(entry.A)
            alpha = entry.scale * each.scale * rank
            low_rank = LowRank(place.inputs, place.rows, rank=rank, alpha=alpha, start=place.start)
            low_rank.A.copy_(entry.A)
            low_rank.B.copy_(entry.B)
            add_adapter(model.get_submodule(place.module), f"{index}_{place.part}", low_rank)
    bake(model)
    for name, change in changes.items():
        weight = model.get_parameter(name).data
        weight.copy_(weight.float() + change)


def _grow(prior: SongBloomPrior, symbols: Sequence[str]) -> None:
    """Give the lyric table rows for ``symbols``; new ones are what training starts them as."""
    known = len(prior.lyrics.tokens.weight)
    ids, values = started_rows(prior.lyrics.tokens.weight.detach(), symbols[:known], symbols, learned=True)
    grow_vocabulary(prior, symbols)
    prior.lyrics.tokens.weight[ids] = values


def whole_of(model: nn.Module, adapter: AdapterFile) -> dict[str, Tensor]:
    """The weights that a file has whole, by our names, with its rows of embeddings in them.

    The lyric table may have fewer rows than the model's, whose vocabulary may be a larger one.

    Raises:
        UserError: they are of other shapes.
    """
    found, problems = _whole(model, adapter)
    if problems:
        raise UserError(_told(adapter, problems))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, Embedding)):
            for key in map(module_of, published_keys(model, f"{name}.weight")):
                if key in adapter.rows:
                    ids, values = adapter.rows[key]
                    table = found.get(f"{name}.weight", module.weight.detach()).float().clone()
                    table[list(ids)] = values.to(table)
                    found[f"{name}.weight"] = table
    return found


def _vocabulary(adapter: AdapterFile) -> tuple[str, ...]:
    return tuple(adapter.about.get("vocabulary") or ())


def _embeddings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Published name and module of every embedding."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, Embedding)):
            for key in published_keys(model, f"{name}.weight"):
                yield module_of(key), module


def _whole(model: nn.Module, adapter: AdapterFile) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a file holds whole by our names, and what does not fit, in words."""
    if not adapter.full:
        return {}, []
    found: dict[str, Tensor] = {}
    left = dict(adapter.full)
    for name, parameter in model.named_parameters():
        if files.is_beside(name):
            continue
        keys = list(published_keys(model, name, torch.empty(parameter.shape, device="meta")))
        keys = [key for key in keys if key in left]
        if keys:
            parts = [left.pop(key).float() for key in keys]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            found[name] = value.t() if keys[0].endswith(".w") else value
            smaller = name == _LYRICS and _vocabulary(adapter) and len(value) < len(parameter)
            if found[name].shape[bool(smaller) :] != parameter.shape[bool(smaller) :]:
                return {}, [f"{keys[0]} is {list(value.shape)} there and {list(parameter.shape)} in this model"]
    return found, [f"has {key}, which this model has not" for key in left]
