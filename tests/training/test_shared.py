"""Processes of one machine share weights that cannot be pages of the file that they come from."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from make_models import make_prior, make_songbloom_prior, make_vqvae, save
from songbloom import distributed
from songbloom.published import fetch
from songbloom.training import shared
from tests.sampling import songbloom_tiny
from tests.training.test_stored import built, settings, written

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot share them")


@pytest.fixture(autouse=True)
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is one of two of its machine, with a cache folder of their own; the folder of what they share."""
    monkeypatch.setattr(distributed, "_world", dataclasses.replace(distributed.World(), local_size=2))
    monkeypatch.setattr(fetch, "_folder", [tmp_path / "cache"])
    return tmp_path / "cache" / shared.FOLDER


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def pages_of(module: torch.nn.Module, file: Path) -> int:
    """How many of a module's tensors lie in pages of a file."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            spans.append([int(end, 16) for end in line.split()[0].split("-")])
    places = [tensor.data_ptr() for tensor in module.state_dict().values()]
    return sum(any(first <= place < last for first, last in spans) for place in places)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stream", [False, True])
def test_a_published_file_is_converted_once(
    stream: bool, dtype: torch.dtype | None, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pth.tar"
    prior = written("prior", path, published=True, stream=stream)
    first = built("prior", dtype, restore_prior=str(path))
    (file,) = files(several)
    monkeypatch.setattr(shared, "_write", None)  # the second process must not
    second = built("prior", dtype, restore_prior=str(path))
    for loaded in (first, second):
        assert Path("/proc").is_dir() is False or pages_of(loaded, file) == len(loaded.state_dict())
        for name, tensor in prior.state_dict().items():
            own = loaded.state_dict()[name]
            assert own.dtype in (torch.float32, dtype) and torch.equal(own, tensor.to(own.dtype)), name
    assert [p.name for p in several.iterdir() if p.name.endswith(".partial")] == []
    with torch.no_grad():
        first.autoregressive.positions.zero_()  # what one process does to its weights stays its own
    assert torch.equal(
        built("prior", dtype, restore_prior=str(path)).autoregressive.positions, second.autoregressive.positions
    )


def test_a_file_of_ours_is_shared_as_it_is_and_converted_where_it_must_be(several: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=False, stream=False)
    built("prior", None, restore_prior=str(path))
    assert files(several) == []
    built("prior", torch.bfloat16, restore_prior=str(path))
    assert len(files(several)) == 1


@pytest.mark.parametrize(
    ("dtype", "published"), [(torch.bfloat16, False), (torch.float16, True), (None, True), (None, False)]
)
def test_a_prior_of_the_second_family_is_shared_as_well(
    dtype: torch.dtype | None, published: bool, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, hps, path = songbloom_tiny.tiny_prior(), songbloom_tiny.settings("tiny_songbloom"), tmp_path / "song.pt"
    save(prior, path, "prior", hps, published=published)
    hps["restore_prior"] = str(path)
    first = make_songbloom_prior(hps, dtype=dtype)
    (file,) = files(several) if dtype or published else [path]  # of ours they are pages of the checkpoint itself
    monkeypatch.setattr(shared, "_write", None)
    second = make_songbloom_prior(hps, dtype=dtype)
    matrices = set(prior.matrices())
    assert {"classifier.hidden.weight", "language_model.layers.0.mlp.gate_up.weight"} <= matrices
    prior.store_matrices(dtype or torch.float32)
    for loaded in (first, second):
        assert pages_of(loaded, file) == len(loaded.state_dict())
        for name, tensor in prior.state_dict().items():
            own = loaded.state_dict()[name]
            assert own.dtype == (dtype if dtype and name in matrices else torch.float32), name
            assert torch.equal(own, tensor), name
    assert dtype is None or not any("embedding" in name or ".time." in name for name in matrices)


def test_other_weights_types_and_choices_have_files_of_their_own(several: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x.pth.tar", "y.pth.tar")]
    one = written("prior", paths[0], published=True, stream=False)
    content = torch.load(paths[0], weights_only=True)
    content["model"] = {name: tensor + 1 for name, tensor in content["model"].items()}
    content["model"]["prior.x_out.weight"] = content["model"]["prior.x_emb.weight"]
    torch.save(content, paths[1])
    loaded = [built("prior", dtype, restore_prior=str(path)) for path in paths for dtype in (None, torch.float16)]
    assert len(files(several)) == 4
    assert torch.equal(loaded[2].autoregressive.positions, one.autoregressive.positions + 1)
    shutil.copyfile(paths[0], tmp_path / "copy.pth.tar")
    built("prior", None, restore_prior=str(tmp_path / "copy.pth.tar"))
    assert len(files(several)) == 4  # of an archive the content counts, not the place


def test_what_cannot_be_read_or_was_made_by_another_version_is_written_anew(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth.tar"
    prior = written("prior", path, published=True, stream=False)
    built("prior", None, restore_prior=str(path))
    (file,) = files(several)
    for remains in (b"", b"no table", file.read_bytes()[:-1000]):
        file.write_bytes(remains)
        loaded = built("prior", None, restore_prior=str(path))
        assert torch.equal(loaded.autoregressive.positions, prior.autoregressive.positions)
        assert files(several) == [file] and pages_of(loaded, file) == len(loaded.state_dict())
    assert "copy of its own" not in capsys.readouterr().out
    monkeypatch.setattr(shared, "__version__", "another")  # which may join or turn matrices otherwise
    built("prior", None, restore_prior=str(path))
    assert len(files(several)) == 2


def test_averaged_and_raw_weights_are_not_taken_for_each_other(several: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=False, stream=False)
    content = torch.load(path, weights_only=True)
    content["ema"] = {name: tensor * 2 for name, tensor in content["model"].items()}
    torch.save(content, path)
    averaged = built("prior", torch.float16, restore_prior=str(path))
    assert torch.equal(averaged.autoregressive.positions, content["ema"]["autoregressive.positions"])
    from songbloom.training.weights import restore

    hps = settings("prior")
    raw = make_prior(hps, make_vqvae(hps), "meta")
    restore(raw, path, "prior", weights="raw", dtype=torch.float16)
    assert torch.equal(raw.autoregressive.positions, content["model"]["autoregressive.positions"])
    assert len(files(several)) == 2


@pytest.mark.parametrize("how", ["full", "no room", "too large", "read-only"])
def test_without_room_every_process_has_its_own(
    how: str, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth.tar"
    prior = written("prior", path, published=True, stream=False)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "full":
        monkeypatch.setattr(os, "posix_fallocate", full)
    elif how == "no room":
        monkeypatch.setattr(shared, "_SPARE", 1e18)
    elif how == "too large":
        monkeypatch.setattr(shared, "LARGEST", 1000)
    else:
        several.parent.mkdir(parents=True)
        several.write_text("a file where the folder should be")
    loaded = built("prior", torch.float16, restore_prior=str(path))
    assert torch.equal(loaded.autoregressive.positions, prior.autoregressive.positions)
    assert capsys.readouterr().out.count("note: x.pth.tar: every process has a copy of its own") == 1
    assert not several.is_dir() or list(several.glob("*.safetensors")) + list(several.glob("*.partial")) == []


def test_what_was_used_longest_ago_goes_first(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=True, stream=False)
    built("prior", None, restore_prior=str(path))
    size = files(several)[0].stat().st_size
    for number, name in enumerate(("old", "new")):
        (several / f"{name}.safetensors").write_bytes(bytes(size))
        os.utime(several / f"{name}.safetensors", (number, number))
    monkeypatch.setattr(shared, "LARGEST", 3.2 * size)
    built("prior", torch.float16, restore_prior=str(path))
    assert not (several / "old.safetensors").exists() and (several / "new.safetensors").exists()
    assert len(files(several)) == 3


def test_what_a_disk_has_lost_is_noticed_after_the_machine_has_started_again(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, boot = tmp_path / "x.pth.tar", tmp_path / "boot"
    prior = written("prior", path, published=True, stream=False)
    compared, compare = [], shared._sum_is_right
    monkeypatch.setattr(shared, "_sum_is_right", lambda file: compared.append(compare(file)) or compared[-1])
    monkeypatch.setattr(shared, "_BOOT", boot)

    def is_right() -> bool:
        loaded = built("prior", None, restore_prior=str(path))
        assert pages_of(loaded, files(several)[0]) == len(loaded.state_dict())
        return all(torch.equal(tensor, prior.state_dict()[name]) for name, tensor in loaded.state_dict().items())

    boot.write_text("the first\n")
    assert is_right() and is_right() and compared == []
    (file,) = files(several)
    whole = file.read_bytes()
    for first in (len(whole) // 2, len(whole) - 512):
        boot.write_text(f"after {first}\n")
        assert is_right() and is_right() and compared == [True]  # once, not by everyone
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        with file.open("r+b") as changed:  # size and times stay, as where blocks never reached the disk
            changed.seek(first)
            changed.write(bytes(255 - byte for byte in whole[first : first + 512]))
        os.utime(file, ns=times)
        boot.write_text(f"after {first} was lost\n")
        assert is_right() and is_right() and compared == [True, False] and file.read_bytes() == whole
        compared.clear()


def test_a_file_that_another_process_removes_meanwhile_is_no_reason_for_copies(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others make room at the same time, for files of theirs, under locks of theirs."""
    path = tmp_path / "x.pth.tar"
    prior = written("prior", path, published=True, stream=False)
    several.mkdir(parents=True)
    (several / "listed.safetensors").symlink_to("nowhere")  # and no more there when it is looked at
    old = several / "old.safetensors"
    old.write_bytes(bytes(2000))
    usage, read = shutil.disk_usage, shared.read_safetensors

    def full_until_removed(folder: Path) -> object:
        if not old.exists():
            return usage(folder)
        old.unlink()
        return usage(folder)._replace(free=0)

    def removed_when_mapped(file: Path) -> dict[str, torch.Tensor]:
        tensors = read(file)
        file.unlink()
        return tensors

    with monkeypatch.context() as patch:
        patch.setattr(shared, "_SPARE", 0)
        patch.setattr(shutil, "disk_usage", full_until_removed)
        first = built("prior", torch.float16, restore_prior=str(path))
    assert not old.exists() and len(files(several)) == 2
    monkeypatch.setattr(shared, "read_safetensors", removed_when_mapped)
    monkeypatch.setattr(shared, "_write", None)  # nor is it converted again
    second = built("prior", torch.float16, restore_prior=str(path))
    assert len(files(several)) == 1
    assert "copy of its own" not in capsys.readouterr().out
    for loaded in (first, second):
        assert torch.equal(loaded.autoregressive.positions, prior.autoregressive.positions)
