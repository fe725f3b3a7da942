"""What training adapters costs against training the whole prior: time a step, and memory.

    python benchmarks/lora.py                                  the small SongBloom's size, float32 on this machine
    python benchmarks/lora.py --width=1536 --depth=36 --dit_depth=12 --heads=24 --precision=bf16   the published size

A step is forward, backward and Adam on one batch of random songs, with recomputation as in training. Memory is what
parameters, gradients and Adam's moments take together (counted), the peak of the process above its start (measured; of
the device where that is a GPU), and the size of the checkpoint. Each way is measured in a process of its own.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from songbloom.lora.training import LoRASettings, attach, trained_state
from songbloom.prior.config import dtype_of
from songbloom.prior.songbloom.prior import SongBloomConfig, SongBloomPrior
from songbloom.training.optim import Adam

WAYS = {
    "full": None,
    "lora q,v rank 16": ("q_proj", "v_proj"),
    "lora all-linear rank 16": ("all-linear",),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One way of training: milliseconds a step, and bytes."""
    device, dtype = torch.device(options.device), dtype_of(options.precision)
    torch.manual_seed(0)
    config = SongBloomConfig(
        prior_width=options.width,
        heads=options.heads,
        prior_depth=options.depth,
        dit_depth=options.dit_depth,
        l_bins=options.l_bins,
        lyric_tokens=options.lyric_tokens,
        c_res=2,
    )
    prior = SongBloomPrior(config, torch.Generator().manual_seed(0)).train()
    targets = WAYS[options.way]
    if targets is not None:
        if dtype != torch.float32:
            prior.store_matrices(dtype)  # what is frozen can be kept in the computing precision
        attach(prior, LoRASettings(rank=16, alpha=32.0, dropout=0.05, targets=targets))
    prior.to(device)
    trained = [p for p in prior.parameters() if p.requires_grad]
    adam = Adam(trained, lr=1e-5)
    draw = torch.Generator().manual_seed(1)
    frames = options.frames // config.patch_size * config.patch_size
    tokens = torch.randint(0, config.l_bins, (options.bs, frames), generator=draw).to(device)
    latents = torch.randn(options.bs, frames, config.latent_width, generator=draw).to(device)
    prompt = torch.randn(options.bs, config.prompt_frames, config.latent_width, generator=draw).to(device)
    lengths = torch.full((options.bs,), frames, device=device)
    lyrics = [torch.randint(20, 300, (options.lyric_tokens // 2,), generator=draw).tolist() for _ in range(options.bs)]
    times = []
    for step in range(options.steps + 1):
        start = time.perf_counter()
        loss, _ = prior(
            tokens,
            latents,
            lengths,
            lyrics,
            prompt,
            generator=draw if device.type == "cpu" else None,
            precision=options.precision,
        )
        loss.backward()
        adam.step()
        for p in trained:
            p.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step:
            times.append(time.perf_counter() - start)
    file = io.BytesIO()
    state = prior.state_dict() if targets is None else trained_state(prior)
    torch.save({"model": state, "optimizer": adam.state_dict()}, file)
    return {
        "parameters": sum(p.numel() for p in prior.parameters()),
        "trained": sum(p.numel() for p in trained),
        "ms_a_step": 1000 * statistics.median(times),
        "weights_gradients_moments": sum(p.numel() * p.itemsize for p in prior.parameters())
        + sum(p.numel() * (p.itemsize + 8) for p in trained),
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_of_process(),
        "checkpoint": file.tell(),
    }


def peak_of_process() -> int:
    """The largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        *(("width", 512), ("heads", 8), ("depth", 8), ("dit_depth", 4), ("l_bins", 1024), ("lyric_tokens", 400)),
        *(("frames", 750), ("bs", 1), ("steps", 5)),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", default="", choices=("", *WAYS), help="measure this one alone, here; JSON")
    parser.add_argument("--json", default="", help="also write the results to this file")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return 0
    found = {}
    print(f"{'way':<26}{'trained':>14}{'ms/step':>10}{'w+g+m MB':>10}{'peak MB':>10}{'checkpoint MB':>15}")
    for way in WAYS:
        done = subprocess.run([sys.executable, *sys.argv, f"--way={way}"], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{way:<26}{(done.stderr.strip().splitlines() or ['failed'])[-1]}")
            continue
        row = found[way] = json.loads(done.stdout.splitlines()[-1])
        size = [f"{row[key] / 1e6:.1f}" for key in ("weights_gradients_moments", "peak", "checkpoint")]
        print(f"{way:<26}{row['trained']:>14,}{row['ms_a_step']:>10.0f}{size[0]:>10}{size[1]:>10}{size[2]:>15}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(
                {"settings": {k: v for k, v in vars(options).items() if k != "way"}, "ways": found}, file, indent=1
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
