"""The loop on real small models and files: resumption, skipped steps, ends, logs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from songbloom.distributed import World
from songbloom.errors import UserError
from songbloom.training import checkpoint, loop
from songbloom.training.loop import Trainer
from songbloom.training.tasks import Batch
from tests.training.runs import built, differences, latest, weight_difference, write_songs

PRIOR = {"prior": True, "attn_dropout": 0.1, "emb_dropout": 0.1, "iters_before_update": 2, "aug_shift": True}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory, songs: Path) -> str:
    """A codec's checkpoint, trained for a few steps."""
    folder = tmp_path_factory.mktemp("codec")
    built("tiny_vqvae", "codec", folder, songs, train_steps=6).run()
    return str(folder / "codec" / checkpoint.LATEST)


def scalars(folder: Path, name: str) -> dict[str, dict[int, float]]:
    """Tag → step → value, as TensorBoard reads the files of a run."""
    seen = events(folder, name)
    return {tag: {event.step: event.value for event in seen.Scalars(tag)} for tag in seen.Tags()["scalars"]}


def events(folder: Path, name: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / name / "logs"), size_guidance={"audio": 0, "images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


# ------------------------------------------------------------------------------------------------------- resumption


@pytest.mark.parametrize("stop", [3, 8])
def test_a_stopped_codec_goes_on_bit_for_bit(tmp_path: Path, songs: Path, stop: int) -> None:
    values = {"cpu_ema": True, "cpu_ema_freq": 3, "aug_shift": True, "test": True, "save_iters": 4}
    whole = built("tiny_vqvae", "whole", tmp_path, songs, train_steps=14, **values)
    assert whole.run() == 0
    assert built("tiny_vqvae", "parts", tmp_path, songs, train_steps=stop, **values).run() == 0
    assert built("tiny_vqvae", "parts", tmp_path, songs, train_steps=14, **values).run() == 0
    assert differences(latest(tmp_path, "whole"), latest(tmp_path, "parts")) == []
    one, other = scalars(tmp_path, "whole"), scalars(tmp_path, "parts")
    for tag in ("loss", "gn", "usage_l1", "test_loss"):
        assert all(other[tag][step] == value for step, value in one[tag].items()), tag


@pytest.mark.parametrize("sets", ["tiny_vqvae,tiny_prior", "tiny_vqvae,tiny_upsampler,all_fp16"])
def test_a_stopped_prior_goes_on_bit_for_bit(tmp_path: Path, songs: Path, codec: str, sets: str) -> None:
    values: dict[str, Any] = PRIOR | {"restore_vqvae": codec, "lr_use_linear_decay": True, "lr_decay": 30}
    if "fp16" in sets:
        values["precision"] = "fp16"  # half parameters and moments, and a loss scale
    built(sets, "whole", tmp_path, songs, train_steps=13, **values).run()
    for steps in (5, 9, 13):
        built(sets, "parts", tmp_path, songs, train_steps=steps, **values).run()
    one, other = latest(tmp_path, "whole"), latest(tmp_path, "parts")
    assert one["position"]["epoch"] > 0 and one["step"] == 13
    assert differences(one, other) == []
    if "fp16" in sets:
        assert any(tensor.dtype == torch.float16 for tensor in one["model"].values())
        assert one["scaler"]["scale"] > 1


def test_a_damaged_last_checkpoint_costs_only_steps(tmp_path: Path, songs: Path) -> None:
    values = {"save_iters": 4, "train_steps": 10}
    built("tiny_vqvae", "whole", tmp_path, songs, **values).run()
    built("tiny_vqvae", "hurt", tmp_path, songs, **values).run()
    damaged = tmp_path / "hurt" / checkpoint.LATEST
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    trainer = built("tiny_vqvae", "hurt", tmp_path, songs, **values)
    assert trainer.state.step == 8
    trainer.run()
    assert differences(latest(tmp_path, "whole"), latest(tmp_path, "hurt")) == []


def test_a_finished_run_has_nothing_to_do(
    tmp_path: Path, songs: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = PRIOR | {"restore_vqvae": codec, "train_steps": 2}
    built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, **values).run()
    before = (tmp_path / "p" / checkpoint.LATEST).read_bytes()
    capsys.readouterr()
    assert built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, **values).run() == 0
    assert "nothing left to train: train_steps=2 is reached" in capsys.readouterr().out
    assert (tmp_path / "p" / checkpoint.LATEST).read_bytes() == before


# ------------------------------------------------------------------------------------------------------- beginnings


