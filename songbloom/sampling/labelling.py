"""What the items of a run are told: who sings, in what style, which words, and how long the whole song is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from songbloom.data.label_tables import UNKNOWN
from songbloom.data.labels import Known, Labeller, Labels, Times
from songbloom.data.manifest import song_fields
from songbloom.data.metadata import PHRASES
from songbloom.data.song_labels import unfitting
from songbloom.distributed import say
from songbloom.errors import UserError, did_you_mean, reason
from songbloom.hyperparams import COMMAND_LINE, Hyperparams
from songbloom.lyrics.timed_text import SCORES
from songbloom.prior.prior import Prior
from songbloom.sampling.origin import check_seed

if TYPE_CHECKING:
    from songbloom.lyrics.timing import TimedText

TIMED_SUFFIXES = (".lrc", ".lab", *SCORES)  # of lyrics_file; any other is a text
_TOTAL = "total_sample_length_in_seconds"
_FIELDS = ("artist", "genre", "lyrics", "lyrics_file", PHRASES, "prompt_wav", _TOTAL, "seed")
_SHOWN = 5  # symbols without a token that are named for an item


@dataclass(frozen=True)
class Asked:
    """What is asked for one item; None where nothing is.

    Attributes:
        artist, genre, lyrics: text.
        timed: when the lyrics are to be sung.
        total: seconds of the song that the item is the beginning of.
        seed: of the item; it says nothing to a model.
        times: when each token of the lyrics is to be sung, where that is known already; ``timed`` counts more.
        prompt_wav: sound file that tells a model of the SongBloom family how it is to sound.
        carried: whether ``total`` is what an earlier run was told.
    """

    artist: str | None = None
    genre: str | None = None
    lyrics: str | None = None
    timed: TimedText | None = None
    total: float | None = None
    seed: int | None = None
    times: Times | None = None
    prompt_wav: str | None = None
    carried: bool = field(default=False, compare=False)

    @property
    def anything(self) -> bool:
        """Whether anything is asked for that only labels can tell."""
        return bool(self.artist or self.genre or self.lyrics)

    def plain(self) -> list[Any]:
        """As plain data, to be compared."""
        timed = None if self.timed is None else repr(self.timed)
        times = [] if self.times is None else [repr(self.times)]
        return [self.artist, self.genre, self.lyrics, timed, self.total, *times]


# --- the command line -----------------------------------------------------------------------------------------------


def asked_of(options: Hyperparams, items: int) -> list[Asked]:
    """What the command line asks for each item; rows of ``prompts_jsonl`` are taken again until there are enough.

    Raises:
        UserError: a file cannot be read, or lyrics that are given hold nothing.
    """
    common = _common(options)
    if not options.prompts_jsonl:
        return [common] * items
    rows = rows_of(options.prompts_jsonl)
    asked = [_of_row(row, where, Path(options.prompts_jsonl).parent, common) for where, row in rows]
    once = asked[:items]
    # A row that is taken again has its words once more, but not its seed: that would be the same song.
    return once + [replace(asked[item % len(asked)], seed=None) for item in range(len(once), items)]


def rows_of(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place ``file:line``.

    Raises:
        UserError: it cannot be read, holds no row, or a row asks for nothing that is known.
    """
    rows = []
    for number, line in enumerate(_text(path, "--prompts_jsonl").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: is not JSON ({error.msg} at column {error.colno}); each line must be one object"
            ) from error
        except (ValueError, RecursionError) as error:
            why = "too deep" if isinstance(error, RecursionError) else "a number of too many digits"
            raise UserError(f"{where}: is not JSON ({why}); each line must be one object") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: is no object; write one like {{"artist": "Mei", "lyrics": "さくら"}}')
        if row and not set(row) & set(_FIELDS):
            hint = next((near for key in row if (near := did_you_mean(key, _FIELDS))), "")
            raise UserError(f"{where}: has none of {', '.join(_FIELDS)}{hint}")
        rows.append((where, row))
    if not rows:
        raise UserError(f"--prompts_jsonl={path}: holds no line; each line is an object with what one item is told")
    return rows


