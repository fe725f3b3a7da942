"""What a command line means for a model that writes frames: lengths, and what there is before sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from songbloom.distributed import say
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.sampling import prompts, request
from songbloom.sampling.form import Frames
from songbloom.sampling.origin import Origin
from songbloom.sampling.songbloom_writer import SongSettings


def beginning(
    options: Hyperparams, codec: Any, unit: int, longest: int, form: Frames, origin: Origin | None
) -> tuple[int, list[Tensor]]:
    """How long an item may become, and what is there of it before sampling.

    Args:
        options: the command line.
        codec: :class:`songbloom.sketch.codec.SketchedCodec`.
        unit: samples of a patch.
        longest: samples that the model itself allows a song.
        form: of its frames.
        origin: what it goes on from; None for nothing or sound.

    Returns:
        Samples an item; frames ``[items, frames, 1 + latent_width]``, and the sketch ``[items, frames]`` of
        ``--mode=upsample`` (else empty).

    Raises:
        UserError: something cannot be read or does not fit the model or the length.
    """
    request.check_sizes(options, codec)
    hop, rate = codec.hop_lengths[0], codec.sample_rate
    nothing = torch.zeros(0, codec.latent_width), torch.zeros(0, dtype=torch.int64)
    items = options.n_samples or 1
    if options.mode == "ancestral":
        length = _asked(options, unit, rate, longest)
        return length, [form.joined(*nothing).expand(items, -1, -1).clone(), nothing[1].expand(items, -1).clone()]
    if options.mode == "primed":
        length = _asked(options, unit, rate, longest)
        paths = [part.strip() for part in options.audio_file.split(",") if part.strip()]
        latents, sketch = prompts.codes_from_audio(
            paths, options.n_samples or len(paths), codec, options.prompt_length_in_seconds, length, whole=unit
        )
        frames = form.joined(latents, sketch)
        _check_room(frames.shape[1] * hop, length, rate, options.audio_file)
        return length, [frames, sketch[:, :0]]
    assert origin is not None  # the command line was checked
    latents, sketch = origin.codes
    ends = [form.sounding(each) for each in sketch]
    there = max(ends)
    keep = request.kept_length(options, codec, origin, unit)
    kept = there if keep is None else min(there, keep // hop)
    if options.mode == "upsample":
        length = kept * hop if options.sample_length_in_seconds is None else _asked(options, unit, rate, longest)
        frames = min(length // hop, kept) // (unit // hop) * (unit // hop)
        if not frames:
            raise UserError(f"{origin.path}: holds no whole patch of {unit / rate:.2f} s to make latents of")
        empty = form.joined(*nothing).expand(len(sketch), -1, -1).clone()
        return frames * hop, [empty, sketch[:, :frames]]
    length = there * hop if options.cut_at is not None else longest
    if options.sample_length_in_seconds is not None:
        length = _asked(options, unit, rate, longest)
    frames = form.joined(latents, sketch)[:, : min(kept, length // hop)]
    frames = frames[:, : frames.shape[1] // (unit // hop) * (unit // hop)]
    _check_room(frames.shape[1] * hop, length, rate, options.codes_file)
    over = [item for item, end in enumerate(ends) if end < frames.shape[1]]
    if over:
        words = ", ".join(f"item {item} at {ends[item] * hop / rate:.2f} s" for item in over)
        say(f"note: songs that have ended stay as they are ({words}); --cut_at before their end lets them go on")
    return length, [frames, sketch[:, :0]]


def _asked(options: Hyperparams, unit: int, rate: int, longest: int) -> int:
    """Samples that are asked for, whole patches; where nothing is, all that the model allows."""
    seconds = options.sample_length_in_seconds
    if seconds is None:
        return longest // unit * unit
    length = prompts.whole_codes(seconds, rate, unit)
    if not length:
        raise UserError(f"--sample_length_in_seconds={seconds:g} is less than one patch, {unit / rate:.3f} s")
    if length > longest:
        say(f"note: this model learnt songs of {longest / rate:.4g} s at most; {length / rate:.4g} s are asked for")
    return length


def _check_room(there: int, length: int, rate: int, source: str) -> None:
    if there >= length:
        raise UserError(
            f"{source}: has {there / rate:.2f} s already, and items are to become {length / rate:.2f} s: give a longer "
            "--sample_length_in_seconds, or keep less of it"
        )


def identity(
    options: Hyperparams,
    length: int,
    codes: Sequence[Tensor],
    settings: SongSettings,
    *,
    words: str,
    seeds: Sequence[int],
    outputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything on a command line that decides what is written, but for rounding, as plain data.

    Args:
        words: a digest of what items are told.
        outputs: names of the items' files for ``--input_jsonl``.
    """
    made: Mapping[str, Any] = request.common_identity(options, length, codes, {0: settings}, seeds)
    return {**made, "words": words, **({"outputs": list(outputs)} if outputs else {})}
