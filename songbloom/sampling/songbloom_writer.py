"""Writing frames, sketch and latents in turns, window after window of whole patches.

A window is a fixed number of patches and begins at a whole multiple of it. At its beginning the language model computes
the positions of all that is there anew, in undisturbed runs too, so that a run that is taken up from its journal goes
on with the very same numbers. The positions of the conditions are computed once a prompt and shared by all windows and
samples of it, each prompt by itself, so they do not depend on who is beside it. What is drawn for a patch depends on
the item's seed, the level and the patch alone: the same sketch gets the same latents when it is upsampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from songbloom.prior.config import dtype_of
from songbloom.prior.draws import draw
from songbloom.prior.songbloom.conditioners import Conditions
from songbloom.prior.songbloom.generate import sample_patches
from songbloom.prior.songbloom.llama import Prefix
from songbloom.prior.songbloom.prior import SongBloomPrior
from songbloom.prior.songbloom.settings import GenerationSettings
from songbloom.sampling import windows
from songbloom.sampling.form import Frames
from songbloom.sampling.sampler import Labels, window_generators
from songbloom.sampling.windows import Window

WINDOW_PATCHES = 16  # of 16 frames at 25 frames a second: 10.24 s
SKETCH, LATENTS = 1, 0


@dataclass(frozen=True)
class SongSettings:
    """How songs are drawn.

    Attributes:
        generation: of tokens and latents; its lengths are the run's matter.
        window_patches: patches of a window.
        max_batch_size: items sampled together.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    window_patches: int = WINDOW_PATCHES
    max_batch_size: int = 16
    precision: str = "fp32"

    def plain(self) -> dict[str, Any]:
        """As a dict, with the published names."""
        of = self.generation
        faults = [name for name, there in vars(of.compatibility).items() if there]
        return {
            "temp": of.temperature,
            "top_k": of.top_k,
            "top_p": of.top_p,
            "cfg_coef": [of.cfg_lm, of.cfg_diffusion],
            "dit_cfg_type": of.dit_cfg_type,
            "penalty": of.penalty,
            "penalty_window": of.penalty_window,
            "steps": of.steps,
            "sampler": of.sampler,
            "diff_temp": of.diffusion_temperature,
            "min_frames": of.min_frames,
            "compatibility": faults,
            "window_patches": self.window_patches,
            "max_batch_size": self.max_batch_size,
            "precision": self.precision,
        }

    def identity(self) -> dict[str, Any]:
        """What of :meth:`plain` decides what is written, but for rounding."""
        kept = self.plain()
        del kept["max_batch_size"]
        return kept

    def told(self) -> list[tuple[str, str]]:
        """As (word, value) pairs for a page."""
        of = self.generation
        guidance = f"{of.cfg_lm:g}, {of.cfg_diffusion:g} ({of.dit_cfg_type})"
        filters = [("top_p", f"{of.top_p:g}")] if of.top_p else [("top_k", f"{of.top_k}")]
        return [
            ("temp", f"{of.temperature:g}"),
            *filters,
            ("cfg_coef", guidance),
            ("steps", f"{of.steps} ({of.sampler}, {of.diffusion_temperature:g})"),
        ]


@dataclass(frozen=True)
class Told:
    """What a prior is told of one item.

    Attributes:
        ids: lyric tokens; none for no words.
        prompt: latents of the style prompt ``[frames, latent_width]``; None for none.
        key: equal for items that are told the same.
        info: for people and later runs, as plain data.
    """

    ids: tuple[int, ...] = ()
    prompt: Tensor | None = None
    key: str = ""
    info: dict[str, Any] = field(default_factory=dict)


class PatchDraws:
    """What is drawn for a patch: of each item's seed, the level and the patch's first frame alone.

    Args:
        seeds: one a song.
        patch_size: frames of a patch.
    """

    def __init__(self, seeds: Sequence[int], patch_size: int) -> None:
        self.seeds, self.patch_size = seeds, patch_size
        self.of_tokens: Sequence[torch.Generator] = ()
        self.of_noise: Sequence[torch.Generator] = ()

    def begin_patch(self, index: int) -> None:
        """Take the patch's generators."""
        self.of_tokens = window_generators(self.seeds, SKETCH, index * self.patch_size)
        self.of_noise = window_generators(self.seeds, LATENTS, index * self.patch_size)

    def tokens(self, logits: Tensor, items: Sequence[int]) -> Tensor:
        """One token a song: ``[n, bins]`` → ``[n]``."""
        return draw(logits, temperature=1.0, generators=[self.of_tokens[item] for item in items])

    def noise(self, shape: tuple[int, int], items: Sequence[int]) -> Tensor:
        """Normal noise ``[n, *shape]``."""
        return torch.stack([torch.randn(shape, generator=self.of_noise[item]) for item in items])


