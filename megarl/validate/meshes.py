"""Ranks, meshes and rollout replicas of a run: do they fit each other and the models?"""

from __future__ import annotations

from math import gcd

from megarl.config.resources import ResolvedPools, pools_from_resources
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.layout.megatron_side import MegatronSlice, megatron_parameters, stage_layers
from megarl.layout.replica import ReplicaLayout
from megarl.layout.rules import ModelShape
from megarl.layout.vllm_side import vllm_parameters
from megarl.mesh.layout import MeshLayout, layout_from_config
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.validate.contradictions import check_mesh_settings
from megarl.validate.models import Role, RoleModel


def make_plan(
    config: Config, models: dict[Role, RoleModel], world_size: int, purpose: str
) -> RunPlan:
    """The run's plan; ConfigError where ranks, meshes and models do not fit."""
    pools = pools_from_resources(config.resources if purpose == "train" else {}, world_size)
    served = config.rollout.engine == "server"
    _check_idle(pools, models, config)
    roles = {role: _role_plan(role, model, pools.ranks[role]) for role, model in models.items()}
    ranks, rollout = () if served else pools.ranks["rollout"], config.rollout
    replica = ReplicaLayout(
        rollout.launch.tensor_parallel_size or rollout.tensor_parallel_size,
        rollout.pipeline_parallel_size,
        rollout.enable_expert_parallel,
    )
    if purpose in ("train", "eval"):
        _check_rollout(config, models["actor"].shape, len(ranks) or replica.size, replica)
    return RunPlan(
        world_size=world_size,
        actor=roles["actor"],
        critic=roles.get("critic"),
        reference=roles.get("reference"),
        reward=roles.get("reward"),
        rollout_ranks=ranks,
        replica=replica,
    )


def _check_idle(pools: ResolvedPools, models: dict[Role, RoleModel], config: Config) -> None:
    present = {*models, "rollout"}
    reasons = {
        "critic": f"algorithm.adv_estimator {config.algorithm.adv_estimator} has no critic",
        "reference": "algorithm.kl_coef is 0 and use_kl_loss is false, so there is no reference",
        "reward": "reward.model.path is empty, so there is no reward model",
    }
    for ranks, roles in pools.pools.items():
        if not present & set(roles):
            raise ConfigError(
                f"resources.{roles[0]}_gpus {list(ranks)}: these ranks would have nothing to do: "
                f"{reasons[roles[0]]}; leave the key out"
            )


def _role_plan(role: Role, model: RoleModel, ranks: tuple[int, ...]) -> RolePlan:
    key = f"{role}.mesh"
    check_mesh_settings(model.mesh, key)
    layout = layout_from_config(model.mesh, len(ranks), key)
    wanted = model.mesh.data_parallel_size
    if wanted is not None and wanted != layout.dp:
        raise ConfigError(
            f"{key}.data_parallel_size is {wanted}: tensor {layout.tp} x pipeline {layout.pp} x "
            f"context {layout.cp} on {len(ranks)} ranks leaves {layout.dp}; leave it out, or give "
            f"the role {layout.tp * layout.pp * layout.cp * wanted} ranks"
        )
    _check_experts(model.shape, layout, key)
    _check_megatron(model.shape, layout, key)
    return RolePlan(ranks, layout, model.shape, model.path, model.hf)


def _check_experts(shape: ModelShape, layout: MeshLayout, key: str) -> None:
    if not shape.num_experts and max(layout.ep, layout.etp) > 1:
        raise ConfigError(
            f"{key}: expert_model_parallel_size {layout.ep} and expert_tensor_parallel_size "
            f"{layout.etp}: the model has no experts; set both to 1"
        )
    if shape.num_experts and layout.tp > 1 and not layout.sequence_parallel:
        raise ConfigError(
            f"{key}.tensor_model_parallel_size is {layout.tp}: Megatron trains layers of experts "
            f"under tensor parallelism with sequence parallelism only; set {key}.sequence_parallel "
            "to true"
        )
    try:
        megatron_parameters(shape, MegatronSlice(ep_size=layout.ep, etp_size=layout.etp))
    except ConfigError as error:
        raise ConfigError(f"{key} ({layout.describe()}): {error}") from None


def _check_megatron(shape: ModelShape, layout: MeshLayout, key: str) -> None:
    """The layout tables refuse what Megatron could not split."""
    slice_ = MegatronSlice(
        tp_size=layout.tp,
        pp_size=layout.pp,
        vpp_size=layout.vpp,
        first_stage_layers=layout.first_stage_layers,
        last_stage_layers=layout.last_stage_layers,
    )
    try:
        stage_layers(shape, slice_)
    except ConfigError as error:
        raise ConfigError(
            f"{key} ({layout.describe()}): {error}; pipeline_model_parallel_size {layout.pp} x "
            f"virtual_pipeline_model_parallel_size {layout.vpp} must divide the {shape.num_layers} "
            "layers, except for those given to the first and the last stage"
        ) from None
    try:
        megatron_parameters(shape, slice_)
    except ConfigError as error:
        ffn = 0 if shape.num_experts else shape.ffn_hidden_size
        sizes = gcd(shape.num_heads, shape.num_kv_heads, ffn)
        raise ConfigError(
            f"{key}.tensor_model_parallel_size: {error}; the model takes {_divisors(sizes)}"
        ) from None


def _check_rollout(
    config: Config, shape: ModelShape, num_ranks: int, replica: ReplicaLayout
) -> None:
    if num_ranks % replica.tp:
        raise ConfigError(
            f"rollout.tensor_parallel_size {replica.tp} does not divide the {num_ranks} ranks of "
            f"the rollout: take {_divisors(num_ranks)}, or other ranks"
        )
    if num_ranks % replica.size or replica.pp > shape.num_layers:
        raise ConfigError(
            f"rollout.pipeline_parallel_size {replica.pp} x rollout.tensor_parallel_size "
            f"{replica.tp} = {replica.size} does not divide the {num_ranks} ranks of the rollout, "
            f"or has more stages than the {shape.num_layers} layers: take fewer stages"
        )
    if replica.expert_parallel and not shape.num_experts:
        raise ConfigError(
            "rollout.enable_expert_parallel is true and the model has no experts: set it to false"
        )
    try:
        vllm_parameters(shape, replica.slice_of(0))
    except ConfigError as error:
        ffn = shape.expert_ffn_size if shape.num_experts else shape.ffn_hidden_size
        sizes = gcd(shape.num_heads, 0 if replica.expert_parallel else ffn)
        raise ConfigError(
            f"rollout.tensor_parallel_size: {error}; the model takes {_divisors(sizes)}"
        ) from None


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
