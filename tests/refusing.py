"""`validate` on a small folder of files that are right, with settings that may be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from megarl.config.load import load_config
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan
from megarl.validate import Purpose, validate


def check(
    folder: Path,
    *overrides: str,
    world_size: int = 4,
    purpose: Purpose = "train",
    files: bool = True,
) -> RunPlan:
    base = [
        f"actor.model.path={folder / 'model'}",
        f"data.train_path={folder / 'train.jsonl'}",
        f"run.dir={folder / 'run'}",
        "data.max_prompt_length=64",
        "data.max_response_length=64",
        "data.rollout_batch_size=16",
        "algorithm.global_batch_size=16",
    ]
    config = load_config(None, [*base, *overrides])
    return validate(config, world_size, purpose, files=files)


def refused(words: list[str], folder: Path, *overrides: str, **options: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check(folder, *overrides, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
