"""Rollout engines that cannot be built: one message, with the key and the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megarl.errors import ConfigError, DataError, RunError
from megarl.layout import ReplicaLayout, model_shape_from_hf
from megarl.rollout.factory import build_engine
from megarl.rollout.scripted import read_script
from megarl.rollout.vllm_engine import VllmSettings
from megarl.types import Prompt, RolloutRequest

SHAPE = model_shape_from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 70,
    }
)


def build(name: str, **changes: Any) -> Any:
    """An engine of that name."""
    settings: dict[str, Any] = {
        "model": "none",
        "run_name": "test",
        "replica": ReplicaLayout(),
        "dtype": "float32",
        "max_model_len": 16,
        "kv_cache_bytes": 0,
    }
    return build_engine(name, VllmSettings(**settings | changes), SHAPE, 0, str)


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="'vlm'; known: vllm, transformers, scripted"):
        build("vlm")


def test_transformers_has_one_rank_per_replica() -> None:
    with pytest.raises(ConfigError, match="rollout replicas of 2 ranks"):
        build("transformers", replica=ReplicaLayout(2))


def test_scripted_needs_a_script() -> None:
    with pytest.raises(ConfigError, match="rollout.engine_args.script"):
        build("scripted")


@pytest.mark.parametrize("text", ["{}", "not json", '{"prompt_id": 0, "response_ids": [1]}'])
def test_bad_scripts_are_named_with_their_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"prompt_id": 0, "response_ids": [1], "logprobs": [-1.0]}\n' + text)
    with pytest.raises(DataError, match="script.jsonl, line 2"):
        read_script(path)
    with pytest.raises(DataError, match="missing.jsonl"):
        read_script(tmp_path / "missing.jsonl")


def test_a_prompt_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"prompt_id": 0, "response_ids": [1], "logprobs": [-1.0]}')
    with pytest.raises(RunError, match="no answer to prompt 4"):
        read_script(path)(RolloutRequest(0, 0, Prompt(4, (5,), "", "", ""), 1))
