"""Lyrics and style prompt → the positions that stand before the song."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.errors import UserError, counted
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.layers import Embedding, Linear

NULL_LYRICS = (0,)  # no words: one empty word
Span = tuple[float, float]


@dataclass(frozen=True)
class Conditions:
    """The conditions of N songs, embedded.

    Attributes:
        prompt: ``[N, prompt_frames, W]``.
        lyrics: ``[N, lyric_tokens, W]``.
    """

    prompt: Tensor
    lyrics: Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    def prefix(self) -> Tensor:
        """``[N, prompt_frames + lyric_tokens, W]``: style prompt first."""
        return torch.cat([self.prompt, self.lyrics], dim=1)

    def __getitem__(self, items: slice | Sequence[int]) -> Conditions:
        chosen = items if isinstance(items, slice) else list(items)
        return Conditions(self.prompt[chosen], self.lyrics[chosen])

    def followed_by(self, other: Conditions) -> Conditions:
        """These songs and then those of ``other``."""
        return Conditions(torch.cat([self.prompt, other.prompt]), torch.cat([self.lyrics, other.lyrics]))


class LyricConditioner(nn.Module):
    """Lyric tokens → vectors: a token's own, that of the section it stands in, and that of its sentence's place.

    The blank vector that fills the rest is kept with the weights and not learned.
    """

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = Embedding(config.lyric_vocabulary, config.prior_width, std=config.init_std)
        self.sentences = Embedding(config.sentences, config.prior_width, std=config.init_std)
        self.blank = nn.Parameter(torch.zeros(1, config.prior_width), requires_grad=False)

    def places(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """For each token the token of its section and its sentence's number there.

        Tags, ``,`` and ``.`` stand for themselves and have number 0; words before the first tag have section 0. A
        section starts with sentence 1; those past the table's end share its last row.
        """
        sections, sentences = [], []
        section, sentence = 0, 1
        for token in ids:
            mark = True
            if token in self.config.structure_tokens:
                section, sentence = token, 1
            elif token == self.config.sentence_token:
                sentence += 1
            elif token != self.config.section_token:
                mark = False
            sections.append(token if mark else section)
            sentences.append(0 if mark else min(sentence, self.config.sentences - 1))
        return sections, sentences

    def embed(self, ids: Sequence[int]) -> Tensor:
        """One song's tokens, neither filled nor cut: ``[len(ids), W]``; no tokens are the null lyrics.

        Raises:
            UserError: a token is outside of the vocabulary.
        """
        ids = list(ids) or list(NULL_LYRICS)
        if not all(0 <= token < self.config.lyric_vocabulary for token in ids):
            raise UserError(
                f"lyric tokens go from {min(ids)} to {max(ids)}, but this prior knows 0 to"
                f" {self.config.lyric_vocabulary - 1}: make them with the vocabulary that it was trained with"
            )
        sections, sentences = self.places(ids)
        device = self.tokens.weight.device
        token, section, sentence = (torch.tensor(part, device=device) for part in (ids, sections, sentences))
        return self.tokens(token) + self.tokens(section) + self.sentences(sentence)

    def fill(self, vectors: Tensor) -> Tensor:
        """``[n, W]`` → ``[lyric_tokens, W]``, cut or filled with the blank vector."""
        missing = max(0, self.config.lyric_tokens - len(vectors))
        return torch.cat([vectors[: self.config.lyric_tokens], self.blank.expand(missing, -1)])

    def forward(self, songs: Sequence[Sequence[int]]) -> Tensor:
        """The tokens of N songs → ``[N, lyric_tokens, W]``."""
        return torch.stack([self.fill(self.embed(ids)) for ids in songs])

    def stretched(
        self, ids: Sequence[int], spans: Sequence[Span], resolution: float, *, next_tag_after_section: bool = False
    ) -> Tensor:
        """One song's tokens stretched over its sections' times: ``[lyric_tokens, W]``.

        Each section is resized (nearest) to the positions that its time has, its last one being its ``,``.

        Args:
            ids: the song's tokens; each tag begins a section.
            spans: seconds at which each section begins and ends, one a tag.
            resolution: seconds a position.
            next_tag_after_section: put the next section's tag where the ``,`` belongs, as the published code does.

        Raises:
            UserError: there are not as many times as tags, or a section is left without a position.
        """
        ids = list(ids)
        starts = [place for place, token in enumerate(ids) if token in self.config.structure_tokens]
        if len(starts) != len(spans):
            raise UserError(
                f"{counted(len(spans), 'time')} for {counted(len(starts), 'section')}: give one time a structure tag"
            )
        vectors = self.embed(ids)
        parts = [vectors[: starts[0]]] if starts else [vectors]
        for number, (start, (begin, end)) in enumerate(zip(starts, spans, strict=True)):
            final = number + 1 == len(starts)
            stop = len(ids) if final else starts[number + 1]
            inner = vectors[start : stop - (stop - start > 1 and ids[stop - 1] == self.config.section_token)]
            positions = int(end / resolution) - int(begin / resolution) - (not final)
            if positions < 1:
                raise UserError(
                    f"section {number + 1} lasts from {begin:g} to {end:g} s, less than a position of {resolution:g} s:"
                    " give it more time"
                )
            parts.append(F.interpolate(inner.t()[None], size=positions, mode="nearest-exact")[0].t())
            if not final:
                parts.append(vectors[stop : stop + 1] if next_tag_after_section else vectors[stop - 1 : stop])
        return self.fill(torch.cat(parts))


class PromptConditioner(nn.Module):
    """Latents of the style prompt → vectors; what is not there is zeros."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.config = config
        self.projection: Linear | None = None
        if config.latent_width != config.prior_width:
            self.projection = Linear(config.latent_width, config.prior_width, std=config.init_std)

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Tensor:
        """Latents ``[N, frames, latent_width]`` of N prompts → ``[N, prompt_frames, W]``.

        Args:
            latents: as the codec encodes them, 25 frames a second; frames may be none at all.
            valid: ``[N]``, how many frames of each prompt are real; by default all. 0 is the null prompt.
        """
        config = self.config
        latents = latents[:, : config.prompt_frames].float()
        vectors = self.projection(latents) if self.projection is not None else latents
        vectors = F.pad(vectors, (0, 0, 0, config.prompt_frames - vectors.shape[1]))
        if valid is None:
            return vectors
        real = torch.arange(config.prompt_frames, device=vectors.device) < valid.to(vectors.device)[:, None]
        return vectors * real[..., None]


def frames_as_published(lengths: Tensor, longest: int, prompt_frames: int) -> Tensor:
    """How many frames of each prompt the published code takes for real, given lengths and the longest in samples.

    It takes the longest prompt of a batch for a full one, so the others' counts are wrong where it is shorter than
    that; the frames of a prompt's own length (its samples over the codec's hop) are right. A batch of full prompts
    has the same counts either way.
    """
    return torch.round(lengths * prompt_frames / longest).int()
