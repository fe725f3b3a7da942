"""A small recogniser of sung Japanese phonemes: which are sung, and whether there is a voice at all.

Log-mel spectrum → convolutions over about a second to either side → for each 20 ms the probability of each phoneme or
none, read as CTC reads a path (Graves et al. 2006, *Connectionist Temporal Classification*), and of a voice. It has no
attention and no language model, so it hears only what is there, and a song in pieces gives what the whole gives.

The weights beside this module were trained by :mod:`songbloom.evaluation.train_recogniser`; ``recogniser.json`` says on
what, and how well they hear. It is a relative meter: made of synthetic singers, to be trusted in comparisons.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.audio.files import length_at, probe, read_audio
from songbloom.audio.filters import mel_filters, power_frames
from songbloom.errors import UserError
from songbloom.files import whole_file, write_text
from songbloom.hyperparams import fields_from
from songbloom.lyrics.morae import PHONEMES

SHIPPED = Path(__file__).with_name("weights") / "recogniser.npz"
FRAME_SECONDS = 0.02
"""Between two hearings of the recogniser."""
BLANK = 0
"""The class of no phoneme; phoneme ``i`` of ``PHONEMES`` is class ``i + 1``."""
PIECE_SECONDS = 30.0  # heard at a time, besides the context
_FLOOR = 1e-7  # power in a mel band that counts as silence


@dataclass(frozen=True)
class RecogniserConfig:
    """Sizes of the recogniser.

    Attributes:
        sample_rate: it hears at, Hz; 100 spectra a second must be whole samples apart.
        n_fft: samples of a spectrum's window.
        bands: mel bands.
        lowest, highest: Hz, of the bands.
        width: channels.
        hidden: channels of the last layer, from which everything is read off.
        kernel: of the convolutions over time.
        dilations: one residual block each, at 50 frames a second.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    bands: int = 64
    lowest: float = 60.0
    highest: float = 7600.0
    width: int = 160
    hidden: int = 64
    kernel: int = 7
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)

    @property
    def hop_length(self) -> int:
        """Samples between spectra."""
        return self.sample_rate // 100

    @property
    def frame_length(self) -> int:
        """Samples between frames of the result."""
        return 2 * self.hop_length

    @property
    def reach(self) -> int:
        """Frames to either side that a frame depends on."""
        return (self.kernel // 2) * sum(self.dilations) + 3


class Heard(NamedTuple):
    """What was heard in each frame of 20 ms.

    Attributes:
        phonemes: log-probabilities ``[frames, 1 + 40]``, the blank first.
        voice: probability of a voice ``[frames]``.
        hidden: the last layer ``[frames, hidden]``.
        log_mel: mean log-mel spectrum of the frame ``[frames, bands]``, natural logarithm of power.
    """

    phonemes: np.ndarray
    voice: np.ndarray
    hidden: np.ndarray
    log_mel: np.ndarray


class _Block(nn.Module):
    """Over time within each channel, then over channels (Sandler et al. 2018), with a residual path."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.normalise = nn.LayerNorm(width)
        self.over_time = nn.Conv1d(
            width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=width
        )
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` → the same."""
        y = self.over_time(self.normalise(x).transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(F.gelu(self.widen(y)))


class Recogniser(nn.Module):
    """The network; :func:`load_recogniser` gives it with its weights.

    Args:
        config: its sizes.
        name: of its weights, told with every number.
    """

    filters: Tensor

    def __init__(self, config: RecogniserConfig | None = None, *, name: str = "untrained") -> None:
        super().__init__()
        self.config = config = config or RecogniserConfig()
        self.name = name
        self.about: Mapping[str, Any] = {}
        bank = mel_filters(config.sample_rate, config.n_fft, config.bands, config.lowest, config.highest)
        self.register_buffer("filters", bank, persistent=False)
        self.enter = nn.Conv1d(config.bands, config.width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(_Block(config.width, config.kernel, dilation) for dilation in config.dilations)
        self.normalise = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, config.hidden)
        self.phonemes = nn.Linear(config.hidden, 1 + len(PHONEMES))
        self.voice = nn.Linear(config.hidden, 1)

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio ``[N, T]`` at ``sample_rate`` → natural logarithm of mel power ``[N, 2 * (T // frame_length), bands]``.

        Frame ``i`` stands around sample ``(i + 1/2) * hop_length``; beyond the ends is silence.
        """
        config = self.config
        frames = 2 * (audio.shape[1] // config.frame_length)
        margin = (config.n_fft - config.hop_length) // 2
        padded = F.pad(audio, (margin, config.n_fft))
        power = power_frames(padded, config.n_fft, config.hop_length, 0, frames) @ self.filters
        return torch.log(power + _FLOOR)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`log_mel` ``[N, 2 * F, bands]`` → logits of phonemes ``[N, F, 41]``, of a voice ``[N, F]``, the last
        layer ``[N, F, hidden]``."""
        # Inputs near 0 with spread near 1: power of speech at full scale lies around e^4, silence at e^-16.
        x = self.enter(((log_mel + 5.0) / 5.0).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        hidden = torch.tanh(self.leave(self.normalise(x)))
        return self.phonemes(hidden), self.voice(hidden)[..., 0], hidden

    @torch.no_grad()
    def hear(self, audio: np.ndarray | Tensor) -> Heard:
        """All that is heard in mono audio ``[T]`` at ``sample_rate``; ``T // frame_length`` frames."""
        return gathered(self.hear_pieces(lambda start, stop: np.asarray(audio)[start:stop], len(audio)))

    @torch.no_grad()
    def hear_file(self, path: str | Path) -> Iterator[Heard]:
        """What is heard in an audio file, in pieces of 30 s; memory does not grow with the file.

        Raises:
            AudioError: it cannot be read.
        """
        rate = self.config.sample_rate
        info = probe(path)

        def read(start: int, stop: int) -> np.ndarray:
            return read_audio(path, sample_rate=rate, offset=start, length=stop - start).mean(axis=1)

        yield from self.hear_pieces(read, length_at(info.frames, info.sample_rate, rate))

    @torch.no_grad()
    def hear_pieces(self, read: Any, length: int) -> Iterator[Heard]:
        """Heard pieces, one after the other, of audio of ``length`` samples at ``sample_rate``.

        Args:
            read: gives samples ``[start, stop)`` as a float array.
            length: samples.
        """
        step = self.config.frame_length
        total, piece = length // step, round(PIECE_SECONDS / FRAME_SECONDS)
        for first in range(0, total, piece):
            last = min(first + piece, total)
            before, after = max(0, first - self.config.reach - 2), min(total, last + self.config.reach + 2)
            # One more window than the frames cover, so that the edge of a piece is not taken for the song's end.
            samples = read(before * step, min(length, after * step + self.config.n_fft))
            audio = torch.from_numpy(np.ascontiguousarray(samples, np.float32)).to(self.filters.device)[None]
            log_mel = self.log_mel(torch.nan_to_num(audio))[:, : 2 * (after - before)]
            phonemes, voice, hidden = self(log_mel)
            kept = slice(first - before, last - before)
            yield Heard(
                phonemes[0, kept].log_softmax(-1).cpu().numpy(),
                voice[0, kept].sigmoid().cpu().numpy(),
                hidden[0, kept].cpu().numpy(),
                log_mel[0].view(-1, 2, self.config.bands).mean(1)[kept].cpu().numpy(),
            )


def gathered(pieces: Iterator[Heard]) -> Heard:
    """Pieces as one; of no piece, arrays without frames."""
    parts = list(pieces)
    if not parts:
        empty = RecogniserConfig()
        shapes = (0, 1 + len(PHONEMES)), (0,), (0, empty.hidden), (0, empty.bands)
        return Heard(*(np.zeros(shape, np.float32) for shape in shapes))
    return Heard(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


# --- files ----------------------------------------------------------------------------------------------------------


def save_recogniser(path: str | Path, recogniser: Recogniser, about: Mapping[str, Any]) -> None:
    """Write weights as float16 arrays (``.npz``), and sizes, digest and ``about`` as JSON beside them."""
    path = Path(path)
    arrays = {name: tensor.detach().cpu().half().numpy() for name, tensor in recogniser.state_dict().items()}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with whole_file(path) as file:
        file.write(content.getvalue())
    told = {"sha256": hashlib.sha256(content.getvalue()).hexdigest(), "config": asdict(recogniser.config), **about}
    write_text(path.with_suffix(".json"), json.dumps(told, ensure_ascii=False, indent=1) + "\n")


def load_recogniser(path: str | Path | None = None, device: torch.device | str = "cpu") -> Recogniser:
    """A recogniser in eval mode, its weights frozen; without ``path`` the shipped one.

    Raises:
        UserError: there is none at ``path``, or it is damaged.
    """
    path = Path(path or SHIPPED)
    return _load(path, path.stat().st_mtime_ns if path.is_file() else 0, str(device))


@lru_cache(maxsize=4)
def _load(path: Path, changed: int, device: str) -> Recogniser:
    try:
        content = path.read_bytes()
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise UserError(f"{path}: is not the file that {path.with_suffix('.json').name} describes; copy both again")
        sizes = fields_from(RecogniserConfig, about["config"])
        recogniser = Recogniser(RecogniserConfig(**sizes), name=f"{path.stem}-{about['sha256'][:8]}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            state = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
        recogniser.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: no recogniser can be read there ({reason.splitlines()[0]})") from error
    recogniser.about = about
    return recogniser.eval().requires_grad_(False).to(device)
