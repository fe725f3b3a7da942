"""Writing songs: tokens of a patch one by one, its latents at once, then the next patch.

Several songs go in step, each with its own random generator. The rows of the language model are the songs' and, for
guidance, once more the same songs without conditions, in one batch; a prompt's conditions are computed once however
many songs share it, and the null conditions once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.config import dtype_of
from songbloom.prior.filters import filter_logits
from songbloom.prior.songbloom import graphs, native, steps
from songbloom.prior.songbloom.conditioners import Conditions
from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.draws import Draws, Generators, RandomDraws
from songbloom.prior.songbloom.layers import can_step_fast
from songbloom.prior.songbloom.samplers import integrate
from songbloom.prior.songbloom.settings import GenerationSettings

if TYPE_CHECKING:
    from songbloom.prior.songbloom.llama import Prefix
    from songbloom.prior.songbloom.prior import SongBloomPrior


@dataclass(frozen=True)
class Patch:
    """One patch of the songs that have it.

    Attributes:
        index: its number in the songs, known patches counted.
        items: which songs.
        tokens: ``[n, patch_size]`` int64.
        latents: ``[n, patch_size, latent_width]`` float32.
    """

    index: int
    items: tuple[int, ...]
    tokens: Tensor
    latents: Tensor


@dataclass
class Song:
    """One song.

    Attributes:
        tokens: ``[T]`` int64, T whole patches.
        latents: ``[T, latent_width]`` float32.
        ended: whether the model ended it, and not the length that it was allowed.
    """

    tokens: Tensor
    latents: Tensor
    ended: bool = False


@dataclass
class Trace:
    """What happened inside, for tests and curiosity; asking for it also computes rows that nothing needs.

    Attributes:
        logits: for each token ``[2, n, l_bins + 1]``, with and without conditions, before guidance.
        drawn_from: for each token ``[n, l_bins + 1]``, the probabilities that it was drawn from.
    """

    logits: list[Tensor] = field(default_factory=list)
    drawn_from: list[Tensor] = field(default_factory=list)


def guide(given: Tensor, null: Tensor, coefficient: float) -> Tensor:
    """Classifier-free guidance, ``null + (given − null) · coefficient``."""
    return null + (given - null) * coefficient


def guide_halves(x: Tensor, coefficient: float) -> Tensor:
    """:func:`guide` between the first half of the rows and the second."""
    given, null = x.chunk(2)
    return guide(given, null, coefficient)


def penalise(
    logits: Tensor, recent: Tensor, penalty: float, eos: int, *, raises_negative_logits: bool = False
) -> Tensor:
    """Make tokens less likely that were written lately (Keskar et al. 2019), each once, however often it was.

    Args:
        logits: ``[n, bins]``.
        recent: ``[n, window]`` tokens; end-of-song among them stands for none.
        penalty: positive logits are divided by it and negative ones multiplied.
        raises_negative_logits: divide those too, which makes them likelier.
    """
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, recent, True)
    seen[:, eos] = False
    lower = torch.where((logits < 0) & (not raises_negative_logits), logits * penalty, logits / penalty)
    return torch.where(seen, lower, logits)


def may_end(config: SongBloomConfig, settings: GenerationSettings, patch: int, place: int) -> bool:
    """Whether the song may end at this place of this patch."""
    if patch * config.patch_size < settings.min_frames:
        return False
    return place == 0 or settings.compatibility.eos_inside_patch


class _Latents:
    """The latents of patch after patch; time embeddings are computed once a run.

    Args:
        fast: use the fast steps where they can be.
    """

    def __init__(self, prior: SongBloomPrior, settings: GenerationSettings, *, fast: bool = True) -> None:
        self.prior, self.settings, self.fast = prior, settings, fast
        self.embedded: dict[float, Tensor] = {}
        self.steps: native.NativeDiffusion | steps.DiffusionSteps | None = None
        self.recorded: dict[tuple[int, ...], graphs.Recorded] = {}  # of each shape of what is known

    def begun(self, known: Tensor) -> native.NativeDiffusion | steps.DiffusionSteps | None:
        """The fastest steps of a patch on a CPU, where there are such."""
        if not self.fast:
            return None
        if self.steps is None:
            if native.available(known):
                half = known.dtype == torch.bfloat16
                self.steps = native.NativeDiffusion(self.prior.diffusion, copied_bytes=steps.COPIED_BYTES, half=half)
            elif can_step_fast(known):
                self.steps = steps.DiffusionSteps(self.prior.diffusion)
            else:
                return None
        self.steps.begin(known)
        return self.steps

    def plain(self, known: Tensor) -> Callable[..., Tensor]:
        """The transformer's own step, on a GPU recorded."""
        if not self.fast or not graphs.here(known.device):
            return self.prior.diffusion.velocity
        if tuple(known.shape) not in self.recorded:
            self.recorded = {tuple(known.shape): graphs.velocities(self.prior.diffusion, known.device)}
        return self.recorded[tuple(known.shape)]

    def time(self, t: Tensor, device: torch.device) -> Tensor:
        """``[1, W]``."""
        if float(t) not in self.embedded:
            self.embedded[float(t)] = self.prior.diffusion.time(t.to(device)[None])
        return self.embedded[float(t)]

    def known(self, hidden: Tensor, sketch: Tensor, previous: Tensor) -> Tensor:
        """What does not change over the steps, on a CPU a song at a time: rounding knows nothing of the others."""
        known = self.prior.diffusion.known
        if hidden.device.type != "cpu":
            return known(hidden, sketch, previous)
        songs = zip(hidden.split(1), sketch.split(1), previous.split(1), strict=True)
        return torch.cat([known(*song) for song in songs])

    def draw(self, hidden: Tensor, tokens: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        """One patch's latents ``[n, patch_size, latent_width]``.

        Args:
            hidden: ``[n, W]``, or ``[2n, W]`` for ``global`` guidance, the null rows last.
            tokens: ``[n, patch_size]``.
            previous, noise: ``[n, patch_size, latent_width]``.
        """
        prior, settings, n = self.prior, self.settings, len(tokens)
        coefficient = settings.cfg_diffusion
        how = "none" if coefficient == 1 else settings.dit_cfg_type
        sketch = prior.sketch_embedding(tokens).to(hidden.dtype)
        if how == "none":
            known = self.known(hidden[:n], sketch, previous)
        elif how == "global":
            known = self.known(hidden, sketch.repeat(2, 1, 1), previous.repeat(2, 1, 1))
            noise = noise.repeat(2, 1, 1)
        else:
            given = self.known(hidden[:n], sketch, previous)
            blind = self.known(torch.zeros_like(hidden[:n]), torch.zeros_like(sketch), previous)
            known = torch.cat([given, blind])
        begun = self.begun(known)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            x = x.repeat(2, 1, 1) if how == "h" else x
            if begun is not None:
                v = begun.velocity(x, t)
            else:
                v = self.plain(known)(x, self.time(t, x.device).expand(len(x), -1), known)
            return guide_halves(v, coefficient) if how == "h" else v

        latents = integrate(
            prior.config.diffusion_objective,
            settings.sampler,
            velocity,
            noise,
            settings.steps,
            temperature=settings.diffusion_temperature,
            estimate_at_one=settings.compatibility.start_estimate_at_one,
        )
        return guide_halves(latents, coefficient) if how == "global" else latents


class _Run:
    """The state of the songs that go on: rows of the cache, tokens so far, the latents before."""

    def __init__(
        self,
        prior: SongBloomPrior,
        conditions: Conditions,
        counts: Sequence[int],
        settings: GenerationSettings,
        draws: Draws,
        *,
        known: tuple[Tensor, Tensor] | None,
        sketch: Sequence[Tensor] | None,
        dtype: torch.dtype,
        trace: Trace | None,
        prefixes: Sequence[Prefix] | None = None,
        fast: bool = True,
    ) -> None:
        self.prior, self.config, self.settings, self.draws = prior, prior.config, settings, draws
        self.sketch, self.dtype, self.trace, self.fast = sketch, dtype, trace, fast
        size, n = self.config.patch_size, sum(counts)
        self.items = list(range(n))
        global_guidance = settings.dit_cfg_type == "global" and settings.cfg_diffusion != 1
        self.guided = global_guidance or trace is not None or (sketch is None and settings.cfg_lm != 1)
        self.patches = settings.patches(size) if sketch is None else max(map(len, sketch)) // size
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        if self.guided:
            rows += [len(conditions)] * n
            if prefixes is None:
                conditions = conditions.followed_by(prior.null_conditions())
        device = prior.start.device
        if known is None:
            empty = torch.zeros(n, 0, dtype=torch.int64, device=device)
            known = empty, torch.zeros(n, 0, self.config.latent_width, device=device)
        tokens, latents = (part.to(device) for part in known)
        self.past = tokens
        self.first = tokens.shape[1] // size
        self.previous = F.pad(latents.float(), (0, 0, size, 0))[:, -size:]  # zeros before the first patch
        begins = conditions.prefix().to(dtype) if prefixes is None else prefixes
        capacity = 1 + (size + 1) * max(self.patches, self.first)
        self.cache = prior.language_model.begin(begins, rows, capacity)
        self.recorded = graphs.LanguageSteps(prior.language_model, self.cache)
        self.native: native.NativeLanguage | None = None
        self.classifier: Callable[[Tensor], Tensor] = prior.classifier
        self.encoder: Callable[[Tensor], Tensor] = prior.patch_encoder
        if fast and native.available(self.cache.keys):
            self.native = native.NativeLanguage(prior.language_model, self.cache)
            self.classifier = native.NativeMaps(prior.classifier.hidden, prior.classifier.output)
            encoder = native.NativeMaps(prior.patch_encoder.hidden, prior.patch_encoder.output)
            self.encoder = lambda latents: encoder(latents.flatten(1)).to(dtype)
        self.next_input = self.doubled(prior.sequence(tokens, latents, dtype=dtype))

    def doubled(self, x: Tensor) -> Tensor:
        """One row a song → the rows of the language model."""
        return torch.cat([x, x]) if self.guided else x

    def step(self, x: Tensor) -> Tensor:
        """The language model's next positions ``[rows, m, W]``; single ones natively, or on a GPU recorded."""
        if x.shape[1] == 1 and self.native is not None:
            return self.native.step(x)
        if x.shape[1] == 1 and self.fast and graphs.here(x.device):
            return self.recorded(x)
        return self.prior.language_model.step(x, self.cache, fast=self.fast)

    def keep(self, kept: list[int]) -> None:
        """Only these of the songs that go on go on."""
        if len(kept) == len(self.items):
            return
        n = len(self.items)
        rows = kept + [n + place for place in kept] if self.guided else kept
        self.cache.select(rows)
        self.items = [self.items[place] for place in kept]
        index = torch.tensor(kept, dtype=torch.int64, device=self.past.device)
        self.past, self.previous = self.past[index], self.previous[index]
        index = torch.tensor(rows, dtype=torch.int64, device=self.past.device)
        self.next_input = self.next_input[index]

    def choose(self, hidden: Tensor, patch: int, place: int) -> Tensor:
        """One token a song from the language model's vectors ``[rows, W]``."""
        settings, compatibility, eos = self.settings, self.settings.compatibility, self.config.eos
        logits = self.classifier(hidden)
        if self.trace is not None:
            self.trace.logits.append(torch.stack(logits.chunk(2)))
        if self.guided:
            logits = logits.chunk(2)[0] if settings.cfg_lm == 1 else guide_halves(logits, settings.cfg_lm)
        recent = self.past[:, -settings.penalty_window :] if settings.penalty_window else self.past[:, :0]
        if settings.penalty != 1 and recent.shape[1] and not (patch == 0 and compatibility.first_patch_unpenalised):
            lower = compatibility.penalty_raises_negative_logits
            logits = penalise(logits, recent, settings.penalty, eos, raises_negative_logits=lower)
        if not may_end(self.config, settings, patch, place):
            logits = logits.index_fill(1, torch.tensor([eos], device=logits.device), float("-inf"))
        if settings.temperature == 0:
            return logits.argmax(-1)
        top_k = 0 if settings.top_p else settings.top_k
        logits = filter_logits(logits / settings.temperature, top_k=top_k, top_p=settings.top_p)
        if self.trace is not None:
            self.trace.drawn_from.append(logits.softmax(-1))
        return self.draws.tokens(logits, self.items).to(hidden.device)

    def write_sketch(self, patch: int) -> tuple[Tensor, Tensor]:
        """The tokens of a patch ``[n, patch_size]`` and the vector of each row after it ``[rows, W]``.

        Songs that end here leave; n is the number of those that go on and may be 0.
        """
        size, start = self.config.patch_size, self.past.shape[1]
        x = self.next_input
        for place in range(size):
            hidden = self.step(x)[:, -1]
            token = self.choose(hidden, patch, place)
            self.past = torch.cat([self.past, token[:, None]], dim=1)
            if place == 0 and not self.settings.compatibility.eos_inside_patch:
                self.keep([row for row, end in enumerate((token == self.config.eos).tolist()) if not end])
            if not self.items:
                return self.past[:, start:], hidden[:0]
            x = self.doubled(self.embed(self.past[:, -1:]))
        if self.settings.compatibility.eos_inside_patch:
            ended = (self.past[:, start:] == self.config.eos).any(-1).tolist()
            self.keep([row for row, end in enumerate(ended) if not end])
            if not self.items:
                return self.past[:, start:], hidden[:0]
            x = self.doubled(self.embed(self.past[:, -1:]))
        return self.past[:, start:], self.step(x)[:, -1]

    def read_sketch(self, patch: int, sketch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same with tokens that are there already: all of a patch in one step."""
        size = self.config.patch_size
        self.keep([row for row, item in enumerate(self.items) if len(sketch[item]) >= (patch + 1) * size])
        if not self.items:
            return self.past[:, :0], self.next_input[:0, 0]
        tokens = torch.stack([sketch[item][patch * size : (patch + 1) * size] for item in self.items])
        tokens = tokens.to(self.past.device)
        self.past = torch.cat([self.past, tokens], dim=1)
        x = torch.cat([self.next_input, self.doubled(self.embed(tokens))], dim=1)
        return tokens, self.step(x)[:, -1]

    def embed(self, tokens: Tensor) -> Tensor:
        """``[n, m]`` → ``[n, m, W]`` in what the transformers compute in."""
        return self.prior.sketch_embedding(tokens).to(self.dtype)

    def patches_written(self) -> Iterator[Patch]:
        """Patch after patch until no song goes on."""
        config, latents_of = self.config, _Latents(self.prior, self.settings, fast=self.fast)
        shape = (config.patch_size, config.latent_width)
        for index in range(self.first, self.patches):
            self.draws.begin_patch(index)
            if self.sketch is None:
                tokens, hidden = self.write_sketch(index)
            else:
                tokens, hidden = self.read_sketch(index, self.sketch)
            if not self.items:
                return
            noise = self.draws.noise(shape, self.items).to(hidden.device)
            latents = latents_of.draw(hidden, tokens, self.previous, noise)
            self.previous = latents
            self.next_input = self.doubled(self.encoder(latents.to(self.dtype))[:, None])
            yield Patch(index, tuple(self.items), tokens, latents)


def check_request(
    config: SongBloomConfig,
    conditions: Conditions,
    counts: Sequence[int],
    known: tuple[Tensor, Tensor] | None,
    sketch: Sequence[Tensor] | None,
) -> None:
    """Refuse counts, known patches or a sketch that don't fit.

    Raises:
        UserError: what does not fit.
    """
    songs, size = sum(counts), config.patch_size
    if len(counts) != len(conditions) or min(counts, default=0) < 1:
        raise UserError(f"{list(counts)} songs for {len(conditions)} prompts: ask for at least one of each prompt")
    if known is not None:
        tokens, latents = known
        if len(tokens) != songs or latents.shape != (*tokens.shape, config.latent_width) or tokens.shape[1] % size:
            raise UserError(
                f"a beginning of tokens {tuple(tokens.shape)} and latents {tuple(latents.shape)} for {songs} songs:"
                f" give whole patches of {size} frames with {config.latent_width} floats each"
            )
    if sketch is not None and (len(sketch) != songs or any(len(song) % size or not len(song) for song in sketch)):
        lengths = [len(song) for song in sketch]
        raise UserError(f"sketches of {lengths} tokens for {songs} songs: give each whole patches of {size}")
    given = ([known[0].flatten()] if known is not None else []) + list(sketch or [])
    if any(tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < config.l_bins for tokens in given):
        raise UserError(f"sketch tokens must lie from 0 to {config.l_bins - 1}: were they made by another codebook?")


@torch.no_grad()
def sample_patches(
    prior: SongBloomPrior,
    conditions: Conditions,
    settings: GenerationSettings,
    *,
    counts: Sequence[int] | None = None,
    generators: Generators | Callable[[int], Generators] | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    sketch: Sequence[Tensor] | None = None,
    precision: str | torch.dtype = "fp32",
    draws: Draws | None = None,
    trace: Trace | None = None,
    prefixes: Sequence[Prefix] | None = None,
    fast: bool = True,
) -> Iterator[Patch]:
    """Write songs, giving out each patch as it is done.

    Args:
        conditions: of the prompts.
        counts: songs of each prompt; by default one. Songs are numbered prompt by prompt.
        generators: one a song, or a function of the patch's number that gives them; by default seeded 0, 1, 2, …
        known: tokens ``[songs, T]`` and latents ``[songs, T, latent_width]`` that the songs begin with.
        sketch: tokens of the whole songs (``[T]`` each, ``known`` included), for which only latents are made.
        precision: what the transformers compute in; latents are integrated in float32.
        draws: instead of ``generators``.
        trace: is told what happens inside.
        prefixes: the language model's ``read`` of each of the conditions and, after them, of the null conditions, in
            ``precision``; computed here where they are not given.
        fast: take the fast paths, whose numbers are the same to rounding, where they can be: float32 on a CPU.

    Raises:
        UserError: what does not fit.
    """
    counts = [1] * len(conditions) if counts is None else list(counts)
    check_request(prior.config, conditions, counts, known, sketch)
    songs = sum(counts)
    if draws is None:
        if generators is None:
            generators = [torch.Generator().manual_seed(song) for song in range(songs)]
        draws = RandomDraws(generators, songs)
    run = _Run(
        prior,
        conditions,
        counts,
        settings,
        draws,
        known=known,
        sketch=sketch,
        dtype=dtype_of(precision),
        trace=trace,
        prefixes=prefixes,
        fast=fast,
    )
    yield from run.patches_written()


def generate(
    prior: SongBloomPrior,
    conditions: Conditions,
    settings: GenerationSettings,
    *,
    on_patch: Callable[[Patch], None] | None = None,
    **arguments: Any,
) -> list[Song]:
    """Write whole songs: :func:`sample_patches` (whose arguments it takes), collected; known patches come first.

    Args:
        on_patch: called after each patch.
    """
    config = prior.config
    counts = arguments.get("counts") or [1] * len(conditions)
    songs = sum(counts)
    known = arguments.get("known")
    tokens: list[list[Tensor]] = [[] for _ in range(songs)]
    latents: list[list[Tensor]] = [[] for _ in range(songs)]
    if known is not None:
        for item, (token, latent) in enumerate(zip(*known, strict=True)):
            tokens[item].append(token)
            latents[item].append(latent.float())
    for patch in sample_patches(prior, conditions, settings, **arguments):
        for row, item in enumerate(patch.items):
            tokens[item].append(patch.tokens[row])
            latents[item].append(patch.latents[row])
        if on_patch is not None:
            on_patch(patch)
    written = []
    allowed = settings.patches(config.patch_size) * config.patch_size
    device = prior.start.device
    nothing = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, config.latent_width, device=device)
    for item in range(songs):
        song = Song(torch.cat([nothing[0], *tokens[item]]), torch.cat([nothing[1], *latents[item]]))
        song.ended = arguments.get("sketch") is None and len(song.tokens) < allowed
        if not len(song.tokens) and settings.compatibility.silent_first_patch:
            song.latents = torch.zeros(config.patch_size, config.latent_width, device=device)
        written.append(song)
    return written
