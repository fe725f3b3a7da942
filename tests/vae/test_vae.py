"""The VAE: shapes, pieces, draws, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import songbloom.vae.vae as vae_module
from songbloom.distributed import World
from songbloom.errors import UserError
from songbloom.vae.vae import VAE, VAEConfig
from tests.vae.tiny import SIZES, sound, tiny_vae

HOP = 6
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
MODEL = tiny_vae().eval()


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_what_it_says_of_itself() -> None:
    assert (MODEL.sample_rate, MODEL.channels, MODEL.levels, MODEL.latent_dim) == (8000, 2, 1, 2)
    assert MODEL.hop_lengths == MODEL.downsamples == (HOP,)
    assert MODEL.sample_length == 240 and MODEL.z_shapes == ((40, 2),)
    cost = MODEL.cost()
    assert cost["parameters"] == sum(p.numel() for p in MODEL.parameters())
    assert cost["codes_per_second"] == [8000 / 6]


def test_operations_are_those_of_the_convolutions() -> None:
    counted = {"encoder": 0, "decoder": 0}
    hooks = []
    for side in counted:
        for part in getattr(MODEL, side).modules():
            if isinstance(part, vae_module.Convolution | vae_module.TransposedConvolution):

                def count(part: Any, inputs: Any, output: torch.Tensor, side: str = side) -> None:
                    moments = output if isinstance(part, vae_module.Convolution) else inputs[0]
                    counted[side] += moments.shape[2] * 2 * part.direction.numel()

                hooks.append(part.register_forward_hook(count))
    MODEL.decode(MODEL.encode(sound(1, 20 * HOP, 2)))
    for hook in hooks:
        hook.remove()
    cost = MODEL.cost()
    assert counted["encoder"] / (20 * HOP) == pytest.approx(cost["encode_operations"][0])
    assert counted["decoder"] / (20 * HOP) == pytest.approx(cost["decode_operations"][0])


@settings(deadline=None, max_examples=12)
@given(frames=st.integers(1, 1000), chunk=st.integers(40, 300))
def test_pieces_give_what_the_whole_gives(frames: int, chunk: int) -> None:
    audio, latents = sound(1, frames * HOP, 2), sound(1, frames, 2, seed=3)
    torch.testing.assert_close(MODEL.encode(audio, chunked=True, chunk=chunk), MODEL.encode(audio), **CLOSE)
    torch.testing.assert_close(MODEL.decode(latents, chunked=True, chunk=chunk), MODEL.decode(latents), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 1001, 100))
def test_pieces_give_what_the_whole_gives_at_every_length(first: int) -> None:
    """1 to 1000 frames, one after another, in pieces of the usual length and of others."""
    for frames in range(first, first + 100):
        audio, latents = sound(1, frames * HOP, 2), sound(1, frames, 2, seed=3)
        chunk = 128 if frames % 10 else 50
        torch.testing.assert_close(MODEL.encode(audio, chunked=True, chunk=chunk), MODEL.encode(audio), **CLOSE)
        torch.testing.assert_close(MODEL.decode(latents, chunked=True, chunk=chunk), MODEL.decode(latents), **CLOSE)


@pytest.mark.parametrize("strides", [(2, 4), (3, 5), (4,)])
@pytest.mark.parametrize("chunk", [1, 7])
def test_pieces_of_any_strides(strides: tuple[int, ...], chunk: int) -> None:
    model = tiny_vae(vae_strides=strides, vae_multipliers=(2,) * len(strides), sample_length=0).eval()
    hop = model.hop_lengths[0]
    for frames in (1, 2, 31):
        audio, latents = sound(2, frames * hop, 2), sound(2, frames, 2, seed=3)
        assert model.encode(audio).shape == (2, frames, 2)
        assert model.decode(latents).shape == (2, frames * hop, 2)
        torch.testing.assert_close(model.encode(audio, chunked=True, chunk=chunk), model.encode(audio), **CLOSE)
        torch.testing.assert_close(model.decode(latents, chunked=True, chunk=chunk), model.decode(latents), **CLOSE)


@pytest.mark.parametrize("length", [1, 5, 6, 11, 601, 605])
@pytest.mark.parametrize("strides", [(2, 3), (2, 4), (3, 2)])
def test_broken_frames_make_no_latents_but_are_heard(length: int, strides: tuple[int, ...]) -> None:
    model = tiny_vae(vae_strides=strides, sample_length=0).eval()
    audio = sound(1, length, 2)
    whole = model.encode(audio)
    assert whole.shape == (1, length // model.hop_lengths[0], 2)
    torch.testing.assert_close(model.encode(audio, chunked=True, chunk=16), whole, **CLOSE)


def test_pieces_that_are_cut_too_close_differ() -> None:
    """The published plan is exact only where half an overlap is as much as the network looks at."""
    latents = sound(1, 200, 2)
    margin = max(MODEL.cost()["decode_margin"])
    whole = MODEL.decode(latents)
    wide = MODEL.decode(latents, chunked=True, chunk=100, overlap=2 * margin)
    torch.testing.assert_close(wide, whole, **CLOSE)
    close = MODEL.decode(latents, chunked=True, chunk=100, overlap=4)
    assert (close - whole).abs().max() > 1e-3


def test_the_published_strides_in_pieces() -> None:
    """The published reach at a small width: exact pieces, and the published plan of 128 latents that overlap by 32."""
    sizes = {"sample_length": 0, "vae_strides": VAEConfig().vae_strides, "vae_multipliers": (1,) * 5, "vae_width": 2}
    model = tiny_vae(**sizes).eval()
    with torch.device("meta"):
        published = VAE(VAEConfig()).cost()
    cost = model.cost()
    assert cost["encode_margin"] == published["encode_margin"] == (7, 7)
    assert cost["decode_margin"] == published["decode_margin"] == (9, 9)
    audio, latents = sound(1, 45 * 1920 + 77, 2), sound(1, 150, 2)
    torch.testing.assert_close(model.encode(audio, chunked=True, chunk=20), model.encode(audio), **CLOSE)
    whole = model.decode(latents)
    torch.testing.assert_close(model.decode(latents, chunked=True, chunk=60), whole, **CLOSE)
    torch.testing.assert_close(model.decode(latents, chunked=True, chunk=128, overlap=32), whole, **CLOSE)


def test_memory_does_not_grow_with_the_song() -> None:
    """No call of the networks sees more than a chunk and its margins, whatever the song's length."""
    lengths: dict[str, list[int]] = {"encoder": [], "decoder": []}
    hooks = [
        getattr(MODEL, side).register_forward_pre_hook(
            lambda _, inputs, side=side: lengths[side].append(inputs[0].shape[2])
        )
        for side in lengths
    ]
    MODEL.encode(sound(1, 700 * HOP, 2), chunked=True, chunk=64)
    MODEL.decode(sound(1, 700, 2), chunked=True, chunk=64)
    for hook in hooks:
        hook.remove()
    cost = MODEL.cost()
    assert len(lengths["encoder"]) == len(lengths["decoder"]) == 11
    assert max(lengths["encoder"]) <= (64 + sum(cost["encode_margin"])) * HOP
    assert max(lengths["decoder"]) <= 64 + sum(cost["decode_margin"])


