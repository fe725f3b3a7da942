"""Hearing a model learn to sing: fixed lyrics, sampled every so many steps, listened to and logged.

«No vocals» shows after one evaluation, not after seventy-five epochs::

    probe = LyricProbe(["[verse]\\nさくらがさいた"], every=1000)
    if probe.due(step):
        values = probe.log(logger, step, sample, sample_rate)

``sample(lyrics)`` gives audio ``[N, T, C]`` of the model, one item a song's words, drawn the same way every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from songbloom.errors import UserError, reason
from songbloom.evaluation import phonemes
from songbloom.evaluation.listening import PRESENT
from songbloom.evaluation.recogniser import Recogniser, load_recogniser

Sample = Callable[[Sequence[str]], Tensor]


class Log(Protocol):
    """Where a probe writes (:class:`songbloom.training.logger.Logger`)."""

    def audio(self, tag: str, audio: Tensor, step: int) -> None:
        """Clips ``[N, T, C]`` and their pictures."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Each value under its key."""


class Sung:
    """What was heard of sampled items.

    Attributes:
        heard: phonemes of each item.
        voice: share of frames with a voice, of each item.
        scores: against each item's words; None where it has none.
    """

    def __init__(
        self, heard: list[tuple[str, ...]], voice: list[float], scores: list[phonemes.PhonemeScore | None]
    ) -> None:
        self.heard, self.voice, self.scores = heard, voice, scores

    @classmethod
    def joined(cls, parts: Sequence[Sung]) -> Sung:
        """The items of several as one."""
        made = cls([], [], [])
        for part in parts:
            made.heard += part.heard
            made.voice += part.voice
            made.scores += part.scores
        return made

    @property
    def values(self) -> dict[str, float]:
        """Numbers to log: ``voice_presence`` and, where there are words, ``per``, ``per_shuffled`` and, where anything
        is heard, ``per_part`` and ``per_part_shuffled``."""
        values = {"voice_presence": float(np.mean(self.voice))}
        known = [score for score in self.scores if score is not None]
        if known:
            whole = phonemes.together(known)
            values |= {"per": whole.per, "per_shuffled": whole.per_shuffled}
            if whole.per_part is not None and whole.per_part_shuffled is not None:
                values |= {"per_part": whole.per_part, "per_part_shuffled": whole.per_part_shuffled}
        return values

    @property
    def verdict(self) -> str:
        """One line for people."""
        values = self.values
        if values["voice_presence"] < PRESENT:
            return "no vocals: nobody is heard singing in the samples"
        line = f"a voice in {100 * values['voice_presence']:.0f} % of the samples"
        if "per" in values:
            line += f", phoneme error rate {values['per']:.2f} (shuffled lyrics: {values['per_shuffled']:.2f})"
        return line


def expected_of(words: str | Sequence[str] | None) -> tuple[str, ...]:
    """The phonemes of words, of a text or as symbols of a vocabulary; none where they are not Japanese.

    Symbols that are no phonemes (tags, punctuation, padding) do not count; where those of other languages are more than
    a tenth, nothing is expected.
    """
    if words is None or isinstance(words, str):
        return phonemes.expected_phonemes(words) if words else ()
    sounds = [symbol for symbol in words if symbol[:1].isalpha()]
    known = tuple(symbol for symbol in sounds if symbol in phonemes.CLASS_OF)
    return known if len(known) >= 0.9 * len(sounds) else ()


def read_words(path: str) -> str:
    """The text of ``--eval_lyrics``, which samples are to sing.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--eval_lyrics={path}: cannot be read as text ({reason(error)})") from error


def hear_samples(
    audio: Tensor, sample_rate: int, lyrics: Sequence[str | Sequence[str] | None], recogniser: Recogniser | None = None
) -> Sung:
    """Listen to sampled items.

    Args:
        audio: ``[N, T, C]``.
        sample_rate: of it, Hz.
        lyrics: the words of each item as text or as symbols of a vocabulary (:func:`expected_of`), or None.
        recogniser: who listens; the shipped one if none is given.
    """
    recogniser = recogniser or load_recogniser()
    rate = recogniser.config.sample_rate
    heard, voice, scores = [], [], []
    mono = torch.nan_to_num(audio.detach().float()).clamp(-1, 1).mean(dim=2).cpu().numpy()
    for samples, words in zip(mono, lyrics, strict=True):
        sound = soxr.resample(samples, sample_rate, rate) if sample_rate != rate else samples
        found = recogniser.hear(sound)
        sung = phonemes.decode(found.phonemes)
        expected = expected_of(words)
        heard.append(sung)
        voice.append(float((found.voice > 0.5).mean()) if len(found.voice) else 0.0)
        scores.append(phonemes.score(sung, expected) if expected else None)
    return Sung(heard, voice, scores)


class LyricProbe:
    """Samples fixed lyrics while a model trains, and says how well they are sung.

    Args:
        lyrics: words, one item each.
        every: steps between probes.
        recogniser: who listens; the shipped one if none is given.
        tag: what the logged things are called.
    """

    def __init__(
        self, lyrics: Sequence[str], *, every: int, recogniser: Recogniser | None = None, tag: str = "sung"
    ) -> None:
        if not lyrics or every < 1:
            raise ValueError(f"{len(lyrics)} lyrics every {every} steps: give at least one of each")
        self.lyrics, self.every, self.tag = list(lyrics), every, tag
        self._recogniser = recogniser

    def due(self, step: int) -> bool:
        """Whether a probe is due after optimiser step ``step``."""
        return step > 0 and step % self.every == 0

    def log(self, logger: Log, step: int, sample: Sample, sample_rate: int) -> dict[str, float]:
        """Sample, listen and log: sound and spectrogram of each item, its words, what was heard, and the numbers.

        Args:
            logger: takes it.
            step: optimiser step.
            sample: lyrics → audio ``[N, T, C]``.
            sample_rate: of that audio, Hz.

        Returns:
            :attr:`Sung.values`, also logged under ``{tag}/…``.
        """
        audio = sample(self.lyrics)
        logger.audio(self.tag, audio, step)
        sung = hear_samples(audio, sample_rate, self.lyrics, self._recogniser)
        log_sung(logger, step, sung, self.lyrics, self.tag)
        return sung.values


def log_sung(
    logger: Log, step: int, sung: Sung, lyrics: Sequence[str | Sequence[str] | None], tag: str = "sung"
) -> None:
    """Write what was heard: the numbers under ``{tag}/…``, a verdict, and each item's words and phonemes."""
    logger.scalars({f"{tag}/{name}": value for name, value in sung.values.items()}, step)
    logger.text(f"{tag}/verdict", sung.verdict, step)
    for index, (words, heard, score) in enumerate(zip(lyrics, sung.heard, sung.scores, strict=True)):
        rate = f"phoneme error rate {score.per:.2f}, shuffled {score.per_shuffled:.2f}" if score else "no words known"
        asked = words if isinstance(words, str) else " ".join(words or ())
        shown = f"```\n{asked}\n```\n\nheard: {' '.join(heard) or 'nothing'}\n\n{rate}"
        logger.text(f"{index}/{tag}", shown, step)
