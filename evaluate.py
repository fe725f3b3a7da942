"""How songs sound, in numbers: is there a voice, which phonemes, how high, how near to a reference, what a codec loses.

    python evaluate.py --data_jsonl=songs.jsonl
    python evaluate.py --audio_files_dir=samples --lyrics_file=words.txt --reference_dir=voice --json=numbers.json
    python evaluate.py --name=samples/first
    python evaluate.py --data_jsonl=songs.jsonl --model=demo_ja

``--help`` tells every option; docs/evaluation.md what the numbers mean and how far they can be trusted.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from make_models import family_of, find_weights, make_model, make_vae, make_vqvae, parts_of, settings_of
from songbloom import distributed
from songbloom.audio.files import AudioError, read_audio, write_wav
from songbloom.data.manifest import Song, songs_from
from songbloom.distributed import say, world
from songbloom.errors import UserError, counted, reason
from songbloom.evaluation import distances
from songbloom.evaluation.embeddings import REGISTRY, Embedding, make_embedding
from songbloom.evaluation.listening import Item, Listened, compare, listen, pitch_distance, summary
from songbloom.evaluation.phonemes import CHANGE
from songbloom.evaluation.recogniser import Recogniser, load_recogniser
from songbloom.files import write_text
from songbloom.hyperparams import Hyperparams, Knob, Knobs, group
from songbloom.sampling.run import RECORD, reopen
from songbloom.training import checkpoint

USAGE = (
    "usage: python evaluate.py --data_jsonl=FILE [--key=value …]\n"
    "       python evaluate.py --audio_files_dir=FOLDER [--key=value …]\n"
    "       python evaluate.py --name=FOLDER [--key=value …]\n\n"
    "Listens to songs and tells in numbers how they sound: the voice, the words that are heard, the pitch, how near\n"
    "they are to others, and what a codec loses (docs/evaluation.md)."
)
KNOBS = Knobs(
    group(
        "sounds",
        "What to listen to; one of the first three",
        data_jsonl=Knob("", "Songs: one JSON object a line, with audio_path and lyrics"),
        audio_files_dir=Knob("", "Songs: a folder; words in NAME.json (lyrics) or NAME.txt beside NAME.wav"),
        name=Knob("", "Songs: a run of sample.py, with the words that it was asked for"),
        level=Knob(None, "With --name: the level to listen to; None: the finest that is there", kind="int", minimum=0),
        lyrics_file=Knob("", "Words of every song that has none of its own"),
        songs=Knob(0, "Songs to listen to, the first; 0: all", minimum=0),
    ),
    group(
        "reference",
        "What to compare them with",
        reference_dir=Knob("", "Folder, or JSONL file, of songs that these should sound like"),
        embeddings=Knob(
            "recogniser,log_mel,voice", f"What they are compared by, comma separated: {', '.join(REGISTRY)}"
        ),
        muq_path=Knob("", "Folder with MuQ's weights, for the embedding muq"),
    ),
    group(
        "codec",
        "Send the songs through a codec, and tell what it loses; with --model or --codec",
        model=Knob(
            "", "Model whose codec it is, a name in MODELS of make_models.py (python make_models.py lists them)"
        ),
        codec=Knob("", "Or the codec's own file (a checkpoint of a VQ-VAE or VAE trained here)"),
        codec_level=Knob(0, "Level of a VQ-VAE that is decoded", minimum=0),
        codec_seconds=Knob(30.0, "How much of each song goes through, from its beginning", minimum=0.5),
        local_logdir=Knob("logs", "Folder with the training runs whose weights models have"),
    ),
    group(
        "how",
        "How",
        recogniser=Knob("", "Recogniser's weights (.npz); empty: the shipped ones"),
        change_cost=Knob(
            CHANGE,
            "What going from one phoneme to another costs when they are read off; 0: each frame has its likeliest",
            minimum=0,
        ),
        pitch=Knob(True, "Also tell how high the voice sings"),
        device=Knob("", "Where to compute: cuda, mps or cpu; empty: the best there is"),
        json=Knob("", "Write all numbers to this file; - prints them instead of text"),
        help=Knob(False, "Print this, and stop"),
    ),
)


def main() -> int:
    options = command_line(sys.argv[1:])
    if options.help:
        say(KNOBS.help(USAGE).rstrip())
        return 0
    distributed.start(options.device or None)
    if world().is_main:
        told = evaluate(options)
        content = json.dumps(_finite(told), ensure_ascii=False, indent=1)
        say(content if options.json == "-" else text_of(told))
        if options.json not in ("", "-"):
            write_text(options.json, content + "\n")
    return 0


def command_line(arguments: Sequence[str]) -> Hyperparams:
    """The options, defaults filled in.

    Raises:
        UserError: whatever a person mistyped or left out, in one line.
    """
    options = KNOBS.merge({}, "", KNOBS.parse(arguments))
    if options.help:
        return options
    sources = [key for key in ("data_jsonl", "audio_files_dir", "name") if options[key]]
    if len(sources) != 1:
        given = " and ".join(f"--{key}" for key in sources) or "none"
        raise UserError(f"give one of --data_jsonl, --audio_files_dir and --name, not {given}; --help tells more")
    if options.level is not None and not options.name:
        raise UserError("--level belongs to --name, the folder of a run")
    if options.model and options.codec:
        raise UserError("--model and --codec both name a codec: give one of them")
    if options.model:
        parts_of(options.model)
    return options


def evaluate(options: Hyperparams) -> dict[str, Any]:
    """Every number, as plain data.

    Raises:
        UserError: nothing to listen to, or something cannot be read.
    """
    recogniser = load_recogniser(options.recogniser or None, world().device)
    names = dict.fromkeys(Knobs.split_names(options.embeddings)) if options.reference_dir else ()
    use = [make_embedding(name, recogniser, muq_path=options.muq_path) for name in names]
    items = items_of(options)
    through = codec_of(options)
    left_out: list[str] = []
    listened = hear_all(items, recogniser, use, options, left_out)
    if through is not None:
        function, rate = through
        listened = [replace(one, codec=lost(one.item, function, rate, recogniser, options)) for one in listened]
    told: dict[str, Any] = {
        "recogniser": recogniser.name,
        "items": [one.plain() for one in listened],
        "all": summary(listened),
        "left_out": left_out,
    }
    if options.reference_dir:
        reference = hear_all(reference_items(options.reference_dir), recogniser, use, options, left_out)
        told["reference"] = {
            "all": summary(reference),
            "embeddings": compare(listened, reference, use),
            "pitch": pitch_distance(listened, reference),
        }
    return told


def hear_all(
    items: Sequence[Item],
    recogniser: Recogniser,
    use: Sequence[Embedding],
    options: Hyperparams,
    left_out: list[str],
) -> list[Listened]:
    """Listen to items, with a line of progress on a terminal; ``left_out`` is told of files that cannot be read.

    Raises:
        UserError: none of them can be.
    """
    heard = []
    broken: list[str] = []
    for index, item in enumerate(items):
        if sys.stderr.isatty():
            print(f"\r\x1b[2K[{index + 1}/{len(items)}] {item.name[-60:]}", end="", file=sys.stderr, flush=True)
        try:
            heard.append(listen(item, recogniser, use=use, change=options.change_cost, with_pitch=options.pitch))
        except AudioError as error:
            broken.append(str(error))
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    if not heard:
        raise UserError(broken[0])
    left_out += broken
    return heard


# --- what to listen to ----------------------------------------------------------------------------------------------


def items_of(options: Hyperparams) -> list[Item]:
    """The songs that the options name, with their words."""
    if options.name or (options.audio_files_dir and (Path(options.audio_files_dir) / RECORD).is_file()):
        items = items_of_run(Path(options.name or options.audio_files_dir), options.level)
    else:
        items = _items(
            songs_from(
                audio_files_dir=options.audio_files_dir or None, data_jsonl=options.data_jsonl or None, sidecars=True
            )
        )
    if options.lyrics_file:
        try:
            words = Path(options.lyrics_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--lyrics_file={options.lyrics_file}: cannot be read as text ({reason(error)})") from error
        items = [item if item.lyrics else replace(item, lyrics=words) for item in items]
    return items[: options.songs] if options.songs else items


def reference_items(path: str) -> list[Item]:
    """The songs of a reference: a folder or a JSONL file."""
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"--reference_dir={path}: no such file or folder")
    if place.is_dir() and (place / RECORD).is_file():
        return items_of_run(place, None)
    if place.is_dir():
        return _items(songs_from(audio_files_dir=place, sidecars=True))
    return _items(songs_from(data_jsonl=place))


def _items(songs: Sequence[Song]) -> list[Item]:
    made = []
    for song in songs:
        lyrics, beside = song.lyrics, song.path.with_suffix(".txt")
        if not lyrics and beside.is_file():
            try:
                lyrics = beside.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{beside}: cannot be read as text ({reason(error)})") from error
        language = song.extra.get("language")
        name = song.path.name if song.idx is None else f"{song.idx}: {song.path.name}"
        made.append(Item(song.path, name, lyrics, str(language) if language else None))
    return made


def items_of_run(folder: Path, level: int | None) -> list[Item]:
    """The items of a run of ``sample.py``, with the words that each was asked for.

    Raises:
        UserError: no such run, or the level is not written.
    """
    run, levels = reopen(folder)
    chosen = min(levels) if level is None else level
    if chosen not in levels:
        raise UserError(f"{folder}: level {chosen} is not written; there are {', '.join(map(str, sorted(levels)))}")
    words: list[str | None] = []
    for labels in levels[chosen].labels:
        infos = labels.get("info") if isinstance(labels, dict) else None
        words = words or [info.get("lyrics") or None for info in infos or () if isinstance(info, dict)]
    made = []
    sounds = sorted(run.level_folder(chosen).glob("item_*.wav"), key=lambda path: (len(path.name), path.name))
    for path in sounds:
        number = path.stem.removeprefix("item_")
        index = int(number) if number.isdigit() else -1
        made.append(Item(path, path.name, words[index] if 0 <= index < len(words) else None))
    if not made:
        raise UserError(f"{run.level_folder(chosen)}: no item_N.wav to listen to")
    return made


# --- codecs ---------------------------------------------------------------------------------------------------------


def codec_of(options: Hyperparams) -> tuple[Callable[[np.ndarray], np.ndarray], int] | None:
    """What sends sound through the codec that the options name, and its sample rate; None if they name none."""
    if options.codec:
        codec = codec_from(options.codec)
    elif options.model:
        codec = codec_of_model(options.model, {"local_logdir": options.local_logdir})
    else:
        return None
    levels = getattr(codec, "levels", 1)
    if options.codec_level >= levels:
        raise UserError(f"--codec_level={options.codec_level}: this codec has levels 0 to {levels - 1}")
    return distances.reconstruction(codec, options.codec_level), codec.sample_rate


def codec_of_model(model: str, overrides: dict[str, Any]) -> Any:
    """The codec of a model, restored."""
    weights = find_weights(model, overrides, [])
    if family_of(model) == "songbloom":
        files = {name: str(path) for name, path in weights.items()}
        return make_vae(settings_of(model, parts_of(model)[0], overrides, checkpoints=files), world().device)
    return make_model(model, world().device, overrides, [])[0]


def codec_from(path: str) -> Any:
    """The codec of a checkpoint."""
    content = checkpoint.load(path)
    kind, saved = content.get("kind"), content.get("hps")
    if kind not in ("vqvae", "vae") or not isinstance(saved, dict):
        raise UserError(f"{path}: holds {kind or 'no'} codec trained here; give a checkpoint of a VQ-VAE or a VAE")
    hps = Hyperparams({**saved, "train": False})
    hps["restore_vqvae" if kind == "vqvae" else "restore_vae"] = path
    return (make_vqvae if kind == "vqvae" else make_vae)(hps, world().device)


def lost(
    item: Item, through: Callable[[np.ndarray], np.ndarray], rate: int, recogniser: Recogniser, options: Hyperparams
) -> dict[str, float]:
    """Distances of a song from what comes out of the codec, and what the recogniser still hears in that.

    The latter only if the whole song goes through: ``voice_presence``, and ``per`` and ``per_shuffled`` of words. No
    model that writes codes or latents can be understood better.
    """
    sound = read_audio(item.path, sample_rate=rate, length=round(options.codec_seconds * rate))
    with torch.no_grad():
        made = through(sound)
    try:
        told = distances.compare(sound, made, rate).plain()
    except ValueError as error:
        raise UserError(f"{item.path}: cannot be sent through the codec ({error})") from error
    if len(sound) == round(options.codec_seconds * rate):
        return told
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "through.wav"
        write_wav(path, made, rate)
        heard = listen(replace(item, path=path), recogniser, change=options.change_cost, with_pitch=False)
    told["voice_presence"] = heard.voice_presence
    if heard.score is not None:
        told |= {"per": heard.score.per, "per_shuffled": heard.score.per_shuffled}
    return told


# --- text -----------------------------------------------------------------------------------------------------------


def _finite(value: Any) -> Any:
    """JSON has no infinity: None stands for it."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if value is None else form.format(value)


