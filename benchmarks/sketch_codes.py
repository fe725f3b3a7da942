"""How much of words and melody sketch codes carry, measured on a sung corpus whose phonemes and notes are known.

    python -m benchmarks.sketch_codes --data_jsonl=corpus/songs.jsonl --codes=512 logs/NAME/sketch_codebook.pt …

Every fourth song is kept: what each code stands for (which phoneme, which note) is counted on the other songs and told
on the kept ones. Codebooks named on the command line must have been trained without the kept songs: on those that
``--write_train=FILE`` lists. Beside them stand k-means codebooks of simple views of the same frames, and codes drawn
at random.

Columns: perplexity of the codes; for frames that are sung, how often the phoneme and the note (MIDI number) are told
right, and how many bits the code gives of them: the entropy of the phoneme less its cross-entropy given the code.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from songbloom.audio.files import read_audio
from songbloom.sketch.builtin import STEPS, BuiltinConfig, BuiltinFeatures
from songbloom.sketch.codebook import nearest_codes
from songbloom.sketch.features import FRAME_RATE
from songbloom.sketch.quantiser import Quantiser, perplexity
from songbloom.sketch.tokeniser import load_tokeniser

KEEP_EVERY = 4
REST = "pau"
SMOOTHING = 2.0  # frames of the whole corpus' phonemes that each code is thought to have besides its own


@dataclass
class Song:
    """Audio ``[1, T, 1]`` at 24 kHz; phoneme and MIDI note (0: none) of each frame; its views."""

    audio: Tensor
    phonemes: list[str]
    notes: Tensor
    views: Tensor


def read_songs(path: Path) -> list[Song]:
    songs = []
    features = BuiltinFeatures()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sound = read_audio(path.parent / row["audio_path"], sample_rate=24000).mean(axis=1, keepdims=True)
        audio = torch.from_numpy(np.ascontiguousarray(sound, np.float32))[None]
        views = features.views(audio[..., 0])[0]
        events = json.loads((path.parent / row["phonemes_path"]).read_text(encoding="utf-8"))["phonemes"]
        phonemes, notes, place = [], [], 0
        for frame in range(len(views) // STEPS):
            time = (frame + 0.5) / FRAME_RATE
            while place + 1 < len(events) and events[place]["end"] <= time:
                place += 1
            inside = events[place]["start"] <= time < events[place]["end"]
            phonemes.append(events[place]["phoneme"] if inside else REST)
            notes.append((events[place]["midi"] or 0) if inside else 0)
        songs.append(Song(audio, phonemes, torch.tensor(notes), views))
    return songs


def kept(songs: list[Song]) -> tuple[list[int], list[int]]:
    """Numbers of the songs that are counted, and of those that are kept."""
    numbers = range(len(songs))
    return [n for n in numbers if n % KEEP_EVERY != KEEP_EVERY - 1], [
        n for n in numbers if n % KEEP_EVERY == KEEP_EVERY - 1
    ]


def told(
    codes: list[Tensor], labels: list[Tensor], sides: tuple[list[int], list[int]], size: int
) -> tuple[float, float]:
    """Share of the kept frames whose label is told right, and bits; labels of -1 don't count."""
    (code, label), (kept_code, kept_label) = (
        (torch.cat([codes[n][labels[n] >= 0] for n in side]), torch.cat([labels[n][labels[n] >= 0] for n in side]))
        for side in sides
    )
    bins = int(max(label.max(), kept_label.max())) + 1
    counts = torch.zeros(size, bins).index_put_((code, label), torch.ones(len(code)), accumulate=True)
    usual = (counts.sum(dim=0) + 0.5) / (counts.sum() + 0.5 * bins)
    given = (counts + SMOOTHING * usual) / (counts.sum(dim=1, keepdim=True) + SMOOTHING)
    right = float((given.argmax(dim=1)[kept_code] == kept_label).float().mean())
    bits = float((given[kept_code, kept_label].log2() - usual[kept_label].log2()).mean())
    return right, bits


def k_means(rows: list[Tensor], sides: tuple[list[int], list[int]], codes: int) -> list[Tensor]:
    """Codes of each song by k-means over the songs that are counted."""
    together = torch.cat([rows[n] for n in sides[0]])
    quantiser = Quantiser(codes, together.shape[1], distance="euclidean", start_rows=len(together), start_rounds=15)
    quantiser.train()(together)
    return [nearest_codes(row, quantiser.vectors, "euclidean") for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_jsonl", type=Path, required=True)
    parser.add_argument("--codes", type=int, default=512, help="of the k-means codebooks")
    parser.add_argument("--write_train", type=Path, help="write the songs that are counted as a JSONL, and stop")
    parser.add_argument("codebooks", nargs="*", type=Path)
    options = parser.parse_args()
    if options.write_train:
        lines = options.data_jsonl.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for number, line in enumerate(lines) if number % KEEP_EVERY != KEEP_EVERY - 1]
        for row in rows:
            row["audio_path"] = str((options.data_jsonl.parent / row["audio_path"]).absolute())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        options.write_train.write_text(text, encoding="utf-8")
        return
    songs = read_songs(options.data_jsonl)
    sides, config = kept(songs), BuiltinConfig()
    names = sorted({phoneme for song in songs for phoneme in song.phonemes} - {REST})
    phonemes = [torch.tensor([names.index(p) if p != REST else -1 for p in song.phonemes]) for song in songs]
    notes = [torch.where(song.notes > 0, song.notes, -1) for song in songs]
    frames = [song.views.unflatten(0, (-1, STEPS)).mean(dim=1) for song in songs]
    fixed = BuiltinFeatures(config)
    draw = torch.Generator().manual_seed(0)
    views = {
        "log-mel (shape view)": [frame[:, : config.sketch_bands] for frame in frames],
        "log-mel and pitches": frames,
        "built-in features": [fixed.encode_views(song.views[None])[0] for song in songs],
    }
    random = [torch.randint(options.codes, (len(p),), generator=draw) for p in phonemes]
    entries = {"drawn at random": (random, options.codes)}
    entries |= {
        f"k-means of {name}": (k_means(rows, sides, options.codes), options.codes) for name, rows in views.items()
    }
    for path in options.codebooks:
        tokeniser = load_tokeniser(path)
        entries[f"trained: {path}"] = ([tokeniser.encode(song.audio, 24000)[0] for song in songs], tokeniser.size)
    print("| codes | perplexity | phoneme right | bits of phoneme | note right | bits of note |")
    print("|---|---|---|---|---|---|")
    for name, (codes, size) in entries.items():
        used = torch.bincount(torch.cat(codes), minlength=size).float()
        words, melody = (told(codes, labels, sides, size) for labels in (phonemes, notes))
        numbers = f"{words[0]:.1%} | {words[1]:.2f} | {melody[0]:.1%} | {melody[1]:.2f}"
        print(f"| {name} | {float(perplexity(used)):.0f} | {numbers} |", flush=True)
    for what, labels in (("phoneme", phonemes), ("note", notes)):
        counted, seen = (torch.cat([labels[n][labels[n] >= 0] for n in side]) for side in sides)
        share = float(torch.bincount(seen).max() / len(seen))
        uses = torch.bincount(counted).float()
        print(f"commonest {what} of the kept songs: {share:.1%}; entropy {float(perplexity(uses).log2()):.2f} bits")


if __name__ == "__main__":
    with torch.no_grad():
        main()
