"""A singing face for hts_engine_API 1.10, the synthesiser inside Open JTalk and Sinsy.

Their Python classes speak; singing needs what they hide: durations that we choose, and a melody. The compiled modules
export the engine's C functions, so :mod:`ctypes` reaches them. One engine object holds one voice and makes one
utterance at a time::

    frames = engine.load_labels(labels, aligned=True)
    engine.set_state_melody(midi_of_phoneme, sung)
    sound = engine.generate(spectral_variance=0.5, melody=midi_of_frame)

Two ways lead the melody in. *By states*: five means of log f0 a phoneme (public functions), smoothed by the engine and
rescaled by its global variance (Toda and Tokuda 2007), so the weight of that variance must be the melody's own variance
over the trained one. *By frames*: after the parameters are generated, log f0 of each voiced frame is overwritten, which
also gives vibrato and glides. The second needs the address of the parameter streams inside the engine, which is found
and verified at run time; where it is not found, the first alone is used (``Sound.melody_by_frames`` tells).
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.errors import UserError

PEAK_LIMIT = 4.0
"""A synthesis filter that diverges passes this; full scale is 1."""

_SPECTRUM, _LOG_F0 = 0, 1  # stream numbers of every HTS voice used here
_ENGINE_BYTES = 16384  # sizeof(HTS_Engine) is some hundred bytes; the rest stays zero
_VOID, _BYTE, _SIZE, _DOUBLE = None, ctypes.c_byte, ctypes.c_size_t, ctypes.c_double
_STRINGS = ctypes.POINTER(ctypes.c_char_p)
_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "initialize": (_VOID, ()),
    "load": (_BYTE, (_STRINGS, _SIZE)),
    "clear": (_VOID, ()),
    "refresh": (_VOID, ()),
    "get_sampling_frequency": (_SIZE, ()),
    "get_fperiod": (_SIZE, ()),
    "get_nstate": (_SIZE, ()),
    "get_nstream": (_SIZE, ()),
    "get_total_state": (_SIZE, ()),
    "get_state_duration": (_SIZE, (_SIZE,)),
    "get_nsamples": (_SIZE, ()),
    "get_generated_speech": (_DOUBLE, (_SIZE,)),
    "set_phoneme_alignment_flag": (_VOID, (_BYTE,)),
    "set_state_mean": (_VOID, (_SIZE, _SIZE, _SIZE, _DOUBLE)),
    "set_gv_weight": (_VOID, (_SIZE, _DOUBLE)),
    "set_msd_threshold": (_VOID, (_SIZE, _DOUBLE)),
    "get_alpha": (_DOUBLE, ()),
    "set_alpha": (_VOID, (_DOUBLE,)),
    "generate_state_sequence_from_strings": (_BYTE, (_STRINGS, _SIZE)),
    "generate_parameter_sequence": (_BYTE, ()),
    "generate_sample_sequence": (_BYTE, ()),
}
_STREAM_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "get_nstream": (_SIZE, ()),
    "get_total_frame": (_SIZE, ()),
    "is_msd": (_BYTE, (_SIZE,)),
    "get_msd_flag": (_BYTE, (_SIZE, _SIZE)),
    "get_parameter_vector": (ctypes.POINTER(_DOUBLE), (_SIZE, _SIZE)),
}


@dataclass(frozen=True)
class Sound:
    """One utterance: ``wave`` float64 ``[samples]`` (full scale 1), ``midi`` float64 ``[frames]``.

    ``midi`` is 0 where the frame is unvoiced, and everywhere when the engine hides its parameters.
    """

    wave: NDArray[np.float64]
    midi: NDArray[np.float64]
    melody_by_frames: bool


def midi_to_log_f0(midi: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of the frequency in Hz; MIDI 69 is 440 Hz."""
    return np.log(440.0) + (np.asarray(midi, dtype=np.float64) - 69.0) * (np.log(2.0) / 12.0)


