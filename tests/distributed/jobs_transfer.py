"""Jobs of tests/transfer: an actor that sends its weights to vLLM servers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from jobs_sync import Stage, SyncCase, train_step
from parts import make_actor
from vllm_server import PROMPT, TOKENS, Answer
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.errors import ConfigError, MegaRLError
from megarl.layout import ReplicaLayout
from megarl.mesh.group import RankGroup
from megarl.mesh.layout import MeshLayout
from megarl.reshard import executor
from megarl.reshard.executor import SyncReport
from megarl.reshard.regions import RegionSet
from megarl.roles.export import export_hf
from megarl.rollout.servers.address import parse_addresses
from megarl.runtime.environment import set_variables
from megarl.transfer.servers import HttpServer, OfflineServer
from megarl.transfer.spec import TransferSpec
from megarl.transfer.trainer import WeightTransfer


@dataclass(frozen=True)
class Place:
    """A server of a test."""

    url: str
    replica: ReplicaLayout = ReplicaLayout()


@dataclass
class Sent:
    """What one rank sent in a sync."""

    report: SyncReport
    counted_bytes: int
    """What the transport took."""


def build(rank: Rank, path: str, layout: MeshLayout) -> None:
    """The actor."""
    world = tuple(range(layout.size))
    actor = make_actor(rank, path, layout, ranks=world, optimizer=OptimizerConfig(lr=1e-2))
    rank.kept["stage"] = Stage(SyncCase("", layout, 1), actor, None, None)  # type: ignore[arg-type]


def make_transfer(
    rank: Rank,
    places: Sequence[Place],
    buffer_bytes: int = 1 << 14,
    timeout_s: float = 30.0,
    in_process: Any = None,
) -> None:
    """From the actor that was built to servers, and to an LLM of this process where one is given.

    The buffers are small, so that a sync takes many rounds.
    """
    actor = rank.kept["stage"].actor
    addresses = parse_addresses([place.url for place in places]) if places else []
    servers: list[Any] = [
        HttpServer(address, place.replica) for address, place in zip(addresses, places, strict=True)
    ]
    rank.kept["transfer"] = WeightTransfer(
        rank.universe,
        actor.engine.shape,
        actor,
        [*servers, *([OfflineServer(in_process)] if in_process else [])],
        wire_dtype=torch.float32,
        buffer_bytes=buffer_bytes,
        timeout_s=timeout_s,
    )


def refused_transfer(rank: Rank, places: Sequence[Place]) -> str:
    """What a transfer to these servers raises before it does anything."""
    try:
        make_transfer(rank, places)
    except ConfigError as error:
        return str(error)
    return ""


def sync(rank: Rank, version: int) -> Sent:
    """One sync."""
    transfer: WeightTransfer = rank.kept["transfer"]
    with counting() as counted:
        report = transfer.sync(version)
    assert transfer.version == version
    return Sent(report, counted[0])


@contextmanager
def counting() -> Iterator[list[int]]:
    """Bytes that the transport took from this rank as weights."""
    counted, send = [0], RankGroup.send

    def counted_send(self: RankGroup, tensor: torch.Tensor, to: int, tag: int = 0) -> Any:
        counted[0] += tensor.nbytes if tag == executor.DATA_TAG else 0
        return send(self, tensor, to, tag)

    with mock.patch.object(RankGroup, "send", counted_send):
        yield counted


def needed_bytes(rank: Rank) -> int:
    """What all workers need, none of which they hold."""
    spec = rank.kept["transfer"]._spec
    return sum(p.box.numel * 4 for each in spec.destinations().values() for p in each)


def train(rank: Rank) -> None:
    """Change the weights."""
    train_step(rank)


def export(rank: Rank, folder: str, template: str) -> None:
    """The actor's weights as a Hugging Face folder."""
    actor = rank.kept["stage"].actor
    export_hf(rank.universe, actor, actor.engine.shape, torch.float32, folder, template)


