"""Which word is sung when: find the head of a model that shows it, and align the songs of a run of ``sample.py``.

    python align.py --find --model=demo_ja --data_jsonl=demo/corpus/songs.jsonl
    python align.py --name=samples/first

The first measures every head that attends from music to lyrics on real songs, prints the best, and writes the choice
beside the model's weights. The second takes that head, writes times of words, and renews the run's page, which then
sings along. ``--help`` tells every option.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import io
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hparams import metadata_hook
from make_models import (
    MODELS,
    family_of,
    find_weights,
    make_labeller,
    make_model,
    make_songbloom,
    parts_of,
    settings_of,
)
from sample import model_files
from songbloom import distributed
from songbloom.audio.files import probe, read_audio
from songbloom.audio.mel import write_png
from songbloom.data.label_tables import UNKNOWN
from songbloom.data.labels import Labeller, Labels
from songbloom.data.metadata import described
from songbloom.data.song_labels import known_of
from songbloom.distributed import say, world
from songbloom.errors import UserError, counted
from songbloom.files import whole_file, write_text
from songbloom.hyperparams import Hyperparams, Knob, Knobs, group
from songbloom.lyrics.lrc import write_lrc
from songbloom.prior.prior import Prior
from songbloom.sampling import alignment, heads, request, songbloom_alignment, words
from songbloom.sampling.alignment import Times
from songbloom.sampling.form import Frames
from songbloom.sampling.heads import Choice, HeadScore, Song
from songbloom.sampling.options import WEIGHTS
from songbloom.sampling.run import LevelData, Run, fingerprint, reopen
from songbloom.sampling.songbloom_writer import Told
from songbloom.training import checkpoint
from songbloom.vqvae.vqvae import VQVAE

ALIGNED = "data_align.pth.tar"
LISTENED = 4  # songs of a run on which the best head is looked for
USAGE = (
    "usage: python align.py --find --model=MODEL --data_jsonl=FILE [--key=value …]\n"
    "       python align.py --name=FOLDER [--key=value …]\n\n"
    "Tells which word is sung when: --find looks once for the part of a model (a head) that shows it, --name then\n"
    "times the words of a run and renews its page (docs/alignment.md)."
)

KNOBS = Knobs(
    group(
        "what",
        "What to do; one of the two",
        find=Knob(
            False,
            "Rank the heads of --model on songs, and write down the best; for models of the Jukebox family (for "
            "others --name looks on the run's own songs)",
        ),
        name=Knob("", "Folder of a run of sample.py: find when its words are sung"),
    ),
    group(
        "find",
        "With --find; songs come from --data_jsonl or --audio_files_dir",
        model=Knob("", "Model, a name in MODELS of make_models.py (python make_models.py lists them)"),
        data_jsonl=Knob(
            "", "Songs: one JSON object a line, with lyrics and, if they are known, times of phrases or words"
        ),
        audio_files_dir=Knob("", "Songs: a folder, with a JSON file of lyrics beside each"),
        get_metadata=Knob("", "Function that knows artist, genre and lyrics of a song, as in training"),
        songs=Knob(8, "Songs to measure on, the first with lyrics", minimum=1),
        seconds=Knob(60.0, "How much of each song, from its beginning", minimum=0.1),
        show=Knob(12, "Heads to print", minimum=1),
    ),
    group(
        "how",
        "How",
        layer=Knob(None, "With --name: this layer, whatever was found", kind="int", minimum=0),
        head=Knob(None, "With --name: this head of it", kind="int", minimum=0),
        hop_fraction=Knob(
            None,
            "How far a window moves on, as a share of the context; None: that of the run, with --find .25",
            kind="float",
        ),
        precision=Knob(
            "",
            "Arithmetic of the prior; empty: that of the run, with --find fp32",
            choices=("", "fp32", "bf16", "fp16"),
        ),
        device=Knob("", "Where to compute: cuda, mps or cpu; empty: the best there is"),
    ),
    group(
        "files",
        "Where the model's weights are, as for sample.py; with --name they are those of the run unless given",
        **WEIGHTS,
        label_tables=Knob("", "Folder with the id tables of artists and genres, for weights that come without"),
    ),
    group("command", "The command itself", help=Knob(False, "Print this, and stop")),
)


def main() -> int:
    options = command_line(sys.argv[1:])
    if options.help:
        say(KNOBS.help(USAGE).rstrip())
        return 0
    distributed.start(options.device or None)
    if options.find:
        find(options)
    else:
        align(options)
    return 0


def command_line(arguments: Sequence[str]) -> Hyperparams:
    """The options, defaults filled in.

    Raises:
        UserError: whatever a person mistyped or left out, in one line.
    """
    options = KNOBS.merge({}, "", KNOBS.parse(arguments))
    if options.help:
        return options
    if bool(options.find) == bool(options.name):
        raise UserError("give --find with --model and songs, or --name with the folder of a run; --help tells more")
    if options.find:
        if not options.model:
            raise UserError(f"--model is missing: give one of {', '.join(MODELS)}")
        parts_of(options.model)
        if options.layer is not None or options.head is not None:
            raise UserError("--layer and --head choose a head by hand, for --name; --find measures them all")
    elif (options.layer is None) != (options.head is None):
        raise UserError("--layer and --head belong together: give both or neither")
    if options.hop_fraction is not None and not 0 < options.hop_fraction <= 1:
        raise UserError(f"--hop_fraction={options.hop_fraction:g}: a window moves on by more than 0 and at most 1")
    return options


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The top of a model: what is needed to look at its lyrics.

    Attributes:
        name: of the model.
        vqvae, prior: on their device.
        labeller: makes the prior's labels.
        settings: of the prior.
        weights: the prior's file.
    """

    name: str
    vqvae: VQVAE
    prior: Prior
    labeller: Labeller
    settings: Hyperparams
    weights: Path


