"""A few positions at a time equals the whole, by the plain and by the prepared path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from songbloom.errors import UserError
from songbloom.transformer import decoding, static
from songbloom.transformer import quantized as quantized_room
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.cache import DecodingCache, slots
from songbloom.transformer.decoding import DecodingTransformer, PackedLinear, PlainLinear, can_pack, worth_packing
from songbloom.transformer.static import Fusions, StaticStep, add_norm, biased_softmax, tried
from tests.transformer.strategies import configs, examples, inputs, seeds, transformer

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"width": 16, "n_ctx": 24, "heads": 2, "depth": 3, "attn_order": 2, "blocks": 6, "m_attn": 0.5}


def fed(model: Transformer | DecodingTransformer, cache: DecodingCache, x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([model.extend(part, cache) for part in x.split(sizes, dim=1)], dim=1)


def cuts(data: st.DataObject, n: int) -> list[int]:
    """Chunk sizes that add up to n, single positions among them."""
    sizes: list[int] = []
    while n:
        sizes.append(data.draw(st.sampled_from([1, 1, st.integers(1, n)]).flatmap(_as_strategy)))
        n -= sizes[-1]
    return sizes


def _as_strategy(choice: Any) -> st.SearchStrategy[int]:
    return choice if isinstance(choice, st.SearchStrategy) else st.just(choice)


@examples(60)
@given(configs(), seeds, st.booleans(), st.data())
def test_any_chunks_equal_the_whole(config: TransformerConfig, seed: int, prepared: bool, data: st.DataObject) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    with torch.no_grad():
        want = model(x, encoder_kv)
    stepper = DecodingTransformer(model) if prepared else model
    if data.draw(st.booleans()):  # as many sequences as have their weights packed
        x, encoder_kv, want = (torch.cat([t, t.flip(0)]) for t in (x, encoder_kv, want))
    cache = stepper.new_cache(len(x), encoder_kv=encoder_kv)
    got = fed(stepper, cache, x, cuts(data, config.n_ctx))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=5e-5)
    assert cache.length == config.n_ctx
    cache.reset()  # what an earlier sequence left behind must not be seen
    got = fed(stepper, cache, x.flip(0), cuts(data, config.n_ctx))
    if encoder_kv is None or 6 not in model.funcs:
        torch.testing.assert_close(got, want.flip(0), rtol=1e-4, atol=5e-5)


@examples(25)
@given(configs(), seeds, st.sampled_from([torch.float16, torch.bfloat16]), st.booleans(), st.data())
def test_half_precision_chunks_are_close(
    config: TransformerConfig, seed: int, dtype: torch.dtype, prepared: bool, data: st.DataObject
) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    with torch.no_grad():
        want = model(x, encoder_kv)
    stepper = DecodingTransformer(model, dtype) if prepared else model
    cache = stepper.new_cache(2, dtype=dtype, encoder_kv=encoder_kv)
    assert all(entries.dtype == dtype for entries in cache.entries)
    got = fed(stepper, cache, x, cuts(data, config.n_ctx))
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 8 * torch.finfo(dtype).eps * want.abs().max() * config.depth**0.5


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "swish", "relu"])
def test_packed_and_plain_weights_agree(packed: bool, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if packed and not can_pack(torch.float32, CPU):
        pytest.skip("this torch has no packed linear map")
    monkeypatch.setattr(decoding, "worth_packing", lambda dtype, device, rows: packed)
    model = transformer(TransformerConfig(**SMALL, activation=activation, res_scale=True), 0)
    x, _ = inputs(model.config, 0)
    stepper = DecodingTransformer(model)
    assert isinstance(stepper.layers(2)[0].up, PackedLinear if packed else PlainLinear)
    with torch.no_grad():
        torch.testing.assert_close(fed(stepper, stepper.new_cache(2), x, [1] * 24), model(x), rtol=1e-4, atol=2e-5)


def test_packing_falls_back_where_torch_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(decoding, "PackedLinear", missing)
    assert not can_pack.__wrapped__(torch.float32, CPU)
    assert not can_pack(torch.float32, torch.device("cuda"))


def test_packing_is_chosen_by_what_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for at_home in (True, False):
        monkeypatch.setattr(decoding, "_mkl_is_at_home", lambda at_home=at_home: at_home)
        packable = can_pack(torch.float32, CPU)
        assert worth_packing(torch.float32, CPU, 1) == (packable and not at_home)
        assert worth_packing(torch.float32, CPU, 4) == packable
        assert worth_packing(torch.bfloat16, CPU, 1) == can_pack(torch.bfloat16, CPU)
        assert not worth_packing(torch.float32, torch.device("cuda"), 4)


def test_later_training_does_not_reach_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_pack(torch.float32, CPU):
        pytest.skip("this torch has no packed linear map")
    monkeypatch.setattr(decoding, "worth_packing", lambda dtype, device, rows: True)
    model = transformer(TransformerConfig(**SMALL), 0)
    x, _ = inputs(model.config, 0)
    stepper = DecodingTransformer(model)
    before = stepper.extend(x, stepper.new_cache(2))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert torch.equal(stepper.extend(x, stepper.new_cache(2)), before)
    assert not torch.equal(model.extend(x, model.new_cache(2)), before)


def test_plain_weights_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "worth_packing", lambda dtype, device, rows: False)
    model = transformer(TransformerConfig(**SMALL), 0)
    own = {p.data_ptr() for p in model.parameters()}
    for layer in DecodingTransformer(model).layers(1):
        for linear in (layer.project, layer.output, layer.up, layer.down):
            assert isinstance(linear, PlainLinear)
            assert {linear.weight.data_ptr(), linear.bias.data_ptr()} <= own


def test_extending_ignores_dropout_and_gradients() -> None:
    model = transformer(TransformerConfig(**SMALL, attn_dropout=0.5, resid_dropout=0.5), 0)
    x, _ = inputs(model.config, 0)
    want = model(x)
    got = model.train().extend(x, model.new_cache(2))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not got.requires_grad


def test_caches_hold_only_what_can_be_seen() -> None:
    config = TransformerConfig(
        width=8, n_ctx=96, heads=1, depth=32, attn_order=12, blocks=8, prime_len=20, encoder_dims=5
    )
    geometry = config.geometry
    sizes = {function: slots(function, geometry) for function in range(8) if function != 5}
    assert sizes == {0: 96, 1: 12, 2: 96, 3: 24, 4: 8, 6: 5, 7: 24}
    model = Transformer(config)
    cache = model.new_cache(3)
    assert cache.nbytes == 3 * 4 * 2 * 2 * sum(sizes[function] for function in model.funcs)


def test_items_do_not_mix() -> None:
    model = transformer(TransformerConfig(**SMALL), 0)
    x, _ = inputs(model.config, 0, batch=3)
    stepper = DecodingTransformer(model)
    together = fed(stepper, stepper.new_cache(3), x, [5, *[1] * 19])
    for item in range(3):
        alone = fed(stepper, stepper.new_cache(1), x[item : item + 1], [5, *[1] * 19])
        torch.testing.assert_close(alone, together[item : item + 1], rtol=1e-4, atol=1e-5)


def test_mistakes_are_named() -> None:
    model = Transformer(TransformerConfig(**SMALL))
    cache = model.new_cache(2)
    with pytest.raises(UserError, match="made for 2 sequences"):
        model.extend(torch.zeros(1, 1, 16), cache)
    model.extend(torch.zeros(2, 20, 16), cache)
    with pytest.raises(UserError, match=r"20 \+ 5 positions"):
        model.extend(torch.zeros(2, 5, 16), cache)
    assert cache.length == 20
    with pytest.raises(UserError, match="mask"):
        Transformer(TransformerConfig(**SMALL, mask=False)).new_cache(1)
    with pytest.raises(UserError, match="dtype"):
        DecodingTransformer(model, torch.bfloat16).new_cache(1, dtype=torch.float32)
    crossing = Transformer(TransformerConfig(**(SMALL | {"attn_order": 6, "depth": 4, "encoder_dims": 3})))
    with pytest.raises(UserError, match="encoder's output"):
        crossing.new_cache(1)


@examples(40)
@given(configs(), seeds, st.booleans(), st.integers(0, 20), st.integers(1, 2))
def test_the_step_that_can_be_recorded_equals_the_whole(
    config: TransformerConfig, seed: int, quantize: bool, known: int, batch: int
) -> None:
    """As a CUDA graph would run it: the same function each time, with nothing but tensors changing."""
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed)
    x, encoder_kv = x[:batch], None if encoder_kv is None else encoder_kv[:batch]
    decoder = DecodingTransformer(model, quantize="int8" if quantize else "")
    cache, known = decoder.new_cache(batch, encoder_kv=encoder_kv), min(known, config.n_ctx - 1)
    steps = decoder.new_cache(batch, encoder_kv=encoder_kv)
    want = fed(decoder, steps, x, [1] * config.n_ctx)
    if known:
        decoder.extend(x[:, :known], cache)
    step, position = StaticStep(decoder, cache), torch.tensor([known])
    with torch.no_grad():
        for t in range(known, config.n_ctx):
            torch.testing.assert_close(step(x[:, t], position), want[:, t], rtol=1e-4, atol=5e-5)
            position.add_(1)


class Kernels(TorchDispatchMode):
    """Names of the operations that would be launched on a GPU: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def as_one(self, name: str, function: Any) -> Any:
        """A chain of operations that a compiler makes one kernel of."""

        def run(*args: Any) -> Any:
            before = len(self.names)
            result = function(*args)
            self.names[before:] = [name]
            return result

        return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "batch"), [(1, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize("res_scale", [False, True])
def test_a_recorded_step_launches_eleven_kernels_a_layer(
    heads: int, batch: int, dtype: torch.dtype, res_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PlainLinear", decoding.FoldedLinear)  # as on CUDA
    counts = {}
    for depth in (3, 6):  # rows, columns and previous rows, once or twice
        config = TransformerConfig(**(SMALL | {"depth": depth, "heads": heads, "res_scale": res_scale}))
        decoder = DecodingTransformer(transformer(config, 0), dtype, packed=False)
        kernels = Kernels()
        fused = Fusions(kernels.as_one("add_norm", add_norm), kernels.as_one("softmax", biased_softmax))
        step = StaticStep(decoder, decoder.new_cache(batch), fused)
        with torch.no_grad(), kernels:
            step(torch.randn(batch, 16), torch.tensor([9]))
        counts[depth] = len(kernels.names)
    # Columns and previous rows are gathered first, and the latter may see nothing; res_scale has two more sums a layer.
    assert counts[6] - counts[3] <= 3 * 11 + 3 + (3 if res_scale else 0), kernels.names


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "swish", "relu"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_folded_and_plain_weights_agree(activation: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(shape, generator=generator) for shape in ((3, 8), (12, 8), (8, 12)))
    bias, other = torch.randn(12, generator=generator), torch.randn(8, generator=generator)
    results = [
        kind(second, other, after=activation, scale=scale).added_to(x, kind(first, bias, activation)(x))
        for kind in (PlainLinear, decoding.FoldedLinear)
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("error", "told"), [(ValueError("no\nsuch"), "(no)"), (AssertionError(), "(AssertionError)")])
def test_a_compiler_that_fails_is_told_in_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> Fusions:
        raise error

    monkeypatch.setattr(static, "tried", fails)
    found = static.fusions_for.__wrapped__(torch.device("cuda"), torch.float32)
    assert found == Fusions()
    assert capsys.readouterr().out == f"note: steps are recorded without fused kernels {told}\n"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chains_that_are_compiled_give_the_same_numbers(dtype: torch.dtype) -> None:
    try:
        compiled = Fusions.compiled()
        compiled.biased_softmax(torch.randn(2, 1, 8), torch.zeros(1, 1, 8), 1.0)
    except Exception as error:
        pytest.skip(f"torch has no compiler here: {str(error).splitlines()[0]}")
    from torch._dynamo.utils import counters  # here: it takes seconds to read

    tried(compiled, CPU, dtype)
    before = counters["stats"]["unique_graphs"]
    for width in range(8, 8 + 12):  # as many shapes as a run may have: none is left uncompiled
        compiled.biased_softmax(torch.randn(1, 1, width, dtype=dtype), torch.zeros(1, 1, width), 1.0)
    assert counters["stats"]["unique_graphs"] >= before + 11
    with pytest.raises(ValueError, match="other numbers"):
        tried(Fusions(biased_softmax=lambda scores, bias, scale: scores), CPU, dtype)


@pytest.mark.parametrize("few_rows", [0, 16])
def test_int8_is_the_model_of_the_rounded_weights(few_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_room, "FEW_ROWS", few_rows)
    config = TransformerConfig(**(SMALL | {"width": 64}))
    model, (x, _) = transformer(config, 0), inputs(config, 0)
    decoder = DecodingTransformer(model, quantize="int8")
    got = fed(decoder, decoder.new_cache(2), x, [7, *[1] * 17])
    assert (got - model.forward(x)).abs().max() > 1e-4
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                rounded, scales = quantized_room.quantized(parameter)
                assert (quantized_room.dequantized(rounded, scales) - parameter).abs().max() <= scales.max() / 2 + 1e-6
                parameter.copy_(quantized_room.dequantized(rounded, scales))
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


def test_a_channel_of_zeros_stays_zero() -> None:
    rounded, scales = quantized_room.quantized(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert torch.equal(rounded, torch.tensor([[0, 0], [64, -127]], dtype=torch.int8))
    assert torch.equal(scales, torch.tensor([1.0, 2 / 127]))
    with pytest.raises(UserError, match=r"quantize='int4': it is empty or int8"):
        quantized_room.check_quantize("int4")
