"""How songs are drawn: lengths, guidance, filters, penalty, and faults of the published program on demand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from songbloom.errors import UserError, did_you_mean
from songbloom.prior.songbloom.samplers import FLOW_SAMPLERS

GUIDANCE = ("h", "none", "global")


@dataclass(frozen=True)
class Compatibility:
    """What the published program does and a user would not expect; all off by default. See ``docs/songbloom_prior.md``.

    Attributes:
        penalty_raises_negative_logits: divide a repeated token's logit by the penalty even where it is negative.
        first_patch_unpenalised: no repetition penalty in the song's first patch.
        start_estimate_at_one: estimate the clean latents as x − v, which holds at t = 1 only, when the noise enters.
        eos_inside_patch: let the song end inside a patch, which throws the patch away; else only at its first place.
        silent_first_patch: a song that ends at once is a patch of zero latents instead of nothing.
    """

    penalty_raises_negative_logits: bool = False
    first_patch_unpenalised: bool = False
    start_estimate_at_one: bool = False
    eos_inside_patch: bool = False
    silent_first_patch: bool = False

    @classmethod
    def published(cls) -> Compatibility:
        """All of it, to get the published program's very numbers."""
        return cls(True, True, True, True, True)


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of a run; the defaults are the published 150 s model's.

    Attributes:
        max_frames: frames of latents a song may have; rounded up to whole patches.
        min_frames: frames before which it may not end.
        cfg_lm, cfg_diffusion: guidance (Ho and Salimans 2022) of tokens and of latents; 1 is none.
        dit_cfg_type: how latents are guided. ``h``: against a run without hidden vector and sketch; ``global``: against
            latents of the unconditional language model, each integrated by itself; ``none``.
        temperature: of the tokens; 0 takes the likeliest.
        top_k: draw from the k likeliest tokens; 0 is all.
        top_p: draw from the fewest tokens that hold this share; 0 is off, and above 0 it takes ``top_k``'s place.
        penalty: what makes a token less likely that was among the last ``penalty_window`` (Keskar et al. 2019); 1 is
            off.
        steps: steps of the sampler a patch.
        sampler: ``euler``, ``pingpong`` or ``spiral``; a prior of the v objective has DDIM.
        diffusion_temperature: start temperature of the sampler; 1 starts from noise.
        compatibility: faults to repeat.
    """

    max_frames: int = 4000
    min_frames: int = 0
    cfg_lm: float = 1.5
    cfg_diffusion: float = 1.5
    dit_cfg_type: str = "h"
    temperature: float = 0.9
    top_k: int = 100
    top_p: float = 0.0
    penalty: float = 1.1
    penalty_window: int = 50
    steps: int = 36
    sampler: str = "euler"
    diffusion_temperature: float = 0.95
    compatibility: Compatibility = Compatibility()

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            UserError: names the setting.
        """
        if self.dit_cfg_type not in GUIDANCE:
            near = did_you_mean(self.dit_cfg_type, GUIDANCE)
            raise UserError(f"dit_cfg_type is {self.dit_cfg_type!r}: it must be one of {', '.join(GUIDANCE)}{near}")
        if self.sampler not in (*FLOW_SAMPLERS, "ddim"):
            near = did_you_mean(self.sampler, FLOW_SAMPLERS)
            raise UserError(f"sampler is {self.sampler!r}: it must be one of {', '.join(FLOW_SAMPLERS)}, ddim{near}")
        for name, least in (("max_frames", 1), ("min_frames", 0), ("steps", 1), ("top_k", 0), ("penalty_window", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        for name in ("temperature", "diffusion_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must be a finite number, 0 or more")
        for name in ("cfg_lm", "cfg_diffusion"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}: guidance must be a finite number")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: it must lie between 0 (off) and 1")
        if not 0 < self.penalty < math.inf:
            raise UserError(f"penalty is {self.penalty}: it must be a finite number above 0, and 1 turns it off")

    def patches(self, patch_size: int) -> int:
        """Patches a song may have."""
        return -(-self.max_frames // patch_size)