class SongWriter:
    """Writes the frames of songs with a SongBloom prior; the :class:`songbloom.sampling.sampler.Writer` of level 0.

    Its labels are a :class:`Told` an item. Codes of level 0 are frames (:class:`songbloom.sampling.form.Frames`).

    Args:
        prior: on its device.
        keeps_sketch: level 1 holds the songs' sketch ``[items, frames]``, and only latents are written.
    """

    level = LATENTS

    def __init__(self, prior: SongBloomPrior, *, keeps_sketch: bool = False) -> None:
        self.prior, self.keeps_sketch = prior, keeps_sketch
        self.form = Frames(prior.config.eos)
        self._conditions: dict[str, Conditions] = {}
        self._prefixes: dict[tuple[str, torch.dtype], Prefix] = {}

    def plan(self, total: int, settings: SongSettings, have: int) -> list[Window]:
        """Windows of whole patches."""
        return windows.whole_windows(total, settings.window_patches * self.prior.config.patch_size, have)

    @torch.no_grad()
    def write(
        self,
        codes: Sequence[Tensor],
        window: Window,
        settings: SongSettings,
        part: slice,
        *,
        seeds: Sequence[int],
        labels: Labels | None,
        on_token: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The frames ``[items of part, window.new, 1 + latent_width]`` that ``window`` adds to one batch.

        Songs that have ended get the end-of-song token and no latents.
        """
        config, items = self.prior.config, part.stop - part.start
        begin, end = window.start + window.prompt, window.start + window.prompt + window.new
        frames, sketch = codes[LATENTS][part, :begin], codes[SKETCH][part, :end]
        new = frames.new_zeros(items, window.new, frames.shape[-1])
        new[..., 0] = config.eos
        told: Sequence[Told] = labels(window.start, part) if labels else [Told()] * items
        silent_first = settings.generation.compatibility.silent_first_patch
        order, kinds, counts = self._in_groups(told, self._going_on(frames, sketch, silent_first=silent_first))
        if order:
            own = [self.form.sounding(sketch[item]) for item in order] if self.keeps_sketch else []
            dtype = dtype_of(settings.precision)
            known = self.form.sketch(frames[order]), self.form.latents(frames[order])
            conditions, prefixes = self._read([told[item] for item in kinds], dtype)
            patches = sample_patches(
                self.prior,
                conditions,
                replace(settings.generation, max_frames=end),
                counts=counts,
                known=known if begin else None,
                sketch=[sketch[item, :length] for item, length in zip(order, own, strict=True)] if own else None,
                precision=dtype,
                draws=PatchDraws([seeds[part][item] for item in order], config.patch_size),
                prefixes=prefixes,
            )
            for patch in patches:
                place = patch.index * config.patch_size - begin
                rows = self.form.joined(patch.latents, patch.tokens).to(new.device)
                new[[order[song] for song in patch.items], place : place + config.patch_size] = rows
                if on_token:
                    on_token(window.prompt + place + config.patch_size)
        if not begin and silent_first:
            silent = new[:, 0, 0] == config.eos
            new[silent, : config.patch_size, 0] = 0  # latents of zeros under some token
        return new

    def _going_on(self, frames: Tensor, sketch: Tensor, *, silent_first: bool = False) -> list[int]:
        """The items whose songs have not ended before the end of ``frames``.

        With ``silent_first`` one patch of nothing but zero latents is a song that ended at once.
        """
        begin, eos = frames.shape[1], self.prior.config.eos
        going = [not begin or int(item[-1, 0]) != eos for item in frames]
        if silent_first and begin == self.prior.config.patch_size:
            going = [on and bool(item[:, 1:].any()) for on, item in zip(going, frames, strict=True)]
        if self.keeps_sketch:
            going = [on and begin < self.form.sounding(own) for on, own in zip(going, sketch, strict=True)]
        return [item for item, on in enumerate(going) if on]

    @staticmethod
    def _in_groups(told: Sequence[Told], items: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Items so that those who are told the same stand together, one of each kind, and how many each kind has."""
        groups: dict[str, list[int]] = {}
        for item in items:
            groups.setdefault(told[item].key, []).append(item)
        order = [item for group in groups.values() for item in group]
        return order, [group[0] for group in groups.values()], [len(group) for group in groups.values()]

    def _read(self, told: Sequence[Told], dtype: torch.dtype) -> tuple[Conditions, list[Prefix]]:
        """The conditions of these and, with the null conditions after them, their positions in the language model."""
        made = {each.key: self._conditions.get(each.key) or self._embedded(each) for each in told}
        self._conditions = made  # of earlier batches nothing is kept: a prompt's positions are hundreds of megabytes
        null = ("", dtype)
        before, self._prefixes = self._prefixes, {}
        for key, conditions in made.items():
            name = f"told {key}", dtype
            self._prefixes[name] = before.get(name) or self.prior.language_model.read(conditions.prefix()[0].to(dtype))
        shared = [self._prefixes[f"told {each.key}", dtype] for each in told]
        self._prefixes[null] = before.get(null) or self.prior.language_model.read(
            self.prior.null_conditions().prefix()[0].to(dtype)
        )
        parts = [made[each.key] for each in told]
        conditions = Conditions(torch.cat([one.prompt for one in parts]), torch.cat([one.lyrics for one in parts]))
        return conditions, [*shared, self._prefixes[null]]

    def _embedded(self, told: Told) -> Conditions:
        prompt = None if told.prompt is None else told.prompt[None].to(self.prior.start.device)
        return self.prior.conditions([told.ids], prompt)
