"""What a run says of the memory that it needs, and when it refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sample as sample_program
from make_models import MODELS, make_model
from songbloom import distributed
from songbloom.errors import UserError
from songbloom.prior.prior import Prior
from songbloom.published import fetch
from songbloom.sampling import needs, request
from songbloom.sampling.sampler import LevelSettings
from songbloom.training import shared
from tests.training.test_stored import written

CPU = torch.device("cpu")
PLAIN = LevelSettings(precision="bf16", max_batch_size=4)


@pytest.fixture(scope="module")
def large() -> Prior:
    """The sizes of the largest published prior."""
    return make_model("5b_lyrics", "meta", levels=[2])[1][0]


def room(count: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the cache folder has so many bytes free."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(folder)._replace(free=int(count)))


def test_what_a_level_needs(large: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    room(100e9, monkeypatch)
    monkeypatch.setattr(needs.stepper, "available", lambda dtype, device: True)
    bytes_of = {name: needs.need_of(large, replace(PLAIN, precision=name), 3, CPU) for name in ("fp32", "bf16")}
    assert bytes_of["fp32"].weights == 4 * sum(parameter.numel() for parameter in large.parameters())
    assert bytes_of["bf16"].weights == 11_451_832_000  # as published: matrices take half, all else is float32
    assert bytes_of["bf16"].items == 3
    cache = large.cost("bf16")["cache_bytes"]
    assert cache < bytes_of["bf16"].item < 3 * cache
    assert needs.need_of(large, replace(PLAIN, quantize="int8"), 3, CPU).prepared > 5e9
    for need in bytes_of.values():  # the processes of a machine share what is theirs alone on a GPU
        assert need.of_one(4) == need.total - 0.75 * need.weights
    assert needs.need_of(large, PLAIN, 3, torch.device("cuda")).shared == 0


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot share converted weights")
def test_what_is_copied_by_every_process_is_not_counted_as_shared(
    large: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are shared if they are pages of a checkpoint, or if there is room for a converted file."""
    monkeypatch.setattr(fetch, "_folder", [tmp_path / "cache"])
    ours, published = tmp_path / "ours.pth.tar", tmp_path / "published.pth.tar"
    written("prior", ours, published=False, stream=False)
    written("prior", published, published=True, stream=False)

    def shared_of(source: Path | None, precision: str) -> bool:
        need = needs.need_of(large, replace(PLAIN, precision=precision), 1, CPU, source=source)
        assert need.shared in (0.0, need.weights)
        assert need.of_one(4) == need.total - 0.75 * need.shared
        return need.shared > 0

    cases = [(ours, "fp32"), (ours, "bf16"), (published, "fp32"), (None, "bf16"), (tmp_path / "to come", "fp32")]
    for count, expected in ((100e9, [True] * 5), (5e9, [True, False, False, False, False])):
        with monkeypatch.context() as patch:
            room(count, patch)
            assert [shared_of(*case) for case in cases] == expected
    with monkeypatch.context() as patch:
        room(100e9, patch)
        patch.setattr(shared, "LARGEST", 12e9)  # the half of it fits, the whole does not
        assert [shared_of(*case) for case in cases] == [True, True, False, True, False]
        patch.delattr(os, "posix_fallocate")
        assert [shared_of(*case) for case in cases] == [True, False, False, False, False]
    room(5e9, monkeypatch)
    kept = tmp_path / "cache" / shared.FOLDER / "an older one.safetensors"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(30_000_000_000)  # takes no room itself; its removal would make some
    assert shared_of(None, "bf16")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot share converted weights")
def test_ranks_that_would_each_copy_are_refused_where_ranks_that_share_are_not(
    large: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs.stepper, "available", lambda dtype, device: True)
    monkeypatch.setattr(distributed, "_world", replace(distributed.World(), size=4, local_size=4))
    monkeypatch.setattr(needs, "gather_objects", lambda each: [each])
    with monkeypatch.context() as patch:
        room(100e9, patch)
        need = needs.need_of(large, PLAIN, 1, CPU)
    monkeypatch.setattr(needs, "free_bytes", lambda device: (need.of_one(4) + need.total) / 2)
    with monkeypatch.context() as patch:
        room(100e9, patch)
        needs.check([large], {2: PLAIN}, 4, CPU)
    room(1e9, monkeypatch)
    with pytest.raises(UserError, match=r"not enough memory in each process: .*fewer ranks"):
        needs.check([large], {2: PLAIN}, 4, CPU)


def test_it_is_said_and_what_cannot_fit_is_refused(
    large: Prior, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs.stepper, "available", lambda dtype, device: True)
    settings = {2: PLAIN}
    for free in (100e9, None):
        monkeypatch.setattr(needs, "free_bytes", lambda device, free=free: free)
        needs.check([large], settings, 3, CPU)
        said = capsys.readouterr().out
        assert "memory: level 2 needs " in said and "11.45 GB of weights (bf16)" in said and "of 3 items" in said
        assert ("there is 100.00 GB free on cpu" in said) == (free is not None)
    monkeypatch.setattr(needs, "free_bytes", lambda device: 8e9)
    with pytest.raises(
        UserError, match=r"not enough memory: level 2 needs .*, and 8\.00 GB is free on cpu: give"
    ) as told:
        needs.check([large], settings, 3, CPU)
    assert "\n" not in str(told.value)
    assert "--max_batch_size=1" in str(told.value)


def prepared(*words: str) -> None:
    sample_program.prepare(request.command_line([*words, "--name=never"], MODELS))


def test_published_weights_are_not_fetched_where_they_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_folder", [])
    monkeypatch.setattr(fetch, "_download", None)
    for kind in ("artist", "genre"):
        (tmp_path / f"v2_{kind}_ids.txt").write_text("unknown;0\n")
    monkeypatch.setattr(needs, "free_bytes", lambda device: 1e9)
    with pytest.raises(UserError, match=r"not enough memory: level 2 needs"):
        prepared("--model=5b", f"--cache_dir={tmp_path / 'cache'}", f"--label_tables={tmp_path}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("model", ["5b", "5b_lyrics", "1b_lyrics"])
def test_published_weights_are_not_fetched_without_label_tables(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_folder", [])
    monkeypatch.setattr(fetch, "_download", None)
    with pytest.raises(UserError, match=r"nothing tells which numbers its artists and genres have: put v2_artist_ids"):
        prepared(f"--model={model}", f"--cache_dir={tmp_path / 'cache'}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("model", ["small", "small_labelled", "demo_ja", "tiny"])
def test_without_weights_it_says_how_to_train(model: str, tmp_path: Path) -> None:
    codec = MODELS[model][0]
    with contextlib.chdir(tmp_path), pytest.raises(UserError) as told:
        prepared(f"--model={model}")
    assert f"no weights of {codec} there: train it (python train.py --hps={codec} --name={codec} " in str(told.value)
    assert "\n" not in str(told.value)
