"""Training of adapters: what is attached, what is frozen, what a checkpoint keeps.

Only adapters (A and B), chosen rows of the lyric embedding and, with ``lora_train_all``, all weights that no adapter
stands beside, get gradients; checkpoints keep these and nothing of the base model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from songbloom.errors import UserError, counted
from songbloom.lora import files
from songbloom.lora.applying import whole_of
from songbloom.lora.lightning import read_any
from songbloom.lora.places import Place, chosen, module_of, published_keys, split_targets
from songbloom.lora.words import Words, train_words
from songbloom.training.tasks import Task
from songbloom.transformer.lora import LowRank, adapters_of, add_adapter, merged, rows_of

_NEVER = ("lyrics.blank",)  # a constant that is kept with the weights


KIND = "lora"  # the word that checkpoints carry


@dataclass(frozen=True)
class LoRASettings:
    """What is trained.

    Attributes:
        rank: of every adapter.
        alpha: its product is scaled by ``alpha / rank``.
        dropout: of an adapter's input.
        targets: which layers (:mod:`songbloom.lora.places`).
        train_all: train everything else too; only matrices with adapters stay as they are.
        seed: of the adapters' start.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: Sequence[str] = ("q_proj", "v_proj")
    train_all: bool = False
    seed: int = 0

    @classmethod
    def from_hps(cls, hps: Mapping[str, Any]) -> LoRASettings:
        """The settings in the hyperparameters ``lora_*`` and ``seed``."""
        return cls(
            rank=int(hps["lora_rank"]),
            alpha=float(hps["lora_alpha"]),
            dropout=float(hps["lora_dropout"]),
            targets=split_targets(hps["lora_target_modules"]),
            train_all=bool(hps["lora_train_all"]),
            seed=int(hps.get("seed", 0)),
        )


def attach(model: nn.Module, settings: LoRASettings) -> list[Place]:
    """Put fresh adapters beside a model's weights, and leave only what is to be trained with gradients.

    Rows that :func:`songbloom.transformer.lora.add_rows` gave an embedding before are trained too.

    Returns:
        Where adapters stand now.

    Raises:
        UserError: a target matches nothing, or the rank is larger than a layer.
    """
    if settings.rank < 1:
        raise UserError(f"--lora_rank={settings.rank}: at least 1")
    where = chosen(model, settings.targets)
    for place in where:
        if settings.rank > min(place.rows, place.inputs):
            raise UserError(
                f"--lora_rank={settings.rank} is larger than {place.name}, which is [{place.rows}, {place.inputs}]: "
                f"take at most {min(place.rows, place.inputs)}, or other --lora_target_modules"
            )
    generator = torch.Generator().manual_seed(settings.seed)
    for place in where:
        adapter = LowRank(
            place.inputs,
            place.rows,
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            start=place.start,
            generator=generator,
        )
        add_adapter(model.get_submodule(place.module), place.part, adapter)
    freeze(model, train_all=settings.train_all)
    return where


