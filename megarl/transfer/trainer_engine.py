"""`WeightTransfer` behind vLLM's own trainer interface, for code that is written against that.

`WeightTransferTrainerFactory.trainer_init(InitInfo(...), client=...)` finds it by its name. Pausing
and resuming is the caller's, as with vLLM's other engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

from megarl.errors import ConfigError, PeerError
from megarl.layout import ModelShape, ReplicaLayout
from megarl.mesh.universe import Universe
from megarl.transfer.plugin import BACKEND
from megarl.transfer.servers import named
from megarl.transfer.trainer import Source, WeightTransfer


@dataclass(kw_only=True)
class MegarlTrainerInitInfo(TrainerInitInfo):
    """What a trainer rank brings along; `rank` is its universe rank."""

    backend: ClassVar[str] = BACKEND

    universe: Universe
    shape: ModelShape
    actor: Source
    wire_dtype: torch.dtype
    replica: ReplicaLayout
    """How the server behind the client splits the model."""
    buffer_bytes: int = 512 << 20
    timeout_s: float = 300.0


class MegarlTrainerEngine(TrainerWeightTransferEngine[MegarlTrainerInitInfo]):
    """One on every trainer rank; `send_weights` is one verified update."""

    init_info_cls = MegarlTrainerInitInfo
    _transfer: WeightTransfer

    @classmethod
    def trainer_init(
        cls, init_info: MegarlTrainerInitInfo, *, client: Any, source: Any = None
    ) -> Self:
        """Join the workers behind the client.

        source: none, since shards are sent from where they lie. Raises what `WeightTransfer` does.
        """
        if source is not None:
            raise ConfigError("megarl sends the actor's shards: trainer_init takes no source")
        engine = cls(client=client, is_sender=init_info.is_sender)
        engine._transfer = WeightTransfer(
            init_info.universe,
            init_info.shape,
            init_info.actor,
            [ClientServer(client, init_info.replica)],
            wire_dtype=init_info.wire_dtype,
            buffer_bytes=init_info.buffer_bytes,
            timeout_s=init_info.timeout_s,
        )
        engine._transfer.connect()
        return engine

    def send_weights(self) -> None:
        """One update of the server, under the next version number. Raises as `sync`."""
        self._transfer.sync(self._transfer.version + 1)

    def shutdown(self) -> None:
        """Leave the workers."""
        self._transfer.close()


class ClientServer:
    """A server behind vLLM's own client, which does not pause it."""

    def __init__(self, client: Any, replica: ReplicaLayout) -> None:
        self.name = str(getattr(client, "base_url", type(client).__name__))
        self.replica, self._client = replica, client

    def check(self, timeout_s: float) -> None:
        """The client has no way to ask."""

    def initialize(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "init_weight_transfer_engine"):
            self._client.init_weight_transfer_engine(dict(init_info))

    def pause(self, timeout_s: float) -> None:
        """The caller has done it."""

    def update(self, update_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "start_weight_update"):
            self._client.start_weight_update()
        with named(self.name, "update_weights"):
            self._client.update_weights(dict(update_info))

    def finish(self, version: str, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "finish_weight_update"):
            self._client.finish_weight_update(version)

    def forget(self, timeout_s: float) -> None:
        """The caller does it, before it resumes."""

    def resume(self, timeout_s: float) -> None:
        """The caller does it."""

    def release(self, timeout_s: float) -> None:
        """See Server."""
        release = getattr(self._client, "shutdown_weight_transfer_engine", None)
        if release is None:
            raise PeerError(f"{self.name}: this client cannot release the workers")
        with named(self.name, "shutdown_weight_transfer_engine"):
            release()
