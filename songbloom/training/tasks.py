"""What is trained: a codec on audio, or a prior on the codes of a frozen codec.

A task is a module whose forward gives ``(loss, metrics)``, with a few hooks for the one training loop: it turns a batch
of audio into its inputs, tells which metrics matter, logs examples, and keeps what a checkpoint needs besides weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.lyrics.window import take
from songbloom.training.logger import Logger
from songbloom.training.precision import Precision

if TYPE_CHECKING:
    from songbloom.data.labels import Labeller

Inputs = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Batch:
    """What the loader gives.

    Attributes:
        audio: ``[N, T, C]``, in ``vae_channels`` for a VAE, else mono.
        labels: vectors int64 ``[N, width]``, or None.
        sung: when each lyric position is to be looked at, float32 ``[N, n_tokens, 2]``, samples
            (:meth:`songbloom.data.labels.Labeller.sung`), or None.
    """

    audio: Tensor
    labels: Tensor | None = None
    sung: Tensor | None = None

    @classmethod
    def of(cls, items: Mapping[str, Tensor], device: torch.device) -> Batch:
        """Stacked items of a data set; the audio on the device, labels on the CPU, where priors look through them."""
        return cls(items["audio"].to(device, non_blocking=True), items.get("labels"), items.get("sung"))

    def __len__(self) -> int:
        return len(self.audio)

    def first(self, number: int) -> Batch:
        """The first items."""
        parts = (None if part is None else part[:number] for part in (self.labels, self.sung))
        return Batch(self.audio[:number], *parts)


class Adapters(Protocol):
    """What training asks of a model's adapters where they alone are trained: :class:`songbloom.lora.training.LoRA`."""

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps as ``model``."""

    def load_weights(self, saved: Mapping[str, Tensor]) -> None:
        """Take what :meth:`weights` gave."""

    def merged(self) -> AbstractContextManager[None]:
        """Within it the model's weights hold what the adapters add."""

    def check_gradients(self) -> None:
        """After the first backward pass: refuse to train what gets no gradient."""

    def export(self, folder: Path, step: int, *, numbered: bool) -> None:
        """Write the adapters' own file beside a checkpoint."""


