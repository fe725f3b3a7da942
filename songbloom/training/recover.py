"""Songs to recover a sketch codebook from: written by its model, or there already, each with its codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from songbloom import distributed
from songbloom.audio.files import AudioError, read_audio
from songbloom.data.manifest import Song
from songbloom.distributed import say
from songbloom.errors import UserError, counted, reason
from songbloom.prior.songbloom.generate import generate
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.sketch.codebook import NORMALISATIONS
from songbloom.sketch.features import FRAME_RATE, Features
from songbloom.sketch.files import SUFFIXES, read_sketch
from songbloom.sketch.recovery import Candidate, Sung, recover
from songbloom.training.sketch import CODEBOOK, make_sketch

Told = tuple[Sequence[int], Tensor | None]  # the lyrics' tokens, and latents [frames, width] of a style prompt


@torch.no_grad()
def written_songs(
    prior: SongBloomPrior,
    codec: Any,
    settings: GenerationSettings,
    told: Sequence[Told],
    *,
    seed: int = 0,
    at_once: int = 4,
) -> Iterator[Sung]:
    """Songs of the model with their codes, one for each that is told; ``at_once`` are written in step.

    Args:
        prior: writes them.
        codec: decodes them (:class:`songbloom.sketch.codec.SketchedCodec`).
        settings: of the writing.
        told: lyrics and style prompt of each.
        seed: song i draws from a generator of ``seed`` and i alone.
    """
    for first in range(0, len(told), at_once):
        part = told[first : first + at_once]
        prompts = [latents if latents is not None else None for _, latents in part]
        longest = max((len(p) for p in prompts if p is not None), default=0)
        padded = torch.zeros(len(part), longest, prior.config.latent_width)
        for row, prompt in enumerate(prompts):
            if prompt is not None:
                padded[row, : len(prompt)] = prompt
        valid = torch.tensor([0 if p is None else len(p) for p in prompts], device=prior.start.device)
        conditions = prior.conditions([list(ids) for ids, _ in part], padded, valid)
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + row) for row in range(len(part))]
        for song in generate(prior, conditions, settings, generators=generators):
            if len(song.tokens):
                audio = codec.decode([song.latents[None]])[0].float().cpu()
                yield Sung(song.tokens.cpu(), audio, codec.sample_rate)
        say(f"{min(first + at_once, len(told))} of {counted(len(told), 'song')} are written")


def songs_with_codes(folder: Path | str, codes: int) -> Iterator[Sung]:
    """Audio files below ``folder``, each with a file of codes of the same name beside it.

    Raises:
        UserError: no such pair, or one that cannot be read.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    pairs = 0
    for path in found:
        sounds = [path.with_suffix(ending) for ending in (".wav", ".flac", ".mp3", ".ogg")]
        sound = next((each for each in sounds if each.is_file()), None)
        if sound is None:
            continue
        try:
            audio = read_audio(sound, sample_rate=48000)
        except (AudioError, OSError) as error:
            raise UserError(f"{sound}: cannot be read ({reason(error)})") from error
        pairs += 1
        yield Sung(read_sketch(path, codes), torch.from_numpy(audio).float(), 48000)
    if not pairs:
        raise UserError(
            f"--recover_tokens={folder}: no audio has its codes beside it (song.wav and song.pt, .npy or .npz)"
        )


def varied(settings: GenerationSettings, seconds: float, steps: int = 0) -> GenerationSettings:
    """A model's own settings for songs of a length, which draw from all codes: rare ones are wanted too."""
    frames = max(1, int(seconds * FRAME_RATE))
    return replace(settings, max_frames=frames, min_frames=frames, top_k=0, top_p=0.0, steps=steps or settings.steps)


def told_of(song: Song, labeller: Any) -> Told:
    """Lyrics and style prompt of a song of the data, for :func:`written_songs`.

    Args:
        song: its ``prompt_wav``, else its own beginning, is the style prompt.
        labeller: a :class:`songbloom.sampling.songbloom_labels.SongLabeller` of the model.

    Raises:
        UserError: lyrics with a mistake, or audio that cannot be read.
    """
    path = Path(str(song.extra.get("prompt_wav") or song.path))
    if not path.is_absolute() and not path.is_file():
        path = song.path.parent / path
    ids = labeller.words(song.lyrics)[0] if song.lyrics else ()
    return ids, labeller.prompt(str(path))


def features_to_try(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> list[Features]:
    """The extractor that ``hps`` names, of each layer in ``recover_layers``.

    Raises:
        UserError: layers that are no numbers, or features that cannot be had.
    """
    text = hps["recover_layers"] or str(hps["sketch_muq_layer"])
    try:
        layers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--recover_layers={text}: give whole numbers such as -1,10,6") from error
    return [make_sketch({**hps, "sketch_muq_layer": layer}, device).features for layer in layers]


def candidates_of(features: Sequence[Features], hps: Mapping[str, Any]) -> list[Candidate]:
    """What the codebook may have been made for: each of the extractors with each normalisation that may be."""
    asked = hps.get("sketch_normalisation")
    return [Candidate(each, way) for each in features for way in ([asked] if asked else NORMALISATIONS)]


def recover_codebook(
    hps: Mapping[str, Any], features: Sequence[Features], written: tuple[Iterator[Sung], int] | None = None
) -> int:
    """Recover a codebook, tell what came of it and write it to ``sketch_output`` or into the run's folder.

    Args:
        hps: the settings of ``--recover_from`` or ``--recover_tokens``.
        features: what it may have been made for.
        written: songs of the model and how many codes it has; None: ``sketch_codes``, and the songs in
            ``recover_tokens``.

    Returns:
        the exit status.

    Raises:
        UserError: on several ranks, or without songs.
    """
    if distributed.world().size > 1:
        raise UserError("--recover_from: a codebook is recovered by one process; leave out mpiexec or torchrun")
    codes = int(hps["sketch_codes"])
    songs, codes = written or (songs_with_codes(hps["recover_tokens"], codes), codes)
    source = str(hps["recover_from"] or hps["recover_tokens"])
    found = recover(songs, candidates_of(features, hps), codes, distance=hps["sketch_distance"], source=source)
    for line in found.report():
        say(line)
    path = Path(hps["sketch_output"] or Path(hps["local_logdir"]) / hps["name"] / CODEBOOK)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.codebook.save(path)
    say(f"wrote {path}")
    return 0
