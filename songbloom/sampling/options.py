"""The options of ``sample.py``: a table, a line or two an option, in the order of ``--help``."""

from __future__ import annotations

from collections.abc import Iterable

from songbloom.hyperparams import Group, Knob, Knobs, group
from songbloom.sampling.memory import LARGEST_BATCH
from songbloom.sampling.songbloom_options import SONGBLOOM
from songbloom.sampling.sound import FORMATS

MODES = ("ancestral", "primed", "continue", "upsample")
A_LEVEL = "one value, or one a level from level 0 (the finest) up"

# Where the weights of a model are that is chosen by name.
WEIGHTS = {
    "hps": Knob("", "Named sets of hyperparameters laid over those of every part of the model, comma separated"),
    "restore_vqvae": Knob(
        "",
        "Checkpoint of the codec; empty: the published one, or logs/SET/checkpoint_latest.pth.tar, SET being its name "
        "in MODELS (python make_models.py lists them)",
    ),
    "restore_vae": Knob("", "Checkpoint of the VAE of a model of the SongBloom family; empty as above"),
    "restore_sketch": Knob(
        "",
        "Sketch codebook of such a model; empty: the one that its prior was trained with, or "
        "logs/SET/sketch_codebook.pt",
    ),
    "restore_prior": Knob("", "Checkpoints of the priors, comma separated from level 0 up; an empty one as above"),
    "local_logdir": Knob("logs", "Folder in which training left its checkpoints"),
    "cache_dir": Knob("", "Folder for published weights; empty: $SONGBLOOM_CACHE, or ~/.cache/songbloom"),
}


def what(models: Iterable[str]) -> Group:
    """What is sampled, from one of these models."""
    return group(
        "what",
        "What is sampled",
        model=Knob("", "Model, a name in MODELS of make_models.py: " + ", ".join(models)),
        name=Knob("", "Folder to write to; its last part is the run's name"),
        mode=Knob(
            "ancestral",
            "Begin from nothing, from sound (primed), or from codes: go on after them (continue) or write the "
            "levels below them (upsample)",
            choices=MODES,
        ),
        n_samples=Knob(
            None, "Items to write; None: as many as --codes_file or --prompts_jsonl has, else 1", kind="int", minimum=1
        ),
        sample_length_in_seconds=Knob(
            None,
            "Length of an item in seconds, cut to whole codes of the top level; None: that of --codes_file with "
            "--mode=upsample or --cut_at, else 24, or the longest that a model of the SongBloom family writes",
            kind="float",
            minimum=0,
        ),
        total_sample_length_in_seconds=Knob(
            None,
            "Length of the song that an item is the beginning of, in seconds, told to models with labels; None: "
            "240, or the item's own length if that is more or 240 is more than the model knows",
            kind="float",
            minimum=0,
        ),
        seed=Knob(0, "Seed; with it an item's number alone decides its random numbers"),
        seeds=Knob(
            None, "One seed an item, as the page of a run states them, such as 1,5,9; None: by --seed", kind="ints"
        ),
        levels=Knob(None, "Levels that the model has; only checked", kind="int", minimum=1),
        levels_to_sample=Knob(
            None, "Levels to write, such as 2 to hear the top first; None: all that the mode writes", kind="ints"
        ),
        sr=Knob(None, "Sample rate of the model in Hz; only checked", kind="int", minimum=1),
        output_format=Knob("wav", "Format of the items' sound files", choices=FORMATS),
        overwrite=Knob(False, "Replace the run that is in the folder, whatever its settings, and begin anew"),
        preview_minutes=Knob(
            None,
            "Write how it sounds so far to FOLDER/preview every so many minutes, between windows (SIGUSR1 asks for "
            "one too); None: never",
            kind="float",
            minimum=0,
        ),
        preview=Knob(
            False, "Only write how the level that is being written, or was broken off, sounds so far, and stop"
        ),
    )


HOW = group(
    "how",
    f"How it is sampled ({A_LEVEL}, such as --temp=.98,.99; precision, quantize and device are of all levels)",
    temp=Knob((0.99,), "Temperature; 0 always takes the likeliest code", kind="floats", minimum=0),
    top_k=Knob((0,), "Draw from the k likeliest codes only; 0: from all", kind="ints", minimum=0),
    top_p=Knob(
        (0.0,),
        "Draw from the likeliest codes of this total probability only; 0: from all",
        kind="floats",
        minimum=0,
    ),
    hop_fraction=Knob(
        None,
        "How far a window moves on, as a share of the context; None: .125 for the top level, .5 for the others",
        kind="floats",
    ),
    max_batch_size=Knob(
        None,
        f"Items sampled together; None: as many as memory has room for, at most {LARGEST_BATCH}",
        kind="ints",
        minimum=1,
    ),
    chunk_size=Knob(None, "Codes of a prompt that are read at once; None: all", kind="ints", minimum=1),
    precision=Knob(
        "", "Arithmetic of the priors; empty: fp16 on CUDA, else fp32", choices=("", "fp32", "bf16", "fp16")
    ),
    quantize=Knob(
        "",
        "Weights of the priors while sampling: int8 keeps them in 8 bits, faster and a little less exact "
        "(docs/benchmarks.md); empty: as --precision says",
        choices=("", "int8"),
    ),
    device=Knob("", "Where to compute: cuda, mps or cpu; empty: the best there is"),
)

BEGINNING = group(
    "beginning",
    "What it begins from",
    audio_file=Knob("", "Sound files for --mode=primed, comma separated; taken again until there are n_samples"),
    codes_file=Knob(
        "",
        "An earlier run, for --mode=continue and --mode=upsample: its folder, or a data.pth.tar of any level",
    ),
    prompt_length_in_seconds=Knob(
        None, "How much of --audio_file or --codes_file is kept, in seconds; None: all", kind="float", minimum=0
    ),
    pick=Knob(None, "Items of --codes_file to keep, such as 0,3; None: all", kind="ints", minimum=0),
    cut_at=Knob(
        None,
        "Keep of --codes_file what comes before this moment, in seconds; None: all",
        kind="float",
        minimum=0,
    ),
    branch=Knob(None, "Ways in which each item of --codes_file goes on; None: one", kind="int", minimum=1),
)

WORDS = group(
    "words",
    "What models with labels are told (docs/labels.md)",
    artist=Knob("", "Who sings"),
    genre=Knob("", "In what style"),
    lyrics=Knob("", "The words of the whole song; \\n begins a new line"),
    lyrics_file=Knob("", "File with the words: text, or text with times (.lrc, .lab, .musicxml)"),
    prompts_jsonl=Knob(
        "",
        "File with one JSON object an item: artist, genre, lyrics or lyrics_file, phrases, prompt_wav, "
        "total_sample_length_in_seconds, seed; what a line lacks is taken from the options above",
    ),
    label_tables=Knob(
        "", "Folder with the id tables of artists and genres, for published models; empty: beside the weights"
    ),
)

FILES = group(
    "files",
    "Where the model's weights are",
    **WEIGHTS,
    lora=Knob("", "Adapters laid over the priors: PATH or PATH:SCALE, comma separated (docs/lora.md)"),
    lora_alpha=Knob(
        None,
        "Alpha of adapters within Lightning checkpoints, which do not say theirs; all others do",
        kind="float",
        minimum=0,
    ),
)

COMMAND = group("command", "The command itself", help=Knob(False, "Print this, and stop"))


def knobs(models: Iterable[str]) -> Knobs:
    """The options of ``sample.py``, which knows models of these names."""
    return Knobs(what(models), HOW, SONGBLOOM, BEGINNING, WORDS, FILES, COMMAND)
