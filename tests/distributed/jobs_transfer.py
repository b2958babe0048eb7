"""Jobs of tests/transfer: an actor that sends its weights to vLLM servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from jobs_sync import Stage, SyncCase, train_step
from parts import make_actor
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.errors import MegaRLError
from megarl.layout import ReplicaLayout
from megarl.mesh.layout import MeshLayout
from megarl.reshard.executor import SyncReport
from megarl.roles.export import export_hf
from megarl.runtime.environment import set_variables
from megarl.transfer.servers import HttpServer, OfflineServer
from megarl.transfer.trainer import WeightTransfer

PROMPT = tuple(range(2, 50))
TOKENS = 12
Answer = tuple[list[int], list[float]]


@dataclass
class Place:
    """A server of a test."""

    url: str
    tp: int = 1


def build(
    rank: Rank,
    path: str,
    layout: MeshLayout,
    places: Sequence[Place],
    buffer_bytes: int = 1 << 16,
    timeout_s: float = 30.0,
) -> None:
    """Actor and transfer."""
    world = tuple(range(layout.size))
    actor = make_actor(rank, path, layout, ranks=world, optimizer=OptimizerConfig(lr=1e-2))
    servers: list[Any] = [HttpServer(place.url, ReplicaLayout(place.tp)) for place in places]
    rank.kept["stage"] = Stage(SyncCase("", layout, 1), actor, None, None)  # type: ignore[arg-type]
    _make_transfer(rank, servers, buffer_bytes, timeout_s)


def _make_transfer(rank: Rank, servers: list[Any], buffer_bytes: int, timeout_s: float) -> None:
    stage: Stage = rank.kept["stage"]
    rank.kept["transfer"] = WeightTransfer(
        rank.universe,
        stage.actor.engine.shape,
        stage.actor,
        servers,
        wire_dtype=torch.float32,
        buffer_bytes=buffer_bytes,
        timeout_s=timeout_s,
    )


def sync(rank: Rank, version: int, folder: str = "") -> SyncReport:
    """One sync, and an export of the same weights."""
    transfer: WeightTransfer = rank.kept["transfer"]
    report = transfer.sync(version)
    assert transfer.version == version
    if folder:
        stage, path = rank.kept["stage"], rank.kept["path"]
        export_hf(rank.universe, stage.actor, stage.actor.engine.shape, torch.float32, folder, path)
    return report


def keep_path(rank: Rank, path: str) -> None:
    """The folder that exports take config and tokenizer from."""
    rank.kept["path"] = path


def train(rank: Rank) -> None:
    """Change the weights."""
    train_step(rank)


def failing_sync(rank: Rank, version: int) -> tuple[str, int]:
    """What a sync that fails raises, and the version after it."""
    transfer: WeightTransfer = rank.kept["transfer"]
    try:
        transfer.sync(version)
    except MegaRLError as error:
        return f"{type(error).__name__}: {error}", transfer.version
    return "", transfer.version


def connect_with_another_plan(rank: Rank) -> str:
    """Connect while the trainer believes in a layout that the workers do not hear of."""
    from megarl.transfer import session

    transfer: WeightTransfer = rank.kept["transfer"]
    plan = session.TransferSpec.plan

    def other(spec: Any, group: Any) -> Any:
        return plan(replace(spec, layernorm="te"), group)

    with mock.patch.object(session.TransferSpec, "plan", other):
        try:
            transfer.connect()
        except MegaRLError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def close(rank: Rank) -> None:
    """Leave the servers."""
    rank.kept["transfer"].close()


def offline_engine(rank: Rank, path: str) -> None:
    """An LLM in processes of its own, driven by rank 0."""
    servers: list[Any] = []
    if rank.rank == 0:
        rank.kept["llm"] = _llm(path, load_format="dummy", weight_transfer_config="megarl")
        servers = [OfflineServer(rank.kept["llm"])]
    _make_transfer(rank, servers, 1 << 16, 30.0)


def offline_answer(rank: Rank) -> Answer | None:
    """What the LLM of rank 0 says."""
    return _ask(rank.kept["llm"]) if rank.rank == 0 else None


def end_offline_engine(rank: Rank) -> None:
    """End the LLM's processes."""
    if rank.rank == 0:
        rank.kept.pop("llm").llm_engine.engine_core.shutdown()


def reference_answer(rank: Rank, folder: str) -> Answer:
    """What a fresh vLLM says that loads its weights from a folder."""
    llm = _llm(folder)
    answer = _ask(llm)
    llm.llm_engine.engine_core.shutdown()
    return answer


def _llm(path: str, weight_transfer_config: str = "", **options: Any) -> Any:
    set_variables({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"})
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    if weight_transfer_config:
        options["weight_transfer_config"] = WeightTransferConfig(backend=weight_transfer_config)
    return LLM(
        model=path,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        block_size=32,
        kv_cache_memory_bytes=16 << 20,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        **options,
    )


def _ask(llm: Any) -> Answer:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
    output = llm.generate([{"prompt_token_ids": list(PROMPT)}], params, use_tqdm=False)[0]
    best = output.outputs[0]
    rows = zip(best.token_ids, best.logprobs, strict=True)
    return list(best.token_ids), [float(row[token].logprob) for token, row in rows]
