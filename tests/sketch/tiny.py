"""Small networks and sounds for the tests of sketches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from songbloom.sketch.builtin import BuiltinConfig
from songbloom.sketch.muq import MuQ, MuQConfig
from songbloom.sketch.muq_features import MuQFeatures
from songbloom.sketch.training import SketchVQ, SketchVQConfig

SIZES = BuiltinConfig(
    sketch_sr=8000,
    sketch_hidden=16,
    sketch_bands=16,
    sketch_cepstra=8,
    sketch_n_fft=256,
    sketch_pitch_n_fft=1024,
    sketch_octaves=4,
    sketch_dilations=(1, 2),
)


def muq(**changes: object) -> MuQ:
    """A small MuQ, every number of which matters."""
    sizes = {"conv_dim": 4, "width": 16, "depth": 2, "heads": 2, "feed_forward": 24, "rvq_codebooks": 1, "rvq_codes": 8}
    model = MuQ(MuQConfig.from_mapping({**sizes, **changes})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                if tensor.ndim > 1:
                    tensor.copy_(noise * (1.5 / tensor[0].numel()) ** 0.5)
                else:
                    tensor.copy_((0.0 if "bias" in name or "mean" in name else 1.0) + 0.1 * noise.abs())
    return model


def muq_features(**settings: object) -> MuQFeatures:
    return MuQFeatures(muq(), **settings)  # type: ignore[arg-type]


def sound(items: int, seconds: float, sample_rate: int, channels: int = 1, seed: int = 0) -> Tensor:
    """A line of notes with harmonics, and noise between them: ``[items, T, channels]``."""
    generator = torch.Generator().manual_seed(seed)
    samples = int(seconds * sample_rate)
    time = torch.arange(samples) / sample_rate
    made = torch.zeros(items, samples, channels)
    for item in range(items):
        notes = 110.0 * 2 ** (torch.randint(0, 25, (int(seconds * 4) + 1,), generator=generator) / 12)
        phase = (notes[(time * 4).long()] / sample_rate).cumsum(0) * 2 * torch.pi
        voice = torch.stack([torch.sin(h * phase) / h for h in range(1, 7)]).sum(dim=0)
        noise = torch.randn(samples, channels, generator=generator)
        hiss = (torch.sin(2 * torch.pi * 1.3 * time + item) > 0.6).float()[:, None]
        made[item] = 0.1 * voice[:, None] + (0.01 + 0.1 * hiss) * noise
    return made


def trainer(features: nn.Module | None = None, **changes: object) -> SketchVQ:
    """A small sketch codebook in training."""
    settings: dict[str, object] = {
        "sr": 8000,
        "sample_length_in_seconds": 1.0,
        "sketch_codes": 16,
        "sketch_start_rows": 100,
        "sketch_start_step": 0,
    }
    if features is not None:
        settings |= {"sketch_features": "muq", "sr": 24000}
    return SketchVQ(SketchVQConfig.from_hps({**settings, **changes}), features, SIZES).train()  # type: ignore[arg-type]
