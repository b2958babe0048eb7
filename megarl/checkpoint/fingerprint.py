"""Tells whether what a run reads is what it was: files of data, models' configs, tokenizers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

WHOLE_BYTES = 1 << 30
"""Up to this size all of a file is read; of a larger one this much, in equal parts."""
_PARTS = 64
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_TELL_NOTHING = ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache")


def fingerprint(path: str | Path) -> str:
    """Size and digest of a file; of a large one, of 64 parts that are spread over it."""
    path = Path(path)
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        else:
            part = WHOLE_BYTES // _PARTS
            for index in range(_PARTS):
                file.seek((size - part) * index // (_PARTS - 1))
                digest.update(file.read(part))
    return f"{size} bytes, {digest.hexdigest()}"


def model_facts(folder: str | Path) -> dict[str, str]:
    """What decides a model's numbers beside its weights: keys of config.json, and the tokenizer."""
    folder, facts = Path(folder), {}
    if (folder / CONFIG).is_file():
        config = json.loads((folder / CONFIG).read_text())
        facts = {
            key: json.dumps(value) for key, value in config.items() if key not in _TELL_NOTHING
        }
    if (folder / TOKENIZER).is_file():
        facts[TOKENIZER] = fingerprint(folder / TOKENIZER)
    return facts
