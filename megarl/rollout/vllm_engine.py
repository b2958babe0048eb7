"""vLLM in the trainer's own processes, by its external launcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.errors import RunError, VerificationError
from megarl.layout import Recording, ReplicaLayout
from megarl.rollout.engine import NOT_COMMITTED
from megarl.rollout.vllm_arguments import SET_HERE
from megarl.rollout.vllm_cpu import keep_linear_weights, map_experts
from megarl.rollout.vllm_groups import grouped_as
from megarl.rollout.vllm_pipeline import prepare_stage
from megarl.rollout.vllm_record import record_loaders
from megarl.rollout.vllm_sleep import SleepMode
from megarl.rollout.vllm_weights import LiveWeights
from megarl.runtime.device import on_cuda
from megarl.runtime.environment import pool_rank_and_local_rank, set_variables
from megarl.types import Rollout, RolloutRequest, SamplingSpec

_engines_built = count()


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What a replica is built with; names are vLLM's."""

    model: str
    """Hugging Face folder: its config decides the architecture; weights come by sync."""
    run_name: str
    """The same on all ranks of this start: names shared memory, so that it can be swept."""
    replica: ReplicaLayout
    dtype: str
    max_model_len: int
    """Tokens, prompt and response together."""
    kv_cache_bytes: int
    """Key/value cache of this rank, on CPU."""
    gpu_memory_utilization: float = 0.5
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    enforce_eager: bool = True
    enable_sleep_mode: bool = False
    seed: int = 0
    engine_args: Mapping[str, Any] = field(default_factory=dict)


