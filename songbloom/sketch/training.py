"""Training a sketch codebook, and the network of built-in features that have one.

``SketchVQ`` is what the training loop trains: audio in, loss and metrics out. Its features are either the built-in
ones or any frozen extractor's. A small decoder always learns to give back from the codes alone what the built-in
features look at (the shape of the spectrum and how strongly each pitch sounds). Built-in features with a network
(``sketch_hidden``) are trained by it; for all others it changes nothing that is kept, and its errors
tell how much of words and melody the codes hold: ``shape_error`` and ``pitch_error`` are shares of the variance that
is lost, ``melody`` is how often the strongest pitch is found within a semitone.

The codebook starts by k-means over the first batches and then follows moving averages, the same to the bit on every
rank (:mod:`songbloom.sketch.quantiser`). Until it has started, the decoder hears the features themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from songbloom.distributed import all_reduce_, world
from songbloom.errors import UserError
from songbloom.hyperparams import fields_from
from songbloom.sketch.builtin import STEPS, BuiltinConfig, BuiltinFeatures, ChannelNorm, ResidualUnit, Views, reset
from songbloom.sketch.codebook import NORMALISATIONS, STD_FLOOR, SketchCodebook, normalise
from songbloom.sketch.features import FRAME_RATE, Features, samples_of, to_mono_at
from songbloom.sketch.quantiser import Quantiser, perplexity
from songbloom.vqvae.bottleneck import shares_of_ranks

TRAINING_METRICS = ("error", "usage", "revived", "used_now", "perplexity")  # 0 until the codebook has started
TESTING_METRICS = ("error", "perplexity")
SPREAD_FLOOR = 0.02  # variance of a view below which an item counts as silent, and its errors count less


@dataclass(frozen=True)
class SketchVQConfig:
    """What a sketch codebook is trained with; fields are named as the hyperparameters.

    Attributes:
        sr: sample rate of the audio that comes in, Hz.
        sample_length: samples of one training example (0: by ``sample_length_in_seconds``).
        sample_length_in_seconds: the same in seconds, cut to whole frames.
        sketch_features: name of the features; empty: the built-in ones.
        sketch_codes: vectors of the codebook; the model's table must have as many.
        sketch_distance: ``cosine``, or ``euclidean``.
        sketch_normalisation: ``none``, ``standard`` (mean 0 and spread 1 over the first batches), ``layer`` (each frame
            by itself), or empty: none for built-in features, standard for others.
        sketch_decay: what the codebook's moving averages keep a step.
        sketch_start_rows: frames that are gathered for the k-means start (0: twice the codes).
        sketch_start_step: training steps that a network of built-in features learns without a codebook; then frames are
            gathered. A codebook that starts on features which still move fast is left behind by them.
        sketch_start_rounds: rounds of k-means.
        sketch_revival: a code used less than this share of an even use starts again.
        sketch_commit: weight of how far features lie from their codes.
        sketch_decoder: channels of the decoder.
        sketch_pitch: weight of the pitch view against the shape view.
        sketch_gain: training examples of a network are made louder or softer by up to so many decibels.
        seed: of all draws.

    Raises:
        UserError: values that make no training.
    """

    sr: int = 24000
    sample_length: int = 0
    sample_length_in_seconds: float = 4.0
    sketch_features: str = ""
    sketch_codes: int = 16384
    sketch_distance: str = "euclidean"
    sketch_normalisation: str = ""
    sketch_decay: float = 0.99
    sketch_start_rows: int = 0
    sketch_start_step: int = 500
    sketch_start_rounds: int = 10
    sketch_revival: float = 0.1
    sketch_commit: float = 0.25
    sketch_decoder: int = 128
    sketch_pitch: float = 1.0
    sketch_gain: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sketch_normalisation not in ("", *NORMALISATIONS):
            raise UserError(
                f"sketch_normalisation is {self.sketch_normalisation!r}; known are {', '.join(NORMALISATIONS)}"
            )
        for name in ("sketch_commit", "sketch_pitch", "sketch_gain", "sketch_start_rows", "sketch_start_step"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.sketch_decoder < 1:
            raise UserError(f"sketch_decoder is {self.sketch_decoder}: it must be at least 1")
        if self.samples < samples_of(1, self.sr):
            raise UserError(
                f"examples of {self.samples} samples at {self.sr} Hz hold no frame of 40 ms: make them longer"
            )

    @classmethod
    def from_hps(cls, mapping: Mapping[str, Any]) -> SketchVQConfig:
        """Take what the training needs from any mapping of hyperparameters, defaults for what isn't there.

        Without a name the features are MuQ's if ``sketch_muq_path`` says where it is.
        """
        values = fields_from(cls, mapping)
        if not values.get("sketch_features") and mapping.get("sketch_muq_path"):
            values["sketch_features"] = "muq"
        return cls(**values)

    @property
    def samples(self) -> int:
        """Audio samples of one training example."""
        if self.sample_length:
            return self.sample_length
        return samples_of(int(self.sample_length_in_seconds * FRAME_RATE), self.sr)

    @property
    def is_builtin(self) -> bool:
        """Whether the features are the built-in ones."""
        return self.sketch_features in ("", BuiltinFeatures.name)

    @property
    def normalisation(self) -> str:
        """How features are normalised before."""
        return self.sketch_normalisation or ("none" if self.is_builtin else "standard")


class Decoder(nn.Module):
    """Vectors ``[N, frames, width]`` → views ``[N, 4 * frames, view_width]``."""

    def __init__(self, width: int, hidden: int, view_width: int) -> None:
        super().__init__()
        self.input = nn.Conv1d(width, hidden, 1)
        self.units = nn.ModuleList([ResidualUnit(hidden, 1), ResidualUnit(hidden, 2)])
        self.norm = ChannelNorm(hidden)
        self.output = nn.Conv1d(hidden, STEPS * view_width, 1)
        self.view_width = view_width

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.input(vectors.transpose(1, 2))
        for unit in self.units:
            x = unit(x)
        return self.output(self.norm(x)).transpose(1, 2).unflatten(2, (STEPS, self.view_width)).flatten(1, 2)


class SketchVQ(nn.Module):
    """Features, codebook and decoder, to be trained.

    Args:
        config: the training.
        features: a frozen extractor; None makes built-in features.
        builtin: sizes of the built-in views and features.

    Attributes:
        sample_rate: of the audio that comes in, Hz.
        channels: always 1: the mean of the channels is heard.
        sample_length: samples of one training example.
        learns: whether the features learn too.
        steps: training steps made, which the draws of the next one depend on.

    Raises:
        UserError: features of another name than the configuration's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: SketchVQConfig, features: Features | None = None, builtin: BuiltinConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.builtin = config, builtin or BuiltinConfig()
        generator = torch.Generator().manual_seed(config.seed)
        if config.is_builtin != (features is None):
            raise UserError(
                f"sketch_features is {config.sketch_features!r}: built-in features are made here, all others are given"
            )
        made: Features = BuiltinFeatures(self.builtin, generator) if features is None else features
        self.heard = made if isinstance(made, BuiltinFeatures) else None
        self.learns = self.heard is not None and self.builtin.sketch_hidden > 0
        self._frozen = [made]  # in a list: a frozen extractor is no part of what is saved
        self.sample_rate, self.channels, self.sample_length = config.sr, 1, config.samples
        self.views = made.views if isinstance(made, BuiltinFeatures) else Views(self.builtin)
        self.decoder = Decoder(made.width, config.sketch_decoder, self.builtin.view_width)
        reset(self.decoder, generator)
        nn.init.zeros_(self.decoder.output.weight)
        self.quantiser = Quantiser(
            config.sketch_codes,
            made.width,
            distance=config.sketch_distance,
            decay=config.sketch_decay,
            start_rows=config.sketch_start_rows,
            start_rounds=config.sketch_start_rounds,
            revival=config.sketch_revival,
            seed=config.seed,
        )
        self.register_buffer("mean", torch.zeros(made.width))
        self.register_buffer("std", torch.zeros(made.width))  # zeros: not measured yet
        self.measured = 0  # batches that mean and std are of
        self.steps = 0

    @property
    def features(self) -> Features:
        """The extractor, learned or frozen."""
        return self._frozen[0]

    # -- the step ------------------------------------------------------------------------------------------------

    def forward(self, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch; in training mode the codebook learns from it too.

        Args:
            audio: ``[N, T, C]`` at ``sample_rate``.

        Returns:
            the loss; numbers to log, without gradient.

        Raises:
            UserError: audio without a whole frame.
        """
        mono = to_mono_at(audio, self.config.sr, self.builtin.sketch_sr)
        if self.learns and self.training:
            mono = mono * self._gains(len(mono)).to(mono)
        target = self.views(mono)
        if not target.shape[1]:
            raise UserError(f"audio of {audio.shape[1]} samples at {self.config.sr} Hz holds no frame of 40 ms")
        frames = target.shape[1] // STEPS
        heard = self._features_of(mono, audio, target, frames)
        rows = self.quantiser.project(normalise(heard, self.config.normalisation, self.mean, self.std).flatten(0, 1))
        gather = not self.learns or self.steps >= self.config.sketch_start_step
        codes, vectors, measured = self.quantiser(rows, gather)
        # The same names in every step, so that they can be averaged.
        numbers = dict.fromkeys(TRAINING_METRICS if self.training else TESTING_METRICS, target.new_zeros(())) | measured
        commit = (rows - vectors).square().sum(dim=1).mean()
        # Straight through: the decoder hears the codes' vectors, its gradient goes on to the features unchanged.
        made = self.decoder((rows + (vectors - rows).detach()).view(len(audio), frames, -1))
        loss, errors = self._errors(made.float(), target)
        if self.learns:
            loss = loss + self.config.sketch_commit * commit
        if self.training:
            self.steps += 1
        ready = float(self.quantiser.ready)
        numbers |= errors | {"commit": commit, "started": torch.tensor(ready, device=audio.device)}
        if self.quantiser.ready and not self.training:
            numbers["perplexity"] = perplexity(torch.bincount(codes, minlength=self.quantiser.codes).float())
        return loss, {name: number.detach() for name, number in numbers.items()}

    def _features_of(self, mono: Tensor, audio: Tensor, target: Tensor, frames: int) -> Tensor:
        """Features ``[N, frames, width]``, with a gradient where they learn."""
        if self.heard is not None:
            return self.heard.encoder(target)
        heard = self.features.extract(audio, self.config.sr)[:, :frames].to(target.device)
        if self.training and self.config.normalisation == "standard" and not self.quantiser.ready:
            self._measure(heard.flatten(0, 1))
        return heard

    def _gains(self, items: int) -> Tensor:
        """Factors ``[N, 1]``; they depend on the seed, the step and an item's place in the batch of all ranks."""
        if not self.config.sketch_gain:
            return torch.ones(items, 1)
        shares = shares_of_ranks(items, torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.steps)
        drawn = torch.rand(sum(shares), 1, generator=generator)
        first = sum(shares[: world().rank])
        decibels = (2 * drawn[first : first + items] - 1) * self.config.sketch_gain
        return 10 ** (decibels / 20)

    @torch.no_grad()
    def _measure(self, rows: Tensor) -> None:
        """Mean and spread of each number, of the first batch of all ranks; what follows is compared by them."""
        if self.measured:
            return
        sums = torch.cat([rows.sum(dim=0), rows.square().sum(dim=0), rows.new_tensor([len(rows)])])
        sums = all_reduce_((sums.cpu() if sums.device.type == "mps" else sums).double())  # Metal has no float64
        width = rows.shape[1]
        mean = sums[:width] / sums[-1]
        self.mean.copy_(mean)
        self.std.copy_((sums[width:-1] / sums[-1] - mean.square()).clamp_min(STD_FLOOR**2).sqrt())
        self.measured = 1

    def _errors(self, made: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        bands = self.builtin.sketch_bands
        shape, pitch = (_lost(made[..., part], target[..., part]) for part in (slice(bands), slice(bands, None)))
        loss = shape + self.config.sketch_pitch * pitch
        wanted, got = target[..., bands:], made[..., bands:]
        sounding = wanted.amax(dim=2) > 1.0  # a pitch that stands out by half a power of ten
        near = (wanted.argmax(dim=2) - got.argmax(dim=2)).abs() <= 2
        melody = (near & sounding).sum() / sounding.sum().clamp_min(1)
        return loss, {"shape_error": shape, "pitch_error": pitch, "melody": melody.float()}

    # -- what comes of it ----------------------------------------------------------------------------------------

    def codebook(self) -> SketchCodebook:
        """The codebook as it is now, ready to be saved; built-in features travel with it.

        Raises:
            UserError: it has not started yet.
        """
        if not self.quantiser.ready:
            have, wanted = self.quantiser.gathered, self.quantiser.start_rows
            raise UserError(
                f"the sketch codebook has not started: {have} of {wanted} frames for its k-means are gathered; "
                "train longer, or set sketch_start_rows or sketch_codes lower"
            )
        standard = self.config.normalisation == "standard"
        uses = self.quantiser.uses
        return SketchCodebook(
            vectors=self.quantiser.vectors.detach().clone().cpu(),
            features=self.features.identity(),
            distance=self.config.sketch_distance,
            normalisation=self.config.normalisation,
            mean=self.mean.detach().clone().cpu() if standard else None,
            std=self.std.detach().clone().cpu() if standard else None,
            state={name: part.detach().clone().cpu() for name, part in self.heard.state_dict().items()}
            if self.heard is not None
            else None,
            trained={"steps": self.steps, "perplexity": float(perplexity(uses)), "codes": self.quantiser.codes},
        )

    def codebook_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides weights: plain data."""
        return {"steps": self.steps, "measured": self.measured, "quantiser": self.quantiser.state()}

    def load_codebook_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`codebook_state` gave; the next steps are as if there had been no stop.

        Raises:
            UserError: it belongs to a codebook of another size.
        """
        self.quantiser.load_state(state["quantiser"])
        self.steps, self.measured = int(state["steps"]), int(state["measured"])


def _lost(made: Tensor, target: Tensor) -> Tensor:
    """The share of each item's variance that is not in what was made, averaged; 1 is as good as the mean alone.

    Item by item, so that the mean over ranks is that of the whole batch.
    """
    spread = (target - target.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))
    return ((made - target).square().mean(dim=(1, 2)) / spread.clamp_min(SPREAD_FLOOR)).mean()
