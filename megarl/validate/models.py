"""The model of each role that a run has, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megarl.config.schema import Config, MeshConfig
from megarl.errors import ConfigError, DataError
from megarl.layout.rules import ModelShape, model_shape_from_hf, with_scalar_head
from megarl.models.rope import inverse_frequencies
from megarl.validate.contradictions import needs_critic, needs_reference

Role = Literal["actor", "critic", "reference", "reward"]


@dataclass(frozen=True, slots=True)
class RoleModel:
    """One role's folder and what its config.json says."""

    key: str
    """Setting that names the folder, for messages."""
    path: str
    hf: dict[str, Any]
    shape: ModelShape
    mesh: MeshConfig


def read_models(config: Config, purpose: str) -> dict[Role, RoleModel]:
    """The roles that a run has; ConfigError or DataError for a model that cannot be used."""
    if not config.actor.model.path:
        raise ConfigError(
            "actor.model.path is empty: give a Hugging Face folder with config.json, weights "
            "(unless actor.model.fresh) and a tokenizer"
        )
    models: dict[Role, RoleModel] = {"actor": _read(config, "actor")}
    if purpose == "reward":
        models["actor"] = replace(models["actor"], shape=scored(models["actor"].shape))
        return models
    if models["actor"].shape.scalar_head is not None:
        raise ConfigError(
            f"actor.model.path {models['actor'].path}: config.json is of a value or reward model, "
            "which has no output layer: give a causal language model"
        )
    if purpose == "train" and needs_critic(config):
        critic = _read(config, "critic")
        models["critic"] = replace(critic, shape=scored(critic.shape))
    if purpose == "train" and needs_reference(config):
        models["reference"] = _read(config, "reference")
    if purpose in ("train", "eval") and config.reward.model.path:
        models["reward"] = _read(config, "reward")
        _check_reward_model(models["reward"])
    _check_same_tokens(models)
    return models


def scored(shape: ModelShape) -> ModelShape:
    """The shape with a scalar head in place of its vocabulary head, where it has one."""
    return shape if shape.scalar_head is not None else with_scalar_head(shape)


def mesh_of(config: Config, role: Role) -> MeshConfig:
    """The role's mesh; the actor's where it has none of its own."""
    own: MeshConfig | None = getattr(config, role).mesh
    return own or config.actor.mesh


def _read(config: Config, role: Role) -> RoleModel:
    own: str = getattr(config, role).model.path
    key = f"{role}.model.path" if own else "actor.model.path"
    path = str(Path(own or config.actor.model.path).expanduser())
    mesh = mesh_of(config, role)
    hf, shape = read_model(path, key, tp=max(mesh.tensor_model_parallel_size, 1))
    return RoleModel(key, path, hf, shape, mesh)


def read_model(path: str | Path, key: str, *, tp: int = 1) -> tuple[dict[str, Any], ModelShape]:
    """A folder's config.json and the shape it gives; the vocabulary is padded for `tp` ranks.

    Raises ConfigError or DataError, naming `key` and the path, for a model that cannot be built.
    """
    hf = read_hf_config(path, key)
    try:
        shape = model_shape_from_hf(hf, tp=tp)
        if hf.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ConfigError(
                f"config.json: hidden_act is {hf['hidden_act']!r}: only silu is known"
            )
        inverse_frequencies(hf, shape.head_dim)
    except ConfigError as error:
        raise ConfigError(f"{key} {path}: {error}") from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(
            f"{key} {path}: config.json holds a value of a type that no model has there "
            f"({type(error).__name__}: {error}); copy it again"
        ) from None
    return hf, shape


def _check_reward_model(model: RoleModel) -> None:
    if model.shape.scalar_head is None:
        raise ConfigError(
            f"{model.key} {model.path}: config.json names architectures "
            f"{model.hf.get('architectures')}: a reward model is a ...ForSequenceClassification "
            "with one label (num_labels 1)"
        )


def read_hf_config(path: str | Path, key: str = "model.path") -> dict[str, Any]:
    """config.json of a Hugging Face folder; DataError names `key` and the file."""
    file = Path(path) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"{key} {path}: there is no {file}, seen from {Path.cwd()}: give the path of a Hugging "
            "Face folder (download it first; names of hub models are not looked up)"
        ) from None
    except ValueError as error:
        raise DataError(f"{key} {path}: {file} is not JSON: {error}; copy it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{key} {path}: {file} holds a {type(found).__name__}, not an object")
    return found


def _check_same_tokens(models: dict[Role, RoleModel]) -> None:
    actor = models["actor"]
    for role, model in models.items():
        if model.shape.vocab_size != actor.shape.vocab_size:
            raise ConfigError(
                f"{model.key} {model.path}: vocab_size {model.shape.vocab_size} of the {role} is "
                f"not the actor's {actor.shape.vocab_size} ({actor.path}): roles read the same "
                "tokens, so their models must share a tokenizer"
            )
