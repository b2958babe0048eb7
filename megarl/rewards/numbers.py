"""Numbers in text, compared exactly."""

from __future__ import annotations

import re
from decimal import Decimal

# A sign counts only where no digit or bracket stands before it: "7-3" holds 7 and 3.
_NUMBER = re.compile(r"(?<![\w.)])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_MINUS_SIGN = "\u2212"


def numbers_in(text: str) -> list[Decimal]:
    """The decimal numbers of a text, in order; thousands may be set off by commas."""
    return [Decimal(found.replace(",", "")) for found in _NUMBER.findall(_ascii(text))]


def only_number(text: str) -> Decimal | None:
    """The number that is all of the text, but for blanks and a full stop; None if it is not."""
    text = _ascii(text).strip().removesuffix(".")
    found = _NUMBER.fullmatch(text)
    return Decimal(text.replace(",", "")) if found else None


def last_number(text: str) -> str | None:
    """The last number of a text, written in the one way that equal numbers have: 72 for 72.0."""
    found = numbers_in(text)
    if not found:
        return None
    written = format(found[-1], "f")
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written


def _ascii(text: str) -> str:
    return text.replace(_MINUS_SIGN, "-")
