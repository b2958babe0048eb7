"""CUDA's streams, for those who order work on a GPU themselves; only where there is one.

A stream's own methods (`wait_event`, `record_event`, `wait_stream`, `synchronize`) do the rest.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def new_stream(device: torch.device, *, urgent: bool = False) -> Any:
    """A stream of its own; urgent: what waits on it goes before what waits on others."""
    return torch.cuda.Stream(device, priority=-1 if urgent else 0)


def current_stream(device: torch.device) -> Any:
    """The stream that torch's operations go to."""
    return torch.cuda.current_stream(device)


def on_stream(stream: Any) -> AbstractContextManager[Any]:
    """Let torch's operations go to a stream."""
    return torch.cuda.stream(stream)