def test_restoring_takes_optimiser_and_step_unless_reset(tmp_path: Path, songs: Path, codec: str) -> None:
    kept = built("tiny_vqvae", "a", tmp_path, songs, restore_vqvae=codec).state
    assert kept.step == kept.schedule.count == 6 and len(kept.adam.state) > 0 and kept.position.batch == 0
    for p, q in zip(kept.parameters, checkpoint.load(codec)["model"].values(), strict=False):
        assert torch.equal(p.detach(), q)
    fresh = built("tiny_vqvae", "b", tmp_path, songs, restore_vqvae=codec, reset_opt=True, reset_step=True).state
    assert fresh.step == fresh.schedule.count == 0 and len(fresh.adam.state) == 0
    assert differences(dict(kept.task.model.state_dict()), dict(fresh.task.model.state_dict())) == []


def test_the_same_command_with_resets_still_goes_on(tmp_path: Path, songs: Path, codec: str) -> None:
    values = {"restore_vqvae": codec, "reset_opt": True, "reset_step": True}
    built("tiny_vqvae", "a", tmp_path, songs, train_steps=3, **values).run()
    again = built("tiny_vqvae", "a", tmp_path, songs, train_steps=5, **values).state
    assert again.step == 3 and len(again.adam.state) > 0
    reset = built("tiny_vqvae", "b", tmp_path, songs, restore_vqvae=codec, train_steps=8)
    reset.run()
    assert built("tiny_vqvae", "b", tmp_path, songs, **values).state.step == 0


def test_naming_other_weights_starts_from_them(
    tmp_path: Path, songs: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    built("tiny_vqvae", "a", tmp_path, songs, train_steps=2).run()
    state = built("tiny_vqvae", "a", tmp_path, songs, restore_vqvae=codec).state
    assert state.step == 6
    assert "names other weights" in capsys.readouterr().out


def test_mismatches_are_all_named_in_one_line(tmp_path: Path, songs: Path, codec: str) -> None:
    built("tiny_vqvae", "a", tmp_path, songs, train_steps=1).run()
    with pytest.raises(UserError) as caught:
        built("tiny_vqvae", "a", tmp_path, songs, width=12, l_bins=64)
    line = str(caught.value)
    assert "width is 4 in the checkpoint, 12 asked for" in line and "l_bins is 32" in line and "\n" not in line
    with pytest.raises(UserError, match="is the checkpoint of a codec, and this command trains a prior"):
        built("tiny_vqvae,tiny_prior", "a", tmp_path, songs, restore_vqvae=codec, prior=True)


def test_a_priors_chunk_is_its_context(
    tmp_path: Path, songs: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"restore_vqvae": codec, "prior": True, "train_steps": 1}
    trainer = built("tiny_vqvae,tiny_upsampler", "p", tmp_path, songs, sample_length=4096, **values)
    assert trainer.hps["sample_length"] == trainer.train_set.sample_length == 256 * 8
    assert "sample_length: 2048" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- steps


def test_accumulated_batches_are_one_large_batch(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "train_steps": 2, "mu": 0.9, "lr_warmup": 0}
    built("tiny_vqvae,tiny_prior", "large", tmp_path, songs, bs=4, **values).run()
    built("tiny_vqvae,tiny_prior", "parts", tmp_path, songs, bs=1, iters_before_update=4, **values).run()
    one, other = latest(tmp_path, "large"), latest(tmp_path, "parts")
    assert one["step"] == other["step"] == 2 and one["position"]["epoch"] == other["position"]["epoch"] == 0
    assert weight_difference(one, other) < 1e-4
    loss = [scalars(tmp_path, name)["loss"] for name in ("large", "parts")]
    assert loss[0][2] == pytest.approx(loss[1][2], rel=1e-5)


def poisoned(trainer: Trainer, bad: set[int], value: float) -> list[int]:
    """Make the task give ``value`` as its loss at the batches in ``bad``; returns a list that counts batches."""
    forward, seen = trainer.task.forward, [0]

    def replaced(*inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = forward(*inputs)
        seen[0] += 1
        return (loss * value if seen[0] in bad else loss), metrics

    trainer.task.forward = replaced  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_skipped(
    tmp_path: Path, songs: Path, codec: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "train_steps": 4, "save": False}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, **values)
    seen = poisoned(trainer, {2, 3}, value)
    trainer.run()
    assert seen[0] == 6 and trainer.state.step == 4 and trainer.state.skipped == 2
    place, batches = trainer.state.position, len(trainer.train_set) // 2
    assert trainer.state.schedule.count == 4 and place.epoch * batches + place.batch == 6
    assert all(bool(torch.isfinite(p).all()) for p in trainer.state.parameters)
    assert capsys.readouterr().out.count("skipping step 2: the loss is not finite") == 2
    assert not list((tmp_path / "p").glob("checkpoint*"))  # save=False


def test_hopeless_training_gives_up(tmp_path: Path, songs: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HOPELESS", 7)
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, prior=True, restore_vqvae=codec)
    poisoned(trainer, set(range(3, 100)), math.nan)
    with pytest.raises(UserError, match="7 steps in a row had to be skipped"):
        trainer.run()
    assert trainer.state.step == 2


def test_large_gradients_are_skipped_where_asked(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "train_steps": 3, "ignore_grad_norm": 100}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, **values)
    poisoned(trainer, {2}, 1e6)
    trainer.run()
    assert trainer.state.skipped == 1 and trainer.state.step == 3