def freeze(model: nn.Module, *, train_all: bool = False) -> None:
    """Gradients for adapters and own rows; with ``train_all`` for all but the weights of adapted maps, too."""
    adapted = {name for name, module in model.named_modules() if adapters_of(module) is not None}
    for name, parameter in model.named_parameters():
        beside = files.is_beside(name)
        parameter.requires_grad_(beside or (train_all and module_of(name) not in adapted and name not in _NEVER))


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, under the names of ``state_dict``, and which rows of embeddings are its own."""
    trainable = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name in trainable or name.endswith(".rows.ids")}


@torch.no_grad()
def load_trained(model: nn.Module, saved: Mapping[str, Tensor], where: str = "the checkpoint") -> None:
    """Take what :func:`trained_state` gave.

    Raises:
        UserError: other adapters were trained there.
    """
    own = trained_state(model)
    strange = sorted(set(own) ^ set(saved)) or [name for name in own if own[name].shape != saved[name].shape]
    strange = strange or [
        name for name in own if name.endswith(".ids") and not torch.equal(own[name].cpu(), saved[name])
    ]
    if strange:
        raise UserError(
            f"{where}: other adapters were trained there ({strange[0]} and {len(strange) - 1} more do not agree): "
            "give the --lora_* options of that run, or another --name"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


class LoRA:
    """A model whose adapters are trained, as the training loop sees it.

    Args:
        model: on its device, with its base weights.
        settings: what is trained.
        about: kept in adapter files beside what this adds (``base``, ``settings``).
        base: where the base weights are, for people and for peft.
    """

    def __init__(
        self, model: nn.Module, settings: LoRASettings, *, about: Mapping[str, Any] | None = None, base: str = ""
    ) -> None:
        self.model, self.settings, self.base = model, settings, base
        self.about = dict(about or {})
        self.about.setdefault("base", files.model_digest(model))
        self.places = attach(model, settings)

    def describe(self) -> str:
        """One line about what is trained."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        of_all = sum(p.numel() for p in self.model.parameters())
        everything = " and all that has none" if self.settings.train_all else ""
        return (
            f"lora: {counted(len(self.places), 'adapter')} of rank {self.settings.rank}{everything}, "
            f"{trained:,} of {of_all:,} parameters are trained"
        )

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps as ``model``."""
        return trained_state(self.model)

    def load_weights(self, saved: Mapping[str, Tensor]) -> None:
        """Take what :meth:`weights` gave."""
        load_trained(self.model, saved)

    def merged(self) -> AbstractContextManager[None]:
        """Within it the model's weights are the merged ones, for fast sampling."""
        return merged(self.model)

    def check_gradients(self) -> None:
        """After the first backward pass: refuse to train what gets no gradient.

        Raises:
            UserError: names the tensors.
        """
        names = without_gradient(self.model)
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(
                f"{', '.join(names[:4])}{more} get no gradient: nothing that the loss depends on goes through them; "
                "leave their layers out of --lora_target_modules"
            )

    def export(self, folder: Path, step: int, *, numbered: bool) -> None:
        """Write the adapter of a run's folder, and one for each checkpoint that is kept."""
        full = {name: tensor for name, tensor in trained_state(self.model).items() if not files.is_beside(name)}
        targets = [folder / files.FOLDER]
        if numbered:
            targets.append(folder / f"{files.FOLDER}_step_{step}")
        for target in targets:
            files.save(
                target,
                self.model,
                about={**self.about, "step": step},
                full=full,
                dropout=self.settings.dropout,
                base=self.base,
            )
        for old in folder.glob(f"{files.FOLDER}_step_*"):
            number = old.name.rpartition("_")[2]
            if old not in targets and not list(folder.glob(f"checkpoint_step_{number}.*")):
                shutil.rmtree(old, ignore_errors=True)


def without_gradient(model: nn.Module) -> list[str]:
    """After the first backward pass: the names of what is trained and got no gradient, or one that is not finite.

    B's gradient must not be all zeros either. (A's is at first, since B is zeros.)
    """
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        broken = gradient is None or not bool(torch.isfinite(gradient).all())
        if broken or (name.endswith(".B") and gradient is not None and not bool(gradient.any())):
            found.append(name)
    return found


@torch.no_grad()
def begin_from(model: nn.Module, adapter: files.AdapterFile) -> None:
    """Give fresh adapters, own rows, and what is trained whole, the numbers of a file, to train on from there.

    Raises:
        UserError: the file's adapters stand elsewhere or have another rank, or it has trained more than is trained now.
    """
    left = set(adapter.entries)
    for name, module in model.named_modules():
        adapters = adapters_of(module)
        if adapters is None:
            continue
        keys = [module_of(key) for key in published_keys(model, f"{name}.weight")]
        missing = [key for key in keys if key not in adapter.entries]
        column = 0
        for low_rank in adapters.values():
            assert isinstance(low_rank, LowRank)
            weight: Any = module.weight
            size = len(weight) // len(keys)
            parts = [
                key
                for index, key in enumerate(keys)
                if low_rank.start < (index + 1) * size and index * size < low_rank.start + low_rank.rows
            ]
            entries = [adapter.entries[key] for key in parts if key not in missing]
            span = slice(column, column + low_rank.rank) if len(keys) == 1 else slice(None)
            together = low_rank.rank
            if len(keys) == 1:
                together = sum(other.rank for other in adapters.values() if isinstance(other, LowRank))
            if len(entries) < len(parts) or any(len(entry.A) != together for entry in entries):
                raise UserError(
                    f"{adapter.path}: has no adapter of rank {low_rank.rank} for {name}: give the --lora_rank and "
                    "--lora_target_modules that it was trained with"
                )
            if len(keys) == 1:  # one published matrix, perhaps of several parts here
                first = low_rank.start
                B = entries[0].B[first : first + low_rank.rows, span]
                column += low_rank.rank
            else:
                B = torch.cat([entry.B for entry in entries])
                if any(not torch.equal(entry.A, entries[0].A) for entry in entries[1:]):
                    raise UserError(f"{adapter.path}: trains the parts of {name} apart: target them apart here, too")
            low_rank.A.copy_(entries[0].A[span])
            low_rank.B.copy_(B * (entries[0].scale / low_rank.scale))
            left.difference_update(parts)
    if left:
        raise UserError(
            f"{adapter.path}: also adapts {sorted(left)[0]} ({len(left)} in all), which "
            "--lora_target_modules leaves out"
        )
    _begin_whole(model, adapter)


