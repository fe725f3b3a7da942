"""How much memory loading a published prior takes: the most that a process has at a time, against what it must have.

    python -m benchmarks.loading --width=1024 --depth=80 --dtype=float16

Random weights are written under the published names and loaded by a process of its own. Resident memory is what Linux
counts for that process, mapped pages of the file included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

import hparams
from make_models import make_prior, make_vqvae
from songbloom.published.jukebox.prior import to_published

MEGABYTE = 1e6


def settings(width: int, depth: int, path: str = "") -> Any:
    """Hyperparameters of an unlabelled top prior."""
    overrides = {"prior_width": width, "prior_depth": depth, "heads": 2, "n_ctx": 512, "restore_prior": path}
    return hparams.setup_hparams("tiny_vqvae,tiny_prior", {**overrides, "restore_vqvae": "", "blocks": 16})


def write(path: Path, width: int, depth: int, stored: torch.dtype, old: bool) -> None:
    """A published file with random matrices of dtype ``stored``, all else in float32."""
    hps = settings(width, depth)
    prior = make_prior(hps, make_vqvae(hps, "meta"), "meta")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator).to(stored if name.endswith(".w") else torch.float32)
        for name, tensor in to_published(prior.state_dict()).items()
    }
    state["prior.x_out.weight"] = state["prior.x_emb.weight"]
    torch.save({"model": state, "step": 1}, path, _use_new_zipfile_serialization=not old)


def resident() -> float:
    """Megabytes that this process has in memory now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / MEGABYTE


def load(path: str, width: int, depth: int, dtype: torch.dtype, results: Any) -> None:
    """Load in this process, looking at its memory every two milliseconds."""
    torch.set_num_threads(1)
    hps = settings(width, depth, path)
    vqvae = make_vqvae(hps, "meta")
    for device in ("cpu", "meta"):  # what is imported and allocated once belongs to the base
        make_prior(settings(32, 1), vqvae, device)
    base, peak, ended = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    prior = make_prior(hps, vqvae, dtype=dtype)
    took = time.perf_counter() - began
    ended.set()
    watcher.join()
    sizes = [tensor.numel() * tensor.itemsize for tensor in prior.state_dict().values()]
    results.put((base, max(peak[0], resident()) - base, sum(sizes), max(sizes), took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="", help="where the weights are written; empty: a temporary place")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=80)
    parser.add_argument("--stored", default="float32", help="type of the matrices in the file")
    parser.add_argument("--dtype", default="float32", help="type of the matrices in memory")
    parser.add_argument("--old", action="store_true", help="write the file as torch before 1.6 did")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(asked.file or f"{folder}/prior.pth.tar")
        write(path, asked.width, asked.depth, getattr(torch, asked.stored), asked.old)
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        arguments = (str(path), asked.width, asked.depth, getattr(torch, asked.dtype), results)
        process = context.Process(target=load, args=arguments)
        process.start()
        base, peak, weights, largest, took = results.get()
        process.join()
        print(f"file, MB: {path.stat().st_size / MEGABYTE:.1f}")
    for name, value in (("weights", weights), ("largest layer", largest)):
        print(f"{name}, MB: {value / MEGABYTE:.1f}")
    print(f"base, MB: {base:.1f}\npeak above base, MB: {peak:.1f}\nseconds: {took:.1f}")


if __name__ == "__main__":
    main()
