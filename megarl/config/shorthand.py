"""Meshes in one word: `t2p2d4` for tensor 2, pipeline 2, data 4."""

from __future__ import annotations

import re

from megarl.errors import ConfigError

_LETTERS = {
    "t": "tensor_model_parallel_size",
    "p": "pipeline_model_parallel_size",
    "d": "data_parallel_size",
    "c": "context_parallel_size",
    "v": "virtual_pipeline_model_parallel_size",
    "e": "expert_model_parallel_size",
    "et": "expert_tensor_parallel_size",
}
_OFF = {"virtual_pipeline_model_parallel_size": None, "data_parallel_size": None}


def parse_mesh(text: str, key: str, origin: str) -> dict[str, int | bool | None]:
    """The fields of MeshConfig that a shorthand sets: all sizes, those not named to their default.

    `+sp` at the end turns sequence parallelism on. ConfigError, naming key and origin, for another
    form.
    """
    match = re.fullmatch(r"((?:et|[tpdcve])\d+)+(\+sp)?", text)
    parts = re.findall(r"(et|[tpdcve])(\d+)", text) if match else []
    letters = [letter for letter, _ in parts]
    if not parts or len(set(letters)) < len(letters):
        raise ConfigError(
            f"{key}: {text!r} ({origin}) is no mesh: write tensor, pipeline and data sizes as "
            "t2p2d4, with c, v, e, et where they are not 1, each at most once; or a mapping"
        )
    sizes: dict[str, int | bool | None] = {name: _OFF.get(name, 1) for name in _LETTERS.values()}
    sizes |= {_LETTERS[letter]: int(size) for letter, size in parts}
    if text.endswith("+sp"):
        sizes["sequence_parallel"] = True
    return sizes
