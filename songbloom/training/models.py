"""From hyperparameters to models: building each part, with its weights where there are some."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from songbloom.errors import UserError
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.prior.prior import Prior, PriorConfig
from songbloom.prior.songbloom.prior import SongBloomConfig, SongBloomPrior
from songbloom.published.fetch import fetch
from songbloom.published.songbloom import prior as published_songbloom
from songbloom.sketch.tokeniser import SketchTokeniser, load_tokeniser
from songbloom.training.checks import check_prior
from songbloom.training.weights import restore
from songbloom.vae.vae import VAE, VAEConfig
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig

LYRIC_SYMBOLS, SKETCH_DIGEST = "lyric_symbols", "sketch_digest"  # in a SongBloom checkpoint's hps
_Model = TypeVar("_Model", bound=nn.Module)


def make_vqvae(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> VQVAE:
    """The codec that ``hps`` describes, with weights from ``restore_vqvae`` if that is given.

    When ``hps`` trains the codec (``train`` and not ``prior``) it comes in training mode with the raw weights of a
    checkpoint; otherwise frozen, in eval mode, with the averaged ones. A ``sample_length`` of 0 is derived and written
    back into ``hps``. On device ``"meta"`` nothing is restored and no memory is used.

    Raises:
        UserError: settings that don't fit each other, or a checkpoint that cannot be read or doesn't fit.
    """
    with _building(hps, device):
        vqvae = VQVAE(VQVAEConfig.from_hps(hps))
    if not vqvae.sample_length:
        seconds, hop = hps["sample_length_in_seconds"], vqvae.hop_lengths[-1]
        raise UserError(f"sample_length_in_seconds={seconds} is less than one code of {hop} samples: make it longer")
    if isinstance(hps, MutableMapping):
        hps["sample_length"] = vqvae.sample_length
    training = bool(hps.get("train")) and not hps.get("prior")
    if str(device) != "meta" and hps["restore_vqvae"]:
        content = restore(vqvae, hps["restore_vqvae"], "vqvae", hps=hps, weights="raw" if training else "ema")
        if training:
            if content and content.get("codebook"):
                vqvae.load_codebook_state(content["codebook"])
            else:
                vqvae.restore_codebooks(hps["bs"])
    return _ready(vqvae, device, training)


def make_vae(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> VAE:
    """The stereo VAE that ``hps`` describes, with weights from ``restore_vae`` if that is given.

    When ``hps`` trains it (``train``, ``vae`` and not ``prior``) it comes in training mode with the raw weights of a
    checkpoint; otherwise frozen, in eval mode, with the averaged ones. A discriminator's weights are not taken here:
    training that goes on takes them with the rest of its state. A ``sample_length`` of 0 is derived and written back
    into ``hps``. On device ``"meta"`` nothing is restored and no memory is used.

    Raises:
        UserError: settings that don't fit each other, or a checkpoint that cannot be read or doesn't fit.
    """
    with _building(hps, device):
        vae = VAE(VAEConfig.from_hps(hps))
    if not vae.sample_length:
        seconds, hop = hps["sample_length_in_seconds"], vae.hop_lengths[0]
        raise UserError(f"sample_length_in_seconds={seconds} is less than one latent of {hop} samples: make it longer")
    if isinstance(hps, MutableMapping):
        hps["sample_length"] = vae.sample_length
    training = bool(hps.get("train")) and bool(hps.get("vae")) and not hps.get("prior")
    if str(device) != "meta":
        restore(vae, hps["restore_vae"], "vae", hps=hps, weights="raw" if training else "ema")
    return _ready(vae, device, training)


def make_prior(
    hps: Mapping[str, Any], vqvae: VQVAE, device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None
) -> Prior:
    """The prior of level ``hps.level`` over the codes of ``vqvae``, with weights from ``restore_prior`` if given.

    In training mode with raw weights when ``hps`` trains a prior, otherwise frozen, in eval mode, with averaged ones,
    which are loaded tensor by tensor: what is in memory is never more than the model and one tensor of it.

    Args:
        hps: the merged hyperparameters.
        vqvae: the codec; its sizes are enough.
        device: where to put it.
        dtype: what the matrices of a frozen prior are kept in; None: float32.

    Raises:
        UserError: as :func:`make_vqvae`; also labels that are asked for without label tables.
    """
    check_prior({**hps, "levels": vqvae.levels})
    training = bool(hps.get("train")) and bool(hps.get("prior"))
    arrives = bool(hps["restore_prior"]) and not training  # so there is nothing to draw, nor to make room for
    with _building(hps, "meta" if arrives else device):
        prior = Prior(PriorConfig.from_hps(hps), vqvae)
    if str(device) != "meta":
        weights = "raw" if training else "ema"
        content = restore(prior, hps["restore_prior"], "prior", hps=hps, weights=weights, dtype=dtype, device=device)
        saved = (content or {}).get("hps")
        codec = saved.get("codec") if isinstance(saved, Mapping) else None
        if codec and not training and codec != fingerprint(vqvae):
            raise UserError(
                f"{hps['restore_prior']}: was trained on the codes of another codec than the one given; give "
                "--restore_vqvae with that codec, or train the prior again"
            )
    return _ready(prior, device, training)


def fingerprint(vqvae: VQVAE | VAE) -> str:
    """A short name for a codec's weights: a prior keeps that of the codec whose codes it has learnt."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vqvae.state_dict().items()):
        if name.startswith("discriminator."):
            continue  # it judges in training and makes no latents
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def make_vocabulary(hps: Mapping[str, Any]) -> PhonemeVocabulary:
    """The lyric vocabulary of a SongBloom prior: the one that its checkpoint keeps, else ``lyrics_vocab``.

    Raises:
        UserError: it cannot be read, or is no vocabulary of phonemes and tags.
    """
    name = hps["lyrics_vocab"] or "songbloom"
    if hps.get(LYRIC_SYMBOLS):
        return PhonemeVocabulary(name, tuple(hps[LYRIC_SYMBOLS]), as_published=name == "songbloom_published")
    found = vocabulary(name)
    if not isinstance(found, PhonemeVocabulary):
        raise UserError(
            f"--lyrics_vocab={name}: a SongBloom prior reads structured lyrics; take songbloom or songbloom_ja"
        )
    return found


