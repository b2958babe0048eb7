"""What a run reads: checkpoints against their config.json, tokenizer, data sets, the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megarl.config.plan import RolePlan, RunPlan
from megarl.config.schema import Config
from megarl.data.prompts import configured_prompts
from megarl.data.texts import text_columns
from megarl.errors import ConfigError, DataError
from megarl.layout.rules import hf_tensors
from megarl.rewards.load import configured_reward
from megarl.weights.source import SafetensorsFolder

WHOLE_FILE_BYTES = 64 << 20
"""Data sets up to this size are read whole here; of larger ones the first rows."""
FIRST_ROWS = 20_000


def check_run_folder(config: Config) -> None:
    """ConfigError where the run folder cannot be one."""
    folder = Path(config.run.dir)
    above = [parent for parent in (folder, *folder.parents) if parent.exists()]
    if above and not above[0].is_dir():
        raise ConfigError(f"run.dir {folder}: {above[0]} is a file: give another folder")


def check_folders(config: Config, plan: RunPlan) -> None:
    """DataError for weights that are missing, truncated or not what config.json says."""
    for name, role in plan.roles.items():
        if not getattr(config, name).model.fresh:
            _check_weights(name, role)


def check_data(config: Config, plan: RunPlan, purpose: str) -> None:
    """DataError or ConfigError for data, tokenizer or reward that cannot be used."""
    needed = {"train": "train_path", "pretrain": "train_path", "eval": "eval_path"}[purpose]
    if not getattr(config.data, needed):
        raise ConfigError(f"data.{needed} is empty: give a .jsonl or .parquet file")
    tokenizer = _tokenizer(plan.actor)
    if purpose == "pretrain":
        _check_texts(config)
        return
    try:
        configured_reward(config.reward, config.data.label_column)
    except ConfigError as error:
        raise ConfigError(f"reward.function: {error}") from None
    for key in ("train_path", "eval_path") if purpose == "train" else ("eval_path",):
        _check_prompts(config, tokenizer, key)


def _check_weights(name: str, role: RolePlan) -> None:
    try:
        folder = SafetensorsFolder(role.path)
        expected = hf_tensors(role.shape)
        if name == "critic" and role.shape.scalar_head not in folder.names:
            # A critic that starts from a language model gets a new head.
            expected.pop(role.shape.scalar_head or "", None)
        folder.check(expected)
    except DataError as error:
        raise DataError(
            f"{name}: {error} (or set {name}.model.fresh=true for new random weights)"
        ) from None


def _tokenizer(role: RolePlan) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(role.path)
        size = len(tokenizer)
    except Exception as error:  # Its files are read by many readers, each with errors of its own.
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"actor.model.path {role.path}: no tokenizer can be read: {cause}; copy tokenizer.json "
            "and tokenizer_config.json into it"
        ) from None
    if size > role.shape.vocab_size:
        raise ConfigError(
            f"actor.model.path {role.path}: the tokenizer has {size} tokens, the embedding "
            f"vocab_size {role.shape.vocab_size} rows: they do not belong together, or the "
            "embedding was not resized after tokens were added"
        )
    return tokenizer


def _check_prompts(config: Config, tokenizer: Any, key: str) -> None:
    data, path = config.data, getattr(config.data, key)
    if not path:
        return
    limit = _row_limit(path)
    try:
        prompts = configured_prompts(data, path, tokenizer, limit)
    except DataError as error:
        raise DataError(f"data.{key}: {error}") from None
    if key == "train_path" and limit is None and len(prompts) < data.rollout_batch_size:
        raise ConfigError(
            f"data.rollout_batch_size {data.rollout_batch_size} is more than the {len(prompts)} "
            f"prompts in {path} ({prompts.dropped} longer ones dropped): a step would hold a "
            "prompt twice; lower it, or add prompts"
        )


def _check_texts(config: Config) -> None:
    """Pretraining reads texts, or prompts and what follows them."""
    data, limit = config.data, _row_limit(config.data.train_path)
    try:
        rows = text_columns(data.train_path, data.prompt_column, data.label_column, limit)
        count = sum(1 for _ in rows)
    except DataError as error:
        raise DataError(f"data.train_path: {error}") from None
    if not count:
        raise DataError(f"data.train_path: data set {data.train_path} is empty: it has no rows")


def _row_limit(path: str | Path) -> int | None:
    file = Path(path)
    large = file.is_file() and file.stat().st_size > WHOLE_FILE_BYTES
    return FIRST_ROWS if large else None
