"""What is known of each stage: <dir>/stages/NAME.json, written when it starts and when it is done.

<dir>/stages.json names the stages in their order. A record holds the stage's resolved settings and
their hash, and the hashes of the stages that it used. A stage that is asked for with other settings
is refused, with the difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megarl.config.keys import flatten
from megarl.config.load import LoadedConfig
from megarl.config.resume import FREE
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.pipeline.spec import Pipeline, Stage

STAGES, INDEX = "stages", "stages.json"
State = Literal["submitted", "started", "done"]
DECIDE = ("run.steps", "run.export")
"""Keys that a run may change when it goes on, and a stage of a pipeline may not."""
_DEFAULTS = flatten(dataclasses.asdict(Config()))
_SHOWN = 4
"""Differences in a message."""


@dataclass(slots=True)
class Record:
    """One stage's record."""

    stage: str
    command: str
    """Of megarl, or `run`."""
    settings: dict[str, Any]
    """Dotted key -> value of all that decides the result."""
    inputs: dict[str, str]
    """Stages that it used -> their hashes."""
    hash: str
    folder: str
    """Its run folder."""
    metric: str | None
    """What the report shows; None: the command's usual one."""
    state: State = "submitted"
    """submitted: not begun yet, so that its settings may still change."""
    seconds: float = 0.0
    """Over all attempts."""


def wanted_records(pipeline: Pipeline, loaded: Mapping[str, LoadedConfig]) -> dict[str, Record]:
    """The record that each stage would have now, by name."""
    records: dict[str, Record] = {}
    for stage in pipeline.stages:
        settings = _settings(stage, loaded.get(stage.name))
        inputs = {name: records[name].hash for name in stage.uses}
        command = stage.command or "run"
        # What is the default counts for nothing: a setting that a later version knows of does not
        # make another stage of this one.
        given = {key: value for key, value in settings.items() if value != _DEFAULTS.get(key)}
        text = json.dumps([command, given, inputs], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        records[stage.name] = Record(
            stage.name, command, settings, inputs, digest, str(stage.folder), stage.metric
        )
    return records


def _settings(stage: Stage, loaded: LoadedConfig | None) -> dict[str, Any]:
    if loaded is None:
        return {"run": list(stage.run)}
    flat = flatten(dataclasses.asdict(loaded.config))
    kept = {key: value for key, value in flat.items() if not _is_free(key)}
    return {"run.dir": flat["run.dir"], **kept}


def done_of(found: Mapping[str, Record]) -> set[str]:
    """Stages that are done, by their records."""
    return {name for name, record in found.items() if record.state == "done"}


def _is_free(key: str) -> bool:
    """Whether it says only where, how fast and under which layout a stage runs."""
    return key not in DECIDE and any(key == free or key.startswith(free + ".") for free in FREE)


class Records:
    """The records in a pipeline's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._index = folder / STAGES, folder / INDEX

    def path(self, name: str) -> Path:
        """A stage's record."""
        return self._folder / f"{name}.json"

    def read(self, name: str) -> Record | None:
        """What is recorded of a stage; ConfigError for a file that is no record."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            return Record(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is no record of a stage ({error}): remove it, and the stage is done again"
            ) from None

    def write(self, record: Record) -> None:
        """Keep it; nothing half-written stays. ConfigError where the folder cannot be written."""
        self._write(self.path(record.stage), dataclasses.asdict(record))

    def begin(self, pipeline: Pipeline) -> None:
        """Write down which stages there are."""
        names = [stage.name for stage in pipeline.stages]
        content = {"name": pipeline.name, "seed": pipeline.seed, "stages": names}
        self._write(self._index, content)

    def index(self) -> dict[str, Any]:
        """name and seed of the pipeline, and its stages in order; ConfigError where none began."""
        try:
            return dict(json.loads(self._index.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._index} cannot be read ({error}): no pipeline was begun there"
            ) from None

    def mark(self, name: str, state: State, seconds: float) -> None:
        """Set the state of a stage that has a record, and add to its seconds."""
        record = self.read(name)
        if record is None:
            raise ConfigError(f"there is no {self.path(name)}: stage {name} was not submitted")
        record.state, record.seconds = state, round(record.seconds + seconds, 1)
        self.write(record)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        aside = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(aside, path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror or error}: give another --dir"
            ) from None

    def check(self, wanted: Mapping[str, Record]) -> dict[str, Record]:
        """The records of stages that began; ConfigError for one of a stage with other settings."""
        found = {name: record for name in wanted if (record := self.read(name)) is not None}
        for name, record in found.items():
            if record.state != "submitted" and record.hash != wanted[name].hash:
                raise ConfigError(self._difference(record, wanted[name]))
        return {name: record for name, record in found.items() if record.state != "submitted"}

    def _difference(self, before: Record, now: Record) -> str:
        old = {"command": before.command, **before.settings}
        new = {"command": now.command, **now.settings}
        # JSON has lists for tuples, and text for the keys of a mapping.
        new = json.loads(json.dumps(new))
        if now.command != "run":
            old, new = _DEFAULTS | old, _DEFAULTS | new
        different = [
            f"{key} was {old.get(key, 'not there')!r} and is {new.get(key, 'not there')!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        different += [
            f"stage {name}, which it uses, was made with other settings"
            for name in sorted(before.inputs.keys() | now.inputs.keys())
            if before.inputs.get(name) != now.inputs.get(name)
        ]
        more = f" (and {len(different) - _SHOWN} more)" if len(different) > _SHOWN else ""
        what = "done" if before.state == "done" else "begun"
        return (
            f"stage {before.stage} was {what} with other settings: "
            f"{'; '.join(different[:_SHOWN])}{more}; give the same, take another --dir, or remove "
            f"{self.path(before.stage)} and its run folder to make it anew"
        )
