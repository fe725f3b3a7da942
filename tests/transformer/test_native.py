"""The C++ step equals the plain transformer, for every attention function, and does not look at its neighbours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from songbloom.errors import UserError
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.cache import DecodingCache
from songbloom.transformer.native import loader, stepper
from songbloom.transformer.native.stepper import NativeTransformer
from songbloom.transformer.quantized import dequantized, quantized
from tests.transformer.strategies import configs, examples, inputs, seeds, transformer

needs_compiler = pytest.mark.skipif(loader.library() is None, reason="the native step cannot be built here")
SMALL: dict[str, Any] = {"width": 16, "n_ctx": 24, "heads": 2, "depth": 3, "attn_order": 2, "blocks": 6, "m_attn": 0.5}


def fed(model: Any, cache: DecodingCache, x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([model.extend(part, cache) for part in x.split(sizes, dim=1)], dim=1)


def cuts(data: st.DataObject, n: int) -> list[int]:
    """Chunk sizes that add up to n, most of them 1."""
    sizes: list[int] = []
    while n:
        sizes.append(min(n, data.draw(st.sampled_from([1, 1, 1, 2, 5, 11]))))
        n -= sizes[-1]
    return sizes


@needs_compiler
@examples(80)
@given(configs(), seeds, st.integers(1, 7), st.data())
def test_steps_equal_the_whole(config: TransformerConfig, seed: int, batch: int, data: st.DataObject) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed, batch)
    with torch.no_grad():
        want = model(x, encoder_kv)
    native = NativeTransformer(model)
    cache = native.new_cache(batch, encoder_kv=encoder_kv)
    torch.testing.assert_close(fed(native, cache, x, cuts(data, config.n_ctx)), want, rtol=1e-4, atol=5e-5)
    assert cache.length == config.n_ctx


@needs_compiler
@examples(30)
@given(configs(width=36), seeds, st.data())
def test_an_item_is_bit_for_bit_the_same_in_any_batch(
    config: TransformerConfig, seed: int, data: st.DataObject
) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed, 16)
    native, sizes = NativeTransformer(model), cuts(data, config.n_ctx)
    together = fed(native, native.new_cache(16, encoder_kv=encoder_kv), x, sizes)
    for batch, item in ((1, 0), (1, 15), (2, 7), (3, 2), (5, 4), (7, 9)):
        some = slice(item, item + batch)
        got = fed(native, native.new_cache(batch, encoder_kv=encoder_kv[some]), x[some], sizes)
        assert torch.equal(got, together[some])


@needs_compiler
@pytest.mark.parametrize("width", [256, 400])
@pytest.mark.parametrize("threads", [1, 2])
def test_long_contexts_and_wide_layers(width: int, threads: int) -> None:
    """More keys than one piece of attention holds, more rows than a tile, and threads that share them."""
    config = TransformerConfig(width=width, n_ctx=600, heads=2, depth=2, attn_order=0, m_attn=0.75, m_mlp=2.0)
    model, (x, _) = transformer(config, 0), inputs(config, 0, 5)
    with torch.no_grad():
        want = model(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = NativeTransformer(model)
        sizes = [520, *[1] * 80]
        got = fed(native, native.new_cache(5), x, sizes)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(fed(native, native.new_cache(1), x[3:4], sizes), got[3:4])
    finally:
        torch.set_num_threads(before)


@needs_compiler
@examples(25)
@given(configs(), seeds, st.integers(1, 6))
def test_bfloat16_is_close(config: TransformerConfig, seed: int, batch: int) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed, batch)
    with torch.no_grad():
        want = model(x, encoder_kv)
    native = NativeTransformer(model, torch.bfloat16)
    got = fed(native, native.new_cache(batch, encoder_kv=encoder_kv), x, [1] * config.n_ctx)
    assert (got - want).abs().max() < 8 * torch.finfo(torch.bfloat16).eps * want.abs().max() * config.depth**0.5


@needs_compiler
@examples(25)
@given(configs(), seeds, st.integers(1, 6), st.data())
def test_int8_is_the_model_of_the_rounded_weights(
    config: TransformerConfig, seed: int, batch: int, data: st.DataObject
) -> None:
    model, (x, encoder_kv) = transformer(config, seed), inputs(config, seed, batch)
    native = NativeTransformer(model, quantize="int8")
    rounded = transformer(config, seed)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.ndim == 2 and ".key_value." not in name:  # an encoder's are computed once, from all digits
                parameter.copy_(dequantized(*quantized(parameter)))
        want = rounded(x, encoder_kv)
    got = fed(native, native.new_cache(batch, encoder_kv=encoder_kv), x, cuts(data, config.n_ctx))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_float32_weights_are_the_models_own() -> None:
    model = transformer(TransformerConfig(**SMALL), 0)
    own = {p.data_ptr() for p in model.parameters()}
    for weights in NativeTransformer(model).weights:
        assert {linear.weight.data_ptr() for linear in weights.maps.values()} <= own


@needs_compiler
def test_structures_are_laid_out_alike() -> None:
    import ctypes

    sizes = [ctypes.sizeof(each) for each in (stepper._Linear, stepper._Layer, stepper._Step)]
    assert loader.library().songbloom_step_sizes() == sizes[0] + 1000 * sizes[1] + 1000000 * sizes[2]


@needs_compiler
def test_mistakes_are_named() -> None:
    model = Transformer(TransformerConfig(**SMALL))
    native = NativeTransformer(model)
    with pytest.raises(UserError, match="dtype"):
        native.new_cache(1, dtype=torch.bfloat16)
    with pytest.raises(UserError, match="no native decoding step for"):
        NativeTransformer(model, torch.float16)
    cache = native.new_cache(2)
    with pytest.raises(UserError, match="made for 2 sequences"):
        native.extend(torch.zeros(1, 3, 16), cache)
    native.extend(torch.zeros(2, 24, 16), cache)
    with pytest.raises(UserError, match=r"24 \+ 1 positions"):
        native.extend(torch.zeros(2, 1, 16), cache)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("machine", ["-march=x86-64", "-mavx2 -mfma"])
def test_other_machines_code_computes_the_same(machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "-march=native" not in loader.machine_flags() or "avx2" not in loader.cpu_features():
        pytest.skip("needs a processor that runs both")
    config = TransformerConfig(**(SMALL | {"width": 100}))
    model, (x, _) = transformer(config, 0), inputs(config, 0, 3)
    with torch.no_grad():
        want = model(x)
    flags = (*loader.FLAGS, *loader.thread_flags(), *machine.split())
    library = loader.load(flags, tmp_path)
    for quantize, dtype, bound in (("", torch.float32, 5e-5), ("", torch.bfloat16, 0.1), ("int8", torch.float32, 0.1)):
        reference = NativeTransformer(model, dtype, quantize)
        monkeypatch.setattr(loader, "library", lambda: library)
        native = NativeTransformer(model, dtype, quantize)
        monkeypatch.undo()
        got = fed(native, native.new_cache(3), x, [1] * 24)
        torch.testing.assert_close(got, want, rtol=0, atol=bound)
        torch.testing.assert_close(got, fed(reference, reference.new_cache(3), x, [1] * 24), rtol=0, atol=2e-5)
        assert torch.equal(fed(native, native.new_cache(1), x[2:], [1] * 24), got[2:])


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    code = (
        "import torch; from songbloom.transformer.native import loader, stepper\n"
        "print(loader.library(), loader.library(), stepper.available(torch.float32, torch.device('cpu')))"
    )
    environment = {"PATH": "", "SONGBLOOM_CACHE": str(tmp_path), "CXX": "no-such-compiler", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.split() == ["None", "None", "False"]
    assert done.stderr == "note: no native decoding step, sampling is slower: no-such-compiler is not installed\n"
    other = "from songbloom import distributed; distributed.world = lambda: distributed.World(rank=1, size=2)\n"
    silent = subprocess.run(
        [sys.executable, "-c", other + code], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    assert silent.stdout == done.stdout and silent.stderr == ""  # rank 1 of 2
    off = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"SONGBLOOM_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert off.stdout.split() == ["None", "None", "False"] and not off.stderr


@needs_compiler
def test_what_cannot_be_compiled_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(loader.BuildError, match="error") as caught:
        loader.build(("-no-such-option-at-all",), tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(loader.BuildError, match="file"):
        loader.build(loader.FLAGS, tmp_path / "file")
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "file"] == [".lock"]


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="nothing tells there who is at work")
def test_what_killed_builds_leave_is_cleared_and_what_others_build_is_not(tmp_path: Path) -> None:
    """Builds with a compiler that takes for ever: those of one process are killed, that of another goes on."""
    slow, folder = tmp_path / "slow", tmp_path / "native"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    flags = ("-no-such-option-at-all", "-O1", "-O2")  # of what is built later, and of other libraries
    program = (
        "import sys, threading; from pathlib import Path; from songbloom.transformer.native import loader\n"
        "for flag in sys.argv[2:]:\n"
        "    threading.Thread(target=loader.build, args=((flag,), Path(sys.argv[1]))).start()\n"
    )
    environment = {**os.environ, "CXX": str(slow)}

    def start(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(folder), *words]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def begun() -> list[str]:
        return sorted(path.name.partition(".building.")[0] for path in folder.glob("*.building.*"))

    names = [loader.library_name((flag,)) for flag in flags]
    ended, living = builds = start(*flags[:2]), start(*flags[2:])
    try:
        while begun() != sorted(names):
            assert ended.poll() is None and living.poll() is None
            time.sleep(0.05)
        os.killpg(ended.pid, signal.SIGKILL)
        ended.wait()
        assert begun() == sorted(names)
        with pytest.raises(loader.BuildError, match="error"):
            loader.build(flags[:1], folder)
        assert begun() == names[2:] and living.poll() is None
    finally:
        for build in builds:
            if build.poll() is None:
                os.killpg(build.pid, signal.SIGKILL)
                build.wait()


def test_a_cache_folder_that_cannot_be_looked_into_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(loader.BuildError, match="name too long"):
        loader.build(loader.FLAGS, tmp_path / ("x" * 300))


def test_without_a_home_folder_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SONGBLOOM_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(loader.BuildError, match="set SONGBLOOM_CACHE"):
        loader.load()


def test_sources_are_read_alike_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    read, said = Path.read_text, []

    def noticed(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        said.append(encoding)
        return read(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", noticed)
    loader.library_name(loader.FLAGS, "song")
    assert len(said) > 4 and set(said) == {"utf-8"}  # what the system would take otherwise may know no Σ


@pytest.mark.slow
def test_one_process_builds_the_same_in_two_folders(tmp_path: Path) -> None:
    flags = ("-O0", "-w")
    first, second = (loader.build(flags, tmp_path / name) for name in "ab")
    assert first.name == second.name and first.is_file() and second.is_file()
    assert [path.name for path in (tmp_path / "b").iterdir() if path.is_dir()] == []
