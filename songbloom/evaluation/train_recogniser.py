"""Train the phoneme recogniser on sung songs.

::

    python -m songbloom.evaluation.train_recogniser --data_jsonl=corpus/songs.jsonl,practice/songs.jsonl --output=my.npz

Lines of the JSONL need ``vocals_path`` and ``phonemes_path``, and may have ``backing_path``, as
``songbloom.data.prepare.sung_corpus`` and ``songbloom.evaluation.practice`` write them. Songs whose words share a line
are either all trained on or all held out, so the numbers in the end are about words that were never heard. On one
thread of one machine the same command gives the same weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from songbloom import __version__
from songbloom.audio.files import read_audio
from songbloom.data.manifest import Song, songs_from
from songbloom.errors import UserError, counted
from songbloom.evaluation import phonemes
from songbloom.evaluation.recogniser import Recogniser, RecogniserConfig, load_recogniser, save_recogniser
from songbloom.evaluation.recogniser_data import (
    Lesson,
    Practice,
    SungSong,
    read_phonemes,
    read_song,
    split,
    worn_spectrum,
)
from songbloom.hyperparams import Hyperparams, Knob, Knobs, group
from songbloom.lyrics.morae import PHONEMES

KNOBS = Knobs(
    group(
        "data",
        "What to learn from",
        data_jsonl=Knob("", "Songs, needed: JSONL files of sung corpora, separated by commas"),
        held_out=Knob(0.15, "Share of each file that is held out, at least", minimum=0.0),
        most=Knob(0, "Songs of each file at most; 0: all", minimum=0),
    ),
    group(
        "training",
        "How",
        output=Knob("", "File for the weights (.npz), needed; what it was trained on lies beside it as JSON"),
        steps=Knob(1200, "Optimiser steps", minimum=1),
        bs=Knob(6, "Crops a step", minimum=1),
        seconds=Knob(6.0, "Of a crop", minimum=1.0),
        lr=Knob(2e-3, "Highest learning rate (AdamW; a twentieth of the steps up, then a cosine down)", minimum=1e-8),
        seed=Knob(0, "Decides everything", minimum=0),
        log_steps=Knob(100, "Steps between lines of progress", minimum=1),
        help=Knob(False, "Print this, and stop"),
    ),
)
USAGE = "usage: python -m songbloom.evaluation.train_recogniser --data_jsonl=FILE[,FILE] --output=FILE [--key=value …]"


def loss_of(recogniser: Recogniser, lesson: Lesson, log_mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The loss, and its parts: cross-entropy of frames, and of the voice.

    The classes of frames are one of CTC's paths (:func:`frame_classes`), the one that the exact times of synthesised
    singing tell. CTC's own loss, which sums over all paths, first collapses to blanks and needs far longer.
    """
    logits, voice, _ = recogniser(log_mel)
    framed = F.cross_entropy(logits.flatten(0, 1), lesson.labels.flatten())
    present = F.binary_cross_entropy_with_logits(voice, lesson.voice)
    return framed + present, framed.detach(), present.detach()