def text_of(told: dict[str, Any]) -> str:
    """The numbers for people."""
    rows = [*told["items"], {"name": "all", **told["all"]}]
    coded = any(row.get("codec") for row in rows)
    lines = [f"recogniser {told['recogniser']}; what the columns mean: docs/evaluation.md"]
    head = "  voice   PER  shuffled  part  shuffled   pitch (low – high)"
    lines.append(head + ("   STFT  log-mel dB  SI-SDR dB  PER after" if coded else "") + "   song")
    for row in rows:
        pitch = row["pitch"]
        span = f"{pitch['median']:5.1f} ({pitch['low']:4.1f} – {pitch['high']:4.1f})" if pitch else "–"
        line = f"{100 * row['voice_presence']:5.0f} %  {_number(row['per']):>4}  {_number(row['per_shuffled']):>8}"
        line += f"  {_number(row['per_part']):>4}  {_number(row['per_part_shuffled']):>8}   {span:<18}"
        if coded:
            lost = row.get("codec")
            parts = [(lost or {}).get(name) for name in ("multi_resolution_stft", "log_mel", "si_sdr", "per")]
            line += "".join(f"  {_number(part):>{width}}" for part, width in zip(parts, (5, 10, 9, 9), strict=True))
        lines.append(f"{line}   {row['name']}" + (f" ({row['note']})" if row.get("note") else ""))
    lines += [f"left out: {each}" for each in told["left_out"]]
    lines += [*verdicts(told["all"], told["items"]), *margin_lines(told["items"]), *reference_lines(told)]
    return "\n".join(lines)