def songbloom_config(hps: Mapping[str, Any]) -> SongBloomConfig:
    """The configuration of the SongBloom prior that ``hps`` describes, its lyric tables by its vocabulary."""
    words = published_songbloom.vocabulary_settings(make_vocabulary(hps).symbols)
    return SongBloomConfig.from_hps({**hps, "latent_width": hps["vae_latent_dim"], **words})


def make_songbloom_prior(
    hps: Mapping[str, Any], device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None
) -> SongBloomPrior:
    """The SongBloom prior that ``hps`` describes, with weights from ``restore_prior`` if that is given.

    In training mode with raw weights when ``hps`` trains a prior, otherwise frozen, in eval mode, with averaged ones.
    ``lyric_symbols`` is written back into ``hps``, so that a checkpoint keeps its vocabulary.

    Args:
        hps: the merged hyperparameters.
        device: where to put it; ``"meta"`` restores nothing and uses no memory.
        dtype: what the transformers' matrices are kept in; None: float32.

    Raises:
        UserError: settings that don't fit each other, or weights that cannot be read or don't fit.
    """
    training = bool(hps.get("train")) and bool(hps.get("prior"))
    arrives = bool(hps["restore_prior"]) and not training
    config = songbloom_config(hps)
    with _building(hps, "meta" if arrives else device):
        prior = SongBloomPrior(config)
    if isinstance(hps, MutableMapping):
        hps[LYRIC_SYMBOLS] = make_vocabulary(hps).symbols
    if str(device) != "meta":
        weights = "raw" if training else "ema"
        restore(prior, hps["restore_prior"], "prior", hps=hps, weights=weights, dtype=dtype, device=device)
    if dtype is not None:
        prior.store_matrices(dtype)  # if they have not come so
    return _ready(prior, device, training)


def make_tokeniser(hps: Mapping[str, Any], device: torch.device | str = "cpu") -> SketchTokeniser | None:
    """The tokeniser of the codebook ``restore_sketch``; None if none is named.

    Raises:
        UserError: it cannot be read, or has another size than ``l_bins``, or other codes than the prior was trained on,
            or its features are not those that ``sketch_width`` and ``muq_sr`` say.
    """
    if not hps["restore_sketch"]:
        return None
    settings: dict[str, Any] = {}
    if hps.get("sketch_muq_path"):
        settings["path"] = hps["sketch_muq_path"]
    said: dict[str, Any] = {"width": int(hps.get("sketch_width", 0)), "heard": int(hps.get("muq_sr", 0))}
    made = load_tokeniser(fetch(hps["restore_sketch"]), size=hps["l_bins"], device=device, **said, **settings)
    if hps.get(SKETCH_DIGEST):
        made.codebook.check_digest(hps[SKETCH_DIGEST], f"the prior {hps['restore_prior']}")
    return made


@contextmanager
def _building(hps: Mapping[str, Any], device: torch.device | str) -> Iterator[None]:
    """Initial weights depend on ``hps.seed`` alone, whatever the rank and device; global random state is left alone."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if str(device) == "meta" else "cpu"):
        torch.default_generator.manual_seed(int(hps.get("seed", 0)))
        yield


def _ready(model: _Model, device: torch.device | str, training: bool) -> _Model:
    if not training:
        model.requires_grad_(False)
    return model.to(device).train(training)
