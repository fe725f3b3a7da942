"""English words → ARPAbet phonemes with stress: dictionary, homographs, possessives, compounds, and a spelling model.

The dictionary is the CMU Pronouncing Dictionary 0.7b with later additions (143 198 words), in ``data/``. What it lacks
is cut into words that it has, and what cannot be cut is read by a small network that learned spelling from it.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np

from songbloom.errors import UserError
from songbloom.lyrics.number_words import number_words

VOWELS = (
    "AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW",
)  # fmt: skip
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V", "W",
    "Y", "Z", "ZH",
)  # fmt: skip
PHONEMES = (*(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"), *CONSONANTS)
"""What English words sound like: 15 vowels without, with first and with second stress, and 24 consonants."""

How = Literal["dictionary", "homograph", "possessive", "compound", "letters", "model", "mark"]
_WORD = re.compile(r"[A-Za-z][A-Za-z'\-]+[A-Za-z]|[A-Za-z]+|\S")
_LONG_RUN = re.compile(r"([^A-Za-z0-9])\1{3,}")
_AFTER_VOICELESS = frozenset(("P", "T", "K", "F", "TH", "HH"))
_AFTER_SIBILANT = frozenset(("S", "Z", "SH", "ZH", "CH", "JH"))
_MARKS = str.maketrans({
    ";": ",", "：": ",", ":": ",", "，": ",", "；": ",", '"': "'", "’": "'", "。": ".", "！": "!", "？": "?"
})  # fmt: skip
_NOT_ENGLISH = re.compile(r"[^ A-Za-z'.,?!\-]")


class Spoken(NamedTuple):
    """A word and its sounds: ``how`` says where they are from (``model`` and ``compound`` are guesses)."""

    word: str
    phonemes: tuple[str, ...]
    how: How


def normalise(text: str) -> str:
    """Numbers in words, accents off, and only Latin letters, spaces and ``' . , ? ! -`` kept."""
    text = number_words(text.translate(_MARKS))
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return _NOT_ENGLISH.sub("", text)


def speak(text: str) -> list[Spoken]:
    """The words of a normalised English text as they sound. Marks sound as themselves."""
    words = _WORD.findall(_LONG_RUN.sub(r"\1\1\1", text))
    return [_spoken(words, index) for index in range(len(words))]


def phonemes_of(text: str) -> list[str]:
    """The sounds of English as it is written: :func:`normalise`, then :func:`speak`."""
    return [phoneme for word in speak(normalise(text)) for phoneme in word.phonemes]


def _spoken(words: Sequence[str], index: int) -> Spoken:
    word = words[index]
    if not word[0].isalpha():
        return Spoken(word, (word,), "mark")
    small = word.lower()
    if len(word) == 1:
        return Spoken(word, ("EY1",) if word == "A" else dictionary()[small], "dictionary")
    if small in _homographs():
        before = words[index - 1] if index else ""
        after = words[index + 1] if index + 1 < len(words) else ""
        return Spoken(word, _homographs()[small].read(word, before, after), "homograph")
    return Spoken(word, *_look_up(small))


def _look_up(word: str) -> tuple[tuple[str, ...], How]:
    """Sounds of a word in small letters, which may hold apostrophes and hyphens."""
    known = dictionary()
    if len(word) > 1 and word in known:
        return known[word], "dictionary"
    if len(word) <= 3:
        letters = [("EY1",) if letter == "a" else known.get(letter, (letter,)) for letter in word]
        return tuple(phoneme for letter in letters for phoneme in letter), "letters"
    if re.fullmatch(r"[a-z]+'s", word):
        sounds, _ = _look_up(word[:-2])
        if sounds and sounds[-1] in _AFTER_VOICELESS:
            return (*sounds, "S"), "possessive"
        return (*sounds, *(("AH0", "Z") if sounds and sounds[-1] in _AFTER_SIBILANT else ("Z",))), "possessive"
    parts = _segmented(word)
    if len(parts) == 1:
        return spelled(word), "model"
    return tuple(phoneme for part in parts for phoneme in _look_up(part)[0]), "compound"


@lru_cache(maxsize=1)
def dictionary() -> dict[str, tuple[str, ...]]:
    """Word in small letters → its sounds."""
    packed = (resources.files("songbloom.lyrics") / "data" / "english_words.txt.gz").read_bytes()
    entries = (line.split(" ") for line in gzip.decompress(packed).decode("utf-8").splitlines())
    return {word: tuple(sounds) for word, *sounds in entries}


@dataclass(frozen=True)
class _Homograph:
    alone: tuple[str, ...]
    other: tuple[str, ...]
    exceptions: frozenset[str]

    def read(self, word: str, before: str, after: str) -> tuple[str, ...]:
        case = "u" if word.isupper() else "t" if word.istitle() else "l"
        around = [mark if mark in ("'", ",") else "_" for mark in (before, after)]
        return self.other if case + "".join(around) in self.exceptions else self.alone


@lru_cache(maxsize=1)
def _homographs() -> dict[str, _Homograph]:
    text = (resources.files("songbloom.lyrics") / "data" / "homographs.txt").read_text(encoding="utf-8")
    rows = (line.split("|") for line in text.splitlines() if not line.startswith("#"))
    return {
        word: _Homograph(tuple(alone.split()), tuple(other.split()), frozenset(exceptions.split(" ")))
        for word, alone, other, exceptions in rows
    }


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    try:
        import wordsegment
    except ImportError as error:
        raise UserError(
            "reading English words that no dictionary has needs wordsegment: pip install wordsegment"
        ) from error
    wordsegment.load()
    return wordsegment


def _segmented(word: str) -> list[str]:
    return _segmenter().segment(word)


_GRAPHEMES = {letter: index for index, letter in enumerate(("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"))}
_SOUNDS = ("<pad>", "<unk>", "<s>", "</s>", *sorted((*PHONEMES, "UW")))
_START, _STOP = 2, 3
_MOST_SOUNDS = 20


@lru_cache(maxsize=1)
def _network() -> dict[str, np.ndarray]:
    with (
        (resources.files("songbloom.lyrics") / "data" / "letters_to_sounds.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return {name: arrays[name].astype(np.float32) for name in arrays.files}


@lru_cache(maxsize=4096)
def spelled(word: str) -> tuple[str, ...]:
    """How a word in small letters sounds by its spelling: a guess of two recurrent networks (GRU, Cho et al. 2014)."""
    weights = _network()
    state = np.zeros(weights["enc_w_hh"].shape[1], np.float32)
    for letter in (*word, "</s>"):
        state = _gru("enc", weights["enc_emb"][_GRAPHEMES.get(letter, 1)], state)
    sounds: list[str] = []
    last = _START
    while len(sounds) < _MOST_SOUNDS:
        state = _gru("dec", weights["dec_emb"][last], state)
        last = int((weights["fc_w"] @ state + weights["fc_b"]).argmax())
        if last == _STOP:
            break
        sounds.append(_SOUNDS[last])
    return tuple(sound for sound in sounds if sound not in ("<pad>", "<s>", "UW"))


def _gru(side: str, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
    weights = _network()
    given = weights[f"{side}_w_ih"] @ inputs + weights[f"{side}_b_ih"]
    kept = weights[f"{side}_w_hh"] @ state + weights[f"{side}_b_hh"]
    reset, update = (1 / (1 + np.exp(-(given + kept)[: 2 * len(state)]))).reshape(2, -1)
    fresh = np.tanh(given[2 * len(state) :] + reset * kept[2 * len(state) :])
    return (1 - update) * fresh + update * state
