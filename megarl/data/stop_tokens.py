"""Tokens that end a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megarl.errors import DataError


def stop_tokens(folder: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """The end-of-text tokens of generation_config.json in `folder`, and the tokenizer's own.

    DataError for a generation_config.json that cannot be read.
    """
    found: set[int] = set()
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    file = Path(folder) / "generation_config.json"
    if file.exists():
        try:
            eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            named = [] if eos is None else eos if isinstance(eos, list) else [eos]
            found |= {int(token) for token in named}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise DataError(
                f"{file}: its eos_token_id cannot be read ({error}); copy the file again, or "
                "remove it"
            ) from None
    return tuple(sorted(found))