def verdicts(told: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers of all songs ``told``, and of each in ``rows``, say in words."""
    lines = []
    silent = told["items_without_voice"]
    if silent:
        lines.append(f"no vocals: in {silent} of {counted(told['items'], 'song')} no voice is heard")
    if told["per"] is not None:
        better = told["per"] < told["per_shuffled"] - 0.05 or (
            told["per_part"] is not None and told["per_part"] < told["per_part_shuffled"] - 0.05
        )
        mean, error = margin_of(rows) or (0.0, 0.0)
        if not better:
            lines.append("the words are not heard: shuffled lyrics fit as well")
        elif mean < 3 * error:
            lines.append("the words seem to be heard, but so few songs may be luck: give more of them")
        else:
            lines.append("the words are heard better than chance")
    return lines


def margin_of(rows: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Mean over songs of the shuffled lyrics' phoneme error rate less the words' own, and its standard error."""
    margins = _margins(rows)
    if len(margins) < 2:
        return None
    return float(np.mean(margins)), float(np.std(margins, ddof=1) / np.sqrt(len(margins)))


def _margins(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["per_shuffled"] - row["per"] for row in rows if row.get("per") is not None]


def margin_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """By how much the words of each song are heard better than shuffled ones, with what chance leaves open.

    The standard error of the mean tells one song's luck from what holds for all of them; two songs are the fewest.
    """
    lines = []
    for where, given in (("", rows), ("after the codec, ", [row.get("codec") or {} for row in rows])):
        found = margin_of(given)
        if found is not None:
            margins = _margins(given)
            lines.append(
                f"  {where}shuffled less PER: {found[0]:.3f} ± {found[1]:.3f} (mean and its standard error over"
                f" {len(margins)} songs, {sum(margin > 0 for margin in margins)} of them above 0)"
            )
    return lines


def reference_lines(told: dict[str, Any]) -> list[str]:
    """Distances to the reference, in words."""
    if "reference" not in told:
        return []
    lines = [f"against the reference ({counted(told['reference']['all']['items'], 'song')})"]
    for name, found in told["reference"]["embeddings"].items():
        far = found["frechet"]
        vectors = f"{found['vectors']} and {found['reference_vectors']} vectors"
        said = (
            f"{far:.4g} ({vectors})" if far is not None else f"needs {found['fewest']} vectors on each side: {vectors}"
        )
        lines.append(f"  {name}: Fréchet distance {said}")
        own = _number(found["distance_within_reference"], "{:.3f}")
        lines.append(f"  {name}: distance {_number(found['distance'], '{:.3f}')}; the reference's own songs {own}")
    pitch = told["reference"]["pitch"]
    if pitch:
        lines.append(
            f"  pitch: median {pitch['median']:+.1f} semitones, low {pitch['low']:+.1f}, high {pitch['high']:+.1f}, "
            f"range {pitch['range']:+.1f}"
        )
    return lines


if __name__ == "__main__":
    distributed.run(main)
