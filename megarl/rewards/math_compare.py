"""Are two mathematical answers equal? A worker's program: no torch is imported here."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from megarl.rewards.workers import serve

_HASHES = re.compile(r"####\s*(.+?)\s*$")


def same_answer(question: dict[str, str]) -> bool:
    """Whether `math_verify` finds the value of `label` in `response`.

    Without a response: whether the label holds a value. What sympy cannot compare is not equal.
    """
    right = _label(question["label"])
    if "response" not in question or not right:
        return bool(right)
    try:
        # The worker's own time limit ends what takes too long.
        found = parse(question["response"], parsing_timeout=None)
        return bool(verify(list(right), found, timeout_seconds=None))
    except Exception:  # sympy and its parser raise all there is at what models write
        return False


@lru_cache(4096)
def _label(label: str) -> tuple[Any, ...]:
    stated = _HASHES.search(label)
    text = stated.group(1) if stated else label.strip()
    given = text if "$" in text or "\\boxed" in text else f"${text}$"
    return tuple(parse(given, parsing_timeout=None) or parse(text, parsing_timeout=None))


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    serve(same_answer)
