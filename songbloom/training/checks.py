"""Whether the values of a merged configuration fit each other, as far as one can tell without data.

What a model's own configuration refuses is asked of it, so the modules that hold them are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from songbloom.errors import UserError
from songbloom.hyperparams import COMMAND_LINE, DEFAULT_SOURCE, Hyperparams, shown


def check(hps: Mapping[str, Any]) -> None:
    """Whether the values of a merged configuration fit each other, as far as one can tell without data.

    Raises:
        UserError: names the keys that do not fit and what to change.
    """
    levels = hps["levels"]
    for key in ("downs_t", "strides_t", "hvqvae_multipliers"):
        if hps[key] is not None and len(hps[key]) != levels:
            raise UserError(f"levels={levels} but {key}={hps[key]} has {len(hps[key])}: give one value a level")
    sizes = ("multispec_loss_n_fft", "multispec_loss_hop_length", "multispec_loss_window_size")
    if len({len(hps[key]) for key in sizes}) > 1:
        raise UserError(f"{', '.join(sizes)} need equally many values")
    if hps["lora"] or hps["use_lora"]:
        check_lora(hps)
    if hps["lr_use_linear_decay"] and hps["lr_use_cosine_decay"]:
        raise UserError("--lr_use_linear_decay and --lr_use_cosine_decay exclude each other: give one")
    if hps["vae"]:
        check_vae(hps)
    if hps["sketch"]:
        check_sketch(hps)
    elif hps["recover_from"] or hps["recover_tokens"]:
        raise UserError("--recover_from recovers a sketch codebook: add a set of one, such as --vq --hps=sketch_vq")
    if hps["vq"] and hps["prior"]:
        raise UserError("--vq trains the codec and --prior a prior: give one of them")
    if hps["songbloom"]:
        check_songbloom(hps)
    elif hps["prior"]:
        check_prior(hps)
        check_reading(hps)
        if not hps["restore_vqvae"]:
            raise UserError("--prior needs a trained codec: give --restore_vqvae=FILE")
        if hps["labels"] and hps["level"] == hps["levels"] - 1 and hps["max_duration"] is None:
            raise UserError(
                "labels=True tells the prior where in the song it is, and needs the length of the longest song: give "
                "--max_duration=SECONDS (and --min_duration), or --labels=False"
            )


def settle_lora(hps: Hyperparams) -> None:
    """What training adapters means for other values: a prior is trained, and not averaged unless somebody asks.

    Runs are short and adapters begin as nothing, so an average over thousands of steps would be far behind them.
    """
    hps["lora"] = hps["lora"] or hps["use_lora"]
    if hps["lora"]:
        hps["prior"] = True
        if hps.sources.get("ema") == DEFAULT_SOURCE:
            hps["ema"] = False


def without_effect(hps: Hyperparams) -> list[str]:
    """One line for each option of the command line that counts only beside another one, which is not given."""
    told = []
    for switch, instead in (("lora", "all weights are trained"), ("wandb", "TensorBoard alone is written")):
        if hps[switch] or hps.sources.get(switch) == COMMAND_LINE:
            continue
        for key, value in hps.items():
            if key.startswith((f"{switch}_", f"restore_{switch}")) and hps.sources.get(key) == COMMAND_LINE:
                told.append(f"note: --{key}={shown(value)} does nothing without --{switch}: {instead}")
    return told


def check_lora(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that training adapters must pass."""
    if hps["vq"]:
        raise UserError("--lora adapts a prior, and --vq trains a codec: give one of them")
    if not hps["restore_prior"]:
        raise UserError("--lora needs the weights that are adapted: give --restore_prior=FILE")


def check_vae(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a VAE must pass."""
    from songbloom.vae.config import VAEConfig

    VAEConfig.from_hps(hps)
    if hps["prior"]:
        raise UserError("--prior with --vae: a prior models the codes of a VQ-VAE; leave out one of the two")
    if hps["restore_vqvae"]:
        raise UserError("--restore_vqvae with --vae: weights of a VAE are named by --restore_vae")


def check_sketch(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a sketch codebook's training must pass."""
    from songbloom.sketch.builtin import BuiltinConfig
    from songbloom.sketch.training import SketchVQConfig

    SketchVQConfig.from_hps(hps)
    BuiltinConfig.from_hps(hps)
    if hps["prior"] or hps["vae"]:
        other = "--prior" if hps["prior"] else "--vae"
        raise UserError(f"{other} with a sketch codebook's set: a run trains one thing; leave out one of the two")
    if hps["labels"]:
        raise UserError("labels=True: a sketch codebook hears audio alone; --labels=False")
    if hps["ema"]:
        raise UserError("--ema: averaged weights don't fit a codebook that follows the raw ones; leave it out")


def check_songbloom(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a SongBloom prior's training must pass."""
    if not hps["prior"] and not hps["vq"]:
        raise UserError("a SongBloom set trains a prior: add --prior")
    if hps["vq"]:
        raise UserError("--vq trains a codec, and this is a prior's set: --hps=sketch_vq trains a codebook, or --prior")
    if hps["labels"]:
        raise UserError(
            "labels=True: a SongBloom prior reads lyrics and a style prompt, no artist and genre; --labels=False"
        )
    if not hps["data_jsonl"]:
        where = f"; --audio_files_dir={hps['audio_files_dir']} knows no lyrics" if hps["audio_files_dir"] else ""
        raise UserError(f"a SongBloom prior needs songs with lyrics: give --data_jsonl=FILE{where}")
    if hps["require_vq_path"] and not hps["restore_sketch"]:
        raise UserError("--require_vq_path: no codebook is given; add --restore_sketch=FILE (or --muq-vq-path)")
    for key in ("patch_dropout", "condition_dropout", "lyric_dropout", "prompt_dropout"):
        if hps[key] > 1:
            raise UserError(f"{key}={hps[key]:g}: a probability lies between 0 and 1")


def check_prior(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that every prior must pass, in training and in sampling."""
    if hps["level"] >= hps["levels"]:
        raise UserError(
            f"level={hps['level']} does not exist with levels={hps['levels']}: the top is {hps['levels'] - 1}"
        )
    if hps["labels"] and hps["y_bins"] and not (isinstance(hps["y_bins"], tuple) and len(hps["y_bins"]) == 2):
        raise UserError(
            f"labels=True needs y_bins=(genres, artists), not {hps['y_bins']}: give --y_bins=0 to take them from the "
            "data, or --labels=False"
        )


def check_reading(hps: Mapping[str, Any]) -> None:
    """Refuse to train a prior that is given words and has no layer that looks at them: it would never sing one.

    Words that stand before the music (``single_enc_dec``) are read by every layer that looks further back than a row.
    """
    from songbloom.transformer.patterns import ORDERS, AttentionFunction, layer_functions, reading_depth

    depth, order = hps["prior_depth"], hps["attn_order"]
    if not (hps["labels"] and hps["use_tokens"] and hps["n_tokens"]) or hps["single_enc_dec"]:
        return
    if AttentionFunction.ENCODER_DECODER in layer_functions(order, depth):
        return
    first = {each: reading_depth(each) for each in ORDERS}
    known = ", ".join(f"{each} (from prior_depth={least})" for each, least in first.items() if least)
    raise UserError(
        f"use_tokens=True, but none of prior_depth={depth} layers of attn_order={order} reads the words: orders that "
        f"do are {known}; or give --use_tokens=False"
    )
