"""Pictures and figures of a finished demo, for ``docs/demo.md``: loss curves, reconstructions, a sample.

    python benchmarks/demo_report.py --logs logs --corpus demo/corpus --samples demo/samples --output docs/demo

Writes ``loss_{run}.svg`` for each training run, ``reconstruction.png`` (a song, then what each level makes of it) and
``sample.png``, and prints one JSON object: machine, steps, last losses, reconstruction figures, codebook usage.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts

from songbloom.audio.files import read_audio
from songbloom.audio.mel import log_mel, mel_picture, write_png
from songbloom.audio.mix import to_mono
from songbloom.data.dataset import ChunkDataset
from songbloom.hyperparams import Hyperparams
from songbloom.training import checkpoint
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

CURVES = {
    "demo_vqvae": ("loss", "recons_loss", "multispectral_loss"),
    "demo_ja_prior": ("gen_loss", "prime_loss"),
    "demo_upsampler": ("bpd",),
}
COLOURS = ("#c0392b", "#2471a3", "#1e8449")


def scalars(folder: Path, tags: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) pairs of a tensorboard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    known = reader.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags if tag in known}


def curve_svg(title: str, curves: dict[str, list[tuple[int, float]]], width: int = 640, height: int = 260) -> str:
    """A plain line chart; both axes begin at 0."""
    left, right, top, bottom = 48, 12, 28, 28
    steps = max(step for points in curves.values() for step, _ in points)
    highest = max(value for points in curves.values() for _, value in points) * 1.05

    def at(step: float, value: float) -> str:
        x = left + (width - left - right) * step / steps
        y = top + (height - top - bottom) * (1 - value / highest)
        return f"{x:.1f},{y:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="{left}" y="17" font-size="13">{title}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(0, highest * share).split(",")
        end = at(steps, highest * share).split(",")[0]
        lines.append(f'<path d="M{x},{y}H{end}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dy="4">{highest * share:.2f}</text>')
        x = at(steps * share, 0).split(",")[0]
        lines.append(f'<text x="{x}" y="{height - 10}" text-anchor="middle">{steps * share:.0f}</text>')
    for index, (name, points) in enumerate(curves.items()):
        path = " ".join(at(step, value) for step, value in points)
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = top + 14 * (index + 1)
        lines.append(f'<text x="{width - right}" y="{y}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*lines, "</svg>\n"])


def codec_figures(vqvae: VQVAE, chunks: list[torch.Tensor], sample_rate: int) -> list[dict[str, float]]:
    """For each level over chunks ``[T, 1]``: signal-to-noise ratio, log-mel distance, and how the codebook is used."""
    figures = []
    for level in range(vqvae.levels):
        signal = noise = distance = 0.0
        counts = torch.zeros(vqvae.l_bins)
        for chunk in chunks:
            codes = vqvae.encode(chunk[None], start_level=level, end_level=level + 1)
            heard = vqvae.decode(codes, start_level=level, end_level=level + 1)[0]
            counts += torch.bincount(codes[0].flatten(), minlength=vqvae.l_bins)
            signal += float(chunk.square().sum())
            noise += float((heard - chunk).square().sum())
            mels = [log_mel(x[:, 0].numpy(), sample_rate) for x in (chunk, heard)]
            distance += float(np.abs(mels[0] - mels[1]).mean())
        p = counts / counts.sum()
        entropy = float(-(p * (p + 1e-12).log()).sum())
        figures.append(
            {
                "level": level,
                "hop_length": vqvae.hop_lengths[level],
                "codes_per_second": sample_rate / vqvae.hop_lengths[level],
                "signal_to_noise_db": round(10 * np.log10(signal / max(noise, 1e-12)), 2),
                "log_mel_distance_db": round(distance / len(chunks), 2),
                "codes_used": int((counts > 0).sum()),
                "codebook_size": vqvae.l_bins,
                "perplexity": round(float(np.exp(entropy)), 1),
            }
        )
    return figures


def load_codec(path: Path) -> tuple[VQVAE, Hyperparams]:
    """A codec from its checkpoint, with averaged weights, and the hyperparameters that it was trained with."""
    content = checkpoint.load(path)
    hps = Hyperparams(content["hps"])
    vqvae = VQVAE(VQVAEConfig.from_hps(hps))
    vqvae.load_state_dict({**content["model"], **(content["ema"] or {})})  # codebooks are not averaged
    return vqvae.eval(), hps


def test_chunks(hps: Hyperparams, number: int, seconds: float = 4, **data: Any) -> list[torch.Tensor]:
    """Up to ``number`` chunks ``[T, 1]``, spread evenly over the songs that training did not see."""
    top = VQVAEConfig.from_hps({**hps, "sample_length": 0}).hop_lengths[-1]
    length = int(seconds * hps.sr) // top * top
    with contextlib.redirect_stdout(sys.stderr):  # what it tells about the data; the report alone is JSON
        dataset = ChunkDataset(Hyperparams(hps, sample_length=length, **data), split="test")
    chosen = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).astype(int)
    return [torch.as_tensor(dataset[int(index)]["audio"]) for index in chosen]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    parser.add_argument("--corpus", type=Path, default=Path("demo/corpus"))
    parser.add_argument("--samples", type=Path, default=Path("demo/samples"))
    parser.add_argument("--output", type=Path, default=Path("docs/demo"))
    parser.add_argument("--codec", type=Path, help="only tell the figures of this codec's checkpoint, on its own data")
    arguments = parser.parse_args()
    if arguments.codec:
        vqvae, hps = load_codec(arguments.codec)
        print(json.dumps({"machine": facts(), "codec": codec_figures(vqvae, test_chunks(hps, 64), hps.sr)}, indent=1))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)

    report: dict[str, Any] = {"machine": facts(), "runs": {}}
    for run, tags in CURVES.items():
        curves = scalars(arguments.logs / run / "logs", tags)
        (arguments.output / f"loss_{run}.svg").write_text(curve_svg(run, curves), encoding="utf-8")
        report["runs"][run] = {tag: {"steps": points[-1][0], "last": points[-1][1]} for tag, points in curves.items()}

    vqvae, hps = load_codec(arguments.logs / "demo_vqvae" / checkpoint.LATEST)
    chunks = test_chunks(hps, 64)
    report["codec"] = codec_figures(vqvae, chunks, hps.sr)
    song = json.loads((arguments.corpus / "songs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    length = vqvae.hop_lengths[-1] * (8 * hps.sr // vqvae.hop_lengths[-1])
    audio = read_audio(arguments.corpus / song["audio_path"], sample_rate=hps.sr, offset=8 * hps.sr, length=length)
    mono = to_mono(torch.as_tensor(audio)[None], 0.5)
    rows = [mono, *vqvae.reconstruct(mono)]
    pictures = [mel_picture(x[0, :, 0].numpy(), hps.sr, height=128, max_width=640) for x in rows]
    write_png(arguments.output / "reconstruction.png", np.concatenate(pictures))
    sample = read_audio(arguments.samples / "level_0" / "item_0.wav", sample_rate=hps.sr, channels=1)[:, 0]
    write_png(arguments.output / "sample.png", mel_picture(sample, hps.sr, height=160, max_width=640))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
