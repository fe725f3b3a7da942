"""The settings of a SongBloom prior, and what of them cannot be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from songbloom.errors import UserError
from songbloom.hyperparams import did_you_mean, fields_from

TIME_CONDITIONING = ("prepend", "adaln")
OBJECTIVES = ("rectified_flow", "v")
TIMESTEP_SAMPLERS = ("logit_normal", "uniform", "trunc_logit_normal")
LEAST_ROTATED = 32  # channels of a head that the diffusion transformer turns at least


@dataclass(frozen=True)
class SongBloomConfig:
    """Shapes and training settings of a SongBloom prior; the defaults are the published 150 s model's.

    Attributes:
        patch_size: frames of a patch; the model writes the sketch of one patch, then its latents, then the next.
        latent_width: floats of one latent frame (the codec's level 0).
        l_bins: sketch tokens (the codec's level 1); the end-of-song token comes after them.
        prior_width: width of the language model and of the diffusion transformer.
        heads: attention heads of both.
        prior_depth: layers of the language model.
        dit_depth: layers of the diffusion transformer.
        m_mlp: hidden width of the feed-forward halves, in widths.
        rotary_base: base of the language model's rotary positions.
        dit_rotary_base: base of the diffusion transformer's, which published models keep at 20000 whatever the other.
        time_conditioning: ``prepend`` puts diffusion time before the sequence as a token of its own, ``adaln`` scales,
            shifts and gates each layer by it (Peebles and Xie 2023).
        time_features: Fourier features of diffusion time.
        diffusion_objective: ``rectified_flow`` or ``v`` (Salimans and Ho 2022).
        timestep_sampler: how training draws diffusion times: ``logit_normal``, ``uniform`` or ``trunc_logit_normal``.
        lyric_vocabulary: lyric tokens, id 0 the empty word.
        lyric_tokens: positions for lyrics; shorter ones are filled with the blank vector, longer ones are cut.
        structure_tokens: ids of the tags (``[verse]`` …).
        section_token, sentence_token: ids of ``,`` and ``.``.
        sentences: rows of the table of a sentence's place in its section; later sentences share the last one.
        prompt_frames: positions for the style prompt (10 s of 25 frames).
        init_std: standard deviation of linear maps and embeddings at the start.
        patch_dropout: probability with which training hides a patch's hidden vector, and by another draw its sketch,
            from the diffusion transformer; guidance needs it.
        condition_dropout: probability with which training replaces lyrics and style prompt by their null forms.
        lyric_dropout, prompt_dropout: the same for one of the two.
        dropout_by_batch: draw these once a batch, as the published model was trained, and not once an item.
        flow_loss_fraction: weight of the diffusion loss against the cross-entropy of the sketch.
        c_res: 1 computes a layer's inner values again in the backward pass (less memory, a third more time), but on a
            CPU only where memory is short (:class:`songbloom.transformer.recomputation.Recomputation`); 2 in any case.
    """

    patch_size: int = 16
    latent_width: int = 64
    l_bins: int = 16384
    prior_width: int = 1536
    heads: int = 24
    prior_depth: int = 36
    dit_depth: int = 12
    m_mlp: float = 4.0
    rotary_base: float = 20000.0
    dit_rotary_base: float = 20000.0
    time_conditioning: str = "prepend"
    time_features: int = 256
    diffusion_objective: str = "rectified_flow"
    timestep_sampler: str = "logit_normal"
    lyric_vocabulary: int = 330
    lyric_tokens: int = 600
    structure_tokens: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    section_token: int = 9
    sentence_token: int = 11
    sentences: int = 50
    prompt_frames: int = 250
    init_std: float = 0.02
    patch_dropout: float = 0.05
    condition_dropout: float = 0.1
    lyric_dropout: float = 0.0
    prompt_dropout: float = 0.1
    dropout_by_batch: bool = False
    flow_loss_fraction: float = 0.1
    c_res: int = 0

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_hps(cls, hps: Mapping[str, Any]) -> SongBloomConfig:
        """Take what the prior knows from any mapping of hyperparameters; what is missing has its default."""
        return cls(**fields_from(cls, hps))

    @property
    def eos(self) -> int:
        """The end-of-song token; only ever learned at the first place of a patch, and the filler of shorter songs."""
        return self.l_bins

    @property
    def ignored(self) -> int:
        """The target that the cross-entropy ignores; it has a row in the embedding, which nothing reads."""
        return self.l_bins + 1

    @property
    def head_width(self) -> int:
        return self.prior_width // self.heads

    @property
    def kept_numbers(self) -> int:
        """Numbers that a layer keeps for each position until its backward pass: inputs of maps, norms and attention."""
        return 14 * self.prior_width + 4 * self.mlp_width

    @property
    def mlp_width(self) -> int:
        return int(self.prior_width * self.m_mlp)

    @property
    def rotated(self) -> int:
        """Channels of a head that the diffusion transformer's rotary positions turn: half of them, at least 32."""
        return max(self.head_width // 2, LEAST_ROTATED)

    @property
    def prefix(self) -> int:
        """Positions of the conditions, which stand before the song: style prompt, then lyrics."""
        return self.prompt_frames + self.lyric_tokens

    def n_ctx(self, frames: int) -> int:
        """Positions of the language model for a song of so many frames: prefix, start, tokens and patches."""
        patches = -(-frames // self.patch_size)
        return self.prefix + 1 + patches * (self.patch_size + 1)


def check(config: SongBloomConfig) -> None:
    """Refuse settings that no prior can be built with.

    Raises:
        UserError: names the setting and what to change.
    """
    whole = ("patch_size", "latent_width", "l_bins", "heads", "prior_depth", "dit_depth", "lyric_vocabulary")
    for name in (*whole, "lyric_tokens", "prompt_frames", "prior_width", "mlp_width"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}: a SongBloom prior needs at least 1")
    if config.prior_width % config.heads or config.head_width % 2:
        raise UserError(
            f"prior_width={config.prior_width} over heads={config.heads} must give each head a whole, even number of"
            " channels: change one of them"
        )
    if config.rotated > config.head_width or config.rotated % 2:
        raise UserError(
            f"prior_width={config.prior_width} over heads={config.heads} gives a head {config.head_width} channels, but"
            f" the diffusion transformer turns {config.rotated}"
            " of them: use fewer heads, or a width that gives each a multiple of 4"
        )
    if config.time_features < 2 or config.time_features % 2:
        raise UserError(f"time_features is {config.time_features}: it must be even, a sine and a cosine a frequency")
    if config.sentences < 2:
        raise UserError(f"sentences is {config.sentences}: row 0 is for tags, so at least 2 are needed")
    for name, options in (
        ("time_conditioning", TIME_CONDITIONING),
        ("diffusion_objective", OBJECTIVES),
        ("timestep_sampler", TIMESTEP_SAMPLERS),
    ):
        value = getattr(config, name)
        if value not in options:
            raise UserError(
                f"{name} is {value!r}: it must be one of {', '.join(options)}{did_you_mean(value, options)}"
            )
    for name in ("patch_dropout", "condition_dropout", "lyric_dropout", "prompt_dropout"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise UserError(f"{name} is {getattr(config, name)}: a probability lies between 0 and 1")
    for token in (*config.structure_tokens, config.section_token, config.sentence_token):
        if not 0 <= token < config.lyric_vocabulary:
            raise UserError(
                f"lyric token {token} has a meaning of its own, but the vocabulary has only {config.lyric_vocabulary}"
                " tokens: set structure_tokens, section_token and sentence_token to this vocabulary's"
            )
