"""Numbers in English words, as songs' words are normalised before they are looked up."""

from __future__ import annotations

import re

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = (
    "_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
_GROUPS = (
    "_", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion", "septillion",
)  # fmt: skip
_LARGEST = 10 ** (3 * len(_GROUPS))
_ORDINAL = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip

_COMMAS = re.compile(r"[0-9][0-9,]+[0-9]")
_POUNDS = re.compile(r"£([0-9,]*[0-9]+)")
_DOLLARS = re.compile(r"\$([0-9.,]*[0-9]+)")
_DECIMAL = re.compile(r"[0-9]+\.[0-9]+")
_ORDINALS = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_NUMBER = re.compile(r"[0-9]+")
_ENDLESS = re.compile(r"[0-9]{1000,}")  # far beyond any name of a number, and Python makes no number of 4301 digits


def number_words(text: str) -> str:
    """``text`` with its amounts, ordinals, years and numbers in words.

    1001 to 2999 are read as years are (``twenty twenty-four``, ``nineteen oh five``), except 2000 to 2009.
    """
    text = _COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    text = _ENDLESS.sub(lambda match: " ".join(match[0]), text)
    text = _POUNDS.sub(r"\1 pounds", text)
    text = _DOLLARS.sub(lambda match: _dollars(match[1]), text)
    text = _DECIMAL.sub(lambda match: match[0].replace(".", " point "), text)
    text = _ORDINALS.sub(lambda match: ordinal(int(match[1])), text)
    return _NUMBER.sub(lambda match: _number(match[0]), text)


def cardinal(number: int, conjunction: str = "") -> str:
    """``1234`` → ``one thousand, two hundred thirty-four``; ``conjunction`` comes after the hundreds."""
    if number >= _LARGEST:
        return " ".join(_SMALL[int(digit)] for digit in str(number))
    if number == 0:
        return _SMALL[0]
    parts: list[str] = []
    last = number % 1000
    for power in range(len(_GROUPS) - 1, -1, -1):
        group = number // 1000**power % 1000
        if group:
            parts.append(_below_thousand(group, conjunction) + (f" {_GROUPS[power]}" if power else ""))
    if len(parts) > 1 and 0 < last < 100:  # one thousand one, one thousand and one
        return ", ".join(parts[:-1]) + f" {conjunction} ".replace("  ", " ") + parts[-1]
    return ", ".join(parts)


def ordinal(number: int) -> str:
    """``21`` → ``twenty-first``."""
    words = cardinal(number, "and")
    head, separator, last = re.fullmatch(r"(.*?)([ -]?)([a-z]+)", words, re.DOTALL).groups()  # type: ignore[union-attr]
    if last in _ORDINAL:
        last = _ORDINAL[last]
    elif last.endswith("y"):
        last = f"{last[:-1]}ieth"
    else:
        last = f"{last}th"
    return head + separator + last


def _below_thousand(number: int, conjunction: str) -> str:
    hundreds, rest = divmod(number, 100)
    parts = [f"{_SMALL[hundreds]} hundred"] if hundreds else []
    if rest:
        if hundreds and conjunction:
            parts.append(conjunction)
        parts.append(_below_hundred(rest))
    return " ".join(parts)


def _below_hundred(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")


def _number(digits: str) -> str:
    number = int(digits)
    if not 1000 < number < 3000:
        return cardinal(number)
    if number == 2000:
        return "two thousand"
    if 2000 < number < 2010:
        return f"two thousand {_SMALL[number % 100]}"
    if number % 100 == 0:
        return f"{_below_hundred(number // 100)} hundred"
    century, year = divmod(number, 100)
    return f"{_below_hundred(century)} {_below_hundred(year) if year >= 10 else f'oh {_SMALL[year]}'}"


def _dollars(amount: str) -> str:
    parts = amount.split(".")
    if len(parts) > 2:
        return f"{amount} dollars"
    dollars, cents = (int(part.replace(",", "") or 0) for part in (*parts, "0")[:2])
    names = (f"{dollars} dollar{'s' * (dollars != 1)}", f"{cents} cent{'s' * (cents != 1)}")
    if dollars and cents:
        return ", ".join(names)
    if dollars or cents:
        return names[0] if dollars else names[1]
    return "zero dollars"