class Task(nn.Module):
    """The base of what can be trained.

    Attributes:
        kind: the word that checkpoints carry.
        model: the module whose weights are trained.
        hps: hyperparameters.
        precision: what to compute with.
        shown: metrics for the line of progress, in order.
        labeller: made the label vectors of the batches, if there are any.
        lora: the model's adapters, where they alone are trained.
        unit: what :meth:`amount` counts.
    """

    kind = ""
    shown: tuple[str, ...] = ("loss",)
    unit = ""

    def __init__(self, model: nn.Module, hps: Mapping[str, Any], precision: Precision | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.hps = hps
        self.labeller: Labeller | None = None
        self.lora: Adapters | None = None
        self.precision = precision or Precision()
        if self.precision.half_parameters:
            halve_matrices(model)

    def batch_of(self, items: Mapping[str, Tensor], device: torch.device) -> Batch:
        """Stacked items of the data set as a batch on the device."""
        return Batch.of(items, device)

    def prepare(self, batch: Batch) -> Inputs:
        """A batch → what :meth:`forward` takes; no gradients."""
        return (batch.audio,)

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and metrics without gradients; both are means over the batch."""
        raise NotImplementedError

    def amount(self, audio: Tensor) -> float:
        """How much of ``unit`` a batch holds."""
        raise NotImplementedError

    def groups(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The optimiser's groups of ``parameters``, whose gradients are clipped apart.

        A group other than the first has a ``name`` for its gradient norm; ``lr_factor`` multiplies the learning rate.
        """
        return [{"params": list(parameters)}]

    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        """Log what went in and what the model makes of it (rank 0; the model is in eval mode, weights averaged)."""

    def log_samples(self, logger: Logger, step: int, batch: Batch) -> None:
        """Log new items drawn from the model (rank 0; the model is in eval mode, weights averaged)."""

    def save_beside(self, folder: Path) -> None:
        """Write what others use of the model beside the checkpoint that was just written there (rank 0)."""

    def compile_model(self) -> None:
        """Have torch's compiler make what a step spends its time in."""
        self.model.compile()

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps as ``model``: all weights, or those of the adapters where they alone are trained."""
        return self.model.state_dict() if self.lora is None else self.lora.weights()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what :meth:`weights` gave."""
        if self.lora is None:
            self.model.load_state_dict(weights)
        else:
            self.lora.load_weights(weights)

    def merged(self) -> AbstractContextManager[None]:
        """Within it the model's weights hold what its adapters add, so that it samples fast."""
        return nullcontext() if self.lora is None else self.lora.merged()

    def codebook_state(self) -> dict[str, Any] | None:
        """Running statistics that are no weights, for checkpoints."""
        return None

    def load_codebook_state(self, state: Mapping[str, Any] | None) -> None:
        """Take what :meth:`codebook_state` gave."""


def halve_matrices(model: nn.Module) -> None:
    """Store the matrices of a prior's transformer as float16 (``fp16_params``); all else stays float32.

    These are the tensors that published half-precision priors hold in float16.
    """
    from songbloom.transformer.layers import Linear

    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.half()


class CodecTask(Task):
    """What is trained on audio alone: its own loss and metrics, and running statistics that are no weights."""

    unit = "audio-seconds"

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(audio [N, T, C],)`` → the loss and the codec's metrics.

        With half precision the convolutions compute in it; codebooks, latents' laws, spectra and losses stay float32.
        """
        audio = inputs[0]
        assert audio is not None
        half = self.precision.compute != torch.float32
        with torch.autocast(audio.device.type, self.precision.compute) if half else nullcontext():
            _, loss, metrics = self.model(audio)
        return loss, dict(metrics)

    def amount(self, audio: Tensor) -> float:
        return audio.shape[0] * audio.shape[1] / self.hps["sr"]

    def codebook_state(self) -> dict[str, Any] | None:
        return self.model.codebook_state()

    def load_codebook_state(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.model.load_codebook_state(state)


class VQVAETask(CodecTask):
    """Train the codec on audio.

    Args:
        vqvae: the codec, with its ``bandwidth`` set.
        hps: hyperparameters; ``loss_fn`` and the loss weights are the codec's own configuration.
    """

    kind = "vqvae"
    shown = ("loss", "recons_loss", "multispectral_loss", "commit_loss", "usage", "gn")

    def __init__(self, vqvae: nn.Module, hps: Mapping[str, Any], precision: Precision | None = None) -> None:
        super().__init__(vqvae, hps, precision)
        self._books: dict[int, Mapping[str, Tensor]] = {}
        for level, book in enumerate(getattr(self.model.bottleneck, "levels", ())):
            book.register_forward_hook(partial(self._look, level))

    def _look(self, level: int, book: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep a level's own numbers: the codec's metrics are averages over levels."""
        self._books[level] = outputs[-1]

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(audio [N, T, 1],)`` → the loss and the codec's metrics, with ``usage`` and ``entropy`` of each level."""
        loss, metrics = super().forward(*inputs)
        for level, numbers in sorted(self._books.items()):
            metrics |= {f"{name}_l{level + 1}": numbers[name] for name in ("usage", "entropy") if name in numbers}
        self._books.clear()
        return loss, metrics

    @torch.no_grad()
    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        audio = batch.audio[: logger.max_log]
        logger.audio("train_x_in", audio, step)
        for level, heard in enumerate(self.model.reconstruct(audio)):
            logger.audio(f"train_x_ds_start_{level}", heard, step)


class VAETask(CodecTask):
    """Train the stereo VAE on audio, and its discriminator, where it has one, against it.

    The two have groups of their own in the optimiser, with a learning rate and a clipping of their own; as neither's
    gradients reach the other's weights, that is an optimiser for each.

    Args:
        vae: the VAE.
        hps: hyperparameters; the loss weights are the VAE's own configuration.
    """

    kind = "vae"

    def __init__(self, vae: nn.Module, hps: Mapping[str, Any], precision: Precision | None = None) -> None:
        super().__init__(vae, hps, precision)
        judged = ("adversarial_loss", "discriminator_loss") if self.model.discriminator is not None else ()
        self.shown = ("loss", "spectral_loss", "l1_loss", "kl", *judged, "gn")

    def groups(self, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
        judge = self.model.discriminator
        if judge is None:
            return super().groups(parameters)
        judging = {id(parameter) for parameter in judge.parameters()}
        ours, theirs = ([p for p in parameters if (id(p) in judging) is side] for side in (False, True))
        wanted, lr = self.hps["vae_discriminator_lr"], self.hps["lr"]
        factor = wanted / lr if wanted and lr else 1.0
        return [{"params": ours}, {"params": theirs, "name": "discriminator", "lr_factor": factor}]

    @torch.no_grad()
    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        audio = batch.audio[: logger.max_log]
        logger.audio("train_x_in", audio, step)
        logger.audio("train_x_out", self.model.reconstruct(audio, bs_chunks=len(audio))[0], step)


class PriorTask(Task):
    """Train a prior on the codes that a frozen codec gives for the audio.

    The codec is no part of this module: it is not saved, not averaged and not seen by the optimiser.

    Args:
        prior: the prior.
        vqvae: the codec, frozen here and put into eval mode.
        hps: hyperparameters.
        precision: what the transformer computes with.
        labeller: made the label vectors of the batches, if there are any.
    """

    kind = "prior"
    shown: tuple[str, ...] = ("loss", "bpd", "gn")
    unit = "tokens"

    def __init__(
        self,
        prior: nn.Module,
        vqvae: nn.Module,
        hps: Mapping[str, Any],
        precision: Precision | None = None,
        labeller: Labeller | None = None,
    ) -> None:
        super().__init__(prior, hps, precision)
        self.labeller = labeller
        if labeller is not None and labeller.n_tokens:
            self.shown = ("loss", "gen_loss", "prime_loss", "gn")
        self._fixed_words = self._words_to_hear()
        vqvae.eval()
        for p in vqvae.parameters():
            p.requires_grad_(False)
        self._codec = [vqvae]  # in a list, so that it does not become a part of this module

    @property
    def vqvae(self) -> Any:
        """The frozen codec."""
        return self._codec[0]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Inputs:
        """Audio → codes of this prior's level ``[N, n_ctx]``, those above or None; the labels; ``batch.sung``."""
        audio = batch.audio
        prior = self.model
        level = prior.level
        above = level + 1 < self.vqvae.levels
        # One item at a time: the codec's activations are long, and codes do not depend on the batch.
        codes = self.vqvae.encode(audio, start_level=level, end_level=level + 1 + above, bs_chunks=len(audio))
        return codes[0], codes[1] if above else None, batch.labels, batch.sung

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(codes [N, n_ctx], upper codes, labels, when words are sung)``, None for what is not there → the loss in
        bits a code, and metrics."""
        codes, upper, labels, sung = inputs
        return self.model(codes, upper, labels, sung=sung, precision=self.precision.compute)

    def amount(self, audio: Tensor) -> float:
        prior = self.model
        return float(len(audio) * prior.n_ctx)

    @torch.no_grad()
    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        audio = batch.audio[: logger.max_log]
        prior = self.model
        self._log_labels(logger, step, "train_labels", batch.first(logger.max_log).labels)
        logger.audio("train_x_in", audio, step)
        for level in range(prior.level, self.vqvae.levels):
            codes = self.vqvae.encode(audio, start_level=level, end_level=level + 1, bs_chunks=len(audio))
            heard = self.vqvae.decode(codes, start_level=level, end_level=level + 1, bs_chunks=len(audio))
            logger.audio(f"train_x_ds_start_{level}", heard, step)

    def _log_labels(self, logger: Logger, step: int, tag: str, labels: Tensor | None) -> None:
        if labels is None or self.labeller is None:
            return
        for i, y in enumerate(labels.cpu()):
            said = self.labeller.describe(y)
            at = f"{int(y[1]) / self.hps['sr']:.1f} s of {int(y[0]) / self.hps['sr']:.1f} s"
            words = f"\n\n```\n{said['lyrics']}\n```" if said["lyrics"] else ""
            logger.text(f"{i}/{tag}", f"{said['artist']}, {said['genre']}, at {at}{words}", step)

    @torch.no_grad()
    def log_samples(self, logger: Logger, step: int, batch: Batch) -> None:
        """``bs_sample`` items at temperature 1, on the codes above and the labels of the batch where there are any.

        Of a prior that reads lyrics it is heard whether somebody sings, and how well the words of ``eval_lyrics`` are
        sung, if these are given; they are those of a song as long as the chunk.
        """
        prior = self.model
        bound = prior.cond_downsample or batch.labels is not None
        number = min(self.hps["bs_sample"], len(batch)) if bound else self.hps["bs_sample"]
        labels = self._with_fixed_words(batch.first(number).labels)
        upper = self.prepare(batch.first(number))[1] if prior.cond_downsample else None
        seed = int(self.hps.get("seed", 0)) * 1_000_003 + step
        generators = [torch.Generator().manual_seed(seed * 1009 + item) for item in range(number)]
        codes = prior.sample(number, upper_codes=upper, labels=labels, temperature=1.0, generators=generators)
        self._log_labels(logger, step, "sample_labels", labels)
        levels = [(prior.level, codes, "sample_x_T1")]
        if upper is not None:
            levels.append((prior.level + 1, upper, f"sample_x_ds_start_{prior.level + 1}"))
        for level, chosen, tag in levels:
            heard = self.vqvae.decode([chosen], start_level=level, end_level=level + 1, bs_chunks=number)
            logger.audio(tag, heard, step)
            if level == prior.level and self._sings:
                self._listen(logger, step, heard)

    # -- what samples sing -----------------------------------------------------------------------------------------

    @property
    def _sings(self) -> bool:
        """Whether it is the prior that decides what words are sung: it reads them, and no level above has."""
        return self.labeller is not None and self.labeller.reads_lyrics and not self.model.cond_downsample

    def _words_to_hear(self) -> str:
        """The text of ``eval_lyrics``.

        Raises:
            UserError: it cannot be read, or this prior does not read words.
        """
        path = str(self.hps.get("eval_lyrics") or "")
        if not path:
            return ""
        from songbloom.evaluation.during_training import read_words

        if not self._sings:
            raise UserError(f"--eval_lyrics={path}: this prior reads no words: leave it out, or give it lyrics to read")
        text = read_words(path)
        assert self.labeller is not None
        if not self.labeller.known(None, None, text).tokens.ids:
            raise UserError(f"--eval_lyrics={path}: has no words that this prior's vocabulary knows")
        return text

    def _with_fixed_words(self, labels: Tensor | None) -> Tensor | None:
        """The labels of the beginning of a song with the words of ``eval_lyrics``, as long as the chunk or as the
        shortest that the prior knows; artists and genres stay."""
        if labels is None or not self._fixed_words:
            return labels
        labeller = self.labeller
        assert labeller is not None
        length = labeller.sample_length
        total = max(length, math.ceil((self.hps["min_duration"] or 0) * labeller.sr))
        ids = labeller.known(None, None, self._fixed_words).tokens.ids
        words = take(list(ids), labeller.window(len(ids), None, total, 0, length))
        changed = labels.clone()
        changed[:, 0], changed[:, 1] = total, 0
        changed[:, -labeller.n_tokens :] = torch.tensor(words, dtype=torch.int64)
        return changed

    def _listen(self, logger: Logger, step: int, sound: Tensor) -> None:
        """Log whether anybody sings in ``sound`` ``[N, T, 1]``, and how well the fixed words."""
        from songbloom.evaluation.during_training import hear_samples, log_sung

        words = [self._fixed_words or None] * len(sound)
        log_sung(logger, step, hear_samples(sound, self.hps["sr"], words), words, "sample")


@contextmanager
def evaluating(task: Task) -> Iterator[None]:
    """Within it the task is in eval mode, and random numbers drawn leave those of training as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    task.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        task.train()