def train(recogniser: Recogniser, practice: Practice, options: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Train in place; gives mean losses every ``log_steps`` steps, with the averaged weights in place."""
    steps, lr = int(options["steps"]), float(options["lr"])
    matrices: list[torch.nn.Parameter] = [p for p in recogniser.parameters() if p.ndim > 1]
    others = [p for p in recogniser.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr, weight_decay=0.02)
    averaged = {name: tensor.detach().clone() for name, tensor in recogniser.state_dict().items()}
    told: list[list[float]] = []
    recogniser.train()
    for step in range(steps):
        progress = step / steps
        rate = lr * min((step + 1) / (0.05 * steps), 0.5 * (1 + np.cos(np.pi * max(0.0, progress - 0.05) / 0.95)))
        for entry in optimiser.param_groups:
            entry["lr"] = rate
        lesson = practice.lesson(step, int(options["bs"]))
        with torch.no_grad():
            log_mel = recogniser.log_mel(lesson.audio)
            log_mel = worn_spectrum(log_mel, np.random.default_rng([practice.seed, step, 1]))
        loss, *parts = loss_of(recogniser, lesson, log_mel)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(recogniser.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise UserError(f"training of the recogniser broke down at step {step}: try a smaller --lr")
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, tensor in recogniser.state_dict().items():
                averaged[name].lerp_(tensor, 1 - keep)
        told.append([float(loss.detach()), *map(float, parts)])
        if (step + 1) % int(options["log_steps"]) == 0 or step + 1 == steps:
            raw = {name: tensor.detach().clone() for name, tensor in recogniser.state_dict().items()}
            recogniser.load_state_dict(averaged)
            yield {"step": step + 1, **dict(zip(("loss", "frames", "voice"), np.mean(told, 0), strict=True))}
            recogniser.load_state_dict(raw)
            told = []
    recogniser.load_state_dict(averaged)
    recogniser.eval()


def measure(recogniser: Recogniser, held: Sequence[Song], seed: int = 0) -> dict[str, Any]:
    """Voice presence and phoneme error rates on held-out songs: the singer, the mix, the band; and on noise."""
    rate = recogniser.config.sample_rate
    scores: dict[str, list[phonemes.PhonemeScore]] = {}
    voice: dict[str, list[float]] = {}
    rng = np.random.default_rng(seed)
    for song in held:
        folder = song.folder or song.path.parent
        _, classes = read_phonemes(folder / str(song.extra["phonemes_path"]))
        wanted = tuple(PHONEMES[index - 1] for index in classes.tolist())
        tracks = {"vocals": song.extra.get("vocals_path"), "backing": song.extra.get("backing_path")}
        sounds = {name: read_audio(folder / str(p), sample_rate=rate).mean(axis=1) for name, p in tracks.items() if p}
        if "backing" in sounds:
            sounds["mix"] = read_audio(song.path, sample_rate=rate).mean(axis=1)
            sounds["noise"] = (0.1 * rng.standard_normal(len(sounds["mix"]))).astype(np.float32)
            kind = ""
        else:
            kind = "practice "
        for name, sound in sounds.items():
            heard = recogniser.hear(sound)
            voice.setdefault(kind + name, []).append(float((heard.voice > 0.5).mean()))
            if name in ("vocals", "mix"):
                scores.setdefault(kind + name, []).append(phonemes.score(phonemes.decode(heard.phonemes), wanted))
    made: dict[str, Any] = {}
    for name, shares in voice.items():
        made[name] = {"items": len(shares), "voice_presence": round(float(np.mean(shares)), 4)}
        made[name] |= {"least_voice": round(min(shares), 4), "most_voice": round(max(shares), 4)}
        if name in scores:
            whole = phonemes.together(scores[name])
            made[name] |= {"per": round(whole.per, 4), "per_shuffled": round(whole.per_shuffled, 4)}
            made[name] |= {"phonemes": whole.expected, "worst_per": round(max(s.per for s in scores[name]), 4)}
    return made


def gather(options: Hyperparams) -> tuple[list[SungSong], list[Song], dict[str, Any]]:
    """Songs to train on, songs that are held out, and facts about them."""
    train_songs: list[SungSong] = []
    held_songs: list[Song] = []
    facts: dict[str, Any] = {"files": []}
    rate = RecogniserConfig().sample_rate
    for path in Knobs.split_names(options.data_jsonl):
        songs = songs_from(data_jsonl=path)
        songs = songs[: options.most] if options.most else songs
        kept, held = split(songs, options.held_out, options.seed)
        train_songs += [read_song(song, rate) for song in kept]
        held_songs += held
        facts["files"].append({"songs": len(songs), "held_out": len(held)})
        credits = {str(s.extra["voice_credit"]) for s in songs if s.extra.get("voice_credit")}
        facts["credits"] = sorted({*facts.get("credits", []), *credits})
    if not train_songs:
        raise UserError("--data_jsonl: every song is held out; give more songs or a smaller --held_out")
    sung = {PHONEMES[index - 1] for song in train_songs for index in song.classes.tolist()}
    facts["seconds"] = round(sum(len(song.vocals) for song in train_songs) / rate, 1)
    facts["singers"] = sorted({song.song.artist or "unknown" for song in train_songs})
    facts["phonemes_missing"] = [phoneme for phoneme in PHONEMES if phoneme not in sung]
    return train_songs, held_songs, facts


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        argv = list(sys.argv[1:] if arguments is None else arguments)
        options = KNOBS.merge({}, "", KNOBS.parse(argv))
        if options.help:
            print(KNOBS.help(USAGE))
            return 0
        for name in ("data_jsonl", "output"):
            if not options[name]:
                raise UserError(f"--{name} is missing; --help tells more")
        run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: Hyperparams) -> Path:
    """Train, measure and write; returns the file of weights."""
    begin, spent = time.perf_counter(), time.process_time()
    songs, held, facts = gather(options)
    print(
        f"{counted(len(songs), 'song')} to learn from ({facts['seconds'] / 60:.1f} min), {len(held)} held out",
        flush=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        recogniser = Recogniser()
    practice = Practice(songs, recogniser.config, options.seconds, options.seed)
    training = {name: options[name] for name in ("steps", "bs", "seconds", "lr", "seed", "held_out")}
    facts |= {"version": __version__, "torch": torch.__version__}
    facts["parameters"] = sum(p.numel() for p in recogniser.parameters())
    output = Path(options.output)
    about: dict[str, Any] = {"trained_with": training, "data": facts, "measured": {}}
    for line in train(recogniser, practice, options):
        words = " ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "step")
        print(f"step {line['step']}: {words}, {time.process_time() - spent:.0f} s of CPU", flush=True)
        facts |= {"steps_done": int(line["step"]), "cpu_seconds": round(time.process_time() - spent, 1)}
        save_recogniser(output, recogniser, about)  # a run that is stopped leaves what it had
    if held:
        measured = measure(load_recogniser(output), held)  # as rounded for the file
        save_recogniser(output, recogniser, {**about, "measured": measured})
        print(json.dumps(measured, indent=1))
    print(f"{output}: {output.stat().st_size} bytes, {time.perf_counter() - begin:.0f} s")
    return output


if __name__ == "__main__":
    sys.exit(main())