def failing_sync(rank: Rank, version: int) -> tuple[str, int]:
    """What a sync raises ("" for nothing), and the version after it."""
    transfer: WeightTransfer = rank.kept["transfer"]
    try:
        transfer.sync(version)
    except MegaRLError as error:
        return f"{type(error).__name__}: {error}", transfer.version
    return "", transfer.version


def held_sync(rank: Rank, version: int, halfway: str, go_on: str) -> tuple[str, int]:
    """A sync in which the last rank waits half-way, from one file to the other."""
    start = executor.Resharder._start

    def held(self: executor.Resharder, index: int, verify: bool) -> Any:
        if index == len(self._steps) // 2:
            Path(halfway).touch()
            while not Path(go_on).exists():
                time.sleep(0.01)
        return start(self, index, verify)

    with _on_last_rank(rank, executor.Resharder, "_start", held):
        return failing_sync(rank, version)


def spoilt_sync(rank: Rank, version: int) -> tuple[str, int]:
    """A sync in which the last rank sends other weights than it took its digests of."""
    pack = RegionSet.pack

    def spoiling(
        self: RegionSet, buffer: torch.Tensor, digests: torch.Tensor | None = None
    ) -> None:
        pack(self, buffer, digests)
        buffer[:1] += 1

    with _on_last_rank(rank, RegionSet, "pack", spoiling):
        return failing_sync(rank, version)


def sync_with_another_plan(rank: Rank, version: int) -> tuple[str, int]:
    """A sync whose trainer plans for another mesh than the workers are told of."""
    plan = TransferSpec.plan

    def other(spec: TransferSpec, group: RankGroup) -> Any:
        return plan(replace(spec, actor=MeshLayout(dp=2)), group)

    with mock.patch.object(TransferSpec, "plan", other):
        return failing_sync(rank, version)


def _on_last_rank(rank: Rank, owner: Any, name: str, function: Any) -> Any:
    last = rank.rank == rank.universe.size - 1
    return mock.patch.object(owner, name, function) if last else nullcontext()


def send_by_vllms_interface(rank: Rank, url: str) -> None:
    """One update through vLLM's own trainer factory and client, between pause and resume."""
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    from megarl.transfer.plugin import register
    from megarl.transfer.trainer_engine import MegarlTrainerInitInfo

    register()
    actor = rank.kept["stage"].actor
    info = MegarlTrainerInitInfo(
        rank=rank.rank,
        universe=rank.universe,
        shape=actor.engine.shape,
        actor=actor,
        wire_dtype=torch.float32,
        replica=ReplicaLayout(),
        timeout_s=30.0,
    )
    client = HTTPVLLMWeightSyncClient(url)
    engine = WeightTransferTrainerFactory.trainer_init(info, client=client)
    engine.send_weights()
    engine.shutdown()


def close(rank: Rank) -> None:
    """Leave the servers."""
    rank.kept["transfer"].close()


def make_llm(rank: Rank, path: str, own_processes: bool) -> None:
    """A transfer to an LLM of rank 0, in processes of its own or in rank 0's."""
    if rank.rank > 0:
        make_transfer(rank, ())
        return
    set_variables(
        {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_processes)),
        }
    )
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    rank.kept["llm"] = llm = LLM(
        model=path,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        block_size=32,
        kv_cache_memory_bytes=16 << 20,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        distributed_executor_backend=None if own_processes else "uni",
        weight_transfer_config=WeightTransferConfig(backend="megarl"),
    )
    make_transfer(rank, (), in_process=llm)


def ask_llm(rank: Rank) -> Answer | None:
    """What the LLM of rank 0 says."""
    from vllm import SamplingParams

    if rank.rank > 0:
        return None
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
    prompt = {"prompt_token_ids": list(PROMPT)}
    best = rank.kept["llm"].generate([prompt], params, use_tqdm=False)[0].outputs[0]
    rows = zip(best.token_ids, best.logprobs, strict=True)
    return list(best.token_ids), [float(row[token].logprob) for token, row in rows]


def end_llm(rank: Rank) -> None:
    """End the LLM; vLLM also destroys the default process group where it lived in it."""
    if rank.rank == 0:
        rank.kept.pop("llm").llm_engine.engine_core.shutdown()
