"""A pipeline file: its stages, with every reference to an earlier stage resolved."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megarl.config.keys import flatten
from megarl.config.layers import override_layers
from megarl.errors import ConfigError

TOP_KEYS = ("name", "dir", "seed", "stages")
STAGE_KEYS = ("name", "run", "command", "config", "overrides", "metric", "slurm")
SLURM_KEYS = (
    "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_node", "time", "partition",
)  # fmt: skip
RESERVED = (*TOP_KEYS, "slurm")
"""Names that a stage cannot have."""
PRODUCTS = ("dir", "model")
"""What may be said of a stage: `${NAME.dir}`, and `${NAME.model}` (its folder `model`)."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\$\{([^${}]+)\}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: a run of megarl with its config, or any command."""

    name: str
    folder: Path
    """Its run folder."""
    command: str | None
    """Of megarl, such as `train`; None where `run` is given."""
    config: Path | None
    overrides: Mapping[str, Any]
    """Dotted key -> value, the pipeline's own (run.dir, run.seed) included."""
    run: tuple[str, ...] = ()
    """Words of another command; empty where `command` is given."""
    metric: str | None = None
    """What the report shows of metrics.jsonl; None: the command's usual one."""
    uses: tuple[str, ...] = ()
    """Earlier stages that it refers to."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """What a batch job of this stage has for itself; read by `megarl submit`."""

    @property
    def model(self) -> Path:
        """Where it leaves its model."""
        return self.folder / "model"

    def override_words(self) -> list[str]:
        """The overrides as `key=value`, for the command line of megarl."""
        return [f"{key}={_as_yaml(value)}" for key, value in self.overrides.items()]

    def words(self) -> list[str]:
        """What follows `megarl` on the command line, or the whole of another command."""
        if self.command is None:
            return list(self.run)
        return [self.command, str(self.config), *self.override_words()]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """All stages, in the order in which they run."""

    name: str
    file: Path
    folder: Path
    seed: int
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def load_pipeline(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    commands: Sequence[str],
) -> Pipeline:
    """Read a pipeline file; ConfigError, with key, value and cure, for what cannot be run.

    overrides: `seed=1`, or `STAGE.a.b=c` for a setting of one stage. folder: instead of `dir`.
    commands: what megarl can run. No config is read here.
    """
    file = Path(file)
    raw = _read(file)
    _check_keys(file, raw, TOP_KEYS, "")
    stages = raw.get("stages")
    if not isinstance(stages, list) or not stages:
        raise ConfigError(f"{file}: stages is {stages!r}: list at least one stage")
    for index, stage in enumerate(stages):
        _check_stage(file, index, stage, commands)
    names = [stage["name"] for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: two stages are named {name!r}: name one of them otherwise")
    _apply(file, raw, overrides)
    if folder is not None:
        raw["dir"] = str(folder)
    uses = {stage["name"]: _uses(file, stage, names[:i]) for i, stage in enumerate(stages)}
    resolved = _resolve(file, raw)
    seed, top = resolved["seed"], Path(resolved["dir"])
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"{file}: seed is {seed!r}: give a whole number")
    made = tuple(
        _stage(file, stage, resolved[stage["name"]], seed, uses[stage["name"]])
        for stage in resolved["stages"]
    )
    return Pipeline(str(resolved["name"]), file, top, seed, made)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"there is no pipeline file {file}, seen from {Path.cwd()}")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file} is a list: a pipeline is a mapping with the key stages")
    return {"name": file.stem, "dir": f"runs/{file.stem}", "seed": 0, **loaded}


def _check_keys(file: Path, values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"{file}: {where}{key} is no key{hint}; there are {', '.join(known)}")


def _check_stage(file: Path, index: int, stage: Any, commands: Sequence[str]) -> None:
    where = f"stages[{index}]"
    if not isinstance(stage, dict):
        raise ConfigError(f"{file}: {where} is {stage!r}: a stage is a mapping with a name")
    _check_keys(file, stage, STAGE_KEYS, f"{where}.")
    name = stage.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
        raise ConfigError(
            f"{file}: {where}.name is {name!r}: a name has letters, digits, _ and -, begins with a "
            f"letter, and is none of {', '.join(RESERVED)}"
        )
    where = f"stage {name}:"
    if ("run" in stage) == ("command" in stage):
        raise ConfigError(
            f"{file}: {where} give either command (of megarl: {', '.join(commands)}) or run (any "
            "other command)"
        )
    if "command" in stage and stage["command"] not in commands:
        raise ConfigError(
            f"{file}: {where} command is {stage['command']!r}: one of {', '.join(commands)}"
        )
    if "run" in stage and (not isinstance(stage["run"], str) or not stage["run"].strip()):
        raise ConfigError(f"{file}: {where} run is {stage['run']!r}: give a command line")
    if "command" in stage and not isinstance(stage.get("config"), str):
        raise ConfigError(
            f"{file}: {where} config is {stage.get('config')!r}: give the path of a YAML file, "
            "relative to the pipeline file"
        )
    for key in ("config", "overrides"):
        if "run" in stage and key in stage:
            raise ConfigError(f"{file}: {where} {key} belongs to command, and run is given")
    for key in ("overrides", "slurm"):
        if not isinstance(stage.get(key) or {}, dict):
            raise ConfigError(f"{file}: {where} {key} is {stage[key]!r}: give a mapping of keys")
    _check_keys(file, stage.get("slurm") or {}, SLURM_KEYS, f"stage {name}: slurm.")


def _apply(file: Path, raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Overrides of the command line into the raw values."""
    stages = {stage["name"]: stage for stage in raw["stages"]}
    for layer in override_layers(overrides):
        ((key, value),) = flatten(layer.values).items()
        first, _, rest = key.partition(".")
        if not rest and first in TOP_KEYS and first != "stages":
            raw[first] = value
        elif rest and "command" in stages.get(first, {}):
            kept = flatten(stages[first].get("overrides") or {})
            stages[first]["overrides"] = kept | {rest: value}
        else:
            known = [f"{name}.KEY" for name, stage in stages.items() if "command" in stage]
            raise ConfigError(
                f"override {key}={value!r}: {file} has no {key}; there are name, dir, seed, "
                f"{', '.join(known)}, such as {(known or ['STAGE.KEY'])[0][:-3]}run.steps=10"
            )


