"""What vLLM's pipeline stages lack when every rank runs an engine of its own."""

from __future__ import annotations

from functools import wraps
from typing import Any

from megarl.runtime.device import on_cuda


def prepare_stage(model_runner: Any) -> None:
    """Make a stage's runner able to receive, and to skip what only the last stage computes."""
    from vllm.distributed.parallel_state import get_pp_group

    if get_pp_group().world_size == 1:
        return
    if not on_cuda() and model_runner.intermediate_tensors is None:
        # A GPU makes them in its profiling run, which a CPU skips.
        model_runner.intermediate_tensors = model_runner.model.make_empty_intermediate_tensors(
            batch_size=model_runner.max_num_tokens,
            dtype=model_runner.dtype,
            device=model_runner.device,
        )
    if not get_pp_group().is_last_rank:
        original = model_runner._get_prompt_logprobs_dict

        @wraps(original)
        def nothing(*_: Any) -> dict[str, Any]:
            return {}

        model_runner._get_prompt_logprobs_dict = nothing
