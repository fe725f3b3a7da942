"""When layers are computed again: by what is asked for, and on a CPU by what is free."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from songbloom.transformer import recomputation
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.recomputation import ALWAYS, Recomputation

IF_NEEDED = 1  # c_res
X = torch.zeros(2, 50, 16)  # 100 positions
NEEDED = 100 * 30 * 4 * 4  # of 30 numbers in each of 4 layers, in float32


@pytest.fixture(autouse=True)
def enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda device: 4 * NEEDED)


def free(monkeypatch: pytest.MonkeyPatch, amount: int | None) -> None:
    monkeypatch.setattr(recomputation, "free_bytes", lambda device: amount)


def test_with_memory_enough_nothing_is_computed_again_unless_always() -> None:
    assert not Recomputation(0, 30, 4).wanted(X)
    assert not Recomputation(IF_NEEDED, 30, 4).wanted(X)
    assert Recomputation(ALWAYS, 30, 4).wanted(X)


def test_a_quarter_of_what_is_free_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 4 * NEEDED - 1)
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X)
    assert not Recomputation(IF_NEEDED, 30, 4).wanted(X.bfloat16())
    assert not Recomputation(0, 30, 4).wanted(X)
    free(monkeypatch, None)
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X)


def test_a_shape_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for one batch is not free at the next, and is used by it again."""
    choice = Recomputation(IF_NEEDED, 30, 4)
    assert not choice.wanted(X)
    free(monkeypatch, 0)
    assert not choice.wanted(X)
    assert choice.wanted(X[:, :40])


def test_other_devices_and_no_gradients() -> None:
    assert Recomputation(IF_NEEDED, 30, 4).wanted(X.to("meta"))
    with torch.no_grad():
        assert not Recomputation(ALWAYS, 30, 4).wanted(X)


def kept_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """What ``run`` keeps for its backward pass beside the model's parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # tensors, so that no memory is used for a second one

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()
    assert held is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"m_attn": 1.0}, {"attn_dropout": 0.1}])
def test_what_is_reckoned_is_what_is_kept(changes: dict[str, float], dtype: torch.dtype) -> None:
    """Attention with dropout keeps all of its scores, which are more than all else in a long sequence."""
    config = TransformerConfig(**{"width": 128, "depth": 2, "heads": 4, "n_ctx": 512, "attn_order": 0, **changes})
    model, x = Transformer(config).train(), torch.randn(1, 512, 128, requires_grad=True)
    reckoned = 512 * config.kept_numbers * config.depth * dtype.itemsize
    assert 0.45 * reckoned < kept_bytes(model, lambda: model(x, dtype=dtype)) < 1.2 * reckoned
