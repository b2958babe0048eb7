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


SET_FOR_SERVERS = SET_HERE | {
    "host", "port", "uds", "api_key", "generation_config", "enable_scale_out", "middleware",
    "weight_transfer_config", "enable_log_requests", "disable_uvicorn_access_log",
}  # fmt: skip
"""What servers that the run starts are told by it."""


def known_arguments(*, server: bool = False) -> frozenset[str]:
    """Names of vLLM's engine arguments, or of its server's; empty where it keeps them elsewhere."""
    engine = _fields("engine/arg_utils.py", "EngineArgs")
    if not server or not engine:
        return engine
    source = "entrypoints/launchers/cli_args.py"
    shared, own = (_fields(source, name) for name in ("BaseFrontendArgs", "FrontendArgs"))
    return engine | shared | own if shared and own else frozenset()


def _fields(source: str, owner: str) -> frozenset[str]:
    """Annotated fields of a class in one of vLLM's files."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    path = Path(found.origin).parent / source
    if not path.is_file():
        return frozenset()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
            return frozenset(target.id for target in fields if isinstance(target, ast.Name))
    return frozenset()
