"""Where sampling begins: from nothing, from sound, or from the codes of an earlier run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom.audio.files import probe, read_audio
from songbloom.errors import UserError, counted


def whole_codes(seconds: float, sample_rate: int, hop_length: int) -> int:
    """Samples of the longest stretch of whole codes within ``seconds``: ``int(seconds * rate) // hop * hop``."""
    return int(seconds * sample_rate) // hop_length * hop_length


def empty_codes(items: int, levels: int) -> list[Tensor]:
    """No codes yet, ``[items, 0]`` a level."""
    return [torch.zeros(items, 0, dtype=torch.int64) for _ in range(levels)]


def cut(codes: Sequence[Tensor], samples: int, hop_lengths: Sequence[int]) -> list[Tensor]:
    """The codes of the first ``samples`` samples, at each level at most ``samples // hop``."""
    return [each[:, : samples // hop] for each, hop in zip(codes, hop_lengths, strict=True)]


def check_codes(path: Path | str, codes: Sequence[Tensor], vqvae: Any) -> None:
    """Refuse codes that the codec cannot understand.

    Args:
        path: where they come from, for messages.
        codes: ``[items, …]`` for each level, finest first; empty for levels that the file lacks.
        vqvae: the codec, of either family.

    Raises:
        UserError: they are of a codec with other levels or codebooks, or there are none.
    """
    if len(codes) != vqvae.levels:
        raise UserError(f"{path}: holds codes of {counted(len(codes), 'level')}, and the model has {vqvae.levels}")
    there = codes[0].shape[0]
    if not there or any(each.shape[0] != there for each in codes):
        raise UserError(f"{path}: its levels do not hold equally many items, at least one")
    width = getattr(vqvae, "latent_width", None)  # of a codec whose level 0 is latents
    bins = vqvae.l_bins if width is None else vqvae.l_bins + 1  # after a song's end stands a token of its own
    for level, each in enumerate(codes):
        latents = width is not None and level == 0
        if (each.ndim == 3) != latents or (latents and each.shape[2] != width):
            is_there = f"latents of {each.shape[2]} numbers" if each.ndim == 3 else "codes"
            needed = f"latents of {width} numbers" if latents else "codes"
            raise UserError(
                f"{path}: level {level} holds {is_there}, and the model's are {needed}: it was made with another codec"
            )
        if not latents and each.numel() and not 0 <= int(each.min()) <= int(each.max()) < bins:
            raise UserError(
                f"{path}: level {level} holds codes from {int(each.min())} to {int(each.max())}, but the model's are "
                f"0 to {vqvae.l_bins - 1}: it was made with another codec"
            )
    if not any(each.shape[1] for each in codes):
        raise UserError(f"{path}: holds no codes at any level")


def labels_of_items(labels: Sequence[Any], items: Sequence[int]) -> list[Any]:
    """Of the labels in a ``data.pth.tar`` those of some of its items; None for a level that has none, or not all."""
    kept: list[Any] = []
    for each in labels:
        there = each if isinstance(each, Mapping) else {}
        infos, y = there.get("info"), there.get("y")
        kept.append(None)
        if isinstance(infos, Sequence) and isinstance(y, Tensor) and y.ndim == 2:
            enough = max(items) < min(len(infos), len(y))
            if enough and all(isinstance(info, Mapping) for info in infos):
                kept[-1] = {"y": y[list(items)], "info": [infos[item] for item in items]}
    return kept


def codes_from_audio(
    paths: Sequence[Path | str],
    items: int,
    vqvae: Any,
    seconds: float | None,
    longest: int,
    *,
    whole: int | None = None,
) -> list[Tensor]:
    """The beginning of sound files as codes of every level; files are taken again and again until there are ``items``.

    Args:
        paths: sound files of any kind that can be read, in as many channels as the codec has.
        items: how many items are wanted.
        vqvae: the codec, of either family.
        seconds: how much of each file; None takes as much as the shortest of them has.
        longest: samples at most.
        whole: samples of which a prompt is a whole number; None: a code of the top level.

    Returns:
        ``[items, …]`` for each level, finest first.

    Raises:
        UserError: a file cannot be read or is shorter than ``seconds``; the prompt is shorter than one code.
    """
    if not paths:
        raise UserError("--mode=primed needs sound to begin from: give --audio_file=a.wav,b.mp3")
    used = [Path(path) for path in paths][:items]
    hop, rate = whole or vqvae.hop_lengths[-1], vqvae.sample_rate
    word = "code" if whole is None else "patch"
    lengths = {path: float(probe(path).duration) for path in used}
    shortest = min(used, key=lambda path: lengths[path])
    if seconds is None:
        length = min(whole_codes(lengths[shortest], rate, hop), longest // hop * hop)
    else:
        length = whole_codes(seconds, rate, hop)
        if lengths[shortest] * rate < length:
            raise UserError(
                f"{shortest}: is {lengths[shortest]:.2f} s long, shorter than --prompt_length_in_seconds={seconds:g}"
            )
        if length > longest:
            raise UserError(
                f"--prompt_length_in_seconds={seconds:g} is longer than the sample of {longest / rate:.2f} s; "
                "give a longer --sample_length_in_seconds"
            )
    if not length:
        raise UserError(f"{shortest}: the prompt is shorter than one {word} of {hop / rate:.3f} s; give more of it")
    device = vqvae.device if hasattr(vqvae, "device") else next(vqvae.parameters()).device
    by_file = []
    for path in used:
        sound = read_audio(path, sample_rate=rate, length=length, channels=vqvae.channels)
        sound = np.pad(sound, ((0, length - len(sound)), (0, 0)))  # a duration that rounds up may lack a sample
        by_file.append([each.cpu() for each in vqvae.encode(torch.from_numpy(sound)[None].to(device))])
    chosen = [item % len(used) for item in range(items)]
    return [torch.cat([by_file[file][level] for file in chosen]) for level in range(vqvae.levels)]


def digest(codes: Sequence[Tensor]) -> str:
    """A short name for codes; empty when there are none."""
    if not any(each.numel() for each in codes):
        return ""
    hashed = hashlib.blake2b(digest_size=16)
    for each in codes:
        hashed.update(f"{tuple(each.shape)}\0".encode() + each.cpu().numpy().tobytes())
    return hashed.hexdigest()