def load(options: Hyperparams) -> Model:
    """The codec and the top prior that the options of this program, or of ``sample.py``, name.

    Raises:
        UserError: they cannot be loaded, or read no lyrics.
    """
    if family_of(options.model) == "songbloom":
        raise UserError(
            f"--find knows models of the Jukebox family; for {options.model!r} the head is found on the songs of a "
            "run: give --name=FOLDER"
        )
    overrides, checkpoints = model_files(options)
    if options.get("label_tables"):
        overrides["label_tables"] = options.label_tables
    parts = parts_of(options.model)
    top = len(parts) - 2
    find_weights(options.model, overrides, [top], checkpoints=checkpoints, download=False)
    _, (sizes,) = make_model(options.model, "meta", overrides, [top], checkpoints=checkpoints)
    if not sizes.lyric_heads():
        raise UserError(
            f"--model={options.model}: its top prior {parts[-1]} reads no lyrics, so nothing can be aligned"
        )
    found = find_weights(options.model, overrides, [top], checkpoints=checkpoints)
    files = {name: str(path) for name, path in found.items()}
    vqvae, (prior,) = make_model(options.model, world().device, overrides, [top], checkpoints=files)
    settings = settings_of(options.model, parts[-1], overrides, checkpoints=files)
    labeller = make_labeller(settings, prior)
    if labeller is None or not labeller.reads_lyrics:
        raise UserError(
            f"--model={options.model}: its top prior {parts[-1]} reads no lyrics, so nothing can be aligned"
        )
    return Model(options.model, vqvae, prior, labeller, settings, found[parts[-1]])


# --- finding --------------------------------------------------------------------------------------------------------