class VllmEngine:
    """One rank of one vLLM replica; see `RolloutEngine` for the contract."""

    def __init__(self, settings: VllmSettings, decode: Any) -> None:
        _prepare_process(settings.run_name)
        from vllm import LLM

        own: dict[str, Any] = dict(
            model=settings.model,
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype=settings.dtype,
            tensor_parallel_size=settings.replica.tp,
            pipeline_parallel_size=settings.replica.pp,
            enable_expert_parallel=settings.replica.expert_parallel,
            distributed_executor_backend="external_launcher",
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=max(settings.max_num_batched_tokens, settings.max_model_len),
            enforce_eager=settings.enforce_eager,
            enable_sleep_mode=settings.enable_sleep_mode,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            seed=settings.seed,
        )
        own |= {} if on_cuda() else {"kv_cache_memory_bytes": settings.kv_cache_bytes}
        assert own.keys() <= SET_HERE, "validation refuses what is named there"
        torch_rng = torch.get_rng_state()
        with grouped_as(settings.replica, dist.get_world_size()):
            self._llm = LLM(**own, **settings.engine_args)
        torch.set_rng_state(torch_rng)  # vLLM seeds the global generator while it starts
        self._engine = self._llm.llm_engine
        self._sleep = SleepMode(self._llm, settings.enable_sleep_mode)
        runner = self._engine.model_executor.driver_worker.worker.model_runner
        prepare_stage(runner)
        self._model = runner.model
        self._weights = LiveWeights(self._model)
        self._decode = decode
        self.weight_version = -1
        self._writing = self._dirty = False
        self._inbox: list[tuple[str, Any]] = []
        self._open_inbox = False
        self._running: dict[str, RolloutRequest] = {}
        self._finished: list[Rollout] = []
        self._groups = _replica_groups()
        self._is_lead = all(group.rank_in_group == 0 for group in self._groups)

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """See RolloutEngine."""
        if self._writing or self._dirty or self._sleep.asleep or self.weight_version < 0:
            raise RunError(NOT_COMMITTED)
        self._open_inbox = True
        if self._is_lead:
            self._inbox.append(("submit", (tuple(requests), sampling, more)))

    def abort(self, rows: Sequence[int] | None = None) -> None:
        """See RolloutEngine."""
        if self._is_lead:
            self._inbox.append(("abort", None if rows is None else tuple(rows)))

    def step(self) -> bool:
        """See RolloutEngine."""
        if self._open_inbox:
            self._read_inbox()
        if not self._engine.has_unfinished_requests():
            self._open_inbox = False
            return False
        for output in self._engine.step():
            if output.finished:
                self._finish(output)
        return True

    def poll(self) -> list[Rollout]:
        """See RolloutEngine."""
        done, self._finished = self._finished, []
        return sorted(done, key=lambda rollout: rollout.request.row)

    def begin_load(self) -> Mapping[str, Tensor]:
        """See RolloutEngine."""
        self._check_idle()
        self._sleep.wake("weights")
        self._writing = True
        return self._weights.open()

    def alias(self, views: Mapping[str, Tensor]) -> frozenset[str]:
        """See RolloutEngine; experts that vLLM packs on a CPU cannot be taken."""
        return self._weights.alias(views)

    def mark_dirty(self) -> None:
        """See RolloutEngine."""
        self._check_idle()
        self._dirty = True

    def record_loaders(self, tensors: Mapping[str, tuple[int, ...]]) -> Recording:
        """See RolloutEngine."""
        return record_loaders(self._model, tensors)

    def load_full(self, name: str, tensor: Tensor) -> None:
        """See RolloutEngine."""
        self._model.load_weights([(name, tensor)])

    def sleep(self) -> None:
        """See RolloutEngine."""
        self._check_idle()
        self._sleep.begin()

    def commit(self, version: int) -> None:
        """See RolloutEngine; raises VerificationError where something of old weights is left."""
        self._weights.close()
        self._sleep.wake("kv_cache")
        self.reset_prefix_cache()
        self._check_prefix_cache()
        self._writing = self._dirty = False
        self.weight_version = version

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of earlier weights."""
        if not self._llm.reset_prefix_cache():
            raise RunError("rollout: vLLM did not reset its prefix cache; requests are in flight")

    def _check_idle(self) -> None:
        if self._engine.has_unfinished_requests():
            raise RunError(f"rollout: weights cannot change under {len(self._running)} requests")

    def _check_prefix_cache(self) -> None:
        """No block of keys and values of earlier weights may be found again."""
        manager = self._engine.engine_core.engine_core.scheduler.kv_cache_manager
        cached = len(manager.block_pool.cached_block_hash_to_block)
        if cached:
            raise VerificationError(
                f"weight sync: vLLM's prefix cache still holds {cached} blocks of earlier weights"
            )

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """See RolloutEngine."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        prompt = {"prompt_token_ids": list(token_ids)}
        output = self._llm.generate([prompt], params, use_tqdm=False)[0]
        pipeline, values = self._groups[0], []
        if pipeline.is_last_rank:
            rows = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
            values = [float(row[token].logprob) for token, row in rows]
        box = [values]
        if pipeline.world_size > 1:
            last = pipeline.ranks[-1]
            dist.broadcast_object_list(box, src=last, group=pipeline.cpu_group)
        return box

    def look(self) -> None:
        """See RolloutEngine."""

    def wake(self) -> None:
        """See RolloutEngine."""

    def take_metrics(self) -> dict[str, float]:
        """See RolloutEngine."""
        return {}

    def close(self) -> None:
        """See RolloutEngine; vLLM also destroys the default process group."""
        self._engine.engine_core.shutdown()

    def _read_inbox(self) -> None:
        """The lead's mail of this step, on every rank of the replica."""
        box = [self._inbox if self._is_lead else None]
        for group in self._groups:
            if group.world_size > 1:
                dist.broadcast_object_list(box, src=group.ranks[0], group=group.cpu_group)
        mail, self._inbox = box[0] or [], []
        for kind, content in mail:
            if kind == "abort":
                self._abort(content)
            else:
                requests, sampling, more = content
                self._admit(requests, sampling)
                self._open_inbox = more

    def _admit(self, requests: Sequence[RolloutRequest], sampling: SamplingSpec) -> None:
        from vllm.exceptions import VLLMClientError

        for request in requests:
            name = str(request.row)
            try:
                self._engine.add_request(
                    name,
                    {"prompt_token_ids": list(request.prompt.token_ids)},
                    _sampling_params(sampling, request.seed),
                )
            except (ValueError, VLLMClientError) as error:
                raise RunError(
                    f"rollout: vLLM refuses sample {request.row} (prompt "
                    f"{request.prompt.prompt_id}, {len(request.prompt.token_ids)} tokens): {error}"
                ) from error
            self._running[name] = request

    def _abort(self, rows: tuple[int, ...] | None) -> None:
        names = list(self._running) if rows is None else [str(row) for row in rows]
        self._engine.abort_request([name for name in names if name in self._running])
        for name in names:
            self._running.pop(name, None)

    def _finish(self, output: Any) -> None:
        request = self._running.pop(output.request_id)
        best = output.outputs[0]
        tokens = tuple(best.token_ids)
        rows = zip(tokens, best.logprobs, strict=True)
        self._finished.append(
            Rollout(
                request=request,
                response_ids=tokens,
                logprobs=tuple(float(row[token].logprob) for token, row in rows),
                text=self._decode(tokens),
                finish_reason="stop" if best.finish_reason == "stop" else "length",
                weight_version=self.weight_version,
            )
        )


def _sampling_params(sampling: SamplingSpec, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_response_length,
        stop_token_ids=list(sampling.stop_token_ids),
        seed=seed if sampling.temperature > 0 else None,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _replica_groups() -> tuple[Any, Any]:
    """This rank's pipeline and tensor groups: from the lead to all stages, then inside each."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return get_pp_group(), get_tp_group()


def _prepare_process(run_name: str) -> None:
    """Settings vLLM reads from the environment, and its two CPU habits we need otherwise."""
    set_variables({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    set_variables(defaults, keep_given=True)
    if on_cuda():
        return
    on_cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    set_variables(on_cpu, keep_given=True)
    keep_linear_weights()
    map_experts()
    _name_shared_memory(run_name)


def _name_shared_memory(run_name: str) -> None:
    """vLLM names its shared memory after the init method, the same for all jobs: make it ours."""
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    name = f"megarl-{run_name}-{next(_engines_built)}"
    rank, local_rank = pool_rank_and_local_rank()

    def distributed_args(self: Any) -> tuple[str, int, int]:
        return f"env://:{name}", rank, local_rank

    ExecutorWithExternalLauncher._distributed_args = distributed_args