def test_overflow_halves_the_loss_scale(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "train_steps": 3, "precision": "fp16"}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, **values)
    trainer.state.scaler.scale = 2.0**40  # gradients of 2**40 times their size overflow float16
    trainer.run()
    assert trainer.state.step == 3 and trainer.state.skipped > 5 and trainer.state.scaler.scale < 2.0**36


# ------------------------------------------------------------------------------------------------------------ ends


def test_ends_when_the_learning_rate_reaches_zero(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "lr_use_cosine_decay": True, "lr_decay": 5}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, lr_start_linear_decay=2, **values)
    trainer.run()
    assert trainer.state.step == latest(tmp_path, "p")["step"] == 7
    assert "learning rate has reached 0" in trainer.finished


def test_ends_with_its_epochs_and_budget(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, epochs=1, **values)
    trainer.run()
    chunks = len(trainer.train_set)
    assert trainer.state.step == chunks // 2 and "1 epoch is done" in trainer.finished
    short = built("tiny_vqvae,tiny_prior", "q", tmp_path, songs, budget_minutes=1e-9, **values)
    short.state.clock.resume(-1e9)  # not yet used up when it begins
    short._batches = stopping_clock(short)  # type: ignore[method-assign]
    short.run()
    assert short.state.step == 2 and "time is used up" in short.finished
    assert latest(tmp_path, "q")["step"] == 2


def stopping_clock(trainer: Trainer) -> Any:
    """The trainer's batches, with its time used up at the second."""
    batches = trainer._batches

    def ticking(*arguments: Any, **named: Any) -> Iterator[Tensor]:
        for number, audio in enumerate(batches(*arguments, **named)):
            if number == 1:
                trainer.state.clock.resume(1.0)
            yield audio

    return ticking


def test_old_checkpoints_are_pruned(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "save_iters": 2, "keep_checkpoints": 2}
    built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, train_steps=9, **values).run()
    assert [step for step, _ in checkpoint.step_files(tmp_path / "p")] == [9, 8]


# ---------------------------------------------------------------------------------------------- evaluation and logs


def test_evaluation_uses_averaged_weights_and_leaves_training_alone(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "test": True, "mu": 0.5}
    trainer = built("tiny_vqvae,tiny_prior", "p", tmp_path, songs, train_steps=8, **values)
    trainer.run()
    told = scalars(tmp_path, "p")["test_loss"][8]
    content = latest(tmp_path, "p")
    task = trainer.task.eval()
    losses = []
    for weights in (content["ema"], content["model"]):
        task.model.load_state_dict({**content["model"], **weights})
        audio = [torch.as_tensor(trainer.test_set[i]["audio"])[None] for i in range(len(trainer.test_set))]
        with torch.no_grad():
            losses.append(sum(float(task(*task.prepare(Batch(a)))[0]) for a in audio) / len(audio))
    assert told == pytest.approx(losses[0], rel=1e-5) and told != pytest.approx(losses[1], rel=1e-5)


def test_a_mere_test_changes_nothing(tmp_path: Path, songs: Path) -> None:
    built("tiny_vqvae", "c", tmp_path, songs, train_steps=3, test=True).run()
    before = (tmp_path / "c" / checkpoint.LATEST).read_bytes()
    trained = scalars(tmp_path, "c")["test_loss"][3]
    trainer = built("tiny_vqvae", "c", tmp_path, songs, train=False, test=True)
    assert trainer.run() == 0
    assert (tmp_path / "c" / checkpoint.LATEST).read_bytes() == before
    assert trainer._evaluate()["test_loss"] == pytest.approx(trained, rel=1e-6)