def test_pieces_one_by_one() -> None:
    latents = sound(2, 50, 2)
    pieces = list(MODEL.decode_pieces(latents, chunk=20))
    assert [piece.shape[1] for piece in pieces] == [120, 120, 60]
    assert torch.equal(torch.cat(pieces, dim=1), MODEL.decode(latents, chunked=True, chunk=20))


def test_nothing_gives_nothing() -> None:
    for chunked in (False, True):
        assert MODEL.encode(sound(2, HOP - 1, 2), chunked=chunked).shape == (2, 0, 2)
        assert MODEL.decode(torch.zeros(2, 0, 2), chunked=chunked).shape == (2, 0, 2)


def test_draws_are_the_generators_and_items_are_their_own() -> None:
    audio = sound(2, 20 * HOP, 2)
    mean, std = MODEL.encode_posterior(audio)
    assert torch.equal(MODEL.encode(audio), mean)
    noise = sound(2, 20, 2, seed=8)
    assert torch.equal(MODEL.encode(audio, noise=noise), mean + std * noise)
    one = MODEL.encode(audio, generator=_generators(5)[0])
    assert torch.equal(one, MODEL.encode(audio, generator=_generators(5)[0]))
    assert not torch.equal(one, MODEL.encode(audio, generator=_generators(6)[0]))
    both = MODEL.encode(audio, generator=_generators(5, 6))
    alone = torch.cat([MODEL.encode(audio[i : i + 1], generator=_generators(5 + i)) for i in range(2)])
    torch.testing.assert_close(both, alone, **CLOSE)
    pieces = MODEL.encode(audio, generator=_generators(5, 6), chunked=True, chunk=3)
    torch.testing.assert_close(pieces, both, **CLOSE)
    with pytest.raises(UserError, match="1 generator for 2 items"):
        MODEL.encode(audio, generator=_generators(5))
    with pytest.raises(UserError, match="noise of shape"):
        MODEL.encode(audio, noise=noise[:, 1:])


