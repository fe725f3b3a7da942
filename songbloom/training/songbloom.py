"""Training a SongBloom prior (Yang et al. 2025, section 3): cross-entropy of the sketch plus 0.1 times the flow loss.

Everything random about an item (diffusion times, noise, which conditions and vectors are hidden) is drawn for it alone,
from the seed, the epoch and its number; and each rank's loss is weighted by the frames that it has. So one rank and two
learn the same, and a resumed run is the undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from songbloom.data.songbloom_dataset import SongBloomDataset
from songbloom.distributed import all_reduce_, world
from songbloom.errors import UserError
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.prior.songbloom.conditioners import NULL_LYRICS
from songbloom.prior.songbloom.loss import TrainingDraws, draw_for_training
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.sketch.codec import SketchedCodec
from songbloom.training.logger import Logger
from songbloom.training.precision import Precision
from songbloom.training.tasks import Batch, Inputs, Task

_DRAWS = 12  # sets these draws apart from others with the same seed
MEANINGLESS = 0.95  # of chance: a pretrained model whose loss is above knows nothing of the sketch tokens
VERDICT_ITEMS = 8
PREVIEW_STEPS, PREVIEW_SECONDS = 12, 10.0
_FIELDS = ("tokens", "latents", "length", "ends", "lyrics", "words", "prompt", "valid", "epoch", "item", "batch")


@dataclass(frozen=True)
class SongBatch(Batch):
    """Segments of songs; ``audio`` are their latents ``[N, frames, W]``, ``parts`` all that the data set gives."""

    parts: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, items: Mapping[str, Tensor], device: torch.device) -> SongBatch:
        """Stacked items; frames that no item has are left away."""
        items = {"batch": torch.zeros_like(items["epoch"]), **items}  # items that no loader has put together
        parts = {name: items[name] for name in _FIELDS}
        longest = int(parts["length"].max())
        for name in ("tokens", "latents"):
            parts[name] = parts[name][:, :longest]
        for name in ("tokens", "latents", "length", "ends", "prompt", "valid"):
            parts[name] = parts[name].to(device, non_blocking=True)
        return cls(parts["latents"], parts=parts)

    def first(self, number: int) -> SongBatch:
        """The first items."""
        assert self.parts is not None
        return SongBatch(self.audio[:number], parts={name: part[:number] for name, part in self.parts.items()})


class SongBloomTask(Task):
    """Train a SongBloom prior on encoded songs.

    Args:
        prior: the prior.
        codec: its frozen codec, to let examples be heard.
        hps: hyperparameters.
        precision: what the transformers compute with.

    Attributes:
        hides: whether training hides conditions, hidden vectors and sketches at random; off only to look at gradients.
    """

    kind = "prior"
    shown = ("loss", "sketch_loss", "flow_loss", "sketch_accuracy", "gn")
    unit = "frames"

    def __init__(
        self, prior: SongBloomPrior, codec: SketchedCodec, hps: Mapping[str, Any], precision: Precision | None = None
    ) -> None:
        super().__init__(prior, hps, precision)
        self._codec = [codec]  # in a list, so that it does not become a part of this module
        self.hides = True
        self._shown: SongBloomDataset | None = None
        self._fixed_words = self._words_to_hear()

    @property
    def codec(self) -> SketchedCodec:
        """The frozen codec."""
        return self._codec[0]

    def batch_of(self, items: Mapping[str, Tensor], device: torch.device) -> SongBatch:
        return SongBatch.of(items, device)

    def prepare(self, batch: Batch) -> Inputs:
        """The parts of a :class:`SongBatch` in the order of its fields."""
        assert isinstance(batch, SongBatch) and batch.parts is not None
        return tuple(batch.parts[name] for name in _FIELDS)

    def compile_model(self) -> None:
        # A step calls these, and never the prior as a whole.
        for part in (self.model.language_model, self.model.diffusion):
            part.compile()

    def amount(self, audio: Tensor) -> float:
        return float(audio.shape[0] * audio.shape[1])

    # -- the step --------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The parts of a batch → the loss and ``sketch_loss, flow_loss, sketch_accuracy, loss_over_chance``.

        In training mode each rank's means count by its tokens and patches, so that the mean over ranks is that of all.
        """
        given: dict[str, Any] = dict(zip(_FIELDS, inputs, strict=True))
        config = self.model.config
        tokens, lengths = given["tokens"], given["length"]
        hiding = self.training and self.hides
        draws, words, valid = self._drawn(given, hiding)
        conditions = self.model.conditions(words, given["prompt"], valid)
        outputs = self.model.training_outputs(
            tokens, given["latents"], lengths, conditions, draws=draws, dtype=self.precision.compute
        )
        # A segment that ends before its song does not teach where songs end.
        place = torch.arange(outputs.targets.shape[1], device=tokens.device)
        cut = (place == lengths[:, None]) & ~given["ends"].bool()[:, None]
        targets = outputs.targets.masked_fill(cut, config.ignored)
        logits = outputs.logits.flatten(0, 1).float()
        counted = targets.flatten() != config.ignored
        sketch = F.cross_entropy(logits, targets.flatten(), ignore_index=config.ignored)
        flow = F.mse_loss(outputs.velocity, outputs.velocity_target)
        right = (logits.detach().argmax(-1) == targets.flatten())[counted].float().mean()
        of_sketch, of_flow = self._weights(int(counted.sum()), len(outputs.velocity), tokens.device)
        sketch, right, flow = sketch * of_sketch, right * of_sketch, flow * of_flow
        loss = sketch + config.flow_loss_fraction * flow
        metrics = {
            "sketch_loss": sketch.detach(),
            "flow_loss": flow.detach(),
            "sketch_accuracy": right,
            "loss_over_chance": sketch.detach() / math.log(config.l_bins),
        }
        return loss, metrics

    def _drawn(self, given: Mapping[str, Any], hiding: bool) -> tuple[TrainingDraws, list[list[int]], Tensor]:
        """Each item's diffusion draws, one after another; its words and real prompt frames after hiding."""
        config = self.model.config
        made, words, valid = [], [], given["valid"].clone()
        for row, length in enumerate(given["length"].tolist()):
            counters = [int(given["epoch"][row]), int(given["item"][row])]
            generator = torch.Generator().manual_seed(_seed(int(self.hps.get("seed", 0)), *counters))
            batch = [counters[0], -1, int(given["batch"][row])]
            first = torch.Generator().manual_seed(_seed(int(self.hps.get("seed", 0)), *batch))
            both, lyrics, prompt = torch.rand(3, generator=first if config.dropout_by_batch else generator).tolist()
            ids = given["lyrics"][row, : int(given["words"][row])].tolist()
            if hiding and (both < config.condition_dropout or lyrics < config.lyric_dropout):
                ids = list(NULL_LYRICS)
            if hiding and (both < config.condition_dropout or prompt < config.prompt_dropout):
                valid[row] = 0
            words.append(ids or list(NULL_LYRICS))
            patches = length // config.patch_size
            device = given["tokens"].device
            made.append(draw_for_training(config, patches, training=hiding, generator=generator, device=device))
        joined = (torch.cat([getattr(one, name) for one in made]) for name in TrainingDraws.__dataclass_fields__)
        return TrainingDraws(*joined), words, valid

    def _weights(self, tokens: int, patches: int, device: torch.device) -> tuple[float, float]:
        """What this rank's means count, against the mean over all ranks."""
        if not self.training or not self.hides or world().size == 1:
            return 1.0, 1.0
        totals = all_reduce_(torch.tensor([tokens, patches], dtype=torch.int64, device=device)).tolist()
        return tokens * world().size / totals[0], patches * world().size / totals[1]

    # -- before training -------------------------------------------------------------------------------------------

    def check_gradients(self, batch: SongBatch, zero_allowed: Sequence[str] = ()) -> None:
        """Refuse to train if a tensor that is to be trained gets no gradient from a batch in which nothing is hidden.

        Args:
            batch: any.
            zero_allowed: ends of names of tensors whose gradient may begin as zeros (the first matrix of an adapter,
                while its second is zero).

        Raises:
            UserError: names the tensors.
        """
        self.train()
        self.hides = False
        try:
            loss, _ = self(*self.prepare(batch))
            if loss.requires_grad:
                loss.backward()
            none, dead = [], []
            for name, parameter in self.model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if parameter.grad is None:
                    none.append(name)
                elif not bool(parameter.grad.isfinite().all()):
                    dead.append(f"{name} (not finite)")
                elif not bool(parameter.grad.any()) and not name.endswith(tuple(zero_allowed)):
                    dead.append(f"{name} (all zeros)")
        finally:
            self.hides = True
            for parameter in self.model.parameters():
                parameter.grad = None
        wrong = none + dead
        if wrong:
            shown = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
            raise UserError(
                f"{len(wrong)} of the tensors to be trained get no gradient: {shown}; they would stay as they "
                "are: train other tensors, or turn recomputation off (--c_res=0)"
            )

    @torch.no_grad()
    def verdict(self, batches: Sequence[SongBatch], *, pretrained: bool, same_codebook: bool = False) -> list[str]:
        """Lines about what the model, as it is, knows of the sketch tokens: its loss against chance, ln K.

        Args:
            batches: a few.
            pretrained: whether it has been trained before.
            same_codebook: whether that is known to have been with this codebook.
        """
        config = self.model.config
        chance = math.log(config.l_bins)
        counts = torch.zeros(config.l_bins, dtype=torch.float64)
        total, items = 0.0, 0
        was = self.training
        self.eval()
        for batch in batches:
            assert batch.parts is not None
            for row, length in enumerate(batch.parts["length"].tolist()):
                counts += torch.bincount(batch.parts["tokens"][row, :length].cpu(), minlength=config.l_bins)
            if pretrained:
                total += float(self(*self.prepare(batch))[1]["sketch_loss"]) * len(batch)
                items += len(batch)
        self.train(was)
        shares = counts[counts > 0] / counts.sum()
        unigram = float(-(shares * shares.log()).sum())
        used = int((counts > 0).sum())
        lines = [
            f"sketch: {used} of {config.l_bins} tokens are used in {int(counts.sum())} frames; guessing costs ln "
            f"{config.l_bins} = {chance:.3f}, knowing only how often each is used {unigram:.3f}"
        ]
        if pretrained:
            loss = total / max(items, 1)
            if loss >= MEANINGLESS * chance and same_codebook:
                lines.append(
                    f"verdict: this model does not expect these songs: its loss on them is {loss:.3f}, and guessing "
                    f"costs {chance:.3f}. It was trained with this codebook, so it has learned its own songs by heart, "
                    "or too little; training on these goes on from there"
                )
            elif loss >= MEANINGLESS * chance:
                lines.append(
                    f"verdict: these sketch tokens mean nothing to this model: its loss on them is {loss:.3f}, and "
                    f"guessing costs {chance:.3f}. They come from another codebook than it was trained with: recover "
                    "its codebook (--vq --hps=sketch_vq --recover_from=MODEL), or train long enough to learn new ones"
                )
            else:
                lines.append(
                    f"verdict: this model knows these sketch tokens: its loss on them is {loss:.3f}, "
                    f"{100 * loss / chance:.0f} % of guessing"
                )
        return lines

    # -- examples --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_inputs(self, logger: Logger, step: int, batch: Batch) -> None:
        assert isinstance(batch, SongBatch) and batch.parts is not None
        first = batch.first(min(2, logger.max_log))
        assert first.parts is not None
        logger.audio("train_x_in", self.codec.decode([first.parts["latents"]]), step)
        for row, words in enumerate(first.parts["words"].tolist()):
            symbols = self.hps.get("lyric_symbols") or ()
            ids = first.parts["lyrics"][row, :words].tolist()
            logger.text(f"{row}/train_lyrics", " ".join(symbols[i] for i in ids) if symbols else str(ids), step)

    def show(self, songs: SongBloomDataset) -> None:
        """Draw samples for prompts and words of the first of these songs, the same each time, not for the batch's."""
        self._shown = songs

    def _to_sample(self, batch: SongBatch) -> SongBatch:
        """The songs whose prompts and words samples are drawn for."""
        wanted = int(self.hps["bs_sample"])
        if self._shown is None:
            return batch.first(min(wanted, len(batch)))
        items = [self._shown.items.index(song) for song in range(min(wanted, len(self._shown.songs)))]
        return self.batch_of(default_collate([self._shown[item] for item in items]), batch.audio.device)

    @torch.no_grad()
    def log_samples(self, logger: Logger, step: int, batch: Batch) -> None:
        """``bs_sample`` items for prompts and words of the songs to evaluate on, else of the batch, or with the words
        of ``eval_lyrics``, in few diffusion steps.

        At most ten seconds each, drawn with the same random numbers each time; with them goes how well the phoneme
        recogniser hears the words.
        """
        from songbloom.prior.songbloom.generate import generate

        assert isinstance(batch, SongBatch)
        first = self._to_sample(batch)
        assert first.parts is not None
        config = self.model.config
        words = [first.parts["lyrics"][row, :n].tolist() or [0] for row, n in enumerate(first.parts["words"].tolist())]
        words = [self._fixed_words or one for one in words]
        conditions = self.model.conditions(words, first.parts["prompt"], first.parts["valid"])
        frames = int(PREVIEW_SECONDS * 25)
        frames = frames if self._fixed_words else min(first.audio.shape[1], frames)
        sampler = "ddim" if config.diffusion_objective == "v" else "euler"
        settings = GenerationSettings(max_frames=frames, min_frames=frames, steps=PREVIEW_STEPS, sampler=sampler)
        seed = int(self.hps.get("seed", 0)) * 1_000_003

        def generators(patch: int) -> list[torch.Generator]:
            return [torch.Generator().manual_seed(_seed(seed, item, patch)) for item in range(len(first))]

        songs = generate(self.model, conditions, settings, generators=generators)
        sounds = {}
        for row, song in enumerate(songs):
            if len(song.latents):
                sounds[row] = self.codec.decode([song.latents[None]])
                logger.audio(f"sample_{row}", sounds[row], step)
        symbols = self.hps.get("lyric_symbols")
        if sounds and symbols:
            from songbloom.evaluation.during_training import Sung, hear_samples, log_sung

            sung = [[symbols[index] for index in words[row]] for row in sounds]
            rate = self.codec.sample_rate
            heard = [hear_samples(one, rate, [said]) for one, said in zip(sounds.values(), sung, strict=True)]
            log_sung(logger, step, Sung.joined(heard), sung, "sample")

    def _words_to_hear(self) -> list[int]:
        """Tokens of ``eval_lyrics``, which are sampled in place of the batch's words.

        Raises:
            UserError: the file cannot be read.
        """
        path = str(self.hps.get("eval_lyrics") or "")
        if not path:
            return []
        from songbloom.evaluation.during_training import read_words

        text = read_words(path)
        name = str(self.hps.get("lyrics_vocab") or "songbloom")
        vocabulary = PhonemeVocabulary(
            name, tuple(self.hps["lyric_symbols"]), as_published=name == "songbloom_published"
        )
        ids = list(vocabulary.tokenize(text).ids)
        if not ids:
            raise UserError(f"--eval_lyrics={path}: has no words that the vocabulary {name} knows")
        return ids


def _seed(seed: int, *counters: int) -> int:
    """One number from several, for a generator of its own."""
    made = seed & 0xFFFFFFFF
    for counter in (_DRAWS, *counters):
        made = (made * 6364136223846793005 + (counter & 0xFFFFFFFF) * 1442695040888963407 + 1013904223) % (1 << 63)
    return made >> 1
