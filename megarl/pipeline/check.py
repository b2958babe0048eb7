"""Checks every stage of a pipeline before the first one starts.

What an earlier stage will make cannot be looked at yet. Where it is a model, the one that the
earlier stage starts from has the same sizes and stands in for it, so that meshes are checked too.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from megarl.checkpoint.earlier import check_folder
from megarl.config.keys import flatten
from megarl.config.load import LoadedConfig, load_with_origins
from megarl.config.resources import wanted_world_size
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.pipeline.spec import Pipeline, Stage

WRITTEN = ("run.dir", "data.indexed.cache_dir")
"""Keys of folders that a run makes."""
MODELS = ("actor.model", "critic.model", "reference.model", "reward.model")


def load_stages(pipeline: Pipeline) -> dict[str, LoadedConfig]:
    """The config of every stage of megarl; ConfigError that names the stage."""
    return {
        stage.name: _named(stage, load_with_origins, str(stage.config), stage.override_words())
        for stage in pipeline.stages
        if stage.command is not None
    }


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of the stages of megarl once all are checked."""

    ranks: dict[str, int]
    """Processes of each stage, by its name."""
    left: tuple[str, ...]
    """What could not be checked here, of any stage."""


def check_stages(
    pipeline: Pipeline,
    loaded: Mapping[str, LoadedConfig],
    world_sizes: Mapping[str, int] | None = None,
    *,
    here: bool = True,
    files: bool = True,
) -> Checked:
    """ConfigError, naming the stage, for the first that could not run.

    world_sizes: processes of each stage; None: what each config asks for. here False: the stages
    run on other machines. files False: and nothing that they read is to be looked for on this one.
    """
    bases: dict[str, _Base] = {}
    ranks: dict[str, int] = {}
    left: list[str] = []
    for stage in pipeline.stages:
        if stage.command is None:
            continue
        config = loaded[stage.name].config
        wanted = world_sizes or {}
        size = wanted.get(stage.name) or wanted_world_size(
            config, use_resources=stage.command == "train"
        )
        left += _named(stage, _check, pipeline, stage, config, bases, size, here, files)
        ranks[stage.name] = size
        base = _stand_in(Path(config.actor.model.path), bases)
        if base is not None:
            bases[str(stage.model)] = replace(base, scalar=stage.command == "reward")
    return Checked(ranks, tuple(dict.fromkeys(left)))


@dataclass(frozen=True, slots=True)
class _Base:
    """A model that is there, and has the sizes of one that will be."""

    folder: Path
    scalar: bool = False
    """What will be there has a scalar head instead of an output layer: a reward model."""


def check_run_folders(
    pipeline: Pipeline, loaded: Mapping[str, LoadedConfig], done: Collection[str] = ()
) -> None:
    """ConfigError, naming the stage, for one that could not go on with what is in its folder.

    done: stages that are not run again.
    """
    for stage in pipeline.stages:
        if stage.command is not None and stage.name not in done:
            _named(stage, check_folder, stage.command, loaded[stage.name].config)


def _check(
    pipeline: Pipeline,
    stage: Stage,
    config: Config,
    bases: Mapping[str, _Base],
    world_size: int,
    here: bool,
    files: bool,
) -> list[str]:
    """What could not be checked, beside what earlier stages make."""
    from megarl.validate import MACHINE, validate, validate_elsewhere
    from megarl.validate.choices import check_names, check_numbers

    purpose: Any = stage.command
    left = [] if here else [MACHINE]
    missing = _to_come(pipeline, stage, config)
    if not missing:
        if here:
            validate(config, world_size, purpose, files=files)
            return []
        return validate_elsewhere(config, world_size, purpose, files=files)[1]
    check_names(config)
    check_numbers(config)
    shown = copy.deepcopy(config)
    with tempfile.TemporaryDirectory() as scratch:
        for key in MODELS:
            path = attrgetter(key)(config).path
            if f"{key}.path" in missing:
                base = _stand_in(Path(path), bases)
                if base is None:
                    return left  # nothing is known of the model's sizes
                attrgetter(key)(shown).path = str(_as_made(base, Path(scratch), key))
        validate(shown, world_size, purpose, files=False, machine=here)
    return left


def _to_come(pipeline: Pipeline, stage: Stage, config: Config) -> dict[str, Path]:
    """Key -> path of what the config names, is not there, and lies where earlier stages write."""
    index = pipeline.stages.index(stage)
    roots = [each.folder for each in pipeline.stages[:index]]
    if any(each.command is None for each in pipeline.stages[:index]):
        roots.append(pipeline.folder)
    found = {}
    for key, value in flatten(asdict(config)).items():
        for text in _texts(value):
            path = Path(text)
            inside = any(root == path or root in path.parents for root in roots)
            # An indexed data set goes by its prefix.
            if inside and key not in WRITTEN and not path.exists() and not _bin(path).exists():
                found[key] = path
    return found


def _texts(value: Any) -> Iterator[str]:
    """A value's texts, those in lists included."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _bin(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def _stand_in(path: Path, bases: Mapping[str, _Base]) -> _Base | None:
    """A folder with the sizes that the model in `path` has or will have."""
    if (path / "config.json").is_file():
        return _Base(path)
    return bases.get(str(path))


def _as_made(base: _Base, scratch: Path, key: str) -> Path:
    """Its folder, or one with its config.json as that of a reward model."""
    if not base.scalar:
        return base.folder
    hf = json.loads((base.folder / "config.json").read_text())
    kind = str((hf.get("architectures") or [""])[0]).partition("For")[0]
    folder = scratch / key
    folder.mkdir()
    changed = hf | {"architectures": [f"{kind}ForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


def _named(stage: Stage, work: Any, *arguments: Any) -> Any:
    """Do `work`; an error names the stage."""
    try:
        return work(*arguments)
    except ConfigError as error:
        raise type(error)(f"stage {stage.name}: {error}") from None