def test_one_channel_is_both() -> None:
    mono = sound(2, 20 * HOP, 1)
    assert torch.equal(MODEL.encode(mono), MODEL.encode(mono.expand(-1, -1, 2)))


def test_style_prompts() -> None:
    mono = sound(2, 2052, 1)
    assert torch.equal(MODEL.encode_prompt(mono[..., 0]), MODEL.encode(mono))
    assert MODEL.encode_prompt(mono[:, :2047, 0]).shape == (2, 0, 2)
    assert MODEL.encode_prompt(mono[:, :2048, 0]).shape == (2, 341, 2)


def test_gradients_flow_in_training_only() -> None:
    model = tiny_vae()
    audio = sound(1, 240, 2)
    assert not model.encode(audio).requires_grad and not model.decode(model.encode(audio)).requires_grad
    _, loss, _ = model(audio)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_encoding_ignores_autocast_and_keeps_the_weights_precision() -> None:
    audio = sound(1, 240, 2)
    with torch.autocast("cpu", torch.bfloat16):
        latents = MODEL.encode(audio)
        decoded = MODEL.decode(latents)
    assert torch.equal(latents, MODEL.encode(audio)) and torch.equal(decoded, MODEL.decode(latents))
    half = tiny_vae().to(torch.bfloat16)
    assert half.decode(half.encode(audio)).dtype == torch.float32


def test_training_under_autocast_is_close_to_float32() -> None:
    audio = sound(2, 240, 2)
    first, second = tiny_vae(), tiny_vae()
    _, wanted, _ = first(audio)
    with torch.autocast("cpu", torch.bfloat16):
        output, loss, _ = second(audio)
    assert output.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=0.05)


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_it_learns(adversarial: float) -> None:
    model = tiny_vae(vae_adversarial=adversarial, vae_feature_matching=1.0, vae_waveform=1.0, vae_width=6).train()
    time = torch.arange(240) / 8000
    audio = torch.stack([(440 * 6.28 * time).sin(), (880 * 6.28 * time).sin()], dim=1)[None].repeat(2, 1, 1) * 0.3
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = []
    for _ in range(25):
        optimiser.zero_grad()
        _, loss, metrics = model(audio)
        loss.backward()
        optimiser.step()
        history.append(metrics["spectral_loss"].item())
    assert sum(history[-5:]) < 0.7 * sum(history[:5])
    expected = {"spectral_loss", "sum_difference_loss", "left_right_loss", "l1_loss", "l2_loss", "kl"}
    contest = {"adversarial_loss", "feature_matching_loss", "discriminator_loss"} if adversarial else set()
    assert set(metrics) == expected | contest
    assert not any(number.requires_grad for number in metrics.values())


def test_the_loss_is_the_weighted_sum() -> None:
    weights = {
        "vae_spectral": 0.5,
        "vae_waveform": 2.0,
        "vae_mel": 1.5,
        "vae_kl": 0.3,
        "vae_adversarial": 0.7,
        "vae_feature_matching": 3.0,
    }
    _, loss, metrics = tiny_vae(**weights).train()(sound(2, 240, 2))
    names = ("spectral_loss", "l1_loss", "mel_loss", "kl", "adversarial_loss", "feature_matching_loss")
    wanted = metrics["discriminator_loss"] + sum(
        weight * metrics[name] for weight, name in zip(weights.values(), names, strict=True)
    )
    torch.testing.assert_close(loss.detach(), wanted)


