"""vLLM's side: the weight-transfer engine `megarl`, one in every worker of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from megarl.errors import PlanError, RunError
from megarl.layout import ReplicaLayout, hf_tensors
from megarl.reshard.checks import check_destination
from megarl.rollout.vllm_cpu import map_experts
from megarl.rollout.vllm_record import record_loaders
from megarl.rollout.vllm_weights import LiveWeights
from megarl.runtime.device import on_cuda
from megarl.transfer.rendezvous import open_store
from megarl.transfer.session import Session
from megarl.transfer.spec import TransferSpec


@dataclass
class InitInfo(WeightTransferInitInfo):
    """What `init_weight_transfer_engine` carries: who takes part, and where they meet."""

    spec: dict[str, Any]
    """TransferSpec as JSON."""
    server: int
    """This server's number among spec.servers."""
    host: str
    port: int
    """Of the trainer's store."""
    attempt: int


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What `update_weights` carries."""

    attempt: int
    """The session that the trainer believes in."""


class MegarlTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives this worker's shards from the trainer's, straight into vLLM's parameters."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not on_cuda():
            map_experts()
        self._weights = LiveWeights(self.model)
        self._session: Session | None = None
        self._checked = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Join the trainer's group, in place of an earlier one.

        Raises PlanError where this server splits the model in another way than the trainer was
        told, or makes another plan; PeerError where somebody does not come.
        """
        self.shutdown()
        spec = TransferSpec.from_json(init_info.spec)
        self._check_replica(spec.servers[init_info.server].replica)
        store = open_store(init_info.host, init_info.port, spec.timeout_s, hosts=False)
        rank = spec.first_rank(init_info.server) + self.parallel_config.rank
        self._session, self._checked = Session(spec, store, init_info.attempt, rank), False

    def start_weight_update(self) -> None:
        """Nothing: parameters are opened when the update itself comes."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Take and verify everything, then pack what vLLM computes with.

        Raises PlanError, before the first byte moves, for a model that is not the trainer's;
        VerificationError and PeerError as `Session.move`. After an error the parameters are not to
        be used; the trainer leaves the server paused.
        """
        session = self._session
        if session is None or session.attempt != update_info.attempt:
            raise RunError(
                f"weight transfer: update {update_info.attempt} meets a worker in session "
                f"{session.attempt if session else 'none'}: init_weight_transfer_engine comes first"
            )
        with session.guarded():
            live = self._weights.open()
            if not self._checked:
                shape, slice_ = session.spec.shape, session.spec.slice_of(session.rank)
                recording = record_loaders(self.model, hf_tensors(shape))
                for name, what in check_destination(
                    shape, slice_, live, recording, session.spec.wire_dtype
                ).items():
                    raise PlanError(
                        f"weight transfer: vLLM's loader of {name} {what}, so that its place is "
                        "not known; only rollouts inside the job have such tensors loaded"
                    )
                self._checked = True
        session.move({}, live)
        with session.guarded():
            self._weights.close()

    def finish_weight_update(self) -> None:
        """Nothing: what arrived was verified and packed as part of the update."""

    def shutdown(self) -> None:
        """Leave the trainer's group."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _check_replica(self, told: ReplicaLayout) -> None:
        config = self.parallel_config
        found = ReplicaLayout(
            config.tensor_parallel_size,
            config.pipeline_parallel_size,
            bool(config.enable_expert_parallel),
        )
        if found.sizes != told.sizes or config.data_parallel_size != 1:
            raise PlanError(
                f"weight transfer: this server splits the model as {found.describe()}, data-"
                f"parallel size {config.data_parallel_size}; the trainer was told "
                f"{told.describe()} without data parallelism: give it the server's ReplicaLayout"
            )