def _of_row(row: Mapping[str, Any], where: str, folder: Path, common: Asked) -> Asked:
    fields = song_fields(row, where)
    asked = replace(common, **{key: row[key] for key in ("artist", "genre") if fields[key] is not None})
    if row.get("lyrics") is not None and row.get("lyrics_file") is not None:
        raise UserError(f"{where}: has both lyrics and lyrics_file: leave one out")
    if row.get("lyrics") is not None:
        asked = replace(asked, lyrics=row["lyrics"], timed=None)
    if row.get("lyrics_file") is not None:
        if not isinstance(row["lyrics_file"], str):
            raise UserError(f"{where}: lyrics_file must be the path of a file, not {row['lyrics_file']!r}")
        asked = replace(asked, **_of_file(str(folder / Path(row["lyrics_file"]).expanduser()), where))
    if row.get(PHRASES):
        from songbloom.lyrics.timing import from_phrases

        if not isinstance(row[PHRASES], list):
            raise UserError(f"{where}: {PHRASES} must be a list of objects with text, start and end")
        timed = from_phrases(row[PHRASES], source=f"{where}, {PHRASES}")
        asked = replace(asked, timed=timed, lyrics=asked.lyrics or timed.text)
    if row.get("prompt_wav") is not None:
        if not isinstance(row["prompt_wav"], str):
            raise UserError(f"{where}: prompt_wav must be the path of a file, not {row['prompt_wav']!r}")
        asked = replace(asked, prompt_wav=str(folder / Path(row["prompt_wav"]).expanduser()))
    if row.get("seed") is not None:
        asked = replace(asked, seed=check_seed(row["seed"], f"{where}: seed"))
    total = row.get(_TOTAL)
    if total is None:
        return asked
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total < float("inf"):
        raise UserError(f"{where}: {_TOTAL} must be a number of seconds, not {total!r}")
    return replace(asked, total=float(total))


def _common(options: Hyperparams) -> Asked:
    """What is asked for every item."""
    if options.lyrics and options.lyrics_file:
        raise UserError("--lyrics and --lyrics_file are both given: leave one out")
    for key in ("artist", "genre", "lyrics"):
        if options.sources.get(key) == COMMAND_LINE and not options[key].strip():
            raise UserError(f"--{key} is empty: give some text, or leave it out")
    # A shell's "\n" is two characters, and no vocabulary has a backslash.
    asked = Asked(options.artist or None, options.genre or None, options.lyrics.replace("\\n", "\n") or None)
    return replace(asked, **_of_file(options.lyrics_file, "--lyrics_file")) if options.lyrics_file else asked


def _of_file(path: str, where: str) -> dict[str, Any]:
    """``lyrics`` of a text file; of one with times, ``timed`` as well."""
    if Path(path).suffix.lower() in TIMED_SUFFIXES:
        from songbloom.lyrics.timing import read_timed

        timed = read_timed(path)
        if timed.kind == "phonemes":
            raise UserError(f"{where}: {path} holds phonemes and no words; give the words as text, .lrc or .musicxml")
        return {"lyrics": timed.text, "timed": timed}
    text = _text(path, where)
    if not text.strip():
        raise UserError(f"{where}: {path} holds no lyrics; write some into it, or leave it out")
    return {"lyrics": text, "timed": None}


def _text(path: str, where: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({reason(error).lower()})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path} is not UTF-8 text; save the file as UTF-8") from error


def carried(options: Hyperparams, asked: Sequence[Asked], earlier: Sequence[Any], sample_rate: float) -> list[Asked]:
    """``asked``, and what it leaves open as the run was told that the items go on from.

    Args:
        options: the command line.
        asked: for each item.
        earlier: for each level what its prior was told of each item (:attr:`songbloom.sampling.origin.Origin.labels`).
        sample_rate: Hz.
    """
    labels = next((each for each in reversed(earlier) if each), None)  # the top one's know most
    if labels is None:
        return list(asked)
    before = []
    for item, each in enumerate(asked):
        info = labels["info"][item]
        known = {key: info.get(key) for key in ("artist", "genre") if info.get(key) not in (UNKNOWN, "n/a")}
        lyrics = info.get("text", info.get("lyrics"))
        told: dict[str, Any] = {key: getattr(each, key) or known.get(key) for key in ("artist", "genre")}
        if not each.lyrics and isinstance(lyrics, str) and lyrics:
            told |= {"lyrics": lyrics, "times": _times_before(info)}
        if each.total is None and options[_TOTAL] is None and labels["y"].shape[1]:
            told |= {"total": int(labels["y"][item, 0]) / sample_rate, "carried": True}
        before.append(replace(each, **told))
    return before