def test_what_tensorboard_shows_of_a_codec(tmp_path: Path, songs: Path) -> None:
    trainer = built("tiny_vqvae", "c", tmp_path, songs, train_steps=8, test=True, max_log=1, max_len=0.25)
    trainer.run()
    found = scalars(tmp_path, "c")
    assert set(found["loss"]) == {4, 8}
    for tag in ("recons_loss", "gn", "lr", "lg_loss_scale", "steps_per_second", "audio_seconds_per_second"):
        assert tag in found
    for level in (1, 2):
        assert 0 < found[f"usage_l{level}"][8] <= 32 and 0 < found[f"entropy_l{level}"][8] <= math.log(32)
    assert found["usage"][8] == pytest.approx((found["usage_l1"][8] + found["usage_l2"][8]) / 2)
    assert found["lr"][4] == pytest.approx(3e-4 * (0 + 1 / 3 + 2 / 3 + 1) / 4)
    seen = events(tmp_path, "c")
    clips = [f"0/{tag}" for tag in ("train_x_in", "train_x_ds_start_0", "train_x_ds_start_1")]
    assert sorted(seen.Tags()["audio"]) == sorted(seen.Tags()["images"]) == sorted(clips)
    for tag in clips:
        clip = seen.Audio(tag)[0]
        assert clip.sample_rate == 8000 and clip.length_frames == 2000
        assert seen.Images(tag)[0].width >= 2
    assert any("hps" in tag for tag in seen.Tags()["tensors"])


def test_what_tensorboard_shows_of_an_upsampler(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "bs_sample": 2, "sample_iters": 3}
    built("tiny_vqvae,tiny_upsampler", "u", tmp_path, songs, train_steps=4, **values).run()
    seen = events(tmp_path, "u")
    for tag in ("0/sample_x_T1", "1/sample_x_T1", "1/sample_x_ds_start_1", "0/train_x_in", "1/train_x_ds_start_0"):
        assert [event.step for event in seen.Audio(tag)] == [3, 4], tag
    assert "tokens_per_second" in seen.Tags()["scalars"] and "bpd" in seen.Tags()["scalars"]


def test_sampling_and_logging_do_not_change_training(tmp_path: Path, songs: Path, codec: str) -> None:
    values: dict[str, Any] = PRIOR | {"restore_vqvae": codec, "train_steps": 6}
    built("tiny_vqvae,tiny_prior", "quiet", tmp_path, songs, **values).run()
    built("tiny_vqvae,tiny_prior", "busy", tmp_path, songs, **values | {"sample_iters": 2, "test": True}).run()
    one, other = latest(tmp_path, "quiet"), latest(tmp_path, "busy")
    for content in (one, other):
        del content["hps"]
    assert differences(one, other) == []


def test_ranks_leave_labels_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device for DistributedDataParallel would be one for labels too, through which priors look on the CPU."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(loop, "DistributedDataParallel", lambda module, **settings: said.update(settings) or module)
    world = World(0, 2, 0, 2, torch.device("cuda", 0))
    hps = {"train": True, "bucket": 128}
    task = torch.nn.Linear(2, 2)
    assert Trainer._wrapped(SimpleNamespace(world=world, hps=hps, task=task)) is task  # type: ignore[arg-type]
    assert said["device_ids"] is None and said["gradient_as_bucket_view"]


@pytest.mark.parametrize(
    ("kind", "settings", "called"),
    [
        ("prior", {"level": 0, "levels": 2}, "upsampler of level 0"),
        ("prior", {"level": 1, "levels": 2}, "prior"),
        ("prior", {"level": 0, "levels": 2, "songbloom": True}, "prior"),
        ("vqvae", {"level": 0, "levels": 2}, "vqvae"),
    ],
)
def test_what_is_trained_is_called_by_its_name(kind: str, settings: dict[str, Any], called: str) -> None:
    task = SimpleNamespace(kind=kind, precision=SimpleNamespace(name="fp32"))
    state: Any = SimpleNamespace(parameters=[torch.zeros(3)], task=task, global_batch=1, step=0)
    told = loop.describe({"iters_before_update": 1, **settings}, state)
    assert told == f"{called}: 3 parameters, fp32 on cpu (1 rank), 1 item a step, from step 0"


def test_compiled_training_is_the_same_training(
    tmp_path: Path, songs: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiling(self, backend="eager"))
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "train_steps": 3}
    built("tiny_vqvae,tiny_prior", "plain", tmp_path, songs, **values).run()
    built("tiny_vqvae,tiny_prior", "compiled", tmp_path, songs, torch_compile=True, **values).run()
    one, other = latest(tmp_path, "plain"), latest(tmp_path, "compiled")
    assert list(one["model"]) == list(other["model"])
    assert weight_difference(one, other) < 1e-5