def _begin_whole(model: nn.Module, adapter: files.AdapterFile) -> None:
    """Give own rows and what is trained whole the numbers of a file.

    Raises:
        UserError: the file has some that are not trained here.
    """
    for name, value in whole_of(model, adapter).items():
        own = rows_of(model.get_submodule(module_of(name)))
        ids = {row for key in published_keys(model, name) for row in adapter.rows.get(module_of(key), ((),))[0]}
        if ids - set(own.ids.tolist() if own is not None else ()):
            raise UserError(
                f"{adapter.path}: trains {counted(len(ids), 'row')} of {module_of(name)}, not all "
                "of which are trained here: give "
                "the --lora_train_rows and --lyrics_vocab that it was trained with"
            )
        if own is not None and ids:
            mine = torch.tensor([row in ids for row in own.ids.tolist()], device=own.values.device)
            own.values[mine] = value.to(own.values)[own.ids[mine]]
        weight = model.get_parameter(name)
        if any(key in adapter.full for key in published_keys(model, name)):
            if not weight.requires_grad:
                raise UserError(f"{adapter.path}: was trained with --lora_train_all: give it here, too")
            weight[: len(value)] = value.to(weight)


def adapt(
    task: Task,
    hps: MutableMapping[str, Any],
    saved: Mapping[str, Any] | None = None,
    *,
    words: Words | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Make a task that trains a whole model one that trains adapters of it.

    Args:
        task: its model has the base weights.
        hps: ``lora_*``, ``restore_lora``, ``restore_prior``; ``lora_base`` is written back for checkpoints.
        saved: the checkpoint that the run goes on from, if there is one.
        words: vocabularies of a SongBloom prior.
        say: told what is trained.

    Raises:
        UserError: options that don't fit the model, an adapter that does not fit it, or a checkpoint of another base.
    """
    model = task.model
    about: dict[str, Any] = {"base": files.model_digest(model), "level": int(getattr(model, "level", 0))}
    before = (saved or {}).get("hps", {}).get("lora_base", about["base"])
    if before != about["base"]:
        raise UserError(
            f"the checkpoint's adapters belong to other weights than {hps['restore_prior']}: give the --restore_prior "
            "of that run, or another --name"
        )
    hps["lora_base"] = about["base"]
    start = None
    if hps["restore_lora"] and saved is None:
        start = read_any(hps["restore_lora"], float(hps["lora_alpha"]))
    earlier = start.about if start is not None else (saved or {}).get("hps", {})
    licences = list(dict.fromkeys([*(hps.get("licences") or ()), *(earlier.get("licences") or ())]))
    if licences:
        hps["licences"] = about["licences"] = licences  # of all that the adapters have learned from
    if start is not None and start.about.get("base", about["base"]) != about["base"]:
        raise UserError(f"{start.path}: was trained on other weights than {hps['restore_prior']}")
    if words is not None:
        about |= {"vocabulary": list(words.wanted), "known_rows": len(words.known)}
        train_words(model, words.known, words.wanted, str(hps["lora_train_rows"]), learned=words.learned)
    task.kind = KIND
    task.lora = LoRA(model, LoRASettings.from_hps(hps), about=about, base=str(hps["restore_prior"]))
    if start is not None:
        begin_from(model, start)
        say(f"lora: begins from {start.path}")
    say(task.lora.describe())