def log_f0_to_midi(log_f0: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`midi_to_log_f0`."""
    return 69.0 + (np.asarray(log_f0, dtype=np.float64) - np.log(440.0)) * (12.0 / np.log(2.0))


class HTSEngine:
    """One voice in one engine. Not safe for use by several threads at once."""

    def __init__(self, library: str | Path, voice: str | Path):
        """Open the engine exported by the compiled module ``library`` and load the ``.htsvoice`` file ``voice``."""
        if not Path(voice).is_file():
            raise UserError(f"{voice}: no such voice file; reinstall the package that brings it")
        self._library = self._open(library)
        self._memory = ctypes.create_string_buffer(_ENGINE_BYTES)
        self._labels: ctypes.Array[ctypes.c_char_p] | None = None
        self._loaded = False
        self._call("initialize")
        if self._call("load", (ctypes.c_char_p * 1)(str(voice).encode()), 1) != 1:
            raise UserError(
                f"the synthesiser could not load the voice {voice}; the file may be damaged, reinstall its package"
            )
        self._loaded = True
        self.sample_rate: int = self._call("get_sampling_frequency")
        self.frame_period: int = self._call("get_fperiod")
        self.states: int = self._call("get_nstate")
        self.streams: int = self._call("get_nstream")
        self.alpha: float = self._call("get_alpha")
        self._trained_variance = _trained_log_f0_variance(Path(voice))
        self._frames: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @staticmethod
    def _open(path: str | Path) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(f"cannot open the synthesiser {path}: {error}") from error
        for prefix, table in (("HTS_Engine_", _FUNCTIONS), ("HTS_PStreamSet_", _STREAM_FUNCTIONS)):
            for name, (result, arguments) in table.items():
                function = getattr(library, prefix + name, None)
                if function is None:
                    raise UserError(
                        f"{Path(path).name} does not export {prefix}{name}, so this build cannot sing; "
                        "use a build of pyopenjtalk-plus (or pysinsy) with hts_engine_API 1.10 inside, as on Linux"
                    )
                function.restype, function.argtypes = result, [ctypes.c_void_p, *arguments]
        return library

    def _call(self, name: str, *arguments: object):
        return getattr(self._library, "HTS_Engine_" + name)(ctypes.addressof(self._memory), *arguments)

    def close(self) -> None:
        """Free what the engine allocated; the object cannot be used afterwards."""
        if self._loaded:
            self._loaded = False
            self._call("clear")

    def set_alpha(self, alpha: float) -> None:
        """Frequency warping of the spectrum. Below the voice's own value formants rise, above it they fall."""
        self._call("set_alpha", alpha)

    def load_labels(self, labels: Sequence[str], *, aligned: bool) -> NDArray[np.int64]:
        """Start an utterance; returns the frames of each phoneme ``[len(labels)]``.

        ``aligned``: labels begin with start and end in units of 100 ns, and the engine keeps to them. Otherwise its own
        duration model decides.
        """
        self._call("refresh")
        self._call("set_phoneme_alignment_flag", int(aligned))
        self._labels = (ctypes.c_char_p * len(labels))(*(label.encode() for label in labels))
        if self._call("generate_state_sequence_from_strings", self._labels, len(labels)) != 1:
            raise UnusableRendering("engine", f"the synthesiser refused {len(labels)} labels")
        total = self._call("get_total_state")
        if total != len(labels) * self.states:
            raise UnusableRendering("engine", f"{total} states for {len(labels)} labels")
        durations = [self._call("get_state_duration", i) for i in range(total)]
        self._frames = np.asarray(durations, dtype=np.int64).reshape(len(labels), self.states).sum(axis=1)
        return self._frames.copy()

    def set_state_melody(self, midi: NDArray[np.float64], sung: NDArray[np.bool_]) -> None:
        """Write the melody into the state means, one MIDI number a phoneme; ``sung`` marks those that carry a note."""
        log_f0 = midi_to_log_f0(midi)
        for phoneme, value in enumerate(log_f0):
            for state in range(phoneme * self.states, (phoneme + 1) * self.states):
                for window, mean in enumerate((float(value), 0.0, 0.0)):  # static, delta, delta of delta
                    self._call("set_state_mean", _LOG_F0, state, window, mean)
        # Global variance pulls the melody's variance to the trained one, in proportion to its weight; with this weight
        # the target is the variance that the melody has anyway.
        variance = float(np.repeat(log_f0[sung], self._frames[sung]).var())
        self._call("set_gv_weight", _LOG_F0, variance / self._trained_variance)

    def generate(self, *, spectral_variance: float, melody: NDArray[np.float64] | None = None) -> Sound:
        """Parameters and waveform of the loaded labels.

        ``spectral_variance`` is the weight of the spectrum's global variance; below 1 tames peaks in long vowels.
        ``melody`` is a MIDI number for each frame ``[frames]`` and replaces the melody by states where it can.
        Raises :class:`UnusableRendering` when samples are not finite or pass :data:`PEAK_LIMIT`.
        """
        self._call("set_gv_weight", _SPECTRUM, spectral_variance)
        if self._call("generate_parameter_sequence") != 1:
            raise UnusableRendering("engine", "the synthesiser could not generate parameters")
        midi = self._rewrite_melody(melody)
        if self._call("generate_sample_sequence") != 1:
            raise UnusableRendering("engine", "the synthesiser could not generate samples")
        wave = self._read_samples() / 32768.0
        if not np.isfinite(wave).all():
            raise UnusableRendering("engine", "samples are not finite: the synthesis filter diverged")
        peak = float(np.abs(wave).max(initial=0.0))
        if peak > PEAK_LIMIT:
            raise UnusableRendering("engine", f"peak {peak:.3g} is above {PEAK_LIMIT:g}: the synthesis filter diverged")
        known = midi is not None
        return Sound(
            wave, midi if midi is not None else np.zeros(int(self._frames.sum())), known and melody is not None
        )

    def _words(self) -> NDArray[np.uint64]:
        """The engine's own memory as machine words."""
        return np.frombuffer(memoryview(self._memory), dtype=np.uint64)

    def _parameter_streams(self) -> int | None:
        """Address of the engine's parameter streams: pointer, number of streams, frames, as three words in a row."""
        words, total = self._words(), int(self._frames.sum())
        hits = np.flatnonzero((words[1:-1] == self.streams) & (words[2:] == total) & (words[:-2] > _ENGINE_BYTES))
        if len(hits) != 1 or self._call("get_nstream") != self.streams:
            return None
        address = ctypes.addressof(self._memory) + 8 * int(hits[0])
        agrees = (
            self._library.HTS_PStreamSet_get_nstream(address) == self.streams
            and self._library.HTS_PStreamSet_get_total_frame(address) == total
            and self._library.HTS_PStreamSet_is_msd(address, _LOG_F0) == 1
            and self._library.HTS_PStreamSet_is_msd(address, _SPECTRUM) == 0
        )
        return address if agrees else None

    def _rewrite_melody(self, melody: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        """MIDI number of each frame after ``melody`` replaced it, 0 where unvoiced; None if the streams are hidden."""
        address = self._parameter_streams()
        if address is None:
            return None
        total = int(self._frames.sum())
        if melody is not None and len(melody) != total:
            raise ValueError(f"melody has {len(melody)} frames, the utterance {total}")
        log_f0 = None if melody is None else midi_to_log_f0(melody)
        midi = np.zeros(total)
        row = 0  # the stream keeps rows of voiced frames only
        for frame in range(total):
            if self._library.HTS_PStreamSet_get_msd_flag(address, _LOG_F0, frame):
                value = self._library.HTS_PStreamSet_get_parameter_vector(address, _LOG_F0, row)
                if log_f0 is not None:
                    value[0] = float(log_f0[frame])
                midi[frame] = value[0]
                row += 1
        return np.where(midi == 0.0, 0.0, log_f0_to_midi(midi))

    def _read_samples(self) -> NDArray[np.float64]:
        """The waveform, from the engine's buffer where it can be found, else sample by sample (slow, same numbers)."""
        count = self._call("get_nsamples")
        words, total = self._words(), int(self._frames.sum())
        hits = np.flatnonzero((words[:-4] == count) & (words[1:-3] == total) & (words[2:-2] == self.streams))
        if len(hits) == 1 and int(words[hits[0] + 4]) > _ENGINE_BYTES:
            buffer = (_DOUBLE * count).from_address(int(words[hits[0] + 4]))
            samples = np.frombuffer(buffer, dtype=np.float64).copy()
            probes = np.linspace(0, max(0, count - 1), min(16, count)).astype(np.int64)
            wanted = [self._call("get_generated_speech", int(i)) for i in probes]
            if np.array_equal(samples[probes], wanted, equal_nan=True):
                return samples
        return self.read_samples_one_by_one()

    def read_samples_one_by_one(self) -> NDArray[np.float64]:
        """Reference for the buffer: every sample through the public function (about 1 µs each)."""
        count = self._call("get_nsamples")
        return np.fromiter((self._call("get_generated_speech", i) for i in range(count)), dtype=np.float64, count=count)


def _trained_log_f0_variance(voice: Path) -> float:
    """Mean of the global variance of log f0 in a ``.htsvoice`` file (first leaf: mean after the variance's slot)."""
    content = voice.read_bytes()
    marker = b"[DATA]\n"
    position = re.search(rb"GV_PDF\[LF0\]:(\d+)-", content)
    if marker not in content or position is None:
        raise UserError(f"{voice} is not a voice file with a global variance of pitch; use the voice of its package")
    start = content.index(marker) + len(marker) + int(position.group(1))
    (variance,) = struct.unpack_from("<f", content, start + 4)
    if not 0.0 < variance < 10.0:
        raise UserError(
            f"{voice} gives {variance!r} as variance of pitch; the file may be damaged, reinstall its package"
        )
    return float(variance)
