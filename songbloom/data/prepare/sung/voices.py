"""Singers: a phrase of notes and syllables in, a waveform and the times of its phonemes out.

``Mei`` speaks by training (Open JTalk); here its phoneme times are imposed: vowels start on the beat and consonants
just before, as singers do. ``NIT SONG070`` is a singing voice (Sinsy); its model splits each note, consonant first, and
the split is read back, so its consonants start on the beat. Both run on one 5 ms frame grid and both take their melody
frame by frame, with glides and vibrato.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from songbloom.data.prepare.sung.htsengine import HTSEngine, Sound
from songbloom.data.prepare.sung.musicxml import Score, ScoreNote, write_score
from songbloom.data.prepare.sung.unusable import UnusableRendering
from songbloom.data.prepare.sung.words import SILENCES, VOWELS, Reading, Syllable, import_open_jtalk
from songbloom.errors import UserError, did_you_mean

SAMPLE_RATE = 48000
FRAME = 240
"""Samples in a frame: 5 ms."""
FRAME_SECONDS = FRAME / SAMPLE_RATE


@dataclass(frozen=True)
class PhraseNotes:
    """What a singer is given: a line and its notes on the song's time grid.

    ``midi[i]`` sings syllable ``i`` from ``edges[i]`` to ``edges[i + 1]``, in steps of ``step_seconds``.
    """

    reading: Reading
    midi: tuple[int, ...]
    edges: tuple[int, ...]
    step_seconds: float

    def frames(self) -> NDArray[np.int64]:
        """Frame of the song in which each edge falls ``[notes + 1]``."""
        return np.round(np.array(self.edges) * self.step_seconds / FRAME_SECONDS).astype(np.int64)


@dataclass(frozen=True)
class TimedPhoneme:
    """A phoneme from frame ``start`` to frame ``end`` of the song; ``note`` counts in the phrase, None in silence."""

    phoneme: str
    start: int
    end: int
    note: int | None


@dataclass(frozen=True)
class SungPhrase:
    """``wave`` float64 begins at frame ``start`` of the song; ``phonemes`` are contiguous, silence first and last."""

    start: int
    wave: NDArray[np.float64]
    phonemes: tuple[TimedPhoneme, ...]
    melody_by_frames: bool


@dataclass(frozen=True)
class Timbre:
    """One singer's manner. ``warp`` stretches the spectral envelope (1.1: formants about 10 % higher)."""

    name: str
    warp: float
    vibrato_cents: float
    vibrato_hertz: float
    glide_seconds: float


@dataclass(frozen=True)
class VoiceInfo:
    """A voice: names, licence, the pitches that it sings well, and how its notes and phonemes meet."""

    key: str
    title: str
    licence: str
    licence_url: str
    credit: str
    lowest: int
    highest: int
    onset: str
    timbres: tuple[Timbre, ...]

    def artist(self, timbre: Timbre) -> str:
        """Name of the singer in the corpus."""
        return self.title if timbre.name == "natural" else f"{self.title} {timbre.name}"


_CC_BY_3 = "http://creativecommons.org/licenses/by/3.0/"
_TIMBRES = (
    Timbre("natural", 1.0, 28.0, 5.6, 0.09),
    Timbre("bright", 1.1, 20.0, 6.0, 0.07),
    Timbre("light", 1.2, 38.0, 5.2, 0.11),
)
MEI = VoiceInfo(
    key="mei", title="Mei", licence="CC BY 3.0", licence_url=_CC_BY_3,
    credit='HTS voice "Mei", Copyright (c) 2009-2013 Nagoya Institute of Technology, MMDAgent Project Team',
    lowest=56, highest=75, onset="vowel starts on the beat", timbres=_TIMBRES,
)  # fmt: skip
SONG070 = VoiceInfo(
    key="song070", title="SONG070", licence="CC BY 3.0", licence_url=_CC_BY_3,
    credit='HTS voice "NIT SONG070 F001", Copyright (c) 2004-2015 Nagoya Institute of Technology, HTS Working Group',
    lowest=63, highest=75, onset="consonant starts on the beat", timbres=_TIMBRES,
)  # fmt: skip
VOICES = {info.key: info for info in (MEI, SONG070)}

_LEAD_FRAMES, _TAIL_FRAMES = 40, 36  # silence that the engine renders around a phrase
_SPECTRAL_VARIANCE = 0.5  # 1.0 gives long vowels a sharp peak
_CONSONANT_SHARE = 0.45  # a note gives at most this much of itself to consonants


