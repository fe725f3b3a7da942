"""The whole VQ-VAE: lengths, levels, mistakes, determinism, restarts, precision and cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from songbloom.errors import UserError
from songbloom.training.optim import Adam
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

CONFIG = VQVAEConfig(
    sr=8000,
    sample_length=960,
    levels=2,
    downs_t=(2, 1),
    strides_t=(2, 3),
    emb_width=4,
    l_bins=8,
    l_mu=0.9,
    width=6,
    depth=2,
    dilation_growth_rate=3,
    commit=0.02,
    multispec_loss_n_fft=(256, 128),
    multispec_loss_hop_length=(40, 30),
    multispec_loss_window_size=(200, 100),
)


def _audio(batch: int = 2, time: int = 2400, seed: int = 0) -> Tensor:
    return torch.randn(batch, time, 1, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def _model(config: VQVAEConfig = CONFIG, seed: int = 0) -> VQVAE:
    model = VQVAE(config, torch.Generator().manual_seed(seed))
    for level in range(model.levels if config.use_bottleneck else 0):
        book = model.bottleneck.codebook(level).codebook
        book.copy_(torch.randn(book.shape, generator=torch.Generator().manual_seed(level)) * 0.1)
    return model


def test_geometry() -> None:
    model = _model()
    assert (model.downsamples, model.hop_lengths, model.z_shapes) == ((4, 3), (4, 12), ((240,), (80,)))
    assert (model.sample_rate, model.channels, model.levels, model.l_bins) == (8000, 1, 2, 8)
    assert VQVAE(replace(CONFIG, sample_length=0)).sample_length == 24 * 8000 // 12 * 12


@settings(deadline=None, max_examples=15)
@given(
    downs=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    strides=st.lists(st.integers(2, 5), min_size=3, max_size=3),
    frames=st.integers(1, 3),
)
def test_lengths_at_every_level(downs: list[int], strides: list[int], frames: int) -> None:
    config = replace(
        CONFIG, levels=len(downs), downs_t=tuple(downs), strides_t=tuple(strides[: len(downs)]), width=3, depth=1,
        sample_length=0,
    )  # fmt: skip
    model = VQVAE(config).eval()
    time = frames * model.hop_lengths[-1]
    codes = model.encode(_audio(1, time))
    assert [tuple(code.shape) for code in codes] == [(1, time // hop) for hop in model.hop_lengths]
    assert all(audio.shape == (1, time, 1) for audio in model.reconstruct(_audio(1, time)))


def test_only_the_encoders_asked_for_run() -> None:
    model, ran = _model().eval(), []
    for level, encoder in enumerate(model.encoders):
        encoder.register_forward_hook(lambda *_, level=level: ran.append(level))
    whole = model.encode(_audio())
    ran.clear()
    (top,) = model.encode(_audio(), start_level=1)
    assert ran == [1]
    assert torch.equal(top, whole[1])
    (bottom,) = model.encode(_audio(), end_level=1)
    assert torch.equal(bottom, whole[0])
    assert top.dtype == torch.int64


def test_codes_above_are_not_looked_at() -> None:
    model = _model().eval()
    codes = model.encode(_audio())
    want = model.decode(codes)
    nonsense = torch.full_like(codes[1], 10**6)
    assert torch.equal(model.decode([codes[0], nonsense]), want)


def test_pieces_of_the_batch_change_nothing() -> None:
    model, x = _model().eval(), _audio(5)
    for one, other in zip(model.encode(x, bs_chunks=3), model.encode(x), strict=True):
        assert torch.equal(one, other)
    codes = model.encode(x)
    torch.testing.assert_close(model.decode(codes, bs_chunks=5), model.decode(codes), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.encode(_audio(1, 2401)), "audio is 2401 samples, no multiple.* 12: .*2400 or 2412"),
        (lambda m: m.encode(_audio(1, 2404), end_level=1), None),
        (lambda m: m.encode(_audio(1, 7)), "7 samples.*pad it to 12"),
        (lambda m: m.encode(_audio(1, 12)[:, :, 0]), r"\[1, 12\].*\[batch, time, 1\]"),
        (lambda m: m.encode(_audio(1, 12).repeat(1, 1, 2)), r"\[1, 12, 2\].*mono"),
        (lambda m: m.encode(_audio(1, 12), start_level=2), "levels from 2 up to 2"),
        (lambda m: m.decode([torch.zeros(1, 3, dtype=torch.int64)]), "codes of 1 level to decode.*give 2"),
        (lambda m: m(_audio(1, 2410)), "2410 samples"),
        (lambda m: m(_audio(1, 2400), loss_fn="l3"), "loss_fn is 'l3'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_numbers(call: object, words: str | None) -> None:
    model = _model().eval()
    if words is None:
        call(model)  # type: ignore[operator]
        return
    with pytest.raises(UserError, match=words):
        call(model)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downs_t": (1,)}, "downs_t has 1 value for 2 levels"),
        ({"hvqvae_multipliers": (1, 1, 1)}, "hvqvae_multipliers has 3 values"),
        ({"levels": 0}, "levels is 0"),
        ({"downs_t": (0, 1)}, "down_t is 0"),
        ({"strides_t": (2, 1)}, "stride_t is 1"),
        ({"sample_length": 961}, "sample_length is 961 samples, no multiple of the hop length 12"),
        ({"loss_fn": "l2x"}, "loss_fn is 'l2x'.*did you mean 'l2'"),
        ({"multispec_loss_n_fft": (256,)}, "have 1, 2 and 2 values"),
    ],
)
def test_a_configuration_that_makes_no_model(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        VQVAE(replace(CONFIG, **change))


def test_configuration_from_hyperparameters() -> None:
    config = VQVAEConfig.from_hps({"levels": 1, "downs_t": [3], "strides_t": (2,), "prior_width": 7, "sr": 22050})
    assert (config.levels, config.downs_t, config.sr, config.emb_width) == (1, (3,), 22050, 64)


def test_multipliers_widen_and_deepen_their_level() -> None:
    model = VQVAE(replace(CONFIG, hvqvae_multipliers=(2, 1)))
    stack = model.encoders[0].blocks[0].stages[0].residual
    assert len(stack.blocks) == 4 and stack.blocks[0].dilated.in_channels == 12
    assert len(model.encoders[1].blocks[0].stages[0].residual.blocks) == 2


def test_samples_come_from_the_generator() -> None:
    model = _model().eval()
    first, second = (model.sample(2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (2, 960, 1)
    assert torch.equal(first, second)


def test_metrics_may_be_left_out() -> None:
    x = _audio()
    full, bare = _model().train(), _model().train()
    _, loss, metrics = full(x)
    _, same, none = bare(x, metrics=False)
    assert none == {}
    assert torch.equal(loss, same)
    assert {f"{name}_l{level}" for name in ("recons_loss", "spectral_loss") for level in (1, 2)} <= set(metrics)
    assert not any(number.requires_grad for number in metrics.values())
    total = metrics["recons_loss"] + metrics["multispectral_loss"] + 0.02 * metrics["commit_loss"]
    torch.testing.assert_close(loss.detach(), total)
    full.eval()
    assert "usage" in metrics and "usage" not in full(x)[2]


@pytest.mark.parametrize("change", [{"spectral": 0.5}, {"multispectral": 0.0}, {"use_nonrelative_specloss": False}])
def test_weights_of_the_spectral_terms(change: dict) -> None:
    config = replace(CONFIG, **change)
    _, loss, metrics = _model(config).train()(_audio(), bandwidth={"l1": 0.5, "l2": 0.3, "spec": 2.0})
    total = metrics["recons_loss"] + 0.02 * metrics["commit_loss"]
    total = total + config.spectral * metrics["spectral_loss"] + config.multispectral * metrics["multispectral_loss"]
    torch.testing.assert_close(loss.detach(), total)


def test_every_weight_learns_and_levels_do_not_mix() -> None:
    model = _model().train()
    model(_audio())[1].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def _train(model: VQVAE, optimiser: Adam, steps: range) -> list[float]:
    lost = []
    for step in steps:
        _, loss, _ = model(_audio(seed=step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        lost.append(loss.item())
    return lost


def test_going_on_from_saved_state_gives_the_same_steps_to_the_bit() -> None:
    straight = _model().train()
    optimiser = Adam(straight.parameters(), lr=1e-3)
    _train(straight, optimiser, range(3))
    weights = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    codebooks, moments = straight.codebook_state(), optimiser.state_dict()
    moments = torch.load(_saved(moments), weights_only=True)
    codebooks = torch.load(_saved(codebooks), weights_only=True)
    want = _train(straight, optimiser, range(3, 6))

    resumed = _model(seed=1).train()
    resumed.load_state_dict(weights)
    resumed.load_codebook_state(codebooks)
    again = Adam(resumed.parameters(), lr=1e-3)
    again.load_state_dict(moments)
    assert _train(resumed, again, range(3, 6)) == want
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def _saved(content: object) -> object:
    import io

    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def test_restoring_counts_the_whole_batch() -> None:
    model = _model(replace(CONFIG, revival_threshold=0.25))
    model.restore_codebooks(batch_size=3)
    for level, hop in enumerate(model.hop_lengths):
        book = model.bottleneck.codebook(level)
        assert book.k_elem[0].item() == pytest.approx(3 * 960 / hop / 8)
        assert book.threshold == 0.25 and book.initialised
        torch.testing.assert_close(book.k_sum / book.k_elem[:, None], book.codebook)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_losses_in_float32(dtype: torch.dtype) -> None:
    x = _audio()
    _, want, _ = _model().train()(x)
    with torch.autocast("cpu", dtype=dtype):
        output, loss, metrics = _model().train()(x)
    assert output.dtype == loss.dtype == torch.float32
    assert all(number.dtype == torch.float32 for number in metrics.values())
    torch.testing.assert_close(loss, want, rtol=0.03, atol=0.0)


def test_without_quantisation() -> None:
    model = _model(replace(CONFIG, use_bottleneck=False)).train()
    output, loss, metrics = model(_audio())
    loss.backward()
    assert output.shape == (2, 2400, 1)
    assert metrics["usage"] == 0 and metrics["commit_loss"] == 0
    model.load_codebook_state(model.codebook_state())
    model.restore_codebooks(1)


def test_weights_come_from_the_generator() -> None:
    one, other, third = _model(seed=3), _model(seed=3), _model(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_cost() -> None:
    small = VQVAEConfig(
        sr=22050, downs_t=(5, 3), l_bins=1024, width=32, depth=4, dilation_growth_rate=3, sample_length=262144
    )
    with torch.device("meta"):
        cost = VQVAE(small).cost()
    assert cost["parameters"] == 586_050
    assert cost["codebook_entries"] == 2 * 1024 * 64
    assert cost["codes_per_second"] == [22050 / 32, 22050 / 256]
    # Level 0 by hand: per sample of audio, stacks at rates 1/2 … 1/32, convolutions between them, the projection.
    rates = [0.5**i for i in range(1, 6)]
    stacks = sum(rates) * 4 * 2 * (32 * 32 * 3 + 32 * 32)
    down = 2 * (0.5 * 4 * 32 + sum(rates[1:]) * 4 * 32 * 32)
    assert cost["encode_operations"][0] == pytest.approx(stacks + down + 2 * 3 * 32 * 64 / 32 + 2 * 1024 * 64 / 32)
