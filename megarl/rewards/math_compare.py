"""Mathematical answers: are two equal, what does one say? A worker's program, without torch."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify

from megarl.rewards.workers import serve

_HASHES = re.compile(r"####\s*(.+?)\s*$")


def answer(question: dict[str, str]) -> bool | str:
    """With `label` and `response`: whether the response states the label's value.

    A `label` alone: whether it holds a value. A `response` alone: see `stated_value`.
    """
    if "label" not in question:
        return stated_value(question["response"])
    if "response" not in question:
        return bool(_label(question["label"]))
    return same_answer(question["label"], question["response"])


def same_answer(label: str, response: str) -> bool:
    """Whether `math_verify` finds the label's value in a response.

    What sympy cannot compare is not equal.
    """
    right = _label(label)
    try:
        # The worker's own time limit ends what takes too long.
        found = parse(response, parsing_timeout=None)
        return bool(right) and bool(verify(list(right), found, timeout_seconds=None))
    except Exception:  # sympy and its parser raise all there is at what models write
        return False


def stated_value(response: str) -> str:
    """The value that `math_verify` finds in a response, as text that equal values mostly share.

    Simplified, with decimals as fractions, and without a name: 5 for x = 5. What cannot be
    simplified is as it was written; "" where there is nothing.
    """
    try:
        found = parse(response, parsing_timeout=None)
    except Exception:  # as above
        return ""
    values = [value for value in found if not isinstance(value, str)]
    texts = [value.strip() for value in found if isinstance(value, str)]
    try:
        return _simplest(values[0])
    except Exception:  # as above; IndexError where there are none
        return texts[-1] if texts else ""


def _simplest(value: Any) -> str:
    if isinstance(value, sympy.Equality) and value.lhs.is_Symbol:
        value = value.rhs
    value = sympy.simplify(sympy.nsimplify(value.doit(), rational=True))
    return str(value.expand() if isinstance(value, sympy.Expr) else value)


@lru_cache(4096)
def _label(label: str) -> tuple[Any, ...]:
    stated = _HASHES.search(label)
    text = stated.group(1) if stated else label.strip()
    given = text if "$" in text or "\\boxed" in text else f"${text}$"
    return tuple(parse(given, parsing_timeout=None) or parse(text, parsing_timeout=None))


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    serve(answer)
