"""What the items of a run of the SongBloom family are told: words with sections, and how it is to sound."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from songbloom.audio.files import read_audio
from songbloom.distributed import say, world
from songbloom.errors import UserError, reason
from songbloom.hyperparams import Hyperparams
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary, is_phoneme
from songbloom.lyrics.tokens import SectionTokens, Tokens
from songbloom.sampling.labelling import Asked
from songbloom.sampling.songbloom_writer import Told

_SHOWN = 5  # symbols without a token that are named for an item
_UNSAFE = set('/\\:*?"<>|')
_LONGEST_NAME = 200  # bytes; file systems take 255, and numbers and suffixes follow


@dataclass(frozen=True)
class SongLabels:
    """What all items are told.

    Attributes:
        told: one an item.
    """

    told: Sequence[Told]

    @property
    def labels(self) -> SongLabels:
        """Itself, as the labels of the other family have theirs."""
        return self

    @property
    def infos(self) -> list[dict[str, Any]]:
        """One an item, as plain data."""
        return [each.info for each in self.told]

    def plain(self) -> dict[str, Any]:
        """As ``data.pth.tar`` keeps it."""
        return {"y": torch.zeros(len(self.told), 0, dtype=torch.int64), "info": self.infos}

    def windows(self, items: range) -> Callable[[int, slice], Sequence[Told]]:
        """For these items: from the start of a window and a slice of them to what they are told."""
        mine = self.told[items.start : items.stop]
        return lambda start, part: mine[part]

    def digest(self) -> str:
        """A short name for all of it."""
        return _digest([each.key for each in self.told])


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass
class SongLabeller:
    """Makes what items are told.

    Attributes:
        vocabulary: of the lyrics.
        lyric_tokens: positions that the model has for them.
        codec: makes latents of style prompts.
        prompt_frames: frames of a style prompt.
        rules: keywords of the vocabulary's ``tokenize``.
    """

    vocabulary: PhonemeVocabulary
    lyric_tokens: int
    codec: Any
    prompt_frames: int
    rules: Mapping[str, Any] = field(default_factory=dict)
    _words: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = field(default_factory=dict)
    _prompts: dict[str, Tensor] = field(default_factory=dict)

    def labels(self, asked: Sequence[Asked], earlier: Mapping[str, Any] | None = None) -> SongLabels:
        """What the items are told; what is not asked for is as ``earlier``, where there is such.

        Args:
            asked: one an item.
            earlier: the labels of the items in the run that they go on from, as it kept them.

        Raises:
            UserError: artist or genre are asked for, words have a mistake, or a prompt cannot be read.
        """
        infos = list((earlier or {}).get("info") or [{}] * len(asked))
        told = [self._told(each, info) for each, info in zip(asked, infos, strict=True)]
        if not any(each.ids for each in told):
            say("note: no lyrics are given: the model is shown no words (--lyrics, --lyrics_file or --prompts_jsonl)")
        if all(each.prompt is None for each in told):
            say("note: no style prompt is given: the model chooses how it sounds (--prompt_wav)")
        return SongLabels(told)

    def _told(self, asked: Asked, before: Mapping[str, Any]) -> Told:
        if asked.artist or asked.genre:
            raise UserError("models of the SongBloom family are told no artist and no genre: give --prompt_wav instead")
        if asked.lyrics:
            ids, info = self.words(asked.lyrics)
        else:
            info = {key: before[key] for key in _KEPT_OF_WORDS if key in before}
            ids = tuple(int(each) for each in before.get("full_tokens") or ())
        prompt, name = before.get("prompt"), str(before.get("prompt_wav") or "")
        if asked.prompt_wav:
            prompt, name = self.prompt(asked.prompt_wav), asked.prompt_wav
        if not isinstance(prompt, Tensor):
            prompt = None
        sound = "" if prompt is None else hashlib.blake2b(prompt.numpy().tobytes(), digest_size=16).hexdigest()
        whole = {**info, **({} if prompt is None else {"prompt_wav": Path(name).name, "prompt": prompt})}
        return Told(ids, prompt, _digest([ids, sound]), whole)

    def words(self, text: str) -> tuple[tuple[int, ...], dict[str, Any]]:
        """The tokens of lyrics, and what is kept of them; what a person should hear of them is said once.

        Raises:
            UserError: a tag's mistake, or a package that is missing.
        """
        if text not in self._words:
            tokens = self.vocabulary.tokenize(text, **self.rules)
            for problem in tokens.problems[:_SHOWN]:
                say(f"note: lyrics, {problem}")
            if len(tokens.problems) > _SHOWN:
                say(f"note: lyrics: {len(tokens.problems) - _SHOWN} more such places; python -m songbloom.lyrics show")
            wishes = [words for words in tokens.sections if words.seconds is not None and _sung(tokens, words)]
            if wishes:
                say(
                    f"note: lyrics: {wishes[0].tag} has words and is to last {wishes[0].seconds:g} s, which no model "
                    "is told: it hears lengths of sections without words alone (docs/lyrics.md)"
                )
            if len(tokens.ids) > self.lyric_tokens:
                say(
                    f"note: lyrics: {len(tokens.ids)} tokens, and the model reads the first {self.lyric_tokens}: "
                    "shorten them"
                )
            self._words[text] = (
                tokens.ids,
                {
                    "lyrics": tokens.cleaned,
                    "text": text,
                    "full_tokens": list(tokens.ids),
                    "symbols": list(tokens.symbols),
                    "spans": [list(span) for span in tokens.spans],
                },
            )
        return self._words[text]

    def prompt(self, path: str) -> Tensor:
        """The latents ``[frames, latent_width]`` of the beginning of a sound file, on the CPU.

        Raises:
            UserError: it cannot be read, or is shorter than one frame.
        """
        if path not in self._prompts:
            codec = self.codec
            hop, rate = codec.hop_lengths[0], codec.sample_rate
            sound = read_audio(path, sample_rate=rate, length=self.prompt_frames * hop)
            sound = sound.mean(axis=1, keepdims=True)[: len(sound) // hop * hop]
            if not len(sound):
                raise UserError(f"{path}: is shorter than {hop / rate:.3f} s, too short for a style prompt")
            if len(sound) < self.prompt_frames * hop:
                wanted = self.prompt_frames * hop / rate
                say(f"note: {path}: has {len(sound) / rate:.1f} s of a style prompt's {wanted:g} s; the rest is empty")
            audio = torch.from_numpy(np.ascontiguousarray(sound, np.float32))[None].to(world().device)
            with torch.no_grad():
                self._prompts[path] = codec.encode_latents(audio)[0].float().cpu()
        return self._prompts[path]


def _sung(tokens: Tokens, section: SectionTokens) -> bool:
    """Whether a section has words."""
    after = [other.first for other in tokens.sections if other.first > section.first]
    return any(map(is_phoneme, tokens.symbols[section.first : min(after, default=len(tokens))]))


_KEPT_OF_WORDS = ("lyrics", "text", "full_tokens", "symbols", "spans")


# --- the published list of songs ------------------------------------------------------------------------------------


def rows_of_input(path: str) -> list[tuple[str, Asked]]:
    """The songs of ``--input_jsonl``: the name and what is asked for, a line each.

    Prompts are looked for beside the file, and then where the program runs.

    Raises:
        UserError: it cannot be read, or a line is not what the published program takes.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--input_jsonl={path}: cannot be read ({reason(error)}); give a JSONL file in UTF-8"
        ) from error
    rows: list[tuple[str, Asked]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", file.parent))
    names = [name for name, _ in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two lines have the idx {twice!r}; give each song its own")
    if not rows:
        raise UserError(f"--input_jsonl={path}: holds no line; each line is an object with idx, lyrics and prompt_wav")
    return rows


def _row(line: str, where: str, folder: Path) -> tuple[str, Asked]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON; each line must be one object") from error
    if not isinstance(row, dict) or not {"idx", "lyrics"} <= set(row):
        raise UserError(f'{where}: needs "idx" and "lyrics" (and "prompt_wav"), as the published lists have them')
    name, words, prompt = str(row["idx"]), row["lyrics"], row.get("prompt_wav") or None
    if isinstance(row["idx"], bool) or not isinstance(row["idx"], (str, int, float)):
        raise UserError(f"{where}: idx is {json.dumps(row['idx'])[:40]}; give each song a name or a number")
    if not name.strip() or name.startswith(".") or set(name) & _UNSAFE or not name.isprintable():
        raise UserError(f"{where}: idx {name[:40]!r} cannot be the name of a file; use letters and digits")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{where}: idx {name[:20]!r}… is longer than {_LONGEST_NAME} bytes; give a shorter name")
    if not (words is None or isinstance(words, str)) or not (prompt is None or isinstance(prompt, str)):
        raise UserError(f"{where}: lyrics and prompt_wav must be text")
    if prompt is not None and (folder / Path(prompt).expanduser()).is_file():
        prompt = str(folder / Path(prompt).expanduser())
    return name, Asked(lyrics=words or None, prompt_wav=prompt)


def repeated(rows: Sequence[tuple[str, Asked]], each: int) -> tuple[list[str], list[Asked]]:
    """So many items of each row: the names of their files, and what is asked for them."""
    names = [f"{name}_s{number}" for name, _ in rows for number in range(each)]
    return names, [replace(asked) for _, asked in rows for _ in range(each)]


def asked_of_options(options: Hyperparams, asked: Sequence[Asked]) -> list[Asked]:
    """``asked`` with ``--prompt_wav`` where an item has no style prompt of its own."""
    common = options.prompt_wav or None
    return [each if each.prompt_wav else replace(each, prompt_wav=common) for each in asked]