def _times_before(info: Mapping[str, Any]) -> Times | None:
    """The times of an item's tokens, as a run kept them; None where they have none."""
    return tuple(None if each is None else (float(each[0]), float(each[1])) for each in info.get("times") or ()) or None


def digest(asked: Sequence[Asked]) -> str:
    """A short name for what is asked."""
    text = json.dumps([each.plain() for each in asked], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# --- labels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelLabels:
    """The labels of all items for one level's prior.

    Attributes:
        labeller: made them.
        labels: of the songs' beginnings.
        prior: its sizes.
    """

    labeller: Labeller
    labels: Labels
    prior: Prior

    def windows(self, items: range) -> Callable[[int, slice], Tensor]:
        """For these items: from the start of a window and a slice of them to the label vectors of the window."""
        mine = self.labels[slice(items.start, items.stop)]
        return lambda start, part: self.labeller.shifted(mine[part], start, self.prior)[0]


def level_labels(
    labellers: Mapping[int, tuple[Labeller, Prior]],
    asked: Sequence[Asked],
    totals: Sequence[float],
    *,
    model: str,
    complete: bool,
) -> dict[int, LevelLabels]:
    """The labels of every level that has any.

    Args:
        labellers: of levels, with the priors' sizes.
        asked: for each item.
        totals: seconds of each item's whole song.
        model: its name, for messages.
        complete: whether all levels of the model are there.

    Raises:
        UserError: something is asked for that no level can be told, or that a level does not know.
    """
    _refuse_unheard(labellers, asked, model, complete)
    made = {}
    for level, (labeller, prior) in labellers.items():
        remarks: dict[str, None] = {}
        known: dict[tuple[Any, ...], Known] = {}
        rows = []
        for each, total in zip(asked, totals, strict=True):
            key = (each.artist, each.genre, each.lyrics, id(each.timed), each.times)
            if key not in known:
                words = each.lyrics if labeller.reads_lyrics else None
                timed = each.timed if labeller.reads_lyrics else None
                known[key] = labeller.known(each.artist, each.genre, words, timed)
                if timed is None and len(each.times or ()) == len(known[key].tokens.ids) and labeller.reads_lyrics:
                    known[key] = replace(known[key], times=each.times)
                remarks |= dict.fromkeys(_remarks(known[key], labeller, round(total * labeller.sr)))
            rows.append({"known": known[key], "total_length": round(total * labeller.sr), "offset": 0})
        for line in remarks:
            say(f"note: {line}")
        made[level] = LevelLabels(labeller, labeller.batch(rows), prior)
    return made


def _refuse_unheard(
    labellers: Mapping[int, tuple[Labeller, Prior]], asked: Sequence[Asked], model: str, complete: bool
) -> None:
    if any(each.prompt_wav for each in asked):
        raise UserError(f"model {model!r} hears no style prompt: leave prompt_wav out, or choose another --model")
    deaf = not labellers and any(each.anything for each in asked)
    wordless = not any(labeller.reads_lyrics for labeller, _ in labellers.values())
    if deaf:
        fault = f"model {model!r} knows no artists, genres or lyrics"
    elif wordless and any(each.lyrics for each in asked):
        fault = f"model {model!r} knows artists and genres, but reads no lyrics"
    else:
        return
    if complete:
        raise UserError(f"{fault}: leave them out, or choose another --model")
    say(f"note: {fault} at the levels that are written")


def _remarks(known: Known, labeller: Labeller, total_length: int) -> list[str]:
    """What a person should hear about an item's words."""
    if not labeller.reads_lyrics:
        return []
    problems = known.tokens.problems
    lines = [f"lyrics, {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(
            f"lyrics: {len(problems) - _SHOWN} more such places; python -m songbloom.lyrics show FILE lists them"
        )
    if not known.tokens.ids:
        lines.append("no lyrics are given: the model is shown no words (--lyrics, --lyrics_file or --prompts_jsonl)")
    fault = unfitting(known, total_length, labeller)
    if fault:
        lines.append(f"{fault.removeprefix('its ')}; shorten them or give a longer --{_TOTAL}")
    return lines
