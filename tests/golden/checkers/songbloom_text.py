"""Golden ``songbloom_text`` and ``songbloom_pinyin_map``: words → phonemes → ids as the published program makes them.

Everything is compared exactly. Cases with Chinese characters need the packages of the extra ``chinese``; without them
the check fails and says so.
"""

from __future__ import annotations

import torch

from songbloom.lyrics.phonemes import PUBLISHED, SYMBOLS, TAGS, clean_lyrics
from songbloom.lyrics.pinyin import phones
from songbloom.lyrics.published_reading import read_words
from songbloom.lyrics.vocabulary import vocabulary
from tests.golden.report import Golden


def phoneme_string(text: str) -> str:
    """The phonemes of a text joined by spaces, as they go to the lyric conditioner of the published model."""
    return " ".join(" ".join(word.phonemes) for word in read_words(text))


def check_text(golden: Golden) -> None:
    """The vocabulary, and each case's phonemes and ids before and after the optional clean-up."""
    golden.expect("vocab", got=list(PUBLISHED))
    golden.expect("symbols", got=sorted(SYMBOLS))
    golden.expect("n_symbols", got=len(SYMBOLS))
    labels = golden.given("labels")  # in no order
    golden.expect("labels", got=sorted(TAGS, key=lambda tag: labels.index(tag) if tag in labels else len(labels)))
    for index in range(len(golden.content["cases"])):
        case = ("cases", index)
        text = golden.given(*case, "input")
        golden.expect(*case, "processed", got=phoneme_string(text))
        golden.expect(*case, "ids", got=_ids(text))
        if golden.has(*case, "cleaned"):
            cleaned = clean_lyrics(text)
            golden.expect(*case, "cleaned", got=cleaned)
            golden.expect(*case, "cleaned_processed", got=phoneme_string(cleaned))
            golden.expect(*case, "cleaned_ids", got=_ids(cleaned))


def check_pinyin_map(golden: Golden) -> None:
    """The table of syllables, which our rules of spelling give."""
    table = golden.content["syllable_to_phones"]
    golden.expect("syllable_to_phones", got={syllable: " ".join(phones(syllable)) for syllable in table})


def _ids(text: str) -> torch.Tensor:
    return torch.tensor(vocabulary("songbloom_published").tokenize(text).ids)


CHECKS = {"songbloom_text": check_text, "songbloom_pinyin_map": check_pinyin_map}