def find(options: Hyperparams) -> list[HeadScore]:
    """Rank the heads of a model, print them and write the best one down; the best first."""
    hook = metadata_hook(options.get_metadata)
    listed = described(options.audio_files_dir or None, options.data_jsonl or None, hook)
    model = load(options)
    prior, rate = model.prior, model.vqvae.sample_rate
    songs = list(itertools.islice(usable(listed, model, options.seconds), options.songs))
    if not songs:
        raise UserError(
            f"none of {counted(len(listed), 'song')} has lyrics that this model can read: see the notes above"
        )
    timed = sum(song.times is not None for song in songs)
    wanted = prior.lyric_heads()
    length = sum(len(song.codes) for song in songs) * prior.hop_length / rate
    say(
        f"{counted(len(wanted), 'head')} on {counted(len(songs), 'song')} ({length:.0f} s), {timed} "
        "with times of their words"
    )
    hop = max(1, int((options.hop_fraction or 0.25) * prior.n_ctx))
    how: dict[str, Any] = {"sample_rate": rate, "hop": hop, "precision": options.precision or "fp32"}
    done = itertools.count(1)

    def measured(song: Song) -> None:
        say(f"measured on song {next(done)} of {len(songs)}: {song.name}")

    ranked = heads.rank(prior, model.labeller, songs, **how, device=world().device, on_song=measured)
    say("the best heads first (docs/alignment.md tells what the columns mean):")
    say(table(ranked[: options.show]))
    best = ranked[0]
    found = {
        "monotony": round(best.monotony, 4),
        "error": None if best.error is None or not np.isfinite(best.error) else round(best.error, 4),
        "right": None if best.right is None else round(best.right, 4),
        "judged": best.judged,
        "songs": len(songs),
    }
    choice = Choice(best.layer, best.head, round(best.shift, 4), fingerprint(model.weights), found)
    if world().is_main:
        written = heads.write_choice(model.weights, choice)
        say(f"the best, layer {best.layer}, head {best.head}, is written to {' and '.join(map(str, written))}")
        if choice.follows is False:
            say(no_head(model.settings))
    return ranked


def no_head(settings: Hyperparams) -> str:
    """What to say where the best head follows nothing."""
    how = "longer" if settings.alignment_loss_fraction else "longer, or with --alignment_loss_fraction"
    return f"note: no head follows the words yet, so times mean little; train {how} (docs/alignment.md)"