def _uses(file: Path, stage: Mapping[str, Any], earlier: Sequence[str]) -> tuple[str, ...]:
    """Earlier stages that a stage refers to; ConfigError for a reference to anything else."""
    found: list[str] = []
    for text in _texts(stage):
        for reference in _REFERENCE.findall(text):
            head, _, tail = reference.strip().partition(".")
            if ":" in reference or reference in ("name", "dir", "seed"):
                continue
            own = head == stage["name"]
            if (head not in earlier and not own) or tail not in PRODUCTS:
                raise ConfigError(
                    f"{file}: stage {stage['name']}: ${{{reference}}} refers to nothing that is "
                    "there by then: write ${dir}, ${seed}, ${name}, or ${STAGE.dir} or "
                    f"${{STAGE.model}} of an earlier stage ({', '.join(earlier) or 'none'})"
                )
            found += [] if own else [head]
    return tuple(dict.fromkeys(found))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _resolve(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values with every ${...} replaced; under a stage's name, its folder."""
    folders = {}
    for stage in raw["stages"]:
        own = flatten(stage.get("overrides") or {}).get("run.dir", f"${{dir}}/{stage['name']}")
        folders[stage["name"]] = {"dir": own, "model": f"${{{stage['name']}.dir}}/model"}
    try:
        resolved = OmegaConf.to_container(OmegaConf.create({**raw, **folders}), resolve=True)
    except OmegaConfBaseException as error:
        cause = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{file}: {error.full_key or ''}: {cause}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _stage(
    file: Path, stage: Mapping[str, Any], made: Mapping[str, str], seed: int, uses: tuple[str, ...]
) -> Stage:
    common = {
        "name": stage["name"],
        "folder": Path(made["dir"]),
        "metric": stage.get("metric"),
        "uses": uses,
        "slurm": stage.get("slurm") or {},
    }
    if "run" in stage:
        try:
            words = tuple(shlex.split(stage["run"]))
        except ValueError as error:
            raise ConfigError(f"{file}: stage {stage['name']}: run: {error}") from None
        return Stage(**common, command=None, config=None, overrides={}, run=words)
    overrides = {"run.dir": made["dir"], "run.seed": seed} | flatten(stage.get("overrides") or {})
    config = file.parent / stage["config"]
    if not config.is_file():
        raise ConfigError(
            f"{file}: stage {stage['name']}: config is {stage['config']!r}, and there is no "
            f"{config}, seen from {Path.cwd()}: give a path relative to the pipeline file"
        )
    return Stage(**common, command=stage["command"], config=config, overrides=overrides)


def _as_yaml(value: Any) -> str:
    """The value on one line, as an override wants it."""
    if isinstance(value, str) and OmegaConf.from_dotlist([f"x={value}"]).x != value:
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...").strip()
