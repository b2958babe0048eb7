"""What a run reads: checkpoints against their config.json, tokenizer, data sets, the reward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarl.config.schema import Config
from megarl.data.examples import configured_examples
from megarl.data.preferences import configured_pairs
from megarl.data.prompts import configured_prompts
from megarl.data.stop_tokens import stop_tokens
from megarl.environments.load import load_environment
from megarl.errors import ConfigError, DataError
from megarl.layout.rules import ModelShape, hf_tensors
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.rewards.judging import WeightedReward
from megarl.rewards.load import configured_rewards
from megarl.types import Prompt
from megarl.validate.evaluation import check_best_source
from megarl.validate.indexed import check_indexed
from megarl.weights.source import SafetensorsFolder

WHOLE_FILE_BYTES = 64 << 20
"""Data sets up to this size are read whole here; of larger ones the first rows."""
FIRST_ROWS = 20_000
LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
READERS = {"sft": configured_examples, "reward": configured_pairs}
"""How the stages that learn from examples read a file."""
PADDING_ROWS = 128
"""Rows by which an embedding is commonly padded beyond its tokenizer."""


def check_run_folder(config: Config) -> None:
    """ConfigError where the run folder cannot be one."""
    folder = Path(config.run.dir)
    above = [parent for parent in (folder, *folder.parents) if parent.exists()]
    if above and not above[0].is_dir():
        raise ConfigError(f"run.dir {folder}: {above[0]} is a file: give another folder")
    if above and not os.access(above[0], os.W_OK | os.X_OK):
        raise ConfigError(f"run.dir {folder}: {above[0]} cannot be written: give another folder")


def check_folders(config: Config, plan: RunPlan, purpose: str) -> None:
    """DataError for weights that are missing, truncated or not what config.json says."""
    for name, role in plan.roles.items():
        if not getattr(config, name).model.fresh:
            new_head = name == "critic" or purpose == "reward"
            _check_weights(name, role, new_head=new_head)


def check_data(config: Config, plan: RunPlan, purpose: str) -> None:
    """DataError or ConfigError for data, tokenizer or reward that cannot be used."""
    if purpose == "pretrain":
        check_indexed(config, plan, _tokenizer(plan.actor))
        return
    needed = "eval_path" if purpose == "eval" else "train_path"
    if not getattr(config.data, needed):
        raise ConfigError(f"data.{needed} is empty: give a .jsonl or .parquet file")
    tokenizer = _tokenizer(plan.actor)
    if purpose in READERS:
        for key in ("train_path", "eval_path"):
            _check_examples(config, tokenizer, key, READERS[purpose])
        return
    try:
        stop_tokens(plan.actor.path, tokenizer)
    except DataError as error:
        raise DataError(f"actor.model.path: {error}") from None
    episodes = load_environment(config.environment) is not None
    rewards = configured_rewards(config.reward, config.data.label_column, episodes=episodes)
    if purpose == "eval":
        _check_prompts(config, tokenizer, "eval_path", rewards)
        return
    _check_prompts(config, tokenizer, "train_path", rewards)
    path, size = config.data.eval_path, config.data.eval_size
    if path:
        heldout = _check_prompts(config, tokenizer, "eval_path", rewards)
        if _row_limit(path) is None or len(heldout) >= size:
            check_best_source(config, heldout[:size])


def _check_weights(name: str, role: RolePlan, *, new_head: bool) -> None:
    """new_head: the role gets a scalar head where the folder is a language model's."""
    try:
        folder = SafetensorsFolder(role.path)
        expected = hf_tensors(role.shape)
        if new_head and role.shape.scalar_head not in folder.names:
            expected.pop(role.shape.scalar_head or "", None)
        folder.check(expected, not_read(folder, role.shape))
    except DataError as error:
        raise DataError(
            f"{name}: {error} (or set {name}.model.fresh=true for new random weights)"
        ) from None


def not_read(folder: SafetensorsFolder, shape: ModelShape) -> frozenset[str]:
    """Tensors that may be there for nothing: an output layer that is the embedding or unused."""
    if LM_HEAD not in folder.names:
        return frozenset()
    if shape.scalar_head is not None or (shape.tied and folder.equal(LM_HEAD, EMBEDDING)):
        return frozenset({LM_HEAD})
    return frozenset()


def _tokenizer(role: RolePlan) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(role.path)
        size = max(tokenizer.get_vocab().values(), default=-1) + 1
    except Exception as error:  # Its files are read by many readers, each with errors of its own.
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"actor.model.path {role.path}: no tokenizer can be read: {cause}; copy tokenizer.json "
            "and tokenizer_config.json into it"
        ) from None
    rows = role.shape.vocab_size
    if size > rows:
        raise ConfigError(
            f"actor.model.path {role.path}: the tokenizer has {size} tokens, the embedding "
            f"vocab_size {rows} rows: they do not belong together, or the embedding was not "
            "resized after tokens were added"
        )
    if 2 * size < rows or (10 * size < 9 * rows and rows - size > PADDING_ROWS):
        raise ConfigError(
            f"actor.model.path {role.path}: the tokenizer has {size} tokens, the embedding "
            f"vocab_size {rows} rows: far more than padding explains, so the tokenizer is another "
            "model's; copy the model's own tokenizer.json and tokenizer_config.json into it"
        )
    return tokenizer


def _check_prompts(
    config: Config, tokenizer: Any, key: str, rewards: Sequence[WeightedReward]
) -> Sequence[Prompt]:
    """The prompts of a file, the first ones where it is large."""
    data, path = config.data, getattr(config.data, key)
    limit = _row_limit(path)
    try:
        prompts = configured_prompts(data, path, tokenizer, limit)
        for reward in rewards:
            can_score = getattr(reward.function, "check_prompts", None)
            if can_score is not None:
                can_score(prompts)
    except DataError as error:
        raise DataError(f"data.{key}: {error}") from None
    if key == "train_path" and limit is None and len(prompts) < data.rollout_batch_size:
        raise ConfigError(
            f"data.rollout_batch_size {data.rollout_batch_size} is more than the {len(prompts)} "
            f"prompts in {path} ({prompts.dropped} longer ones dropped): a step would hold a "
            "prompt twice; lower it, or add prompts"
        )
    return prompts


def _check_examples(config: Config, tokenizer: Any, key: str, read: Any) -> None:
    path, batch = getattr(config.data, key), config.algorithm.global_batch_size
    if not path:
        return
    limit = _row_limit(path)
    try:
        examples = read(config.data, path, tokenizer, limit)
    except DataError as error:
        raise DataError(f"data.{key}: {error}") from None
    if key == "train_path" and limit is None and len(examples) < batch:
        raise ConfigError(
            f"algorithm.global_batch_size {batch} is more than the {len(examples)} examples in "
            f"{path} ({examples.dropped} longer ones dropped): a step would hold one twice; lower "
            "it, or add examples"
        )


def _row_limit(path: str | Path) -> int | None:
    file = Path(path)
    large = file.is_file() and file.stat().st_size > WHOLE_FILE_BYTES
    return FIRST_ROWS if large else None