def usable(listed: Sequence[Any], model: Model, seconds: float) -> Iterator[Song]:
    """Songs as codes with their labels, one after the other; a note for each that cannot be used."""
    rate, hop = model.vqvae.sample_rate, model.vqvae.hop_lengths[model.prior.level]
    shortest, longest = model.settings.min_duration or 0.0, model.settings.max_duration or np.inf
    for song in listed:
        known = known_of(model.labeller, song)
        if not known.tokens.ids:
            say(f"note: {song.path}: has no lyrics, left out")
            continue
        duration = float(probe(song.path).duration)
        if not shortest <= duration < longest:
            say(
                f"note: {song.path}: is {duration:.1f} s long, but the model knows {shortest:g} to {longest:g} s, left "
                "out"
            )
            continue
        sound = read_audio(song.path, sample_rate=rate, length=int(min(seconds, duration) * rate))
        sound = sound.mean(axis=1, keepdims=True)[: len(sound) // hop * hop]
        if not len(sound):
            say(f"note: {song.path}: is shorter than one code, left out")
            continue
        with torch.no_grad():
            level = model.prior.level
            audio = torch.from_numpy(np.ascontiguousarray(sound, np.float32))[None].to(world().device)
            codes = model.vqvae.encode(audio, start_level=level, end_level=level + 1)[0][0].cpu()
        labels = model.labeller.batch([{"known": known, "total_length": int(duration * rate), "offset": 0}])
        yield Song(str(song.path), codes, labels, known.times)


def table(ranked: Sequence[HeadScore]) -> str:
    """Heads and how good they are, as text."""
    judged = ranked[0].right is not None
    lines = ["layer  head  monotony" + ("  within 0.25 s  median error    shift" if judged else "")]
    for score in ranked:
        line = f"{score.layer:>5}  {score.head:>4}  {score.monotony:>8.3f}"
        if score.right is not None and score.error is not None:
            error = f"{score.error:>10.3f} s" if np.isfinite(score.error) else f"{'not found':>12}"
            line += f"  {100 * score.right:>11.1f} %  {error}  {score.shift:>+6.3f} s"
        lines.append(line)
    return "\n".join(lines)


# --- aligning a run -------------------------------------------------------------------------------------------------


def align(options: Hyperparams) -> Path:
    """Find when the words of a run are sung, and write them and the page.

    Returns:
        The page.

    Raises:
        UserError: the run cannot be aligned; there are several ranks, which would hold its folder against each other.
    """
    if world().size > 1:
        raise UserError("align.py --name works in one process: start it without mpiexec")
    folder = Path(options.name)
    run, levels = reopen(folder)
    sampled = run_options(run, options)
    if family_of(sampled.model) == "songbloom":
        return align_songs(options, sampled, run, levels[min(levels)])
    model = load(sampled)
    top = model.prior.level
    finest = min(levels)
    data = levels[finest]
    labels = labels_of(data, top, folder)
    choice = chosen(options, model)
    if choice.follows is False:
        say(no_head(model.settings))
    settings = run.settings.get(f"level_{top}", {})
    hop = max(1, int((options.hop_fraction or settings.get("hop_fraction") or 0.25) * model.prior.n_ctx))
    precision = options.precision or settings.get("precision") or "fp32"
    found = []
    for index, codes in enumerate(data.codes[top]):
        one = Labels(labels.y[index : index + 1], labels.infos[index : index + 1])
        how: dict[str, Any] = {"hop": hop, "precision": precision, "device": world().device}
        wanted = [(choice.layer, choice.head)]
        _, matrix = next(heads.matrices(model.prior, model.labeller, codes, one, wanted, **how))
        found.append(torch.from_numpy(matrix))
        if world().is_main:
            seconds = model.prior.hop_length / model.vqvae.sample_rate
            times = alignment.token_times(matrix, seconds, shift=choice.shift)
            write_item(folder, index, matrix, times, labels.infos[index], choice, seconds)
        say(f"timed item {index}, {index + 1} of {len(data.codes[top])}")
    if world().is_main:
        checkpoint.save(run.level_folder(finest) / ALIGNED, {**data.plain(), "alignments": found})
        run.open()  # reads the pages anew
        run.write_pages()
        say(f"listen: {folder / 'index.html'}")
    return folder / "index.html"


def align_songs(options: Hyperparams, sampled: Hyperparams, run: Run, data: LevelData) -> Path:
    """The same for a run of the SongBloom family; without a head that is given or known, the best is found on it.

    Returns:
        The page.

    Raises:
        UserError: the songs were sampled without words, or the model has no such head.
    """
    overrides, checkpoints = model_files(sampled)
    files = {name: str(path) for name, path in find_weights(sampled.model, overrides, checkpoints=checkpoints).items()}
    codec, prior = make_songbloom(sampled.model, world().device, overrides, checkpoints=files)
    infos = (data.labels[0] or {}).get("info") or []
    told = [Told(tuple(info.get("full_tokens") or ()), info.get("prompt")) for info in infos]
    if not any(each.ids for each in told):
        raise UserError(f"{run.folder}: was sampled without lyrics: give sample.py --lyrics or --lyrics_file")
    sounding = Frames(prior.config.eos).sounding
    worded = [item for item, each in enumerate(told) if each.ids and sounding(data.codes[1][item])]
    if not worded:
        raise UserError(
            f"{run.folder}: its songs ended before a first patch, so there is nothing to time: give sample.py "
            "--min_length_in_seconds"
        )
    seconds = codec.hop_lengths[0] / codec.sample_rate
    if options.layer is not None and options.head is not None:
        choice = Choice(options.layer, options.head)
    else:
        songs = [(data.codes[0][item], data.codes[1][item], told[item]) for item in worded[:LISTENED]]
        best = songbloom_alignment.rank(prior, songs, longest=int(20 / seconds))[0]
        choice = Choice(best.layer, best.head, found={"monotony": round(best.monotony, 4), "songs": len(songs)})
        say(f"layer {best.layer}, head {best.head}: follows the words best here (monotony {best.monotony:.3f})")
    if (choice.layer, choice.head) not in prior.lyric_heads():
        config = prior.config
        raise UserError(
            f"layer {choice.layer}, head {choice.head}: {sampled.model!r} has layers 0 to {config.prior_depth - 1}, "
            f"each with heads 0 to {config.heads - 1}"
        )
    for number, item in enumerate(worded, start=1):
        song = data.codes[0][item], data.codes[1][item], told[item]
        _, matrix = next(songbloom_alignment.matrices(prior, *song, [(choice.layer, choice.head)]))
        times = songbloom_alignment.token_times(matrix, seconds, shift=choice.shift)
        if world().is_main:
            write_item(run.folder, item, matrix, times, infos[item], choice, seconds)
        say(f"timed item {item}, {number} of {len(worded)}")
    if world().is_main:
        run.open()  # reads the pages anew
        run.write_pages()
        say(f"listen: {run.folder / 'index.html'}")
    return run.folder / "index.html"


def run_options(run: Run, options: Hyperparams) -> Hyperparams:
    """The options that the run was sampled with, those of this command laid over them."""
    sampled = request.command_line(run.argv[1:], MODELS)
    if options.model and options.model != sampled.model:
        raise UserError(
            f"--model={options.model}, but {run.folder} was sampled from {sampled.model}: leave --model out"
        )
    defaults = KNOBS.merge({}, "", {})
    given = ("hps", "restore_vqvae", "restore_prior", "local_logdir", "label_tables")
    return Hyperparams({**sampled, **{key: options[key] for key in given if options[key] != defaults[key]}})


def labels_of(data: LevelData, level: int, folder: Path) -> Labels:
    """What the prior of a level was told of each item."""
    there = data.labels[level]
    if not isinstance(there, Mapping) or not isinstance(there.get("y"), Tensor) or not there.get("info"):
        raise UserError(f"{folder}: was sampled without labels, so no words can be aligned")
    labels = Labels(there["y"].long(), list(there["info"]))
    if not any(info.get("full_tokens") for info in labels.infos):
        raise UserError(f"{folder}: was sampled without lyrics: give sample.py --lyrics or --lyrics_file")
    return labels


def chosen(options: Hyperparams, model: Model) -> Choice:
    """The head to align by: as given, as found by ``--find``, or as published.

    Raises:
        UserError: nothing tells it, or the model has no such head.
    """
    there = heads.read_choice(model.weights)
    settings = model.settings
    if options.layer is not None:
        same = there is not None and (there.layer, there.head) == (options.layer, options.head)
        choice = there if there is not None and same else Choice(options.layer, options.head)
    elif there is not None:
        choice = there
    elif settings.alignment_layer is not None and settings.alignment_head is not None:
        choice = Choice(settings.alignment_layer, settings.alignment_head)
    else:
        raise UserError(
            f"{model.weights}: nothing tells which head shows the words: run python align.py --find "
            f"--model={model.name} --data_jsonl=SONGS once, or give --layer and --head"
        )
    if choice.weights and choice.weights != fingerprint(model.weights):
        say("note: the weights have changed since the head was found; align.py --find would look again")
    if (choice.layer, choice.head) not in model.prior.lyric_heads():
        layers = ", ".join(map(str, sorted({layer for layer, _ in model.prior.lyric_heads()})))
        raise UserError(
            f"layer {choice.layer}, head {choice.head}: no such head attends from music to lyrics; layers {layers} do, "
            f"each with heads 0 to {max(head for _, head in model.prior.lyric_heads())}"
        )
    return choice


def write_item(
    folder: Path,
    index: int,
    matrix: np.ndarray,
    times: Sequence[Times | None],
    info: Mapping[str, Any],
    choice: Choice,
    seconds: float,
) -> None:
    """Write the words of an item with their times, and pictures of what the head looked at; ``seconds`` are a row's."""
    lyrics = words.lyrics_of(info)
    pieces = words.words_of(lyrics, times)
    place = folder / words.FOLDER
    about = {
        "layer": choice.layer,
        "head": choice.head,
        "shift": choice.shift,
        "guessed": choice.follows is False,
        "seconds": round(len(matrix) * seconds, 3),
    }
    words.write_words(place / f"item_{index}.json", pieces, lyrics, times, about)
    timed, artist = words.timed_text(pieces), info.get("artist")
    lrc = place / f"item_{index}.lrc"
    lrc.unlink(missing_ok=True)  # of another head, say
    if timed.spans:
        write_lrc(lrc, timed, enhanced=True, artist=artist if artist and artist != UNKNOWN else "")
    write_png(place / f"item_{index}.png", alignment.colour_picture(matrix))
    # What Jukebox's own page is made of, under its names.
    of_jukebox = place / f"item_{index}"
    write_text(of_jukebox / "align.json", json.dumps(alignment.grey_rows(matrix)))
    write_text(
        of_jukebox / "lyrics.json", json.dumps(alignment.shifted_symbols(lyrics.symbols, matrix), ensure_ascii=False)
    )
    picture = io.BytesIO()
    Image.fromarray(alignment.grey_picture(matrix)).save(picture, format="png")
    with whole_file(of_jukebox / "align.png") as file:
        file.write(picture.getvalue())


if __name__ == "__main__":
    distributed.run(main)
