"""Which of vLLM's own arguments a config may give, found without importing vllm (10 s)."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

SET_HERE = frozenset({
    "model", "tokenizer", "skip_tokenizer_init", "load_format", "dtype", "tensor_parallel_size",
    "pipeline_parallel_size", "enable_expert_parallel", "distributed_executor_backend",
    "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "enable_sleep_mode",
    "gpu_memory_utilization", "kv_cache_memory_bytes", "logprobs_mode", "disable_log_stats", "seed",
})  # fmt: skip
"""What the engine sets itself, from settings of the run or because the weight sync needs it."""


def known_arguments() -> frozenset[str]:
    """Names of vLLM's engine arguments; empty where this vLLM keeps them elsewhere."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    source = Path(found.origin).parent / "engine" / "arg_utils.py"
    if not source.is_file():
        return frozenset()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
            return frozenset(target.id for target in fields if isinstance(target, ast.Name))
    return frozenset()
