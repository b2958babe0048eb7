"""Fenced blocks, as models put programs and JSON into their answers."""

from __future__ import annotations

import re


def last_block(response: str, *languages: str) -> str:
    """What the last block fenced by ``` holds; without one all of the response.

    languages: names that may stand behind the opening fence, beside none.
    """
    names = "|".join(map(re.escape, languages))
    blocks: list[str] = re.findall(rf"```(?:{names})?[ \t]*\n(.*?)```", response, re.DOTALL)
    return blocks[-1] if blocks else response
