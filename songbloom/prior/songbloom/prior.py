"""The whole prior: language model, patch encoder, diffusion transformer and conditioners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.config import dtype_of
from songbloom.prior.songbloom.conditioners import NULL_LYRICS, Conditions, LyricConditioner, PromptConditioner, Span
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.diffusion import mix
from songbloom.prior.songbloom.dit import DiffusionTransformer
from songbloom.prior.songbloom.layers import Embedding, Linear, start_weights
from songbloom.prior.songbloom.llama import LanguageModel
from songbloom.prior.songbloom.loss import (
    TrainingDraws,
    TrainingOutputs,
    check_lengths,
    draw_for_training,
    drop_conditions,
    losses,
)
from songbloom.prior.songbloom.patch import PatchEncoder, TokenClassifier

__all__ = ["SongBloomConfig", "SongBloomPrior"]


class SongBloomPrior(nn.Module):
    """Sketch tokens (level 1) and latents (level 0) of a song, written in turns a patch at a time.

    The language model's sequence is ``[style prompt, lyrics, start, t1 … tP, L1, tP+1 …]``: P tokens of a patch, then
    one vector made of the patch's latents. The output at a patch's last token is the hidden vector of which the
    diffusion transformer makes the patch's latents; every other output predicts the token that follows.

    Args:
        config: shapes and training settings.
        generator: where the weights are drawn from; None is torch's own.
    """

    def __init__(self, config: SongBloomConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.levels = (1, 0)
        self.start = nn.Parameter(torch.empty(config.prior_width))
        self.lyrics = LyricConditioner(config)
        self.prompt = PromptConditioner(config)
        self.sketch_embedding = Embedding(config.l_bins + 2, config.prior_width, std=config.init_std)
        self.language_model = LanguageModel(config)
        self.classifier = TokenClassifier(config)
        self.patch_encoder = PatchEncoder(config)
        self.diffusion = DiffusionTransformer(config)
        if self.start.device.type != "meta":
            self.start_weights(generator)

    def start_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights: N(0, ``init_std``), time's frequencies N(0, 1); biases 0 and norms 1 stay as they are."""
        start_weights(self, generator)
        nn.init.normal_(self.start, std=self.config.init_std, generator=generator)
        nn.init.normal_(self.diffusion.time.frequencies, generator=generator)

    def matrices(self) -> Iterator[str]:
        """Names of the transformers' matrices, which may be kept in another type than float32.

        What is small or delicate is not among them: norms, embeddings, diffusion time, and the token classifier's last
        map.
        """
        for place in ("language_model", "patch_encoder", "classifier.hidden", "diffusion"):
            for name, module in self.get_submodule(place).named_modules():
                if isinstance(module, Linear) and not name.startswith("time."):
                    yield ".".join(part for part in (place, name, "weight") if part)

    def store_matrices(self, dtype: torch.dtype) -> SongBloomPrior:
        """Keep the transformers' matrices in ``dtype``, to read them without casting when computing in it."""
        for name in self.matrices():
            matrix = self.get_parameter(name)
            matrix.data = matrix.data.to(dtype)
        return self

    # ------------------------------------------------------------------------------------------------ conditions

    def conditions(
        self,
        lyrics: Sequence[Sequence[int]],
        prompt: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        spans: Sequence[Sequence[Span] | None] | None = None,
        resolution: float = 0.25,
    ) -> Conditions:
        """Embed the conditions of N songs.

        Args:
            lyrics: the tokens of each song; an empty list is no lyrics.
            prompt: latents ``[N, frames, latent_width]`` of the style prompts; None is no prompt.
            valid: ``[N]``, real frames of each; all by default, 0 is no prompt.
            spans: for each song the seconds at which its sections begin and end, or None, to stretch its lyrics over
                them. Only for models that were trained with it, which the published ones were not.
            resolution: seconds a lyric position where there are spans.

        Raises:
            UserError: lyrics and prompts of different numbers of songs, latents of another codec, or unknown tokens.
        """
        if prompt is None:
            prompt = torch.zeros(len(lyrics), 0, self.config.latent_width, device=self.start.device)
        prompt = prompt.to(self.start.device)
        if len(prompt) != len(lyrics):
            raise UserError(f"{len(lyrics)} lyrics and {len(prompt)} style prompts: give one of each a song")
        if prompt.shape[-1] != self.config.latent_width:
            raise UserError(
                f"the style prompt's latents have {prompt.shape[-1]} channels, but this prior reads"
                f" {self.config.latent_width}: encode it with the prior's own codec"
            )
        if spans is None:
            return Conditions(prompt=self.prompt(prompt, valid), lyrics=self.lyrics(lyrics))
        embedded = [
            self.lyrics([ids])[0] if times is None else self.lyrics.stretched(ids, times, resolution)
            for ids, times in zip(lyrics, spans, strict=True)
        ]
        return Conditions(prompt=self.prompt(prompt, valid), lyrics=torch.stack(embedded))

    def null_conditions(self, songs: int = 1) -> Conditions:
        """No lyrics and no style prompt: what guidance starts from."""
        return self.conditions([NULL_LYRICS] * songs)

    # ------------------------------------------------------------------------------------------------ the sequence

    def sequence(self, tokens: Tensor, latents: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Start, then each patch's token embeddings and its latents' vector: ``[N, 1 + (P + 1) patches, W]``.

        Args:
            tokens: ``[N, T]`` int64, T whole patches.
            latents: ``[N, T, latent_width]``.
        """
        size, n = self.config.patch_size, len(tokens)
        start = self.start.to(dtype).expand(n, 1, -1)
        words = self.sketch_embedding(tokens).to(dtype).unflatten(1, (-1, size))
        encoded = self.patch_encoder(latents.to(dtype).unflatten(1, (-1, size)))
        return torch.cat([start, torch.cat([words, encoded[:, :, None]], dim=2).flatten(1, 2)], dim=1)

    def hidden(
        self, tokens: Tensor, latents: Tensor, conditions: Conditions, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The language model's outputs at the song's own positions: ``[N, 1 + (P + 1) patches, W]``."""
        song = self.sequence(tokens, latents, dtype=dtype)
        return self.language_model(torch.cat([conditions.prefix().to(dtype), song], dim=1))[:, -song.shape[1] :]

    # -------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        tokens: Tensor,
        latents: Tensor,
        lengths: Tensor,
        lyrics: Sequence[Sequence[int]],
        prompt: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
        precision: str | torch.dtype = "fp32",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss: cross-entropy of the sketch plus ``flow_loss_fraction`` times the diffusion's error.

        Args:
            tokens: ``[N, T]`` int64; T and the lengths are whole patches, what lies behind a length is not looked at.
            latents: ``[N, T, latent_width]``.
            lengths: ``[N]`` frames of each song, at least one patch.
            lyrics, prompt, valid: as in :meth:`conditions`.
            generator: for diffusion times, noise and dropout; None is torch's own.
            draws: these draws instead.
            precision: what the transformers compute in.

        Returns:
            The loss and detached ``loss, sketch_loss, flow_loss, sketch_accuracy``.

        Raises:
            UserError: lengths that don't fit.
        """
        conditions = self.conditions(lyrics, prompt, valid)
        if self.training:
            conditions = drop_conditions(self.config, conditions, self.null_conditions(), generator)
        outputs = self.training_outputs(
            tokens, latents, lengths, conditions, draws=draws, generator=generator, dtype=dtype_of(precision)
        )
        return losses(outputs, self.config)

    def training_outputs(
        self,
        tokens: Tensor,
        latents: Tensor,
        lengths: Tensor,
        conditions: Conditions,
        *,
        draws: TrainingDraws | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> TrainingOutputs:
        """Predictions and targets of a batch; gradients reach the language model through the hidden vectors too.

        Raises:
            UserError: a batch that is not whole patches.
        """
        config, size = self.config, self.config.patch_size
        check_lengths(config, tokens, latents, lengths)
        hidden = self.hidden(tokens, latents, conditions, dtype=dtype)
        # Positions: start, then (token × P, patch) a patch; the last token's output is the hidden vector.
        body = hidden[:, 1:].unflatten(1, (-1, size + 1))
        hidden_vectors = body[:, :, size - 1]
        predictors = torch.cat([body[:, :, : size - 1], body[:, :, size:]], dim=2).flatten(1, 2)
        logits = self.classifier(torch.cat([hidden[:, :1], predictors], dim=1))

        place = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        targets = F.pad(tokens, (0, 1), value=config.eos)
        targets = targets.masked_fill(place == lengths[:, None], config.eos)
        targets = targets.masked_fill(place > lengths[:, None], config.ignored)

        real = torch.arange(body.shape[1], device=tokens.device) * size < lengths[:, None]
        clean = latents.float().unflatten(1, (-1, size))
        previous = F.pad(clean[:, :-1], (0, 0, 0, 0, 1, 0))[real]
        clean = clean[real]
        if draws is None:
            draws = draw_for_training(
                config, len(clean), training=self.training, generator=generator, device=tokens.device
            )
        shown_hidden = hidden_vectors[real] * ~draws.hide_hidden.view(-1, 1)
        sketch = self.sketch_embedding(tokens.unflatten(1, (-1, size))[real]).to(dtype)
        sketch = sketch * ~draws.hide_sketch.view(-1, 1, 1)
        noisy, target = mix(config.diffusion_objective, clean, draws.noise, draws.t)
        velocity = self.diffusion(noisy, draws.t, shown_hidden, sketch, previous)
        return TrainingOutputs(logits, targets, velocity, target, draws.t)

    # ------------------------------------------------------------------------------------------------- attention

    def lyric_heads(self) -> list[tuple[int, int]]:
        """The (layer, head) pairs that can look at the lyrics: all of the language model's."""
        return [(layer, head) for layer in range(self.config.prior_depth) for head in range(self.config.heads)]

    @torch.no_grad()
    def lyric_attention(
        self, tokens: Tensor, latents: Tensor, conditions: Conditions, *, wanted: Sequence[tuple[int, int]]
    ) -> Tensor:
        """How much each frame's prediction looked at each lyric position.

        Args:
            tokens, latents: ``[N, T]`` and ``[N, T, latent_width]``.
            wanted: (layer, head) pairs of the language model.

        Returns:
            ``[len(wanted), N, T, lyric_tokens]``, float32; a row sums to less than 1, as it looks elsewhere too.
        """
        config = self.config
        prefix = conditions.prefix()
        whole = torch.cat([prefix, self.sequence(tokens, latents)], dim=1)
        weights = self.language_model.attention_weights(whole, wanted)
        rows = weights[..., config.prefix : -1, config.prompt_frames : config.prefix]
        size = config.patch_size
        return rows.unflatten(2, (-1, size + 1))[:, :, :, :size].flatten(2, 3)

    def cost(self) -> dict[str, float]:
        """Parameters, and what one patch costs one song without guidance: multiplications and additions of the
        language model's matrices a token position and of the diffusion transformer's a step (of these, ``needed`` are
        those that are not the same at all steps of a patch and that something reads), bytes (float32) of weights that
        each reads, and cache bytes a position."""
        config = self.config
        square = config.prior_width**2
        layer = 4 * square + 3 * config.prior_width * config.mlp_width
        classifier = sum(p.numel() for p in self.classifier.parameters())
        lm, dit = config.prior_depth * layer, config.dit_depth * layer
        prepended = config.time_conditioning == "prepend"
        positions = 1 + 3 * config.patch_size + prepended
        spared = layer - 2 * square  # in the last layer, at other positions than the latents', all but keys and values
        if prepended:  # in the first layer what all positions project, of which a single layer counts queries already
            spared += (2 if config.dit_depth == 1 else 3) * square
        return {
            "parameters": sum(p.numel() for p in self.parameters()),
            "language_model_operations_a_position": 2 * lm,
            "classifier_operations_a_token": 2 * classifier,
            "diffusion_operations_a_step": 2 * dit * positions,
            "diffusion_operations_needed_a_step": 2 * (dit * positions - spared * (positions - config.patch_size)),
            "language_model_bytes_a_position": 4 * lm,
            "diffusion_bytes_a_step": 4 * dit,
            "cache_bytes_a_position": 2 * 4 * config.prior_depth * config.prior_width,
        }
