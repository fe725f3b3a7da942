"""What songs of the SongBloom family need of memory, what their options mean, and how they share prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from make_models import make_songbloom
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.prior.songbloom.generate import sample_patches
from songbloom.prior.songbloom.llama import Prefix
from songbloom.prior.songbloom.settings import Compatibility, GenerationSettings
from songbloom.sampling import needs, request, songbloom_needs
from songbloom.sampling.songbloom_options import compatibility_of, generation_of, usual_generation
from songbloom.sampling.songbloom_writer import PatchDraws, SongSettings, SongWriter, Told
from tests.sampling.songbloom_tiny import tiny_prior


def options(*arguments: str) -> Hyperparams:
    return request.command_line(["--model=tiny_songbloom", "--name=x", *arguments], ["tiny_songbloom"])


def test_the_published_model_s_needs() -> None:
    codec, prior = make_songbloom("songbloom_150s", "meta", restored=False)
    vae = songbloom_needs.parameter_bytes([codec.vae])
    need = songbloom_needs.need_of(prior, SongSettings(), 4, 4000, codec_bytes=vae)
    assert need.items == 4 and need.weights == pytest.approx(7.49e9 + 0.68e9 + 0.376e9, rel=0.01)
    rows = songbloom_needs.position_bytes(prior, "fp32") * 2 * (1 + 17 * 250)
    assert rows == pytest.approx(3.76e9, rel=0.01) and rows < need.item < 1.4 * rows
    half = songbloom_needs.need_of(prior, SongSettings(precision="bf16"), 4, 4000, codec_bytes=vae)
    assert half.weights < 0.65 * need.weights and half.item < need.item
    assert songbloom_needs.need_of(prior, SongSettings(max_batch_size=2), 4, 4000, codec_bytes=vae).items == 2


def test_ranks_share_the_prior_but_not_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    _, prior = make_songbloom("songbloom_150s", "meta", restored=False)
    for there in (True, False):
        monkeypatch.setattr(songbloom_needs, "are_shared", lambda *_, there=there: there)
        need = songbloom_needs.need_of(prior, SongSettings(), 4, 4000, codec_bytes=5e9)
        assert need.shared == there * 4 * sum(each.numel() for each in prior.parameters())
        on_gpu = songbloom_needs.need_of(prior, SongSettings(), 4, 4000, codec_bytes=5e9, device=torch.device("cuda"))
        assert on_gpu.shared == 0


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, prior = make_songbloom("songbloom_150s", "meta", restored=False)
    vae = songbloom_needs.parameter_bytes([codec.vae])
    need = songbloom_needs.need_of(prior, SongSettings(), 2, 4000, codec_bytes=vae)
    monkeypatch.setattr(needs, "free_bytes", lambda _: int(9e9))
    with pytest.raises(UserError, match=r"not enough memory.*--max_batch_size=1 or --precision=bf16"):
        needs.tell([need], torch.device("cpu"))
    monkeypatch.setattr(needs, "free_bytes", lambda _: int(60e9))
    assert needs.tell([need], torch.device("cpu")) == [need]


def test_the_room_decides_how_many_are_sampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, prior = make_songbloom("songbloom_150s", "meta", restored=False)
    vae = songbloom_needs.parameter_bytes([codec.vae])
    found = []
    for free in (10e9, 40e9, 1e15, None):
        monkeypatch.setattr(songbloom_needs.memory, "free_everywhere", lambda _, free=free: free)
        found.append(songbloom_needs.batch_of(prior, "fp32", torch.device("cpu"), 20, 4000, vae))
    assert found[0] == 1 and 2 <= found[1] <= 8 and found[2:] == [20, 20]


def test_options_are_laid_over_the_model_s_settings() -> None:
    usual = GenerationSettings(steps=20, top_k=50)
    config = tiny_prior().config
    assert generation_of(options(), usual, config, 25.0) == usual
    made = generation_of(options("--temp=.5", "--cfg_coef=2", "--min_length_in_seconds=2"), usual, config, 25.0)
    assert (made.temperature, made.cfg_lm, made.cfg_diffusion, made.min_frames, made.steps) == (0.5, 2.0, 2.0, 50, 20)
    made = generation_of(options("--top_p=.9", "--cfg_coef=1,3", "--diff_temp=1"), usual, config, 25.0)
    assert (made.top_p, made.cfg_lm, made.cfg_diffusion, made.diffusion_temperature) == (0.9, 1.0, 3.0, 1.0)
    assert compatibility_of("published") == Compatibility.published()
    assert compatibility_of("eos_inside_patch, silent_first_patch").silent_first_patch
    assert compatibility_of("") == Compatibility()


def test_settings_beside_published_weights(tmp_path: Path) -> None:
    weights = tmp_path / "song.pt"
    hps = {"restore_prior": str(weights), "sample_length": 0, "sample_length_in_seconds": 30.0, "sr": 48000}
    assert usual_generation("mine", hps, 25.0) == GenerationSettings(max_frames=750)
    told = "max_dur: 150\ninference: {cfg_coef: 1.5, temp: 0.8, diff_temp: 0.9, top_k: 90, penalty_repeat: true}\n"
    weights.with_suffix(".yaml").write_text(told, encoding="utf-8")
    made = usual_generation("mine", hps, 25.0)
    assert (made.temperature, made.diffusion_temperature, made.top_k, made.max_frames) == (0.8, 0.9, 90, 4000)
    hub = {**hps, "restore_prior": "hf://NOBODY/NOTHING/song.pt", "sample_length_in_seconds": 240}
    made = usual_generation("songbloom_240s", hub, 25.0)
    assert (made.max_frames, made.diffusion_temperature) == (6250, 0.9)


def test_prompts_that_are_read_beforehand_give_the_same_songs() -> None:
    prior = tiny_prior()
    conditions = prior.conditions([(1, 30), (2, 31, 32)])
    null = prior.null_conditions()
    prefixes = [prior.language_model.read(each.prefix()[0]) for each in (conditions[:1], conditions[1:], null)]
    settings = GenerationSettings(max_frames=12, steps=2)

    def songs(**more: object) -> list[torch.Tensor]:
        draws = PatchDraws([1, 2, 3], 4)
        written = sample_patches(prior, conditions, settings, counts=[2, 1], draws=draws, **more)  # type: ignore[arg-type]
        return [torch.cat([patch.tokens.float(), patch.latents.flatten(1)], dim=1) for patch in written]

    for with_them, without in zip(songs(prefixes=prefixes), songs(), strict=True):
        torch.testing.assert_close(with_them, without, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_read_once_for_all_windows_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = tiny_prior()
    read = prior.language_model.read
    calls = []

    def counted(prefix: torch.Tensor) -> Prefix:
        calls.append(len(prefix))
        return read(prefix)

    monkeypatch.setattr(prior.language_model, "read", counted)
    writer, settings = SongWriter(prior), SongSettings(GenerationSettings(steps=1, min_frames=99), window_patches=1)
    frames = torch.zeros(4, 0, 5)
    told = [Told((1, 30), None, key) for key in ("a", "b", "a", "b")]
    for window in writer.plan(12, settings, 0):
        sketch = torch.zeros(4, 0, dtype=torch.int64)
        new = writer.write(
            [frames, sketch], window, settings, slice(0, 4), seeds=[1, 2, 3, 4], labels=lambda _, part: told[part]
        )
        frames = torch.cat([frames, new], dim=1)
    assert frames.shape == (4, 12, 5) and len(calls) == 3  # two prompts, and none