def available_voices() -> list[str]:
    """Keys of the voices whose packages are installed, in the order of :data:`VOICES`."""
    needed = {"mei": ("pyopenjtalk",), "song070": ("pysinsy", "pkg_resources")}
    return [key for key in VOICES if all(importlib.util.find_spec(name) is not None for name in needed[key])]


def choose_voices(wanted: str) -> tuple[list[str], list[str]]:
    """Voices of ``"auto"`` or a comma list: keys to use, and lines to print about voices that are not installed."""
    have = available_voices()
    names = list(VOICES) if wanted == "auto" else [name for name in wanted.replace(" ", "").split(",") if name]
    for name in names:
        if name not in VOICES:
            raise UserError(f"--voices: no voice {name!r}{did_you_mean(name, VOICES)}; there are {', '.join(VOICES)}")
    missing = [name for name in names if name not in have]
    how = {"mei": "pip install pyopenjtalk-plus", "song070": "pip install -e '.[voices]'"}
    if missing and wanted != "auto":
        raise UserError(f"--voices: {missing[0]} is not installed; {how[missing[0]]}")
    names = [name for name in names if name in have]
    if not names:
        raise UserError("no singing voice is installed; pip install pyopenjtalk-plus")
    return names, [f"voice {name} is left out: not installed ({how[name]})" for name in missing]


def melody_contour(
    edges: NDArray[np.int64],
    midi: NDArray[np.float64],
    start: int,
    frames: int,
    timbre: Timbre,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """MIDI number of each frame ``[frames]`` from frame ``start`` of the song: notes, glides, vibrato, drift.

    Glides and vibrato stay within a note's first tenths of a second and some tens of cents, so its middle is in tune.
    """
    time = start + np.arange(frames)
    contour = midi[np.clip(np.searchsorted(edges, time, side="right") - 1, 0, len(midi) - 1)].astype(np.float64)
    for i in range(1, len(midi)):
        reach = min(
            timbre.glide_seconds / FRAME_SECONDS, 0.3 * (edges[i] - edges[i - 1]), 0.3 * (edges[i + 1] - edges[i])
        )
        place = np.clip((time - (edges[i] - 0.6 * reach)) / max(reach, 1.0), 0.0, 1.0)
        inside = (place > 0) & (place < 1)
        contour[inside] = midi[i - 1] + (midi[i] - midi[i - 1]) * (0.5 - 0.5 * np.cos(np.pi * place[inside]))
    scoop = float(rng.uniform(0.0, 0.6))  # the first note is reached from below
    contour -= scoop * np.exp(-np.maximum(0, time - edges[0]) * FRAME_SECONDS / 0.035) * (time < edges[1])
    for i in range(len(midi)):
        delay, phase, depth = rng.uniform(0.22, 0.38), rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.2)
        seconds = (time - edges[i]) * FRAME_SECONDS - delay
        if (edges[i + 1] - edges[i]) * FRAME_SECONDS < 0.5:
            continue
        inside = (seconds > 0) & (time < edges[i + 1])
        swing = np.sin(2 * np.pi * timbre.vibrato_hertz * seconds[inside] + phase) - np.sin(phase)
        contour[inside] += depth * timbre.vibrato_cents / 100 * np.clip(seconds[inside] / 0.35, 0, 1) * swing
    drift = rng.normal(0.0, 0.03, 2)
    seconds = time * FRAME_SECONDS
    return contour + drift[0] * np.sin(2 * np.pi * 0.9 * seconds) + drift[1] * np.sin(2 * np.pi * 2.3 * seconds + 1.0)


class Voice(ABC):
    """A loaded voice."""

    def __init__(self, info: VoiceInfo, engine: HTSEngine):
        if (engine.sample_rate, engine.frame_period) != (SAMPLE_RATE, FRAME):
            raise UserError(f"voice {info.title} runs at {engine.sample_rate} Hz; this renderer needs {SAMPLE_RATE} Hz")
        self.info, self.engine = info, engine

    @abstractmethod
    def sing(self, notes: PhraseNotes, timbre: Timbre, rng: np.random.Generator) -> SungPhrase:
        """Sing one phrase. Raises :class:`UnusableRendering` when the engine fails."""

    def _generate(
        self,
        notes: PhraseNotes,
        start: int,
        frames: NDArray[np.int64],
        note_of: list[int | None],
        timbre: Timbre,
        rng: np.random.Generator,
    ) -> Sound:
        """Melody by states and by frames into the engine, waveform out. Labels must be loaded."""
        midi = np.array(notes.midi, dtype=np.float64)
        sung = np.array([note is not None for note in note_of])
        known = np.flatnonzero(sung)
        nearest = [note_of[int(known[np.argmin(np.abs(known - i))])] for i in range(len(note_of))]
        self.engine.set_state_melody(midi[np.array(nearest, dtype=np.int64)], sung)
        contour = melody_contour(notes.frames(), midi, start, int(frames.sum()), timbre, rng)
        self.engine.set_alpha(warped_alpha(self.engine.alpha, timbre.warp))
        return self.engine.generate(spectral_variance=_SPECTRAL_VARIANCE, melody=contour)


