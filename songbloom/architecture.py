"""Which hyperparameters decide what a model is, and in which of them a checkpoint differs from what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from songbloom.hyperparams import shown, with_tuples

# Keys that decide the names, shapes or meaning of a checkpoint's tensors. A prior's also hold those of the codec whose
# codes it models.
CODEC_ARCHITECTURE = (
    *("sr", "levels", "downs_t", "strides_t", "hvqvae_multipliers", "emb_width", "l_bins", "width", "depth", "m_conv"),
    *("dilation_growth_rate", "dilation_cycle", "vqvae_reverse_decoder_dilation", "use_bottleneck"),
)
VAE_ARCHITECTURE = (
    *("sr", "vae_channels", "vae_width", "vae_multipliers", "vae_strides", "vae_dilations", "vae_latent_dim"),
    "vae_final_tanh",
)
SKETCH_ARCHITECTURE = (
    *("sketch_features", "sketch_muq_layer", "sketch_codes", "sketch_distance", "sketch_normalisation"),
    *("sketch_decoder", "sketch_sr", "sketch_bands", "sketch_cepstra", "sketch_words", "sketch_n_fft"),
    *("sketch_pitch_n_fft", "sketch_lowest_pitch", "sketch_octaves", "sketch_hidden", "sketch_dilations"),
)
LORA_ARCHITECTURE = ("lora_rank", "lora_alpha", "lora_target_modules", "lora_train_all", "lora_train_rows")
DISCRIMINATOR_ARCHITECTURE = ("vae_discriminator_width", "vae_discriminator_n_fft")
PRIOR_ARCHITECTURE = (
    *("sr", "levels", "downs_t", "strides_t", "l_bins", "level", "n_ctx", "prior_width", "prior_depth", "heads"),
    *("attn_order", "blocks", "spread", "m_attn", "m_mlp", "res_scale", "merged_decoder", "labels", "use_tokens"),
)
SONGBLOOM_ARCHITECTURE = (
    *(
        "songbloom",
        "sr",
        "vae_strides",
        "vae_latent_dim",
        "l_bins",
        "patch_size",
        "prior_width",
        "heads",
        "prior_depth",
    ),
    *("dit_depth", "m_mlp", "rotary_base", "dit_rotary_base", "time_conditioning", "time_features"),
    *("diffusion_objective", "lyric_tokens", "sentences", "prompt_frames", "lyrics_vocab"),
)
_CONDITIONER = (
    *("cond_width", "cond_depth", "cond_m_conv", "cond_dilation_growth_rate", "cond_dilation_cycle"),
    "cond_res_scale",
)
_LABELS = ("y_bins", "t_bins", "max_bow_genre_size", "labels_v3", "min_duration", "max_duration")
_LYRICS = ("n_tokens", "n_vocab", "lyrics_vocab", "single_enc_dec", "copy_input")
# Values that stand for "as the data have it": beside them a checkpoint may have any.
_DERIVED: dict[str, Any] = {"y_bins": 0, "n_vocab": 0, "max_bow_genre_size": None, "lyrics_vocab": ""}
_LYRICS_ENCODER = (
    *("prime_width", "prime_depth", "prime_heads", "prime_attn_order", "prime_blocks", "prime_spread"),
    *("prime_m_attn", "prime_m_mlp", "prime_res_scale"),
)


def architecture_keys(kind: str, hps: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that decide the architecture of a ``"vqvae"``, ``"vae"``, ``"discriminator"`` or ``"prior"``.

    What a model does not have does not count: conditioner keys on the top level, label keys without labels, lyric
    keys without lyrics.
    """
    if kind == "vqvae":
        return CODEC_ARCHITECTURE
    if kind == "vae":
        return VAE_ARCHITECTURE
    if kind == "sketch":
        return SKETCH_ARCHITECTURE
    if kind == "discriminator":
        return DISCRIMINATOR_ARCHITECTURE
    if kind == "lora":
        return LORA_ARCHITECTURE + architecture_keys("prior", hps)
    if hps.get("songbloom"):
        return SONGBLOOM_ARCHITECTURE
    keys: tuple[str, ...] = PRIOR_ARCHITECTURE
    if hps.get("level", 0) < hps.get("levels", 1) - 1:
        keys += _CONDITIONER
    if hps.get("labels"):
        keys += _LABELS
    if (hps.get("use_tokens") or hps.get("single_enc_dec")) and hps.get("n_tokens"):
        keys += _LYRICS if hps.get("single_enc_dec") else _LYRICS + _LYRICS_ENCODER
    return keys


def compare_architecture(saved: Mapping[str, Any], current: Mapping[str, Any], kind: str) -> list[str]:
    """Every architecture key in which a saved configuration differs from the current one, as words.

    Args:
        saved: the configuration in or beside a checkpoint; keys that it lacks are not compared.
        current: the configuration that was asked for.
        kind: ``"vqvae"`` or ``"prior"``.

    Returns:
        Lines such as ``width is 32 in the checkpoint, 64 asked for``; empty when they agree.
    """
    keys = dict.fromkeys(architecture_keys(kind, saved) + architecture_keys(kind, current))
    return [
        f"{key} is {shown(_told(key, saved))} in the checkpoint, {shown(_told(key, current))} asked for"
        for key in keys
        if key in saved and key in current and _comparable(key, saved) != _comparable(key, current)
        if not (key in _DERIVED and _DERIVED[key] in (saved[key], current[key]))
    ]


def in_words(mismatches: Sequence[str], most: int = 3) -> str:
    """Mismatches for one line: the first of them, and how many more there are."""
    more = len(mismatches) - most
    return "; ".join(mismatches[:most]) + (f"; and {more} more" if more > 0 else "")


def _told(key: str, hps: Mapping[str, Any]) -> Any:
    if key == "sketch_features" and not hps[key]:  # then a folder of MuQ's weights decides
        return "muq" if hps.get("sketch_muq_path") else "builtin"
    return with_tuples(hps[key])


def _comparable(key: str, hps: Mapping[str, Any]) -> Any:
    if key == "sketch_features":
        return _told(key, hps)
    value = with_tuples(list(hps[key])) if isinstance(hps[key], tuple) else with_tuples(hps[key])
    if key == "hvqvae_multipliers" and value is None:
        return (1,) * int(hps.get("levels", 1))  # no multipliers and all ones are the same model
    if key == "blocks" and hps.get("attn_order") == 0:
        return None  # dense attention has no blocks
    return value
