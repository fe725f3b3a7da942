"""Checkpoints whose tensors stay on disk: new and old files, types, damage, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hparams
from make_models import make_prior, make_vqvae, restore, save
from songbloom.errors import UserError
from songbloom.prior.prior import Prior
from songbloom.training import checkpoint
from songbloom.training.stored import Stored, fill
from songbloom.transformer.layers import Linear

ROOT = Path(__file__).parents[2]
PRIORS = {
    "prior": "tiny_vqvae,tiny_prior",
    "upsampler": "tiny_vqvae,tiny_upsampler",
    "lyrics": "tiny_vqvae,tiny_lyrics_prior",
}
LABELS = {"labels": True, "labels_v3": True, "y_bins": (3, 4), "t_bins": 8, "n_vocab": 79}


def settings(name: str, **overrides: Any) -> Any:
    more = LABELS if name == "lyrics" else {}
    return hparams.setup_hparams(PRIORS[name], {"restore_vqvae": "", **more, **overrides})


def built(name: str, dtype: torch.dtype | None = None, **overrides: Any) -> Prior:
    hps = settings(name, **overrides)
    return make_prior(hps, make_vqvae(hps), dtype=dtype)


def drawn(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return module


def written(name: str, path: Path, *, published: bool, stream: bool) -> Prior:
    """A prior with drawn weights, saved in one of the four ways."""
    prior = built(name)
    drawn(prior)
    save(prior, path, "prior", settings(name), published=published)
    if stream:
        torch.save(checkpoint.load(path), path, _use_new_zipfile_serialization=False)
    return prior


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", PRIORS)
def test_weights_arrive(name: str, published: bool, stream: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    prior = written(name, path, published=published, stream=stream)
    for dtype in (None, torch.float16, torch.bfloat16):
        loaded = built(name, dtype, restore_prior=str(path))
        state = loaded.state_dict()
        assert state.keys() == prior.state_dict().keys()
        matrices = {f"{where}.weight" for where, module in loaded.named_modules() if isinstance(module, Linear)}
        assert matrices
        for key, tensor in prior.state_dict().items():
            wanted = dtype if dtype and key in matrices else torch.float32
            assert state[key].dtype == wanted and state[key].is_contiguous(), key
            assert torch.equal(state[key], tensor.to(wanted)), key
        assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_loaded_writes_the_same_codes(published: bool, precision: str, tmp_path: Path) -> None:
    """Whichever file the weights come from, and whether they are pages of it or copies."""
    path = tmp_path / "x.pth.tar"
    prior = written("prior", path, published=published, stream=False)
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    loaded = built("prior", dtype, restore_prior=str(path))
    codes = [
        each.sample(2, sample_tokens=24, generators=[torch.Generator().manual_seed(i) for i in (1, 2)], fast=fast)
        for each in (prior, loaded)
        for fast in (True, False)
    ]
    if precision == "fp32":
        assert all(torch.equal(codes[0], other) for other in codes[1:])
    else:  # in bfloat16 the fast path may round otherwise than the plain one does
        assert all(int(each.min()) >= 0 and int(each.max()) < prior.l_bins for each in codes)


def test_pages_of_the_file_are_the_weights_where_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=False, stream=False)
    stored = checkpoint.open_file(path)
    assert stored.mapped
    hps = settings("prior")
    prior = make_prior(hps, make_vqvae(hps), "meta")
    fill(prior, stored.content["model"], stored)
    for name, tensor in prior.state_dict().items():
        assert tensor.data_ptr() == stored.content["model"][name].data_ptr()
    half = make_prior(hps, make_vqvae(hps), "meta")
    fill(half, stored.content["model"], stored, dtype=torch.float16)
    shared = [
        name
        for name, tensor in half.state_dict().items()
        if tensor.data_ptr() == stored.content["model"][name].data_ptr()
    ]
    assert 0 < len(shared) < len(half.state_dict())


def test_pages_that_are_let_go_come_back(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.arange(100_000.0)}}, tmp_path / "x.tar")
    stored = checkpoint.open_file(tmp_path / "x.tar")
    for _ in range(2):
        assert torch.equal(stored.content["model"]["x"], torch.arange(100_000.0))
        stored.let_go(stored.content["model"]["x"])
    own = Stored({"x": torch.ones(100_000)}, mapped=False)
    own.let_go(own.content["x"])  # memory of a process's own stays what it is
    assert own.content["x"].sum() == 100_000


def test_a_stream_holds_any_view_type_and_tie(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(5, 12)
    state = {
        "base": base,
        "tied": base,
        "row": base[2],
        "turned": base.t(),
        "step": base[1:4, ::3],
        "half": base.half(),
        "brain": base.bfloat16(),
        "whole": torch.arange(7),
        "one": torch.tensor(3.0),
        "none": torch.zeros(0, 3),
    }
    torch.save({"model": state, "step": 7}, tmp_path / "x", _use_new_zipfile_serialization=False)
    stored = checkpoint.open_file(tmp_path / "x")
    assert not stored.mapped
    assert stored.content["step"] == 7
    for name, tensor in stored.content["model"].items():
        assert tensor.is_meta
        assert torch.equal(stored.numbers(tensor), state[name]), name
    turned = stored.content["model"]["base"].t()[3:]  # as translators make them
    assert torch.equal(stored.numbers(turned), base.t()[3:])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_that_was_cut(share: float, stream: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=True, stream=stream)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"x\.pth\.tar: .*(damaged or cut short|cannot be read|safely)") as caught:
        built("prior", restore_prior=str(path))
    assert "\n" not in str(caught.value)


def test_a_file_with_a_wrong_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=True, stream=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth\.tar: damaged or cut short \(wrong checksum; it has [\d,]+ bytes\)"):
        built("prior", restore_prior=str(path))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["hps", "model"])
def test_code_in_a_file_does_not_run(place: str, stream: bool, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "x.pth.tar"
    content = {"model": {"prior.x_emb.weight": torch.zeros(3, 4)}, "hps": {}}
    content[place] = {"x": Bomb()}
    torch.save(content, path, _use_new_zipfile_serialization=not stream)
    with pytest.raises(UserError, match=r"x\.pth\.tar: not a checkpoint that can be read safely") as caught:
        restore(built("prior"), path, "prior")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_output_layer_of_its_own_is_noticed_in_a_stream_too(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    written("prior", path, published=True, stream=False)
    content = checkpoint.load(path)
    content["model"]["prior.x_out.weight"] = content["model"]["prior.x_out.weight"] + 1
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="this checkpoint needs --merged_decoder=True"):
        built("prior", restore_prior=str(path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_is_the_model_and_one_tensor(dtype: str, stream: bool, tmp_path: Path) -> None:
    """As the system counts it, mapped pages included; 100 MB of weights in float32, 4 MB the largest tensor."""
    path = tmp_path / "x.pth.tar"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", f"--file={path}", "--width=512", "--depth=32", f"--dtype={dtype}"]
        + (["--old"] if stream else []),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = dict(line.split(": ") for line in done.stdout.splitlines() if ": " in line)
    grown = float(figures["peak above base, MB"])
    assert grown <= float(figures["weights, MB"]) + float(figures["largest layer, MB"]) + 25  # the allocator's own


def test_only_what_is_in_the_file_is_let_go(tmp_path: Path) -> None:
    """Matrices that were joined of several are memory: given back, their numbers would be zeros."""
    path = tmp_path / "x.pth.tar"
    parts = [torch.full((512, 512), float(number)) for number in (1, 2)]
    checkpoint.save(path, {"model": {str(number): part for number, part in enumerate(parts)}})
    stored = checkpoint.open_file(path)
    own = [stored.content["model"][name] for name in ("0", "1")]
    joined = torch.cat(own)
    for tensor in (joined, own[0], own[1].T):
        stored.let_go(tensor)
    assert [stored.holds(tensor) for tensor in (joined, own[0], own[1].T, own[1][3:])] == [False, True, True, True]
    assert torch.equal(joined, torch.cat(parts)) and torch.equal(own[0], parts[0]) and torch.equal(own[1], parts[1])