def warped_alpha(alpha: float, warp: float) -> float:
    """All-pass constant that reads a mel-cepstrum trained at ``alpha`` with formants ``warp`` times higher.

    The constant ``a`` maps frequency f to a scale whose slope at low f is (1 + a) / (1 - a) (Tokuda et al. 1994); the
    warp divides that slope, so it holds for the vowels' formants and fades towards half the sampling rate.
    """
    slope = (1.0 + alpha) / (1.0 - alpha) / warp
    return (slope - 1.0) / (slope + 1.0)


class Mei(Voice):
    """Open JTalk's voice with imposed times: each vowel starts on its beat, its consonant before."""

    def __init__(self) -> None:
        open_jtalk = import_open_jtalk()
        voice = open_jtalk.DEFAULT_HTS_VOICE
        path = voice.decode() if isinstance(voice, bytes) else str(voice)
        super().__init__(MEI, HTSEngine(open_jtalk.htsengine.__file__, path))

    def sing(self, notes: PhraseNotes, timbre: Timbre, rng: np.random.Generator) -> SungPhrase:
        """Times are imposed and read back; see :class:`Voice`."""
        reading, engine = notes.reading, self.engine
        natural = engine.load_labels(reading.labels, aligned=False)
        edges = notes.frames()
        start = int(edges[0]) - _LEAD_FRAMES
        bounds = self._bounds(reading, natural, edges - start)
        unit = round(1e7 * FRAME_SECONDS)  # label times count 100 ns
        labels = [f"{a * unit} {b * unit} {x}" for a, b, x in zip(bounds, bounds[1:], reading.labels, strict=False)]
        frames = engine.load_labels(labels, aligned=True)
        if not np.array_equal(frames, np.diff(bounds)):
            raise UnusableRendering("times", "the synthesiser did not follow the imposed phoneme times")
        note_of = [None if s < 0 else s for s in reading.syllable_of]
        sound = self._generate(notes, start, frames, note_of, timbre, rng)
        phonemes = tuple(
            TimedPhoneme(p, start + int(a), start + int(b), n)
            for p, a, b, n in zip(reading.phonemes, bounds, bounds[1:], note_of, strict=False)
        )
        return SungPhrase(start, sound.wave, phonemes, sound.melody_by_frames)

    @staticmethod
    def _bounds(reading: Reading, natural: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame edges of all phonemes ``[phonemes + 1]``: on each beat a vowel, then what leads to the next."""
        bounds = [0]
        phonemes, syllable_of = reading.phonemes, reading.syllable_of
        nuclei = [i for i, p in enumerate(phonemes) if p in VOWELS or p == "N"]
        previous = -1
        for k, nucleus in enumerate([*nuclei, len(phonemes) - 1]):
            between = list(range(nuclei[k - 1] + 1 if k else 1, nucleus))  # consonants and stops before this nucleus
            beat = int(edges[syllable_of[nucleus]]) if k < len(nuclei) else int(edges[-1])
            last_beat = int(edges[previous]) if previous >= 0 else 0
            wanted = natural[between].astype(np.float64) if between else np.zeros(0)
            room = _CONSONANT_SHARE * (beat - last_beat)
            scale = min(1.0, room / wanted.sum()) if between else 1.0
            lengths = np.maximum(1, np.floor(wanted * scale)).astype(int)
            at = beat - int(lengths.sum())
            bounds.append(at)
            for length in lengths:
                at += int(length)
                bounds.append(at)
            previous = syllable_of[nucleus]
        bounds.append(int(edges[-1]) + _TAIL_FRAMES)
        result = np.array(bounds, dtype=np.int64)
        if len(result) != len(phonemes) + 1 or (np.diff(result) < 1).any():
            raise UnusableRendering("times", f"notes of {reading.line.text!r} are too short for their consonants")
        return result


class Song070(Voice):
    """Sinsy's voice: the score gives the notes, the model splits each into phonemes, and the split is read back."""

    _TRAINED = (61, 72)  # contexts outside these pitches were not in its training; the melody itself may leave them

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it imports pkg_resources, which warns
                import pysinsy
        except ImportError as error:
            raise UserError(f"voice song070 cannot be loaded ({error}); pip install -e '.[voices]'") from error
        self._sinsy = pysinsy.Sinsy()
        voice = pysinsy.get_default_htsvoice()
        if not self._sinsy.setLanguages("j", pysinsy.get_default_dic_dir()) or not self._sinsy.loadVoices(voice):
            raise UserError("pysinsy could not load its dictionary or voice; reinstall pysinsy")
        super().__init__(SONG070, HTSEngine(pysinsy.sinsy.__file__, voice))

    def sing(self, notes: PhraseNotes, timbre: Timbre, rng: np.random.Generator) -> SungPhrase:
        """Times are the model's, inside each note; see :class:`Voice`."""
        full, mono = self._labels(notes)
        spoken = tuple(line.split()[2] for line in mono)
        wanted = tuple(p for p in notes.reading.phonemes if p not in SILENCES)
        if spoken[1:-1] != wanted or spoken[0] not in SILENCES or spoken[-1] not in SILENCES:
            raise UnusableRendering("words", f"Sinsy sings {' '.join(spoken)} for {notes.reading.line.text!r}")
        frames = self.engine.load_labels(full, aligned=True)
        edges = notes.frames()
        bounds = np.concatenate([[0], np.cumsum(frames)])
        start = int(edges[0] - bounds[1])
        note_of = [None if s < 0 else s for s in notes.reading.syllable_of]
        sound = self._generate(notes, start, frames, note_of, timbre, rng)
        skip = max(0, int(frames[0]) - _LEAD_FRAMES)  # the score's rests are longer than needed
        stop = int(bounds[-2]) + min(int(frames[-1]), _TAIL_FRAMES)
        times = np.clip(bounds, skip, stop) + start
        phonemes = tuple(
            TimedPhoneme("sil" if n is None else p, int(a), int(b), n)
            for p, a, b, n in zip(spoken, times, times[1:], note_of, strict=False)
        )
        return SungPhrase(start + skip, sound.wave[skip * FRAME : stop * FRAME], phonemes, sound.melody_by_frames)

    def _labels(self, notes: PhraseNotes) -> tuple[list[str], list[str]]:
        """Full-context labels (times at note edges only) and phoneme labels of the phrase between two bars of rest."""
        low, high = self._TRAINED
        middle = (min(notes.midi) + max(notes.midi)) / 2
        octaves = -12 * int(np.round((middle - (low + high) / 2) / 12))
        rest, first = 16, notes.edges[0]
        score_notes = [
            ScoreNote(rest + a - first, b - a, int(np.clip(midi + octaves, low, high)), syllable.kana)
            for midi, a, b, syllable in zip(
                notes.midi, notes.edges, notes.edges[1:], _spoken_kana(notes.reading), strict=False
            )
        ]
        steps = rest + notes.edges[-1] - first + rest
        score = Score("phrase", score_notes, steps, 4, 4, 15.0 / notes.step_seconds, 0, "major")
        with tempfile.TemporaryDirectory(prefix="songbloom-score-") as folder:
            path = Path(folder) / "phrase.xml"
            path.write_text(write_score(score), encoding="utf-8")
            if not self._sinsy.loadScoreFromMusicXML(str(path)):
                raise UnusableRendering("engine", f"Sinsy could not read the score of {notes.reading.line.text!r}")
        # Time flag 2 keeps the note edges; with 1 the split inside a note is meaningless.
        full = self._sinsy.createLabelData(False, 1, 2).getData()
        mono = self._sinsy.createLabelData(True, 1, 1).getData()
        self._sinsy.clearScore()
        return list(full), list(mono)


def _spoken_kana(reading: Reading) -> list[Syllable]:
    """Syllables with long vowels written as they sound (こう → こ お), as Sinsy reads kana letter by letter."""
    vowels = dict(zip("aiueo", "あいうえお", strict=True))
    return [
        replace(syllable, kana=vowels[syllable.phonemes[0]] + "っ" * (len(syllable.phonemes) - 1))
        if syllable.phonemes[0] in VOWELS
        else syllable
        for syllable in reading.syllables
    ]


def load_voice(key: str) -> Voice:
    """Load one voice of :data:`VOICES`."""
    return {"mei": Mei, "song070": Song070}[key]()
