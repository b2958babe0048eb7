"""Plain texts for pretraining, one jsonl row {"text": ...} each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def write_texts(path: str | Path, texts: Sequence[str]) -> None:
    """Write texts as the pretraining stage reads them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    Path(path).write_text("".join(lines))
