"""``python -m songbloom.lyrics show FILE``: what a vocabulary makes of words, line by line.

Prints each line as text, reading, phonemes and ids, with times where the file has them, and names what is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from songbloom.errors import UserError, counted, did_you_mean
from songbloom.lyrics.morae import PHONEMES
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.lyrics.phonemes import PUBLISHED_ROOM
from songbloom.lyrics.song import LANGUAGES
from songbloom.lyrics.timed_text import TimedText, read_lines
from songbloom.lyrics.timing import SUFFIXES, read_timed, token_times
from songbloom.lyrics.tokens import Tokens
from songbloom.lyrics.vocabulary import ENGLISH_RULES, NAMES, READINGS, vocabulary

_OPTIONS = ("--lyrics_vocab", "--english", "--reading", "--times", "--language", "--seconds_per_tag", "--help")


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        near = ""
        if message.startswith("unrecognized"):
            near = did_you_mean(unknown, _OPTIONS)
        raise UserError(f"{message}{near}; --help lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m songbloom.lyrics", description="Words as a model sees them.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    show = commands.add_parser(
        "show",
        help="print text, reading, phonemes and ids line by line",
        description="Print text, reading, phonemes and ids of a song's words line by line, and what is left out.",
        allow_abbrev=False,
    )
    show.add_argument("file", metavar="FILE", help=f"a text file, a timed one ({' '.join(SUFFIXES)}), or - for stdin")

    def option(name: str, **more: object) -> None:
        spellings = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        show.add_argument(*spellings, dest=name, **more)  # type: ignore[arg-type]

    option(
        "lyrics_vocab",
        default="ja_phonemes",
        metavar="NAME",
        help=f"{', '.join(NAMES)}, or a file (default ja_phonemes)",
    )
    rules = ", ".join(ENGLISH_RULES)
    option("english", metavar="RULE", help=f"English words in Japanese: {rules} (default katakana; songbloom: arpabet)")
    option("reading", default="auto", metavar="RULE", help=f"how Japanese is read: {', '.join(READINGS)}")
    option("language", default="auto", metavar="NAME", help=f"songbloom: what the words are: {', '.join(LANGUAGES)}")
    option("seconds_per_tag", default=1.0, type=float, metavar="S", help="songbloom: what a repeated tag stands for")
    option("times", default="", metavar="FILE", help="a timed file of the same song")
    return parser


def show(options: argparse.Namespace) -> None:
    """Print a song's words as the vocabulary sees them."""
    words = vocabulary(options.lyrics_vocab)
    text, timed = _read(options.file)
    if options.times:
        timed = read_timed(options.times)
    rules = {"english": options.english or "katakana", "reading": options.reading}
    if isinstance(words, PhonemeVocabulary):
        rules["english"] = options.english or "arpabet"
        rules |= {"language": options.language, "seconds_per_tag": options.seconds_per_tag}
    tokens = words.tokenize(text, **rules)
    times = None if timed is None else token_times(tokens, timed)
    rows: list[tuple[str, Tokens]] = [("tokens", tokens), ("ids", tokens)]
    if words.is_japanese:
        rows = [
            ("reading", vocabulary("ja_kana").tokenize(text, **rules)),
            ("phonemes", vocabulary("ja_phonemes").tokenize(text, **rules)),
            *rows,
        ]
    start = 0
    for line in text.splitlines(keepends=True):
        end = start + len(line)
        shown = line.strip()
        if shown:
            print(_clock(tokens, times, start, end) + shown)
            for name, row in rows:
                joined = name == "reading" or (name == "tokens" and not words.is_japanese and not words.separator)
                _print_row(name, row, "" if joined else " ", start, end)
        start = end
    for section in tokens.sections:
        length = "" if section.seconds is None else f", {section.seconds:g} s wanted"
        print(
            f"\n{section.tag} from token {section.first}: {counted(section.count, 'tag')}{length}",
            end="",
        )
    if tokens.sections:
        print()
    print(
        f"\n{words.name}: {counted(len(tokens), 'token')} of {words.n_vocab} kinds, "
        f"{counted(len(tokens.problems), 'problem')}"
    )
    if isinstance(words, PhonemeVocabulary) and len(tokens) > PUBLISHED_ROOM:
        print(f"  the published 150 s models see the first {PUBLISHED_ROOM} tokens")
    for problem in tokens.problems:
        print(f"  {problem}")


def _read(name: str) -> tuple[str, TimedText | None]:
    if name == "-":
        return sys.stdin.read(), None
    path = Path(name)
    if path.suffix.lower() in SUFFIXES:
        timed = read_timed(path)
        if timed.kind == "phonemes":
            raise UserError(f"{path}: holds phonemes, not words; give the words as FILE and this as --times")
        return timed.text, timed
    return "\n".join(read_lines(path)), None


def _print_row(name: str, tokens: Tokens, between: str, start: int, end: int) -> None:
    inside = [i for i, (first, _) in enumerate(tokens.spans) if start <= first < end and tokens.symbols[i] != "\n"]
    if name == "ids":
        shown = [str(tokens.ids[i]) for i in inside]
    elif name == "phonemes":
        shown = [tokens.symbols[i] for i in inside if tokens.symbols[i] in PHONEMES]
    else:
        shown = [tokens.symbols[i] for i in inside]
    print(f"    {name:<9} {between.join(shown)}".rstrip())


def _clock(tokens: Tokens, times: list[tuple[float, float] | None] | None, start: int, end: int) -> str:
    if times is None:
        return ""
    inside = [time for time, (first, _) in zip(times, tokens.spans, strict=True) if time and start <= first < end]
    return f"{inside[0][0]:8.2f} – {inside[-1][1]:.2f} s  " if inside else " " * 20


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a mistake is one line on stderr and status 2."""
    try:
        options = _parser().parse_args(arguments)
        if options.command is None:
            _parser().print_help()
            return 2
        show(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # | head
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