def test_both_sides_learn_as_if_apart() -> None:
    """In one backward pass, the VAE's gradients are those of its loss and the judge's those of the judge's."""
    audio = sound(2, 240, 2)
    model = tiny_vae(vae_adversarial=0.1).train()
    output, loss, _ = model(audio)
    loss.backward()
    judge = model.discriminator
    assert judge is not None
    got = [p.grad.clone() for p in judge.parameters()]
    judge.zero_grad()
    judge.losses(audio, output.detach()).discriminator.backward()
    for ours, parameter in zip(got, judge.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
    later = tiny_vae(vae_adversarial=0.1, vae_adversarial_start=1).train()
    plain = tiny_vae(vae_adversarial=0.0).train()
    plain.load_codec(later.state_dict())
    for each in (later, plain):
        each(audio)[1].backward()
    for side in ("encoder", "decoder"):
        for a, b in zip(getattr(later, side).parameters(), getattr(plain, side).parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    assert any(p.grad.any() for p in later.discriminator.parameters())  # it learns from the first step


def test_evaluation_is_of_means_and_asks_no_judge() -> None:
    model = tiny_vae(vae_adversarial=0.1).eval()
    audio = sound(2, 240, 2)
    output, loss, metrics = model(audio)
    torch.testing.assert_close(output, model.reconstruct(audio)[0], **CLOSE)
    assert "discriminator_loss" not in metrics and model.steps == 0
    assert torch.equal(loss, model(audio)[1])
    drawn = model(audio, generator=_generators(1)[0])[0]
    assert not torch.equal(drawn, output)
    assert model(audio, metrics=False)[2] == {}


def test_noise_goes_on_after_a_stop_and_differs_by_step() -> None:
    audio = sound(2, 240, 2)
    model = tiny_vae().train()
    first, second = model(audio)[0], model(audio)[0]
    assert not torch.equal(first, second)
    again = tiny_vae().train()
    again.load_codebook_state({"steps": 1})
    assert torch.equal(again(audio)[0], second)
    assert model.codebook_state() == {"steps": 2}
    assert not torch.equal(tiny_vae(**{"seed": 1}).train()(audio)[0], first)


def test_noise_does_not_depend_on_how_many_ranks_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = sound(4, 240, 2)
    whole = tiny_vae().train()(audio)[0]
    for rank in range(2):
        monkeypatch.setattr(vae_module, "world", lambda rank=rank: World(rank, 2, rank, 2))
        share = tiny_vae().train()(audio[2 * rank : 2 * rank + 2])[0]
        torch.testing.assert_close(share, whole[2 * rank : 2 * rank + 2], **CLOSE)


def test_mono_and_tanh() -> None:
    model = tiny_vae(vae_channels=1, vae_final_tanh=True).train()
    output, _, metrics = model(sound(2, 240, 1))
    assert output.shape == (2, 240, 1) and "left_right_loss" not in metrics
    with torch.no_grad():
        model.decoder.output.magnitude.mul_(1e4)
    assert model.decode(sound(1, 10, 2)).abs().max() <= 1


def test_codec_weights_alone() -> None:
    trained = tiny_vae(vae_adversarial=0.1)
    plain = tiny_vae(seed=1)
    plain.load_codec(trained.state_dict())
    audio = sound(1, 240, 2)
    assert torch.equal(plain.encode(audio), trained.encode(audio))
    with pytest.raises(UserError, match=r"decoder\.blocks\.0\.resample\.bias is \[3\] there, \[6\] here"):
        tiny_vae(vae_multipliers=(2, 2)).load_codec(trained.state_dict())
    part = {name: tensor for name, tensor in trained.state_dict().items() if name != "encoder.output.bias"}
    with pytest.raises(UserError, match=r"encoder\.output\.bias is nothing there"):
        plain.load_codec(part)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"audio of shape \[1, 240\]"):
        MODEL.encode(sound(1, 240))
    with pytest.raises(UserError, match=r"takes \[batch, time, 2\]"):
        MODEL.encode(sound(1, 240, 3))
    with pytest.raises(UserError, match=r"latents of shape \[1, 2, 10\]"):
        MODEL.decode(sound(1, 2, 10))
    with pytest.raises(UserError, match="241 samples, no multiple of the hop length 6: cut or pad it to 240 or 246"):
        MODEL(sound(1, 241, 2))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vae_strides": (2,)}, "vae_strides has 1 value and vae_multipliers 2"),
        ({"vae_strides": (2, 1)}, "at least 2 moments"),
        ({"vae_multipliers": (2, 0)}, "vae_multipliers"),
        ({"vae_latent_dim": 0}, "vae_latent_dim is 0"),
        ({"sample_length": 241}, "sample_length is 241"),
        ({"vae_adversarial": 1.0, "vae_discriminator_n_fft": ()}, "vae_discriminator_n_fft"),
        ({"vae_spectral_n_fft": (2,)}, "size of at least 4"),
    ],
)
def test_configurations_that_make_no_model(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        VAEConfig(**{**SIZES, **changes})


def test_the_configuration_takes_what_it_knows() -> None:
    config = VAEConfig.from_hps({"sr": 32000, "vae_strides": [2, 5], "vae_multipliers": [1, 2], "levels": 3})
    assert config == VAEConfig(sr=32000, vae_strides=(2, 5), vae_multipliers=(1, 2))
    assert VAEConfig().hop_length == 1920 and VAEConfig().samples == 67200
    assert isinstance(VAE(config), VAE)
