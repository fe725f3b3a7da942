"""Adapter files: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, as peft writes and reads it.

Tensors have the names of the published model's modules (``base_model.model.ar_transformer.layers.0.self_attn.q_proj.
lora_A.weight``), so that peft finds them in a published model and files made with peft are found here. Where our matrix
joins what is published apart, an adapter over the whole is written as one for each part, with the same A and the rows
of B that are the part's. Where the published matrix joins too (Jukebox's ``c_attn``, the diffusion transformer's
``to_qkv``), adapters of parts are written as one of the sum of their ranks, A above A, and B block by block with zeros
between. Both say the same numbers. What else we know stands in the header of the safetensors file, which peft ignores.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from songbloom import __version__
from songbloom.errors import UserError, reason
from songbloom.files import whole_file, write_text
from songbloom.lora.places import Place, module_of, places, published_keys
from songbloom.published.safetensors import read_safetensors
from songbloom.transformer.lora import LowRank, adapters_of, rows_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FOLDER = "adapter"
"""Where a training run keeps its adapter."""
WHAT_TO_GIVE = f"give a folder with {TENSORS}, or the folder of a run of train.py --lora"
PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Entry:
    """One adapter of a file: under the published name of its module, A ``[rank, in]``, B ``[out, rank]``, its scale."""

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter folder holds.

    Attributes:
        path: its folder.
        digest: of all tensors and scales.
        entries: published module → adapter.
        rows: published module → ids and values of the rows of an embedding.
        full: published names of weights that were trained whole → their values.
        about: what we wrote beside: ``base`` (digest of the model), ``level``, ``places``, ``vocabulary`` …
    """

    path: Path
    digest: str
    entries: Mapping[str, Entry]
    rows: Mapping[str, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)
    full: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def model_digest(model: nn.Module) -> str:
    """A short name for a model's weights: which base an adapter belongs to.

    Of the shapes of all, and of the numbers of what no precision of storage changes (all but the matrices of linear
    maps), of the larger tensors a part. Adapters are left out.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if not is_beside(name)}
    return state_digest(state, {place.module + ".weight" for place in places(model)})


def state_digest(state: Mapping[str, Tensor], matrices: Collection[str]) -> str:
    """:func:`model_digest` of a model with these weights.

    Args:
        state: by our names; matrices may be on the meta device.
        matrices: names of the matrices of linear maps.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if name not in matrices:
            flat = tensor.flatten()
            sample = flat[:: max(1, len(flat) // 4096)].float().cpu().contiguous()
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def is_beside(name: str) -> bool:
    """Whether a key of ``state_dict`` is an adapter's or an own row's, not the model's."""
    return ".lora." in name or ".rows." in name


# --- writing --------------------------------------------------------------------------------------------------------


def gathered(model: nn.Module) -> tuple[dict[str, Entry], dict[str, tuple[tuple[int, ...], Tensor]]]:
    """The adapters and own rows of a model under published names."""
    entries: dict[str, Entry] = {}
    for name, module in model.named_modules():
        adapters = adapters_of(module)
        if adapters is None:
            continue
        keys = [module_of(key) for key in published_keys(model, f"{name}.weight")]
        weight: Any = module.weight
        size = len(weight) // len(keys)
        for index, key in enumerate(keys):
            found = [a for a in adapters.values() if isinstance(a, LowRank) and _overlap(a, index * size, size)]
            if found:
                entries[key] = _joined(found, index * size, size)
    rows = {}
    for name, module in model.named_modules():
        own = rows_of(module)
        if own is not None:
            (key,) = (module_of(key) for key in published_keys(model, f"{name}.weight"))
            rows[key] = (tuple(own.ids.tolist()), own.values.detach().cpu().clone())
    return entries, rows


def _overlap(adapter: LowRank, start: int, size: int) -> bool:
    return adapter.start < start + size and start < adapter.start + adapter.rows


def _joined(found: list[LowRank], start: int, size: int) -> Entry:
    """The sum of adapters on rows ``start`` to ``start + size`` as one; a single one as it is."""
    rank = sum(adapter.rank for adapter in found)
    B = torch.zeros(size, rank)
    scale = found[0].scale
    column = 0
    for adapter in found:
        first, last = max(start, adapter.start), min(start + size, adapter.start + adapter.rows)
        rows = adapter.B.detach()[first - adapter.start : last - adapter.start].float().cpu()
        B[first - start : last - start, column : column + adapter.rank] = (
            rows if adapter.scale == scale else rows * (adapter.scale / scale)
        )
        column += adapter.rank
    A = torch.cat([adapter.A.detach().float().cpu() for adapter in found])
    return Entry(A.clone(), B, scale)


def save(
    folder: str | Path,
    model: nn.Module,
    *,
    about: Mapping[str, Any] | None = None,
    full: Mapping[str, Tensor] | None = None,
    dropout: float = 0.0,
    base: str = "",
) -> Path:
    """Write a model's adapters; returns the folder.

    Args:
        folder: where to; the two files appear whole.
        model: with adapters, not merged.
        about: kept in the header; plain data.
        full: weights that are kept whole, by our names.
        dropout: of training, told to peft.
        base: where the base weights are, told to peft.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(folder)
    entries, rows = gathered(model)
    tensors: dict[str, Tensor] = {}
    for key, entry in entries.items():
        tensors[f"{PREFIX}{key}.lora_A.weight"] = entry.A
        tensors[f"{PREFIX}{key}.lora_B.weight"] = entry.B
    for key, (_, values) in rows.items():
        tensors[f"{PREFIX}{key}{_ROWS}"] = values
    for key, tensor in (full or {}).items():
        for theirs, part in published_keys(model, key, tensor.detach().cpu()).items():
            tensors[f"{PREFIX}{theirs}"] = part.contiguous()
    ranks = {key: len(entry.A) for key, entry in entries.items()}
    alphas = {key: entry.scale * len(entry.A) for key, entry in entries.items()}
    rank = min(ranks.values(), default=1)
    alpha = next((alphas[key] for key in ranks if ranks[key] == rank), float(rank))
    known = {
        "scales": {key: entry.scale for key, entry in entries.items()},
        "rows": {key: list(ids) for key, (ids, _) in rows.items()},
        "full": sorted(key for name in full or {} for key in published_keys(model, name)),
        "version": __version__,
        **(about or {}),
    }
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain_number(alpha),
        "lora_dropout": dropout,
        "target_modules": sorted(entries),
        "rank_pattern": {key: value for key, value in ranks.items() if value != rank},
        "alpha_pattern": {key: _plain_number(value) for key, value in alphas.items() if value != alpha},
        "bias": "none",
        "fan_in_fan_out": any(key.endswith(".w") for name in entries for key in _weight_keys(model, name)),
        "modules_to_save": sorted({module_of(key) for key in known["full"]} - {""}) or None,
        "trainable_token_indices": known["rows"] or None,
        "use_rslora": False,
        "use_dora": False,
    }
    write_safetensors(folder / TENSORS, tensors, {"format": "pt", "songbloom": json.dumps(known)})
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return folder


def _plain_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _weight_keys(model: nn.Module, published: str) -> list[str]:
    """The weight's key in the published state of a module that has an adapter (``….w`` is laid out [in, out])."""
    for place in places(model):
        if place.published == published:
            return [key for key in published_keys(model, f"{place.module}.weight") if module_of(key) == published]
    return []


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a ``.safetensors`` file (format: a length, a JSON table, the bytes), whole or not at all."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    ordered = sorted(tensors.items())
    for name, tensor in ordered:
        size = tensor.numel() * tensor.itemsize
        table[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with whole_file(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in ordered:
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


# --- reading --------------------------------------------------------------------------------------------------------


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder that ``path`` names: itself, one of its files, or the run that trained it.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    for folder in (path, path / FOLDER, path.parent):
        if (folder / TENSORS).is_file() and (folder != path.parent or path.name in (TENSORS, CONFIG)):
            return folder
    if path.is_file():  # a checkpoint of the run
        step = re.match(r"checkpoint_step_(\d+)\.", path.name)
        folder = path.parent / (f"{FOLDER}_step_{step[1]}" if step else FOLDER)
        if (folder / TENSORS).is_file():
            return folder
    raise UserError(f"{path}: no adapter is there: {WHAT_TO_GIVE}")


def read(path: str | Path) -> AdapterFile:
    """Read an adapter, ours or peft's.

    Raises:
        UserError: there is none, it is broken, or of a kind that is not a plain LoRA.
    """
    folder = adapter_folder(path)
    tensors = read_safetensors(folder / TENSORS)
    about = _about(folder / TENSORS)
    config = _config(folder / CONFIG)
    kind = str(config.get("peft_type", "LORA"))
    for wrong, why in (
        (kind.upper() != "LORA", f"is a {kind} adapter"),
        (bool(config.get("use_dora")), "uses DoRA"),
        (config.get("bias", "none") != "none", f"trains biases (bias={config.get('bias')!r})"),
    ):
        if wrong:
            raise UserError(f"{folder / CONFIG}: {why}; only plain LoRA is read here")
    entries: dict[str, Entry] = {}
    rows: dict[str, tuple[tuple[int, ...], Tensor]] = {}
    full: dict[str, Tensor] = {}
    indices = config.get("trainable_token_indices") or {}
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise UserError(
                f"{folder / TENSORS}: {name!r} is no name of an adapter's tensor (they begin with {PREFIX})"
            )
        key = name.removeprefix(PREFIX)
        module, _, leaf = key.rpartition(".lora_")
        if leaf == "A.weight":
            other = tensors.get(f"{PREFIX}{module}.lora_B.weight")
            if other is None or other.ndim != 2 or tensor.ndim != 2 or other.shape[1] != len(tensor):
                raise UserError(f"{folder / TENSORS}: {name!r} has no lora_B that fits it: the file is broken")
            entries[module] = Entry(tensor.float(), other.float(), _scale(about, config, module, len(tensor)))
        elif leaf == "B.weight":
            if f"{PREFIX}{module}.lora_A.weight" not in tensors:
                raise UserError(f"{folder / TENSORS}: {name!r} has no lora_A: the file is broken")
        elif key.endswith(_ROWS):
            module = key.removesuffix(_ROWS)
            ids = next((ids for at, ids in indices.items() if f".{module}".endswith(f".{at}")), None)
            ids = about.get("rows", {}).get(module, ids)
            if ids is None or len(ids) != len(tensor):
                raise UserError(f"{folder / CONFIG}: does not say which rows of {module} are trained")
            rows[module] = (tuple(int(row) for row in ids), tensor.float())
        else:
            full[key] = tensor
    if not entries and not rows and not full:
        raise UserError(f"{folder / TENSORS}: holds no adapter")
    return AdapterFile(folder, digest_of(entries, tensors), entries, rows, full, about)


def digest_of(entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]) -> str:
    """A short name for an adapter: of its file's tensors, and of its scales."""
    digest = hashlib.sha256(json.dumps({key: entry.scale for key, entry in sorted(entries.items())}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    try:
        about = json.loads((header.get("__metadata__") or {}).get("songbloom", "{}"))
    except ValueError:
        about = {}
    return about if isinstance(about, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); peft's files are two, side by side") from error
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no adapter's configuration")
    return config


def _scale(about: Mapping[str, Any], config: Mapping[str, Any], module: str, rank: int) -> float:
    if module in about.get("scales", {}):
        return float(about["scales"][module])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    told = _by_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if told != rank:
        raise UserError(f"{module}: the configuration says rank {told}, its tensors have {rank}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if module == pattern or module.endswith(f".{pattern}"):
            return value
    return default


def fitting(model: nn.Module, adapter: AdapterFile) -> tuple[dict[str, Place], list[str]]:
    """The places of a file's entries in a model, and what does not fit, in words."""
    at = {place.published: place for place in places(model) if place.published}
    problems, found = [], {}
    for key, entry in adapter.entries.items():
        place = at.get(key)
        if place is None:
            problems.append(f"has an adapter for {key}, which this model has not")
        elif (len(entry.B), entry.A.shape[1]) != (place.rows, place.inputs):
            problems.append(
                f"{key} is [{len(entry.B)}, {entry.A.shape[1]}] there and [{place.rows}, {place.inputs}] in this model"
            )
        else:
            found[key] = place
    return found, problems
