"""Checkpoints of the Japanese fork's trainer: whole models, models with adapters, what lies in them besides."""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from make_models import restore
from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lora.applying import apply, read_all
from songbloom.lora.lightning import read_any
from songbloom.lora.training import LoRA, LoRASettings, begin_from
from songbloom.published.songbloom import prior as published
from songbloom.training.weights import open_weights
from tests.lora.models import low_ranks, songbloom
from tests.lora.test_sampling import codes, sample_here
from tests.sampling import songbloom_tiny

ADAPTED = ("q_proj", "v_proj", "to_qkv", "project_in")
RANK, ALPHA = 2, 5.0


class Runs:
    """Its pickle names a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@contextlib.contextmanager
def not_installed() -> Any:
    """A class that pickles by a name, as omegaconf's do; afterwards its module is gone."""
    module = ModuleType("omegaconf_of_theirs")
    kind = type("DictConfig", (dict,), {"__module__": module.__name__})
    module.DictConfig = kind  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        yield kind
    finally:
        del sys.modules[module.__name__]


def adapters_of(state: dict[str, Tensor], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B for each linear map of a published state that is asked for."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf == "weight" and module.rpartition(".")[2] in ADAPTED:
            A = torch.randn(RANK, tensor.shape[1], generator=draw)
            found[module] = A, 0.1 * torch.randn(len(tensor), RANK, generator=draw)
    return found


Pairs = dict[str, tuple[Tensor, Tensor]]


def lightning(path: Path, model: Any, adapters: Pairs, *more: Any, bare: bool = False) -> Path:
    """Write what the fork's trainer does: names and layout as the specification tells them."""
    state: dict[str, Tensor] = OrderedDict()
    for key, tensor in published.to_published(model.state_dict()).items():
        module, _, leaf = key.rpartition(".")
        state[f"{module}.base.{leaf}" if module in adapters else key] = tensor.clone()
    for module, (A, B) in adapters.items():
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = A, B
    content: dict[str, Any] = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.2.1", "state_dict": state}
    content["callbacks"] = {"ModelCheckpoint{'monitor': 'val/loss'}": {"best_model_path": "a", "kept": list(more)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state if bare else content, path)
    return path


def merged(model: Any, adapters: dict[str, tuple[Tensor, Tensor]], scale: float = 1.0) -> dict[str, Tensor]:
    """The published state with what the adapters add."""
    state = published.to_published(model.state_dict())
    for module, (A, B) in adapters.items():
        state[f"{module}.weight"] = state[f"{module}.weight"] + scale * ALPHA / RANK * (B @ A)
    return state


@pytest.mark.parametrize("bare", [False, True])
def test_adapters_are_laid_over_their_base(tmp_path: Path, bare: bool) -> None:
    model = songbloom()
    adapters = adapters_of(published.to_published(model.state_dict()))
    assert len(adapters) == 2 * 2 + 2 + 1
    path = lightning(tmp_path / "epoch=3.ckpt", model, adapters, bare=bare)
    adapter = read_any(path, ALPHA)
    assert adapter.about["base"] == files.model_digest(model)
    apply(model, read_all(f"{path}:0.5", ALPHA))
    for key, tensor in merged(songbloom(), adapters, 0.5).items():
        torch.testing.assert_close(published.to_published(model.state_dict())[key], tensor, rtol=1e-5, atol=1e-6)


def test_what_they_were_trained_with_decides(tmp_path: Path) -> None:
    adapters = adapters_of(published.to_published(songbloom().state_dict()))
    path = lightning(tmp_path / "a.ckpt", songbloom(), adapters)
    assert read_any(path, 1.0).digest != read_any(path, 2.0).digest
    with pytest.raises(UserError, match=r"a\.ckpt: a Lightning checkpoint does not say .* --lora_alpha=NUMBER"):
        read_all(str(path))
    other = songbloom()
    with torch.no_grad():
        other.start.add_(1.0)
    with pytest.raises(UserError, match=r"other weights .* \(--restore_prior=.*a\.ckpt, which holds it\)"):
        apply(other, read_all(str(path), ALPHA))
    whole = lightning(tmp_path / "whole.ckpt", songbloom(), {})
    with pytest.raises(UserError, match="a whole model without adapters: give it as --restore_prior="):
        read_all(str(whole), ALPHA)
    LoRA(other, LoRASettings(rank=1, targets=("v_proj",))).export(tmp_path, 1, numbered=False)
    with pytest.raises(UserError, match="--lora_alpha=5 is for Lightning checkpoints"):
        read_all(str(tmp_path), ALPHA)
    (module, (A, _)), *_ = adapters.items()
    broken = lightning(tmp_path / "broken.ckpt", songbloom(), {module: (A, torch.zeros(4, RANK + 1))})
    with pytest.raises(UserError, match="has no lora_A and lora_B that fit"):
        read_all(str(broken), ALPHA)


def test_training_goes_on_from_them(tmp_path: Path) -> None:
    adapters = adapters_of(published.to_published(songbloom().state_dict()))
    path = lightning(tmp_path / "a.ckpt", songbloom(), adapters)
    model = songbloom()
    LoRA(model, LoRASettings(rank=RANK, alpha=ALPHA, dropout=0.0, targets=ADAPTED))
    begin_from(model, read_any(path, ALPHA))
    assert {tuple(one.A.flatten().tolist()) for one in low_ranks(model)} == {
        tuple(A.flatten().tolist()) for A, _ in adapters.values()
    }


def test_whole_models_and_bases_are_weights_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = songbloom()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.25)
    adapters = adapters_of(published.to_published(trained.state_dict()))
    for name, own, said in (("whole", {}, ""), ("adapted", adapters, f"{len(adapters)} adapters in it are left out")):
        model = songbloom()
        restore(model, lightning(tmp_path / f"{name}.ckpt", trained, own), "prior")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
        out = capsys.readouterr().out
        assert said in out and bool(out) is bool(said)


def test_objects_of_other_programs_are_neither_needed_nor_run(tmp_path: Path) -> None:
    model, mark = songbloom(), tmp_path / "was_run"
    with not_installed() as config:
        path = lightning(tmp_path / "a.ckpt", model, {}, config(a=1), [config(b=2)], Runs(mark), torch.zeros(2))
    content = open_weights(path).content
    expected = published.to_published(model.state_dict())
    assert content.keys() == expected.keys() and all(torch.equal(content[key], expected[key]) for key in expected)
    assert not mark.exists()
    torch.save({"model": {"a": torch.zeros(1)}, "more": Runs(mark)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt: not a checkpoint that can be read safely"):
        open_weights(tmp_path / "b.pt")
    assert not mark.exists()


def test_songs_are_drawn_with_one(tmp_path: Path) -> None:
    songbloom_tiny.write_tiny(tmp_path / "logs")
    base = songbloom_tiny.tiny_prior()
    adapters = adapters_of(published.to_published(base.state_dict()))
    lightning(tmp_path / "logs/theirs.ckpt", base, adapters)
    vae = "--restore_vae=logs/tiny_songbloom_vae/checkpoint_latest.pth.tar"
    short = ("--sample_length_in_seconds=0.6", "--seed=3", vae)
    prior = "--restore_prior=logs/theirs.ckpt"
    sample_here(tmp_path, "tiny_songbloom", "--name=plain", *short, prior)
    sample_here(tmp_path, "tiny_songbloom", "--name=with", *short, prior, "--lora=logs/theirs.ckpt", "--lora-alpha=5")
    assert not torch.equal(codes(tmp_path / "plain", 0), codes(tmp_path / "with", 0))
    with pytest.raises(UserError, match="--lora_alpha belongs to adapters"):
        sample_here(tmp_path, "tiny_songbloom", "--name=never", *short, "--lora-alpha=5")
