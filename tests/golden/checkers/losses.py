"""``jukebox_losses``: reconstruction and spectral losses, bandwidth, and mixing to mono."""

from __future__ import annotations

import torch

from songbloom.audio import spectral
from songbloom.audio.mix import to_mono
from songbloom.audio.spectral import STFT
from songbloom.vqvae.bandwidth import measure_bandwidth
from songbloom.vqvae.losses import reconstruction_loss
from tests.golden.report import Golden

SPECTRAL = {"rel": 1e-4, "abs": 1e-6}
LOSS = 1e-5


class _SparseDataset:
    """Items that the file holds; touching another is an error."""

    def __init__(self, count: int, items: dict[str, torch.Tensor]) -> None:
        self.count = count
        self.items = {int(key): item for key, item in items.items()}
        self.used: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        self.used.add(index)
        return self.items[index]


def _check_bandwidth(golden: Golden) -> None:
    place = ("bandwidth_dataset",)
    items = golden.given(*place, "items")
    for padding in ("constant", "reflect"):
        dataset = _SparseDataset(golden.given(*place, "n_items"), items)
        got = measure_bandwidth(
            dataset,
            sample_rate=golden.given(*place, "sr"),
            duration=golden.given(*place, "duration"),
            padding=padding,
        )
        golden.expect(f"bandwidth_pad_{padding}", got=got, rel=LOSS)
        golden.expect(*place, "used_indices", got=sorted(dataset.used))


def _check_preprocessing(golden: Golden) -> None:
    x, mix = golden.given("preprocess", "x"), golden.given("preprocess", "mix")
    golden.expect("preprocess", "mono_half", got=to_mono(x, 0.5), abs=1e-6)
    golden.expect("preprocess", "mono_from_1ch", got=to_mono(x[:, :, :1], 0.5), abs=1e-6)
    golden.expect("preprocess", "mono_blend", got=to_mono(x, mix), abs=1e-6)


def check_losses(golden: Golden) -> None:
    """Everything in a ``jukebox_losses`` file."""
    hps = golden.given("hps")
    target, output = golden.given("x_in"), golden.given("x_out")
    default = STFT(**golden.given("default_stft"))
    transforms = spectral.stfts(*(hps[f"multispec_loss_{name}"] for name in ("n_fft", "hop_length", "window_size")))
    bandwidth = hps["bandwidth"]
    golden.expect("spectral_loss", got=spectral.spectral_loss(target, output, default), **SPECTRAL)
    golden.expect("multispectral_loss", got=spectral.multispectral_loss(target, output, transforms), **SPECTRAL)
    golden.expect("spectral_convergence", got=spectral.spectral_convergence(target, output, default), **SPECTRAL)
    golden.expect("log_magnitude_loss", got=spectral.log_magnitude_loss(target, output, default), **SPECTRAL)
    spectrum = spectral.magnitudes(target[:1], default).transpose(1, 2)
    golden.expect("spec_default_x_in_row0", got=spectrum, abs=1e-4, rel=1e-4)
    for name in golden.look("loss_fn"):
        got = reconstruction_loss(
            name,
            target - output,
            bandwidth,
            linf_k=hps["linf_k"],
            lmix_l1=hps["lmix_l1"],
            lmix_l2=hps["lmix_l2"],
            lmix_linf=hps["lmix_linf"],
        )
        golden.expect("loss_fn", name, got=got, rel=LOSS)
    _check_bandwidth(golden)
    _check_preprocessing(golden)


CHECKS = {"jukebox_losses": check_losses}
