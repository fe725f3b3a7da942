"""The words of a part of a song: structured lyrics cropped as its audio is.

Times come from phrases where there are any, else from sections (their own times, or lengths such as ``[verse 12.5s]``),
else sections share the song, and words are spread evenly over their section.
"""

from __future__ import annotations

from collections.abc import Sequence

from songbloom.errors import UserError, counted
from songbloom.lyrics.morae import PHONEMES
from songbloom.lyrics.phoneme_vocabulary import is_phoneme, section_times
from songbloom.lyrics.phonemes import SECTION_END, SENTENCE_END
from songbloom.lyrics.timing import TimedText, token_times
from songbloom.lyrics.tokens import Tokens

Span = tuple[float, float]
JAPANESE = 0.7  # share of Japanese phonemes from which a song's sounds are matched one by one, not its lines


def times_of(
    tokens: Tokens, total: float, *, timed: TimedText | None = None, sections: Sequence[Span] | None = None
) -> list[Span]:
    """When each token is, in seconds; tags and marks too.

    Args:
        tokens: of structured lyrics.
        total: length of the song.
        timed: times of its words, if there are any.
        sections: start and end of each section of ``tokens.sections``, if they are known.

    Raises:
        UserError: the times are of other words.
    """
    times = _by_sections(tokens, total, sections)
    if timed is None:
        return times
    symbols = [symbol for symbol in tokens.symbols if is_phoneme(symbol)]
    if not symbols:
        return times
    japanese = sum(symbol in PHONEMES for symbol in symbols) >= JAPANESE * len(
        symbols
    )  # sounds of others can't be matched
    exact = token_times(tokens, timed) if japanese or timed.kind == "phonemes" else _by_lines(tokens, timed)
    known = [index for index, span in enumerate(exact) if span is not None]
    if not known:
        raise UserError("the times are of other words: none of their lines is in the lyrics; is it the right file?")
    for index, span in enumerate(exact):
        if span is not None:
            times[index] = span
    # What has no time of its own (tags of sung sections, marks) goes with the words beside it.
    for first, last in _ranges(tokens):
        sung = [index for index in known if first <= index < last]
        if not sung:
            continue
        for index in range(first, last):
            if exact[index] is None:
                near = min(sung, key=lambda other: abs(other - index))
                times[index] = times[near]
    return times


def crop(tokens: Tokens, times: Sequence[Span], start: float, end: float) -> list[int]:
    """Positions of the tokens of the part from ``start`` to ``end`` seconds, in order.

    A word belongs to the part if its middle does. A section that is cut keeps a tag; marks stand only between words
    or sections that are there.
    """
    kept: list[int] = []
    whole = True
    for first, last in _ranges(tokens):
        words = [i for i in range(first, last) if is_phoneme(tokens.symbols[i])]
        inside = [i for i in words if start <= sum(times[i]) / 2 < end]
        tags = [i for i in range(first, last) if tokens.symbols[i].startswith("[")]
        if words:
            wanted_tags = tags if len(inside) == len(words) else tags[:1] if inside else []
        else:
            wanted_tags = [i for i in tags if start <= sum(times[i]) / 2 < end]
        whole = whole and len(inside) == len(words) and len(wanted_tags) == len(tags)
        if not (inside or wanted_tags):
            continue
        if kept:
            kept += [i for i in (first - 1,) if i >= 0 and tokens.symbols[i] == SECTION_END]
        kept += wanted_tags
        for number, index in enumerate(inside):
            if number:
                between = range(inside[number - 1] + 1, index)
                kept += [i for i in between if tokens.symbols[i] == SENTENCE_END][:1]
            kept.append(index)
    return list(range(len(tokens))) if whole else kept


def _ranges(tokens: Tokens) -> list[tuple[int, int]]:
    """First and last (exclusive) token of each section, without the mark that ends it; words before the first too."""
    starts = [section.first for section in tokens.sections if section.count]
    if not starts or starts[0] > 0:
        starts.insert(0, 0)
    ends = [*starts[1:], len(tokens)]
    made = []
    for first, last in zip(starts, ends, strict=True):
        stop = last - 1 if last > first and last < len(tokens) and tokens.symbols[last - 1] == SECTION_END else last
        made.append((first, stop))
    return made


def _by_sections(tokens: Tokens, total: float, given: Sequence[Span] | None) -> list[Span]:
    tagged = [section for section in tokens.sections if section.count]
    if given is not None and len(given) != len(tokens.sections):
        raise UserError(
            f"{counted(len(given), 'section has times', 'sections have times')}, and the lyrics "
            f"have {len(tokens.sections)}: give one a tag"
        )
    if given is not None:
        spans = [
            (begin + (stop - begin) * part / section.count, begin + (stop - begin) * (part + 1) / section.count)
            for section, (begin, stop) in zip(tokens.sections, given, strict=True)
            for part in range(section.count)
        ]
    else:
        try:
            spans = section_times(tagged, total) if tagged else []
        except UserError:  # lengths that are wishes and don't fit this recording: all share it
            spans = []
    ranges = _ranges(tokens)
    untagged = len(ranges) > len(tagged)
    if not spans:
        step = total / len(ranges)
        wholes = [(number * step, (number + 1) * step) for number in range(len(ranges))]
        owners = [1] * len(ranges)
    else:
        owners = ([0] if untagged else []) + [section.count for section in tagged]
        wholes, place = [], 0
        for count in owners:
            wholes.append((spans[place][0], spans[place + count - 1][1]) if count else (0.0, spans[0][0]))
            place += count
    times: list[Span] = [(0.0, 0.0)] * len(tokens)
    for (first, last), (begin, stop) in zip(ranges, wholes, strict=True):
        words = [i for i in range(first, last) if is_phoneme(tokens.symbols[i])]
        tags = [i for i in range(first, last) if tokens.symbols[i].startswith("[")]
        moving = words or tags
        for place, index in enumerate(moving):
            step = (stop - begin) / len(moving)
            times[index] = (begin + place * step, begin + (place + 1) * step)
        for index in range(first, min(last + 1, len(tokens))):
            if index not in moving:
                times[index] = (begin, begin) if index in tags else times[index - 1] if index else (begin, begin)
    return times


def _by_lines(tokens: Tokens, timed: TimedText) -> list[Span | None]:
    """Times of words that no sound can be matched for (English, Chinese): the lines of the times, one after another,
    are found in the text, and the words of a line share its time."""
    found: list[Span | None] = [None] * len(tokens)
    position = 0
    squeezed = [(i, c.lower()) for i, c in enumerate(tokens.text) if c.isalnum()]
    letters = "".join(c for _, c in squeezed)
    for piece in timed:
        wanted = "".join(c.lower() for c in piece.text if c.isalnum())
        at = letters.find(wanted, position) if wanted else -1
        if at < 0:
            continue
        position = at + len(wanted)
        first, last = squeezed[at][0], squeezed[position - 1][0] + 1
        inside = [
            i
            for i, (a, b) in enumerate(tokens.spans)
            if is_phoneme(tokens.symbols[i]) and first <= (a + b) / 2 <= last and b > a
        ]
        for number, index in enumerate(inside):
            step = (piece.end - piece.start) / len(inside)
            found[index] = (piece.start + number * step, piece.start + (number + 1) * step)
    return found
