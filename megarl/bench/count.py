"""Counts what a rank sends: messages, and collectives as one each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist

from megarl.mesh.group import RankGroup


class Messages:
    """How many there were."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counted() -> Iterator[Messages]:
    """Within it, this process's sends, broadcasts and gathers are counted; not for timed rounds."""
    found = Messages()

    def counting(original: Any, several: bool = False) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            sends = sum(op.op is not dist.irecv for op in args[0]) if several else 1
            found.count += sends
            return original(*args, **kwargs)

        return call

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(RankGroup, "send", counting(RankGroup.send)))
        for name in ("broadcast", "all_gather"):
            patched = counting(getattr(dist, name))
            patches.enter_context(mock.patch.object(dist, name, patched))
        batch = counting(dist.batch_isend_irecv, several=True)
        patches.enter_context(mock.patch.object(dist, "batch_isend_irecv", batch))
        yield found
