"""How far sound is from what it was made from: what a codec loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom.audio.filters import mel_filters
from songbloom.audio.spectral import LOG_FLOOR, STFT, magnitudes

TRANSFORMS = (STFT(512, 50, 240), STFT(1024, 120, 600), STFT(2048, 240, 1200))
"""Of the multi-resolution STFT distance (Yamamoto et al. 2020, *Parallel WaveGAN*, table 1)."""
_MEL = STFT(2048, 512, 2048)
_BANDS = 80
_MEL_FLOOR = 1e-5  # magnitude in a band, 100 dB below 1
_PIECE_SECONDS = 20


@dataclass(frozen=True)
class CodecDistances:
    """Between sound and its reconstruction; the channels are averaged first.

    Attributes:
        multi_resolution_stft: mean over three transforms of spectral convergence and mean difference of logarithms of
            magnitudes. 0: the same.
        log_mel: mean difference of 80 mel bands, dB. 0: the same.
        si_sdr: scale-invariant signal-to-distortion ratio, dB (Le Roux et al. 2019). Higher is nearer; it hears phases,
            which listeners hardly do.
    """

    multi_resolution_stft: float
    log_mel: float
    si_sdr: float

    def plain(self) -> dict[str, float]:
        """As a dict."""
        return asdict(self)


@lru_cache(maxsize=4)
def _filters(sample_rate: int) -> Tensor:
    return mel_filters(sample_rate, _MEL.n_fft, _BANDS)


def si_sdr(original: np.ndarray, made: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of ``[T]`` each; infinite for a scaled copy.

    ``made`` is split into a multiple of ``original`` and the rest; both are taken less their means.
    """
    a = original.astype(np.float64) - np.mean(original, dtype=np.float64)
    b = made.astype(np.float64) - np.mean(made, dtype=np.float64)
    energy, along, all_of_it = float(a @ a), float(a @ b), float(b @ b)
    wanted = along**2 / energy if energy else 0.0
    rest = max(0.0, all_of_it - wanted)
    if not wanted:
        return -np.inf
    return float(10 * np.log10(wanted / rest)) if rest > 1e-14 * wanted else np.inf


def compare(original: np.ndarray, made: np.ndarray, sample_rate: int) -> CodecDistances:
    """Distances of a reconstruction from the original, ``[T, C]`` or ``[T]`` each; the longer one is cut.

    Spectra are computed 20 s at a time.

    Raises:
        ValueError: nothing to compare, or shorter than a spectrum.
    """
    length = min(len(original), len(made))
    if length <= TRANSFORMS[-1].n_fft:
        raise ValueError(f"{length} samples are too few to compare")
    a, b = (np.asarray(x[:length], np.float32).reshape(length, -1).mean(axis=1) for x in (original, made))
    step = _PIECE_SECONDS * sample_rate
    starts = [s for s in range(0, length, step) if length - s > TRANSFORMS[-1].n_fft]
    spectral, mel, weights = [], [], []
    for start in starts:
        stop = min(length, start + step)
        x, y = (torch.from_numpy(np.ascontiguousarray(part[start:stop]))[None] for part in (a, b))
        spectral.append(float(np.mean([_transform_distance(x, y, stft) for stft in TRANSFORMS])))
        bands = [(magnitudes(part, _MEL) @ _filters(sample_rate)).clamp_min(_MEL_FLOOR).log10() for part in (x, y)]
        mel.append(20 * float((bands[0] - bands[1]).abs().mean()))
        weights.append(stop - start)
    return CodecDistances(
        float(np.average(spectral, weights=weights)), float(np.average(mel, weights=weights)), si_sdr(a, b)
    )


def _transform_distance(x: Tensor, y: Tensor, stft: STFT) -> float:
    target, made = magnitudes(x, stft), magnitudes(y, stft)
    converged = torch.linalg.vector_norm(target - made) / torch.linalg.vector_norm(target).clamp_min(1e-3)
    logarithms = ((target + LOG_FLOOR).log() - (made + LOG_FLOOR).log()).abs().mean()
    return float(converged + logarithms)


def reconstruction(codec: Any, level: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """A function that sends audio ``[T, C]`` at ``codec.sample_rate`` through a codec and gives what comes back.

    Args:
        codec: a ``VQVAE``, a ``VAE`` or anything with ``encode`` and ``decode`` like theirs, and ``channels``.
        level: of a VQ-VAE, the finest whose codes are used.
    """
    from songbloom.audio.mix import match_channels
    from songbloom.vae.vae import VAE

    hop = codec.hop_lengths[-1]

    @torch.no_grad()
    def through(audio: np.ndarray) -> np.ndarray:
        whole = len(audio) // hop * hop
        sound = np.ascontiguousarray(match_channels(audio[:whole], codec.channels), np.float32)
        device = next((p.device for p in codec.parameters()), torch.device("cpu"))
        x = torch.from_numpy(sound)[None].to(device)
        if isinstance(codec, VAE):
            made = codec.decode(codec.encode(x))
        elif hasattr(codec, "vae"):  # latents and a sketch: sound comes from the latents alone
            made = codec.vae.decode(codec.vae.encode(x))
        else:
            codes = codec.encode(x, start_level=level, end_level=level + 1)
            made = codec.decode(codes, start_level=level, end_level=level + 1)
        return made[0].float().cpu().numpy()

    return through
