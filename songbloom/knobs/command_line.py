"""What a training command may say besides the knobs: what it is told about itself, and other trainers' words."""

from __future__ import annotations

from collections.abc import Sequence

from songbloom.hyperparams import Knob, group

# What train.py is told about itself; no part of a configuration.
TRAIN_COMMAND = group(
    "command",
    "The command itself",
    hps=Knob(
        "teeny", "Named sets of hyperparameters, comma separated; a later one wins. The end of this text lists them"
    ),
    print_hps=Knob(False, "Print the merged hyperparameters and where each value came from, and stop"),
    help=Knob(False, "Print this, and stop"),
)

# Names that other trainers of SongBloom give to options: name → (our key, how many of theirs make one of ours, 0: it is
# no number). docs/songbloom_training.md lists them.
OTHER_NAMES: dict[str, tuple[str, float]] = {
    "data_dir": ("audio_files_dir", 0),
    "output": ("sketch_output", 0),
    "output_path": ("sketch_output", 0),
    "muq_model_id": ("sketch_muq_path", 0),
    "model_id": ("sketch_muq_path", 0),
    "embedding_dim": ("sketch_width", 0),
    "codebook_size": ("sketch_codes", 0),
    "decay": ("sketch_decay", 0),
    "commitment_weight": ("sketch_commit", 0),
    "chunk_size": ("sample_length_in_seconds", 25),
    "min_frames": ("min_duration", 25),
    "save_every": ("save_epochs", 0),
    "batch_size": ("bs", 0),
    "accumulate_grad_batches": ("iters_before_update", 0),
    "max_epochs": ("epochs", 0),
    "max_steps": ("train_steps", 0),
    "warmup_steps": ("lr_warmup", 0),
    "lambda_flow": ("flow_loss_fraction", 0),
    "h_dropout": ("patch_dropout", 0),
    "num_workers": ("nworkers", 0),
    "output_dir": ("local_logdir", 0),
    "resume_from": ("restore_prior", 0),
    "muq_vq_path": ("restore_sketch", 0),
    "muq_codebook_size": ("l_bins", 0),
    "muq_vq_decay": ("sketch_decay", 0),
    "muq_commitment_weight": ("sketch_commit", 0),
    "muq_embed_dim": ("sketch_width", 0),
    "prompt_len": ("prompt_seconds", 0),
    "model_name": ("hps", 0),
    "steps": ("train_steps", 0),
}

_OTHER_VALUES: dict[str, dict[str, str]] = {
    "precision": {
        **{"32": "fp32", "32-true": "fp32", "bf16-mixed": "bf16", "bf16-true": "bf16"},
        **{"16": "fp16", "16-mixed": "fp16", "16-true": "fp16"},
    },
    "hps": {
        "songbloom_full_150s": "songbloom_150s",
        "songbloom_full_150s_dpo": "songbloom_150s_dpo",
        "songbloom_full_240s": "songbloom_240s",
    },
}


def renamed(arguments: Sequence[str]) -> list[str]:
    """A command line with our keys in place of :data:`OTHER_NAMES`; frames become seconds."""
    made, factor = [], 0.0
    for word in arguments:
        name, equals, text = word.removeprefix("--").partition("=")
        key, its_factor = OTHER_NAMES.get(name.replace("-", "_"), ("", 0.0)) if word.startswith("--") else ("", 0.0)
        if not key and word.startswith("--"):
            made.append(word)
            factor = 0.0
        elif not key:
            made.append(_scaled(word, factor))
            factor = 0.0
        else:
            made.append(f"--{key}" + (f"={_scaled(text, its_factor)}" if equals else ""))
            factor = 0.0 if equals else its_factor
    return made


def with_our_values(arguments: Sequence[str]) -> list[str]:
    """A command line with our words in place of other trainers' for precisions and models."""
    made: list[str] = []
    key = ""
    for word in arguments:
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            key = name.replace("-", "_")
            known = _OTHER_VALUES.get(key, {})
            made.append(f"--{name}={known.get(text, text)}" if equals else word)
        else:
            made.append(_OTHER_VALUES.get(key, {}).get(word, word))
            key = ""
    return made


def _scaled(text: str, factor: float) -> str:
    """A number divided by ``factor``, if that isn't 0; what is no number stays, to be told by the parser."""
    try:
        return f"{float(text) / factor:.10g}" if factor else text
    except ValueError:
        return text
