"""Everything that is wrong with a list of songs, at once: ``python -m songbloom.data.check FILE.jsonl``.

Several files are splits of one set, so none may hold a song of another. Exit status 2 if there is an error, 0 if there
are at most warnings. Training runs the same check when it starts (:func:`check_before_training`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from songbloom.data.check_rules import CheckSettings, Row, Rules
from songbloom.data.command import Parser, run_as_command
from songbloom.data.fields import located
from songbloom.data.findings import Report, SongFacts
from songbloom.data.manifest import record_of
from songbloom.data.sound_facts import Memory, SoundFacts
from songbloom.errors import UserError, counted, reason
from songbloom.files import write_text
from songbloom.lyrics.song import LANGUAGES
from songbloom.lyrics.tokens import Tokens
from songbloom.lyrics.vocabulary import ENGLISH_RULES, NAMES, READINGS

__all__ = ["CheckSettings", "check_before_training", "check_songs", "main"]

_DEFAULTS = CheckSettings()


def check_songs(
    *files: str | Path,
    settings: CheckSettings = _DEFAULTS,
    remember: bool = True,
    progress: Callable[[str], None] | None = None,
    see: Callable[[Row], None] | None = None,
) -> Report:
    """Check JSONL files of songs: ``check_songs(train, val, settings=CheckSettings(max_tokens=600)).refuse()``.

    Args:
        files: one or more; several are splits of one set.
        settings: what to check against.
        remember: keep what was heard in ``.NAME.jsonl.check.json`` beside each file, so that a second check of the
            same sound is quick.
        progress: told now and then how far the listening is.
        see: called with each line that has words, after it was checked.

    Returns:
        All that was found. Nothing is raised for what is wrong in the files, a missing file included.

    Raises:
        UserError: the settings are wrong (an unknown vocabulary, a package that is missing).
    """
    report = Report()
    rows: list[Row] = []
    sounds: dict[Path, SoundFacts] = {}
    for file in files:
        mine = _read(Path(file).expanduser(), report)
        place = located(str(Path(file).expanduser()), Path())
        memory = Memory(place.with_name(f".{place.name}.check.json") if remember and mine else None)
        wanted = [path for row in mine for name in ("audio_path", "prompt_wav") if (path := row.path(name))]
        sounds |= memory.look([path for path in wanted if path.is_file() and path not in sounds], progress)
        rows += mine
    rules = Rules(settings, report, sounds)
    for row in rows:
        rules.check(row)
        report.songs.append(row.facts)
        if see is not None:
            see(row)
    _duplicates(rows, sounds, report)
    _groups(rows, report)
    _layouts(rows, sounds, report)
    report.sort()
    return report


def check_before_training(*files: str | Path, settings: CheckSettings = _DEFAULTS) -> Report:
    """As :func:`check_songs`, for all ranks together: rank 0 checks and prints, all get the report.

    Raises:
        UserError: on every rank, if there is an error; or as :func:`check_songs`.
    """
    from songbloom.distributed import broadcast_object, say, world  # loads torch, which the command need not

    answer: Report | str | None = None
    if world().is_main:
        try:
            answer = check_songs(*files, settings=settings, progress=say)
        except UserError as error:
            answer = str(error)
    answer = broadcast_object(answer)
    if not isinstance(answer, Report):
        raise UserError(str(answer))
    if len(answer.errors) == 1:  # what stops the run is told once
        told = [str(finding) for finding in answer.warnings]
    else:
        told = [*answer.lines(), *answer.licences(), f"data: {answer.summary()}"]
    for line in told:
        say(line)
    answer.refuse()
    return answer


def _read(path: Path, report: Report) -> list[Row]:
    """The lines of a file that are objects; the others are told."""
    name = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        report.add(name, 0, "error", "unreadable", reason(error).lower())
        return []
    rows: list[Row] = []
    empty = True
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not (line := raw.strip()):
            continue
        empty = False
        try:
            record = record_of(line, "line", "each line must be one object", '{"audio_path": "song.wav"}')
        except UserError as error:
            report.add(name, number, "error", "json", str(error).removeprefix("line: "))
            continue
        facts = SongFacts(name, number, str(record.get("idx", "")))
        rows.append(Row(name, number, located(name, Path()).parent, record, facts))
    if empty:
        report.add(name, 0, "error", "empty", "holds no line; each line is an object with audio_path")
    return rows


def _duplicates(rows: Iterable[Row], sounds: dict[Path, SoundFacts], report: Report) -> None:
    first: dict[tuple[str, str], Row] = {}

    def seen(row: Row, what: str, value: str, message: str, *, here: bool = False) -> bool:
        before = first.setdefault((what, value), row)
        if before is row or (here and before.file != row.file):
            return False
        place = f"line {before.line}" + ("" if before.file == row.file else f" of {before.file}")
        report.add(row.file, row.line, "error", f"duplicate {what}", message.format(place))
        return True

    for row in rows:
        idx, path = row.record.get("idx"), row.path("audio_path")
        if idx not in (None, "") and isinstance(idx, int | str):
            seen(row, "idx", str(idx), f"idx {idx!r} is that of {{}}, too", here=True)
        if path is None:
            continue
        same_file = seen(row, "path", str(path.resolve()), "audio_path is the file of {}, too")
        digest = sounds[path].digest if path in sounds else ""
        if digest and not same_file:
            seen(row, "sound", digest, "audio_path has the same sound as that of {}")


def _groups(rows: Iterable[Row], report: Report) -> None:
    """A song group stands on one side of a split alone."""
    first: dict[str, Row] = {}
    told: set[tuple[str, str]] = set()
    sides: dict[str, bool] = {}  # whether a song of the side lacks a group
    for row in rows:
        sides[row.side] = sides.get(row.side, False) or not row.facts.group
        if not row.facts.group:
            continue
        before = first.setdefault(row.facts.group, row)
        if before.side != row.side and (row.facts.group, row.side) not in told:
            told.add((row.facts.group, row.side))
            place = f"line {before.line}" + ("" if before.file == row.file else f" of {before.file}")
            message = (
                f"group {row.facts.group!r} is in another split, too ({place}); split with songbloom.data.split_jsonl"
            )
            report.add(row.file, row.line, "error", "group", message)
    if len(sides) > 1 and any(sides.values()):
        file = next(row.file for row in rows if not row.facts.group)
        message = "songs without a group cannot be seen to be in one split alone; give each composition a group"
        report.add(file, 0, "warning", "group", message)


def _layouts(rows: Iterable[Row], sounds: dict[Path, SoundFacts], report: Report) -> None:
    """How many songs of a file are mono, and which rates there are."""
    files: dict[str, list[SoundFacts]] = {}
    for row in rows:
        path = row.path("audio_path")
        if path in sounds and not sounds[path].error:
            files.setdefault(row.file, []).append(sounds[path])
    for file, heard in files.items():
        mono = sum(facts.channels == 1 for facts in heard)
        same = sum(facts.same_channels for facts in heard)
        if mono or same:
            what = [f"{mono} mono"] * bool(mono) + [f"{same} with two channels alike"] * bool(same)
            message = (
                f"of {counted(len(heard), 'song')}, {' and '.join(what)}: a stereo model "
                "learns a narrow sound from them"
            )
            report.add(file, 0, "warning", "mono", message)
        rates = sorted({facts.sample_rate for facts in heard})
        if len(rates) > 1:
            found = ", ".join(f"{rate} Hz ({sum(f.sample_rate == rate for f in heard)})" for rate in rates)
            report.add(file, 0, "warning", "rates", f"sample rates differ: {found}; all are resampled")


# --- the command -----------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="python -m songbloom.data.check",
        description="Tell everything that is wrong with lists of songs, with file and line.",
        epilog="Several files are splits of one set. Exit status 2: there are errors; 0: none, or warnings alone.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSONL, one song a line")
    parser.option("show", action="store_true", help="print each song's words and phonemes, too")
    parser.option("json", default="", metavar="REPORT", help="write all findings and songs to this file as JSON")
    parser.option("all", action="store_true", help="print every finding, not the first twenty of a kind")
    parser.option("no_memory", action="store_true", help="listen to every file anew and remember nothing")
    d = _DEFAULTS
    parser.option("lyrics_vocab", default=d.lyrics_vocab, metavar="NAME", help=f"{', '.join(NAMES)}, or a file")
    parser.option("english", default=d.english, choices=("", *ENGLISH_RULES), help="English words in Japanese songs")
    parser.option("reading", default=d.reading, choices=READINGS, help="how Japanese is read")
    parser.option("language", default=d.language, choices=LANGUAGES, help="of songs that do not tell theirs")
    parser.option("seconds_per_tag", type=float, default=d.seconds_per_tag, help="what a repeated tag stands for")
    parser.option("max_tokens", type=int, default=d.max_tokens, help="lyric tokens that the model sees; 0: any number")
    parser.option("sr", type=int, default=d.sample_rate, help="sample rate of the model, Hz")
    parser.option("min_seconds", type=float, default=d.min_seconds, help="shortest song")
    parser.option("max_seconds", type=float, default=d.max_seconds, help="warn of longer songs; 0: never")
    parser.option("codebook_size", type=int, default=d.sketch_codes, help="number of sketch codes")
    parser.option("prompt_sec", type=float, default=d.prompt_seconds, help="length of style prompts")
    parser.option("need_sketch", action="store_true", help="a song without a sketch is an error")
    parser.option("need_prompt", action="store_true", help="a song without a style prompt is an error")
    parser.option("no_lyrics", action="store_true", help="a song without words is no error")
    return parser


def settings_of(options: argparse.Namespace) -> CheckSettings:
    """The settings on the command line."""
    return CheckSettings(
        lyrics_vocab=options.lyrics_vocab,
        english=options.english,
        reading=options.reading,
        language=options.language,
        seconds_per_tag=options.seconds_per_tag,
        max_tokens=options.max_tokens,
        sample_rate=options.sr,
        min_seconds=options.min_seconds,
        max_seconds=options.max_seconds,
        sketch_codes=options.codebook_size,
        prompt_seconds=options.prompt_sec,
        need_lyrics=not options.no_lyrics,
        need_sketch=options.need_sketch,
        need_prompt=options.need_prompt,
    )


def show(row: Row) -> None:
    """Print what a song's words become, line by line."""
    if row.tokens is None:
        return
    name = row.facts.idx or str(row.record.get("audio_path"))
    print(f"\n{row.file}:{row.line}  {name}  {counted(len(row.tokens), 'token')}, {row.facts.seconds:g} s")
    for line, symbols in _by_line(row.tokens):
        print(f"  {line}\n      {' '.join(symbols)}")


def _by_line(tokens: Tokens) -> Iterable[tuple[str, list[str]]]:
    start = 0
    for line in tokens.text.splitlines(keepends=True):
        end = start + len(line)
        inside = [s for s, (first, _) in zip(tokens.symbols, tokens.spans, strict=True) if start <= first < end]
        if line.strip():
            yield line.strip(), [symbol for symbol in inside if symbol != "\n"]
        start = end


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    report = check_songs(
        *options.files,
        settings=settings_of(options),
        remember=not options.no_memory,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
        see=show if options.show else None,
    )
    if options.show:
        print()
    for line in report.lines(sys.maxsize if options.all else 20):
        print(line)
    for line in report.licences():
        print(line)
    print(report.summary())
    if options.json:
        write_text(options.json, report.text())
    return 2 if report.errors else 0


if __name__ == "__main__":
    sys.exit(run_as_command(main))
