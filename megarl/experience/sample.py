"""A finished sample with its reward, and how it lies in memory."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megarl.errors import DataError

ALIGN = 64
_ARRAYS = ("prompt_ids", "response_ids", "logprobs", "learned")
_FACTS = ("sample_id", "group", "reward", "text", "finish_reason", "versions", "facts")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One answer to a prompt."""

    sample_id: str
    """No other sample has it."""
    group: int
    """Samples of one prompt share it."""
    prompt_ids: Tensor
    """int32 [P]."""
    response_ids: Tensor
    """int32 [R]."""
    logprobs: Tensor
    """float32 [R]: natural log-prob of each response token as it was sampled."""
    learned: Tensor
    """bool [R]: the model's own tokens; what an environment or a tool said is not learned."""
    reward: float = 0.0
    text: str = ""
    """The decoded response."""
    finish_reason: str = "stop"
    """"stop" (ended by itself) or "length" (cut off)."""
    versions: tuple[tuple[int, int], ...] = ()
    """(version of the weights, response tokens that they made), in order; () where unknown."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else belongs to it, as JSON."""

    @property
    def oldest_version(self) -> int:
        """Of the weights that made a token; -1 where unknown."""
        return min((version for version, _ in self.versions), default=-1)

    def rewarded(self, reward: float) -> Sample:
        """The same with a reward."""
        return replace(self, reward=float(reward))


def to_bytes(sample: Sample) -> bytes:
    """A line of JSON, then the arrays, each at a multiple of 64 bytes."""
    arrays = {name: getattr(sample, name).contiguous().numpy() for name in _ARRAYS}
    head: dict[str, Any] = {name: getattr(sample, name) for name in _FACTS}
    head["arrays"] = {name: [str(array.dtype), len(array)] for name, array in arrays.items()}
    parts = [_padded(json.dumps(head).encode() + b"\n")]
    parts += [_padded(array.tobytes()) for array in arrays.values()]
    return b"".join(parts)


def from_buffer(data: bytearray | mmap.mmap, where: object = "") -> Sample:
    """A sample whose tensors are views of `data`; DataError for what is none."""
    try:
        end = data.find(b"\n")
        head = json.loads(data[:end])
        offset, arrays = _up(end + 1), dict[str, Any]()
        for name, (dtype, length) in head.pop("arrays").items():
            found = np.frombuffer(data, np.dtype(dtype), length, offset)
            arrays[name], offset = torch.from_numpy(found), _up(offset + found.nbytes)
        head["versions"] = tuple((version, count) for version, count in head["versions"])
        return Sample(**head, **arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} holds no sample: {error}") from None


def map_file(path: Path) -> Sample:
    """A sample whose tensors are the file's pages; changes stay in this process."""
    with path.open("rb") as handle:
        return from_buffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY), path)


def _up(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (_up(len(data)) - len(data))
